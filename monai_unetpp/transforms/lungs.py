# SPDX-License-Identifier: Apache-2.0
"""Where the lungs are in a CT of the chest, roughly, so that nodules are sought there and nowhere else."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy import bool_
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]
from torch import Tensor

__all__ = ["FocusOnLungsd", "lung_region"]

logger = logging.getLogger(__name__)

LUNG = (-950.0, -320.0)  # HU: between the air around a patient and soft tissue
GRID = 3.0  # mm: of the grid on which lungs are sought
RIND = 6.0  # mm: what is thinner than twice this is no lung, but the blur between skin and air
LEAST = 50.0  # ml: less than this is bowel


class FocusOnLungsd(MapTransform):
    """Fill a scaled CT with soft tissue wherever it is not near the lungs; leave one without lungs as it is.

    What is one value throughout takes a :class:`~monai_unetpp.VolumeInferer` no time, and no bone or table is
    taken for a nodule.

    Args:
        keys: of the volumes (1, X, Y, Z).
        hu_range: what 0 and 1 of the volumes are in HU.
        fill: what to fill with, HU.
        margin: around the lungs, mm, see :func:`~monai_unetpp.transforms.lungs.lung_region`.
    """

    def __init__(
        self, keys: KeysCollection, hu_range: Sequence[float], fill: float = 40.0, margin: float = 15.0
    ) -> None:
        super().__init__(keys)
        self.hu_range = hu_range
        self.fill = fill
        self.margin = margin

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the case with the volumes filled."""
        case = dict(data)
        low, high = self.hu_range
        for key in self.keys:
            image: MetaTensor = case[key]
            ct = image.as_tensor()[0] * (high - low) + low
            region = lung_region(ct, image.pixdim.tolist(), self.margin)
            if region.any():
                case[key] = image.masked_fill(
                    ~region[None].to(image.device), (self.fill - low) / (high - low)
                )
            else:
                logger.warning(
                    f"{image.meta.get('filename_or_obj')} shows no lungs: it is searched as a whole."
                )
        return case


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
