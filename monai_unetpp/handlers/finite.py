# SPDX-License-Identifier: Apache-2.0
"""NaN and infinity: kept from the weights, and traced to their cause."""

from __future__ import annotations

import logging
import math
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import decollate_batch
from monai.engines import IterationEvents, SupervisedTrainer
from monai.transforms import apply_transform
from torch import Tensor

__all__ = ["FiniteSteps"]

logger = logging.getLogger(__name__)

DRAWS = 20  # attempts to reproduce the random transforms of a case


class FiniteSteps:
    """Stop a training, or skip a step, when the loss or a gradient is NaN or infinite.

    The step is not taken and the statistics of norm layers are restored, so that the weights do not change.
    With a gradient scaler (float16), which handles overflowing gradients itself, only the loss is checked.

    Args:
        action: ``"stop"`` or ``"skip"``.

    Raises:
        ValueError: if a step is not finite and ``action`` is ``"stop"``; it names the cases of the batch and
            the transform after which an image is not finite.
    """

    def __init__(self, action: str = "stop") -> None:
        if action not in ("stop", "skip"):
            raise ValueError(f"action must be 'stop' or 'skip', got {action!r}.")
        self.action = action
        self._statistics: list[Tensor] = []

    def attach(self, engine: Engine) -> None:
        """Attach to a MONAI trainer."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._remember)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: SupervisedTrainer) -> None:
        """Check the step before it is taken."""
        loss = engine.state.output["loss"].detach()
        gradients = [p.grad for p in engine.network.parameters() if p.grad is not None]
        scaled = engine.scaler is not None and engine.scaler.is_enabled()
        if torch.isfinite(loss) and (scaled or torch.isfinite(torch.nn.utils.get_total_norm(gradients))):
            return
        for buffer, before in zip(engine.network.buffers(), self._statistics, strict=True):
            buffer.copy_(before)
        message = _describe(engine, float(loss))
        if self.action == "stop":
            raise ValueError(f"{message} To skip such steps: --bad_numbers skip.")
        logger.warning(f"{message} The step is skipped.")
        if not scaled:
            engine.optimizer.zero_grad(set_to_none=True)  # parameters without a gradient are not updated

    def _remember(self, engine: SupervisedTrainer) -> None:
        self._statistics = [buffer.detach().clone() for buffer in engine.network.buffers()]


def _describe(engine: Engine, loss: float) -> str:
    """Return a message with the step, the cases and the cause."""
    state: Any = engine.state
    what = "a gradient is not finite" if math.isfinite(loss) else f"the loss is {loss}"
    images = decollate_batch(state.batch["image"])  # several may be of one case
    paths = [str(image.meta.get("filename_or_obj")) for image in images]
    bad = {path for path, image in zip(paths, images, strict=True) if not torch.isfinite(image).all()}
    causes = [
        f"The image of {path} is not finite after {_culprit(state.dataloader, path)}." for path in sorted(bad)
    ]
    cause = " ".join(causes) or "The images are finite: a lower learning_rate may help, or amp False."
    return (
        f"Epoch {state.epoch}, step {state.iteration}: {what}. Cases: {', '.join(sorted({*paths}))}. {cause}"
    )


def _culprit(loader: Any, path: str) -> str:
    """Return the first transform after which a case is not finite; random ones are repeated."""
    dataset = loader.dataset
    cases = [case for case in dataset.data if Path(str(case["image"])) == Path(path)]
    transforms = (
        deepcopy(dataset.transform).flatten().transforms
    )  # a copy, so that the random state of the training does not change
    for case, _ in product(cases, range(DRAWS)):
        parts = [deepcopy(case)]
        for number, transform in enumerate(transforms, start=1):
            applied = [apply_transform(transform, part) for part in parts]
            parts = [part for some in applied for part in (some if isinstance(some, list) else [some])]
            if not all(torch.isfinite(torch.as_tensor(part["image"])).all() for part in parts):
                return f"{type(transform).__name__} (transform {number} of {len(transforms)})"
    return f"one of its transforms, now and then: not in {DRAWS} draws"
