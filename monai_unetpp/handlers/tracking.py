# SPDX-License-Identifier: Apache-2.0
"""Curves and runs: what MONAI's handlers for TensorBoard and MLflow are given to log, and where.

- HeadLosses: ``loss/Lk`` over epochs, beside the loss of all heads
- track_levels: ``levels/dice`` over levels, as if a level were an epoch
- track_training: parameters, for what ``monai.bundle run --tracking mlflow`` attaches
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents, SupervisedTrainer
from monai.handlers import MLFlowHandler
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from monai_unetpp.extras import require
from monai_unetpp.levels import LevelScore
from monai_unetpp.levels.score import METRICS
from monai_unetpp.network import UNetPlusPlus

__all__ = ["HeadLosses", "sqlite_store", "track_levels", "track_training"]

logger = logging.getLogger(__name__)

COSTS = ("parameters", "multiply_adds", "seconds", "peak_mib")
LOSS = "train_loss"


class HeadLosses:
    """Add the loss of each head, the mean over an epoch, to the trainer's metrics: ``loss/L1``, ``loss/L2``.

    Nothing is computed for it: a loss such as ``DeepSupervisionDiceLoss`` calls its module ``loss`` once per
    head, deepest first, and a hook keeps what that returns. With one head, or a loss without such a module,
    nothing is added. In several processes the mean is over all of them.

    The metrics are there for handlers attached after this one, and are gone when the next epoch begins: what
    prints comes before it, what draws curves after it.
    """

    def __init__(self) -> None:
        self._hook: torch.utils.hooks.RemovableHandle | None = None
        self._now: list[Tensor] = []  # of this iteration, deepest first
        self._sums: list[Tensor] = []  # of the epoch
        self._count = 0  # of its iterations
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
        """Hook on to the trainer's loss, which it does not have yet when handlers are attached."""
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
        """Add up on the device, so that a GPU is not waited for."""
        sums = self._sums or [torch.zeros_like(value) for value in self._now]
        self._sums = [total + value for total, value in zip(sums, self._now, strict=True)]
        self._count += 1


def sqlite_store(path: str | os.PathLike[str]) -> str:
    """Return the address of a file that MLflow keeps its runs in, for ``tracking_uri``.

    MLflow from 3.13 on refuses a folder. What runs log as files MONAI, from 1.6 on, puts in ``mlruns``
    beside it.

    Args:
        path: of the file; its folder is made if it does not exist.

    Raises:
        ModuleNotFoundError: if MLflow, or what it needs for SQLite, is not installed.
    """
    require("tracking", "mlflow", "sqlalchemy", "alembic")
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{path.as_posix()}"


def track_training(
    trainer: SupervisedTrainer, handlers: Sequence[Any], parameters: Mapping[str, Any]
) -> None:
    """Let MONAI's MLflow handlers, if there are any, log parameters when the training starts.

    The arguments of the network are added, and the loss of an iteration gets a name of its own: by MONAI's
    default it would share that of the epoch's mean.

    Args:
        trainer: to which the handlers are attached.
        handlers: of any kind; those that are not MLflow's are left as they are.
        parameters: name -> value; a run that goes on keeps those that it has.
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
    directory: str | os.PathLike[str],
    parameters: Mapping[str, Any] | None = None,
) -> None:
    """Let MONAI's handlers log scores of levels as they log metrics of epochs: those of L^k at step ``k``.

    MLflow's handlers log them in a run of its own, with the report and the chosen level.

    Args:
        handlers: such as ``TensorBoardStatsHandler`` or ``MLFlowHandler``; attached to no engine yet.
        scores: as ``score_levels`` returns them, shallowest first.
        level: the chosen one.
        directory: with the files that ``write_levels`` wrote.
        parameters: name -> value, for MLflow.
    """
    files = sorted(Path(directory).glob("levels.*"))
    engine = Engine(lambda *_: None)
    for handler in handlers:
        if isinstance(handler, MLFlowHandler):
            handler.default_tracking_params = []  # of the engine, whose epochs are none
            handler.artifacts = (*handler.artifacts, *files)
            handler.close_on_complete = True
        handler.attach(engine)
        if isinstance(handler, MLFlowHandler):
            chosen = {**(parameters or {}), "level": level}
            engine.add_event_handler(Events.STARTED, _log_parameters, handler, chosen)

    def score() -> None:
        engine.state.metrics = _metrics(scores[engine.state.epoch - 1])

    engine.add_event_handler(Events.EPOCH_STARTED, score)
    engine.run([None], max_epochs=len(scores))


def _metrics(score: LevelScore) -> dict[str, float]:
    """What is known of a level, by names that TensorBoard shows side by side."""
    metrics = {f"levels/{name}": getattr(score, name) for name in (*METRICS, *COSTS)}
    for name in METRICS:
        by_class = getattr(score, f"{name}_per_class")
        metrics |= {f"levels/{name}_{label}": value for label, value in by_class.items()}
    return metrics


def _log_parameters(handler: MLFlowHandler, parameters: Mapping[str, Any]) -> None:
    """Log what the handler's run does not have yet: MLflow refuses to change a parameter."""
    run = handler.client.get_run(handler.cur_run.info.run_id)  # type: ignore[attr-defined]
    for name, value in parameters.items():
        if name not in run.data.params:
            handler.client.log_param(run.info.run_id, name, value)


def _network_arguments(network: nn.Module) -> dict[str, Any]:
    """Return the constructor arguments of ours; of another network its class."""
    network = network.module if isinstance(network, DistributedDataParallel) else network
    arguments = network.arguments if isinstance(network, UNetPlusPlus) else {}
    return {"network": type(network).__name__, **{f"network.{key}": arguments[key] for key in arguments}}
