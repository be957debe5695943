# SPDX-License-Identifier: Apache-2.0
"""Figures of matplotlib as SVG inside of a page: its font, its colours in light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from monai_unetpp.levels import LevelScore, draw_levels
from monai_unetpp.levels.reading import mean
from monai_unetpp.levels.report import BAND, CHOSEN, OTHER
from monai_unetpp.report.page import Html, element

__all__ = ["level_figure", "loss_figure", "validation_figure"]

SIZE = (4.7, 3.3)  # inches, so that text is as large as that of the page on a phone
GRID = "#d9dee4"
# colour of a figure -> property of the page's style
PROPERTIES = {CHOSEN: "--accent", OTHER: "--calm", BAND: "--band", GRID: "--rule", "#bfbfbf": "--rule"}
BLACK = ("#000000", "black")

Curves = Mapping[str, Sequence[Mapping[str, float]]]  # fold -> rows of epochs.csv


def loss_figure(epochs: Curves) -> Html:
    """Return the loss of training by epoch, a thin line per fold and their mean."""
    figure, axes = _axes("epoch", "loss")
    _draw(axes, epochs, "train_loss", OTHER, "training")
    _finish(axes, epochs)
    return _svg(figure, "loss", "Loss of training by epoch")


def validation_figure(epochs: Curves) -> Html:
    """Return the mean Dice of training and of validation by epoch, a thin line per fold and their mean."""
    figure, axes = _axes("epoch", "mean Dice")
    _draw(axes, epochs, "train_mean_dice", OTHER, "training, patches")
    _draw(axes, epochs, "val_mean_dice", CHOSEN, "validation, whole cases", marker="o")
    axes.set_ylim(0, 1.02)
    _finish(axes, epochs)
    return _svg(figure, "dice", "Mean Dice of training and of validation by epoch")


def level_figure(scores: Sequence[LevelScore], level: int, precision: str, tolerance: float) -> Html:
    """Return Dice against time, one point per level, as :func:`~monai_unetpp.levels.draw_levels`."""
    figure = draw_levels(scores, level, tolerance, precision=precision)
    figure.set_size_inches(SIZE[0], SIZE[1] + 0.3)
    figure.axes[0].set_title("", loc="left")
    for text in figure.axes[0].texts:  # without the parameters, which overlap and are in the table
        text.set_text(text.get_text().split("  ")[0])
    figure.axes[0].set_ylabel("Dice, held-out cases")
    return _svg(figure, "levels", "Dice of each level against the time of one window")


def _axes(x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # not pyplot: no window, no global state
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _draw(axes: Any, epochs: Curves, column: str, colour: str, label: str, marker: str = "") -> None:
    several = len(epochs) > 1
    by_epoch: dict[int, list[float]] = {}
    longest = max((len(rows) for rows in epochs.values()), default=0)
    for rows in epochs.values():
        points = [(int(row["epoch"]), row[column]) for row in rows if column in row]
        for epoch, value in points:
            by_epoch.setdefault(epoch, []).append(value)
        if points and several:
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=0.8, alpha=0.45)
    complete = {epoch: values for epoch, values in by_epoch.items() if len(values) == len(epochs)}
    means = [(epoch, mean(complete[epoch])) for epoch in sorted(complete)]
    if means:
        style = {"marker": marker, "markersize": 3.5} if marker and longest <= 200 else {}
        axes.plot(*zip(*means, strict=True), color=colour, linewidth=1.8, label=label, **style)


def _finish(axes: Any, epochs: Curves) -> None:
    last = max((int(rows[-1]["epoch"]) for rows in epochs.values()), default=1)
    axes.set_xlim(min(1, last - 1), last + 0.02 * last)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="best")


def _svg(figure: Any, name: str, description: str) -> Html:
    """Return a figure as an element of a page.

    Args:
        figure: Figure of matplotlib.
        name: Prefix of the identifiers, which differ between the figures of a page.
        description: What the figure shows, for those who do not see it.
    """
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' (xmlns(:\w+)?|width|height|version)="[^"]*"', "", text, count=5)
    text = re.sub(r'(\bid=")', rf"\1{name}-", text)
    text = re.sub(r'(url\(|xlink:href=")#', rf"\1#{name}-", text)
    text = re.sub(r"'?(DejaVu Sans|sans-serif)'?(, ?'[^']*'|, ?[\w-]+)*", "var(--font)", text)
    for colour, variable in PROPERTIES.items():
        text = text.replace(colour, f"var({variable})")
    for colour in BLACK:
        text = text.replace(f": {colour}", ": currentColor")
    text = text.replace("<svg", f'<svg role="img" aria-label="{description}"', 1)
    return element("figure", Html(re.sub(r"\n\s*", "\n", text)))
