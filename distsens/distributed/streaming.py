"""Image files decoded by Ray Data: ahead of the training, on cores of the cluster that no worker holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import ray
import ray.data
import torch
from torch import Tensor

from distsens.data import ImageFiles, Images, read_ahead
from distsens.errors import InputError

_BATCHES_READY = 2
_FILES_AT_A_TIME = 8


def stream(images: Images, batches: Sequence[Tensor], *, shared: ray.ObjectRef, tasks: int) -> Iterator[Tensor]:
    """``images[batch]`` of each batch in turn, as :func:`distsens.data.read_ahead` gives them, decoded by Ray Data.

    The batches and their order are the caller's: they depend neither on how many workers there are nor on who decodes.
    A resumed training asks for the batches that are left, and reads no others.

    Parameters
    ----------
    images : what is in memory already is not streamed.
    batches : numbers of the images, as many in each.
    shared : the same images in the object store, where those who decode find their names.
    tasks : batches that are decoded at a time, each on a core of its own; the cluster must have one that is free.

    Raises
    ------
    InputError
        If a file is gone or no longer holds the image that it held.
    """
    if not isinstance(images, ImageFiles) or not batches:
        yield from read_ahead(images, batches)
        return
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    # Each worker streams by itself, and would by default take half of the cluster's memory for objects.
    held = len(batches[0]) * math.prod(images.shape[1:]) * (tasks + _BATCHES_READY)
    context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(object_store_memory=2 * held)
    decoded = ray.data.from_numpy([batch.numpy() for batch in batches]).map_batches(
        _decode,
        fn_args=[[shared]],
        batch_size=None,
        batch_format="numpy",
        compute=ray.data.TaskPoolStrategy(size=tasks),
    )
    try:
        for batch in decoded.iter_batches(batch_size=len(batches[0]), batch_format="numpy", prefetch_batches=1):
            yield torch.from_numpy(batch["image"].copy())
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, InputError) else error from None


def _decode(batch: dict[str, np.ndarray], shared: Sequence[ray.ObjectRef]) -> dict[str, np.ndarray]:
    (images,) = ray.get(list(shared))  # in a list, or Ray would hand over what it refers to
    # Most of the time is waiting for the storage.
    with ThreadPoolExecutor(_FILES_AT_A_TIME) as pool:
        return {"image": np.stack(list(pool.map(images.decoded, batch["data"].tolist())))}
