"""Robust accuracy of a classifier, whoever trained it: found by its address, examined, attacked, and claimed."""

from distsens.evaluation.adaptive import Adaptive, Pool
from distsens.evaluation.addresses import (
    absolute_address,
    find_subject,
    is_weights_file,
    said_of,
    selected_epoch,
    split_factory,
)
from distsens.evaluation.claim import (
    Differences,
    Verification,
    check_claim,
    differences,
    make_claim,
    proportion,
    verify,
)
from distsens.evaluation.corruption_error import (
    ErrorRates,
    corruption_errors,
    mean_corruption_error,
    relative_corruption_errors,
    relative_mean_corruption_error,
)
from distsens.evaluation.examine import Examined, Judgement, examine, inside
from distsens.evaluation.fingerprint import Fingerprint, fingerprint
from distsens.evaluation.health import has_gradients, inspect
from distsens.evaluation.intervals import Spread, over_seeds, wilson
from distsens.evaluation.last_iterate import LastIterate
from distsens.evaluation.ledger import Ledger, Proportion
from distsens.evaluation.masking import Check, masking_checks
from distsens.evaluation.measure import Measurement, measure
from distsens.evaluation.subject import Architecture, Subject
from distsens.evaluation.transfer import Transfer
from distsens.precision import full_float32

__all__ = [
    "Adaptive",
    "Architecture",
    "Check",
    "Differences",
    "ErrorRates",
    "Examined",
    "Fingerprint",
    "Judgement",
    "LastIterate",
    "Ledger",
    "Measurement",
    "Pool",
    "Proportion",
    "Spread",
    "Subject",
    "Transfer",
    "Verification",
    "absolute_address",
    "check_claim",
    "corruption_errors",
    "differences",
    "examine",
    "find_subject",
    "fingerprint",
    "full_float32",
    "has_gradients",
    "inside",
    "inspect",
    "is_weights_file",
    "make_claim",
    "masking_checks",
    "mean_corruption_error",
    "measure",
    "over_seeds",
    "proportion",
    "relative_corruption_errors",
    "relative_mean_corruption_error",
    "said_of",
    "selected_epoch",
    "split_factory",
    "verify",
    "wilson",
]
