# SPDX-License-Identifier: Apache-2.0
"""Operators of oneDNN that torch keeps to itself, each tried before it is used.

Private operators may change with any release of torch: :func:`available` tries each once in a process, and
where one is missing or wrong, torch's public operators compute.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from monai_unetpp.network.kernels import dispatch

__all__ = ["add_convolved", "available", "convolve_plain", "deconvolve", "is_fast", "weight_gradient_is_slow"]

logger = logging.getLogger(__name__)

_HAS_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
MAX_DIFFERENCE = 1e-4  # of numbers around 1, in float32


def is_fast(x: Tensor) -> bool:
    """Whether ``x`` (B, C, *spatial) is what the kernels of this folder are made for."""
    return dispatch.uses_cpu_kernels(x) and available()


def weight_gradient_is_slow(x: Tensor) -> bool:
    """Whether oneDNN makes the gradient of a 2D weight faster from contiguous copies: without AVX-512.

    Measured with AVX2, widths 32 to 256, 64^2 to 256^2: for images ``x`` (B, C, H, W) of more than half a
    million values each, channels last takes 1.2 to 3 times as long. In 3D it is the faster one.
    """
    return x.dim() == 4 and not _HAS_AVX512 and x[0].numel() > 2**19


def convolve_plain(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int]) -> Tensor:
    """Return the convolution of ``x``, in channels last.

    By name: torch would take its slow 3D convolution for a batch of one and few voxels.
    """
    ones = [1] * len(padding)
    return dispatch.channels_last(torch.ops.aten.mkldnn_convolution(x, weight, bias, padding, ones, ones, 1))


def add_convolved(y: Tensor, x: Tensor, weight: Tensor, padding: Sequence[int]) -> None:
    """Add to ``y``, in place, the convolution of ``x``: one map less to write and to read."""
    ones = [1] * len(padding)
    torch.ops.mkldnn._convolution_pointwise_.binary(
        y, x, weight, None, padding, ones, ones, 1, "add", 1.0, None, [], None
    )


def deconvolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int]) -> Tensor:
    """Return the transposed 3D convolution of ``x``, whose kernel is as large as its stride.

    Torch's own has no channels last in 3D, and takes five times as long.
    """
    return torch.ops.mkldnn._convolution_transpose_pointwise(
        x, weight, bias, [0, 0, 0], [0, 0, 0], stride, [1, 1, 1], 1, "none", [], ""
    )


@cache
def available() -> bool:
    """Whether every private operator exists and gives what torch's public ones give; tried once a process."""
    wrong = [name for name, check in _CHECKS.items() if not _holds(name, check)]
    return not wrong


def _holds(name: str, check: Callable[[], tuple[Tensor, Tensor]]) -> bool:
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            got, wanted = check()
        if got.shape == wanted.shape and torch.allclose(got, wanted, rtol=0, atol=MAX_DIFFERENCE):
            return True
        reason = f"differs from the public one by up to {float((got - wanted).abs().max()):.2g}"
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        reason = f"fails: {str(error).splitlines()[0]}"
    logger.warning(
        f"The operator {name} of torch {torch.__version__} {reason}. Torch's public operators compute the "
        "network, with the same result in more time."
    )
    return False


def _small_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """A small map (1, 4, 4, 5, 3) in channels last, and the kernels of a convolution and a deconvolution."""
    return (
        dispatch.channels_last(torch.randn(1, 4, 4, 5, 3)),
        torch.randn(4, 4, 3, 3, 3) / 9,
        torch.randn(4, 4, 2, 2, 2),
    )


def _check_convolution() -> tuple[Tensor, Tensor]:
    x, weight, _ = _small_inputs()
    return convolve_plain(x, weight, None, [1, 1, 1]), F.conv3d(x, weight, padding=1)


def _check_sum() -> tuple[Tensor, Tensor]:
    x, weight, _ = _small_inputs()
    y = x.clone(memory_format=torch.preserve_format)
    add_convolved(y, x, weight, [1, 1, 1])
    return y, x + F.conv3d(x, weight, padding=1)


def _check_deconvolution() -> tuple[Tensor, Tensor]:
    x, _, weight = _small_inputs()
    return deconvolve(x, weight, None, [2, 2, 2]), F.conv_transpose3d(x, weight, stride=2)


def _check_statistics() -> tuple[Tensor, Tensor]:
    rows = torch.randn(60, 4)
    mean, variance = torch.batch_norm_update_stats(rows, None, None, 0.0)
    return torch.stack([mean, variance]), torch.stack([rows.mean(0), rows.var(0, correction=0)])


_CHECKS: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "aten::mkldnn_convolution": _check_convolution,
    "mkldnn::_convolution_pointwise_": _check_sum,
    "mkldnn::_convolution_transpose_pointwise": _check_deconvolution,
    "aten::batch_norm_update_stats": _check_statistics,
}
