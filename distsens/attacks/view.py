"""The model as an attack sees it: frozen, in eval mode, and exactly as it was afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from distsens.attacks.lean import lean_forwards, replaced

Logits = Callable[[Tensor], Tensor]


@contextmanager
def attack_view(model: nn.Module, *, precision: torch.dtype | None = None) -> Iterator[Logits]:
    """Give a function from [0, 1] images (N, C, H, W) to float32 logits (N, K) for gradients with respect to images.

    Inside the block the parameters are frozen (so no gradient is computed for them, which also makes each step
    cheaper), the model is in eval mode (fixed batch-norm statistics, no dropout) and a DDP or DataParallel wrapper is
    bypassed. Afterwards, also after an exception, every ``requires_grad`` flag, every module's train/eval mode, every
    ``.grad``, all buffers and the global random generators are as they were. Gradients are enabled inside, whatever
    the caller had set. A network without hooks runs with batch norms folded into convolutions and weights cast once
    (see :func:`lean_forwards`), so its weights must not change inside the block, and only one thread may call it.

    Parameters
    ----------
    model : any classifier.
    precision : run the forward in this type (``torch.bfloat16``) by autocast; None means float32, whatever
        autocast the caller is in.
    """
    network: nn.Module = model.module if isinstance(model, DistributedDataParallel | DataParallel) else model
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    trainable = [p for p in network.parameters() if p.requires_grad]
    training = [module for module in network.modules() if module.training]

    def logits(images: Tensor) -> Tensor:
        if images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        with (
            torch.autocast(device.type, dtype=precision, enabled=precision is not None),
            replaced(network, forwards),
        ):
            outputs: Tensor = network(images)
        return outputs.float()

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        # Around the whole block, because the caller's autocast would also lower the backward pass.
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        try:
            for parameter in trainable:
                parameter.requires_grad_(False)
            network.eval()
            forwards = lean_forwards(network, precision)
            yield logits
        finally:
            for module in training:
                module.training = True
            for parameter in trainable:
                parameter.requires_grad_(True)


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Float32 logits (N, K) of images (N, C, H, W), without gradients; the model is left as it was."""
    with attack_view(model) as logits, torch.no_grad():
        return logits(images)
