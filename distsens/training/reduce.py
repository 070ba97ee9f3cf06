"""Exact sums over the workers of a process group; on one process without a group they are its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world() -> tuple[int, int]:
    """Rank of this process and number of processes: (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def sum_over_workers(sums: Mapping[str, Tensor | float], device: torch.device) -> dict[str, float]:
    """Sum named numbers over all workers in one all-reduce; every worker has the same names in the same order."""
    total = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=device) for value in sums.values()])
    if world()[1] > 1:
        dist.all_reduce(total)
    return dict(zip(sums, total.tolist(), strict=True))


def broadcast_module(module: nn.Module) -> None:
    """Give every worker rank 0's parameters and buffers."""
    if world()[1] > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.data, src=0)


def broadcast_buffers(module: nn.Module) -> None:
    """Give every worker rank 0's buffers (batch-norm statistics), as DDP does at its next forward."""
    if world()[1] > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer.data, src=0)
