# SPDX-License-Identifier: Apache-2.0
"""A moving average of the weights, which is what a training validates and keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ignite.engine import Engine, Events
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from monai_unetpp.network import unwrap

__all__ = ["WeightAverage"]

WARM_UP = 10  # steps; the average of n steps goes back at most about n / 10 of them


class WeightAverage:
    """Keep the exponential moving average of a network's weights, by torch's ``AveragedModel``.

    After each step, with n the number of steps before it and d the smaller of ``decay`` and n / (n + 10):

        average <- d average + (1 - d) weights

    so that the first, random weights are soon forgotten, however short a training is. Each run of the
    trainer, such as a round of federated learning, averages anew, unless a checkpoint is resumed.

    Args:
        network: The network that is trained, in a wrapper or not.
        decay: Share of the average that a step keeps; 0 for the weights of the last step themselves.

    Raises:
        ValueError: If ``decay`` is not in [0, 1).

    Source: Polyak and Juditsky, 1992; the warm-up is that of TensorFlow's ``ExponentialMovingAverage``.
    """

    def __init__(self, network: nn.Module, decay: float = 0.998) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, such as 0.998, got {decay}.")
        self.decay = decay
        self._trained = unwrap(network)
        self._average = AveragedModel(self._trained, multi_avg_fn=self._update)
        self.network: nn.Module = self._average.module.eval()

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, before the handler that loads a training checkpoint."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)

    def update(self) -> None:
        """Take in the weights of one more step."""
        self._average.update_parameters(self._trained)

    def state_dict(self) -> dict[str, Any]:
        """Return the average and its number of steps, for ``load_state_dict``."""
        return dict(self._average.state_dict())

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue an average, once the trainer has started."""
        self._average.load_state_dict(state_dict)

    def _begin(self) -> None:
        self._average.n_averaged.zero_()

    def _update(self, average: Any, weights: Any, _steps: Any) -> None:
        steps = int(self._average.n_averaged)  # that of the argument is on the GPU: a step would wait for it
        moved: Any = get_ema_multi_avg_fn  # torch does not type it
        moved(min(self.decay, steps / (steps + WARM_UP)))(average, weights, steps)
