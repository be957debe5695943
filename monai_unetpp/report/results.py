# SPDX-License-Identifier: Apache-2.0
"""What lies in the folder of a bundle, read back: plan, epochs and levels, of every fold."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from monai_unetpp.files import PathLike, read_csv
from monai_unetpp.levels import LevelScore, read_levels
from monai_unetpp.planning import Choice, Fingerprint, Plan

__all__ = ["EPOCHS", "Results", "read_results"]

EPOCHS, LEVELS = "epochs.csv", "levels.csv"
FOLD = re.compile(r"fold_(\d+)")

Found = TypeVar("Found")


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
        _present((fold, _levels(root / "levels" / fold)) for fold in folds),
        {fold: path for fold in folds if (path := root / "models" / fold / "model.pt").is_file()},
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


def _present(found: Iterable[tuple[str, Found | None]]) -> dict[str, Found]:
    return {fold: value for fold, value in found if value}


def _plan(path: Path) -> Plan:
    return Plan([Choice(key, each["value"], str(each["reason"])) for key, each in _json(path).items()])


def _epochs(path: Path) -> list[dict[str, float]]:
    rows = read_csv(path, "epoch", "train_loss")
    return [{name: float(cell) for name, cell in row.items() if cell} for row in rows]


def _levels(folder: Path) -> list[LevelScore] | None:
    return read_levels(folder) if (folder / LEVELS).is_file() else None
