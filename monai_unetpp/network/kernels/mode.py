# SPDX-License-Identifier: Apache-2.0
"""When our own kernels apply: torch runs line by line, and on the CPU a map lies in memory channels last."""

from __future__ import annotations

import torch
from monai.utils import convert_to_dst_type
from torch import Tensor

__all__ = [
    "channels_last",
    "enter",
    "is_compiled",
    "is_eager",
    "is_fast",
    "leave",
    "refuse_second_derivative",
]

_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
_FORMAT = {4: torch.channels_last, 5: torch.channels_last_3d}


def is_eager() -> bool:
    """Whether torch runs line by line: nothing is traced, exported or compiled."""
    return not torch.jit.is_tracing() and not torch.compiler.is_compiling()  # type: ignore[no-untyped-call]


def is_compiled(x: Tensor) -> bool:
    """Whether ``torch.compile`` is at work on inference in 3D in float32 on the CPU; not ``torch.export``."""
    return (
        torch.compiler.is_compiling()
        and not torch.compiler.is_exporting()
        and x.dim() == 5
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and _ONEDNN
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


def enter(x: Tensor) -> Tensor:
    """Return ``x`` as the network computes with it: plain, and on the CPU in channels last.

    That order convolves fastest there. MONAI's ``MetaTensor`` would cost time in every operation.
    """
    return channels_last(x.as_subclass(Tensor)) if is_eager() else x


def leave(y: Tensor, x: Tensor) -> Tensor:
    """Return ``y`` as the type of tensor that came in, such as a ``MetaTensor`` with the meta of ``x``."""
    if not is_eager() or type(x) is Tensor:
        return y
    return convert_to_dst_type(y, x, dtype=y.dtype)[0]


def channels_last(x: Tensor) -> Tensor:
    """Return ``x`` in channels last if it lies on the CPU."""
    return x.contiguous(memory_format=_FORMAT[x.dim()]) if x.device.type == "cpu" else x


def is_fast(x: Tensor) -> bool:
    """Whether ``x`` is what our kernels are made for: float32 on a CPU with oneDNN, channels last."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.is_contiguous(memory_format=_FORMAT[x.dim()])
        and _ONEDNN
        and is_eager()
        and not torch.is_autocast_enabled("cpu")
    )


def refuse_second_derivative() -> None:
    """Raise if backward is itself recorded, as ``create_graph`` asks for: none of our kernels can do that."""
    if torch.is_grad_enabled():
        raise RuntimeError("create_graph must be off: UNetPlusPlus has no second derivative.")
