# SPDX-License-Identifier: Apache-2.0
"""Which formats of numbers a device computes fast, and mixed precision that uses no other.

Torch computes bfloat16 on any CPU. Where the processor has no instructions for it, a convolution takes a
hundred times as long as in float32, so there float32 computes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import Any

import torch

__all__ = ["PRECISIONS", "autocast", "in_precision", "is_fast_in", "precision_of", "precisions"]

PRECISIONS = ("float32", "bfloat16", "float16")
WANTS = "AVX512_BF16 or AMX"

logger = logging.getLogger(__name__)


def is_fast_in(precision: str, device: torch.device | str) -> bool:
    """Whether a device has instructions for a precision, such as ``"bfloat16"``."""
    kind = torch.device(device).type
    if precision == "float32":
        return True
    if kind == "cpu":
        return precision == "bfloat16" and _cpu_has_bfloat16()
    if kind == "cuda" and precision == "bfloat16":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return precision in PRECISIONS


def precisions(device: torch.device | str) -> tuple[str, ...]:
    """Return the precisions to choose from on a device: float32, and the shorter one that is fast there."""
    return ("float32", *[name for name in PRECISIONS[1:] if is_fast_in(name, device)][:1])


def in_precision(name: str, device: torch.device | str) -> Callable[[], AbstractContextManager[Any]]:
    """Return a function that returns the context in which networks on a device compute in a precision.

    Raises:
        ValueError: if the precision is unknown, or the device has no instructions for it.
    """
    kind = torch.device(device).type
    if name not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {name!r}.")
    if not is_fast_in(name, device):
        wants = f", which wants a processor with {WANTS}" if (kind, name) == ("cpu", "bfloat16") else ""
        raise ValueError(
            f"precision must be one of {', '.join(precisions(device))} on this {kind}, got {name!r}{wants}."
        )
    if name == "float32":
        return partial(torch.autocast, kind, enabled=False)
    return partial(torch.autocast, kind, dtype=getattr(torch, name))


def autocast(
    device: torch.device | str, enabled: bool, settings: Mapping[str, Any] | None = None
) -> Callable[[], AbstractContextManager[Any]]:
    """Return a function that returns ``torch.autocast`` for a device; it computes in :func:`precision_of`.

    Args:
        device: Device of the network.
        enabled: Whether to compute in mixed precision.
        settings: Arguments of ``torch.autocast``, such as ``dtype``.
    """
    used = precision_of(device, enabled, settings)
    settings = {**(settings or {}), "enabled": used != "float32"}
    return partial(torch.autocast, torch.device(device).type, **settings)


def precision_of(device: torch.device | str, enabled: bool, settings: Mapping[str, Any] | None = None) -> str:
    """Return the precision that convolutions compute in under :func:`autocast`, such as ``"bfloat16"``.

    On a CPU that has no instructions for what is asked for, that is float32, and a log line says so once.
    """
    if not enabled:
        return "float32"
    kind = torch.device(device).type
    dtype = (settings or {}).get("dtype") or torch.get_autocast_dtype(kind)
    wanted = str(dtype).removeprefix("torch.")
    if kind == "cpu" and not is_fast_in(wanted, device):
        _say_slow(wanted)
        return "float32"
    return wanted


def _cpu_has_bfloat16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@cache
def _say_slow(precision: str) -> None:
    logger.warning(
        f"amp is left off: {precision} is slower than float32 on this processor; mixed precision on a CPU is "
        f"bfloat16, and wants {WANTS}."
    )
