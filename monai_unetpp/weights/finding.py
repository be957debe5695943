# SPDX-License-Identifier: Apache-2.0
"""Finding weights: those of a training before those that ship; those of folds are named, not chosen."""

from __future__ import annotations

import re
from pathlib import Path

from monai_unetpp.files import PathLike, first_existing

__all__ = ["find_weights", "other_folds"]

FOLD = re.compile(r"fold_(\d+)")  # name of the folder that a fold is trained in


def find_weights(trained: PathLike, *shipped: PathLike) -> str:
    """Return the path of the weights of a training, or else of those that come with the bundle.

    Args:
        trained: Path of the weights that a training writes.
        *shipped: Further paths, of which the first that exists is taken.

    Returns:
        The path, that of ``trained`` if no file exists: opening it gives a clear error.

    Raises:
        FileNotFoundError: if only folds of a cross-validation were trained: which of them to use, and not
            what ships, is the user's choice.
    """
    there = [] if Path(trained).exists() else other_folds(trained)
    if there:
        raise FileNotFoundError(
            f"no weights at {trained}: only folds were trained, {', '.join(map(str, there))}. Name one: "
            f"--checkpoint {there[0]} (with monai.bundle --ckpt_path {there[0]})."
        )
    return first_existing(trained, *shipped)


def other_folds(path: PathLike) -> list[Path]:
    """Return the existing files of the same name that other folds, or a training without folds, wrote.

    Args:
        path: Path of weights, in ``models`` or in the folder of a fold, ``models/fold_0``.
    """
    path = Path(path)
    models = path.parent.parent if FOLD.fullmatch(path.parent.name) else path.parent
    folds = [(int(found[1]), each) for each in models.glob("fold_*") if (found := FOLD.fullmatch(each.name))]
    places = [models, *(folder for _, folder in sorted(folds))]
    return [each / path.name for each in places if (each / path.name).is_file() and each != path.parent]
