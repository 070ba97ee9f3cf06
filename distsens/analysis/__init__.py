"""Which neurons are sensitive, whether they decide, when they become so, and what they see."""

from distsens.analysis.agreement import condition_agreement, correlate, match_neurons, model_agreement
from distsens.analysis.description import Ablation, Analysis, Gallery
from distsens.analysis.history import (
    History,
    accuracy_correlation,
    epochs_jaccard,
    training_history,
    turnover_table,
)
from distsens.analysis.interventions import ALL_LAYERS, Intervened, InterventionPlan, intervene
from distsens.analysis.library import ablate, compare, measure, patch, probe, top_k
from distsens.analysis.measurement import CLEAN, NOISE, SAVED, Measured, MeasurementPlan, make_pairs, measure_images
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
    neurons_to_flip,
    patching_table,
)

__all__ = [
    "ALL_LAYERS",
    "CLEAN",
    "NOISE",
    "SAVED",
    "Ablation",
    "Analysis",
    "Gallery",
    "History",
    "Intervened",
    "InterventionPlan",
    "Measured",
    "MeasurementPlan",
    "ablate",
    "ablation_curves",
    "ablation_table",
    "accuracy_correlation",
    "class_table",
    "compare",
    "completeness_table",
    "condition_agreement",
    "contribution_table",
    "correlate",
    "epochs_jaccard",
    "flip_curves",
    "intervene",
    "layer_table",
    "make_pairs",
    "match_neurons",
    "measure",
    "measure_images",
    "measured_rows",
    "model_agreement",
    "neuron_table",
    "neurons_to_flip",
    "patch",
    "patching_table",
    "probe",
    "top_k",
    "training_history",
    "turnover_table",
]
