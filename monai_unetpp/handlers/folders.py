# SPDX-License-Identifier: Apache-2.0
"""One training per folder: a second one neither replaces the weights of the first nor mixes its curves."""

from __future__ import annotations

import logging
import shutil
from itertools import count
from pathlib import Path

from monai_unetpp.files import PathLike, atomic_directory
from monai_unetpp.handlers.atomic import checkpoints_in
from monai_unetpp.weights import record_path

__all__ = ["check_training_folder"]

logger = logging.getLogger(__name__)

PREVIOUS = ("refuse", "keep")
EVENTS, TABLE = "events.out.tfevents.*", "epochs.csv"
EMPTY_EVENTS_BYTES = 128  # TensorBoard writes 88 when it opens a file


def check_training_folder(
    ckpt_dir: PathLike,
    log_dir: PathLike,
    resume: bool = False,
    rank: int = 0,
    weights: str = "model.pt",
    previous: str = "refuse",
) -> None:
    """Refuse a folder that holds a training, and give the curves of a new training a folder of their own.

    Curves and ``epochs.csv`` in ``log_dir`` whose training is not in ``ckpt_dir`` are moved to ``log_dir/1``,
    or the next free number, where TensorBoard shows them as another run.

    Args:
        ckpt_dir: Folder of weights and training checkpoints.
        log_dir: Folder of TensorBoard's files.
        resume: Whether the training in ``ckpt_dir`` is to be resumed: then nothing is checked.
        rank: Rank of this process; only the first moves files.
        weights: File name of the best weights.
        previous: What becomes of weights that are there: ``"refuse"`` raises. ``"keep"`` moves all files to
            ``ckpt_dir/1``, or the next free number, and leaves a copy of the weights and their record, which
            the new training replaces: a packed bundle, which MONAI Label trains again and again, has its
            weights where it trains.

    Raises:
        FileExistsError: if ``ckpt_dir`` holds a training and ``previous`` is ``"refuse"``, with what resumes
            it and what leaves it alone.
        ValueError: if ``previous`` is another word.
    """
    if previous not in PREVIOUS:
        raise ValueError(f"previous must be one of {', '.join(PREVIOUS)}, got {previous}.")
    if resume:
        return
    ckpt_dir, log_dir = Path(ckpt_dir), Path(log_dir)
    found = checkpoints_in(ckpt_dir)
    path = found[max(found)] if found else ckpt_dir / weights
    if path.exists():
        if previous == "refuse":
            resumes = "--resume True resumes it. " if found else ""
            raise FileExistsError(
                f"ckpt_dir holds a training: {path}. {resumes}To keep it and train anew, name another "
                f"folder, --ckpt_dir {_free(ckpt_dir)} --log_dir {_free(log_dir)}, or move it: "
                f"mv {ckpt_dir} {_free(ckpt_dir)}"
            )
        if rank == 0:
            _keep(ckpt_dir, ckpt_dir / weights)
    curves = [path for path in sorted(log_dir.glob(EVENTS)) if path.stat().st_size > EMPTY_EVENTS_BYTES]
    curves += log_dir.glob(TABLE)
    if curves and rank == 0:
        folder = _numbered(log_dir)
        folder.mkdir()
        for path in curves:
            path.rename(folder / path.name)
        logger.warning(f"{log_dir} had the curves of another training: they are in {folder} now.")


def _keep(ckpt_dir: Path, weights: Path) -> None:
    """Copy all files of a folder to a numbered one in it, and leave only the weights and their record."""
    files = [path for path in sorted(ckpt_dir.iterdir()) if path.is_file()]
    folder = _numbered(ckpt_dir)
    with atomic_directory(folder) as part:
        for path in files:
            shutil.copy2(path, part)
    for path in files:  # only now, so that an interruption loses nothing
        if path not in (weights, record_path(weights)):
            path.unlink()
    logger.warning(f"{weights} will be replaced by this training: what was there is in {folder}, too.")


def _numbered(folder: Path) -> Path:
    """Return the first path in a folder that does not exist, of 1, 2, ..."""
    return next(folder / str(n) for n in count(1) if not (folder / str(n)).exists())


def _free(folder: Path) -> Path:
    """Return a path beside a folder that does not exist: its name and a number."""
    numbered = (folder.with_name(f"{folder.name}_{n}") for n in count(2))
    return next(path for path in numbered if not path.exists())
