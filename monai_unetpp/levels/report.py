# SPDX-License-Identifier: Apache-2.0
"""The levels of a network as a table and as a figure."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_unetpp.extras import require
from monai_unetpp.files import PathLike, atomic_write, refuse_existing, write_csv
from monai_unetpp.levels.cases import METRICS
from monai_unetpp.levels.score import LevelScore
from monai_unetpp.levels.select import by_precision, within

__all__ = ["check_report", "draw_levels", "write_levels"]

logger = logging.getLogger(__name__)

_FILES = ("levels.csv", "levels.md", "levels.png", "levels_cases.csv")
CHOSEN, OTHER, BAND = "#d1495b", "#4a7fb0", "#edf2f7"
MAX_AREA = 1600  # area of the largest point, square points


def check_report(directory: PathLike, overwrite: bool = False) -> None:
    """Raise at the beginning of a long run what :func:`write_levels` or an export would raise at its end."""
    directory = Path(directory)
    if not overwrite:
        refuse_existing(*(directory / name for name in _FILES), *sorted(directory.glob("L[0-9]*")))
    require("figures", "matplotlib")


def write_levels(
    scores: Sequence[LevelScore],
    directory: PathLike,
    level: int,
    tolerance: float,
    title: str = "",
    overwrite: bool = False,
    precision: str | None = None,
) -> Path:
    """Write the scores of all levels and the chosen one: ``levels.csv``, ``levels.md`` and ``levels.png``.

    ``levels_cases.csv`` has the Dice of every case, if the scores have it: one row per level, precision, case
    and class, ``nan`` where the case lacks the class.

    Args:
        scores: Scores of all levels, from :func:`score_levels`.
        directory: Folder to write to, made if it does not exist.
        level: Chosen level.
        tolerance: Loss of Dice that was accepted.
        title: Title of table and figure, such as the name of the data set.
        overwrite: Whether existing files may be replaced.
        precision: Chosen precision; by default the first one that was scored.

    Returns:
        Path of the directory.

    Raises:
        ValueError: if ``scores`` has no ``level`` in this precision.
        FileExistsError: if one of the files exists and ``overwrite`` is false.
        ModuleNotFoundError: if matplotlib is not installed.
    """
    directory = Path(directory)
    first, *others = by_precision(scores)
    if level not in [score.level for score in scores]:
        highest = max(score.level for score in scores)
        raise ValueError(f"level must be one of those in scores, 1..{highest}, got {level!r}.")
    if precision not in (None, first, *others):
        raise ValueError(f"precision must be one of {', '.join([first, *others])}, got {precision!r}.")
    figure = draw_levels(scores, level, tolerance, title, precision)
    rows = [_row(score, scores) for score in scores]
    table, text, picture, by_case = (directory / name for name in _FILES)
    if not overwrite:
        refuse_existing(table, text, picture, by_case)
    write_csv(table, rows, overwrite)
    with atomic_write(text, overwrite) as path:
        path.write_text(_markdown(scores, level, tolerance, title, precision or first), encoding="utf-8")
    with atomic_write(picture, overwrite) as path:
        figure.savefig(path, dpi=150)
    rows = [row for score in scores for row in _case_rows(score)]
    by_case.unlink(missing_ok=True)  # that of other scores
    if rows:
        write_csv(by_case, rows)
    logger.info(f"Wrote {', '.join(_FILES if rows else _FILES[:-1])} to {directory}.")
    return directory


def draw_levels(
    scores: Sequence[LevelScore],
    level: int,
    tolerance: float,
    title: str = "",
    precision: str | None = None,
) -> Any:
    """Return a matplotlib figure: Dice against time, one point per level, with an area for the parameters.

    Each precision has a line of its own.

    Args:
        scores: Scores of all levels, from :func:`score_levels`.
        level: Chosen level, drawn in another colour.
        tolerance: Loss of Dice that was accepted, drawn as a band below the best level.
        title: Title of the figure.
        precision: Chosen precision; by default the first one that was scored.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
    """
    require("figures", "matplotlib")
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    series = by_precision(scores)
    first, *others = series
    best = max(score.dice for score in series[first])
    most = max(score.parameters for score in scores)
    seconds = [score.seconds for score in scores]
    unit, scale = ("ms", 1e3) if max(seconds) < 1 else ("s", 1.0)
    axes.axhspan(best - tolerance, best, color=BAND, zorder=0)
    for line in series.values():
        axes.plot([s.seconds * scale for s in line], [s.dice for s in line], color="0.75", lw=1, zorder=1)
    for score in scores:
        x, area = score.seconds * scale, max(MAX_AREA * score.parameters / most, 12)
        chosen = (score.level, score.precision) == (level, precision or first)
        colour = CHOSEN if chosen else OTHER
        axes.scatter(x, score.dice, s=area, color=colour, alpha=0.85, linewidth=0, zorder=2)
        axes.annotate(
            f"{_name(score, others)}  {_short(score.parameters)}",
            (x, score.dice),
            xytext=(0, -((area / 3.14) ** 0.5) - 5),  # below the point, whose area is given in points
            textcoords="offset points",
            ha="center",
            va="top",
            color=colour,
            weight="bold" if chosen else "normal",
        )
    low = min(score.dice for score in scores)
    room = max(best - low, tolerance, 0.01)
    axes.set_ylim(low - 0.45 * room, best + 0.35 * room)
    axes.set_xlim(0, max(seconds) * scale * 1.18)
    axes.text(
        0.01, best, f" within {tolerance:g} of the best", transform=axes.get_yaxis_transform(), va="bottom"
    )
    axes.set_xlabel(f"time of one window, {unit} (area: parameters)")
    axes.set_ylabel("Dice, validation set")
    axes.set_title(title or "Levels", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _row(score: LevelScore, scores: Sequence[LevelScore]) -> dict[str, Any]:
    """Return a row of the CSV file: the score of a level, and its share of the deepest level's cost."""
    deepest = _deepest(scores)
    row: dict[str, Any] = {"level": score.level, "precision": score.precision}
    for metric in METRICS:
        row[metric] = round(getattr(score, metric), 4)
        by_class = getattr(score, f"{metric}_per_class")
        row |= {f"{metric} {name}": round(value, 4) for name, value in by_class.items()}
    for name in ("parameters", "multiply_adds", "seconds", "peak_mib"):
        value = getattr(score, name)
        row[name] = value if isinstance(value, int) else float(f"{value:.4g}")
        row[f"{name} share"] = round(value / getattr(deepest, name), 4)
    return row


def _case_rows(score: LevelScore) -> list[dict[str, Any]]:
    """Return the Dice of every case and class at a level, as rows of a CSV file."""
    return [
        {
            "level": score.level,
            "precision": score.precision,
            "case": case,
            "class": name,
            "dice": f"{dice[n]:.4f}",
        }
        for n, case in enumerate(score.cases)
        for name, dice in score.dice_per_case_and_class.items()
    ]


def _deepest(scores: Sequence[LevelScore]) -> LevelScore:
    """Return the score of the deepest level in the first precision, with which costs are compared."""
    return next(iter(by_precision(scores).values()))[-1]


def _name(score: LevelScore, others: Sequence[str]) -> str:
    return f"L{score.level} {score.precision}" if others else f"L{score.level}"


def _markdown(scores: Sequence[LevelScore], level: int, tolerance: float, title: str, precision: str) -> str:
    classes = list(scores[0].dice_per_class)
    heading = ["", "Dice", *(f"Dice {name}" for name in classes if len(classes) > 1), "IoU", "surface Dice"]
    heading += ["parameters", "multiply-adds", "time", "memory"]
    lines = [heading, ["---"] * len(heading)]
    first, *others = by_precision(scores)
    deepest = _deepest(scores)
    for score in scores:
        name, chosen = _name(score, others), (score.level, score.precision) == (level, precision)
        cells = [f"**{name}**" if chosen else name, f"{score.dice:.3f}"]
        cells += [f"{score.dice_per_class[name]:.3f}" for name in classes if len(classes) > 1]
        cells += [f"{score.iou:.3f}", f"{score.surface_dice:.3f}"]
        cells.append(f"{score.parameters:,} ({score.parameters / deepest.parameters:.1%})")
        cells.append(f"{score.multiply_adds / 1e9:.2f} G ({score.multiply_adds / deepest.multiply_adds:.0%})")
        cells.append(f"{score.seconds * 1e3:.3g} ms ({score.seconds / deepest.seconds:.0%})")
        cells.append(f"{score.peak_mib:.3g} MiB ({score.peak_mib / deepest.peak_mib:.0%})")
        lines.append(cells)
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    cases = len(scores[0].dice_per_case)
    note = (
        f"Means over {cases} cases. Costs are of one window, in brackets their share of the deepest level's. "
        + why_chosen(by_precision(scores)[first], level, tolerance)
        + (f" Precision: {precision}." if others else "")
    )
    return f"# {title or 'Levels'}\n\n{table}\n\n{note}\n"


def why_chosen(scores: Sequence[LevelScore], level: int, tolerance: float) -> str:
    best = max(score.dice for score in scores)
    chosen = next(score for score in scores if score.level == level)
    shallower = [score for score in scores if score.level < level]
    if within(chosen, best, tolerance) and not any(within(score, best, tolerance) for score in shallower):
        return f"Chosen: L{level}, the shallowest within {tolerance:g} Dice of the best."
    return f"Given: L{level}, {best - chosen.dice:.3f} Dice below the best."


def _short(parameters: int) -> str:
    return f"{parameters / 1e6:.1f} M" if parameters >= 1e6 else f"{parameters / 1e3:.0f} k"
