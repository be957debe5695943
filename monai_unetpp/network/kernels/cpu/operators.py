# SPDX-License-Identifier: Apache-2.0
"""The convolutions of eager inference, and as operators for ``torch.compile`` on the CPU to call.

Left to itself, the compiler would take torch's slow 3D convolution. Norms and activations it fuses better
than we do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from monai_unetpp.network.kernels.cpu import onednn, winograd
from monai_unetpp.network.kernels.dispatch import channels_last

__all__ = ["convolve_compiled", "convolve_maps", "deconvolve_compiled"]


def convolve_maps(
    maps: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor | None, padding: Sequence[int]
) -> Tensor:
    """Return the sum of the convolutions of ``maps``, each of which :func:`.onednn.is_fast`."""
    if all(winograd.pays(x, weight) for x, weight in zip(maps, weights, strict=True)):
        return winograd.convolve(maps, weights, bias)
    y = onednn.convolve_plain(maps[0], weights[0], bias, padding)
    for x, weight in zip(maps[1:], weights[1:], strict=True):
        onednn.add_convolved(y, x, weight, padding)
    return y


@torch.library.custom_op(
    "monai_unetpp::convolve",
    mutates_args=(),
    schema="(Tensor[] maps, Tensor weight, Tensor? bias, int[] padding) -> Tensor",
)
def convolve_compiled(
    maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, padding: Sequence[int]
) -> Tensor:
    """Return the convolution of ``maps`` joined, without joining them."""
    if not onednn.available():
        return channels_last(F.conv3d(torch.cat(list(maps), dim=1), weight, bias, padding=list(padding)))
    weights = torch.split(weight, [x.shape[1] for x in maps], dim=1)
    return convolve_maps([channels_last(x) for x in maps], weights, bias, padding)


@convolve_compiled.register_fake
def _(maps: Sequence[Tensor], weight: Tensor, *_: object) -> Tensor:
    y = maps[0].new_empty(maps[0].shape[0], weight.shape[0], *maps[0].shape[2:])
    return y.contiguous(memory_format=torch.channels_last_3d)


@torch.library.custom_op(
    "monai_unetpp::deconvolve",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, int[] stride) -> Tensor",
)
def deconvolve_compiled(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int]) -> Tensor:
    """Return the transposed convolution of ``x``, whose kernel is as large as its stride."""
    if not onednn.available():
        return channels_last(F.conv_transpose3d(x, weight, bias, stride))
    return onednn.deconvolve(channels_last(x), weight, bias, stride)


@deconvolve_compiled.register_fake
def _(x: Tensor, weight: Tensor, _: Tensor | None, stride: Sequence[int]) -> Tensor:
    size = [n * k for n, k in zip(x.shape[2:], stride, strict=True)]
    y = x.new_empty(x.shape[0], weight.shape[1], *size)
    return y.contiguous(memory_format=torch.channels_last_3d)
