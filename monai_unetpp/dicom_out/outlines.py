# SPDX-License-Identifier: Apache-2.0
"""The outlines of a mask, along the edges of its pixels.

Why the edges: the area inside an outline is that of the pixels, and whoever fills it finds exactly the pixels
whose centres lie inside. OpenCV's contours, which rt-utils writes, run through the centres of the outermost
pixels and lose half a pixel on every side; those of marching squares cut off corners.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["find_outlines"]

# steps (row, column) along an edge, clockwise on the screen: the pixel inside is on the right hand
STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))
STARTS = ((0, 0), (0, 1), (1, 1), (1, 0))  # the corner of a pixel, from its first, at which its edge begins

Corner = tuple[int, int]  # row and column of a corner of pixels
Loop = list[tuple[int, int, bool]]  # every corner on the way, and whether the way turns there


def find_outlines(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
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
        [[1.5, -0.5], [1.5, 0.5], [0.5, 0.5], [0.5, -0.5]]
    """
    padded = np.pad(mask, 1)
    loops = list(_loops(padded))
    place = {(row, col): (n, at) for n, loop in enumerate(loops) for at, (row, col, _) in enumerate(loop)}
    joined: list[dict[int, list[list[Corner]]]] = [{} for _ in loops]
    # the leftmost corner of a loop: what lies on the left of a hole's belongs to a loop that reaches further
    lefts = [min(range(len(loop)), key=lambda at: (loop[at][1], loop[at][0])) for loop in loops]
    holes = {n for n, loop in enumerate(loops) if _area(loop) < 0}
    for n in sorted(holes, key=lambda n: loops[n][lefts[n]][1], reverse=True):
        row, col, _ = loops[n][lefts[n]]
        hole = _ring(loops[n], lefts[n], joined[n])
        while padded[row, col] and padded[row + 1, col]:  # the pixels above and below the channel
            col -= 1
        around, at = place[row, col]
        joined[around].setdefault(at, []).append(hole)
    rings = [_ring(loop, 0, joined[n]) for n, loop in enumerate(loops) if n not in holes]
    return [np.array(ring, dtype=float)[:, ::-1] - 0.5 for ring in rings]


def _loops(padded: NDArray[np.bool_]) -> Iterator[Loop]:
    """Yield each closed way along edges of a mask with a margin; corners count from the mask's first."""
    inside = padded[1:-1, 1:-1]
    beyond = (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])
    edges = {
        (row + STARTS[way][0], col + STARTS[way][1], way)
        for way in range(4)
        for row, col in np.argwhere(inside & ~beyond[way]).tolist()
    }
    used = set()
    for first in sorted(edges):
        if first in used:
            continue
        row, col, way = edge = first
        loop: Loop = []
        while not loop or edge != first:
            used.add(edge)
            row, col = row + STEPS[way][0], col + STEPS[way][1]
            # right before straight on: pixels that touch at a corner alone have outlines of their own
            turn = next(turn for turn in (1, 0, 3) if (row, col, (way + turn) % 4) in edges)
            way = (way + turn) % 4
            edge = (row, col, way)
            loop.append((row, col, turn != 0))
        yield loop


def _area(loop: Loop) -> float:
    """Return twice the area inside of a loop, above 0 if it runs clockwise on the screen: around pixels."""
    row, col, _ = np.array(loop).T
    return float(col @ np.roll(row, -1) - row @ np.roll(col, -1))


def _ring(loop: Loop, first: int, joined: Mapping[int, Sequence[Sequence[Corner]]]) -> list[Corner]:
    """Return the corners of a loop from ``first`` on, with the holes that are joined to it, by place."""
    ring: list[Corner] = []
    for at in (*range(first, len(loop)), *range(first)):
        row, col, turns = loop[at]
        holes = joined.get(at, ())
        if turns or holes:
            ring.append((row, col))
        for hole in holes:
            ring += [*hole, hole[0], (row, col)]
    return ring
