from __future__ import annotations

import json
import re
from dataclasses import fields

from distsens.experiment import Experiment
from distsens.report import Summary

SUMMARY = Summary(
    status="finished",
    message=None,
    run="quickstart-1",
    storage="/runs/quickstart-1",
    published="/runs/models/quickstart-1",
    mlflow_uri="sqlite:///mlflow.db",
    mlflow_run_id="abc",
    mlflow_model="models:/m-1",
    experiment=Experiment().model_dump(mode="json"),
    epochs=3,
    ended_early=None,
    alarm=None,
    best_epoch=2,
    validation={"clean_accuracy": 0.9, "robust_accuracy": 0.6},
    test={"images": 360.0, "clean_accuracy": 0.91, "fgsm_accuracy": 0.7, "pgd_accuracy": 0.61},
    sensitivity={"conv1": {"absolute": {"first": 0.03, "best": 0.01}, "relative": {"first": 0.3, "best": 0.1}}},
    seconds=12.5,
    images_per_second=1234.5,
    gradient_evaluations_per_second=8641.5,
    attack_share=0.8,
    workers=2,
)


def test_a_summary_is_plain_json() -> None:
    assert json.loads(json.dumps(SUMMARY.to_dict(), allow_nan=False)) == SUMMARY.to_dict()


def test_its_keys_are_the_documented_ones_in_their_order() -> None:
    documented = [
        name.strip()
        for line in re.findall(r"^    ([\w, ]+) : ", Summary.__doc__ or "", flags=re.MULTILINE)
        for name in line.split(",")
    ]
    assert list(SUMMARY.to_dict()) == [field.name for field in fields(Summary)] == documented
