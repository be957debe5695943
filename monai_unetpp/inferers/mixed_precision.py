# SPDX-License-Identifier: Apache-2.0
"""Mixed precision of MONAI's engines on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

from monai_unetpp.network import kernels

__all__ = ["AutocastInferer"]


class AutocastInferer(Inferer):
    """An inferer inside ``torch.autocast`` on a CPU, for an engine with ``amp``.

    MONAI's engines open ``torch.autocast("cuda")`` on any device, which does nothing on a CPU. Here ``amp``
    means on a CPU what it means on a GPU, if the processor is fast in bfloat16; else float32 computes, and a
    log line says so once. Logits are float32, so that the loss is as exact as on a GPU.

    Args:
        inferer: Inferer for the engine.
        amp: ``amp`` of the engine.
        amp_kwargs: ``amp_kwargs`` of the engine.
    """

    def __init__(
        self, inferer: Callable[..., Any], amp: bool, amp_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        self.inferer = inferer
        self.amp = amp
        self.amp_kwargs = amp_kwargs

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return ``inferer(inputs, network, *args, **kwargs)``, with numbers of float32."""
        if not self.amp or not inputs.is_cpu:
            return self.inferer(inputs, network, *args, **kwargs)
        with kernels.autocast("cpu", self.amp, self.amp_kwargs)():
            outputs = self.inferer(inputs, network, *args, **kwargs)
        return [_float32(y) for y in outputs] if isinstance(outputs, list) else _float32(outputs)


def _float32(y: Any) -> Any:
    """Return logits as float32, and labels as they are."""
    return y.float() if isinstance(y, Tensor) and y.dtype in (torch.bfloat16, torch.float16) else y
