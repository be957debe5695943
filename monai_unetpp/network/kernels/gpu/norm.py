# SPDX-License-Identifier: Apache-2.0
"""Instance norm and the activation after it, in one pass over a map in channels last.

Torch computes an instance norm by a batch norm, one block of the GPU for each channel of each sample, and
copies what is in channels last: 40 % of the time of a network in mixed precision. Here each map is read
twice and written once.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch
from monai.networks.blocks import ADN
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from monai_unetpp.network.kernels import dispatch

__all__ = ["NormAct", "available", "norm_act", "takes"]

logger = logging.getLogger(__name__)

TILE = 4096  # values of a tile
MAX_CHANNELS = 64  # of a tile
PROGRAMS = 1024  # a few for each of a GPU's processors
MAX_CHUNKS = 256
MAX_DIFFERENCE = 1e-4  # of numbers around 1, in float32


def takes(adn: nn.Module) -> bool:
    """Whether ``adn`` is MONAI's, and starts with an instance norm without running statistics or hooks."""
    norm: Any = next(iter(adn.children()), None)
    return (
        type(adn) is ADN
        and type(norm) in (nn.InstanceNorm2d, nn.InstanceNorm3d)
        and not norm.track_running_stats
        and not any(map(dispatch.has_hooks, (adn, norm)))
    )


def norm_act(x: Tensor, adn: nn.Module, left_out: Tensor | None = None) -> Tensor:
    """Return ``adn(x)``.

    Args:
        x: (B, C, *spatial), a map that is nobody else's: inference computes in place.
        adn: Norm, dropout and activation that :func:`takes` takes.
        left_out: Parameter that would make no difference, whose gradient is 0.
    """
    norm, *rest = adn.children()
    slope = _slope(rest[0]) if len(rest) == 1 else None
    if not (dispatch.uses_gpu_kernels(x) and available(x.device.index)):
        y = norm(dispatch.out_of_order(x))
        y = y + 0 * left_out.sum() if left_out is not None and torch.is_grad_enabled() else y
    else:
        rest = rest if slope is None else []
        y = _norm_act(x, norm, 1.0 if slope is None else slope, left_out)
    for step in rest:
        y = step(y)
    return y


def _slope(act: nn.Module) -> float | None:
    """Return the slope of an activation below zero; None if it is no (leaky) ReLU, or somebody hooks."""
    if dispatch.has_hooks(act) or type(act) not in (nn.ReLU, nn.LeakyReLU):
        return None
    return float(getattr(act, "negative_slope", 0.0))


def _norm_act(x: Tensor, norm: Any, slope: float, left_out: Tensor | None = None) -> Tensor:
    if torch.is_grad_enabled():
        return NormAct.apply(x, norm.eps, slope, norm.weight, norm.bias, left_out)  # type: ignore[no-untyped-call]
    return _normalised(x, *_statistics(x, norm.eps), norm.weight, norm.bias, slope, out=x)


class NormAct(Function):
    """``leaky_relu((x - mean) / deviation * weight + bias)``, whose statistics are those of ``x``."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        x: Tensor,
        eps: float,
        slope: float,
        weight: Tensor | None,
        bias: Tensor | None,
        left_out: Tensor | None,
    ) -> Tensor:
        mean, rstd = _statistics(x, eps)
        ctx.save_for_backward(x, mean, rstd, weight, bias)
        ctx.slope, ctx.left_out = slope, left_out
        return _normalised(x, mean, rstd, weight, bias, slope, out=torch.empty_like(x))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        dispatch.refuse_second_derivative()
        x, mean, rstd, weight, bias = ctx.saved_tensors
        gx, gw, gb = _gradients(x, dispatch.channels_last(grad), mean, rstd, weight, bias, ctx.slope)
        wanted = ctx.needs_input_grad
        return (
            *(gx, None, None),
            gw.to(weight.dtype) if wanted[3] else None,
            gb.to(bias.dtype) if wanted[4] else None,
            torch.zeros_like(ctx.left_out) if wanted[5] else None,
        )


def _shape(x: Tensor) -> tuple[int, int, dict[str, int]]:
    """Return voxels and channels of a sample, and the size of a tile."""
    channels = x.shape[1]
    wide = min(MAX_CHANNELS, 1 << (channels - 1).bit_length())
    return x[0, 0].numel(), channels, {"tile_voxels": TILE // wide, "tile_channels": wide}


def _by_chunk(x: Tensor) -> tuple[int, tuple[int, int, int], Tensor]:
    """Return the voxels of a chunk, a grid of programs over chunks, and room for two sums of each."""
    voxels, channels, tile = _shape(x)
    blocks = -(-channels // tile["tile_channels"])
    wanted = max(1, min(MAX_CHUNKS, PROGRAMS // (len(x) * blocks), voxels // (4 * tile["tile_voxels"])))
    chunk = -(-voxels // (wanted * tile["tile_voxels"])) * tile["tile_voxels"]
    chunks = -(-voxels // chunk)
    part = torch.empty(len(x), chunks, 2, channels, dtype=torch.float32, device=x.device)
    return chunk, (chunks, blocks, len(x)), part


def _launch(name: str, grid: tuple[int, ...], x: Tensor, *arguments: Any, **sizes: int) -> None:
    """Let a pass compute on the GPU of ``x``, whichever is the current one."""
    from monai_unetpp.network.kernels.gpu import passes  # Triton may be missing

    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        getattr(passes, name)[grid](x, *arguments, **sizes)


def _statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return mean and reciprocal standard deviation, (B, C) each."""
    voxels, channels, tile = _shape(x)
    chunk, grid, part = _by_chunk(x)
    mean, rstd = torch.empty(2, len(x), channels, dtype=torch.float32, device=x.device).unbind()
    _launch("sums", grid, x, part, voxels, channels, chunk, **tile)
    sizes = {"tile_channels": tile["tile_channels"], "max_chunks": MAX_CHUNKS}
    _launch("total", (1, grid[1], grid[2]), x, part, mean, rstd, voxels, channels, grid[0], eps, **sizes)
    return mean, rstd


def _normalised(
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    slope: float,
    out: Tensor,
) -> Tensor:
    voxels, channels, tile = _shape(x)
    grid = (-(-voxels // tile["tile_voxels"]), -(-channels // tile["tile_channels"]), len(x))
    _launch("normalise", grid, x, out, mean, rstd, weight, bias, voxels, channels, slope, **tile)
    return out


def _gradients(
    x: Tensor,
    grad: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of ``x``, of ``weight`` and of ``bias``."""
    voxels, channels, tile = _shape(x)
    chunk, grid, part = _by_chunk(x)
    gn, gnx = torch.empty(2, len(x), channels, dtype=torch.float32, device=x.device).unbind()
    given = (mean, rstd, weight, bias)
    _launch("gradient_sums", grid, x, grad, part, *given, voxels, channels, slope, chunk, **tile)
    sizes = {"tile_channels": tile["tile_channels"], "max_chunks": MAX_CHUNKS}
    _launch("gradient_total", (1, grid[1], grid[2]), part, gn, gnx, channels, grid[0], **sizes)
    gx, tiles = torch.empty_like(x), (-(-voxels // tile["tile_voxels"]), grid[1], grid[2])
    _launch(
        "gradient", tiles, x, grad, gx, mean, rstd, gn, gnx, weight, bias, voxels, channels, slope, **tile
    )
    return gx, gnx.sum(0), gn.sum(0)


@cache
def available(index: int) -> bool:
    """Whether Triton compiles the passes for a GPU, and they give what torch gives; tried once a process."""
    try:
        worst = _largest_difference(torch.device("cuda", index))
        if worst <= MAX_DIFFERENCE:
            return True
        reason = f"differ from torch's instance norm by up to {worst:.2g}"
    except Exception as error:  # whatever compiler and driver raise
        reason = f"fail: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    logger.warning(
        f"The Triton kernels for this GPU {reason}. Torch's operators compute the network, with the same "
        "result in more time."
    )
    return False


def _largest_difference(device: torch.device) -> float:
    """Return that between ours and torch's results and gradients, for a small map."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        x, grad = torch.randn(2, 2, 5, 9, 7, 6, device=device).unbind()
    with torch.autocast(device.type, enabled=False), torch.no_grad():
        norm = nn.InstanceNorm3d(5, affine=True).to(device)
        last = dispatch.channels_last(x)
        given = _statistics(last, norm.eps)
        found = _normalised(last, *given, norm.weight, norm.bias, 0.1, out=torch.empty_like(last))
        found_grad, *_ = _gradients(last, dispatch.channels_last(grad), *given, norm.weight, norm.bias, 0.1)
        with torch.enable_grad():
            y = F.leaky_relu(norm(x.requires_grad_()), 0.1)
            (wanted_grad,) = torch.autograd.grad(y, x, grad)
        return max(float((found - y).abs().max()), float((found_grad - wanted_grad).abs().max()))
