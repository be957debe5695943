# SPDX-License-Identifier: Apache-2.0
"""From a Spec to the modules of the grid."""

from __future__ import annotations

from typing import Any

from torch import nn

from monai_unetpp.network.backbones import backbone_stages
from monai_unetpp.network.blocks import EncoderRow, Node
from monai_unetpp.network.spec import Spec

__all__ = ["build_encoder", "build_node"]


def build_encoder(spec: Spec) -> nn.ModuleList:
    """Return column 0: rows of ours, or row 0 and the stages of a backbone."""
    rows = nn.ModuleList()
    for i in range(1 if spec.encoder else spec.depth + 1):
        entering = spec.channels[i - 1] if i else spec.in_channels
        stride = spec.strides[i - 1] if i else None
        settings = _settings(spec, i)
        rows.append(EncoderRow(spec.spatial_dims, entering, spec.channels[i], stride, **settings))
    if spec.encoder:
        stages = backbone_stages(spec.encoder, spec.spatial_dims, spec.in_channels, spec.pretrained)
        rows.extend(stages[: spec.depth])
    return rows


def build_node(spec: Spec, i: int, j: int) -> Node:
    """Return X^{i,j}."""
    start, stop = spec.skip_columns(j)
    return Node(
        skips=(start, stop),
        spatial_dims=spec.spatial_dims,
        below_channels=spec.width(i + 1, j - 1),
        up_channels=spec.up_channels[i],
        skip_channels=[spec.width(i, n) for n in range(start, stop)],
        out_channels=spec.width(i, j),
        stride=spec.strides[i],
        upsample=spec.upsample,
        **_settings(spec, i),
    )


def _settings(spec: Spec, i: int) -> dict[str, Any]:
    """The arguments that all nodes of row ``i`` share."""
    shared = {name: getattr(spec, name) for name in ("block", "act", "norm", "bias", "dropout")}
    return {**shared, "kernel_size": spec.kernel_size[i]}
