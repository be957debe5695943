# SPDX-License-Identifier: Apache-2.0
"""Training and scoring of one fold; what is done already is told by its files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_unetpp.bundle import run_workflow
from monai_unetpp.data import fold_folder
from monai_unetpp.handlers.atomic import checkpoints_in
from monai_unetpp.weights import read_record

__all__ = ["Training"]


@dataclass(frozen=True)
class Training:
    """One training of a bundle: that of a fold, or the only one.

    Args:
        bundle: Folder of the bundle.
        folds: Number of folds; None without a cross-validation.
        fold: Number of this one, from 0 on.
        device: Such as ``"cuda:1"``; default a GPU if there is one.
        finetune: Path of the weights that it starts from; default random ones.
    """

    bundle: Path
    folds: int | None = None
    fold: int = 0
    device: str | None = None
    finetune: Path | None = None

    @property
    def name(self) -> str:
        """What it is called on the console."""
        return "" if self.folds is None else f"Fold {self.fold} of {self.folds}: "

    @property
    def weights(self) -> Path:
        """Path of the best weights."""
        return self._folder("models") / "model.pt"

    @property
    def levels(self) -> Path:
        """Folder of the scores by level."""
        return self._folder("levels")

    @property
    def epochs(self) -> int:
        """Number of epochs, as the bundle has them."""
        return int(json.loads((self.bundle / "train.json").read_text(encoding="utf-8"))["max_epochs"])

    @property
    def device_settings(self) -> dict[str, Any]:
        """The device as a setting of a configuration; empty for the default."""
        return {} if self.device is None else {"device": f"$torch.device({self.device!r})"}

    def is_trained(self) -> bool:
        """Whether the training has come to its end, and left weights."""
        return max(self._checkpoints(), default=0) >= self.epochs and self.weights.is_file()

    def is_scored(self) -> bool:
        """Whether the levels are scored, and the choice is written beside the weights."""
        record = read_record(self.weights)
        return record is not None and record.level is not None and (self.levels / "levels.md").is_file()

    def train(self) -> None:
        """Train from the start, or from the last checkpoint; errors are those of a training."""
        # Without a checkpoint, weights are those of an epoch that was not completed: they are moved aside.
        resume = bool(self._checkpoints())
        start = {} if resume or self.finetune is None else {"finetune": str(self.finetune)}
        options = {"resume": resume, "previous_training": "keep", **start}
        run_workflow("train", self.bundle, settings={**self._settings(), **options})

    def score(self, formats: list[str]) -> None:
        """Score the levels, choose one, and export it; a run that was stopped is replaced."""
        run_workflow(
            "levels", self.bundle, settings={**self._settings(), "overwrite": True, "formats": formats}
        )

    def _checkpoints(self) -> dict[int, Path]:
        return checkpoints_in(self.weights.parent)

    def _folder(self, name: str) -> Path:
        return Path(f"{self.bundle / name}{fold_folder(self.folds, self.fold)}")

    def _settings(self) -> dict[str, Any]:
        of_fold = {} if self.folds is None else {"folds": self.folds, "fold": self.fold}
        return {**of_fold, **self.device_settings}
