# SPDX-License-Identifier: Apache-2.0
"""Writing training checkpoints: atomic, tried again, and never with weights that are not finite."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import monai.handlers
from ignite.engine import Engine
from ignite.handlers import Checkpoint

from monai_unetpp.files import stale_parts
from monai_unetpp.handlers.atomic import EPOCH, AtomicSaver, checkpoints_in
from monai_unetpp.network import unwrap
from monai_unetpp.weights import make_record, plain, read_tensors, write_record

__all__ = ["CheckpointSaver"]

logger = logging.getLogger(__name__)

SCALER = "scaler"
START = "initial_weights"  # field of the record that a resumed training does not know by itself


class CheckpointSaver(monai.handlers.CheckpointSaver):
    """MONAI's handler with atomic files, and with a state that can be part of a checkpoint itself.

    - Files are written atomically, and the replaced one is removed afterwards. A write that fails is retried,
      since network file systems fail now and then; the final error names the last good checkpoint.
    - As part of a checkpoint it tells a resumed training the best score so far, and the weights that the
      training started from, which belong in the record.
    - In a resumed training, checkpoints of earlier epochs count towards ``n_saved``.
    - Weights that are not finite are never saved, and a score that is not finite is never the best.
    - The gradient scaler of a trainer with ``amp`` is saved as well.
    - Compiled and parallel networks are saved without the prefix of their wrapper.
    - The best weights get a record beside them.

    Args:
        save_dir: Folder of the checkpoints.
        save_dict: Name -> object to save.
        *args: Further arguments of ``monai.handlers.CheckpointSaver``.
        record: Fields of :class:`~monai_unetpp.weights.Record` that the best weights are recorded with; by
            default there is no record.
        **settings: Further arguments of ``monai.handlers.CheckpointSaver``.
    """

    _key_metric_checkpoint: Any  # ignite's, or None
    _interval_checkpoint: Any

    def __init__(
        self,
        save_dir: str,
        save_dict: Mapping[str, Any],
        *args: Any,
        record: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        save_dict = {name: unwrap(target, keep_average=True) for name, target in save_dict.items()}
        super().__init__(save_dir, save_dict, *args, **settings)
        self._record = record
        self._scores: tuple[int, dict[str, float]] = (0, {})
        checkpoints: list[Any] = [
            self._final_checkpoint,
            self._key_metric_checkpoint,
            self._interval_checkpoint,
        ]
        for checkpoint in filter(None, checkpoints):
            name = checkpoint.save_handler.filename
            checkpoint.save_handler = AtomicSaver(Path(self.save_dir), name, self.save_dict)
        if record is not None and self._key_metric_checkpoint is not None:
            self._key_metric_checkpoint.save_handler.saved_as = self._write_record
        self._knows_earlier = False

    def attach(self, engine: Engine) -> None:
        """Attach to an engine, and make the best metric part of its state."""
        super().attach(engine)
        if self._key_metric_checkpoint is not None:
            engine.state_dict_user_keys.extend(["best_metric", "best_metric_epoch"])
        if (scaler := getattr(engine, "scaler", None)) is not None:
            self.save_dict[SCALER] = scaler

    def metrics_completed(self, engine: Engine) -> None:
        """Save if the score is finite and the best one."""
        state: Any = engine.state
        name = state.key_metric_name
        if not math.isfinite(state.metrics[name]):
            logger.warning(f"{name} is {state.metrics[name]}: these weights are not the best ones.")
            return
        metrics = {key: float(value) for key, value in state.metrics.items() if _is_number(value)}
        self._scores = state.epoch, metrics
        super().metrics_completed(engine)

    def interval_completed(self, engine: Engine) -> None:
        """Save the completed epoch."""
        self._count_earlier(engine.state.epoch - 1)
        super().interval_completed(engine)

    def save_within_epoch(self, engine: Engine) -> None:
        """Save within an epoch, in place of the checkpoint of the last completed one."""
        epochs = engine.state.epoch - 1
        self._count_earlier(epochs)
        checkpoint = {name: target.state_dict() for name, target in self.save_dict.items()}
        self._interval_checkpoint.save_handler(checkpoint, EPOCH.format(epochs))

    def state_dict(self) -> dict[str, Any]:
        """Return the scores and file names of the best checkpoints, and the initial weights of the record."""
        start = (self._record or {}).get(START)
        return {**self._key_metric_checkpoint.state_dict(), **({START: plain(start)} if start else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best scores, unless the best weights are missing or damaged."""
        if self._record is not None:
            self._record = {**self._record, START: state_dict.get(START)}
        fixed = self._key_metric_checkpoint.save_handler.filename
        if all(_is_readable(Path(self.save_dir) / (fixed or name)) for _, name in state_dict["_saved"]):
            super().load_state_dict(state_dict)

    def best_score(self) -> float | None:
        """Return the score of the best weights that are saved."""
        saved = self._key_metric_checkpoint._saved
        return float(saved[-1].priority) if saved else None

    def best_path(self) -> Path:
        """Return the path of the best weights."""
        return Path(self.save_dir) / self._key_metric_checkpoint.save_handler.filename

    def _write_record(self, path: Path) -> None:
        [network] = self.save_dict.values()
        epoch, scores = self._scores
        write_record(path, make_record(path, unwrap(network), self._record or {}, epoch, scores))

    def _count_earlier(self, epochs: int) -> None:
        """Count checkpoints of the first ``epochs``; warn of later ones, which are of another training.

        Stale parts are removed, since two trainings do not share a folder.
        """
        if self._knows_earlier:
            return
        self._knows_earlier = True
        if idist.get_rank() == 0:
            for part in chain.from_iterable(stale_parts(self.save_dir).values()):
                shutil.rmtree(part, ignore_errors=True)
        found = checkpoints_in(Path(self.save_dir))
        self._interval_checkpoint._saved = [
            Checkpoint.Item(epoch, found[epoch].name) for epoch in sorted(found) if epoch <= epochs
        ]
        if found and max(found) > epochs:
            logger.warning(
                f"{self.save_dir} holds checkpoints of a longer training, {found[max(found)].name}: "
                "--resume True would continue from it. Remove them, or name another --ckpt_dir."
            )


def _is_readable(path: Path) -> bool:
    try:
        read_tensors(path)
    except (OSError, ValueError):
        return False
    return True


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
