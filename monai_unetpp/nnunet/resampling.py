# SPDX-License-Identifier: Apache-2.0
"""Resampling as nnU-Net's ``resample_data_or_seg_to_shape`` does it, by the same functions of scikit-image.

The volume is stretched so that its outer edges stay in place. Where one axis is much coarser than the others,
each plane across it is resampled on its own, and along it the nearest plane is taken (``order_z`` 0).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates  # type: ignore[import-untyped]
from skimage.transform import resize

__all__ = ["coarse_axis", "new_size", "resample"]

Array = NDArray[np.floating]


def new_size(size: Sequence[int], spacing: Sequence[float], wanted: Sequence[float]) -> list[int]:
    """Return the size in voxels of a volume at another spacing, mm."""
    return [round(s / w * n) for n, s, w in zip(size, spacing, wanted, strict=True)]


def coarse_axis(
    spacing: Sequence[float], wanted: Sequence[float], separate: bool | None, threshold: float
) -> int | None:
    """Return the axis across which planes are resampled on their own; None if there is none.

    Args:
        spacing: Spacing of the volume, mm.
        wanted: Spacing to resample to, mm.
        separate: ``force_separate_z`` of the plans: None for where an axis is coarser than others by more
            than ``threshold``, at one of the two spacings.
        threshold: Ratio of the largest to the smallest spacing.
    """
    if separate is False:
        return None
    for each in (spacing,) if separate else (spacing, wanted):
        if separate or max(each) / min(each) > threshold:
            coarse = [axis for axis, value in enumerate(each) if value == max(each)]
            return coarse[0] if len(coarse) == 1 else None
    return None


def resample(volume: Array, size: Sequence[int], order: int, order_z: int, axis: int | None) -> Array:
    """Resample a volume (C, X, Y, Z) to (C, *size), in float64; the type stays.

    Args:
        volume: Channels of a volume.
        size: Size to resample to, voxels.
        order: Order of the spline.
        order_z: Order along ``axis``.
        axis: Spatial axis across which planes are resampled on their own, see :func:`coarse_axis`.
    """
    if list(volume.shape[1:]) == list(size):
        return volume
    made = np.empty((len(volume), *size), volume.dtype)
    for channel, source in zip(made, volume.astype(np.float64), strict=True):
        channel[...] = (
            _stretch(source, size, order) if axis is None else _planes(source, size, order, order_z, axis)
        )
    return made


def _stretch(source: Array, size: Sequence[int], order: int) -> Array:
    stretched: Array = resize(  # type: ignore[no-untyped-call]
        source, tuple(size), order, mode="edge", anti_aliasing=False
    )
    return stretched


def _planes(source: Array, size: Sequence[int], order: int, order_z: int, axis: int) -> Array:
    """Resample planes across ``axis`` on their own, then along it."""
    in_plane = [n for a, n in enumerate(size) if a != axis]
    planes = np.stack([_stretch(plane, in_plane, order) for plane in np.moveaxis(source, axis, 0)], axis)
    if planes.shape[axis] == size[axis]:
        return planes
    steps = [n / m for n, m in zip(planes.shape, size, strict=True)]
    places = [step * (np.arange(m) + 0.5) - 0.5 for step, m in zip(steps, size, strict=True)]
    grid = np.meshgrid(*places, indexing="ij")
    found: Array = map_coordinates(planes, grid, order=order_z, mode="nearest")
    return found
