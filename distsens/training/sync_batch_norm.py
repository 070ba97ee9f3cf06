"""Batch normalisation by the statistics of the global batch, however many workers share it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distsens.training.reduce import world


def synchronised(model: nn.Module, device: torch.device) -> nn.Module:
    """Let the model's batch-norm layers share their statistics in training: changed in place where it is no such layer.

    Parameters, buffers and their names stay, so optimizers, weight averages and checkpoints do not notice. GPUs get
    :class:`torch.nn.SyncBatchNorm`, which takes no tensors of a CPU; there it is :class:`WorkersBatchNorm`.
    """
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return converted
    if isinstance(model, _BatchNorm):
        return WorkersBatchNorm.of(model)
    for name, child in model.named_children():
        setattr(model, name, synchronised(child, device))
    return model


class WorkersBatchNorm(_BatchNorm):
    """``nn.BatchNorm1d``, ``2d`` or ``3d`` whose training statistics are those of all workers' images.

    Shares may differ in size, and be empty. In eval mode, and without other workers, it is the layer that it replaces.
    """

    @classmethod
    def of(cls, layer: _BatchNorm) -> WorkersBatchNorm:
        """The same layer, with the same parameters and buffers, synchronised."""
        new = cls(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            setattr(new, name, getattr(layer, name))
        return new.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Normalise (N, C, ...) over all dimensions but C and, in training, over all workers."""
        if not self.training or world()[1] == 1:
            alone: Tensor = super().forward(input)
            return alone
        rest = [dim for dim in range(input.ndim) if dim != 1]
        shape = [-1 if dim == 1 else 1 for dim in range(input.ndim)]
        values = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
        here = values.new_tensor([values.numel() / self.num_features])
        sums, counts = _SumOverWorkers.apply(torch.cat([values.sum(rest), here])).split([self.num_features, 1])
        count = counts.detach()
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
