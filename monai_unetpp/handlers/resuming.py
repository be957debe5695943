# SPDX-License-Identifier: Apache-2.0
"""Handlers by which a resumed training equals one that was never interrupted.

- EpochSeeds: the random numbers of an epoch depend on the seed and the epoch alone
- StopOnSignal: a scheduler's SIGTERM saves within the epoch and stops
- EarlyStop: early stopping whose state is part of the checkpoint
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
from monai_unetpp.handlers.growth import levels_left

__all__ = ["EarlyStop", "EpochSeeds", "StopOnSignal"]

logger = logging.getLogger(__name__)


class EpochSeeds:
    """Seed all random numbers at the beginning of every epoch: torch, numpy, Python, random transforms.

    A resumed training then draws the same numbers, in this process and in the loader's workers. One that was
    stopped within an epoch skips the batches it has seen; with this object in the checkpoint, a network with
    dropout continues with its random state.

    Args:
        seed: Seed of the training.
        rank: Rank of this process, which makes its numbers differ from those of others.
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
        """Restore a state, for an epoch that has begun."""
        self._loaded = state_dict

    def _begin(self, engine: Engine) -> None:
        """Seed, before the engine asks the loader for an iterator."""
        epoch = engine.state.epoch
        loader: Any = engine.state.dataloader
        if isinstance(loader, _RemainingBatches):
            engine.state.dataloader = loader = loader.loader
        [draw] = np.random.SeedSequence([self.seed, epoch, self.rank]).generate_state(1)
        set_determinism(int(draw))
        set_rnd(loader.dataset, int(draw))
        seen = engine.state.iteration - (epoch - 1) * (engine.state.epoch_length or 0)
        if seen > 0:
            engine.state.dataloader = _RemainingBatches(loader, seen)
        else:
            self._loaded = None

    def _restore(self) -> None:
        if self._loaded is not None:
            state, self._loaded = self._loaded, None
            torch.set_rng_state(state["cpu"].cpu())
            if len(state["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all([each.cpu() for each in state["cuda"]])


class _RemainingBatches:
    """Loader without its first batches, for one epoch."""

    def __init__(self, loader: Any, seen: int) -> None:
        self.loader = loader
        self.dataset = loader.dataset
        self.seen = seen

    def __iter__(self) -> Iterator[Any]:
        return islice(self.loader, self.seen, None)


class StopOnSignal:
    """On a scheduler's signal, complete the step, save, and exit with status 143.

    The checkpoint within the epoch gets the name of the last completed one. A running validation is completed
    first, and several processes stop at the same step.

    Args:
        saver: Saver of epochs that is attached to the trainer.
        signals: Signals to handle while the trainer runs; by default that of SLURM, Kubernetes and Docker.
    """

    def __init__(self, saver: CheckpointSaver, signals: Iterable[int] = (signal.SIGTERM,)) -> None:
        self.saver = saver
        self.signals = tuple(signals)
        self._received = 0

    def run(self, trainer: Engine) -> None:
        """Run the trainer.

        Raises:
            SystemExit: after a signal, once the training is saved, so that no later step of a workflow runs.
        """
        with (
            self._listening(),
            trainer.add_event_handler(Events.ITERATION_COMPLETED, self._within_epoch),
            trainer.add_event_handler(Events.EPOCH_COMPLETED, self._after_epoch),
        ):
            trainer.run()
        if self._received:
            logger.warning("Saved and stopped: --resume True continues from here.")
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
        """Save and stop, unless this step completes the epoch."""
        rest = engine.state.iteration % (engine.state.epoch_length or 1)
        if rest and self._is_over():
            self.saver.save_within_epoch(engine)
            engine.terminate()

    def _after_epoch(self, engine: Engine) -> None:
        if self._is_over():
            engine.terminate()


class EarlyStop:
    """Stop a training whose validation score does not improve any more.

    Args:
        evaluator: Evaluator with the key metric.
        interval: Number of epochs from one validation to the next.
        patience: Number of validations without improvement after which to stop; ``None`` never stops.
    """

    def __init__(self, evaluator: Engine, interval: int, patience: int | None = None) -> None:
        if patience is not None and patience < 1:
            raise ValueError(f"patience must be None or a number of validations from 1 on, got {patience}.")
        self.evaluator = evaluator
        self.interval = interval
        self.patience = patience
        self._handler: EarlyStopping | None = None
        self._has_run = False

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, after the handler that validates."""
        if self.patience is not None:
            self._handler = EarlyStopping(self.patience, self._score, engine)
            engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=self._has_validated), self._handler)
            engine.add_event_handler(Events.STARTED, self._begin)

    def _begin(self) -> None:
        """Count from 0 in each further run of the trainer, such as a round of federated learning."""
        if self._has_run and self._handler is not None:
            self._handler.counter = 0
        self._has_run = True

    def state_dict(self) -> dict[str, Any]:
        """Return the best score and the count of validations since, for ``load_state_dict``."""
        return dict(self._handler.state_dict()) if self._handler is not None else {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore best score and count; an empty state starts anew."""
        if self._handler is not None and state_dict:
            self._handler.load_state_dict(state_dict)

    def _has_validated(self, engine: Engine, epoch: int) -> bool:
        return epoch % self.interval == 0 and not levels_left(engine)

    def _score(self, _trainer: Engine) -> float:
        state: Any = self.evaluator.state
        return float(state.metrics[state.key_metric_name])
