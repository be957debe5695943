# SPDX-License-Identifier: Apache-2.0
"""What makes a training that was stopped go on as if it had not been.

- EpochSeeds: what an epoch draws depends on the seed and its number alone
- StopOnSignal: a scheduler's SIGTERM saves within the epoch and ends
- EarlyStop: its count is part of the checkpoint
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping
from monai.data import set_rnd
from monai.utils import set_determinism

from monai_unetpp.handlers.checkpoints import CheckpointSaver

__all__ = ["EarlyStop", "EpochSeeds", "StopOnSignal"]

logger = logging.getLogger(__name__)


class EpochSeeds:
    """Seed everything that draws at the beginning of every epoch: torch, numpy, Python, random transforms.

    So a training that goes on draws what it would have drawn, in this process and in the loader's workers.
    One that was stopped within an epoch passes over the batches it has seen; with this object in the
    checkpoint, a network with dropout goes on with the random state it had.

    Args:
        seed: of the training.
        rank: of this process; each draws differently.
    """

    def __init__(self, seed: int, rank: int = 0) -> None:
        self.seed = seed
        self.rank = rank
        self._loaded: Mapping[str, Any] | None = None

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer whose batches come from a data loader."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_STARTED, self._restore)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of torch's generators, for ``load_state_dict``."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"cpu": torch.get_rng_state(), "cuda": cuda}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state, for an epoch that is begun already."""
        self._loaded = state_dict

    def _begin(self, engine: Engine) -> None:
        """Seed, before the engine asks the loader for an iterator."""
        epoch = engine.state.epoch
        loader: Any = engine.state.dataloader
        if isinstance(loader, _Rest):
            engine.state.dataloader = loader = loader.loader
        [draw] = np.random.SeedSequence([self.seed, epoch, self.rank]).generate_state(1)
        set_determinism(int(draw))
        set_rnd(loader.dataset, int(draw))
        seen = engine.state.iteration - (epoch - 1) * (engine.state.epoch_length or 0)
        if seen > 0:
            engine.state.dataloader = _Rest(loader, seen)
        else:
            self._loaded = None

    def _restore(self) -> None:
        if self._loaded is not None:
            state, self._loaded = self._loaded, None
            torch.set_rng_state(state["cpu"].cpu())
            if len(state["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all([each.cpu() for each in state["cuda"]])


class _Rest:
    """A loader without its first batches, once."""

    def __init__(self, loader: Any, seen: int) -> None:
        self.loader = loader
        self.dataset = loader.dataset
        self.seen = seen

    def __iter__(self) -> Iterator[Any]:
        return islice(self.loader, self.seen, None)


class StopOnSignal:
    """Let a scheduler stop a training: it ends its step, saves, and ends the process with status 143.

    What is saved is the last whole epoch's checkpoint and what was done since, under the name of that epoch.
    A validation that runs is ended first. In several processes all stop at the same step.

    Args:
        saver: of epochs, attached to the trainer.
        signals: to listen to while the trainer runs; by default that of SLURM, Kubernetes and Docker.
    """

    def __init__(self, saver: CheckpointSaver, signals: Iterable[int] = (signal.SIGTERM,)) -> None:
        self.saver = saver
        self.signals = tuple(signals)
        self._received = 0

    def run(self, trainer: Engine) -> None:
        """Run it, listening.

        Raises:
            SystemExit: a signal came, and what there is, is saved. What follows a whole training is left out.
        """
        with (
            self._listening(),
            trainer.add_event_handler(Events.ITERATION_COMPLETED, self._within_epoch),
            trainer.add_event_handler(Events.EPOCH_COMPLETED, self._after_epoch),
        ):
            trainer.run()
        if self._received:
            logger.warning("Saved and stopped: --resume True goes on from here.")
            raise SystemExit(128 + self._received)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        self._received = 0
        before = {}
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            before = {number: signal.signal(number, self._receive) for number in self.signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, _frame: Any) -> None:
        self._received = number
        logger.warning(f"{signal.Signals(number).name}: saving after this step, then stopping.")

    def _is_over(self) -> bool:
        self._received = (
            int(idist.all_reduce(self._received, "MAX")) if idist.get_world_size() > 1 else self._received
        )
        return self._received > 0

    def _within_epoch(self, engine: Engine) -> None:
        """Stop, unless the epoch is over anyway: then it is completed first."""
        rest = engine.state.iteration % (engine.state.epoch_length or 1)
        if rest and self._is_over():
            self.saver.save_within_epoch(engine)
            engine.terminate()

    def _after_epoch(self, engine: Engine) -> None:
        if self._is_over():
            engine.terminate()


class EarlyStop:
    """Stop a training whose validation score has not improved for a while.

    Args:
        evaluator: whose key metric counts.
        interval: epochs from one validation to the next.
        patience: validations without improvement after which to stop; ``None`` never stops.
    """

    def __init__(self, evaluator: Engine, interval: int, patience: int | None = None) -> None:
        if patience is not None and patience < 1:
            raise ValueError(f"patience must be None or a number of validations from 1 on, got {patience}.")
        self.evaluator = evaluator
        self.interval = interval
        self.patience = patience
        self._handler: EarlyStopping | None = None

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, after what validates."""
        if self.patience is not None:
            self._handler = EarlyStopping(self.patience, self._score, engine)
            engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self._handler)

    def state_dict(self) -> dict[str, Any]:
        """Return the score to beat, and how often it was not, for ``load_state_dict``."""
        return dict(self._handler.state_dict()) if self._handler is not None else {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a count; without one, counting begins."""
        if self._handler is not None and state_dict:
            self._handler.load_state_dict(state_dict)

    def _score(self, _trainer: Engine) -> float:
        state: Any = self.evaluator.state
        return float(state.metrics[state.key_metric_name])
