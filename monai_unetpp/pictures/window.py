# SPDX-License-Identifier: Apache-2.0
"""Which intensities are drawn black and white, so that what is outlined can be seen.

A network's own range of intensities may clip what a radiologist compares with. CT in HU is therefore shown in
one of the usual windows, and anything else between percentiles.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage  # type: ignore[import-untyped]
from torch import Tensor

from monai_unetpp.pictures.view import Array
from monai_unetpp.transforms.hounsfield import why_no_hounsfield

__all__ = ["DisplayWindow", "display_window"]

PRESETS_HU = {"soft tissue": (400, 40), "lung": (1500, -600), "bone": (1800, 400)}  # width, level
AROUND_MM = 10.0  # how far the surroundings of what is outlined reach
AIR_HU = -950.0  # what is below, such as the air around the patient, does not count as surroundings
CHEST = 0.25  # share of slices that is black in the soft tissue window, if they show the lungs
BODY_HU = -500.0  # between air or lung and tissue
PERCENTILES = (1, 99)
DARK = 0.1  # of the range: what is below counts as background where there are no HU
MAX_VOXELS = 2**20  # that percentiles are taken from, evenly spread


class DisplayWindow(NamedTuple):
    """Intensities drawn black and white.

    Args:
        low: Intensity drawn black.
        high: Intensity drawn white.
        text: Description for the sheet.
        background: Intensity below which a voxel belongs to the background.
    """

    low: float
    high: float
    text: str
    background: float


def display_window(
    volume: Tensor,
    planes: Iterable[tuple[Array, Array]],
    pixel: tuple[float, float],
    window: Sequence[float] | None = None,
) -> DisplayWindow:
    """Return the window that suits a volume and what is outlined in it.

    CT in HU is shown in the soft tissue window (W 400, L 40). If the median of the classes, or of what lies
    within 10 mm of them, would be black in it, the lung window (W 1500, L -600) is chosen; if the median of
    the classes would be white, the bone window (W 1800, L 400). If nothing is outlined, the lung window is
    chosen where a quarter of the slices would be black, air not counted. Anything else is shown between the
    percentiles 1 and 99 of the voxels that differ from the lowest value.

    Args:
        volume: Volume (*spatial).
        planes: Slices of the volume and of its label map, (rows, columns) each.
        pixel: Height and width of a pixel, mm.
        window: Intensities drawn black and white, if they were chosen.

    Example:
        >>> display_window(torch.arange(1001.0), [], (1, 1)).text
        '1st to 99th percentile, 11 to 990'
        >>> display_window(torch.arange(1001.0), [], (1, 1), window=(0, 255)).text
        '0 to 255'
    """
    hounsfield = not why_no_hounsfield(volume)
    if window is not None:
        low, high = float(window[0]), float(window[1])
        text = f"{_number(low)} to {_number(high)}" + " HU" * hounsfield
    elif hounsfield:
        name = _preset(planes, pixel)
        width, level = PRESETS_HU[name]
        low, high = level - width / 2, level + width / 2
        text = f"{name}, W {width} L {level} HU"
    else:
        low, high = _percentiles(volume)
        text = f"1st to 99th percentile, {_number(low)} to {_number(high)}"
    return DisplayWindow(low, high, text, BODY_HU if hounsfield else low + DARK * (high - low))


def _preset(planes: Iterable[tuple[Array, Array]], pixel: tuple[float, float]) -> str:
    """Return the name of the usual window that suits the classes and their surroundings."""
    width, level = PRESETS_HU["soft tissue"]
    black, white = level - width / 2, level + width / 2
    pairs = list(planes)
    inside = np.concatenate([image[labels > 0] for image, labels in pairs])
    if not len(inside):
        tissue = np.concatenate([image[image >= AIR_HU] for image, _ in pairs])
        return "lung" if (tissue < black).mean() > CHEST else "soft tissue"
    around = np.concatenate([_surroundings(image, labels > 0, pixel) for image, labels in pairs])
    if any(len(values) and np.median(values) < black for values in (inside, around)):
        return "lung"
    return "bone" if np.median(inside) > white else "soft tissue"


def _surroundings(image: Array, mask: Array, pixel: tuple[float, float]) -> Array:
    """Return the intensities near a mask, without air."""
    if not mask.any():
        return image[mask]
    near = ~mask & (ndimage.distance_transform_edt(~mask, sampling=pixel) <= AROUND_MM)
    return image[near & (image >= AIR_HU)]


def _percentiles(volume: Tensor) -> tuple[float, float]:
    values = np.asarray(volume).ravel(order="K")
    values = values[:: values.size // MAX_VOXELS | 1]  # an odd step, lest it follow the axes
    values = values[np.isfinite(values)]
    foreground = values[values > values.min()] if values.size else np.zeros(1)
    low, high = np.percentile(foreground if foreground.size else values, PERCENTILES)
    return float(low), float(high) if high > low else float(low) + 1


def _number(value: float) -> str:
    """Return a number with about three digits, without an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
