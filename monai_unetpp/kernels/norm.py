# SPDX-License-Identifier: Apache-2.0
"""Instance norm that is fast and exact in channels last.

Torch's group norm in channels last keeps plain running sums, wrong in the fourth digit; its instance norm copies.
Here the variance is taken about the mean, a slab at a time, and mean, variance, weight and bias become
one scale and one shift a channel: a map is read once to be normalised.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from monai_unetpp.kernels import mode

__all__ = ["InstanceNorm", "Statistics", "normalise", "statistics"]

Statistics = tuple[Tensor, Tensor]  # mean and 1 / standard deviation, (B, C, 1, ...) each

_SLAB = 2**20  # numbers: about what a processor's cache holds


class InstanceNorm(nn.modules.instancenorm._InstanceNorm):
    """Instance norm without running statistics."""

    def _check_input_dim(self, x: Tensor) -> None:
        """Take any number of axes."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, *spatial) over the spatial axes."""
        if torch.jit.is_scripting():
            y = F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)
        else:
            y = self._forward(x)
        return y

    @torch.jit.unused
    def _forward(self, x: Tensor) -> Tensor:
        if mode.is_fast(x):
            return normalise(x, self, statistics(x, self.eps))
        if mode.is_eager() and x.device.type == "cpu":  # the same, and takes a third of the time
            return F.group_norm(x, self.num_features, self.weight, self.bias, self.eps)
        return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)


def statistics(x: Tensor, eps: float) -> Statistics:
    """Return mean and reciprocal standard deviation of each channel of each (C, *spatial) in ``x``."""
    x = x.detach()
    mean = x.mean(_spatial(x), keepdim=True)
    return mean, _mean_product(x, mean, None).add_(eps).rsqrt_()


def normalise(x: Tensor, norm: InstanceNorm, given: Statistics, in_place: bool = False) -> Tensor:
    """Return ``(x - mean) / deviation * weight + bias``; ``given`` are the statistics of ``x``.

    Backward does know that they are those of ``x``.
    """
    if in_place:
        scale, shift = _scale_and_shift(given, norm.weight, norm.bias)
        return torch.addcmul(shift, x, scale, out=x)
    return _Normalise.apply(x, *given, norm.weight, norm.bias)  # type: ignore[no-untyped-call]


class _Normalise(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, mean, rstd, weight)
        scale, shift = _scale_and_shift((mean, rstd), weight, bias)
        return torch.addcmul(shift, x, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mode.refuse_second_derivative()
        x, mean, rstd, weight = ctx.saved_tensors
        scale, _ = _scale_and_shift((mean, rstd), weight, None)
        g = grad.mean(_spatial(grad), keepdim=True)
        gx = _mean_product(x, mean, grad).mul_(rstd)  # of the gradient and the normalised x
        slope = -gx * rstd * scale
        # scale * (grad - g - (x - mean) * rstd * gx)
        result = torch.addcmul(-g * scale - slope * mean, grad, scale).addcmul_(x, slope)
        voxels = x[0, 0].numel()
        gw, gb = (voxels * total.sum((0, *_spatial(x))) for total in (gx, g))
        return result, None, None, None if weight is None else gw, None if weight is None else gb


def _scale_and_shift(given: Statistics, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    mean, rstd = given
    shape = (1, -1, *[1] * (mean.dim() - 2))
    scale = rstd if weight is None else rstd * weight.detach().view(shape)
    shift = -mean * scale
    return scale, shift if bias is None else shift + bias.detach().view(shape)


def _mean_product(x: Tensor, mean: Tensor, y: Tensor | None) -> Tensor:
    """Mean of ``(x - mean) * y`` over the spatial axes, or of ``(x - mean)^2``; (B, C, 1, ...)."""
    slabs = -(-x.numel() // _SLAB)
    total = torch.zeros_like(mean)
    for n, part in enumerate(x.chunk(slabs, 2)):
        centred = part - mean
        total += centred.mul_(centred if y is None else y.chunk(slabs, 2)[n]).sum(_spatial(x), keepdim=True)
    return total.div_(x[0, 0].numel())


def _spatial(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.dim()))
