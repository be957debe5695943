# SPDX-License-Identifier: Apache-2.0
"""Where the lungs are in a CT of the chest, roughly, so that nodules are sought there and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from numpy import bool_
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]
from torch import Tensor

__all__ = ["lung_region"]

LUNG = (-950.0, -320.0)  # HU: between the air around a patient and soft tissue
GRID = 3.0  # mm: of the grid on which lungs are sought
RIND = 6.0  # mm: what is thinner than twice this is no lung, but the blur between skin and air
LEAST = 50.0  # ml: less than this is bowel


def lung_region(ct: Tensor, spacing: Sequence[float], margin: float = 15.0, closing: float = 10.0) -> Tensor:
    """Return where a CT lies in the lungs or near them.

    Lungs are large bodies darker than tissue and brighter than air. What is up to twice ``closing`` wide
    between them or in their outline, such as a vessel or a nodule at the wall, belongs to them.

    Args:
        ct: (X, Y, Z), in HU.
        spacing: of its voxels, mm.
        margin: around the lungs, mm.
        closing: half of the width of what is closed, mm.

    Returns:
        Booleans (X, Y, Z); none is true if there is no lung.
    """
    steps = [min(max(1, round(GRID / width)), size) for width, size in zip(spacing, ct.shape, strict=True)]
    pooled = torch.nn.functional.avg_pool3d(ct[None, None].float(), steps, steps, ceil_mode=True)[0, 0]
    sampling = [step * width for step, width in zip(steps, spacing, strict=True)]
    lung = ((pooled > LUNG[0]) & (pooled < LUNG[1])).cpu().numpy()
    core = _large(_eroded(lung, RIND, sampling), LEAST * 1e3 / math.prod(sampling))
    region = torch.from_numpy(_eroded(_dilated(core, RIND + margin + closing, sampling), closing, sampling))
    for axis, step in enumerate(steps):
        region = region.repeat_interleave(step, dim=axis).narrow(axis, 0, ct.shape[axis])
    return region.to(ct.device)


def _eroded(mask: NDArray[bool_], radius: float, sampling: Sequence[float]) -> NDArray[bool_]:
    """What of a mask is further than ``radius`` from what is not; at the border of the volume it goes on."""
    if mask.all():
        return mask
    return ndimage.distance_transform_edt(mask, sampling) > radius


def _dilated(mask: NDArray[bool_], radius: float, sampling: Sequence[float]) -> NDArray[bool_]:
    return ~_eroded(~mask, radius, sampling)


def _large(mask: NDArray[bool_], voxels: float) -> NDArray[bool_]:
    """The components of a mask with at least so many voxels."""
    components, number = ndimage.label(mask)
    large = ndimage.sum_labels(mask, components, range(number + 1)) >= voxels
    large[0] = False
    return large[components]
