# SPDX-License-Identifier: Apache-2.0
"""The 3D convolutions of eager inference as operators, for ``torch.compile`` on the CPU to call.

Left to itself it would take torch's slow 3D convolution. Norms and activations it fuses better than we do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_unetpp.network.kernels.convolution import convolve_fast, deconvolve_fast
from monai_unetpp.network.kernels.mode import channels_last

__all__ = ["convolve", "deconvolve"]


@torch.library.custom_op(
    "monai_unetpp::convolve",
    mutates_args=(),
    schema="(Tensor[] maps, Tensor weight, Tensor? bias, int[] padding) -> Tensor",
)
def convolve(maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, padding: Sequence[int]) -> Tensor:
    """Return the convolution of ``maps`` joined, without joining them."""
    weights = torch.split(weight, [x.shape[1] for x in maps], dim=1)
    return convolve_fast([channels_last(x) for x in maps], weights, bias, padding)


@convolve.register_fake
def _(maps: Sequence[Tensor], weight: Tensor, *_: object) -> Tensor:
    y = maps[0].new_empty(maps[0].shape[0], weight.shape[0], *maps[0].shape[2:])
    return y.contiguous(memory_format=torch.channels_last_3d)


@torch.library.custom_op(
    "monai_unetpp::deconvolve",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, int[] stride) -> Tensor",
)
def deconvolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int]) -> Tensor:
    """Return the transposed convolution of ``x``, whose kernel is as large as its stride."""
    return deconvolve_fast(channels_last(x), weight, bias, stride)


@deconvolve.register_fake
def _(x: Tensor, weight: Tensor, _: Tensor | None, stride: Sequence[int]) -> Tensor:
    size = [n * k for n, k in zip(x.shape[2:], stride, strict=True)]
    y = x.new_empty(x.shape[0], weight.shape[1], *size)
    return y.contiguous(memory_format=torch.channels_last_3d)
