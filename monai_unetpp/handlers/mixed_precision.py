# SPDX-License-Identifier: Apache-2.0
"""``amp`` of MONAI's engines on a CPU: they open ``torch.autocast("cuda")`` on any device.

- CPUMixedPrecision: the handler
- AutocastInferer: what it makes of the inferer of an engine
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.inferers import Inferer
from torch import Tensor

from monai_unetpp.network import kernels

__all__ = ["AutocastInferer", "CPUMixedPrecision"]


class AutocastInferer(Inferer):
    """An inferer inside ``torch.autocast`` on a CPU, if the processor is fast in bfloat16.

    Else float32 computes, and a log line says so once. Logits are float32, so that the loss is as exact as on
    a GPU.

    Args:
        inferer: Inferer of an engine.
        amp_kwargs: ``amp_kwargs`` of the engine.
    """

    def __init__(self, inferer: Callable[..., Any], amp_kwargs: Mapping[str, Any] | None = None) -> None:
        self.inferer = inferer
        self.autocast = kernels.autocast("cpu", True, amp_kwargs)

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return ``inferer(inputs, network, *args, **kwargs)``, with logits of float32."""
        with self.autocast():
            outputs = self.inferer(inputs, network, *args, **kwargs)
        return [_float32(y) for y in outputs] if isinstance(outputs, list) else _float32(outputs)


def _float32(y: Any) -> Any:
    """Return logits as float32, and labels as they are."""
    return y.float() if isinstance(y, Tensor) and y.dtype in (torch.bfloat16, torch.float16) else y


class CPUMixedPrecision:
    """Let ``amp`` of a trainer or an evaluator mean on a CPU what it means on a GPU.

    When an engine with ``amp`` starts on a CPU, its inferer becomes an :class:`AutocastInferer`.
    """

    def attach(self, engine: Engine) -> None:
        """Attach to a MONAI engine."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: SupervisedTrainer | SupervisedEvaluator) -> None:
        """Wrap the inferer of the engine, once."""
        wrapped = isinstance(engine.inferer, AutocastInferer)
        if engine.amp and engine.state.device.type == "cpu" and not wrapped:
            engine.inferer = AutocastInferer(engine.inferer, engine.amp_kwargs)
