# SPDX-License-Identifier: Apache-2.0
"""Training checkpoints: saving, resuming, and loading weights for an evaluation."""

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
from torch.optim.lr_scheduler import LambdaLR

from monai_unetpp.files import atomic_write, save_by_memory, stale_parts
from monai_unetpp.network import AnyPrefix, UNetPlusPlus, unwrap
from monai_unetpp.weights import check_fit, load_network, read_tensors

__all__ = ["CheckpointLoader", "CheckpointSaver", "NetworkLoader"]

logger = logging.getLogger(__name__)

EPOCH = "checkpoint_epoch={}.pt"
SCALER = "scaler"
RETRY_SECONDS = (1, 5)  # before the next attempts to write a checkpoint


class CheckpointSaver(monai.handlers.CheckpointSaver):
    """MONAI's handler with atomic files, and with a state that can be part of a checkpoint itself.

    - Files are written atomically, and the replaced one is removed afterwards. A write that fails is retried,
      since network file systems fail now and then; the final error names the last good checkpoint.
    - As part of a checkpoint it tells a resumed training the best score so far.
    - In a resumed training, checkpoints of earlier epochs count towards ``n_saved``.
    - Weights that are not finite are never saved, and a score that is not finite is never the best.
    - The gradient scaler of a trainer with ``amp`` is saved as well.
    - Compiled and parallel networks are saved without the prefix of their wrapper.
    """

    _key_metric_checkpoint: Any  # ignite's, or None
    _interval_checkpoint: Any

    def __init__(self, save_dir: str, save_dict: Mapping[str, Any], *args: Any, **settings: Any) -> None:
        save_dict = {name: unwrap(target, keep_average=True) for name, target in save_dict.items()}
        super().__init__(save_dir, save_dict, *args, **settings)
        checkpoints: list[Any] = [
            self._final_checkpoint,
            self._key_metric_checkpoint,
            self._interval_checkpoint,
        ]
        for checkpoint in filter(None, checkpoints):
            name = checkpoint.save_handler.filename
            checkpoint.save_handler = _AtomicSaver(Path(self.save_dir), name, self.save_dict)
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
        found = _epochs(Path(self.save_dir))
        self._interval_checkpoint._saved = [
            Checkpoint.Item(epoch, found[epoch].name) for epoch in sorted(found) if epoch <= epochs
        ]
        if found and max(found) > epochs:
            logger.warning(
                f"{self.save_dir} holds checkpoints of a longer training, {found[max(found)].name}: "
                "--resume True would continue from it. Remove them, or name another --ckpt_dir."
            )


class _AtomicSaver(BaseSaveHandler):
    """Write checkpoints atomically, in the first process.

    Args:
        folder: Folder to write to.
        filename: Name of the only file, which is replaced; by default every checkpoint has its own.
        saved: Name -> object that is saved.
    """

    def __init__(self, folder: Path, filename: str | None, saved: Mapping[str, Any]) -> None:
        self.folder = folder
        self.filename = filename
        self.saved = saved

    @idist.one_rank_only()
    def __call__(self, checkpoint: Any, filename: str, metadata: Any = None) -> None:  # noqa: ARG002
        path = self.folder / (self.filename or filename)
        self._check_finite(path)
        for wait in (*RETRY_SECONDS, None):
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
                logger.warning(f"{path} could not be saved: {error}. Retrying in {wait} s.")
                time.sleep(wait)

    @idist.one_rank_only()
    def remove(self, filename: str) -> None:
        """Remove a file, unless the next one replaces it."""
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
        return f"--resume True continues from {found[max(found)]}." if found else "No epoch was saved yet."


class CheckpointLoader(monai.handlers.CheckpointLoader):
    """MONAI's handler, which accepts a folder as well, and has clear errors for files that do not fit.

    Keys of weights may have a prefix, such as ``_orig_mod.`` of ``torch.compile``, and so may the network's.
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
            if isinstance(target, nn.Module):
                check_fit(path, checkpoint if single else checkpoint[name], target)
        lengths = {e: e.state.epoch_length for e in self.load_dict.values() if isinstance(e, Engine)}
        targets = self.load_dict
        if self.strict_shape:  # else MONAI requires modules
            self.load_dict = {n: AnyPrefix(t) if isinstance(t, nn.Module) else t for n, t in targets.items()}
        super().__call__(engine)
        self.load_dict = targets
        # of the current data: batch size and number of processes may have changed
        for loaded, length in lengths.items():
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
    found = _epochs(directory)
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


def _epochs(directory: Path) -> dict[int, Path]:
    """Return the checkpoints in a folder by epoch."""
    return {int(path.stem.split("=")[1]): path for path in directory.glob(EPOCH.format("*"))}


def _is_readable(path: Path) -> bool:
    try:
        read_tensors(path)
    except (OSError, ValueError):
        return False
    return True


def _level_of(network: nn.Module) -> str:
    return f", L{network.level}" if isinstance(network, UNetPlusPlus) else ""
