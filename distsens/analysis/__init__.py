"""Which neurons are sensitive, whether they decide, when they become so, and what they see."""

from distsens.analysis.agreement import condition_agreement, correlate, match_all, match_neurons, model_agreement
from distsens.analysis.assembly import SavedPairs, build_conditions, build_plan, intervened_layers, read_pairs
from distsens.analysis.description import Ablation, Analysis, Gallery
from distsens.analysis.findings import Findings, ModelFindings, findings_of, sensitivities
from distsens.analysis.gallery import Sight, Wanted, as_map, look, numbers_in, wanted_sights
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
    "Findings",
    "Gallery",
    "History",
    "Intervened",
    "InterventionPlan",
    "Measured",
    "MeasurementPlan",
    "ModelFindings",
    "SavedPairs",
    "Sight",
    "Wanted",
    "ablate",
    "ablation_curves",
    "ablation_table",
    "accuracy_correlation",
    "as_map",
    "build_conditions",
    "build_plan",
    "class_table",
    "compare",
    "completeness_table",
    "condition_agreement",
    "contribution_table",
    "correlate",
    "epochs_jaccard",
    "findings_of",
    "flip_curves",
    "intervene",
    "intervened_layers",
    "layer_table",
    "look",
    "make_pairs",
    "match_all",
    "match_neurons",
    "measure",
    "measure_images",
    "measured_rows",
    "model_agreement",
    "neuron_table",
    "neurons_to_flip",
    "numbers_in",
    "patch",
    "patching_table",
    "probe",
    "read_pairs",
    "sensitivities",
    "top_k",
    "training_history",
    "turnover_table",
    "wanted_sights",
]
