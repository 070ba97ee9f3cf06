"""Classifiers by name or ``package.module:factory``: images in [0, 1] in, logits out, normalisation inside."""

from distsens.models.catalogue import MODELS, Builder, build
from distsens.models.lenet import lenet5
from distsens.models.pixels import PixelModel
from distsens.models.preact import preact_resnet18, wide_resnet
from distsens.models.resnet import resnet18, resnet34, resnet50
from distsens.models.small_cnn import small_cnn
from distsens.models.strangers import check_named, factories_in, words_for
from distsens.models.torchvision_models import torchvision_model, torchvision_names
from distsens.models.vgg import vgg11_bn, vgg16_bn
from distsens.models.vit import vit_tiny
from distsens.models.weights import (
    load_initial_weights,
    load_state,
    normalisation_of,
    state_to_bytes,
    weights_digest,
)
from distsens.models.weights_file import (
    WEIGHTS_SUFFIXES,
    FoundState,
    find_state,
    named_as_weights,
    read_weights,
    split_part,
    state_of,
)

__all__ = [
    "MODELS",
    "WEIGHTS_SUFFIXES",
    "Builder",
    "FoundState",
    "PixelModel",
    "build",
    "check_named",
    "factories_in",
    "find_state",
    "lenet5",
    "load_initial_weights",
    "load_state",
    "named_as_weights",
    "normalisation_of",
    "preact_resnet18",
    "read_weights",
    "resnet18",
    "resnet34",
    "resnet50",
    "small_cnn",
    "split_part",
    "state_of",
    "state_to_bytes",
    "torchvision_model",
    "torchvision_names",
    "vgg11_bn",
    "vgg16_bn",
    "vit_tiny",
    "weights_digest",
    "wide_resnet",
    "words_for",
]
