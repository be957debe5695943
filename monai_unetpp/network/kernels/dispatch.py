# SPDX-License-Identifier: Apache-2.0
"""When our kernels compute the network, and when torch's own operators do, as the modules' ``forward`` says.

plain    torch's operators and autograd; every module is called
memory   convolutions over maps that are not joined, cheap steps repeated in backward; any device
auto     on a CPU, the same with the kernels of ``cpu/``, but plain to train in bfloat16; on GPUs since
         Ampere, plain in channels last with the kernels of ``gpu/``; plain elsewhere

TorchScript, tracing and export always take plain. All that this package knows of them is in this file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from monai.utils import convert_to_dst_type
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

__all__ = [
    "KERNELS",
    "Dispatched",
    "applies",
    "call_in_python",
    "crop",
    "enter",
    "fill_up",
    "has_hooks",
    "has_sizes",
    "in_order",
    "is_compiled",
    "is_eager",
    "is_untouched",
    "leave",
    "plain",
    "prefers_channels_last",
    "prefers_cpu",
    "prefers_gpu",
    "refuse_second_derivative",
    "script_too",
    "use",
    "uses_cpu_kernels",
    "uses_gpu_kernels",
]

KERNELS = ("auto", "memory", "plain")
VARIABLE = "MONAI_UNETPP_KERNELS"

FIRST_CAPABILITY = (8, 0)  # of GPUs with matrix units for TF32 and bfloat16; measured on 9.0

_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]

call_in_python = torch.jit.unused  # for methods that TorchScript leaves out
script_too = torch.jit.export  # for methods beside ``forward`` that TorchScript compiles


def _check_choice(kernels: str, name: str) -> str:
    if kernels not in KERNELS:
        raise ValueError(f"{name} must be one of {', '.join(KERNELS)}, got {kernels!r}.")
    return kernels


_in_use = _check_choice(os.environ.get(VARIABLE, "auto"), f"The environment variable {VARIABLE}")


@contextmanager
def use(kernels: str) -> Iterator[None]:
    """Compute with other kernels inside a ``with`` block, in all threads of the process.

    Args:
        kernels: ``"plain"``, ``"memory"`` or ``"auto"``. Outside of such a block the environment variable
            ``MONAI_UNETPP_KERNELS`` decides, and ``"auto"`` is the default.

    Raises:
        ValueError: if ``kernels`` is none of these.
    """
    global _in_use
    before, _in_use = _in_use, _check_choice(kernels, "kernels")
    try:
        yield
    finally:
        _in_use = before


@contextmanager
def plain() -> Iterator[None]:
    """Compute with torch's own operators and autograd inside a ``with`` block; every module is called.

    Second derivatives, ``torch.func`` and operator counters work there.
    """
    with use("plain"):
        yield


class Dispatched(nn.Module):
    """A module that :meth:`kernel` computes where our kernels apply, and its own ``forward`` elsewhere.

    A module with hooks of its own is called as any other module is.
    """

    def __call__(self, *inputs: Any) -> Any:
        """Compute; TorchScript compiles ``forward`` alone."""
        [x] = inputs
        if not applies(x[0] if isinstance(x, list) else x):
            return super().__call__(x)
        if has_hooks(self):
            return super().__call__([*map(out_of_order, x)] if isinstance(x, list) else out_of_order(x))
        return self.kernel(x)

    kernel: Callable[..., Any]
    """A method that computes what ``forward`` computes, in less time or memory."""


def applies(x: Tensor) -> bool:
    """Whether our kernels compute with ``x``, or else the modules' own ``forward``."""
    if _in_use == "plain" or (_in_use == "auto" and not prefers_channels_last(x)):
        return False
    if not is_eager():
        return is_compiled(x)
    return not (_has_any_global_hook() or _is_watched())  # type: ignore[no-untyped-call]


def _is_watched() -> bool:
    """Whether something interprets operators that does not know ours: ``torch.func``, a dispatch mode."""
    if torch._C._are_functorch_transforms_active():
        return True
    modes = _get_current_dispatch_mode_stack() if torch._C._len_torch_dispatch_stack() else ()
    return not all(getattr(mode, "takes_any_operator", False) for mode in modes)


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody has hooked on to a module, or replaced the ``forward`` of this one instance."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def is_untouched(module: nn.Module, kinds: frozenset[type[nn.Module]]) -> bool:
    """Whether a module and its children are of exactly these kinds, and have no hooks.

    A module that is parametrised, wrapped, quantised or exchanged is of another kind.
    """
    return (
        type(module) in kinds
        and not has_hooks(module)
        and all(is_untouched(child, kinds) for child in module._modules.values() if child is not None)
    )


def is_eager() -> bool:
    """Whether torch runs in eager mode: nothing is traced, exported or compiled."""
    return not torch.jit.is_tracing() and not torch.compiler.is_compiling()  # type: ignore[no-untyped-call]


def is_compiled(x: Tensor) -> bool:
    """Whether ``torch.compile`` is at work on inference in 3D in float32 on the CPU; not ``torch.export``."""
    return (
        torch.compiler.is_compiling()
        and not torch.compiler.is_exporting()
        and _in_use == "auto"
        and x.dim() == 5
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and _ONEDNN
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


def uses_cpu_kernels(x: Tensor) -> bool:
    """Whether the kernels of ``cpu/`` compute with ``x``: float32 in channels last, on a CPU with oneDNN."""
    return (
        prefers_cpu(x)
        and x.dtype is torch.float32
        and is_channels_last(x)
        and _ONEDNN
        and not torch.is_autocast_enabled("cpu")
    )


def prefers_cpu(x: Tensor) -> bool:
    """Whether what is best on a CPU is the choice for ``x``; kernels ask, which run in eager mode.

    To train in bfloat16 that is plain torch: in channels last a step takes two to three times as long.
    """
    trains_in_bfloat16 = torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
    return _in_use == "auto" and x.is_cpu and not trains_in_bfloat16


def uses_gpu_kernels(x: Tensor) -> bool:
    """Whether the kernels of ``gpu/`` compute with ``x``: in channels last, in a format of autocast."""
    return (
        prefers_gpu(x)
        and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and x.dim() in (4, 5)
        and is_channels_last(x)
    )


def prefers_gpu(x: Tensor) -> bool:
    """Whether what is best on a GPU is the choice for ``x``; kernels ask, which run in eager mode."""
    return _in_use == "auto" and x.is_cuda and _is_measured(x.device.index)


def prefers_channels_last(x: Tensor) -> bool:
    """Whether maps are computed in channels last."""
    return prefers_cpu(x) or prefers_gpu(x)


@cache
def _is_measured(index: int) -> bool:
    """Whether a GPU is of a kind that ``gpu/`` was measured on, or near, and Triton is installed."""
    capability = torch.cuda.get_device_capability(index)
    return torch.version.hip is None and capability >= FIRST_CAPABILITY and find_spec("triton") is not None


def refuse_second_derivative() -> None:
    """Raise if backward is itself recorded, as ``create_graph`` asks for: none of our kernels can do that."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "create_graph must be off: the kernels of UNetPlusPlus have no second derivative. Plain torch "
            "has one: run forward and backward inside `with monai_unetpp.network.kernels.plain():`."
        )


# What TorchScript compiles as well


def has_sizes() -> bool:
    """Whether Python may look at the sizes of a tensor: while it is traced or compiled they are left open."""
    if torch.jit.is_scripting():
        return True
    else:
        return is_eager()


def enter(x: Tensor) -> Tensor:
    """Return ``x`` as the network computes with it.

    That is a plain tensor, since MONAI's ``MetaTensor`` would cost time in every operation; where the kernels
    of ``cpu/`` compute, in channels last, the order that convolves fastest there.
    """
    if torch.jit.is_scripting():
        return x
    else:
        if not is_eager():
            return x
        x = x.as_subclass(Tensor)
        if applies(x):
            return in_order(x)
        return x.contiguous() if x.device.type == "cpu" else x


def leave(y: Tensor, x: Tensor) -> Tensor:
    """Return ``y`` as the type of tensor that came in, such as a ``MetaTensor`` with the meta of ``x``."""
    if torch.jit.is_scripting():
        return y
    else:
        if not is_eager() or type(x) is Tensor:
            return y
        return convert_to_dst_type(y, x, dtype=y.dtype)[0]


def crop(x: Tensor, like: Tensor) -> Tensor:
    """Cut from the end of ``x`` what it has more than ``like`` on the spatial axes."""
    if has_sizes() and x.shape[2:] == like.shape[2:]:
        return x
    crop: list[int] = []
    for axis in range(x.dim() - 1, 1, -1):
        crop += [0, like.shape[axis] - x.shape[axis]]
    return F.pad(x, crop)  # negative: cuts; without a branch, so that it holds for every size


def fill_up(x: Tensor, stride: list[int]) -> Tensor:
    """Return ``x`` padded with -inf to a multiple of ``stride`` for ``torch.compile``; else ``x`` itself."""
    if torch.jit.is_scripting():
        return x
    else:
        if not torch.compiler.is_compiling() or torch.compiler.is_exporting():
            return x
        missing: list[int] = []  # else inductor fails with "Invalid ranges" behind ceil_mode, torch 2.13
        for axis in range(x.dim() - 1, 1, -1):
            n, step = x.shape[axis], stride[axis - 2]
            missing += [0, (n + step - 1) // step * step - n]
        return F.pad(x, missing, value=float("-inf"))


def in_order(x: Tensor) -> Tensor:
    """Return ``x`` in the order in memory that our kernels compute in: channels last, where they do."""
    if not prefers_channels_last(x) or is_channels_last(x):
        return x
    return _Reordered.apply(x)  # type: ignore[no-untyped-call]


def out_of_order(x: Tensor) -> Tensor:
    """Return ``x`` as a plain network has it, contiguous, for a module that is called among kernels.

    In channels last, gradients of torch's instance norm over a batch of one are wrong there (torch 2.13).
    """
    if not prefers_channels_last(x) or x.is_contiguous() or not is_eager():
        return x
    return _Reordered.apply(x)  # type: ignore[no-untyped-call]


class _Reordered(torch.autograd.Function):
    """Between contiguous and channels last; what comes back has the order of what went in."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.was_contiguous = x.is_contiguous()
        return channels_last(x) if ctx.was_contiguous else x.contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.contiguous() if ctx.was_contiguous else channels_last(grad)


def channels_last(x: Tensor) -> Tensor:
    """Return ``x`` (B, C, *spatial) in channels last."""
    return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


def is_channels_last(x: Tensor) -> bool:
    """Whether ``x`` (B, C, *spatial) lies in memory channels last."""
    return x.is_contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
