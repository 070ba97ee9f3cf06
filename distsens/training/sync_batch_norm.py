"""Batch normalisation by the statistics of the global batch, however many workers share it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distsens.training.reduce import world

# Made once, because a compiler guards what it has compiled by the layers' types.
_types: dict[tuple[type[_BatchNorm], type[_BatchNorm]], type[_BatchNorm]] = {}


@contextmanager
def sharing_statistics(model: nn.Module) -> Iterator[None]:
    """Let the model's batch-norm layers, in training mode, normalise by the statistics of all workers' images.

    Collective: every worker has to run the same layers in the same order, forwards and backwards, inside the block.
    Layers keep their identity, parameters, buffers, hooks and names, and are of the type they were again afterwards, so
    that optimizers, attacks, checkpoints and a network's own code notice nothing. On a GPU they compute as
    :class:`torch.nn.SyncBatchNorm`, which takes no tensors of a CPU; there as :class:`WorkersBatchNorm`.

    A subclass with a forward of its own shares statistics where that calls ``super().forward``; see
    :func:`own_forwards`.
    """
    before = [(layer, type(layer)) for layer in model.modules() if isinstance(layer, _BatchNorm)]
    try:
        for layer, kind in before:
            layer.__class__ = _shared(kind, next(layer.parameters(), layer.running_mean))
        yield
    finally:
        for layer, kind in before:
            layer.__class__ = kind


def shares_statistics(layer: nn.Module) -> bool:
    """Whether a layer takes statistics of other workers' images too, of which its own may be none."""
    return isinstance(layer, WorkersBatchNorm | nn.SyncBatchNorm)


def own_forwards(model: nn.Module) -> tuple[str, ...]:
    """Names of batch-norm layers with a forward of their own, whose statistics may stay those of one worker."""
    plain = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
    layers = ((name, layer) for name, layer in model.named_modules() if isinstance(layer, _BatchNorm))
    return tuple(name for name, layer in layers if type(layer).forward not in plain or "forward" in vars(layer))


def _shared(kind: type[_BatchNorm], where: Tensor | None) -> type[_BatchNorm]:
    """The type of layer that shares statistics: a subclass of this one, for whoever asks what it is."""
    on_gpu = where is not None and where.is_cuda
    return _made(kind, nn.SyncBatchNorm if on_gpu else WorkersBatchNorm)


def _made(kind: type[_BatchNorm], sharing: type[_BatchNorm]) -> type[_BatchNorm]:
    if issubclass(kind, sharing):
        return kind
    if (kind, sharing) not in _types:
        # Of the two forwards that of `sharing` counts: torch's layers inherit theirs from a common base, behind it.
        bases = (sharing, kind) if issubclass(kind, nn.SyncBatchNorm) else (kind, sharing)
        _types[kind, sharing] = type(f"Shared{kind.__name__}", bases, {"process_group": None})
    return _types[kind, sharing]


class WorkersBatchNorm(_BatchNorm):
    """``nn.BatchNorm1d``, ``2d`` or ``3d`` whose training statistics are those of all workers' images.

    Shares may differ in size, and be empty. In eval mode, and without other workers, it is the layer that it stands
    for.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Normalise (N, C, ...) over all dimensions but C and, in training, over all workers."""
        if not self.training or world()[1] == 1:
            alone: Tensor = super().forward(input)
            return alone
        self._check_input_dim(input)
        rest = [dim for dim in range(input.ndim) if dim != 1]
        shape = [-1 if dim == 1 else 1 for dim in range(input.ndim)]
        values = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
        here = values.new_tensor([values.numel() / self.num_features])
        sums, counts = _SumOverWorkers.apply(torch.cat([values.sum(rest), here])).split([self.num_features, 1])
        count = counts.detach()
        if count.item() <= 1.0:  # on every worker, so that none waits for another
            raise ValueError(f"Expected more than 1 value per channel when training, got {int(count)} of all workers")
        mean = sums / count
        # In two passes, because E[x^2] - E[x]^2 would cancel.
        centred = values - mean.view(shape)
        variance = _SumOverWorkers.apply(centred.square().sum(rest)) / count
        if self.track_running_stats:
            self._track(mean.detach(), variance.detach() * (count / (count - 1.0)))
        outputs = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None:
            outputs = outputs * self.weight.view(shape)
        if self.bias is not None:
            outputs = outputs + self.bias.view(shape)
        normalised: Tensor = outputs.to(input.dtype)
        return normalised

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards a batch's mean and unbiased variance."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 (torch's name)
        if input.ndim < 2:
            raise ValueError(f"expected inputs (N, C, ...), got shape {tuple(input.shape)}")


class _SumOverWorkers(torch.autograd.Function):
    """Sum over all workers, whose gradient is the sum of what each worker's loss says: their losses add up to one."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ARG004
        return _summed(values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        return _summed(gradient)


def _summed(values: Tensor) -> Tensor:
    total = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total
