# SPDX-License-Identifier: Apache-2.0
"""MONAI's registered backbones, taken apart into the stages that make their feature maps."""

from __future__ import annotations

from typing import Any

from monai.networks.nets import FlexibleUNet  # noqa: F401  (fills the register)
from monai.networks.nets.efficientnet import EfficientNetBNFeatures
from monai.networks.nets.flexible_unet import FLEXUNET_BACKBONE
from monai.networks.nets.resnet import ResNetFeatures
from torch import nn

__all__ = ["backbone_stages", "backbone_widths"]


def backbone_widths(name: str) -> tuple[int, ...]:
    """Return the channels of each feature map of a backbone, the one of half the input's size first.

    Raises:
        ValueError: if no backbone is registered under ``name``.
    """
    if name not in FLEXUNET_BACKBONE.register_dict:
        known = ", ".join(FLEXUNET_BACKBONE.register_dict)
        raise ValueError(f"encoder must be one of {known}, got {name!r}.")
    return tuple(FLEXUNET_BACKBONE.register_dict[name]["feature_channel"])


def backbone_stages(
    name: str, spatial_dims: int, in_channels: int, pretrained: bool = False
) -> list[nn.Sequential]:
    """Return the stages of a backbone: each takes the map of the one before, the first the input.

    Args:
        name: as in :func:`backbone_widths`.
        spatial_dims: 2 or 3.
        in_channels: of the input.
        pretrained: whether to take MONAI's weights, downloaded: of ImageNet for EfficientNets in 2D with
            three channels, of MedicalNet for ResNets in 3D with one.

    Raises:
        ValueError: if there are no pretrained weights for these axes and channels, or the backbone is
            neither a ResNet nor an EfficientNet.
    """
    entry = FLEXUNET_BACKBONE.register_dict[name]
    efficient = issubclass(entry["type"], EfficientNetBNFeatures)
    if pretrained and (spatial_dims, in_channels) != ((2, 3) if efficient else (3, 1)):
        wanted = "spatial_dims=2, in_channels=3" if efficient else "spatial_dims=3, in_channels=1"
        raise ValueError(
            f"pretrained must be False: {name} has weights for {wanted} only, "
            f"got spatial_dims={spatial_dims}, in_channels={in_channels}."
        )
    settings = {"spatial_dims": spatial_dims, "in_channels": in_channels, "pretrained": pretrained}
    backbone: Any = entry["type"](**{**entry["parameter"], **settings})
    if efficient:
        backbone.set_swish(memory_efficient=False)  # the other cannot be scripted
        ends = backbone.extract_stacks
        starts = [0, *ends[:-1]]
        stages = [list(backbone._blocks[a:b]) for a, b in zip(starts, ends, strict=True)]
        stem = [backbone._conv_stem_padding, backbone._conv_stem, backbone._bn0, backbone._swish]
        stages[0] = stem + stages[0]
    elif isinstance(backbone, ResNetFeatures):
        pool = [] if backbone.no_max_pool else [backbone.maxpool]
        stages = [
            [backbone.conv1, backbone.bn1, backbone.act],
            [*pool, backbone.layer1],
            *([layer] for layer in (backbone.layer2, backbone.layer3, backbone.layer4)),
        ]
    else:
        raise ValueError(f"encoder must be a ResNet or an EfficientNet, got {name!r}.")
    return [nn.Sequential(*stage) for stage in stages]
