# SPDX-License-Identifier: Apache-2.0
"""Instance norm and the activation after it, fast and exact in channels last.

Torch's group norm in channels last keeps plain running sums, wrong in the fourth digit; its instance norm
copies. Here mean and variance are taken of groups, of few enough voxels for sums in single precision, and
put together; with weight and bias they become one scale and one shift a channel. Norm and activation
pass over a map together, a slab that the cache holds at a time, and so does their backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional as F

from monai_unetpp.network.kernels import dispatch
from monai_unetpp.network.kernels.cpu import onednn

__all__ = ["NormAct", "Statistics", "instance_norm", "norm_act", "statistics"]

Statistics = tuple[Tensor, Tensor]  # mean and 1 / standard deviation, (B, C, 1, ...) each

_SUMMED = 2**8  # voxels of which a sum is taken in single precision
_CACHED = 2**19  # numbers in a slab that stays in the processor's cache


def instance_norm(x: Tensor, norm: Any) -> Tensor:
    """Return ``norm(x)`` of an instance norm without running statistics."""
    if onednn.is_fast(x):
        return norm_act(x, norm, None)
    if dispatch.prefers_cpu(x):  # the same, and takes a third of the time
        return F.group_norm(x, x.shape[1], norm.weight, norm.bias, norm.eps)
    return norm(x)


def statistics(x: Tensor, eps: float) -> Statistics:
    """Return mean and reciprocal standard deviation of each channel of each (C, *spatial) in ``x``."""
    voxels, shape = x[0, 0].numel(), (*x.shape[:2], *[1] * (x.dim() - 2))
    groups = max(1, voxels // _SUMMED)
    whole = voxels // groups * groups
    found = []
    for rows in x.detach().movedim(1, -1).reshape(len(x), voxels, -1):
        # a row of one voxel becomes a row of `groups` voxels, each with sums of its own
        parts = [(whole, rows[:whole].view(-1, groups * x.shape[1])), (voxels - whole, rows[whole:])]
        found.append([(n, *torch.batch_norm_update_stats(r, None, None, 0.0)) for n, r in parts if n])
    means = torch.stack([torch.cat([mean.view(-1, x.shape[1]) for _, mean, _ in part]) for part in found])
    variances = torch.stack([torch.cat([var.view(-1, x.shape[1]) for *_, var in part]) for part in found])
    share = means.new_full((means.shape[1], 1), whole / groups / voxels)
    share[groups:] = 1 - whole / voxels
    mean = (means * share).sum(1, keepdim=True)
    variance = ((variances + (means - mean).square()) * share).sum(1)  # within groups, and between them
    return mean.view(shape), (variance + eps).rsqrt_().view(shape)


def norm_act(x: Tensor, norm: Any, act: nn.Module | None, may_overwrite: bool = False) -> Tensor:
    """Return ``act(norm(x))``.

    Args:
        x: (B, C, *spatial), of which :func:`.onednn.is_fast` is true.
        norm: instance norm without running statistics.
        act: elementwise activation, or None.
        may_overwrite: whether to compute in place where nothing is recorded for backward.
    """
    given = statistics(x, norm.eps)  # once, however often the result is made again
    if not torch.is_grad_enabled():
        out = x if may_overwrite else torch.empty_like(x)
        return _norm_act(x, given, norm.weight, norm.bias, act, out=out)
    parameters = () if act is None else tuple(act.parameters())
    return NormAct.apply(x, *given, act, norm.weight, norm.bias, *parameters)  # type: ignore[no-untyped-call]


class NormAct(Function):
    """``act((x - mean) / deviation * weight + bias)``; backward knows that these are statistics of ``x``."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        rstd: Tensor,
        act: nn.Module | None,
        weight: Tensor | None,
        bias: Tensor | None,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, mean, rstd, weight, bias)
        ctx.act, ctx.parameters = act, parameters

        def make(raw: Tensor) -> Tensor:
            return _norm_act(raw, (mean, rstd), weight, bias, act, out=torch.empty_like(raw))

        ctx.make_again = make
        return make(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        dispatch.refuse_second_derivative()
        x, mean, rstd, weight, bias = ctx.saved_tensors
        scale, shift = _scale_and_shift((mean, rstd), weight, bias)
        wanted = [parameter for parameter in ctx.parameters if parameter.requires_grad]
        totals = [torch.zeros_like(parameter) for parameter in wanted]
        gx, gn, gnx = torch.empty_like(x), torch.zeros_like(mean), torch.zeros_like(mean)
        for part, g, out in zip(_slabs(x), _slabs(grad), _slabs(gx), strict=True):
            g, *gp = _act_backward(ctx.act, part, scale, shift, g, wanted)
            out.copy_(g)
            gn += g.sum(_spatial(x), keepdim=True)
            gnx += (part - mean).mul_(g).sum(_spatial(x), keepdim=True)
            for total, gradient in zip(totals, gp, strict=True):
                total += gradient
        gnx *= rstd
        # scale * (g - mean of g - n * mean of g n), where n is the normalised x
        voxels = x[0, 0].numel()
        slope = -gnx * rstd * scale / voxels
        level = -gn * scale / voxels - slope * mean
        for part, out in zip(_slabs(x), _slabs(gx), strict=True):
            torch.addcmul(level, out, scale, out=out).addcmul_(part, slope)
        gw, gb = (total.sum((0, *_spatial(x))) for total in (gnx, gn))
        totals_left = iter(totals)
        return (
            *(gx, None, None, None),
            gw if ctx.needs_input_grad[4] else None,
            gb if ctx.needs_input_grad[5] else None,
            *(next(totals_left) if parameter.requires_grad else None for parameter in ctx.parameters),
        )


def _norm_act(
    x: Tensor,
    given: Statistics,
    weight: Tensor | None,
    bias: Tensor | None,
    act: nn.Module | None,
    out: Tensor,
) -> Tensor:
    scale, shift = _scale_and_shift(given, weight, bias)
    for part, into in zip(_slabs(x), _slabs(out), strict=True):
        torch.addcmul(shift, part, scale, out=into)
        y = into if act is None else act(into)
        if y is not into:  # not an activation in place
            into.copy_(y)
    return out


def _act_backward(
    act: nn.Module | None, x: Tensor, scale: Tensor, shift: Tensor, grad: Tensor, parameters: list[Tensor]
) -> tuple[Tensor, ...]:
    """Return the gradients of the normalised ``x`` and of the activation's parameters."""
    if act is None:
        return (grad,)
    with torch.enable_grad():
        normalised = torch.addcmul(shift.requires_grad_(), x, scale)
        edge = get_gradient_edge(normalised)  # the activation may be in place
        inputs: Any = [edge, *parameters]  # torch takes both kinds at once, its types do not say so
        return torch.autograd.grad(act(normalised), inputs, grad)


def _scale_and_shift(given: Statistics, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    mean, rstd = given
    shape = (1, -1, *[1] * (mean.dim() - 2))
    scale = rstd if weight is None else rstd * weight.detach().view(shape)
    shift = -mean * scale
    return scale, shift if bias is None else shift + bias.detach().view(shape)


def _slabs(x: Tensor) -> tuple[Tensor, ...]:
    """Cut ``x`` along its first spatial axis into pieces that the cache holds, as near as can be."""
    return x.chunk(max(1, round(x.numel() / _CACHED)), 2)


def _spatial(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.dim()))
