# SPDX-License-Identifier: Apache-2.0
"""The axial slices of a grid, and the two diameters that radiologists measure in a slice.

The slices are planes of voxels: those whose normal is nearest to the patient's long axis, whichever axis of
the array that is. Of an oblique grid they are tilted, as on the screen; lengths are those of the grid itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import ConvexHull  # type: ignore[import-untyped]

__all__ = ["AxialSlices", "Diameters", "axial_diameters"]

Floats = NDArray[np.float64]
SAME = 1 - 1e-9  # share of the longest distance from which two points are as far apart

orientations: Any = nib.orientations  # untyped


class AxialSlices:
    """Which axis of a grid crosses its axial slices, and how long a step within one is.

    Args:
        affine: Voxel index to world mm (RAS+), (4, 4).

    Attributes:
        axis: Axis of the array that the slices are perpendicular to.
        tilt: Angle between their normal and the patient's long axis, degrees.
        basis: Steps along the two other axes, in their order, as orthogonal coordinates, mm, (2, 2).
    """

    def __init__(self, affine: ArrayLike) -> None:
        matrix = np.asarray(affine, dtype=float)
        self.axis = int(np.flatnonzero(orientations.io_orientation(matrix)[:, 0] == 2)[0])
        steps = np.delete(matrix[:3, :3], self.axis, axis=1)
        normal = np.cross(*steps.T)
        along = abs(normal[2]) / np.linalg.norm(normal)
        self.tilt = float(np.degrees(np.arccos(min(along, 1.0))))
        self.basis: Floats = np.linalg.qr(steps)[1].T  # row n: coordinates of a step along axis n


@dataclass(frozen=True)
class Diameters:
    """Diameters in the slice in which the long axis is longest.

    Args:
        long_mm: Long axis: the greatest distance of two points on the outline.
        short_mm: Short axis: the longest line between two sides of the outline perpendicular to it.
        slice: Index of the slice within the mask.
    """

    long_mm: float
    short_mm: float
    slice: int


def axial_diameters(mask: NDArray[np.bool_], slices: AxialSlices) -> Diameters:
    """Return the long and the short axis of a component, and the slice in which they lie.

    The outline runs half-way between voxels inside and their neighbours outside. It is taken as convex: of a
    crescent the axes may cross what is outside. One voxel has the longer of its two edges as its long axis.

    Args:
        mask: Mask of a component, (*spatial), not empty.
        slices: Axial slices of its grid.

    Example:
        >>> mask = np.zeros((9, 9, 3), bool)
        >>> mask[2:8, 4, 1] = True
        >>> axial_diameters(mask, AxialSlices(np.diag([0.5, 0.8, 2, 1])))
        Diameters(long_mm=3.0, short_mm=0.8, slice=1)

    Reference:
        Eisenhauer et al., RECIST 1.1 (European Journal of Cancer 45, 2009).
    """
    planes = np.moveaxis(mask, slices.axis, 0)
    best = Diameters(0.0, 0.0, 0)
    for n, plane in enumerate(planes):
        if plane.any():
            long, short = _diameters(_outline(plane) @ slices.basis)
            if (long, short) > (best.long_mm, best.short_mm):
                best = Diameters(long, short, n)
    return best


def _outline(plane: NDArray[np.bool_]) -> Floats:
    """Return the outermost points of the outline of a mask (rows, columns), in voxels, (n, 2)."""
    ends = []
    for axis in (0, 1):
        lines = plane if axis == 0 else plane.T
        here = np.flatnonzero(lines.any(axis=1))
        first = lines[here].argmax(axis=1) - 0.5
        last = lines.shape[1] - lines[here, ::-1].argmax(axis=1) - 0.5
        pairs = [np.stack([here, first], axis=1), np.stack([here, last], axis=1)]
        ends += pairs if axis == 0 else [pair[:, ::-1] for pair in pairs]
    return np.concatenate(ends)


def _diameters(points: Floats) -> tuple[float, float]:
    """Return the long and the short axis of the convex hull of points (n, 2)."""
    hull = points[ConvexHull(points).vertices]  # counter-clockwise
    apart = np.linalg.norm(hull[:, None] - hull, axis=-1)
    long = float(apart.max())
    pairs = np.argwhere(np.triu(apart) >= SAME * long)
    short = max(_longest_across(hull, a, b) for a, b in pairs)
    return round(long, 9), round(short, 9)


def _longest_across(hull: Floats, a: int, b: int) -> float:
    """Return the longest chord of a convex polygon perpendicular to the line between two of its corners.

    The two corners are the farthest apart, so that all others lie between them along the line. The length of
    the chord is piecewise linear in its place, and greatest at a corner.
    """
    along = (hull[b] - hull[a]) / np.linalg.norm(hull[b] - hull[a])
    places, heights = (hull - hull[a]) @ along, (hull - hull[a]) @ np.array([-along[1], along[0]])
    sides = []
    for start, stop in ((a, b), (b, a)):
        side = np.arange(start, stop + 1 + len(hull) * (stop < start)) % len(hull)
        side = side[np.argsort(places[side], kind="stable")]
        sides.append(np.interp(places, places[side], heights[side]))
    return float(np.abs(sides[0] - sides[1]).max())
