# SPDX-License-Identifier: Apache-2.0
"""Loading: a training checkpoint to resume from, the network of an evaluator."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import monai.handlers
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from monai_unetpp.handlers.atomic import checkpoints_in
from monai_unetpp.handlers.checkpoints import SCALER
from monai_unetpp.handlers.settings import changed_settings, check_unchanged, take_settings
from monai_unetpp.network import AnyPrefix, UNetPlusPlus
from monai_unetpp.weights import check_fit, load_network, read_tensors

__all__ = ["CheckpointLoader", "NetworkLoader", "latest_checkpoint"]

logger = logging.getLogger(__name__)


class CheckpointLoader(monai.handlers.CheckpointLoader):
    """MONAI's handler, which accepts a folder as well, and has clear errors for files that do not fit.

    Keys of weights may have a prefix, such as ``_orig_mod.`` of ``torch.compile``, and so may the network's.
    A ``LambdaLR`` continues with its current function, which may be for more epochs than before.

    Args:
        load_path: Path of a checkpoint, or of a folder: then the checkpoint of its last epoch, or of the one
            before if that file is damaged.
        changes: What to do if settings of an optimizer, such as the learning rate, are not those of the
            checkpoint: ``"refuse"``, or ``"take"`` those of now.
        optional: Names in ``load_dict`` that checkpoints of earlier versions lack; these objects stay as they
            are.
        **settings: Further arguments of ``monai.handlers.CheckpointLoader``.

    Raises:
        FileNotFoundError: if there is no file at ``load_path``, or no checkpoint of an epoch in the folder.
        ValueError: if the file holds anything but tensors and plain types, is damaged, lacks something
            asked for, or its weights do not fit the network; if ``changes`` is no known word, or settings
            have changed and are refused.
    """

    def __init__(
        self,
        load_path: str,
        *args: Any,
        changes: str = "refuse",
        optional: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        super().__init__(load_path, *args, **settings)
        if changes not in ("refuse", "take"):
            raise ValueError(f"changes must be 'refuse' or 'take', got {changes!r} (--resume_changes).")
        self.changes = changes
        self.optional = tuple(optional)

    def __call__(self, engine: Engine) -> None:
        """Load the checkpoint into the objects of ``load_dict``."""
        path = Path(self.load_path)
        if path.is_dir():
            path, checkpoint = latest_checkpoint(path)
            self.load_path = str(path)
        else:
            checkpoint = read_tensors(path)
        single = len(self.load_dict) == 1 and next(iter(self.load_dict)) not in checkpoint
        if (scaler := getattr(engine, "scaler", None)) is not None and SCALER in checkpoint:
            self.load_dict = {**self.load_dict, SCALER: scaler}
        for name in [name for name in self.optional if name in self.load_dict and name not in checkpoint]:
            logger.info(f"{path} is of an earlier version and has no {name!r}, which starts anew.")
            self.load_dict = {key: target for key, target in self.load_dict.items() if key != name}
        for name, target in self.load_dict.items():
            if not single and name not in checkpoint:
                raise ValueError(f"{path} has no {name!r}, only {', '.join(map(repr, checkpoint))}.")
            if isinstance(target, nn.Module):
                check_fit(path, checkpoint if single else checkpoint[name], target)
        changes = [] if single else changed_settings(self.load_dict, checkpoint)
        if self.changes == "refuse":
            check_unchanged(path, changes)
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
        take_settings(changes, self.load_dict)
        for change in changes:
            logger.warning(f"{change.key} is {change.now} from here on, it was {change.before}.")
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


def latest_checkpoint(directory: Path) -> tuple[Path, Mapping[str, Any]]:
    """Return the last checkpoint of an epoch, ``checkpoint_epoch=N.pt``, that is not damaged."""
    found = checkpoints_in(directory)
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


def _level_of(network: nn.Module) -> str:
    return f", L{network.level}" if isinstance(network, UNetPlusPlus) else ""
