# SPDX-License-Identifier: Apache-2.0
"""Training checkpoints: saving, resuming, and loading weights for an evaluation."""

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
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint
from monai.engines import SupervisedEvaluator
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from monai_unetpp.files import stale_parts
from monai_unetpp.handlers.atomic import EPOCH, AtomicSaver, epochs_in
from monai_unetpp.network import UNetPlusPlus
from monai_unetpp.record import make_record, write_record
from monai_unetpp.weights import check_fit, load_network, read_tensors

__all__ = ["CheckpointLoader", "CheckpointSaver", "NetworkLoader"]

logger = logging.getLogger(__name__)

SCALER = "scaler"


class CheckpointSaver(monai.handlers.CheckpointSaver):
    """MONAI's handler with atomic files, and with a state that can be part of a checkpoint itself.

    - Files are written atomically, and the replaced one is removed afterwards. A write that fails is retried,
      since network file systems fail now and then; the final error names the last good checkpoint.
    - As part of a checkpoint it tells a resumed training the best score so far.
    - In a resumed training, checkpoints of earlier epochs count towards ``n_saved``.
    - Weights that are not finite are never saved, and a score that is not finite is never the best.
    - The gradient scaler of a trainer with ``amp`` is saved as well.
    - The best weights get a record beside them.

    Args:
        *args: Arguments of ``monai.handlers.CheckpointSaver``.
        record: Fields of :class:`~monai_unetpp.record.Record` that the best weights are recorded with; by
            default there is no record.
        **settings: Further arguments of ``monai.handlers.CheckpointSaver``.
    """

    _key_metric_checkpoint: Any  # ignite's, or None
    _interval_checkpoint: Any

    def __init__(self, *args: Any, record: Mapping[str, Any] | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
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
        """Return the scores and file names of the best checkpoints, for ``load_state_dict``."""
        return dict(self._key_metric_checkpoint.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best scores, unless the best weights are missing or damaged."""
        fixed = self._key_metric_checkpoint.save_handler.filename
        if all(_is_readable(Path(self.save_dir) / (fixed or name)) for _, name in state_dict["_saved"]):
            super().load_state_dict(state_dict)

    def _write_record(self, path: Path) -> None:
        [network] = self.save_dict.values()
        network = network.module if isinstance(network, DistributedDataParallel) else network
        epoch, scores = self._scores
        write_record(path, make_record(path, network, self._record or {}, epoch, scores))

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
        found = epochs_in(Path(self.save_dir))
        self._interval_checkpoint._saved = [
            Checkpoint.Item(epoch, found[epoch].name) for epoch in sorted(found) if epoch <= epochs
        ]
        if found and max(found) > epochs:
            logger.warning(
                f"{self.save_dir} holds checkpoints of a longer training, {found[max(found)].name}: "
                "--resume True would continue from it. Remove them, or name another --ckpt_dir."
            )


class CheckpointLoader(monai.handlers.CheckpointLoader):
    """MONAI's handler, which accepts a folder as well, and has clear errors for files that do not fit.

    A ``LambdaLR`` continues with its current function, which may be for more epochs than before.

    Args:
        load_path: Path of a checkpoint, or of a folder: then the checkpoint of its last epoch, or of the one
            before if that file is damaged.
        **settings: Further arguments of ``monai.handlers.CheckpointLoader``.

    Raises:
        FileNotFoundError: if there is no file at ``load_path``, or no checkpoint of an epoch in the folder.
        ValueError: if the file holds anything but tensors and plain types, is damaged, lacks something
            asked for, or its weights do not fit the network.
    """

    def __call__(self, engine: Engine) -> None:
        """Load the checkpoint into the objects of ``load_dict``."""
        path = Path(self.load_path)
        if path.is_dir():
            path, checkpoint = _latest(path)
            self.load_path = str(path)
        else:
            checkpoint = read_tensors(path)
        single = len(self.load_dict) == 1 and next(iter(self.load_dict)) not in checkpoint
        if (scaler := getattr(engine, "scaler", None)) is not None and SCALER in checkpoint:
            self.load_dict = {**self.load_dict, SCALER: scaler}
        for name, target in self.load_dict.items():
            if not single and name not in checkpoint:
                raise ValueError(f"{path} has no {name!r}, only {', '.join(map(repr, checkpoint))}.")
            target = target.module if isinstance(target, DistributedDataParallel) else target
            if isinstance(target, nn.Module):
                check_fit(path, checkpoint if single else checkpoint[name], target)
        lengths = {e: e.state.epoch_length for e in self.load_dict.values() if isinstance(e, Engine)}
        super().__call__(engine)
        for (
            loaded,
            length,
        ) in lengths.items():  # of the current data: batch size and number of processes may have changed
            if loaded.state.epoch_length != length:
                loaded.state.epoch_length = length
                loaded.state.iteration = loaded.state.epoch * (length or 0)
        for target in self.load_dict.values():
            if isinstance(target, LambdaLR):
                for group, rate, factor in zip(
                    target.optimizer.param_groups, target.base_lrs, target.lr_lambdas, strict=True
                ):
                    group["lr"] = rate * factor(target.last_epoch)


class NetworkLoader:
    """Load the network of an evaluator when it starts; see :func:`~monai_unetpp.load_network`.

    Args:
        path: Path of the weights, or of an ``.onnx`` file.
        network: Network as it was trained.
        level: Level that evaluation computes; by default the deepest one of the weights.
        runtime: Runtime of an ``.onnx`` file.
    """

    def __init__(
        self, path: str, network: UNetPlusPlus, level: int | None = None, runtime: str | None = None
    ) -> None:
        self.path = path
        self.network = network
        self.level = level
        self.runtime = runtime

    def attach(self, engine: Engine) -> None:
        """Attach to a MONAI evaluator."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: SupervisedEvaluator) -> None:
        """Replace the evaluator's network; errors are those of ``load_network``."""
        engine.network = load_network(self.network, self.path, self.level, engine.state.device, self.runtime)
        logger.info(f"Loaded {self.path}{_level_of(engine.network)}.")


def _latest(directory: Path) -> tuple[Path, Mapping[str, Any]]:
    """Return the last checkpoint of an epoch, ``checkpoint_epoch=N.pt``, that is not damaged."""
    found = epochs_in(directory)
    if not found:
        raise FileNotFoundError(f"nothing to resume: {directory.absolute()} holds no checkpoint_epoch=*.pt.")
    for epoch in sorted(found, reverse=True):
        try:
            return found[epoch], read_tensors(found[epoch])
        except ValueError as error:
            if epoch == min(found):
                raise
            logger.warning(f"{error} Trying the previous one.")
    raise AssertionError("one is read, or raises")


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


def _level_of(network: nn.Module) -> str:
    return f", L{network.level}" if isinstance(network, UNetPlusPlus) else ""
