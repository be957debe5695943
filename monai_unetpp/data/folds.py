# SPDX-License-Identifier: Apache-2.0
"""The folds of a cross-validation: their folders, and the JSON that all of them share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeGuard

from monai_unetpp.files import PathLike, atomic_write

__all__ = ["Fold", "check_folds", "fold_folder", "keep_folds"]

Fold = dict[str, list[str]]  # "train" and "val": names of scans


def check_folds(folds: int | None, fold: int = 0) -> None:
    """Raise a ValueError unless ``fold`` is one of ``folds``, or neither is given."""
    if folds is None:
        if fold != 0:
            works = f": --folds {max(5, fold + 1)} --fold {fold} would work" if _is_whole(fold) else ""
            raise ValueError(f"fold must be left out without folds, got {fold!r}{works}.")
        return
    if not _is_whole(folds) or folds < 2:
        raise ValueError(f"folds must be a whole number from 2 on, got {folds!r}: --folds 5 would work.")
    if not _is_whole(fold) or not 0 <= fold < folds:
        raise ValueError(
            f"fold must be a whole number from 0 to {folds - 1} with folds {folds}, got {fold!r}: "
            f"--fold {folds - 1} is the last one."
        )


def fold_folder(folds: int | None, fold: int = 0) -> str:
    """Return the end of a path that keeps the files of a fold apart; it is empty without folds.

    Args:
        folds: Number of folds of a cross-validation, if there is one.
        fold: Number of the fold, from 0 on.

    Raises:
        ValueError: if there is no such fold, or ``fold`` is given without ``folds``.

    Example:
        >>> fold_folder(5, 2)
        '/fold_2'
    """
    check_folds(folds, fold)
    return "" if folds is None else f"/fold_{fold}"


def keep_folds(path: PathLike, folds: Sequence[Fold], seed: int, write: bool = True) -> None:
    """Write the folds of a cross-validation once, and compare them from then on.

    Two trainings may start at the same moment: the file is written atomically, and whoever comes second
    compares.

    Args:
        path: Path of the JSON.
        folds: Folds of now, as :func:`~monai_unetpp.data.deal_folds` returns them.
        seed: Seed of now, for the message.
        write: Whether the JSON is written if it does not exist.

    Raises:
        ValueError: if the JSON holds other folds, or is damaged; the message says what differs.
    """
    path = Path(path)
    if write and not path.exists():
        with suppress(FileExistsError), atomic_write(path, overwrite=False) as part:
            part.write_text(json.dumps(folds, indent=4) + "\n", encoding="utf-8")
    if not path.exists():
        return
    before = _read(path)
    if before == [{side: sorted(fold[side]) for side in ("train", "val")} for fold in folds]:
        return
    differs, works = _difference(before, folds, seed)
    raise ValueError(
        f"{path} holds other folds: {differs}. Continue with {works}, or, to start another cross-validation, "
        "move the file and the folders fold_* away, or name others: --splits_path FILE --ckpt_dir FOLDER "
        "--log_dir FOLDER."
    )


def _read(path: Path) -> list[Fold]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return [{side: sorted(map(str, fold[side])) for side in ("train", "val")} for fold in found]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} must be a list of folds, each with train and val, and is damaged: {error!r}. Restore "
            "it, or move it away: the same seed, folds and data set write the same file again."
        ) from error


def _difference(before: Sequence[Fold], now: Sequence[Fold], seed: int) -> tuple[str, str]:
    """Return what differs, and what to continue with."""
    if len(before) != len(now):
        return f"{len(before)} folds, not {len(now)}", f"--folds {len(before)}"
    there, here = ({name for fold in folds for name in fold["val"]} for folds in (before, now))
    changes = [
        f"{sorted(names)[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''} {what}"
        for names, what in ((here - there, "not in the file"), (there - here, "not in the data set"))
        if names
    ]
    if changes:
        return (
            f"{len(there)} scans, the data set has {len(here)}: {', '.join(changes)}",
            "the data set of the file",
        )
    return f"the same scans, dealt out otherwise than by seed {seed}", "the seed of the file"


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
