"""The analysis in a notebook, of any ``nn.Module``: tensors in, tables out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from distsens.analysis.interventions import InterventionPlan, intervene
from distsens.analysis.measurement import NOISE, SAVED, MeasurementPlan, measure_images
from distsens.analysis.tables import (
    ablation_curves,
    ablation_table,
    flip_curves,
    layer_table,
    neuron_table,
    patching_table,
)
from distsens.data import to_pixels
from distsens.errors import InputError
from distsens.networks import in_own_type
from distsens.precision import full_float32
from distsens.sensitivity import (
    ActivationProbe,
    NoiseNorm,
    Replacement,
    in_eval_mode,
    match_layers,
    selected_count,
)

Layers = str | Sequence[str]


@full_float32()
@torch.no_grad()
def probe(model: nn.Module, images: Tensor, layers: Layers = "auto", batch_size: int = 32) -> pd.DataFrame:
    """What the neurons say to images: a row a neuron.

    Columns: ``layer``, ``kind`` (class of the module), ``neuron``, ``positions`` (values per image), ``output`` and
    ``magnitude`` (mean and mean absolute output over images and positions), ``silent`` (part of the images at which it
    is nowhere above 0: a dead neuron, if a ReLU follows, where it is 1).

    Parameters
    ----------
    model : any module; it runs in eval mode and is left as it was.
    images : what it takes, (N, ...).
    layers : names, globs, or ``"auto"``; see :class:`distsens.sensitivity.ActivationProbe`.
    """

    def read(_: str, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        wide = outputs.double()
        silent = (wide.amax(2) <= 0).double().sum(0)
        return wide.mean(2).sum(0), wide.abs().mean(2).sum(0), silent, outputs.shape[2]

    names = match_layers(model, layers, images)
    sums: dict[str, list[Tensor]] = {}
    positions: dict[str, int] = {}
    kinds = {}
    with in_eval_mode(model) as network:
        for batch in images.split(batch_size):
            reader = ActivationProbe(network, names, read=read)
            with reader:
                network(in_own_type(network, batch))
            for layer, (*parts, positions[layer]) in reader.outputs.items():
                old = sums.get(layer)
                sums[layer] = parts if old is None else [a + b for a, b in zip(old, parts, strict=True)]
        kinds = {layer: type(network.get_submodule(layer)).__name__ for layer in names}
    tables = []
    for layer in names:
        output, magnitude, silent = ((total / len(images)).cpu().numpy() for total in sums[layer])
        columns = {"output": output, "magnitude": magnitude, "silent": silent}
        head = {"layer": layer, "kind": kinds[layer], "neuron": np.arange(len(output)), "positions": positions[layer]}
        tables.append(pd.DataFrame({**head, **columns}))
    return pd.concat(tables, ignore_index=True)


def measure(
    model: nn.Module,
    benign: Tensor,
    adversarial: Tensor,
    *,
    layers: Layers = "auto",
    norm: NoiseNorm = "linf",
    ratio: float = 0.1,
    by: str = "absolute",
    batch_size: int = 32,
    seed: int = 0,
) -> pd.DataFrame:
    """Sensitivity of every neuron between images and their twins, with its error and its noise floor: a row a neuron.

    The columns are those of :func:`distsens.analysis.neuron_table`, without ``condition``.

    Parameters
    ----------
    model : any classifier of images in [0, 1]; it runs in eval mode and is left as it was.
    benign, adversarial : (N, C, H, W) in [0, 1] (or uint8), on the model's device.
    norm : in which the noise is as large as the perturbation.
    ratio, by : which neurons count as ``sensitive``.
    """
    if benign.shape != adversarial.shape:
        raise InputError(
            "adversarial", tuple(adversarial.shape), f"it must have the benign shape {tuple(benign.shape)}"
        )
    benign, adversarial = _pixels(benign, "benign"), _pixels(adversarial, "adversarial")
    known = torch.zeros(len(benign), dtype=torch.int64, device=benign.device)
    plan = MeasurementPlan({}, norm, match_layers(model, layers, benign), 0, seed=seed, batch_size=batch_size)
    numbers = torch.arange(len(benign), device=benign.device)
    found, _ = measure_images(model, benign, known, numbers, plan, pairs=adversarial)
    meters = {SAVED: found.meters[SAVED], NOISE: found.meters[NOISE]}
    return neuron_table(meters, ratio, by).drop(columns="condition")


def top_k(neurons: pd.DataFrame, k: int | None = None, *, ratio: float = 0.1, by: str = "absolute") -> pd.DataFrame:
    """The most sensitive neurons of each layer, first the most sensitive: k of them, or ``ceil(ratio * neurons)``."""
    if by not in neurons:
        raise InputError("by", by, f"allowed are {', '.join(neurons)}")
    parts = []
    for _, part in neurons.groupby("layer", sort=False):
        count = selected_count(len(part), ratio) if k is None else k
        parts.append(part.sort_values(by, ascending=False, kind="stable").head(count))
    return pd.concat(parts, ignore_index=True)


def ablate(
    model: nn.Module,
    benign: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    neurons: pd.DataFrame,
    *,
    by: str = "absolute",
    replacements: Sequence[Replacement] = ("benign",),
    ratios: Sequence[float] = (0.02, 0.05, 0.1, 0.2, 0.5),
    draws: int = 10,
    batch_size: int = 32,
    seed: int = 0,
) -> pd.DataFrame:
    """Accuracy on adversarial images with sensitive neurons set to something else, against random and bottom ones.

    Parameters
    ----------
    neurons : of :func:`measure`, every neuron; its layers are ablated, each by itself and all together.
    replacements, ratios, draws : see :class:`distsens.analysis.InterventionPlan`.

    Returns
    -------
    The columns of :func:`distsens.analysis.ablation_curves`.
    """
    benign, adversarial = _pixels(benign, "benign"), _pixels(adversarial, "adversarial")
    plan = _plan(neurons, by, replacements, ratios, draws, batch_size, seed)
    sizes = {layer: len(values) for layer, values in plan.sensitivity.items()}
    return ablation_curves(ablation_table(intervene(model, benign, adversarial, labels, plan, "ablate"), sizes))


def patch(
    model: nn.Module,
    benign: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    neurons: pd.DataFrame,
    *,
    by: str = "absolute",
    draws: int = 10,
    batch_size: int = 32,
    seed: int = 0,
) -> pd.DataFrame:
    """How many neurons' adversarial values flip a benign image; columns of :func:`distsens.analysis.flip_curves`."""
    benign, adversarial = _pixels(benign, "benign"), _pixels(adversarial, "adversarial")
    plan = _plan(neurons, by, ("benign",), (1.0,), draws, batch_size, seed)
    sizes = {layer: len(values) for layer, values in plan.sensitivity.items()}
    return flip_curves(patching_table(intervene(model, benign, adversarial, labels, plan, "patch"), sizes))


def compare(neurons: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Tables of :func:`measure` of several models side by side: the layers of each, with the column ``model`` first."""
    if not neurons:
        raise InputError("neurons", {}, "give the table of one model at least")
    return layer_table(pd.concat([table.assign(model=name) for name, table in neurons.items()], ignore_index=True))


def _pixels(images: Tensor, field: str) -> Tensor:
    """The images, refused outside [0, 1]; those in the model's own floating-point type keep it."""
    pixels = to_pixels(images, field)
    return images if images.is_floating_point() else pixels


def _plan(
    neurons: pd.DataFrame,
    by: str,
    replacements: Sequence[Replacement],
    ratios: Sequence[float],
    draws: int,
    batch_size: int,
    seed: int,
) -> InterventionPlan:
    if draws < 2:
        raise InputError("draws", draws, "at least 2 random sets, for their spread")
    for layer, part in neurons.groupby("layer", sort=False):
        if sorted(part["neuron"]) != list(range(len(part))):
            allowed = f"all neurons of {layer} are needed, each once, as measure returns them, not those of top_k"
            raise InputError("neurons", f"{len(part)} rows", allowed)
    ordered = {str(layer): part.sort_values("neuron") for layer, part in neurons.groupby("layer", sort=False)}
    return InterventionPlan(
        {layer: torch.as_tensor(part[by].to_numpy().copy()) for layer, part in ordered.items()},
        {layer: torch.as_tensor(part["output"].to_numpy().copy()) for layer, part in ordered.items()},
        tuple(replacements),
        tuple(ratios),
        draws,
        seed,
        batch_size=batch_size,
    )
