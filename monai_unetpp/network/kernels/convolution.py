# SPDX-License-Identifier: Apache-2.0
"""A convolution over several maps as if they were joined, and a transposed one, each with its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from monai_unetpp.network.kernels import mode, winograd
from monai_unetpp.network.kernels.recompute import autocast, is_recorded, recipe

__all__ = ["Deconv3d", "convolve", "convolve_fast", "convolve_one", "deconvolve_fast"]


def convolve(conv: Any, maps: Sequence[Tensor], pieces: Sequence[int]) -> Tensor:
    """Return what ``conv`` makes of ``maps`` joined along the channels, without joining them.

    Args:
        conv: a convolution that keeps the size of its input.
        maps: (B, C_n, *spatial) each.
        pieces: ``C_n`` of each map.
    """
    weights = conv.weight.split(pieces, dim=1)
    if not is_recorded(*maps, conv.weight):
        return _forward(conv, maps, weights)
    with torch.no_grad():
        y = _forward(conv, maps, weights)
    y = y.clone() if y._is_view() else y  # nothing hangs on a view
    bias = conv.bias
    for x, weight in zip(maps, weights, strict=True):
        y = _Hang.apply(y, x, weight, bias, conv, *recipe(x))  # type: ignore[no-untyped-call]
        bias = None
    return y


def convolve_one(conv: Any, x: Tensor) -> Tensor:
    """Return ``conv(x)``."""
    return convolve(conv, [x], [conv.in_channels])


class Deconv3d(nn.ConvTranspose3d):
    """Transposed convolution whose kernel is as large as its stride, so that no two inputs meet in an output.

    On the CPU torch's own has no channels last in 3D, and takes five times as long.
    """

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:  # noqa: ARG002
        """Map (B, C, X, Y, Z) to (B, C', *(size * stride))."""
        if torch.jit.is_scripting():
            y = F.conv_transpose3d(x, self.weight, self.bias, self.stride)
        else:
            y = self._forward(x)
        return y

    @torch.jit.unused
    def _forward(self, x: Tensor) -> Tensor:
        if mode.is_compiled(x):
            return torch.ops.monai_unetpp.deconvolve(x, self.weight, self.bias, self.stride)
        if mode.is_fast(x):
            return _Deconvolve.apply(x, self.weight, self.bias, self.stride)  # type: ignore[no-untyped-call]
        return F.conv_transpose3d(x, self.weight, self.bias, self.stride)


class _Deconvolve(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return deconvolve_fast(x, weight, bias, stride)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mode.refuse_second_derivative()
        x, weight = ctx.saved_tensors
        grad = mode.channels_last(grad)
        # read backwards, it is a plain convolution: grad is its input, and x the gradient of its result
        gx = torch.ops.aten.mkldnn_convolution(grad, weight, None, [0] * 3, ctx.stride, [1] * 3, 1)
        _, gw = _convolution_backward(x, grad, weight, ctx.stride, [0] * 3, (False, True))
        return gx, gw, grad.sum((0, 2, 3, 4)) if ctx.needs_input_grad[2] else None, None


class _Hang(Function):
    """Hang on a finished sum of convolutions the gradients of one of them.

    One at a time, so that backward has one gradient in memory, and not one for each map of the sum.
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, weight: Tensor, _: Tensor | None, conv: Any, raw: Tensor, make: Any
    ) -> Tensor:
        ctx.save_for_backward(raw, weight)
        ctx.make, ctx.conv, ctx.autocast = make, conv, autocast(x)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mode.refuse_second_derivative()
        raw, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        grad = mode.channels_last(grad)
        with ctx.autocast():
            x = ctx.make(raw).to(grad.dtype)
        gx, gw = _backward(ctx.conv, grad, x, weight.to(grad.dtype), wanted[1:3])
        gb = grad.sum((0, *range(2, grad.dim()))) if wanted[3] else None
        return grad if wanted[0] else None, gx, gw, gb, None, None, None


def _forward(conv: Any, maps: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    if mode.is_compiled(maps[0]):
        return torch.ops.monai_unetpp.convolve(list(maps), conv.weight, conv.bias, conv.padding)
    if all(mode.is_fast(x) for x in maps):
        return convolve_fast(maps, weights, conv.bias, conv.padding)
    y = conv._conv_forward(maps[0], weights[0], conv.bias)
    for x, weight in zip(maps[1:], weights[1:], strict=True):
        y += conv._conv_forward(x, weight, None)
    return y


def convolve_fast(
    maps: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor | None, padding: Sequence[int]
) -> Tensor:
    """Return the sum of the convolutions of ``maps``, each of which :func:`.mode.is_fast`."""
    if all(winograd.pays(x, weight) for x, weight in zip(maps, weights, strict=True)):
        return winograd.convolve(maps, weights, bias)
    # By name: torch would take its slow 3D convolution for a batch of one and few voxels.
    ones = [1] * len(padding)
    y = mode.channels_last(
        torch.ops.aten.mkldnn_convolution(maps[0], weights[0], bias, padding, ones, ones, 1)
    )
    for x, weight in zip(maps[1:], weights[1:], strict=True):  # in place: one map less to write and to read
        torch.ops.mkldnn._convolution_pointwise_.binary(
            y, x, weight, None, padding, ones, ones, 1, "add", 1.0, None, [], None
        )
    return y


def deconvolve_fast(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int]) -> Tensor:
    """Return the transposed 3D convolution of ``x``, which :func:`.mode.is_fast`."""
    return torch.ops.mkldnn._convolution_transpose_pointwise(
        x, weight, bias, [0, 0, 0], [0, 0, 0], stride, [1, 1, 1], 1, "none", [], ""
    )


def _backward(
    conv: Any, grad: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of ``x`` and of ``weight``, or None for what is not wanted."""
    if not (mode.is_fast(x) and mode.is_fast(grad)):
        return _convolution_backward(grad, x, weight, conv.stride, conv.padding, wanted)
    gx = gw = None
    if wanted[0]:
        mirrored = weight.flip(*range(2, weight.dim())).transpose(0, 1)
        gx = convolve_fast([grad], [mirrored], None, conv.padding)
    if wanted[1] and winograd.weight_gradient_pays(x, weight):
        gw = winograd.weight_gradient(x, grad, weight)
    elif wanted[1]:
        _, gw = _convolution_backward(grad, x, weight, conv.stride, conv.padding, (False, True))
    return gx, gw


def _convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of ``x`` and of ``weight`` by torch, but never by its slow 3D convolution."""
    slow = mode.is_fast(x) and _is_slow(x)
    gx, gw, _ = torch.ops.aten.convolution_backward(
        grad.to_mkldnn() if slow else grad,
        x.to_mkldnn() if slow else x,
        weight,
        None,
        stride,
        padding,
        [1] * len(stride),
        False,
        [0] * len(stride),
        1,
        (*wanted, False),
    )
    if slow:
        gx = mode.channels_last(gx.to_dense()) if wanted[0] else None
        gw = gw.to_dense() if wanted[1] and gw.is_mkldnn else gw
    return gx, gw


def _is_slow(x: Tensor) -> bool:
    """Whether torch would take its slow 3D convolution in backward: a batch of one, and few voxels.

    The threshold is that of ``use_mkldnn`` in torch's ``Convolution.cpp``; beyond it oneDNN is used anyway.
    """
    return x.dim() == 5 and x.shape[0] == 1 and x.shape[1] * x.shape[2] * x.shape[3] <= 20480
