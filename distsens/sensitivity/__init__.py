"""Neuron sensitivity: read neurons, measure, select and stabilize them."""

from distsens.sensitivity.measure import (
    RELATIVE_FLOOR,
    LayerSensitivity,
    PairSums,
    SensitivityMeter,
    pair_difference,
    pair_sums,
    relative,
    relative_divisor,
)
from distsens.sensitivity.probe import ActivationProbe, match_layers, neuron_counts, split_pairs
from distsens.sensitivity.select import Selection, kept_fraction, select_neurons, selected_count
from distsens.sensitivity.stabilize import (
    Distance,
    Measure,
    PairRows,
    Reading,
    Stabilizer,
    Stabilizing,
    stabilizing_distance,
)

__all__ = [
    "RELATIVE_FLOOR",
    "ActivationProbe",
    "Distance",
    "LayerSensitivity",
    "Measure",
    "PairRows",
    "PairSums",
    "Reading",
    "Selection",
    "SensitivityMeter",
    "Stabilizer",
    "Stabilizing",
    "kept_fraction",
    "match_layers",
    "neuron_counts",
    "pair_difference",
    "pair_sums",
    "relative",
    "relative_divisor",
    "select_neurons",
    "selected_count",
    "split_pairs",
    "stabilizing_distance",
]
