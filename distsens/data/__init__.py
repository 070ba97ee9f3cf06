"""What is trained on: data sets by name, in an order and with augmentation that no worker count changes."""

from distsens.data.augment import AUGMENTATIONS, augment, to_pixels
from distsens.data.catalogue import DATASETS, load
from distsens.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from distsens.data.files import ImageFiles, Images, read_ahead
from distsens.data.images import Dataset, ImageSet, Published, as_tensor
from distsens.data.npz import extra_digest, holds_training
from distsens.data.order import NO_EXTRA, Extra, epoch_batches, epoch_order, rank_share, steps_per_epoch
from distsens.data.source import Source
from distsens.data.split import hold_out, representatives, stratified_sample
from distsens.data.tree import LocalTree, Tree

__all__ = [
    "AUGMENTATIONS",
    "CORRUPTIONS",
    "DATASETS",
    "NO_EXTRA",
    "SEVERITIES",
    "Dataset",
    "Extra",
    "ImageFiles",
    "ImageSet",
    "Images",
    "LocalTree",
    "Published",
    "Source",
    "Tree",
    "as_tensor",
    "augment",
    "corrupt",
    "epoch_batches",
    "epoch_order",
    "extra_digest",
    "hold_out",
    "holds_training",
    "load",
    "rank_share",
    "read_ahead",
    "representatives",
    "steps_per_epoch",
    "stratified_sample",
    "to_pixels",
]
