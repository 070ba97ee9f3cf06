"""Every number of every setting has two ends, and what is beyond them is refused with its field."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from distsens.analysis import Analysis
from distsens.errors import InputError
from distsens.examination import Examination
from distsens.experiment import Experiment, Section, validate
from distsens.search import Sweep

# As intervals are written: a round bracket leaves the end out.
EXPERIMENT = """
seed [0, 2147483647]
data.validation_fraction (0, 1)   data.limit [1, 1000000000]   data.image_size [1, 10000]   data.resize [1, 10000]
data.test_fraction (0, 1)   data.memory [0, 1e6]   data.decoding_cpus [0, 100000]   data.extra_ratio (0, 1)
model.mean [-1000, 1000]   model.std (0, 1000]
threat.eps [0, 1e8]
attack.steps [1, 100000]   attack.step_size (0, 1e8]   attack.momentum [0, 10]   attack.l1_fraction (0, 1]
attack.restarts [1, 1000]
objective.beta [0, 1000]   objective.alpha [0, 1]   objective.replays [1, 1000]   objective.label_smoothing [0, 1)
stabilize.weight [0, 1e6]   stabilize.ratio (0, 1]   stabilize.pairs (0, 1]   stabilize.refresh_steps [1, 1000000000]
stabilize.decay [0, 1)   stabilize.warmup_start [0, 1]   stabilize.warmup_end [0, 1]
training.epochs [1, 100000]   training.batch_size [1, 1000000]   training.lr (0, 1000]   training.momentum [0, 1)
training.weight_decay [0, 100]   training.warmup [0, 1)   training.milestones [0, 1]   training.drop (0, 1]
training.eps_warmup [0, 1]   training.gradient_clip (0, 1e6]   training.awp_gamma (0, 1]   training.awp_warmup [0, 1]
training.ema_decay (0, 1)   training.patience [1, 100000]
alarm.gap (0, 1]   alarm.fall (0, 1)
workers.num [1, 100000]   workers.cpus [1, 10000]   workers.gpus [0, 1]   workers.max_failures [0, 100000]
checkpoint.every [1, 100000]   checkpoint.keep [1, 100000]
"""
JUDGED = """
seed [0, 2147483647]   shard [1, 1000000000]   batch_size [1, 1000000]
model.mean [-1000, 1000]   model.std (0, 1000]
data.classes [2, 1000000]   data.limit [1, 1000000000]   data.images [0, 1000000000]   data.image_size [1, 10000]
data.resize [1, 10000]
threat.eps (0, 1e8]   pgd.steps [1, 100000]   pgd.step_size (0, 1e8]   pgd.restarts [1, 1000]
workers.num [1, 100000]   workers.cpus [1, 10000]   workers.gpus [0, 1]   workers.max_failures [0, 100000]
"""
ANALYSIS = """
eps (0, 1e8]   by_class [0, 1000000]   ratio (0, 1]   matched_images [0, 1000000000]
ablation.images [0, 1000000000]   ablation.ratios (0, 1]   ablation.draws [10, 100000]   ablation.steps [1, 100000]
gallery.neurons [0, 1000]   gallery.images [1, 12]
"""
SWEEP = """
trials [1, 100000]   reduction [2, 1000]   interval [1, 100000]   clean_floor [0, 1]   finalists [1, 100000]
judged_images [0, 1000000000]   max_failed [0, 100000]   concurrent [1, 100000]
"""
TABLES: dict[type[Section], str] = {
    Experiment: EXPERIMENT,
    Examination: JUDGED + "eps_curve [0, 1e8]",
    Analysis: JUDGED + ANALYSIS,
    Sweep: SWEEP,
}
# What the end of one number asks of its neighbours.
BESIDE = {
    "threat.eps": {"norm": "l2"},
    "stabilize.warmup_start": {"warmup_end": 1},
    "stabilize.warmup_end": {"warmup_start": 0},
}


def leaves(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel], Any]]:
    """Every field with a number or several in it: its name, its section and its type."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        elif {"int", "float"} & set(numbers(field.annotation)):
            yield prefix + name, section, field.annotation


def numbers(annotation: Any) -> Iterator[str]:
    if annotation in (int, float):
        yield annotation.__name__
    for one in get_args(annotation):
        yield from numbers(one)


def intervals(table: str) -> dict[str, str]:
    """``{"seed": "[0, 2147483647]"}``."""
    words = table.split()
    return {name: f"{low} {high}" for name, low, high in zip(words[::3], words[1::3], words[2::3], strict=True)}


NUMBERS = [
    (kind, field, section, annotation, intervals(table).get(field, ""))
    for kind, table in TABLES.items()
    for field, section, annotation in leaves(kind)
    if not field.startswith(("validation.", "test."))  # attacks as the one trained with
]


def test_the_tables_hold_every_number() -> None:
    for kind, table in TABLES.items():
        assert {field for one, field, *_ in NUMBERS if one is kind} == intervals(table).keys()


@pytest.mark.parametrize(
    ("field", "section", "annotation", "interval"),
    [pytest.param(*one, id=f"{kind.__name__}.{one[0]}") for kind, *one in NUMBERS],
)
def test_a_number_is_taken_up_to_its_ends_and_refused_beyond(
    field: str, section: type[Section], annotation: Any, interval: str
) -> None:
    whole, several = "float" not in set(numbers(annotation)), "tuple" in str(annotation)
    low, high = (float(word.strip("()[] ")) for word in interval.split(","))
    ends = ((low, -1, interval[0] == "["), (high, 1, interval[-1] == "]"))
    name = field.rpartition(".")[2]

    def parsed(number: float) -> object:
        value: object = int(number) if whole else number
        return validate(section, {**BESIDE.get(field, {}), name: [value] if several else value})

    for end, outwards, taken in ends:
        beyond = end + outwards if whole else math.nextafter(end, outwards * math.inf)
        inside = end - outwards if whole else math.nextafter(end, -outwards * math.inf)
        assert parsed(end if taken else inside)
        for number in (beyond if taken else end, outwards * 1e30):
            with pytest.raises(InputError) as refused:
                parsed(number)
            assert refused.value.field == name
