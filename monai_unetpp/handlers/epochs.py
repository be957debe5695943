# SPDX-License-Identifier: Apache-2.0
"""Loss and Dice of every epoch as a table, a CSV file that depends on no other program."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.metrics import compute_dice

from monai_unetpp.files import PathLike, write_csv

__all__ = ["EpochTable"]

TRAIN, VALIDATION, BY_CLASS = ("train_loss", "train_mean_dice"), "val_mean_dice", "val_dice_"

logger = logging.getLogger(__name__)


class EpochTable:
    """Write loss and Dice of every epoch to ``log_dir/epochs.csv``, atomically, in the first process.

    The columns are ``epoch``, ``train_loss``, ``train_mean_dice``, ``val_mean_dice`` and ``val_dice_NAME``
    for each class; those of the validation are empty in epochs without one, and ``nan`` where no case has the
    class. Loss and Dice of training are means over the steps and the patches of the epoch; a loss that is not
    finite, whose step is skipped, is left out.

    The rows are part of the training checkpoint, with the sums of an epoch that was stopped within: a resumed
    training continues without a gap, and from an older checkpoint without the epochs that came later. Of
    several processes that were stopped within an epoch, the sums are those of the first.

    Args:
        log_dir: Folder of the CSV file, made if it does not exist.
        evaluator: Evaluator with the metrics ``val_mean_dice`` and ``val_dice_NAME``.
        class_labels: Names of the classes without the background.
        rank: Rank of this process; only the first writes.
    """

    def __init__(
        self, log_dir: PathLike, evaluator: Engine, class_labels: Sequence[str], rank: int = 0
    ) -> None:
        self.path = Path(log_dir) / "epochs.csv"
        self.evaluator = evaluator
        self.rank = rank
        self.columns = ["epoch", *TRAIN, VALIDATION, *(BY_CLASS + name for name in class_labels)]
        self.rows: list[dict[str, float]] = []  # column -> value, without those that are empty
        self._sums = torch.zeros(4, dtype=torch.float64)  # of the losses, their number; of the Dice, likewise
        self._loaded = False
        self._validation: dict[str, float] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, after the handler that validates and before the one that saves.

        The trainer's ``pred`` and ``label`` are one-hot, (K, *spatial) each.
        """
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._complete)
        self.evaluator.add_event_handler(Events.COMPLETED, self._remember)

    def state_dict(self) -> dict[str, Any]:
        """Return the rows, and the sums of the epoch that has begun, for ``load_state_dict``."""
        return {"rows": [dict(row) for row in self.rows], "sums": self._sums.tolist()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the rows and the sums."""
        self.rows = [dict(row) for row in state_dict["rows"]]
        self._sums = torch.tensor(state_dict["sums"], dtype=torch.float64)
        self._loaded = True

    def _begin(self) -> None:
        if not self._loaded:
            self._sums = torch.zeros(4, dtype=torch.float64)
        self._loaded, self._validation = False, {}

    def _add(self, engine: Engine) -> None:
        """Add the loss of a step, and the Dice of its patches that have a class but the background."""
        items: Any = engine.state.output
        loss = torch.as_tensor(items[0]["loss"]).detach()
        pairs = [[torch.as_tensor(item[key])[None] for key in ("pred", "label")] for item in items]
        dice = [compute_dice(pred, label, include_background=False).nanmean() for pred, label in pairs]
        values = torch.stack([loss.float(), *dice]).cpu().double()
        for n, some in enumerate((values[:1], values[1:])):
            finite = some[torch.isfinite(some)]
            self._sums[2 * n : 2 * n + 2] += torch.stack([finite.sum(), torch.tensor(len(finite))])

    def _complete(self, engine: Engine) -> None:
        sums = self._sums
        if idist.get_world_size() > 1:
            sums = torch.as_tensor(idist.all_reduce(sums.to(idist.device()))).cpu()
        self._sums = torch.zeros(4, dtype=torch.float64)
        epoch = engine.state.epoch
        means = [float(total / count) if count else math.nan for total, count in sums.reshape(2, 2)]
        row = {"epoch": epoch, **dict(zip(TRAIN, means, strict=True)), **self._validation}
        self.rows = [*(row for row in self.rows if row["epoch"] < epoch), row]
        if self.rank == 0:
            self._write()

    def _remember(self, engine: Engine) -> None:
        """Keep the scores of a validation until its epoch is complete."""
        metrics = engine.state.metrics
        self._validation = {
            name: float(metrics[name]) for name in self.columns if name in metrics and name not in TRAIN
        }

    def _write(self) -> None:
        rows = [{name: _cell(row.get(name)) for name in self.columns} for row in self.rows]
        try:
            write_csv(self.path, rows)
        except OSError as error:  # the next epoch writes all rows again
            logger.warning(f"{self.path} could not be written: {error}")


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
