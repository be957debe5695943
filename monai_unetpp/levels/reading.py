# SPDX-License-Identifier: Apache-2.0
"""Reading the tables of ``write_levels``, so that folds are compared without scoring them again."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from monai_unetpp.files import PathLike
from monai_unetpp.levels.score import METRICS, LevelScore

__all__ = ["read_levels"]


def read_levels(directory: PathLike) -> list[LevelScore]:
    """Return the scores of all levels, with those of each case, from ``levels.csv`` and ``levels_cases.csv``.

    Dice are those of the cases, which the first table has rounded.

    Args:
        directory: Folder that :func:`~monai_unetpp.levels.write_levels` wrote.

    Raises:
        FileNotFoundError: if there is no such table.
        ValueError: if a table is damaged; the message names it.
    """
    table, by_case = (Path(directory) / name for name in ("levels.csv", "levels_cases.csv"))
    rows, cases = _rows(table), _rows(by_case)
    try:
        found = [_score(row, cases) for row in rows]
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(
            f"{table} or {by_case.name} is damaged: {error!r}; score the levels again."
        ) from error
    if not found:
        raise ValueError(f"{table} holds no level; score the levels again.")
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _score(row: Mapping[str, str], cases: Sequence[Mapping[str, str]]) -> LevelScore:
    level, precision = int(row["level"]), row["precision"]
    by_class: dict[str, dict[str, float]] = {}  # class -> case -> Dice
    for each in cases:
        if (int(each["level"]), each["precision"]) == (level, precision):
            by_class.setdefault(each["class"], {})[each["case"]] = float(each["dice"])
    if not by_class:
        raise ValueError(f"no case of L{level} in {precision}")
    names = tuple(next(iter(by_class.values())))
    per_case = tuple(_mean([dice[name] for dice in by_class.values()]) for name in names)

    def of(metric: str) -> dict[str, float]:
        return {name: float(row[f"{metric} {name}"]) for name in by_class}

    return LevelScore(
        level=level,
        dice=_mean(per_case),
        iou=float(row["iou"]),
        surface_dice=float(row["surface_dice"]),
        dice_per_class={name: _mean([*dice.values()]) for name, dice in by_class.items()},
        iou_per_class=of(METRICS[1]),
        surface_dice_per_class=of(METRICS[2]),
        dice_per_case=per_case,
        parameters=int(row["parameters"]),
        multiply_adds=int(row["multiply_adds"]),
        seconds=float(row["seconds"]),
        peak_mib=float(row["peak_mib"]),
        precision=precision,
        cases=names,
        dice_per_case_and_class={name: tuple(dice[n] for n in names) for name, dice in by_class.items()},
    )


def _mean(values: Sequence[float]) -> float:
    """Return the mean of the values that are numbers; NaN without any."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan
