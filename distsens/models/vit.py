"""A small vision transformer for small images.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; its size, ViT-Ti: Touvron et al., "Training
data-efficient image transformers & distillation through attention", ICML 2021.
"""

from __future__ import annotations

from torch import nn

from distsens.errors import InputError
from distsens.models.torchvision_models import fitted

_PATCH = 4


def vit_tiny(*, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """ViT-Ti/4: 12 blocks of width 192 with 3 heads over patches of 4x4 (64 tokens for 32x32), without dropout."""
    from torchvision.models import VisionTransformer

    channels, height, width = shape
    if height != width or height % _PATCH:
        raise InputError("model.name", "vit_tiny", f"takes square images of a side that {_PATCH} divides, not {shape}")
    network = VisionTransformer(
        image_size=height,
        patch_size=_PATCH,
        num_layers=12,
        num_heads=3,
        hidden_dim=192,
        mlp_dim=768,
        num_classes=classes,
    )
    return fitted(network, channels)
