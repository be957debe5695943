# SPDX-License-Identifier: Apache-2.0
"""A rough region of the lungs in chest CT, to which the search for nodules is limited."""

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

LUNG_HU = (-950.0, -320.0)  # between the air around a patient and soft tissue
GRID_MM = 3.0  # spacing of the grid for the search
MIN_RADIUS_MM = 6.0  # a thinner layer is the partial volume between skin and air
MIN_VOLUME_ML = 50.0  # a smaller component is bowel


class FocusOnLungsd(MapTransform):
    """Fill a scaled CT with soft tissue outside of the lungs' region; one without lungs is not changed.

    Windows of one value take :class:`~monai_unetpp.VolumeInferer` no time, and neither bone nor table can
    be mistaken for a nodule.

    Args:
        keys: Keys of the volumes (1, X, Y, Z).
        hu_range: Intensities that 0 and 1 of the volumes stand for, HU.
        fill: Intensity to fill with, HU.
        margin: Margin around the lungs, mm; see :func:`~monai_unetpp.transforms.lungs.lung_region`.
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
                logger.warning(f"{image.meta.get('filename_or_obj')} shows no lungs: all of it is searched.")
        return case


def lung_region(ct: Tensor, spacing: Sequence[float], margin: float = 15.0, closing: float = 10.0) -> Tensor:
    """Return the region of the lungs in a CT, with a margin.

    Lungs are large components darker than tissue and brighter than air. Gaps in them of up to twice
    ``closing``, such as vessels or nodules at the wall, are closed.

    Args:
        ct: Intensities (X, Y, Z), HU.
        spacing: Voxel size, mm.
        margin: Margin around the lungs, mm.
        closing: Radius of the morphological closing, mm.

    Returns:
        Mask (X, Y, Z), empty if there are no lungs.
    """
    steps = [min(max(1, round(GRID_MM / width)), size) for width, size in zip(spacing, ct.shape, strict=True)]
    pooled = torch.nn.functional.avg_pool3d(ct[None, None].float(), steps, steps, ceil_mode=True)[0, 0]
    sampling = [step * width for step, width in zip(steps, spacing, strict=True)]
    lung = ((pooled > LUNG_HU[0]) & (pooled < LUNG_HU[1])).cpu().numpy()
    core = _large(_eroded(lung, MIN_RADIUS_MM, sampling), MIN_VOLUME_ML * 1e3 / math.prod(sampling))
    region = torch.from_numpy(
        _eroded(_dilated(core, MIN_RADIUS_MM + margin + closing, sampling), closing, sampling)
    )
    for axis, step in enumerate(steps):
        region = region.repeat_interleave(step, dim=axis).narrow(axis, 0, ct.shape[axis])
    return region.to(ct.device)


def _eroded(mask: NDArray[bool_], radius: float, sampling: Sequence[float]) -> NDArray[bool_]:
    """Return a mask eroded by ``radius`` mm; it is taken to continue beyond the border of the volume."""
    if mask.all():
        return mask
    return ndimage.distance_transform_edt(mask, sampling) > radius


def _dilated(mask: NDArray[bool_], radius: float, sampling: Sequence[float]) -> NDArray[bool_]:
    return ~_eroded(~mask, radius, sampling)


def _large(mask: NDArray[bool_], voxels: float) -> NDArray[bool_]:
    """Return the components of a mask that have at least ``voxels`` voxels."""
    components, number = ndimage.label(mask)
    large = ndimage.sum_labels(mask, components, range(number + 1)) >= voxels
    large[0] = False
    return large[components]
