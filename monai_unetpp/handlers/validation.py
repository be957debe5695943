# SPDX-License-Identifier: Apache-2.0
"""When a training validates."""

from __future__ import annotations

import monai.handlers
from ignite.engine import Engine, Events

__all__ = ["ValidationHandler"]


class ValidationHandler(monai.handlers.ValidationHandler):
    """MONAI's handler, which validates the last epoch as well, whatever the interval.

    A training of fewer epochs than ``interval`` has a best epoch and weights then.

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

    def _is_extra(self, engine: Engine, epoch: int) -> bool:
        return epoch == engine.state.max_epochs and epoch % self.interval != 0
