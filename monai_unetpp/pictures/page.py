# SPDX-License-Identifier: Apache-2.0
"""A white page: title and lines above, a legend below, and room for pictures between them; in inches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["Page"]

MARGIN = 0.15  # inches
DPI = 150
TITLE_PT, TEXT_PT = 11, 8.5
LEADING = 1.5  # height of a line over its size
SWATCH = 0.16  # width of a patch of colour, inches
GREY = "#444444"


class Page:
    """A figure of a fixed size with text that fits its width.

    Args:
        width: Width of the pictures, inches.
        height: Height of the pictures, inches.
        title: First line, shortened in the middle if it is too long.
        lines: Further lines, empty ones left out.
        legend: Colour, or ``""``, and text of each entry.
    """

    def __init__(
        self,
        width: float,
        height: float,
        title: str,
        lines: Sequence[str],
        legend: Sequence[tuple[str, str]],
    ) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure  # not pyplot: no window, no global state

        self.width, self.height = width, height
        self.figure = Figure(figsize=(1, 1), dpi=DPI, facecolor="white")
        canvas: Any = FigureCanvasAgg(self.figure)  # untyped
        self._renderer = canvas.get_renderer()
        entries = [(colour, self._fit(text, TEXT_PT, room=width - 2 * SWATCH)) for colour, text in legend]
        column = max((self._measure(text, TEXT_PT) for _, text in entries), default=0) + 3 * SWATCH
        columns = max(1, min(len(entries), int((width + SWATCH) / column)))
        rows = -(-len(entries) // columns)
        header = [(title, TITLE_PT), *((line, TEXT_PT) for line in lines if line)]
        self._below = MARGIN + rows * _line(TEXT_PT) + MARGIN / 2
        above = self._below + height + MARGIN / 2
        total = above + sum(_line(size) for _, size in header) + MARGIN
        self.figure.set_size_inches(width + 2 * MARGIN, total)
        self._write_header(header, total - MARGIN)
        for n, (colour, text) in enumerate(entries):
            y = MARGIN + (rows - n // columns - 0.5) * _line(TEXT_PT)
            self._write_entry(MARGIN + n % columns * column, y, colour, text)

    def axes(self, x: float, y: float, width: float, height: float) -> Any:
        """Return black axes, ``x`` and ``y`` inches from the lower left corner of the pictures."""
        page_width, page_height = self.figure.get_size_inches()
        place = ((MARGIN + x) / page_width, (self._below + y) / page_height)
        axes = self.figure.add_axes((*place, width / page_width, height / page_height), facecolor="black")
        axes.set_xticks([])
        axes.set_yticks([])
        return axes

    def _write_header(self, header: Sequence[tuple[str, float]], top: float) -> None:
        """Write lines of text of given sizes, the first in bold, downwards from ``top``."""
        for n, (text, size) in enumerate(header):
            top -= _line(size)
            self._write(MARGIN, top + _line(size) / 2, self._fit(text, size, bold=n == 0), size, bold=n == 0)

    def _write_entry(self, x: float, y: float, colour: str, text: str) -> None:
        """Write an entry of the legend, behind a patch of its colour."""
        from matplotlib.patches import Rectangle

        if colour:
            width, height = self.figure.get_size_inches()
            side = 0.7 * SWATCH
            place = (x / width, (y - side / 2) / height)
            style: dict[str, Any] = {"facecolor": colour, "edgecolor": "black", "linewidth": 0.6}
            patch = Rectangle(
                place, SWATCH / width, side / height, transform=self.figure.transFigure, **style
            )
            self.figure.add_artist(patch)
            x += 1.5 * SWATCH
        self._write(x, y, text, TEXT_PT)

    def _write(self, x: float, y: float, text: str, size: float, bold: bool = False) -> None:
        width, height = self.figure.get_size_inches()
        style: dict[str, Any] = {
            "fontweight": "bold" if bold else "normal",
            "color": "black" if bold else GREY,
        }
        self.figure.text(
            x / width, y / height, text, fontsize=size, va="center_baseline", parse_math=False, **style
        )

    def _fit(self, text: str, size: float, bold: bool = False, room: float | None = None) -> str:
        """Return a text that fits into ``room``, by default the width of the pictures, without its middle."""
        room = self.width if room is None else room
        whole = text = printable(text)
        kept = len(whole)
        while self._measure(text, size, bold) > room and kept > 2:
            kept -= max(1, kept // 20)
            text = f"{whole[: -(-kept // 2)]}…{whole[len(whole) - kept // 2 :]}"
        return text

    def _measure(self, text: str, size: float, bold: bool = False) -> float:
        """Return the width of a text, inches."""
        from matplotlib.text import Text

        weight = "bold" if bold else "normal"
        drawn = Text(0, 0, text, fontsize=size, fontweight=weight, parse_math=False, figure=self.figure)
        return float(drawn.get_window_extent(self._renderer, dpi=DPI).width) / DPI


def _line(size: float) -> float:
    """Return the height of a line, inches."""
    return LEADING * size / 72


def printable(text: str) -> str:
    """Return a text in which a question mark stands for what matplotlib's font cannot draw."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    return "".join(c if c.isprintable() and font.get_char_index(ord(c)) else "?" for c in text)
