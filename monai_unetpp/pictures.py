# SPDX-License-Identifier: Apache-2.0
"""Slices of a volume with outlines, drawn as radiologists look at them: the patient's left on the right."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_unetpp.extras import require
from monai_unetpp.files import atomic_write
from monai_unetpp.readers import volume_loader

__all__ = ["COLOURS", "View", "draw_plane", "draw_volume"]

COLOURS = ("#ff5252", "#40c4ff", "#ffd740", "#3ddc84", "#e040fb")

Array = NDArray[Any]
orientations: Any = nib.orientations  # untyped


class View:
    """How the slices of a volume are cut and turned: across the axis of the largest spacing.

    Args:
        affine: of the volume, voxels to mm in RAS+, (4, 4).
        spacing: of its voxels in mm.

    Attributes:
        across: the axis, of the turned volume, that slices lie along.
        aspect: of a slice: height of a pixel over its width.
    """

    def __init__(self, affine: ArrayLike, spacing: Sequence[float]) -> None:
        here = orientations.io_orientation(np.asarray(affine))
        self._turn = orientations.ornt_transform(here, orientations.axcodes2ornt("LAS"))
        turned = [0.0] * 3
        for axis, size in zip(self._turn[:, 0], spacing, strict=True):
            turned[int(axis)] = round(float(size), 3)
        self.across = max(range(3), key=lambda axis: (turned[axis], axis))
        width, height = (size for axis, size in enumerate(turned) if axis != self.across)
        self.aspect = height / width

    def turn(self, volume: ArrayLike) -> Array:
        """Turn a volume (*spatial)."""
        turned: Array = orientations.apply_orientation(np.asarray(volume), self._turn)
        return turned

    def plane(self, turned: Array, n: int) -> Array:
        """Return slice ``n`` of a turned volume, (rows, columns)."""
        return np.take(turned, n, axis=self.across).T

    def profile(self, turned: Array) -> Array:
        """Return how many voxels of a turned mask each slice has."""
        return np.asarray(turned.sum(axis=tuple(axis for axis in range(3) if axis != self.across)))


def draw_plane(
    axes: Any,
    image: Array,
    outlines: Mapping[str, Array],
    window: tuple[float, float],
    aspect: float,
) -> None:
    """Draw a slice, and masks or label maps on it as outlines by colour.

    Args:
        axes: of matplotlib.
        image: (rows, columns).
        outlines: colour -> mask (rows, columns), or label map, whose classes are all outlined.
        window: intensities drawn black and white, such as HU.
        aspect: height of a pixel over its width.
    """
    axes.imshow(image, cmap="gray", vmin=window[0], vmax=window[1], origin="lower", aspect=aspect)
    for colour, mask in outlines.items():
        if mask.any():
            axes.contour(mask, levels=np.arange(int(mask.max())) + 0.5, colors=colour, linewidths=1)
    axes.axis("off")


def draw_volume(
    path: str | os.PathLike[str],
    image_path: str | os.PathLike[str],
    labels: ArrayLike,
    window: tuple[float, float],
    count: int = 12,
) -> None:
    """Draw slices with the outlines of what was found in them, evenly through it; of nothing, through all.

    Args:
        path: of the PNG.
        image_path: the volume, from which the slices are drawn.
        labels: its label map (*spatial).
        window: intensities drawn black and white, such as HU.
        count: of slices, at most.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
    """
    require("figures", "matplotlib")
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    image = volume_loader()(image_path)
    view = View(image.affine, image.pixdim.tolist())
    turned, masks = view.turn(image[0]), view.turn(labels)
    inside = np.flatnonzero(view.profile(masks > 0))
    inside = inside if len(inside) else np.arange(masks.shape[view.across])
    chosen = inside[np.unique(np.linspace(0, len(inside) - 1, count).round().astype(int))]
    columns = min(len(chosen), 4)
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(3 * columns, 3.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, n in zip(grid.flat, chosen, strict=False):
        plane = view.plane(masks, int(n))
        outlines = {COLOURS[(c - 1) % len(COLOURS)]: plane == c for c in np.unique(plane) if c}
        draw_plane(axes, view.plane(turned, int(n)), outlines, window, view.aspect)
        axes.set_title(f"slice {n + 1} of {masks.shape[view.across]}", fontsize="x-small")
    with atomic_write(path) as part:
        figure.savefig(part, dpi=110)
