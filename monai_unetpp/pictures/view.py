# SPDX-License-Identifier: Apache-2.0
"""Slices of a volume with outlines, in radiological orientation: the patient's left on the right."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["COLOURS", "Array", "View", "choose_slices", "class_colour", "draw_plane", "largest_slices"]

COLOURS = (
    *("#ff5252", "#40c4ff", "#ffd740", "#3ddc84", "#e040fb"),
    *("#ff9100", "#8c9eff", "#c6ff00", "#f8bbd0", "#bf8b67"),
)
GOLDEN_ANGLE = 0.381966  # of a turn: hues that it separates stay apart, however many there are
PLANES = ("sagittal", "coronal", "axial")

Array = NDArray[Any]
orientations: Any = nib.orientations  # untyped


def class_colour(label: int) -> str:
    """Return the colour of a class, from 1; no two classes share one."""
    if label <= len(COLOURS):
        return COLOURS[label - 1]
    turn = label * GOLDEN_ANGLE % 1
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(turn, 0.7, 0.95))
    return f"#{red:02x}{green:02x}{blue:02x}"


class View:
    """Orientation of the slices of a volume, across the axis of the largest spacing.

    Args:
        affine: Voxel index to world mm (RAS+), (4, 4).
        spacing: Voxel size, mm.

    Attributes:
        across: Axis of the reoriented volume across which slices are cut.
        axis_in_file: The same axis of the volume as it is in its file.
        spacing: Voxel size of the reoriented volume, mm.
        pixel: Height and width of a pixel of a slice, mm.
        aspect: Height of a pixel over its width.
        plane_name: ``"axial"``, ``"coronal"`` or ``"sagittal"``.
        edges: Letters of the left, right, lower and upper edge of a slice, such as ``"RLPA"``.
    """

    def __init__(self, affine: ArrayLike, spacing: Sequence[float]) -> None:
        here = orientations.io_orientation(np.asarray(affine))
        self._turn = orientations.ornt_transform(here, orientations.axcodes2ornt("LAS"))
        turned = [0.0] * 3
        for axis, size in zip(self._turn[:, 0], spacing, strict=True):
            turned[int(axis)] = round(float(size), 3)
        self.spacing = (turned[0], turned[1], turned[2])
        self.across = max(range(3), key=lambda axis: (turned[axis], axis))
        self.axis_in_file = next(n for n, axis in enumerate(self._turn[:, 0]) if int(axis) == self.across)
        width, height = (size for axis, size in enumerate(turned) if axis != self.across)
        self.pixel = (height, width)
        self.aspect = height / width
        self.plane_name = PLANES[self.across]
        self.edges = "".join(pair for axis, pair in enumerate(("RL", "PA", "IS")) if axis != self.across)

    def turn(self, volume: ArrayLike) -> Array:
        """Return a volume (*spatial), reoriented."""
        turned: Array = orientations.apply_orientation(np.asarray(volume), self._turn)
        return turned

    def turn_box(self, box: Sequence[slice], shape: Sequence[int]) -> tuple[slice, ...]:
        """Return a box of a volume of a shape as that of the reoriented volume."""
        turned = [slice(0)] * 3
        for (axis, way), side, size in zip(self._turn, box, shape, strict=True):
            back = slice(size - side.stop, size - side.start)
            turned[int(axis)] = side if way > 0 else back
        return tuple(turned)

    def number_in_file(self, n: int, count: int) -> int:
        """Return the number of slice ``n`` of ``count`` in the order of the file, from 1 on."""
        return n + 1 if self._turn[self.axis_in_file, 1] > 0 else count - n

    def plane(self, turned: Array, n: int) -> Array:
        """Return slice ``n`` of a reoriented volume, (rows, columns)."""
        return np.take(turned, n, axis=self.across).T

    def profile(self, turned: Array) -> Array:
        """Return the number of voxels in each slice of a reoriented mask."""
        return np.asarray(turned.sum(axis=tuple(axis for axis in range(3) if axis != self.across)))

    def areas(self, turned: Array) -> Array:
        """Return the number of voxels of each class in each slice of a reoriented label map, (slices, K)."""
        number = int(turned.max()) + 1
        slices = range(turned.shape[self.across])
        planes = (self.plane(turned, n).astype(np.int64).ravel() for n in slices)
        return np.stack([np.bincount(plane, minlength=number) for plane in planes])


def largest_slices(areas: Array) -> dict[int, int]:
    """Return the slice of the largest area of each class that occurs, without the background.

    Args:
        areas: Voxels of each class in each slice, (slices, K).
    """
    return {c: int(areas[:, c].argmax()) for c in range(1, areas.shape[1]) if areas[:, c].any()}


def choose_slices(areas: Array, count: int, wanted: Iterable[int] = ()) -> list[int]:
    """Return slices, evenly through the labelled ones, among them the largest of each class.

    Args:
        areas: Voxels of each class in each slice, (slices, K).
        count: Maximum number of slices; it is exceeded if there are more classes, or more are wanted.
        wanted: Further slices to be among them.
    """
    inside = np.flatnonzero(areas[:, 1:].any(axis=1))
    inside = inside if len(inside) else np.arange(len(areas))
    chosen = {int(n) for n in inside[np.linspace(0, len(inside) - 1, count).round().astype(int)]}
    largest = {*largest_slices(areas).values(), *wanted}
    for n in sorted(largest - chosen):
        free = chosen - largest
        if free and len(chosen) >= count:
            chosen.remove(min(free, key=lambda other: (abs(other - n), other)))
        chosen.add(n)
    return sorted(chosen)


def draw_plane(
    axes: Any, image: Array, outlines: Mapping[str, Array], window: Sequence[float], aspect: float
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
        for mask_of_class in _masks(mask):
            framed = np.pad(mask_of_class, 1)  # an outline is closed where the slice ends, too
            rows, columns = (np.arange(-1, size + 1) for size in mask_of_class.shape)
            axes.contour(columns, rows, framed, levels=[0.5], colors=colour, linewidths=1)
    axes.set_xlim(-0.5, image.shape[1] - 0.5)
    axes.set_ylim(-0.5, image.shape[0] - 0.5)
    axes.axis("off")


def _masks(labels: Array) -> Iterable[Array]:
    """Return the mask of each class of a label map, without the background."""
    return (labels == c for c in np.unique(labels) if c)
