# SPDX-License-Identifier: Apache-2.0
"""The outlines of a mask, along the edges of its pixels.

Why the edges: the area inside an outline is that of the pixels, and whoever fills it finds exactly the pixels
whose centres lie inside. OpenCV's contours, which rt-utils writes, run through the centres of the outermost
pixels and lose half a pixel on every side; those of marching squares cut off corners.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label  # type: ignore[import-untyped]
from scipy.spatial import cKDTree  # type: ignore[import-untyped]

__all__ = ["find_outlines"]

# steps (row, column) along an edge, clockwise on the screen: the pixel inside is on the right hand
STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))
INSIDE = ((0, 0), (0, -1), (-1, -1), (-1, 0))  # that pixel, from the corner at which the edge begins

Outline = NDArray[np.float64]


def find_outlines(mask: NDArray[np.bool_]) -> list[Outline]:
    """Return the outlines of a mask, one for each of its parts that are connected by edges.

    A hole is joined to the outline around it by a channel of no width that runs along edges of pixels, the
    "keyhole" of DICOM's PS3.3, C.8.8.6.3: no reader has to know which outline is a hole.

    Args:
        mask: Pixels (rows, columns).

    Returns:
        Corners (n, 2) of each polygon, as column and row in pixels: pixel centres are whole numbers, edges
        lie half-way between. The first corner is not repeated.

    Example:
        >>> find_outlines(np.array([[False, True]]))[0].tolist()
        [[0.5, -0.5], [1.5, -0.5], [1.5, 0.5], [0.5, 0.5]]
    """
    parts, _ = label(mask)
    outer: dict[int, Outline] = {}
    holes: dict[int, list[Outline]] = {}
    for loop, part in _loops(mask, parts):
        if _area(loop) > 0:
            outer[part] = loop
        else:
            holes.setdefault(part, []).append(loop)
    joined = [_join(loop, holes.get(part, [])) for part, loop in outer.items()]
    return [loop[:, ::-1] - 0.5 for loop in joined]


def _loops(mask: NDArray[np.bool_], parts: NDArray[np.int32]) -> Iterator[tuple[Outline, int]]:
    """Yield each closed way along edges, corners (row, column) where it turns, and the part it belongs to."""
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    beyond = (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])
    starts = ((0, 0), (0, 1), (1, 1), (1, 0))  # the corner of a pixel at which its edge begins
    edges = {
        (row + starts[way][0], column + starts[way][1], way)
        for way in range(4)
        for row, column in np.argwhere(inside & ~beyond[way]).tolist()
    }
    used = set()
    for first in sorted(edges):
        if first in used:
            continue
        row, column, way = edge = first
        part = int(parts[row + INSIDE[way][0], column + INSIDE[way][1]])
        corners: list[tuple[int, int]] = []
        while not corners or edge != first:
            used.add(edge)
            row, column = row + STEPS[way][0], column + STEPS[way][1]
            # right before straight on: pixels that touch at a corner alone have outlines of their own
            turn = next(turn for turn in (1, 0, 3) if (row, column, (way + turn) % 4) in edges)
            way = (way + turn) % 4
            edge = (row, column, way)
            if turn:
                corners.append((row, column))
        yield np.array(corners, dtype=float), part


def _area(loop: Outline) -> float:
    """Return the area inside of a loop, above 0 if it runs clockwise on the screen."""
    row, column = loop.T
    return float(column @ np.roll(row, -1) - row @ np.roll(column, -1)) / 2


def _join(loop: Outline, holes: Sequence[Outline]) -> Outline:
    """Join holes to the outline around them, nearest first, so that channels are short."""
    if not holes:
        return loop
    corners, starts = np.concatenate(holes), np.cumsum([0, *map(len, holes)])
    owner = np.repeat(np.arange(len(holes)), np.diff(starts))
    distance, nearest = np.full(len(corners), np.inf), np.zeros_like(corners)
    waiting, new = np.ones(len(holes), bool), loop
    while waiting.any():
        found, which = cKDTree(new).query(corners)  # the corners of what was joined last: others are known
        closer = found < distance
        distance[closer], nearest[closer] = found[closer], new[which[closer]]
        at = int(np.argmin(np.where(waiting[owner], distance, np.inf)))
        n = int(owner[at])
        new, waiting[n] = np.roll(holes[n], starts[n] - at, axis=0), False
        to = int(np.flatnonzero((loop == nearest[at]).all(axis=1))[0])
        bend = np.array([[new[0, 0], loop[to, 1]]])  # a channel that is aslant would cross centres of pixels
        loop = np.concatenate([loop[: to + 1], bend, new, new[:1], bend, loop[to:]])
    return loop[np.any(loop != np.roll(loop, -1, axis=0), axis=1)]  # a straight channel has no bend
