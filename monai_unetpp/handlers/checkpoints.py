# SPDX-License-Identifier: Apache-2.0
"""Saving and loading: what a resumed training and an evaluation start from."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import monai.handlers
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint
from ignite.handlers.checkpoint import BaseSaveHandler
from monai.engines import SupervisedEvaluator
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from monai_unetpp.files import atomic_write, save_by_memory, stale_parts
from monai_unetpp.network import UNetPlusPlus
from monai_unetpp.weights import check_fit, load_network, read_checkpoint

__all__ = ["CheckpointLoader", "CheckpointSaver", "NetworkLoader"]

logger = logging.getLogger(__name__)

EPOCH = "checkpoint_epoch={}.pt"
SCALER = "scaler"
WAITS = (1, 5)  # seconds between tries to write a checkpoint


class CheckpointSaver(monai.handlers.CheckpointSaver):
    """MONAI's handler, which loses nothing, and can be part of a checkpoint itself.

    - A file appears whole or not at all, and what it replaces goes afterwards. If it cannot be written, it
      is tried again, since file systems of a network fail now and then; then the error says where to go on.
    - As part of a checkpoint it lets a resumed training know the best score it has to beat.
    - Checkpoints of the epochs before count among ``n_saved`` in a resumed training, too.
    - Weights that are not finite are never saved, and a score that is not finite is never the best.
    - The scaler of a trainer with ``amp`` is saved with the rest.
    """

    _key_metric_checkpoint: Any  # ignite's, or None
    _interval_checkpoint: Any

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        checkpoints: list[Any] = [
            self._final_checkpoint,
            self._key_metric_checkpoint,
            self._interval_checkpoint,
        ]
        for checkpoint in filter(None, checkpoints):
            name = checkpoint.save_handler.filename
            checkpoint.save_handler = _WholeFiles(Path(self.save_dir), name, self.save_dict)
        self._knows_earlier = False

    def attach(self, engine: Engine) -> None:
        """Attach to an engine, whose best metric becomes part of its state."""
        super().attach(engine)
        if self._key_metric_checkpoint is not None:
            engine.state_dict_user_keys.extend(["best_metric", "best_metric_epoch"])
        if (scaler := getattr(engine, "scaler", None)) is not None:
            self.save_dict[SCALER] = scaler

    def metrics_completed(self, engine: Engine) -> None:
        """Save if the score is the best one, and a number."""
        state: Any = engine.state
        name = state.key_metric_name
        if not math.isfinite(state.metrics[name]):
            logger.warning(f"{name} is {state.metrics[name]}: these weights are not the best ones.")
            return
        super().metrics_completed(engine)

    def interval_completed(self, engine: Engine) -> None:
        """Save the epoch that is over."""
        self._count_earlier(engine.state.epoch - 1)
        super().interval_completed(engine)

    def save_within_epoch(self, engine: Engine) -> None:
        """Save an epoch that is begun, in the place of the one before."""
        epochs = engine.state.epoch - 1
        self._count_earlier(epochs)
        checkpoint = {name: target.state_dict() for name, target in self.save_dict.items()}
        self._interval_checkpoint.save_handler(checkpoint, EPOCH.format(epochs))

    def state_dict(self) -> dict[str, Any]:
        """Return the scores and file names of the best checkpoints, for ``load_state_dict``."""
        return dict(self._key_metric_checkpoint.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the scores to beat; there are none if the best weights are gone or damaged."""
        fixed = self._key_metric_checkpoint.save_handler.filename
        if all(_is_whole(Path(self.save_dir) / (fixed or name)) for _, name in state_dict["_saved"]):
            super().load_state_dict(state_dict)

    def _count_earlier(self, epochs: int) -> None:
        """Let files of this training's first ``epochs`` make room for new ones; warn of those of another.

        What a process left that was killed while it wrote is removed: two trainings do not share a folder.
        """
        if self._knows_earlier:
            return
        self._knows_earlier = True
        if idist.get_rank() == 0:
            for part in chain.from_iterable(stale_parts(self.save_dir).values()):
                shutil.rmtree(part, ignore_errors=True)
        found = _epochs(Path(self.save_dir))
        self._interval_checkpoint._saved = [
            Checkpoint.Item(epoch, found[epoch].name) for epoch in sorted(found) if epoch <= epochs
        ]
        if found and max(found) > epochs:
            logger.warning(
                f"{self.save_dir} holds checkpoints of a longer training, {found[max(found)].name}: "
                "--resume True would go on from those. Remove them, or name another --ckpt_dir."
            )


class _WholeFiles(BaseSaveHandler):
    """Write checkpoints into a folder, each whole or not at all, by the first process.

    Args:
        folder: to write into.
        filename: of the only file; default as many as are asked for.
        saved: what is saved, by name.
    """

    def __init__(self, folder: Path, filename: str | None, saved: Mapping[str, Any]) -> None:
        self.folder = folder
        self.filename = filename
        self.saved = saved

    @idist.one_rank_only()
    def __call__(self, checkpoint: Any, filename: str, metadata: Any = None) -> None:  # noqa: ARG002
        path = self.folder / (self.filename or filename)
        self._check_finite(path)
        for wait in (*WAITS, None):
            try:
                with atomic_write(path) as part:
                    save_by_memory(part, partial(torch.save, checkpoint))
                return
            except OSError as error:
                if wait is None:
                    raise OSError(
                        f"{path} could not be saved: {error.strerror or error}. --ckpt_dir names another "
                        f"folder. {self._last_good()}"
                    ) from error
                logger.warning(f"{path} could not be saved: {error}. Trying again in {wait} s.")
                time.sleep(wait)

    @idist.one_rank_only()
    def remove(self, filename: str) -> None:
        """Remove a file; the only one is replaced by the next."""
        if self.filename is None:
            (self.folder / filename).unlink(missing_ok=True)

    def _check_finite(self, path: Path) -> None:
        for name, target in self.saved.items():
            wrong = [
                key
                for key, value in (target.state_dict() if isinstance(target, nn.Module) else {}).items()
                if not torch.isfinite(value).all()
            ]
            if wrong:
                raise ValueError(
                    f"{path} is not saved: {name} is not finite in {wrong[0]} and {len(wrong) - 1} more. "
                    f"{self._last_good()}"
                )

    def _last_good(self) -> str:
        found = _epochs(self.folder)
        return f"--resume True goes on from {found[max(found)]}." if found else "No epoch was saved yet."


class CheckpointLoader(monai.handlers.CheckpointLoader):
    """MONAI's handler; takes a folder, too, and says what is wrong with a file that does not fit.

    A ``LambdaLR`` goes on with its function as it is now, which may know of more epochs than before.

    Args:
        load_path: a checkpoint, or a folder: then that of the last epoch in it; if that was being written
            when the machine stopped, the one before.
        **settings: of ``monai.handlers.CheckpointLoader``.

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
            checkpoint = read_checkpoint(path)
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
        for loaded, length in lengths.items():  # of the data of now: another batch size, another rank
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
    """Give an evaluator, when it starts, a trained network: the whole, a level of it, or an exported one.

    Args:
        path: see :func:`~monai_unetpp.load_network`, as for the next three.
        network: as it was trained.
        level: that evaluation computes; default the deepest that the weights have.
        runtime: of an ``.onnx`` file.
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
        """Put the network in its place; errors are those of ``load_network``."""
        engine.network = load_network(self.network, self.path, self.level, engine.state.device, self.runtime)
        logger.info(f"Loaded {self.path}{_level_of(engine.network)}.")


def _latest(directory: Path) -> tuple[Path, Mapping[str, Any]]:
    """Return the checkpoint of the last epoch, ``checkpoint_epoch=N.pt``, that is whole."""
    found = _epochs(directory)
    if not found:
        raise FileNotFoundError(f"nothing to resume: {directory.absolute()} holds no checkpoint_epoch=*.pt.")
    for epoch in sorted(found, reverse=True):
        try:
            return found[epoch], read_checkpoint(found[epoch])
        except ValueError as error:
            if epoch == min(found):
                raise
            logger.warning(f"{error} Trying the one before.")
    raise AssertionError("one is read, or raises")


def _epochs(directory: Path) -> dict[int, Path]:
    """The checkpoints of epochs in a folder."""
    return {int(path.stem.split("=")[1]): path for path in directory.glob(EPOCH.format("*"))}


def _is_whole(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except (OSError, ValueError):
        return False
    return True


def _level_of(network: nn.Module) -> str:
    return f", L{network.level}" if isinstance(network, UNetPlusPlus) else ""
