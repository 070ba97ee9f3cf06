"""The model as an attack sees it: frozen, in eval mode, and exactly as it was afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from distsens.attacks.lean import Forward, lean_forwards, replaced
from distsens.errors import InputError
from distsens.logits import check_weights, checked_logits
from distsens.networks import in_eval_mode, in_own_type, keeping_buffers, memory_format_of, program, undistributed

Logits = Callable[[Tensor], Tensor]


@contextmanager
def attack_view(model: nn.Module, *, precision: torch.dtype | None = None) -> Iterator[Logits]:
    """Give a function from [0, 1] images (N, C, H, W) to float32 logits (N, K) for gradients with respect to images.

    Inside the block the parameters are frozen (so no gradient is computed for them, which also makes each step
    cheaper), the model is in eval mode (fixed batch-norm statistics, no dropout) and a DDP or DataParallel wrapper is
    bypassed. Afterwards, also after an exception, every ``requires_grad`` flag, every module's train/eval mode, every
    ``.grad``, all buffers (also those that the model itself updates in eval mode) and the global random generators are
    as they were. Gradients are enabled inside, whatever the caller had set. A network without hooks runs with batch
    norms folded into convolutions and weights cast once (see :func:`lean_forwards`), so its weights must not change
    inside the block, and only one thread may call it. Images are cast to the type of the model's weights, if all have
    the same, and lie in memory as :func:`memory_format_of` says.

    Parameters
    ----------
    model : any classifier.
    precision : run the forward in this type (``torch.bfloat16``) by autocast; None means that of the model's weights,
        whatever autocast the caller is in.
    """
    network = undistributed(model)
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    trainable = [p for p in network.parameters() if p.requires_grad]
    forwards: dict[nn.Module, Forward] | None = None

    def logits(images: Tensor) -> Tensor:
        nonlocal forwards
        layout = memory_format_of(network, images)
        arranged = in_own_type(network, images).to(memory_format=layout)
        is_first = forwards is None and len(images) > 0
        if is_first:
            forwards = lean_forwards(network, arranged.detach(), layout, precision)
        with (
            torch.autocast(device.type, dtype=precision, enabled=precision is not None),
            replaced(network, forwards or {}),
        ):
            outputs = checked_logits(_run(network, arranged), len(images))
        if is_first:
            check_weights(network, outputs.detach())
        return outputs.float()

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        # Around the whole block, because the caller's autocast would also lower the backward pass.
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        stack.enter_context(in_eval_mode(network))
        stack.enter_context(keeping_buffers(network))
        try:
            for parameter in trainable:
                parameter.requires_grad_(False)
            yield logits
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)


def _run(network: nn.Module, images: Tensor) -> object:
    try:
        outputs: object = network(images)
    except (AssertionError, RuntimeError) as problem:
        if kind := program(network):
            said = " ".join(str(problem).split())
            allowed = f"it takes no images {tuple(images.shape)}, or not so many at once: {said}"
            raise InputError("model", kind, allowed) from problem
        raise
    return outputs


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Float32 logits (N, K) of images (N, C, H, W), without gradients; the model is left as it was."""
    with attack_view(model) as logits, torch.no_grad():
        return logits(images)
