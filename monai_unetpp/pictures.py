# SPDX-License-Identifier: Apache-2.0
"""Slices of a volume with outlines, in radiological orientation: the patient's left on the right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_unetpp.extras import require
from monai_unetpp.files import PathLike, atomic_write
from monai_unetpp.readers import volume_loader

__all__ = ["COLOURS", "View", "draw_plane", "draw_volume"]

COLOURS = ("#ff5252", "#40c4ff", "#ffd740", "#3ddc84", "#e040fb")

Array = NDArray[Any]
orientations: Any = nib.orientations  # untyped


class View:
    """Orientation of the slices of a volume, across the axis of the largest spacing.

    Args:
        affine: Voxel index to world mm (RAS+), (4, 4).
        spacing: Voxel size, mm.

    Attributes:
        across: Axis of the reoriented volume across which slices are cut.
        aspect: Height of a pixel over its width.
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
        """Return a volume (*spatial), reoriented."""
        turned: Array = orientations.apply_orientation(np.asarray(volume), self._turn)
        return turned

    def plane(self, turned: Array, n: int) -> Array:
        """Return slice ``n`` of a reoriented volume, (rows, columns)."""
        return np.take(turned, n, axis=self.across).T

    def profile(self, turned: Array) -> Array:
        """Return the number of voxels in each slice of a reoriented mask."""
        return np.asarray(turned.sum(axis=tuple(axis for axis in range(3) if axis != self.across)))


def draw_plane(
    axes: Any, image: Array, outlines: Mapping[str, Array], window: tuple[float, float], aspect: float
) -> None:
    """Draw a slice with the outlines of masks or label maps.

    Args:
        axes: Axes of matplotlib.
        image: Slice (rows, columns).
        outlines: Colour -> mask or label map (rows, columns), all classes of which are outlined.
        window: Intensities drawn black and white, such as HU.
        aspect: Height of a pixel over its width.
    """
    axes.imshow(image, cmap="gray", vmin=window[0], vmax=window[1], origin="lower", aspect=aspect)
    for colour, mask in outlines.items():
        if mask.any():
            axes.contour(mask, levels=np.arange(int(mask.max())) + 0.5, colors=colour, linewidths=1)
    axes.axis("off")


def draw_volume(
    path: PathLike, image_path: PathLike, labels: ArrayLike, window: tuple[float, float], count: int = 12
) -> None:
    """Draw slices with outlines, evenly through the labelled ones, or through all if nothing is labelled.

    Args:
        path: Path of the PNG to write.
        image_path: Path of the volume.
        labels: Label map of the volume (*spatial).
        window: Intensities drawn black and white, such as HU.
        count: Maximum number of slices.

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
