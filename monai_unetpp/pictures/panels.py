# SPDX-License-Identifier: Apache-2.0
"""Slices of one volume side by side, cut and scaled alike, with orientation and scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from monai_unetpp.pictures.marks import PlacedMark
from monai_unetpp.pictures.page import Page
from monai_unetpp.pictures.view import Array, View, class_colour, draw_plane
from monai_unetpp.pictures.window import DisplayWindow

__all__ = ["Panels"]

WIDTH, GAP = 2.3, 0.05  # of a panel and between two, inches; a single one is twice as wide
MAX_COLUMNS = 4
HEIGHTS = (0.5, 1.5)  # of a panel, over its width
BAR_LENGTHS_MM = (1, 2, 5, 10, 20, 50, 100, 200)
MAX_BAR = 0.3  # of the width of a panel
SMALL = 0.1  # of the width of a panel: smaller findings are magnified in a corner
INSET, ZOOM = 0.4, 3.0  # side of that corner, over the panel's width; what it shows, over the finding's size
MIN_INSET_PIXELS = 12
MARK_EDGE = 0.92  # of the width and height of a panel: numbers stay inside
MIN_SHARE = 0.02  # of a row or column of pixels that is not background, for it to be drawn

Area = tuple[tuple[float, float], tuple[float, float]]  # of rows and of columns: edges of what is drawn


class Panels:
    """Slices of one volume.

    Args:
        pairs: Slices of image and label map, (rows, columns) each.
        captions: Text for each slice.
        window: Intensities drawn black and white.
        view: Orientation of the slices.
        picture: Whether it is a picture: no sides of a patient, pixels instead of mm.
        outlines: Colour -> mask or label map (rows, columns) for each slice; by default the classes of the
            label map, each in its colour.
        panel_width: Width of a panel, inches; by default that of a sheet.
        marks: What is numbered in each slice; by default nothing.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Array, Array]],
        captions: Sequence[str],
        window: DisplayWindow,
        view: View,
        picture: bool = False,
        outlines: Sequence[Mapping[str, Array]] | None = None,
        panel_width: float | None = None,
        marks: Sequence[Sequence[PlacedMark]] | None = None,
    ) -> None:
        self.marks = marks or [()] * len(pairs)
        self.picture, self.outlines = picture, outlines
        self.pairs, self.captions, self.window, self.view = pairs, captions, window, view
        self.area = drawn_area(pairs, window.background)
        height, width = self._millimetres(self.area)
        self.columns = min(len(pairs), MAX_COLUMNS)
        self.width = panel_width or (WIDTH if self.columns > 1 else 2 * WIDTH + GAP)
        self.height = self.width * min(max(height / width, HEIGHTS[0]), HEIGHTS[1])
        self.rows = -(-len(pairs) // self.columns)

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of all panels, inches."""
        return self.columns * (self.width + GAP) - GAP, self.rows * (self.height + GAP) - GAP

    def draw(self, page: Page) -> None:
        """Draw all slices on a page; the first shows the scale."""
        for n, caption in enumerate(self.captions):
            row, column = divmod(n, self.columns)
            x, y = column * (self.width + GAP), (self.rows - 1 - row) * (self.height + GAP)
            axes = page.axes(x, y, self.width, self.height)
            millimetres_across = self._draw_plane(axes, n, self.area, self.height / self.width)
            write = _writer(axes)
            write(0.03, 0.97, caption, "left", "top")
            left, right, lower, upper = ("",) * 4 if self.picture else tuple(self.view.edges)
            write(0.02, 0.5, left, "left", "center")
            write(0.98, 0.5, right, "right", "center")
            write(0.5, 0.02, lower, "center", "bottom")
            write(0.5, 0.98, upper, "center", "top")
            if n == 0:
                self._draw_scale(axes, millimetres_across)
            self._draw_inset(page, n, x, y)

    def _draw_plane(self, axes: Any, n: int, area: Area, shape: float) -> float:
        """Draw an area of a slice into axes of ``shape``, height over width; returns the width, mm."""
        image, labels = self.pairs[n]
        outlines: Mapping[str, Array] = (
            {class_colour(int(c)): labels == c for c in np.unique(labels) if c}
            if self.outlines is None
            else self.outlines[n]
        )
        draw_plane(axes, image, outlines, self.window[:2], self.view.aspect)
        height, width = self._millimetres(area)
        shown = max(width, height / shape)
        limits = [
            (sum(edges) / 2 - half, sum(edges) / 2 + half)
            for edges, half in zip(
                area,
                (shown * shape / self.view.pixel[0] / 2, shown / self.view.pixel[1] / 2),
                strict=True,
            )
        ]
        axes.set(ylim=limits[0], xlim=limits[1], aspect="auto")
        for mark in self.marks[n]:
            self._draw_mark(axes, mark, limits)
        axes.axis("on")
        axes.spines[:].set_visible(False)
        return shown

    def _draw_mark(self, axes: Any, mark: PlacedMark, limits: Sequence[tuple[float, float]]) -> None:
        """Write a number at the upper right corner of what it is of, or inside where there is no room."""
        places = []
        for side, (low, high) in zip(mark.box, limits, strict=True):
            places.append(min((side.stop - 0.5 - low) / (high - low), MARK_EDGE))
        _writer(axes)(places[1], places[0], f" {mark.text}", "left", "bottom", mark=True)

    def _draw_scale(self, axes: Any, millimetres_across: float) -> None:
        fitting = [mm for mm in BAR_LENGTHS_MM if mm <= MAX_BAR * millimetres_across]
        length = fitting[-1] if fitting else BAR_LENGTHS_MM[0]
        share = length / millimetres_across
        axes.plot((0.97 - share, 0.97), (0.04, 0.04), color="white", lw=2, transform=axes.transAxes)
        _writer(axes)(0.97, 0.06, f"{length} {'pixels' if self.picture else 'mm'}", "right", "bottom")

    def _draw_inset(self, page: Page, n: int, x: float, y: float) -> None:
        """Magnify what was found in a corner, if it is small."""
        rows, columns = (np.flatnonzero(self.pairs[n][1].any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            return
        found = ((rows[0] - 0.5, rows[-1] + 0.5), (columns[0] - 0.5, columns[-1] + 0.5))
        side = max(self._millimetres(found))
        if side > SMALL * self._millimetres(self.area)[1]:
            return
        half = max(ZOOM * side, MIN_INSET_PIXELS * min(self.view.pixel)) / 2
        centres = [sum(edges) / 2 for edges in found]
        spans = [half / size for size in self.view.pixel]
        area = [(centre - span, centre + span) for centre, span in zip(centres, spans, strict=True)]
        corner = INSET * min(self.width, self.height)
        axes = page.axes(x + self.width - corner, y + self.height - corner, corner, corner)
        self._draw_plane(axes, n, (area[0], area[1]), 1.0)
        axes.spines[:].set(visible=True, color="white", linewidth=0.8)

    def _millimetres(self, area: Area) -> tuple[float, float]:
        """Return height and width of an area."""
        (top, bottom), (left, right) = area
        return (bottom - top) * self.view.pixel[0], (right - left) * self.view.pixel[1]


def drawn_area(pairs: Sequence[tuple[Array, Array]], background: float) -> Area:
    """Return rows and columns that have more than background in any of the slices."""
    edges = []
    for axis in (1, 0):
        shown = [
            ((image > background).mean(axis=axis) > MIN_SHARE) | labels.any(axis=axis)
            for image, labels in pairs
        ]
        lines = np.flatnonzero(np.any(shown, axis=0))
        low, high = (lines[0], lines[-1]) if len(lines) else (0, len(shown[0]) - 1)
        edges.append((max(float(low) - 2, 0) - 0.5, min(float(high) + 2, len(shown[0]) - 1) + 0.5))
    return edges[0], edges[1]


def _writer(axes: Any) -> Any:
    """Return what writes on a panel, readable on black and on white."""
    from matplotlib.patheffects import withStroke

    def write(x: float, y: float, text: str, ha: str, va: str, mark: bool = False) -> None:
        style = {
            "color": "white",
            "fontweight": "bold" if mark else "normal",
            "fontsize": 7,
            "path_effects": [withStroke(linewidth=1.5, foreground="black")],
        }
        axes.text(x, y, text, ha=ha, va=va, transform=axes.transAxes, **style)

    return write
