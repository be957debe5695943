# SPDX-License-Identifier: Apache-2.0
"""What a training says on the console.

- EpochLog: one line per epoch, with the time that is left
- ProgressBar: is out of the way of log lines, and not in a log file
- TrainingReport: how a training ended, and what comes next
"""

from __future__ import annotations

import logging
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import ignite.handlers
from ignite.engine import Engine, Events
from monai.engines import Trainer
from monai.handlers import StatsHandler
from monai.utils import is_scalar

from monai_unetpp.files import PathLike
from monai_unetpp.handlers.checkpoints import CheckpointSaver
from monai_unetpp.handlers.growth import levels_left

__all__ = ["EpochLog", "ProgressBar", "TrainingReport"]

logger = logging.getLogger(__name__)


class ProgressBar(ignite.handlers.ProgressBar):
    """Ignite's bar, which is cleared before a line is logged, and is shown on terminals only.

    Args:
        **settings: Arguments of ``ignite.handlers.ProgressBar`` and of ``tqdm``.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"disable": None, **settings})  # tqdm: None disables it where there is no terminal

    def attach(self, engine: Engine, *args: Any, **settings: Any) -> None:  # type: ignore[override]
        """Attach to an engine."""
        super().attach(engine, *args, **settings)
        engine.add_event_handler(Events.STARTED, self._listen)
        engine.add_event_handler(Events.COMPLETED, self._unlisten)

    def _listen(self) -> None:
        for handler in logging.getLogger().handlers:
            handler.addFilter(self._clear)

    def _unlisten(self) -> None:
        for handler in logging.getLogger().handlers:
            handler.removeFilter(self._clear)

    def _clear(self, _record: logging.LogRecord) -> bool:
        """Clear the bar, which is drawn again when it advances; every record passes."""
        if self.pbar is not None and not self.pbar.disable:
            self.pbar.clear()
        return True


class EpochLog(StatsHandler):
    """MONAI's ``StatsHandler`` in one line per epoch: its metrics, and the time that is left or the best one.

    Args:
        name: Name of the logger.
        **settings: Further arguments of ``StatsHandler``.
    """

    def __init__(self, name: str, **settings: Any) -> None:
        super().__init__(**{"iteration_log": False, **settings}, name=name)
        self._begin: tuple[int, int, float] | None = None  # levels left, epoch, and time in seconds

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer or an evaluator."""
        super().attach(engine)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)

    def epoch_completed(self, engine: Engine) -> None:
        """Log the line of an epoch."""
        state = engine.state
        scalars = sorted((name, value) for name, value in state.metrics.items() if is_scalar(value))
        metrics = ", ".join(f"{name} {float(value):.4f}" for name, value in scalars)
        if isinstance(engine, Trainer):
            levels, before, began = self._begin or (0, state.epoch - 1, time.monotonic())
            epochs = int(state.max_epochs or state.epoch)
            left = _duration((time.monotonic() - began) / (state.epoch - before) * (epochs - state.epoch))
            least = "at least " if levels else ""  # epochs take longer once the network has grown
            line = f"Epoch {state.epoch} of {epochs}: {metrics}"
            self.logger.info(line + (f"; {least}{left} left" if state.epoch < epochs else ""))
        else:
            best: Any = state
            which = f"{best.key_metric_name} {best.best_metric:.4f} of epoch {best.best_metric_epoch}"
            self.logger.info(f"Epoch {state.epoch}: {metrics}; best {which}")

    def _start(self, engine: Engine) -> None:
        levels = levels_left(engine)
        if self._begin is None or self._begin[0] != levels:  # a resumed training does not begin at epoch 1
            self._begin = levels, engine.state.epoch - 1, time.monotonic()


class TrainingReport:
    """Say how a training ended: scores by class of the best epoch, weights, duration, the next commands.

    Its state, the scores of the best epoch, is part of the training checkpoint.

    Args:
        evaluator: Evaluator that computes the Dice of each class.
        best: Saver of the best weights, attached to the evaluator.
        class_labels: Names of the classes without the background.
        bundle_root: Folder of the bundle, for the commands.
        arguments: Further arguments of the commands, as one types them.
        prefix: Beginning of the metrics' names, which end in the name of a class.
    """

    def __init__(
        self,
        evaluator: Engine,
        best: CheckpointSaver,
        class_labels: Sequence[str],
        bundle_root: PathLike,
        arguments: str = "",
        prefix: str = "val_dice_",
    ) -> None:
        self.evaluator = evaluator
        self.best = best
        self.class_labels = list(class_labels)
        self.bundle_root = Path(bundle_root)
        self.arguments = arguments
        self.prefix = prefix
        self.state: dict[str, Any] = {}  # epoch, score and Dice by class of the best weights
        self._trainer: Engine | None = None
        self._begin = (0, 0.0)  # epoch and time in seconds

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, after the handler that loads its checkpoint."""
        self._trainer = engine
        engine.add_event_handler(Events.STARTED, self._start)
        self.evaluator.add_event_handler(Events.COMPLETED, self._remember)

    def state_dict(self) -> dict[str, Any]:
        """Return epoch and scores of the best weights, for ``load_state_dict``."""
        return dict(self.state)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore epoch and scores of the best weights."""
        self.state = dict(state_dict)

    def lines(self) -> list[str]:
        """Return the lines of the report.

        Raises:
            ValueError: if the training ended without weights.
        """
        if not self.best.best_path().is_file() or not self.state:
            raise ValueError(
                f"the training has written no weights, {self.best.best_path()}: no validation score was a "
                "number. Look at the labels of the held-out scans, and at --val_fraction or --folds."
            )
        before, began = self._begin
        epochs = (self._trainer.state.epoch if self._trainer else 0) - before
        dice = ", ".join(f"{name} {value:.3f}" for name, value in self.state["dice"].items())
        arguments = f" {self.arguments}" if self.arguments else ""
        bundle = shlex.quote(str(self.bundle_root))
        words = shlex.split(self.arguments)
        pairs = pairwise(words)
        overlays = "".join(f" {flag} {shlex.quote(name)}" for flag, name in pairs if flag == "--overlay")
        if "--folds" in words:  # a bundle with the weights of folds has none that are used by default
            overlays += f" --checkpoint {shlex.quote(str(self.best.best_path()))}"
        return [
            f"Trained {epochs} epoch{'s' * (epochs != 1)} in {_duration(time.monotonic() - began)}.",
            f"Validation Dice of the best epoch, {self.state['epoch']}: {dice}.",
            f"Weights: {self.best.best_path()}",
            f"Score:   monai-unetpp evaluate {bundle}{arguments}",
            f"Segment: monai-unetpp segment -i SCANS -o MASKS --bundle {bundle}{overlays}",
        ]

    def write(self) -> None:
        """Log the report; errors are those of :meth:`lines`."""
        for line in self.lines():
            logger.info(line)

    def _start(self, engine: Engine) -> None:
        self._begin = engine.state.epoch, time.monotonic()

    def _remember(self, engine: Engine) -> None:
        """Keep the scores if the best weights are those of this validation."""
        score = self.best.best_score()
        metrics = engine.state.metrics
        if score is not None and score != self.state.get("score"):
            found = {name: float(metrics.get(self.prefix + name, math.nan)) for name in self.class_labels}
            self.state = {"epoch": engine.state.epoch, "score": score, "dice": found}


def _duration(seconds: float) -> str:
    """Return seconds as one reads them: 42 s, 3 min 20 s, 5 h 12 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
