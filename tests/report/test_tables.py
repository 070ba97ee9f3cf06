from __future__ import annotations

import io

import pandas as pd
import torch

from distsens.report import sensitivity_parquet
from distsens.sensitivity import LayerSensitivity


def read(sensitivity: dict[str, LayerSensitivity], ratio: float = 0.25) -> pd.DataFrame:
    return pd.read_parquet(io.BytesIO(sensitivity_parquet(7, sensitivity, ratio, "abc")))


def test_every_neuron_is_a_row_with_its_exact_values(sensitivity: dict[str, LayerSensitivity]) -> None:
    table = read(sensitivity)
    assert list(table.columns) == ["epoch", "layer", "neuron", "absolute", "relative", "magnitude", "selected"]
    assert len(table) == 13
    assert set(table["epoch"]) == {7}
    for layer, values in sensitivity.items():
        rows = table[table["layer"] == layer]
        assert rows["neuron"].tolist() == list(range(len(values.absolute)))
        for name in ("absolute", "relative", "magnitude"):
            assert rows[name].dtype == "float64"
            assert rows[name].tolist() == getattr(values, name).tolist()


def test_the_most_sensitive_quarter_of_each_layer_is_marked(sensitivity: dict[str, LayerSensitivity]) -> None:
    table = read(sensitivity)
    assert table.groupby("layer")["selected"].sum().to_dict() == {"conv1": 3, "fc1": 1}
    for _, rows in table.groupby("layer"):
        assert rows[rows["selected"]]["absolute"].min() > rows[~rows["selected"]]["absolute"].max()


def test_all_neurons_are_marked_at_a_ratio_of_one(sensitivity: dict[str, LayerSensitivity]) -> None:
    assert read(sensitivity, ratio=1.0)["selected"].all()


def test_a_layer_of_one_neuron_and_values_at_the_edge_survive() -> None:
    edge = torch.tensor([5e-324], dtype=torch.float64)
    table = read(
        {
            "only": LayerSensitivity(
                edge, torch.zeros(1, dtype=torch.float64), torch.full((1,), 1e308, dtype=torch.float64)
            )
        }
    )
    assert table["absolute"].tolist() == [5e-324]
    assert table["selected"].tolist() == [True]
