# SPDX-License-Identifier: Apache-2.0
"""What lies in the folder of a bundle, read back: plan, epochs and levels, of every fold."""

from __future__ import annotations

import csv
import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from monai_unetpp.files import PathLike
from monai_unetpp.levels import LevelScore
from monai_unetpp.levels.score import METRICS
from monai_unetpp.planning import Choice, Fingerprint, Plan

__all__ = ["EPOCHS", "Results", "mean", "merge_levels", "read_results"]

EPOCHS, LEVELS, CASES = "epochs.csv", "levels.csv", "levels_cases.csv"
FOLD = re.compile(r"fold_(\d+)")

Found = TypeVar("Found")
Row = dict[str, str]


@dataclass(frozen=True)
class Results:
    """What was found in the folder of a bundle; what is missing is empty or None.

    Args:
        bundle: Folder of the bundle.
        fingerprint: What the data are like.
        plan: Settings with their reasons.
        folds: Number of folds of the cross-validation, if there is one.
        epochs: Fold, ``""`` without folds -> rows of ``epochs.csv``: column -> value, without empty ones.
        levels: Fold -> scores of the levels, with those of the cases if they were written.
        weights: Fold -> path of the best weights.
    """

    bundle: Path
    fingerprint: Fingerprint | None
    plan: Plan | None
    folds: int | None
    epochs: dict[str, list[dict[str, float]]]
    levels: dict[str, list[LevelScore]]
    weights: dict[str, Path]


def read_results(bundle: PathLike) -> Results:
    """Read what a plan, trainings and ``levels`` have written into the folder of a bundle.

    If there is a folder ``fold_0``, ``fold_1``, ... of any kind, only those of folds are read.

    Args:
        bundle: Folder of the bundle.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: if a file is damaged; the message names it.
    """
    root = Path(bundle)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder of a bundle.")
    names = {path.name for part in ("runs", "levels", "models") for path in (root / part).glob("fold_*")}
    folds = sorted((name for name in names if FOLD.fullmatch(name)), key=lambda name: int(name[5:])) or [""]
    splits = _read(root / "splits.json", lambda path: len(_json(path)))
    return Results(
        root,
        _read(root / "plan" / "fingerprint.json", lambda path: Fingerprint.from_json(_json(path))),
        _read(root / "plan" / "plan.json", _plan),
        None if folds == [""] else max(splits or 0, len(folds)),
        _present((fold, _read(root / "runs" / fold / EPOCHS, _epochs)) for fold in folds),
        _present((fold, _read(root / "levels" / fold / LEVELS, _levels)) for fold in folds),
        {fold: path for fold in folds if (path := root / "models" / fold / "model.pt").is_file()},
    )


def merge_levels(levels: Mapping[str, Sequence[LevelScore]]) -> list[LevelScore]:
    """Return the scores of all folds as one: the Dice of all held-out cases, else means over the folds.

    Args:
        levels: Fold -> scores of its levels. A level or a precision that not all folds have is left out.
    """
    by_key = [{(s.precision, s.level): s for s in scores} for scores in levels.values()]
    keys = [key for key in (by_key[0] if by_key else {}) if all(key in found for found in by_key)]
    return [_merged([found[key] for found in by_key]) for key in keys]


def mean(values: Iterable[float]) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    numbers = [value for value in values if not math.isnan(value)]
    return statistics.fmean(numbers) if numbers else math.nan


def _merged(scores: Sequence[LevelScore]) -> LevelScore:
    names = list(scores[0].dice_per_class)
    means: dict[str, Any] = {
        name: mean(getattr(s, name) for s in scores) for name in (*METRICS, "seconds", "peak_mib")
    }
    for metric in METRICS:
        by_class = [getattr(s, f"{metric}_per_class") for s in scores]
        means[f"{metric}_per_class"] = {
            name: mean(of.get(name, math.nan) for of in by_class) for name in names
        }
    columns = {
        name: tuple(value for s in scores for value in s.dice_per_case_and_class.get(name, ()))
        for name in names
    }
    per_case = tuple(value for s in scores for value in s.dice_per_case)
    if all(s.cases for s in scores):  # folds may differ in the number of their cases
        means["dice"] = mean(per_case)
        means["dice_per_class"] = {name: mean(values) for name, values in columns.items()}
    return LevelScore(
        level=scores[0].level,
        precision=scores[0].precision,
        parameters=scores[0].parameters,
        multiply_adds=scores[0].multiply_adds,
        **means,
        cases=tuple(case for s in scores for case in s.cases),
        dice_per_case=per_case,
        dice_per_case_and_class=columns,
    )


# Files


def _read(path: Path, how: Callable[[Path], Found]) -> Found | None:
    """Read a file; None if it is missing."""
    if not path.is_file():
        return None
    with _named(path):
        return how(path)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name a file in what its damage raises."""
    try:
        yield
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, csv.Error) as error:
        reason = error if type(error) is ValueError else repr(error)
        raise ValueError(f"{path} is damaged: {reason}. Restore it, or move it away.") from error


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _rows(path: Path, *columns: str) -> list[Row]:
    """Return the rows of a CSV file that has these columns."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, strict=True)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"it has no column {missing[0]}")
        rows = list(reader)
    if any(None in row or None in row.values() for row in rows):  # more or fewer cells than columns
        raise ValueError("a row does not have as many cells as the first one")
    return rows


def _present(found: Iterable[tuple[str, Found | None]]) -> dict[str, Found]:
    return {fold: value for fold, value in found if value}


def _plan(path: Path) -> Plan:
    return Plan([Choice(key, each["value"], str(each["reason"])) for key, each in _json(path).items()])


def _epochs(path: Path) -> list[dict[str, float]]:
    rows = _rows(path, "epoch", "train_loss")
    return [{name: float(cell) for name, cell in row.items() if cell} for row in rows]


def _levels(path: Path) -> list[LevelScore]:
    """Return the scores of ``levels.csv``, with those of ``levels_cases.csv`` beside it."""
    by_case = _read(path.with_name(CASES), _cases) or {}
    scores = []
    for row in _rows(path, "level", *METRICS, "parameters", "multiply_adds", "seconds", "peak_mib"):
        key = (int(row["level"]), row.get("precision", "float32"))
        found = by_case.get(key, {})
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
        scores.append(
            LevelScore(
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
        )
    return scores


def _cases(path: Path) -> dict[tuple[int, str], dict[str, dict[str, float]]]:
    """Return the Dice of every case and class by level and precision."""
    found: dict[tuple[int, str], dict[str, dict[str, float]]] = {}
    for row in _rows(path, "level", "precision", "case", "class", "dice"):
        key = (int(row["level"]), row["precision"])
        found.setdefault(key, {}).setdefault(row["case"], {})[row["class"]] = float(row["dice"])
    return found
