# SPDX-License-Identifier: Apache-2.0
"""Whether voxels look like CT in HU: by the peaks of air (-1000) and of soft tissue (0..80)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["looks_like_labels", "why_no_hounsfield"]

AT_MOST = 2**20  # voxels that are looked at, evenly spread
AIR_HU, TISSUE_HU = (-1100.0, -850.0), (-200.0, 300.0)
DENSEST_TISSUE_HU = 600.0  # what is above is bone or metal ...
MAX_DENSE = 0.1  # ... and no larger a share of a scan without air
LEAST_HU = -1200.0  # what is below is padding, one value throughout, or no HU
MAX_BELOW = 0.02  # share of voxels that may be below
MIN_SHARE = 0.001  # of voxels, for a peak to be there
MIN_RANGE_HU = 30.0  # from the lowest to the highest value
MAX_LABELS = 20  # different values of what may be a label map


def why_no_hounsfield(volume: Tensor) -> str:
    """Return what speaks against a volume being CT in HU, as the end of a sentence; empty if nothing does.

    Args:
        volume: Voxels of any shape, finite.
    """
    low, high = float(volume.min()), float(volume.max())
    if low >= 0:
        return (
            f"has no voxel below 0, got {low:g}..{high:g}: CT in HU has air. Is it MR, or stored with an "
            "offset?"
        )
    if 0 < high - low < MIN_RANGE_HU:
        return f"has values {low:g}..{high:g} alone, which is no range of HU: were they scaled or normalised?"
    values = _some(volume)
    values = values[values != low] if low < LEAST_HU else values  # padding outside of the field of view
    if not len(values):
        return ""
    below, dense = _share(values, -math.inf, LEAST_HU), _share(values, DENSEST_TISSUE_HU, math.inf)
    air, tissue = _share(values, *AIR_HU), _share(values, *TISSUE_HU)
    if below > MAX_BELOW:
        return (
            f"has {below:.0%} of its voxels below {LEAST_HU:g}, where HU have none: was the offset to HU "
            "subtracted twice, or are they in another unit?"
        )
    if dense > MAX_DENSE and air < MIN_SHARE:
        peak = float(values[values > DENSEST_TISSUE_HU].median())
        offset = 1024 if peak < 1500 else round(peak, -2)
        return (
            f"has no peak of air near -1000 and {dense:.0%} of its voxels above {DENSEST_TISSUE_HU:g}, "
            f"around {peak:.0f}: it looks as if an offset of about {offset:g} was left in."
        )
    if dense > MAX_DENSE and tissue < MIN_SHARE:
        return f"has no soft tissue, {TISSUE_HU[0]:g}..{TISSUE_HU[1]:g}, as a patient in HU has."
    return ""


def looks_like_labels(volume: Tensor) -> bool:
    """Whether a volume holds a few small whole numbers alone, as a label map or a mask does."""
    if float(volume.min()) < 0 or not 0 < float(volume.max()) <= 255:
        return False
    values = torch.unique(_some(volume))
    return 1 < len(values) <= MAX_LABELS and bool((values == values.round()).all())


def _some(volume: Tensor) -> Tensor:
    """Return voxels that are spread evenly; the step is odd, lest it follow the axes."""
    step = volume.numel() // AT_MOST | 1
    return volume.reshape(-1)[::step]


def _share(values: Tensor, low: float, high: float) -> float:
    return float(((values >= low) & (values < high)).float().mean())
