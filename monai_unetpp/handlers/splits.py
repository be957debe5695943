# SPDX-License-Identifier: Apache-2.0
"""Which scans a training was trained on: part of its checkpoint, compared later.

- SplitRecord: compared when a training is resumed
- held_out_cases: compared when held-out cases are scored
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist

from monai_unetpp.data import scan_names
from monai_unetpp.files import PathLike
from monai_unetpp.handlers.loading import latest_checkpoint
from monai_unetpp.weights import read_tensors

__all__ = ["SplitRecord", "held_out_cases"]

logger = logging.getLogger(__name__)

SPLIT = "split"  # its key in a training checkpoint
Cases = Sequence[dict[str, str]]


class SplitRecord:
    """Names of the training and the held-out scans, to be part of a training checkpoint.

    Args:
        split: Training cases and held-out cases, as :func:`~monai_unetpp.data.split_cases` returns them.
        folds: Number of folds of the cross-validation, if there is one.
        fold: Number of the fold that is held out.
        initial_weights: Path of the weights that the training starts from, if there are any: that they were
            trained on a scan that is held out now is a warning.
    """

    def __init__(
        self,
        split: tuple[Cases, Cases],
        folds: int | None = None,
        fold: int = 0,
        initial_weights: PathLike | None = None,
    ) -> None:
        self.train, self.held_out = _sides(split)
        self.fold = {} if folds is None else {"folds": folds, "fold": fold}
        record = _split_of(Path(initial_weights)) if initial_weights else None
        if record is not None and (moved := _moved(record, self.held_out)) and idist.get_rank() == 0:
            logger.warning(
                f"{initial_weights}: {moved} Train with {_of_that_training(record)}, unless these are other "
                "scans with the same names."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the names of both sides, and the fold if there is one, for ``load_state_dict``."""
        return {"train": self.train, "held_out": self.held_out, **self.fold}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Compare with the split of a checkpoint.

        Raises:
            ValueError: if it is another fold now, or a scan that was trained on is held out now.
        """
        before, now = _options(state_dict), _options(self.fold)
        if before != now:
            raise ValueError(
                f"this training was started with {before or 'no --folds'} and would be resumed with "
                f"{now or 'no --folds'}: resume with {before or 'no --folds'}, or start another one: "
                "--resume False --ckpt_dir FOLDER."
            )
        if moved := _moved(state_dict, self.held_out):
            raise ValueError(
                f"{moved} Resume with {_of_that_training(state_dict)}, "
                f"or start another one: --ckpt_dir FOLDER."
            )
        if added := len({*self.train, *self.held_out} - {*state_dict["train"], *state_dict["held_out"]}):
            logger.warning(f"The data set has {added} scans more than when this training was last saved.")


def held_out_cases(split: tuple[Cases, Cases], ckpt_path: PathLike) -> Cases:
    """Return the held-out cases, once it is clear that the weights were not trained on them.

    Compared is the split in the training checkpoint, which is the file itself, or the latest one in its
    folder; without one there is nothing to compare.

    Args:
        split: Training cases and held-out cases, as :func:`~monai_unetpp.data.split_cases` returns them.
        ckpt_path: Path of the weights.

    Raises:
        ValueError: if a scan that was trained on is held out now.
    """
    record = _split_of(Path(ckpt_path))
    if record is not None and (moved := _moved(record, _sides(split)[1])):
        raise ValueError(
            f"{ckpt_path}: {moved} Score with {_of_that_training(record)}. If "
            "these are other scans with the same names: --eval_cases '$@dataset.cases'."
        )
    return split[1]


def _split_of(path: Path) -> Mapping[str, Any] | None:
    """Return the split of the training that weights are of, or None if it is not known."""
    record = read_tensors(path).get(SPLIT) if path.suffix == ".pt" and path.is_file() else None
    if record is None and path.is_file():
        try:
            record = latest_checkpoint(path.parent)[1].get(SPLIT)
        except (FileNotFoundError, ValueError):
            return None  # weights without their training
    return record


def _sides(split: tuple[Cases, Cases]) -> tuple[list[str], list[str]]:
    train, held_out = split
    names = scan_names([*train, *held_out])
    return sorted({*names[: len(train)]}), sorted({*names[len(train) :]})


def _options(record: Mapping[str, Any]) -> str:
    """Return the fold as one types it, or nothing."""
    return f"--folds {record['folds']} --fold {record['fold']}" if record.get("folds") else ""


def _of_that_training(record: Mapping[str, Any]) -> str:
    """Return what a split depends on."""
    return f"{_options(record) or 'the val_fraction'}, the seed and the data set of that training"


def _moved(record: Mapping[str, Any], held_out: Sequence[str]) -> str:
    """Return what is wrong with the held-out scans of now, or nothing."""
    moved = sorted({*record["train"]} & {*held_out})
    if not moved:
        return ""
    more = f" and {len(moved) - 1} more" if len(moved) > 1 else ""
    verb = "were" if more else "was"
    return f"{moved[0]}{more} {verb} trained on and would be held out now, so that scores would be too good."
