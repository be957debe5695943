# SPDX-License-Identifier: Apache-2.0
"""Metrics and parameters for MONAI's TensorBoard and MLflow handlers.

- HeadLosses: ``loss/Lk`` over epochs, beside the loss of all heads
- track_levels: ``levels/dice`` over levels, logged as if a level were an epoch
- track_training: parameters, for the handlers that ``monai.bundle run --tracking mlflow`` attaches
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents, SupervisedTrainer
from monai.handlers import MLFlowHandler
from torch import Tensor, nn

from monai_unetpp.extras import require
from monai_unetpp.files import PathLike
from monai_unetpp.levels import LevelScore
from monai_unetpp.levels.cases import METRICS
from monai_unetpp.levels.select import by_precision
from monai_unetpp.network import UNetPlusPlus, unwrap

__all__ = ["HeadLosses", "sqlite_store", "track_levels", "track_training"]

logger = logging.getLogger(__name__)

COSTS = ("parameters", "multiply_adds", "seconds", "peak_mib")
LOSS = "train_loss"


class HeadLosses:
    """Add the mean loss of each head over an epoch to the trainer's metrics: ``loss/L1``, ``loss/L2``, ...

    Nothing is computed twice: a loss such as ``DeepSupervisionDiceLoss`` calls its module ``loss`` once per
    head, deepest first, and a hook stores the results. With one head, or a loss without such a module,
    nothing is added. The mean is over all processes.

    The metrics exist from this handler to the beginning of the next epoch: attach handlers that print before
    it, and handlers that draw curves after it.
    """

    def __init__(self) -> None:
        self._hook: torch.utils.hooks.RemovableHandle | None = None
        self._now: list[Tensor] = []  # losses of this iteration, deepest first
        self._sums: list[Tensor] = []  # over the epoch
        self._count = 0  # iterations of the epoch
        self._names: list[str] = []

    def attach(self, engine: Engine) -> None:
        """Attach to a MONAI trainer."""
        engine.add_event_handler(Events.STARTED, self._watch)
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_STARTED, lambda: self._now.clear())
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._unwatch)

    def __call__(self, engine: Engine) -> None:
        """Write the means of the epoch into ``engine.state.metrics``."""
        if len(self._sums) < 2:
            return
        means = idist.all_reduce(torch.stack(self._sums) / (self._count * idist.get_world_size()))
        self._names = [f"loss/L{k}" for k in range(len(self._sums), 0, -1)]
        engine.state.metrics.update(zip(self._names, torch.as_tensor(means).tolist(), strict=True))

    def _watch(self, engine: SupervisedTrainer) -> None:
        """Add a hook to the trainer's loss, which is not set yet when handlers are attached."""
        self._unwatch()
        module = getattr(engine.loss_function, "loss", None)
        if isinstance(module, nn.Module):
            self._hook = module.register_forward_hook(
                lambda _module, _heads, value: self._now.append(value.detach().float().mean())
            )

    def _unwatch(self) -> None:
        if self._hook is not None:
            self._hook.remove()

    def _reset(self, engine: Engine) -> None:
        self._sums, self._count = [], 0
        for name in self._names:
            engine.state.metrics.pop(name, None)

    def _add(self) -> None:
        """Sum on the device, without synchronising with a GPU."""
        sums = self._sums or [torch.zeros_like(value) for value in self._now]
        self._sums = [total + value for total, value in zip(sums, self._now, strict=True)]
        self._count += 1


def sqlite_store(path: PathLike) -> str:
    """Return the ``tracking_uri`` of a file in which MLflow stores its runs.

    MLflow 3.13 and later refuses a folder. MONAI 1.6 and later stores artifacts in ``mlruns`` beside it.

    Args:
        path: Path of the SQLite file; its folder is made if it does not exist.

    Raises:
        ModuleNotFoundError: if MLflow, or a package that it needs for SQLite, is not installed.
    """
    require("tracking", "mlflow", "sqlalchemy", "alembic")
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{path.as_posix()}"


def track_training(
    trainer: SupervisedTrainer, handlers: Sequence[Any], parameters: Mapping[str, Any]
) -> None:
    """Let MONAI's MLflow handlers, if there are any, log parameters when the training starts.

    The network's arguments are added. The loss of an iteration gets a name of its own; MONAI's default is
    the name of the epoch's mean.

    Args:
        trainer: Trainer with the handlers.
        handlers: Handlers of any kind; those that are not MLflow's are not changed.
        parameters: Name -> value; a resumed run keeps the values that it has.
    """
    for handler in handlers:
        if isinstance(handler, MLFlowHandler):
            if handler.tag_name == LOSS:
                handler.tag_name = f"{LOSS}_iteration"
            arguments = _network_arguments(trainer.network)
            trainer.add_event_handler(Events.STARTED, _log_parameters, handler, {**parameters, **arguments})


def track_levels(
    handlers: Sequence[Any],
    scores: Sequence[LevelScore],
    level: int,
    directory: PathLike,
    parameters: Mapping[str, Any] | None = None,
) -> None:
    """Let MONAI's handlers log scores of levels like metrics of epochs, those of L^k at step ``k``.

    MLflow's handlers log them in a separate run, with the report and the chosen level.

    Args:
        handlers: Handlers such as ``TensorBoardStatsHandler`` or ``MLFlowHandler``, not attached yet.
        scores: Scores of all levels from ``score_levels``; those of a second precision get its name:
            ``levels/dice_bfloat16``.
        level: Chosen level.
        directory: Folder with the files of ``write_levels``.
        parameters: Name -> value, for MLflow.
    """
    files = sorted(Path(directory).glob("levels.*"))
    engine = Engine(lambda *_: None)
    for handler in handlers:
        if isinstance(handler, MLFlowHandler):
            handler.default_tracking_params = []  # of this engine, which trains nothing
            handler.artifacts = (*handler.artifacts, *files)
            handler.close_on_complete = True
        handler.attach(engine)
        if isinstance(handler, MLFlowHandler):
            chosen = {**(parameters or {}), "level": level}
            engine.add_event_handler(Events.STARTED, _log_parameters, handler, chosen)

    first, *others = by_precision(scores).values()

    def score() -> None:
        n = engine.state.epoch - 1
        engine.state.metrics = _metrics(first[n])
        for other in others:
            metrics = _metrics(other[n]).items()
            engine.state.metrics |= {f"{name}_{other[n].precision}": value for name, value in metrics}

    engine.add_event_handler(Events.EPOCH_STARTED, score)
    engine.run([None], max_epochs=len(first))


def _metrics(score: LevelScore) -> dict[str, float]:
    """Return the scores and costs of a level, by names that TensorBoard groups."""
    metrics = {f"levels/{name}": getattr(score, name) for name in (*METRICS, *COSTS)}
    for name in METRICS:
        by_class = getattr(score, f"{name}_per_class")
        metrics |= {f"levels/{name}_{label}": value for label, value in by_class.items()}
    return metrics


def _log_parameters(handler: MLFlowHandler, parameters: Mapping[str, Any]) -> None:
    """Log parameters that the run does not have yet, since MLflow refuses to change one."""
    run = handler.client.get_run(handler.cur_run.info.run_id)  # type: ignore[attr-defined]
    for name, value in parameters.items():
        if name not in run.data.params:
            handler.client.log_param(run.info.run_id, name, value)


def _network_arguments(network: nn.Module) -> dict[str, Any]:
    """Return the class of a network, and the constructor arguments of a UNetPlusPlus."""
    network = unwrap(network)
    arguments = network.arguments if isinstance(network, UNetPlusPlus) else {}
    return {"network": type(network).__name__, **{f"network.{key}": arguments[key] for key in arguments}}
