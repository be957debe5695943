# SPDX-License-Identifier: Apache-2.0
"""3D convolution with half the multiplications, by Winograd's F(4, 3) along the first spatial axis.

Four slices of the result need six slices of the input. Combined by ``B^T``, these six are convolved in 2D,
each with its own combination ``G`` of the kernel's three slices, and ``A^T`` combines the six products into
the four slices: ``y = A^T [(G w) * (B^T x)]``. That is 6 convolutions in 2D; plain convolution takes 12.
Each combination is a matrix product over whole slices, which lie together in channels last.

Reference: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (CVPR 2016, arXiv:1509.09308).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from monai_unetpp.network.kernels.cpu import onednn

__all__ = ["convolve", "pays", "weight_gradient", "weight_gradient_pays"]

POINTS, TILE, TAPS = 6, 4, 3
B_T = torch.tensor(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    dtype=torch.float64,
)
G = torch.tensor(
    [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64
).div(24)
A_T = torch.tensor(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], dtype=torch.float64
)
ONE = 1  # the point whose product is added to every slice of the result: the place for a bias

_WORKSPACE = 2**22  # numbers in each of two buffers: about what a processor's cache holds


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether this is faster than plain convolution: the maps are wide, and large beside the kernel."""
    return (
        x.dim() == 5
        and weight.shape[2] == TAPS
        and min(weight.shape[:2]) >= 32
        and x.shape[2] >= TILE
        and x[0, 0].numel() >= 24 * max(weight.shape[:2])
    )


def weight_gradient_pays(x: Tensor, weight: Tensor) -> bool:
    """Whether this is faster than plain backward, which is slow for few channels of large maps, too."""
    few = x.dim() == 5 and weight.shape[2] == TAPS and weight.shape[1] <= 8 < x[0, 0].numel() // 2**12
    return few or pays(x, weight)


def convolve(maps: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """Return the sum of the convolutions of each of ``maps`` with its weight, plus the bias.

    Args:
        maps: (B, C_n, X, Y, Z) each, channels last; padded with zeros, so that the size is kept.
        weights: (O, C_n, 3, k, k) each, ``k`` odd.
        bias: (O,).

    Returns:
        (B, O, X, Y, Z), channels last.
    """
    b, _, depth, *plane = maps[0].shape
    widths = [weight.shape[1] for weight in weights]
    out = len(weights[0])
    y = torch.empty_like(maps[0][:, :1].expand(-1, out, -1, -1, -1), memory_format=torch.channels_last_3d)
    kernels = [torch.einsum("td,ocdyz->toyzc", G.to(weight), weight) for weight in weights]
    voxels = math.prod(plane)
    slabs = _slabs_of_tiles(depth, max(out, *widths) * voxels)
    spaces = [y.new_empty(POINTS * len(slabs[0]) * voxels * width) for width in (out, max(widths))]
    for tiles in slabs:
        for n in range(b):
            products = _workspace(spaces[0], len(tiles), voxels * out).zero_()
            if bias is not None:
                products[ONE].view(-1, out).add_(bias)
            for x, width, kernel in zip(maps, widths, kernels, strict=True):
                data = _workspace(spaces[1], len(tiles), voxels * width)
                _combine(B_T.to(x), _rows(x[n]), 1, tiles, data)
                for product, part, k in zip(
                    _images(products, plane), _images(data, plane), kernel, strict=True
                ):
                    _add_convolved(product, part, k.permute(0, 3, 1, 2))
            _collect(products, _rows(y[n]), tiles)
    return y


def weight_gradient(x: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of ``weight`` (O, C, 3, k, k).

    Args:
        x: (B, C, X, Y, Z), channels last.
        grad: of the result, (B, O, X, Y, Z), channels last.
        weight: for its shape.
    """
    b, c, depth, *plane = x.shape
    o, voxels = len(weight), math.prod(plane)
    total = weight.new_zeros(POINTS, o, c, *weight.shape[3:])
    padding = [k // 2 for k in weight.shape[3:]]
    slabs = _slabs_of_tiles(depth, max(o, c) * voxels)
    spaces = [x.new_empty(POINTS * len(slabs[0]) * voxels * width) for width in (c, o)]
    for tiles in slabs:
        data, grads = (
            _workspace(spaces[0], len(tiles), voxels * c),
            _workspace(spaces[1], len(tiles), voxels * o),
        )
        for n in range(b):
            _combine(B_T.to(x), _rows(x[n]), 1, tiles, data)
            _combine(A_T.to(x).t(), _rows(grad[n]), 0, tiles, grads)
            for gradient, part, sum_ in zip(_images(grads, plane), _images(data, plane), total, strict=True):
                sum_ += torch.ops.aten.convolution_backward(
                    gradient,
                    part,
                    sum_,
                    None,
                    [1, 1],
                    padding,
                    [1, 1],
                    False,
                    [0, 0],
                    1,
                    (False, True, False),
                )[1]
    return torch.einsum("td,tocyz->ocdyz", G.to(total), total)


def _slabs_of_tiles(depth: int, width: int) -> list[range]:
    """Return the tiles, each of four slices of ``width`` numbers, as many at a time as fill a workspace."""
    tiles = -(-depth // TILE)
    step = max(2, _WORKSPACE // (POINTS * width))
    step = -(-tiles // -(-tiles // step))  # all alike
    return [range(start, min(start + step, tiles)) for start in range(0, tiles, step)]


def _workspace(space: Tensor, tiles: int, width: int) -> Tensor:
    """View the beginning of ``space`` as (6, tiles, width); it is made once, since new memory is slow."""
    return space[: POINTS * tiles * width].view(POINTS, tiles, width)


def _rows(x: Tensor) -> Tensor:
    """View (C, X, Y, Z), channels last, as a matrix (X, Y Z C), a slice a row."""
    return x.permute(1, 2, 3, 0).flatten(1)


def _images(rows: Tensor, plane: Sequence[int]) -> tuple[Tensor, ...]:
    """View matrices (6, n, Y Z C), each as n images (n, C, Y, Z), channels last."""
    return rows.view(*rows.shape[:2], *plane, -1).permute(0, 1, 4, 2, 3).unbind()


def _combine(matrix: Tensor, rows: Tensor, before: int, tiles: range, out: Tensor) -> None:
    """For each tile t, set ``out[:, t]`` to ``matrix`` times the rows from 4 t - ``before`` on."""
    size, width = rows.shape
    taps = matrix.shape[1]
    first = max(tiles.start, min(1, before))  # tiles first .. last - 1 lie inside
    last = max(first, min(tiles.stop, (size + before - taps) // TILE + 1))
    if last > first:
        inside = rows.as_strided(
            (last - first, taps, width),
            (TILE * width, width, 1),
            rows.storage_offset() + (TILE * first - before) * width,
        )
        into = out[:, first - tiles.start : last - tiles.start].transpose(0, 1)
        torch.bmm(matrix.expand(last - first, -1, -1), inside, out=into)
    for t in (*range(tiles.start, min(first, tiles.stop)), *range(last, tiles.stop)):
        origin = TILE * t - before
        start, stop = max(origin, 0), min(origin + taps, size)
        torch.mm(matrix[:, start - origin : stop - origin], rows[start:stop], out=out[:, t - tiles.start])


def _collect(products: Tensor, rows: Tensor, tiles: range) -> None:
    """For each tile t, set the four rows from 4 t on to ``A^T`` times its six products."""
    a_t = A_T.to(rows)
    whole = min(tiles.stop, len(rows) // TILE) - tiles.start
    if whole > 0:
        into = rows[TILE * tiles.start : TILE * (tiles.start + whole)].view(whole, TILE, -1)
        torch.bmm(a_t.expand(whole, -1, -1), products[:, :whole].transpose(0, 1), out=into)
    if whole < len(tiles):
        rest = rows[TILE * (tiles.start + whole) :]
        torch.mm(a_t[: len(rest)], products[:, whole], out=rest)


def _add_convolved(y: Tensor, x: Tensor, weight: Tensor) -> None:
    """Add to ``y`` (n, O, Y, Z) the 2D convolution of ``x`` (n, C, Y, Z)."""
    padding = [k // 2 for k in weight.shape[2:]]
    if x.dtype == torch.float32:
        onednn.add_convolved(y, x, weight, padding)
    else:
        y += torch.nn.functional.conv2d(x, weight, padding=padding)
