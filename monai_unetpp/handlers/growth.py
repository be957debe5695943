# SPDX-License-Identifier: Apache-2.0
"""Training shallow levels first."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ignite.engine import Engine, Events
from torch import nn

from monai_unetpp.network import UNetPlusPlus, unwrap, unwrap_unetplusplus

__all__ = ["Growth", "levels_left"]

logger = logging.getLogger(__name__)


class Growth:
    """Begin with a shallow level, whose steps cost less, and add the others one after another.

    Set the network's ``training_level`` at the beginning of every epoch, which follows from the number of the
    epoch alone: a resumed training grows as one that was not interrupted.

    Args:
        network: A UNetPlusPlus with deep supervision, in a wrapper or not. In ``DistributedDataParallel`` it
            requires ``find_unused_parameters``.
        shares: Shares of the epochs after which the network grows by a level, such as ``[0.4, 0.7]``, the
            last time to its depth.

    Raises:
        ValueError: If ``shares`` do not increase between 0 and 1, or are not fewer than the levels.
    """

    def __init__(self, network: nn.Module, shares: Sequence[float]) -> None:
        self.network = unwrap_unetplusplus(network)
        self.shares = list(shares)
        levels = self.network.spec.levels
        if any(b <= a for a, b in zip([0.0, *self.shares], [*self.shares, 1.0], strict=True)):
            raise ValueError(f"shares must increase between 0 and 1, such as [0.4, 0.7], got {self.shares}.")
        if len(self.shares) >= len(levels):
            raise ValueError(
                f"shares must be at most {len(levels) - 1} for a network with heads at {len(levels)} levels, "
                f"got {self.shares}."
            )

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, before the handler that logs epochs."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._set)

    def level(self, epoch: int, epochs: int) -> int:
        """Return the deepest level that is trained in ``epoch``, from 1 on, of ``epochs``."""
        complete = [round(share * epochs) for share in self.shares]
        return self.network.depth - sum(epoch <= each < epochs for each in complete)

    def _set(self, engine: Engine) -> None:
        state = engine.state
        level = self.level(state.epoch, int(state.max_epochs or state.epoch))
        if level != self.network.training_level:
            logger.info(
                f"Epoch {state.epoch}: the network is trained up to L{level} of L{self.network.depth}."
            )
        self.network.training_level = level


def levels_left(engine: Engine) -> int:
    """Return how many levels a trainer does not train yet; networks of other kinds do not grow."""
    network = unwrap(getattr(engine, "network", None))
    return network.depth - network.training_level if isinstance(network, UNetPlusPlus) else 0
