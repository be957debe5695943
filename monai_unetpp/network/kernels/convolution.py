# SPDX-License-Identifier: Apache-2.0
"""A convolution over several maps as if they were joined, with its gradients; on any device.

A convolution over joined maps is the sum of convolutions over each of them. Nothing is joined, and what
backward keeps of a map is what the map is made from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from monai_unetpp.network.kernels import dispatch
from monai_unetpp.network.kernels.cpu import onednn, operators, winograd
from monai_unetpp.network.kernels.gpu import norm as gpu
from monai_unetpp.network.kernels.recompute import Repeated, activate, autocast, is_recorded, recipe

__all__ = ["Conv2d", "Conv3d", "Upsampling", "convolve_joined", "convolve_norm_act"]


class Conv2d(dispatch.Dispatched, nn.Conv2d):
    """A convolution of one map, such as a head's; backward keeps what its input was made from."""

    def kernel(self, x: Tensor) -> Tensor:
        """Compute ``forward(x)``."""
        if not is_plain(self) or dispatch.prefers_gpu(x):
            return self.forward(x)
        return (
            _compiled(self, [x]) if dispatch.is_compiled(x) else convolve_joined(self, [dispatch.in_order(x)])
        )


class Conv3d(dispatch.Dispatched, nn.Conv3d):
    """The same in 3D."""

    kernel = Conv2d.kernel


CONVOLUTIONS = frozenset((nn.Conv2d, nn.Conv3d, Conv2d, Conv3d))


def convolve_norm_act(block: Any, maps: Sequence[Tensor]) -> Tensor:
    """Return ``block.adn(block.conv(maps joined))``; a part that is not as we built it is called.

    Args:
        block: a :class:`~monai_unetpp.network.blocks.JointConv`.
        maps: (B, C_n, *spatial) each.
    """
    conv = block.conv
    ours = is_plain(conv) and conv.in_channels == sum(x.shape[1] for x in maps)
    if dispatch.is_compiled(maps[0]):  # the compiler makes one kernel of norm and activation
        return block.adn(_compiled(conv, maps) if ours else conv(torch.cat(list(maps), dim=1)))
    maps = [dispatch.in_order(x) for x in maps]
    if dispatch.prefers_gpu(maps[0]):
        joined = torch.cat(maps, dim=1) if len(maps) > 1 else maps[0]
        if ours and gpu.takes(block.adn):  # a bias is a pass of its own, and means nothing to the norm
            z = conv._conv_forward(joined, conv.weight, None)
            return gpu.norm_act(dispatch.in_order(z), block.adn, conv.bias)
        return block.adn(dispatch.out_of_order(conv(joined)))
    z = convolve_joined(conv, maps) if ours else conv(dispatch.out_of_order(torch.cat(maps, dim=1)))
    return activate(block.adn, dispatch.in_order(z), may_overwrite=ours)


def _compiled(conv: Any, maps: Sequence[Tensor]) -> Tensor:
    return torch.ops.monai_unetpp.convolve(list(maps), conv.weight, conv.bias, conv.padding)


def is_plain(conv: Any) -> bool:
    """Whether a convolution keeps the size of its input, as those that we build, and nobody changed it."""
    return (
        dispatch.is_untouched(conv, CONVOLUTIONS)
        and type(conv.weight) is nn.Parameter
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and {*conv.stride, *conv.dilation} == {1}
        and conv.padding == tuple([k // 2 for k in conv.kernel_size])
    )


def convolve_joined(conv: Any, maps: Sequence[Tensor]) -> Tensor:
    """Return what ``conv`` makes of ``maps`` joined along the channels, without joining them.

    Args:
        conv: a convolution of which :func:`is_plain` is true.
        maps: (B, C_n, *spatial) each.
    """
    weights = conv.weight.split([x.shape[1] for x in maps], dim=1)
    if not is_recorded(*maps, conv.weight):
        return _convolve_without_graph(conv, maps, weights)
    with torch.no_grad():
        y = _convolve_without_graph(conv, maps, weights)
    y = y.clone() if y._is_view() else y  # nothing hangs on a view
    bias = conv.bias
    for x, weight in zip(maps, weights, strict=True):
        y = _Hang.apply(y, x, weight, bias, conv, *recipe(x))  # type: ignore[no-untyped-call]
        bias = None
    return y


class Upsampling(Repeated):
    """``U``, of which backward makes input and result again; a 3D deconvolution is a matrix product."""

    def _steps(self, x: Tensor) -> Tensor:
        deconv = getattr(self, "deconv", None)
        if type(deconv) is nn.ConvTranspose3d and not dispatch.has_hooks(deconv) and _is_exact(deconv):
            if dispatch.is_compiled(x):
                return torch.ops.monai_unetpp.deconvolve(x, deconv.weight, deconv.bias, deconv.stride)
            if onednn.is_fast(x):
                return _Deconvolve.apply(x, deconv.weight, deconv.bias, deconv.stride)  # type: ignore[no-untyped-call]
        return self.forward(x)


def _is_exact(deconv: nn.ConvTranspose3d) -> bool:
    """Whether the kernel is as large as the stride, so that no two inputs meet in an output."""
    return deconv.kernel_size == deconv.stride and deconv.groups == 1 and not any(deconv.output_padding)


class _Deconvolve(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return onednn.deconvolve(x, weight, bias, stride)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dispatch.refuse_second_derivative()
        x, weight = ctx.saved_tensors
        grad = dispatch.channels_last(grad)
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
        dispatch.refuse_second_derivative()
        raw, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        grad = dispatch.in_order(grad)
        with ctx.autocast():
            x = ctx.make(raw).to(grad.dtype)
        gx, gw = _backward(ctx.conv, grad, x, weight.to(grad.dtype), wanted[1:3])
        gb = grad.sum((0, *range(2, grad.dim()))) if wanted[3] else None
        return grad if wanted[0] else None, gx, gw, gb, None, None, None


def _convolve_without_graph(conv: Any, maps: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    if all(map(onednn.is_fast, maps)):
        return operators.convolve_maps(maps, weights, conv.bias, conv.padding)
    y = conv._conv_forward(maps[0], weights[0], conv.bias)
    for x, weight in zip(maps[1:], weights[1:], strict=True):
        y += conv._conv_forward(x, weight, None)
    return y


def _backward(
    conv: Any, grad: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of ``x`` and of ``weight``, or None for what is not wanted."""
    if not (onednn.is_fast(x) and onednn.is_fast(grad)):
        return _convolution_backward(grad, x, weight, conv.stride, conv.padding, wanted)
    gx = gw = None
    if wanted[0]:
        mirrored = weight.flip(*range(2, weight.dim())).transpose(0, 1)
        gx = operators.convolve_maps([grad], [mirrored], None, conv.padding)
    if wanted[1] and winograd.weight_gradient_pays(x, weight):
        gw = winograd.weight_gradient(x, grad, weight)
    elif wanted[1]:
        if onednn.weight_gradient_is_slow(x):
            grad, x = grad.contiguous(), x.contiguous()
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
    slow = onednn.is_fast(x) and _is_slow(x)
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
        gx = dispatch.channels_last(gx.to_dense()) if wanted[0] else None
        gw = gw.to_dense() if wanted[1] and gw.is_mkldnn else gw
    return gx, gw


def _is_slow(x: Tensor) -> bool:
    """Whether torch would take its slow 3D convolution in backward: a batch of one, and few voxels.

    The threshold is that of ``use_mkldnn`` in torch's ``Convolution.cpp``; beyond it oneDNN is used anyway.
    """
    return x.dim() == 5 and x.shape[0] == 1 and x.shape[1] * x.shape[2] * x.shape[3] <= 20480
