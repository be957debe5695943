# SPDX-License-Identifier: Apache-2.0
"""Reading the tables of ``write_levels``, so that folds are compared without scoring them again."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_unetpp.files import PathLike, read_csv
from monai_unetpp.levels.cases import METRICS
from monai_unetpp.levels.score import LevelScore

__all__ = ["mean", "pool_levels", "read_levels"]

ACCURACY = ("level", *METRICS, "parameters", "multiply_adds", "seconds", "peak_mib")  # columns
OF_CASES = ("level", "precision", "case", "class", "dice")
ByCase = Mapping[str, Mapping[str, float]]  # case -> class -> Dice


def read_levels(directory: PathLike) -> list[LevelScore]:
    """Return the scores of all levels from ``levels.csv``, with those of the cases of ``levels_cases.csv``.

    Args:
        directory: Folder that :func:`~monai_unetpp.levels.write_levels` wrote; one of earlier versions has no
            scores of cases.

    Raises:
        FileNotFoundError: if there is no ``levels.csv``.
        ValueError: if a table is damaged; the message names it.
    """
    table, by_case = (Path(directory) / name for name in ("levels.csv", "levels_cases.csv"))
    cases = _cases(by_case) if by_case.is_file() else {}
    rows = _rows(table, *ACCURACY)
    try:
        return [_score(row, cases) for row in rows]
    except (KeyError, ValueError, TypeError) as error:
        raise _damaged(table, error) from error


def pool_levels(folds: Sequence[Sequence[LevelScore]]) -> list[LevelScore]:
    """Return the scores of all folds as one.

    Dice are means over all held-out cases, or over the folds where the scores of cases are not known; all
    other values are means over the folds.

    Args:
        folds: Scores of the levels of each fold. A level or precision that not all folds have is left out.
    """
    by_key = [{(score.precision, score.level): score for score in scores} for scores in folds]
    keys = [key for key in (by_key[0] if by_key else {}) if all(key in found for found in by_key)]
    return [_pooled([found[key] for found in by_key]) for key in keys]


def mean(values: Iterable[float]) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    numbers = [value for value in values if not math.isnan(value)]
    return statistics.fmean(numbers) if numbers else math.nan


def _pooled(scores: Sequence[LevelScore]) -> LevelScore:
    names = list(scores[0].dice_per_class)
    found: dict[str, Any] = {
        name: mean(getattr(s, name) for s in scores) for name in (*METRICS, "seconds", "peak_mib")
    }
    for metric in METRICS:
        by_class = [getattr(s, f"{metric}_per_class") for s in scores]
        found[f"{metric}_per_class"] = {
            name: mean(of.get(name, math.nan) for of in by_class) for name in names
        }
    per_case = tuple(value for s in scores for value in s.dice_per_case)
    columns = {
        name: tuple(value for s in scores for value in s.dice_per_case_and_class.get(name, ()))
        for name in names
    }
    if all(s.cases for s in scores):  # folds may differ in the number of their cases
        found["dice"] = mean(per_case)
        found["dice_per_class"] = {name: mean(values) for name, values in columns.items()}
    return LevelScore(
        level=scores[0].level,
        precision=scores[0].precision,
        parameters=scores[0].parameters,
        multiply_adds=scores[0].multiply_adds,
        **found,
        cases=tuple(case for s in scores for case in s.cases),
        dice_per_case=per_case,
        dice_per_case_and_class=columns,
    )


def _score(row: Mapping[str, str], cases: Mapping[tuple[int, str], ByCase]) -> LevelScore:
    key = (int(row["level"]), row.get("precision", "float32"))
    found = cases.get(key, {})
    accuracy: dict[str, Any] = {metric: float(row[metric]) for metric in METRICS}
    accuracy |= {
        f"{metric}_per_class": {
            name.removeprefix(f"{metric} "): float(cell)
            for name, cell in row.items()
            if name.startswith(f"{metric} ")
        }
        for metric in METRICS
    }
    columns = {
        name: tuple(dice.get(name, math.nan) for dice in found.values())
        for name in accuracy["dice_per_class"]
    }
    return LevelScore(
        level=key[0],
        precision=key[1],
        **accuracy,
        dice_per_case=tuple(mean(dice.values()) for dice in found.values()),
        parameters=int(row["parameters"]),
        multiply_adds=int(row["multiply_adds"]),
        seconds=float(row["seconds"]),
        peak_mib=float(row["peak_mib"]),
        cases=tuple(found),
        dice_per_case_and_class=columns if found else {},
    )


def _cases(path: Path) -> dict[tuple[int, str], dict[str, dict[str, float]]]:
    """Return the Dice of every case and class by level and precision."""
    found: dict[tuple[int, str], dict[str, dict[str, float]]] = {}
    for row in _rows(path, *OF_CASES):
        try:
            key, dice = (int(row["level"]), row["precision"]), float(row["dice"])
        except ValueError as error:
            raise _damaged(path, error) from error
        found.setdefault(key, {}).setdefault(row["case"], {})[row["class"]] = dice
    return found


def _rows(path: Path, *columns: str) -> list[dict[str, str]]:
    try:
        return read_csv(path, *columns)
    except (ValueError, csv.Error) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = error if type(error) is ValueError else repr(error)
    return ValueError(f"{path} is damaged: {reason}. Restore it, or move it away and score the levels again.")
