# SPDX-License-Identifier: Apache-2.0
"""Numbers that are not finite: where they come from, and that they never reach the weights."""

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

DRAWS = 20  # of random transforms, to find the one that is to blame


class FiniteSteps:
    """Stop a training, or leave a step out, when its loss or a gradient is NaN or infinite.

    The step is not taken, and the norms forget the batch, so that the weights stay as they were. With a
    gradient scaler (float16) gradients that overflow are the scaler's business; the loss is looked at.

    Args:
        action: ``"stop"`` or ``"skip"``.

    Raises:
        ValueError: by the trainer, naming the cases of the batch and the transform after which an image is
            not finite.
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
        """Look at the step that is about to be taken."""
        loss = engine.state.output["loss"].detach()
        gradients = [p.grad for p in engine.network.parameters() if p.grad is not None]
        scaled = engine.scaler is not None and engine.scaler.is_enabled()
        if torch.isfinite(loss) and (scaled or torch.isfinite(torch.nn.utils.get_total_norm(gradients))):
            return
        for buffer, before in zip(engine.network.buffers(), self._statistics, strict=True):
            buffer.copy_(before)
        message = _describe(engine, float(loss))
        if self.action == "stop":
            raise ValueError(f"{message} To leave such steps out: --bad_numbers skip.")
        logger.warning(f"{message} The step is left out.")
        if not scaled:
            engine.optimizer.zero_grad(set_to_none=True)  # what has no gradient is not moved

    def _remember(self, engine: SupervisedTrainer) -> None:
        self._statistics = [buffer.detach().clone() for buffer in engine.network.buffers()]


def _describe(engine: Engine, loss: float) -> str:
    """Where it happened, in which cases, and what is to blame."""
    state: Any = engine.state
    what = "a gradient is not finite" if math.isfinite(loss) else f"the loss is {loss}"
    images = decollate_batch(state.batch["image"])  # several may be of one case
    paths = [str(image.meta.get("filename_or_obj")) for image in images]
    bad = {path for path, image in zip(paths, images, strict=True) if not torch.isfinite(image).all()}
    blame = [
        f"The image of {path} is not finite after {_blame(state.dataloader, path)}." for path in sorted(bad)
    ]
    cause = " ".join(blame) or "The images are finite: a lower learning_rate may help, or amp False."
    return (
        f"Epoch {state.epoch}, step {state.iteration}: {what}. Cases: {', '.join(sorted({*paths}))}. {cause}"
    )


def _blame(loader: Any, path: str) -> str:
    """The first transform after which the image of a case is not finite; random ones are tried again."""
    dataset = loader.dataset
    cases = [case for case in dataset.data if Path(str(case["image"])) == Path(path)]
    transforms = deepcopy(dataset.transform).flatten().transforms  # the training's own draw nothing here
    for case, _ in product(cases, range(DRAWS)):
        parts = [deepcopy(case)]
        for number, transform in enumerate(transforms, start=1):
            applied = [apply_transform(transform, part) for part in parts]
            parts = [part for some in applied for part in (some if isinstance(some, list) else [some])]
            if not all(torch.isfinite(torch.as_tensor(part["image"])).all() for part in parts):
                return f"{type(transform).__name__} (transform {number} of {len(transforms)})"
    return f"one of its transforms, now and then: not in {DRAWS} draws"
