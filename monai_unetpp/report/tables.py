# SPDX-License-Identifier: Apache-2.0
"""Tables of a report: levels, classes over folds, spread over cases, trainings, settings."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from monai_unetpp.levels import LevelScore
from monai_unetpp.levels.reading import mean
from monai_unetpp.planning import Fingerprint, Plan
from monai_unetpp.report.page import Html, element, table

__all__ = [
    "class_table",
    "data_table",
    "dice_text",
    "epoch_table",
    "level_table",
    "parameters_text",
    "plan_table",
    "spread_table",
    "time_text",
]

NOTHING = "-"
SPACE = "\u00a0"  # where no line may end
ALL = "all classes"

Levels = Mapping[str, Sequence[LevelScore]]  # fold -> scores of its levels


def level_table(scores: Sequence[LevelScore], level: int, precision: str) -> Html:
    """Return accuracy and cost of each level and precision; the chosen one is marked.

    Args:
        scores: Scores of all levels, means over the folds.
        level: Chosen level.
        precision: Chosen precision.
    """
    several = len({score.precision for score in scores}) > 1
    heading = ["level", *(["precision"] if several else []), "Dice", "IoU", "surface Dice"]
    heading += ["parameters", "time", "memory"]
    rows, chosen = [], None
    for n, score in enumerate(scores):
        chosen = n if (score.level, score.precision) == (level, precision) else chosen
        rows.append(
            [
                f"L{score.level}",
                *([score.precision] if several else []),
                *(number(value) for value in (score.dice, score.iou, score.surface_dice)),
                parameters_text(score.parameters),
                time_text(score.seconds),
                f"{score.peak_mib:.3g}{SPACE}MiB",
            ]
        )
    return table(heading, rows, chosen_row=chosen)


def class_table(levels: Levels, scores: Sequence[LevelScore], level: int, precision: str) -> Html:
    """Return the Dice of each class at each level: the mean, and a standard deviation.

    The deviation is that of the means of the folds, or without folds that of the cases.

    Args:
        levels: Fold -> scores of its levels.
        scores: The same over all folds, from :func:`~monai_unetpp.levels.pool_levels`.
        level: Chosen level, which is marked.
        precision: Precision of the scores.
    """
    shown = [score for score in scores if score.precision == precision]
    heading = ["class", *(f"L{score.level}" for score in shown)]
    chosen = next((n for n, score in enumerate(shown, 1) if score.level == level), None)
    classes = list(shown[0].dice_per_class)
    rows = [[name, *(dice_text(levels, score, name) for score in shown)] for name in classes]
    if len(classes) > 1:
        rows.append([ALL, *(dice_text(levels, score) for score in shown)])
    of = "the means of the folds" if len(levels) > 1 else "the cases"
    deviation = f" ± standard deviation of {of}" if any("±" in cell for row in rows for cell in row) else ""
    numbers = f" In {precision}." if len({score.precision for score in scores}) > 1 else ""
    caption = f"Dice by class, mean over the held-out cases{deviation}.{numbers}"
    return table(heading, rows, caption, None, chosen)


def spread_table(score: LevelScore) -> Html:
    """Return mean, spread and extremes of the Dice over the held-out cases, for each class."""
    rows = []
    for name, values in score.dice_per_case_and_class.items():
        known = sorted(value for value in values if not math.isnan(value))
        spread = [statistics.stdev(known)] if len(known) > 1 else [math.nan]
        ends = [statistics.median(known), known[0], known[-1]] if known else [math.nan] * 3
        rows.append([name, str(len(known)), *map(number, (mean(known), *spread, *ends))])
    heading = ["class", "cases", "mean", "sd", "median", "lowest", "highest"]
    return table(heading, rows, f"Dice over the held-out cases at L{score.level}.")


def epoch_table(epochs: Mapping[str, Sequence[Mapping[str, float]]]) -> Html:
    """Return epochs, best epoch with its Dice, and the last loss of each training."""
    rows = []
    for fold, of_fold in epochs.items():
        scored = [row for row in of_fold if not math.isnan(row.get("val_mean_dice", math.nan))]
        best = max(scored, key=lambda row: row["val_mean_dice"], default=None)
        rows.append(
            [
                fold_name(fold) if fold else "training",
                f"{of_fold[-1]['epoch']:.0f}",
                f"{best['epoch']:.0f}" if best else NOTHING,
                number(best["val_mean_dice"]) if best else NOTHING,
                number(of_fold[-1].get("train_loss", math.nan)),
            ]
        )
    return table(["", "epochs", "best epoch", "validation Dice", "last loss"], rows)


def data_table(fingerprint: Fingerprint) -> Html:
    """Return what the data are like: name and value in rows."""
    rows = [
        element("tr", element("th", name, scope="row"), element("td", value))
        for name, value in fingerprint.table()
    ]
    return element("div", element("table", element("tbody", *rows), class_="wide"), class_="scroll")


def plan_table(plan: Plan) -> Html:
    """Return each setting with its value and the reason."""
    rows = [
        element(
            "tr",
            element("th", element("code", choice.key), scope="row"),
            element("td", element("code", _value(choice.value))),
            element("td", choice.reason, class_="reason"),
        )
        for choice in plan.choices
    ]
    head = element("tr", *(element("th", name, scope="col") for name in ("setting", "value", "reason")))
    parts = element("thead", head), element("tbody", *rows)
    return element("div", element("table", *parts, class_="wide settings"), class_="scroll")


def number(value: float) -> str:
    """Return a score with three digits, or a dash for NaN."""
    return NOTHING if math.isnan(value) else f"{value:.3f}"


def dice_text(levels: Levels, merged: LevelScore, name: str | None = None) -> str:
    """Return the mean Dice of a class, or of all, with the deviation of the folds, or else of the cases.

    Args:
        levels: Fold -> scores of its levels.
        merged: Score of a level over all folds.
        name: Name of the class; by default all.
    """
    key = (merged.level, merged.precision)
    found = [s for scores in levels.values() for s in scores if (s.level, s.precision) == key]
    if len(found) > 1:
        values = [s.dice if name is None else s.dice_per_class.get(name, math.nan) for s in found]
    else:
        cases = merged.dice_per_case if name is None else merged.dice_per_case_and_class.get(name, ())
        values = list(cases)
    known = [value for value in values if not math.isnan(value)]
    dice = number(merged.dice if name is None else merged.dice_per_class[name])
    return dice + (f" ±{SPACE}{statistics.stdev(known):.3f}" if len(known) > 1 else "")


def parameters_text(parameters: int) -> str:
    """Return a number of parameters as one reads it."""
    return f"{parameters / 1e6:.2f}{SPACE}M" if parameters >= 1e6 else f"{parameters / 1e3:.1f}{SPACE}k"


def time_text(seconds: float) -> str:
    """Return seconds as one reads them."""
    return f"{seconds * 1e3:.3g}{SPACE}ms" if seconds < 1 else f"{seconds:.3g}{SPACE}s"


def fold_name(fold: str) -> str:
    """Return the name of a fold as one reads it."""
    return fold.replace("_", " ")


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
