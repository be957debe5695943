# SPDX-License-Identifier: Apache-2.0
"""Passes over a map in channels last, (B, voxels, C) in memory, which Triton compiles for the GPU.

A program computes a tile of ``tile_voxels`` times ``tile_channels``, of ``voxels`` times ``channels`` in all.
Sums are taken by chunks of voxels, so that all of a GPU is at work on few maps, and put together by another
pass. All arithmetic is in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["gradient", "gradient_sums", "gradient_total", "normalise", "sums", "total"]


@triton.jit
def _of_tile(tile_channels: tl.constexpr):
    """Return the channels of the tile."""
    return tl.program_id(1) * tile_channels + tl.arange(0, tile_channels)


@triton.jit
def _tile(c, channels, start, end, tile_voxels: tl.constexpr):
    """Return offsets (tile_voxels, tile_channels) within a sample, and which of them exist."""
    here = start + tl.arange(0, tile_voxels)
    return here.to(tl.int64)[:, None] * channels + c[None, :], (here < end)[:, None] & (c < channels)[None, :]


@triton.jit
def _of_channel(pointer, c, channels, default):
    """Load one number per channel of the sample, or ``default`` without any."""
    if pointer is None:
        return tl.full(c.shape, default, tl.float32)
    else:
        return tl.load(pointer + c, mask=c < channels, other=0.0).to(tl.float32)


@triton.jit
def _store_sums(part, a, b, channels, c):
    """Store two sums of a chunk, of ``part`` (B, chunks, 2, C)."""
    at = part + (tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)) * 2 * channels + c
    tl.store(at, tl.sum(a, 0), mask=c < channels)
    tl.store(at + channels, tl.sum(b, 0), mask=c < channels)


@triton.jit
def _load_sums(part, chunks, channels, c, max_chunks: tl.constexpr):
    """Return the two sums over all chunks."""
    n = tl.arange(0, max_chunks)[:, None]
    at = part + (tl.program_id(2) * chunks + n) * 2 * channels + c[None, :]
    exists = (n < chunks) & (c < channels)[None, :]
    a = tl.sum(tl.load(at, mask=exists, other=0.0), 0)
    return a, tl.sum(tl.load(at + channels, mask=exists, other=0.0), 0)


@triton.jit
def sums(x, part, voxels, channels, chunk, tile_voxels: tl.constexpr, tile_channels: tl.constexpr):
    """Sum ``x - x[first voxel]`` and its square, by chunk and channel; the shift keeps the digits."""
    x += tl.program_id(2).to(tl.int64) * voxels * channels
    start = tl.program_id(0) * chunk
    end = tl.minimum(start + chunk, voxels)
    c = _of_tile(tile_channels)
    first = tl.load(x + c, mask=c < channels, other=0.0).to(tl.float32)
    a = tl.zeros([tile_voxels, tile_channels], tl.float32)
    b = tl.zeros([tile_voxels, tile_channels], tl.float32)
    for k in range(0, chunk, tile_voxels):
        at, exists = _tile(c, channels, start + k, end, tile_voxels)
        v = tl.load(x + at, mask=exists, other=0.0).to(tl.float32) - first[None, :]
        v = tl.where(exists, v, 0.0)
        a += v
        b += v * v
    _store_sums(part, a, b, channels, c)


@triton.jit
def total(
    x, part, mean, rstd, voxels, channels, chunks, eps, tile_channels: tl.constexpr, max_chunks: tl.constexpr
):
    """Write mean and reciprocal deviation (B, C) from the sums."""
    c = _of_tile(tile_channels)
    a, b = _load_sums(part, chunks, channels, c, max_chunks)
    first = tl.load(
        x + tl.program_id(2).to(tl.int64) * voxels * channels + c, mask=c < channels, other=0.0
    ).to(tl.float32)
    a = a / voxels
    variance = tl.maximum(b / voxels - a * a, 0.0)
    tl.store(mean + tl.program_id(2) * channels + c, first + a, mask=c < channels)
    tl.store(rstd + tl.program_id(2) * channels + c, 1 / tl.sqrt(variance + eps), mask=c < channels)


@triton.jit
def normalise(
    x,
    y,
    mean,
    rstd,
    weight,
    bias,
    voxels,
    channels,
    slope,
    tile_voxels: tl.constexpr,
    tile_channels: tl.constexpr,
):
    """Write ``leaky_relu((x - mean) * rstd * weight + bias, slope)`` to ``y``."""
    sample = tl.program_id(2)
    c = _of_tile(tile_channels)
    at, exists = _tile(c, channels, tl.program_id(0) * tile_voxels, voxels, tile_voxels)
    scale = _of_channel(rstd + sample * channels, c, channels, 1.0) * _of_channel(weight, c, channels, 1.0)
    shift = (
        _of_channel(bias, c, channels, 0.0) - _of_channel(mean + sample * channels, c, channels, 0.0) * scale
    )
    at += sample.to(tl.int64) * voxels * channels
    v = tl.load(x + at, mask=exists, other=0.0).to(tl.float32) * scale[None, :] + shift[None, :]
    tl.store(y + at, tl.where(v > 0, v, v * slope).to(y.dtype.element_ty), mask=exists)


@triton.jit
def _before_act(x, g, mean, rstd, weight, bias, at, exists, c, channels, slope):
    """Return the normalised ``x``, and the gradient before the activation."""
    n = tl.load(x + at, mask=exists, other=0.0).to(tl.float32)
    n = (n - _of_channel(mean, c, channels, 0.0)[None, :]) * _of_channel(rstd, c, channels, 1.0)[None, :]
    u = n * _of_channel(weight, c, channels, 1.0)[None, :] + _of_channel(bias, c, channels, 0.0)[None, :]
    v = tl.load(g + at, mask=exists, other=0.0).to(tl.float32)
    return tl.where(exists, n, 0.0), tl.where(u > 0, v, v * slope)


@triton.jit
def gradient_sums(
    x,
    g,
    part,
    mean,
    rstd,
    weight,
    bias,
    voxels,
    channels,
    slope,
    chunk,
    tile_voxels: tl.constexpr,
    tile_channels: tl.constexpr,
):
    """Sum the gradient ``g`` before the activation, and its product with the normalised ``x``."""
    sample = tl.program_id(2)
    x += sample.to(tl.int64) * voxels * channels
    g += sample.to(tl.int64) * voxels * channels
    start = tl.program_id(0) * chunk
    end = tl.minimum(start + chunk, voxels)
    c = _of_tile(tile_channels)
    a = tl.zeros([tile_voxels, tile_channels], tl.float32)
    b = tl.zeros([tile_voxels, tile_channels], tl.float32)
    for k in range(0, chunk, tile_voxels):
        at, exists = _tile(c, channels, start + k, end, tile_voxels)
        n, v = _before_act(
            x,
            g,
            mean + sample * channels,
            rstd + sample * channels,
            weight,
            bias,
            at,
            exists,
            c,
            channels,
            slope,
        )
        a += v
        b += v * n
    _store_sums(part, a, b, channels, c)


@triton.jit
def gradient_total(part, gn, gnx, channels, chunks, tile_channels: tl.constexpr, max_chunks: tl.constexpr):
    """Write the sums of :func:`gradient_sums` over all chunks, (B, C)."""
    c = _of_tile(tile_channels)
    a, b = _load_sums(part, chunks, channels, c, max_chunks)
    tl.store(gn + tl.program_id(2) * channels + c, a, mask=c < channels)
    tl.store(gnx + tl.program_id(2) * channels + c, b, mask=c < channels)


@triton.jit
def gradient(
    x,
    g,
    out,
    mean,
    rstd,
    gn,
    gnx,
    weight,
    bias,
    voxels,
    channels,
    slope,
    tile_voxels: tl.constexpr,
    tile_channels: tl.constexpr,
):
    """Write the gradient of ``x``: ``scale * (g - mean of g - n * mean of g n)``, ``n`` the normalised x."""
    sample = tl.program_id(2)
    c = _of_tile(tile_channels)
    at, exists = _tile(c, channels, tl.program_id(0) * tile_voxels, voxels, tile_voxels)
    at += sample.to(tl.int64) * voxels * channels
    n, v = _before_act(
        x, g, mean + sample * channels, rstd + sample * channels, weight, bias, at, exists, c, channels, slope
    )
    level = _of_channel(gn + sample * channels, c, channels, 0.0) / voxels
    tilt = _of_channel(gnx + sample * channels, c, channels, 0.0) / voxels
    scale = _of_channel(rstd + sample * channels, c, channels, 1.0) * _of_channel(weight, c, channels, 1.0)
    v = (v - level[None, :] - n * tilt[None, :]) * scale[None, :]
    tl.store(out + at, v.to(out.dtype.element_ty), mask=exists)
