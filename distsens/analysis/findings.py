"""All that was found of one model or several, as tables, which figures, sentences and the report are made from."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import pandas as pd
import torch
from torch import Tensor

from distsens.analysis.agreement import condition_agreement, model_agreement
from distsens.analysis.gallery import Sight
from distsens.analysis.history import History, accuracy_correlation, turnover_table
from distsens.analysis.interventions import Intervened
from distsens.analysis.measurement import CLEAN, NOISE, Measured
from distsens.analysis.tables import (
    ablation_curves,
    ablation_table,
    class_table,
    completeness_table,
    contribution_table,
    flip_curves,
    layer_table,
    measured_rows,
    neuron_table,
    patching_table,
)
from distsens.data import as_tensor
from distsens.sensitivity import rank_correlation


@dataclass
class ModelFindings:
    """What was found of one model; sums, not yet tables."""

    name: str
    measured: Measured
    intervened: Intervened | None = None
    history: History | None = None
    sights: list[Sight] = field(default_factory=list)


@dataclass(frozen=True)
class Findings:
    """Tables with the column ``model``, in which a model is called by its name; those not wanted are empty.

    conditions : :func:`distsens.analysis.measured_rows`.
    neurons : :func:`~distsens.analysis.neuron_table`, and contributions where they were taken.
    layers : :func:`~distsens.analysis.layer_table`.
    classes : :func:`~distsens.analysis.class_table`, of the first condition.
    ablations, ablation_curves : :func:`~distsens.analysis.ablation_table`, :func:`~distsens.analysis.ablation_curves`.
    patching, flip_curves : :func:`~distsens.analysis.patching_table`, :func:`~distsens.analysis.flip_curves`.
    completeness : :func:`~distsens.analysis.completeness_table`.
    interventions : a row a model: ``images`` that were intervened on, and the parts of them that are ``right`` benign,
        right ``attacked``, and ``flipped`` by the attack.
    condition_agreement, model_agreement : the functions of these names, the latter of every model with the first one.
    models : a row a model: accuracies and, over all layers, the mean of the layers' mean sensitivities.
    robustness : Spearman's correlation over models of these with accuracy under the first condition.
    history, epochs, turnover, history_correlation : :class:`~distsens.analysis.History` of each model, and what the
        functions of :mod:`distsens.analysis.history` make of it.
    """

    conditions: pd.DataFrame
    neurons: pd.DataFrame
    layers: pd.DataFrame
    classes: pd.DataFrame
    models: pd.DataFrame
    robustness: pd.DataFrame
    ablations: pd.DataFrame
    ablation_curves: pd.DataFrame
    patching: pd.DataFrame
    flip_curves: pd.DataFrame
    completeness: pd.DataFrame
    interventions: pd.DataFrame
    condition_agreement: pd.DataFrame
    model_agreement: pd.DataFrame
    history: pd.DataFrame
    epochs: pd.DataFrame
    turnover: pd.DataFrame
    history_correlation: pd.DataFrame

    @property
    def condition(self) -> str:
        """The first condition, whose pairs all but the agreement between conditions is about."""
        return str(self.neurons["condition"].iloc[0])

    @property
    def names(self) -> list[str]:
        """Of the models, in order."""
        return [str(name) for name in self.models["model"]]

    def tables(self) -> dict[str, pd.DataFrame]:
        """Those that are not empty, by name."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: table for name, table in found.items() if len(table)}

    def parquet(self) -> dict[str, bytes]:
        """The same as Parquet files, by name."""
        files = {}
        for name, table in self.tables().items():
            buffer = io.BytesIO()
            table.to_parquet(buffer, index=False)
            files[name] = buffer.getvalue()
        return files


Matches = Mapping[str, Mapping[str, tuple[Tensor, float]]]


def findings_of(
    models: Sequence[ModelFindings], classes: tuple[str, ...], ratio: float, by: str, matches: Matches | None = None
) -> Findings:
    """Tables of all models.

    Parameters
    ----------
    classes : names.
    ratio, by : which neurons count as sensitive.
    matches : of each further model's neurons with those of the first one, by its name and by layer.
    """
    neurons = [_neurons(one, ratio, by) for one in models]
    first = neurons[0]["condition"].iloc[0]
    table = _join(models, neurons)
    layers = layer_table(table)
    conditions = _join(models, [pd.DataFrame(measured_rows(one.measured)) for one in models])
    overall = _models(conditions, layers[layers["condition"] == first], first)
    intervened = [one for one in models if one.intervened is not None]
    sizes = {one.name: _sizes(one.measured) for one in models}
    ablations = _join(intervened, [ablation_table(one.intervened, sizes[one.name]) for one in intervened])  # type: ignore[arg-type]
    patching = _join(intervened, [patching_table(one.intervened, sizes[one.name]) for one in intervened])  # type: ignore[arg-type]
    with_history = [(one, one.history) for one in models if one.history is not None]
    told = [one for one, _ in with_history]
    agreements = [
        model_agreement(_of(neurons[0], first), _of(other, first), matches[one.name], by).assign(
            first=models[0].name, second=one.name
        )
        for one, other in zip(models[1:], neurons[1:], strict=True)
        if matches and one.name in matches
    ]
    return Findings(
        conditions,
        table,
        layers,
        _join(models, [class_table(one.measured.meters[first], classes) for one in models]),
        overall,
        _robustness(overall),
        ablations,
        ablation_curves(ablations) if len(ablations) else pd.DataFrame(),
        patching,
        flip_curves(patching) if len(patching) else pd.DataFrame(),
        _join(intervened, [completeness_table(one.intervened) for one in intervened]),  # type: ignore[arg-type]
        _join(intervened, [_interventions(one.intervened) for one in intervened]),  # type: ignore[arg-type]
        _join(models, [condition_agreement(part, by) for part in neurons]),
        pd.concat(agreements, ignore_index=True) if agreements else pd.DataFrame(),
        _join(told, [history.neurons for _, history in with_history]),
        _join(told, [history.accuracy for _, history in with_history]),
        _join(told, [turnover_table(history.neurons) for _, history in with_history]),
        _join(told, [accuracy_correlation(history) for _, history in with_history]),
    )


def _neurons(one: ModelFindings, ratio: float, by: str) -> pd.DataFrame:
    table = neuron_table(one.measured.meters, ratio, by)
    if one.intervened is None or not one.intervened.contributions:
        return table
    contributed = contribution_table(one.intervened).assign(condition=table["condition"].iloc[0])
    return table.merge(contributed, on=["condition", "layer", "neuron"], how="left")


def _models(conditions: pd.DataFrame, layers: pd.DataFrame, first: str) -> pd.DataFrame:
    by_condition = conditions.pivot_table(index="model", columns="condition", values="accuracy", sort=False)
    means = layers.groupby("model", sort=False)[["absolute", "relative", "noise", "over_noise"]].mean()
    table = means.assign(clean=by_condition[CLEAN], robust=by_condition[first], noisy=by_condition[NOISE])
    return table.reset_index()


def _robustness(models: pd.DataFrame) -> pd.DataFrame:
    """Two models have no correlation worth the name."""
    if len(models) < 3:
        return pd.DataFrame()
    robust = as_tensor(models["robust"].to_numpy())
    found = {name: rank_correlation(as_tensor(models[name].to_numpy()), robust) for name in ("absolute", "relative")}
    return pd.DataFrame([{**found, "models": len(models)}])


def _interventions(found: Intervened) -> pd.DataFrame:
    parts = {name: getattr(found, name) / found.images for name in ("right", "attacked", "flipped")}
    return pd.DataFrame([{"images": found.images, **parts}])


def _sizes(measured: Measured) -> dict[str, int]:
    meter = next(iter(measured.meters.values()))
    return {layer: len(one.absolute) for layer, one in meter.compute().items()}


def _of(neurons: pd.DataFrame, condition: str) -> pd.DataFrame:
    return neurons[neurons["condition"] == condition]


def _join(models: Sequence[ModelFindings], tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    parts = [table.assign(model=one.name) for one, table in zip(models, tables, strict=True) if len(table)]
    if not parts:
        return pd.DataFrame()
    table = pd.concat(parts, ignore_index=True)
    return table[["model", *(name for name in table if name != "model")]]


def sensitivities(measured: Measured, by: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What an :class:`InterventionPlan` goes by: the sensitivities under the first condition, and the means."""
    statistics = next(iter(measured.meters.values())).compute()
    return (
        {layer: torch.as_tensor(getattr(one, by)) for layer, one in statistics.items()},
        {layer: one.output for layer, one in statistics.items()},
    )
