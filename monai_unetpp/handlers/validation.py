# SPDX-License-Identifier: Apache-2.0
"""When a training validates."""

from __future__ import annotations

import monai.handlers
from ignite.engine import Engine, Events

from monai_unetpp.handlers.growth import levels_left

__all__ = ["ValidationHandler"]


class ValidationHandler(monai.handlers.ValidationHandler):
    """MONAI's handler, which validates the last epoch as well, whatever the interval.

    A training of fewer epochs than ``interval`` has a best epoch and weights then. A network that grows is
    not validated before it is trained to its whole depth: the best weights are those of all levels.

    Args:
        interval: Number of epochs from one validation to the next.
        **settings: Further arguments of ``monai.handlers.ValidationHandler``.
    """

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        super().attach(engine)
        if self.epoch_level:
            last = Events.EPOCH_COMPLETED(event_filter=self._is_extra)
            engine.add_event_handler(last, self)

    def __call__(self, engine: Engine) -> None:
        """Validate."""
        if not levels_left(engine):
            super().__call__(engine)

    def _is_extra(self, engine: Engine, epoch: int) -> bool:
        return epoch == engine.state.max_epochs and epoch % self.interval != 0
