# SPDX-License-Identifier: Apache-2.0
"""Numbers beside what was found: in which slice each is drawn, and where."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from monai_unetpp.pictures.view import Array, View

__all__ = ["MAX_SLICES", "Mark", "PlacedMark", "place_marks"]

MAX_SLICES = 24  # that are drawn for the sake of marks


class Mark(NamedTuple):
    """Something to be numbered.

    Args:
        text: Its number.
        box: Bounding box, voxels of the file.
        values: Values of the label map in it.
        plane: Axis of the file and index along it of a slice in which to show it, if slices are cut there.
    """

    text: str
    box: Sequence[slice]
    values: Sequence[int]
    plane: tuple[int, int]


class PlacedMark(NamedTuple):
    """A mark in a slice.

    Args:
        text: Its number.
        plane: Number of the slice.
        box: Rows and columns of what is marked.
    """

    text: str
    plane: int
    box: tuple[slice, slice]


def place_marks(marks: Iterable[Mark], labels: Array, view: View, shape: Sequence[int]) -> list[PlacedMark]:
    """Return the first marks that have room, each in its slice, or in the one in which most of it lies.

    Args:
        marks: Marks, the most important first.
        labels: Label map, reoriented.
        view: Orientation.
        shape: Shape of the label map before.
    """
    placed: list[PlacedMark] = []
    for mark in marks:
        box = view.turn_box(mark.box, shape)
        inside = np.isin(labels[box], list(mark.values))
        axis, here = mark.plane
        if axis == view.axis_in_file:
            here = view.number_in_file(here, shape[axis]) - 1  # which is its own inverse
        else:
            here = box[view.across].start + int(view.profile(inside).argmax())
        n = here - box[view.across].start
        planes = {each.plane for each in placed}
        if here not in planes and len(planes) >= MAX_SLICES:
            break
        plane = view.plane(inside, n)
        first = [box[axis].start for axis in range(3) if axis != view.across][::-1]
        ends = [np.flatnonzero(plane.any(axis=axis)) for axis in (1, 0)]
        rows, columns = (
            slice(int(start + of[0]), int(start + of[-1]) + 1) for start, of in zip(first, ends, strict=True)
        )
        placed.append(PlacedMark(mark.text, here, (rows, columns)))
    return placed
