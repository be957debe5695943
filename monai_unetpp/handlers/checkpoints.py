# SPDX-License-Identifier: Apache-2.0
"""Saving and loading: what a resumed training and an evaluation start from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import monai.handlers
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from monai_unetpp.checkpoints import check_fit, load_network, read_checkpoint
from monai_unetpp.network import UNetPlusPlus

__all__ = ["CheckpointLoader", "CheckpointSaver", "NetworkLoader"]

logger = logging.getLogger(__name__)


class CheckpointSaver(monai.handlers.CheckpointSaver):
    """MONAI's handler, which can be part of a checkpoint itself.

    So a resumed training knows the best score it has to beat, and does not overwrite the best weights
    with its first ones.
    """

    _key_metric_checkpoint: Any  # ignite's, or None

    def attach(self, engine: Engine) -> None:
        """Attach to an engine, whose best metric becomes part of its state."""
        super().attach(engine)
        if self._key_metric_checkpoint is not None:
            engine.state_dict_user_keys.extend(["best_metric", "best_metric_epoch"])

    def state_dict(self) -> dict[str, Any]:
        """Return the scores and file names of the best checkpoints, for ``load_state_dict``."""
        return dict(self._key_metric_checkpoint.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the scores to beat; there are none if the best weights are gone or damaged."""
        fixed = self._key_metric_checkpoint.save_handler.filename
        if all(_is_whole(Path(self.save_dir) / (fixed or name)) for _, name in state_dict["_saved"]):
            super().load_state_dict(state_dict)


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
        for name, target in self.load_dict.items():
            if not single and name not in checkpoint:
                raise ValueError(f"{path} has no {name!r}, only {', '.join(map(repr, checkpoint))}.")
            target = target.module if isinstance(target, DistributedDataParallel) else target
            if isinstance(target, nn.Module):
                check_fit(path, checkpoint if single else checkpoint[name], target)
        lengths = {e: e.state.epoch_length for e in self.load_dict.values() if isinstance(e, Engine)}
        super().__call__(engine)
        for loaded, length in lengths.items():  # of the data of now: another batch size, another rank
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
    found = {int(path.stem.split("=")[1]): path for path in directory.glob("checkpoint_epoch=*.pt")}
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


def _is_whole(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except (OSError, ValueError):
        return False
    return True


def _level_of(network: nn.Module) -> str:
    return f", L{network.level}" if isinstance(network, UNetPlusPlus) else ""
