"""The neurons of a training run over its epochs: when they become sensitive, and what robustness did meanwhile."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

import pandas as pd

from distsens.data import as_tensor
from distsens.errors import InputError
from distsens.evaluation import Subject
from distsens.sensitivity import chance_jaccard, jaccard, rank_correlation, turnover
from distsens.storage import RUN_FILE, CheckpointError, Checkpoints, Place, open_place, unseal
from distsens.training import stored_history

_EPOCH_FILE = re.compile(r"(?:.*/)?epoch-(\d+)\.parquet")
_OF_RUN = re.compile(r"(.+?)(?:#(?:best|last|\d+)|/checkpoints/epoch-\d+)?")
_PUBLISHED = re.compile(r"(.+)/models/([^/]+)")


@dataclass(frozen=True)
class History:
    """What a training run wrote down of its neurons.

    neurons : a row an epoch and neuron: ``epoch``, ``layer``, ``neuron``, ``absolute``, ``relative``, ``magnitude``,
        ``selected`` (the most sensitive of its layer).
    accuracy : a row an epoch: ``epoch``, ``clean``, ``robust``, on validation.
    """

    neurons: pd.DataFrame
    accuracy: pd.DataFrame


def training_history(subject: Subject) -> History | None:
    """The history of the run that trained a model, where the model's address leads to its storage; else None.

    Raises
    ------
    InputError : one of its tables is damaged, or of another epoch or run.
    """
    run = _run_of(subject)
    if run is None:
        return None
    digest = None if subject.experiment is None else subject.experiment.digest()
    tables = [
        _table(run, key, int(match[1]), digest, subject.address)
        for key in run.keys("sensitivity")
        if (match := _EPOCH_FILE.fullmatch(key))
    ]
    if not tables:
        return None
    neurons = pd.concat(tables, ignore_index=True).sort_values("epoch", kind="stable", ignore_index=True)
    try:
        newest = Checkpoints(run).newest().checkpoint
    except (CheckpointError, OSError):
        newest = None
    try:
        records = [] if newest is None else stored_history(newest.files)
    except InputError as error:
        raise InputError("model", subject.address, f"its {error.value} {error.allowed}") from error
    accuracy = pd.DataFrame(
        [
            {
                "epoch": record.epoch,
                "clean": record.metrics["validation/clean_accuracy"],
                "robust": record.metrics["validation/robust_accuracy"],
            }
            for record in records
            if "validation/robust_accuracy" in record.metrics
        ],
        columns=["epoch", "clean", "robust"],
    )
    return History(neurons, accuracy)


def _table(run: Place, key: str, epoch: int, experiment: str | None, address: str) -> pd.DataFrame:
    """The neurons of an epoch."""
    try:
        found = unseal(run.get(key))
        if found.about is not None and experiment not in (None, found.about.get("experiment")):
            raise ValueError("it is of another run")
        if (fault := _fault(found.rows, epoch)) is not None:
            raise ValueError(fault)
    except (OSError, ValueError) as error:
        raise InputError("model", address, f"its {key} is damaged: {error}") from None
    return found.rows


def _fault(rows: pd.DataFrame, epoch: int) -> str | None:
    """What shows that this is no table of the neurons of an epoch; None if nothing."""
    kinds = pd.api.types
    whole, number = kinds.is_integer_dtype, kinds.is_float_dtype
    wanted = {"epoch": whole, "layer": kinds.is_string_dtype, "neuron": whole, "absolute": number, "relative": number}
    wanted |= {"magnitude": number, "selected": kinds.is_bool_dtype}
    for name, is_kind in wanted.items():
        if list(rows.columns).count(name) != 1:
            return f"it should have a column {name}"
        if not is_kind(rows[name]) or (rows[name].isna().any() and not number(rows[name])):
            return f"its column {name} is {rows[name].dtype}, or misses values"
    if (rows["epoch"] != epoch).any():
        return "it is of another epoch"
    if rows.empty or rows.duplicated(["layer", "neuron"]).any() or (rows["neuron"] < 0).any():
        return "it does not have every neuron once"
    return None


def _run_of(subject: Subject) -> Place | None:
    if subject.run is None or subject.address.startswith(("runs:/", "models:/")):
        return None
    match = _OF_RUN.fullmatch(subject.address.rstrip("/"))
    try:
        place = open_place(match[1] if match else subject.address)
        if folder := _PUBLISHED.fullmatch(place.url):
            place = open_place(f"{folder[1]}/{folder[2]}")
        return place if place.keys(RUN_FILE) else None
    except (InputError, OSError):
        return None


def turnover_table(neurons: pd.DataFrame) -> pd.DataFrame:
    """What became of the sensitive neurons from each epoch to the next, a row a layer and epoch.

    ``born``, ``died``, ``kept`` (numbers of neurons), ``jaccard`` with the epoch before, ``chance``, what two random
    sets come to, and ``since_last``, the Jaccard index with the last epoch.
    """
    rows = []
    for layer, part in neurons.groupby("layer", sort=False):
        sets = {epoch: as_tensor(one.loc[one["selected"], "neuron"].to_numpy()) for epoch, one in part.groupby("epoch")}
        size = part["neuron"].nunique()
        last = list(sets.values())[-1]
        for (before, after), change in zip(pairwise(sets), turnover(list(sets.values())), strict=True):
            rows.append(
                {
                    "layer": layer,
                    "epoch": after,
                    "born": len(change.born),
                    "died": len(change.died),
                    "kept": len(change.kept),
                    "jaccard": jaccard(sets[before], sets[after]),
                    "chance": chance_jaccard(size, len(sets[before]), len(sets[after])),
                    "since_last": jaccard(sets[after], last),
                }
            )
    return pd.DataFrame(rows, columns=["layer", "epoch", "born", "died", "kept", "jaccard", "chance", "since_last"])


def epochs_jaccard(neurons: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Jaccard index of the sensitive neurons of every two epochs: for each layer a table, epochs by epochs."""
    tables = {}
    for layer, part in neurons.groupby("layer", sort=False):
        sets = {epoch: as_tensor(one.loc[one["selected"], "neuron"].to_numpy()) for epoch, one in part.groupby("epoch")}
        values = [[jaccard(first, second) for second in sets.values()] for first in sets.values()]
        tables[str(layer)] = pd.DataFrame(values, index=list(sets), columns=list(sets))
    return tables


def accuracy_correlation(history: History) -> pd.DataFrame:
    """Spearman's correlation, over epochs, of each layer's mean sensitivity with robust accuracy on validation.

    Columns ``layer``, ``absolute``, ``relative``, ``epochs``. Epochs of one run are not independent: a number near -1
    says that both move together in this run, not that one makes the other.
    """
    means = history.neurons.groupby(["layer", "epoch"], sort=False)[["absolute", "relative"]].mean().reset_index()
    joined = means.merge(history.accuracy, on="epoch")
    rows = []
    for layer, part in joined.groupby("layer", sort=False):
        robust = as_tensor(part["robust"].to_numpy())
        values = {name: rank_correlation(as_tensor(part[name].to_numpy()), robust) for name in ("absolute", "relative")}
        rows.append({"layer": layer, **values, "epochs": len(part)})
    return pd.DataFrame(rows, columns=["layer", "absolute", "relative", "epochs"])
