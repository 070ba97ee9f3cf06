"""Neuron sensitivity: read neurons, measure, select and stabilize them, ablate them, follow them over time."""

from distsens.networks import in_eval_mode
from distsens.sensitivity.ablate import PairForwards, Replacement, flipped_at
from distsens.sensitivity.contribute import Contributions, contributions
from distsens.sensitivity.correlate import NeuronCorrelation
from distsens.sensitivity.extremes import TopImages
from distsens.sensitivity.follow import Turnover, chance_jaccard, jaccard, rank_correlation, ranks, turnover
from distsens.sensitivity.intervene import Intervention, Overwriting, constant_neurons, take_neurons
from distsens.sensitivity.layers import match_layers, unreadable_layers
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
from distsens.sensitivity.noise import NoiseNorm, same_norm_noise
from distsens.sensitivity.probe import ActivationProbe, neuron_counts, split_pairs
from distsens.sensitivity.select import Selection, kept_fraction, order_neurons, select_neurons, selected_count
from distsens.sensitivity.shared_noise import SharedNoise, pair_noise, same_noise
from distsens.sensitivity.stabilize import (
    Distance,
    Measure,
    PairRows,
    Reading,
    Stabilizer,
    Stabilizing,
    stabilizing_distance,
)
from distsens.sensitivity.statistics import NeuronStatistics, PairValues, StatisticsMeter, pair_values

__all__ = [
    "RELATIVE_FLOOR",
    "ActivationProbe",
    "Contributions",
    "Distance",
    "Intervention",
    "LayerSensitivity",
    "Measure",
    "NeuronCorrelation",
    "NeuronStatistics",
    "NoiseNorm",
    "Overwriting",
    "PairForwards",
    "PairRows",
    "PairSums",
    "PairValues",
    "Reading",
    "Replacement",
    "Selection",
    "SensitivityMeter",
    "SharedNoise",
    "Stabilizer",
    "Stabilizing",
    "StatisticsMeter",
    "TopImages",
    "Turnover",
    "chance_jaccard",
    "constant_neurons",
    "contributions",
    "flipped_at",
    "in_eval_mode",
    "jaccard",
    "kept_fraction",
    "match_layers",
    "neuron_counts",
    "order_neurons",
    "pair_difference",
    "pair_noise",
    "pair_sums",
    "pair_values",
    "rank_correlation",
    "ranks",
    "relative",
    "relative_divisor",
    "same_noise",
    "same_norm_noise",
    "select_neurons",
    "selected_count",
    "split_pairs",
    "stabilizing_distance",
    "take_neurons",
    "turnover",
    "unreadable_layers",
]
