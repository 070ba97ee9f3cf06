from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest

from distsens.analysis import History, accuracy_correlation, epochs_jaccard, training_history, turnover_table
from distsens.evaluation import Architecture, Subject
from distsens.storage import open_place

# Of five neurons two are selected: 0 and 1, then 1 and 2, then 1 and 2 still.
SELECTED = [(0, 1), (1, 2), (1, 2)]


def neurons_of(epoch: int) -> pd.DataFrame:
    chosen = SELECTED[epoch]
    return pd.DataFrame(
        {
            "epoch": epoch,
            "layer": "fc",
            "neuron": range(5),
            "absolute": [1.0 / (1 + epoch)] * 5,
            "relative": [float(epoch)] * 5,
            "magnitude": 1.0,
            "selected": [neuron in chosen for neuron in range(5)],
        }
    )


@pytest.fixture
def history() -> History:
    accuracy = pd.DataFrame({"epoch": [0, 1, 2], "clean": [0.1, 0.9, 0.9], "robust": [0.1, 0.5, 0.7]})
    return History(pd.concat([neurons_of(epoch) for epoch in range(3)], ignore_index=True), accuracy)


def test_births_deaths_and_jaccard_from_epoch_to_epoch(history: History) -> None:
    table = turnover_table(history.neurons)
    assert table[["born", "died", "kept"]].to_numpy().tolist() == [[1, 1, 1], [0, 0, 2]]
    assert table["jaccard"].tolist() == [1 / 3, 1.0]
    assert table["since_last"].tolist() == [1.0, 1.0]
    assert epochs_jaccard(history.neurons)["fc"].to_numpy().tolist()[0] == [1.0, 1 / 3, 1 / 3]


def test_sensitivity_is_correlated_with_robust_accuracy_over_epochs(history: History) -> None:
    (row,) = accuracy_correlation(history).to_dict("records")
    assert (row["absolute"], row["relative"], row["epochs"]) == (pytest.approx(-1.0), pytest.approx(1.0), 3)


@pytest.mark.parametrize("suffix", ["", "#best", "#2", "/checkpoints/epoch-0002"])
def test_it_is_read_from_the_storage_of_the_run(tmp_path: Path, history: History, suffix: str) -> None:
    place = open_place(str(tmp_path / "run"))
    place.put("run.json", b"{}")
    for epoch in range(3):
        buffer = io.BytesIO()
        neurons_of(epoch).to_parquet(buffer, index=False)
        place.put(f"sensitivity/epoch-{epoch:04d}.parquet", buffer.getvalue())
    found = training_history(subject(f"{tmp_path / 'run'}{suffix}", run="run"))
    assert found is not None
    pd.testing.assert_frame_equal(found.neurons, history.neurons)
    assert found.accuracy.empty


def test_other_models_have_none(tmp_path: Path) -> None:
    assert training_history(subject(str(tmp_path / "net.safetensors"))) is None
    assert training_history(subject(str(tmp_path / "gone"), run="gone")) is None
    assert training_history(subject("runs:/abc", run="abc")) is None


def subject(address: str, run: str | None = None) -> Subject:
    return Subject("net", address, Architecture("lenet5"), b"", run=run)
