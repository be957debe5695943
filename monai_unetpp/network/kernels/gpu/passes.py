# SPDX-License-Identifier: Apache-2.0
"""Passes over a map in channels last, (B, voxels, C) in memory, which Triton compiles for the GPU.

A program computes a tile of ``rows`` voxels and ``wide`` channels, of ``size`` voxels and ``width`` channels
in all. Sums are taken by chunks of voxels, so that all of a GPU is at work on few maps, and put together by
another pass. All arithmetic is in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["gradient", "gradient_sums", "gradient_total", "normalise", "sums", "total"]


@triton.jit
def _channels(wide: tl.constexpr):
    """Return the channels of the tile."""
    return tl.program_id(1) * wide + tl.arange(0, wide)


@triton.jit
def _tile(c, width, start, end, rows: tl.constexpr):
    """Return offsets (rows, wide) within a sample, and which of them exist."""
    voxels = start + tl.arange(0, rows)
    return voxels.to(tl.int64)[:, None] * width + c[None, :], (voxels < end)[:, None] & (c < width)[None, :]


@triton.jit
def _of_channel(pointer, c, width, default):
    """Load one number per channel of the sample, or ``default`` without any."""
    if pointer is None:
        return tl.full(c.shape, default, tl.float32)
    else:
        return tl.load(pointer + c, mask=c < width, other=0.0).to(tl.float32)


@triton.jit
def _store_sums(part, a, b, width, c):
    """Store two sums of a chunk, of ``part`` (B, chunks, 2, C)."""
    at = part + (tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)) * 2 * width + c
    tl.store(at, tl.sum(a, 0), mask=c < width)
    tl.store(at + width, tl.sum(b, 0), mask=c < width)


@triton.jit
def _load_sums(part, chunks, width, c, most: tl.constexpr):
    """Return the two sums over all chunks."""
    n = tl.arange(0, most)[:, None]
    at = part + (tl.program_id(2) * chunks + n) * 2 * width + c[None, :]
    exists = (n < chunks) & (c < width)[None, :]
    a = tl.sum(tl.load(at, mask=exists, other=0.0), 0)
    return a, tl.sum(tl.load(at + width, mask=exists, other=0.0), 0)


@triton.jit
def sums(x, part, size, width, chunk, rows: tl.constexpr, wide: tl.constexpr):
    """Sum ``x - x[first voxel]`` and its square, by chunk and channel; the shift keeps the digits."""
    x += tl.program_id(2).to(tl.int64) * size * width
    start = tl.program_id(0) * chunk
    end = tl.minimum(start + chunk, size)
    c = _channels(wide)
    first = tl.load(x + c, mask=c < width, other=0.0).to(tl.float32)
    a = tl.zeros([rows, wide], tl.float32)
    b = tl.zeros([rows, wide], tl.float32)
    for k in range(0, chunk, rows):
        at, exists = _tile(c, width, start + k, end, rows)
        v = tl.load(x + at, mask=exists, other=0.0).to(tl.float32) - first[None, :]
        v = tl.where(exists, v, 0.0)
        a += v
        b += v * v
    _store_sums(part, a, b, width, c)


@triton.jit
def total(x, part, mean, rstd, size, width, chunks, eps, wide: tl.constexpr, most: tl.constexpr):
    """Write mean and reciprocal deviation (B, C) from the sums."""
    c = _channels(wide)
    a, b = _load_sums(part, chunks, width, c, most)
    first = tl.load(x + tl.program_id(2).to(tl.int64) * size * width + c, mask=c < width, other=0.0).to(
        tl.float32
    )
    a = a / size
    variance = tl.maximum(b / size - a * a, 0.0)
    tl.store(mean + tl.program_id(2) * width + c, first + a, mask=c < width)
    tl.store(rstd + tl.program_id(2) * width + c, 1 / tl.sqrt(variance + eps), mask=c < width)


@triton.jit
def normalise(x, y, mean, rstd, weight, bias, size, width, slope, rows: tl.constexpr, wide: tl.constexpr):
    """Write ``leaky_relu((x - mean) * rstd * weight + bias, slope)`` to ``y``."""
    sample = tl.program_id(2)
    c = _channels(wide)
    at, exists = _tile(c, width, tl.program_id(0) * rows, size, rows)
    scale = _of_channel(rstd + sample * width, c, width, 1.0) * _of_channel(weight, c, width, 1.0)
    shift = _of_channel(bias, c, width, 0.0) - _of_channel(mean + sample * width, c, width, 0.0) * scale
    at += sample.to(tl.int64) * size * width
    v = tl.load(x + at, mask=exists, other=0.0).to(tl.float32) * scale[None, :] + shift[None, :]
    tl.store(y + at, tl.where(v > 0, v, v * slope).to(y.dtype.element_ty), mask=exists)


@triton.jit
def _before_act(x, g, mean, rstd, weight, bias, at, exists, c, width, slope):
    """Return the normalised ``x``, and the gradient before the activation."""
    n = tl.load(x + at, mask=exists, other=0.0).to(tl.float32)
    n = (n - _of_channel(mean, c, width, 0.0)[None, :]) * _of_channel(rstd, c, width, 1.0)[None, :]
    u = n * _of_channel(weight, c, width, 1.0)[None, :] + _of_channel(bias, c, width, 0.0)[None, :]
    v = tl.load(g + at, mask=exists, other=0.0).to(tl.float32)
    return tl.where(exists, n, 0.0), tl.where(u > 0, v, v * slope)


@triton.jit
def gradient_sums(
    x, g, part, mean, rstd, weight, bias, size, width, slope, chunk, rows: tl.constexpr, wide: tl.constexpr
):
    """Sum the gradient ``g`` before the activation, and its product with the normalised ``x``."""
    sample = tl.program_id(2)
    x += sample.to(tl.int64) * size * width
    g += sample.to(tl.int64) * size * width
    start = tl.program_id(0) * chunk
    end = tl.minimum(start + chunk, size)
    c = _channels(wide)
    a = tl.zeros([rows, wide], tl.float32)
    b = tl.zeros([rows, wide], tl.float32)
    for k in range(0, chunk, rows):
        at, exists = _tile(c, width, start + k, end, rows)
        n, v = _before_act(
            x, g, mean + sample * width, rstd + sample * width, weight, bias, at, exists, c, width, slope
        )
        a += v
        b += v * n
    _store_sums(part, a, b, width, c)


@triton.jit
def gradient_total(part, gn, gnx, width, chunks, wide: tl.constexpr, most: tl.constexpr):
    """Write the sums of :func:`gradient_sums` over all chunks, (B, C)."""
    c = _channels(wide)
    a, b = _load_sums(part, chunks, width, c, most)
    tl.store(gn + tl.program_id(2) * width + c, a, mask=c < width)
    tl.store(gnx + tl.program_id(2) * width + c, b, mask=c < width)


@triton.jit
def gradient(
    x, g, out, mean, rstd, gn, gnx, weight, bias, size, width, slope, rows: tl.constexpr, wide: tl.constexpr
):
    """Write the gradient of ``x``: ``scale * (g - mean of g - n * mean of g n)``, ``n`` the normalised x."""
    sample = tl.program_id(2)
    c = _channels(wide)
    at, exists = _tile(c, width, tl.program_id(0) * rows, size, rows)
    at += sample.to(tl.int64) * size * width
    n, v = _before_act(
        x, g, mean + sample * width, rstd + sample * width, weight, bias, at, exists, c, width, slope
    )
    level = _of_channel(gn + sample * width, c, width, 0.0) / size
    tilt = _of_channel(gnx + sample * width, c, width, 0.0) / size
    scale = _of_channel(rstd + sample * width, c, width, 1.0) * _of_channel(weight, c, width, 1.0)
    v = (v - level[None, :] - n * tilt[None, :]) * scale[None, :]
    tl.store(out + at, v.to(out.dtype.element_ty), mask=exists)
