# SPDX-License-Identifier: Apache-2.0
"""``amp`` of MONAI's engines on a CPU."""

from __future__ import annotations

from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer

from monai_unetpp.inferers import AutocastInferer

__all__ = ["CPUMixedPrecision"]


class CPUMixedPrecision:
    """Let ``amp`` of a trainer or an evaluator mean on a CPU what it means on a GPU.

    MONAI's engines open ``torch.autocast("cuda")`` on any device, which does nothing on a CPU. When an engine
    with ``amp`` starts on a CPU, its inferer becomes an :class:`~monai_unetpp.inferers.AutocastInferer`.
    """

    def attach(self, engine: Engine) -> None:
        """Attach to a MONAI engine."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: SupervisedTrainer | SupervisedEvaluator) -> None:
        """Wrap the inferer of the engine, once."""
        wrapped = isinstance(engine.inferer, AutocastInferer)
        if engine.amp and engine.state.device.type == "cpu" and not wrapped:
            engine.inferer = AutocastInferer(engine.inferer, engine.amp, engine.amp_kwargs)
