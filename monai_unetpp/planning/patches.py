# SPDX-License-Identifier: Apache-2.0
"""Network and patch: the largest for which memory and time suffice, with as many levels as it allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from monai_unetpp.network import UNetPlusPlus
from monai_unetpp.planning.budget import step_multiply_adds, total_memory
from monai_unetpp.planning.choices import Choices, Machine
from monai_unetpp.planning.images import SHORTEST

__all__ = ["choose_patch", "network_of"]

NEAR = 2.0  # spacings within this factor are halved together (Isensee)
DEEPEST = 4  # levels of the papers' network
WIDTH = {"cpu": 16, "cuda": 32}
WIDEST = {3: 320, 2: 512}  # as nnU-Net limits them
LARGEST = {3: 192**3, 2: 1024**2}  # voxels of a patch
LEAST = {3: 32**3, 2: 128**2}  # voxels of a patch that is not made smaller to save time
LEAST_STEPS = 500  # of a training: a patch for which there is no time for so many is too large
BATCH = {3: 2, 2: 8}


def choose_patch(choose: Choices, size: Sequence[int], machine: Machine) -> None:
    """Largest patch for which memory and time suffice, with as many levels as it allows.

    Strides and kernels follow from patch and spacing. It starts with the median image and becomes smaller
    along the axis that is largest in comparison with it.
    """
    dims = choose["spatial_dims"]
    spacing = [abs(value) for value in choose["pixdim"][:dims]]
    given = choose.given.get("roi_size")
    patch = list(given[:dims]) if given is not None else _first_patch(size[:dims], spacing, dims)
    limits: list[str] = []
    while True:
        strides, kernels = _shape(patch, spacing)
        patch = patch if given is not None else _divisible(patch, strides)
        channels = choose.given.get("channels") or _widths(len(strides), dims, machine.device)
        if len(channels) - 1 < len(strides):
            strides, kernels = strides[: len(channels) - 1], kernels[: len(channels)]
        net = network_of(choose, channels, strides, kernels)
        batch = choose.given.get("batch_size", BATCH[dims])
        needed = total_memory(net, patch, batch, plain=machine.device == "cuda")
        steps = machine.hours * 3600 * machine.speed / step_multiply_adds(net, patch, batch)
        if needed > machine.memory:
            limits.append("memory")
        elif steps < LEAST_STEPS and math.prod(patch) > LEAST[dims]:
            limits.append("time")
        else:
            break
        if given is not None:
            if limits[-1] == "memory":
                raise ValueError(
                    f"roi_size {given} takes {needed / 2**30:.1f} GiB, and {machine.memory / 2**30:.1f} GiB "
                    "are available: give a smaller one, or fewer channels."
                )
            break
        smaller = _smaller(patch, size[:dims], strides)
        if smaller is None:
            if limits[-1] == "memory":
                raise ValueError(
                    f"memory must be at least {needed / 2**30:.2f} GiB for the smallest patch, {patch}, got "
                    f"{machine.memory / 2**30:.2f}: --memory, or fewer channels (--set channels [8,16])."
                )
            break
        patch = smaller
    whole = all(n >= m for n, m in zip(patch, size, strict=False))
    limit = (
        f"limited by {limits[-1]}"
        if limits
        else ("the median image" if whole else "the largest that is taken")
    )
    at = " x ".join(map(str, size[:dims]))
    roi = [*patch, 1] if dims == 2 else patch
    choose.make("roi_size", lambda: (roi, f"{limit}; the median image has {at} voxels at this spacing"))
    choose.make("channels", lambda: (channels, _reason_of_widths(len(strides), machine.device)))
    halved = (
        f"axes within a factor of {NEAR:g} of the finest spacing are halved, to {SHORTEST} voxels (Isensee)"
    )
    choose.make("strides", lambda: (strides, halved))
    flat = f"3, and 1 along an axis that is coarser than others by more than {NEAR:g} (Isensee)"
    choose.make("kernel_size", lambda: (kernels, flat))
    choose.make("batch_size", lambda: (batch, f"a step takes {needed / 2**30:.2f} GiB by formula"))


def _first_patch(size: Sequence[int], spacing: Sequence[float], dims: int) -> list[int]:
    """Median image, or, of a large one, a part of it that is as long in mm along each axis."""
    factor = (LARGEST[dims] * math.prod(spacing)) ** (1 / dims)
    return [max(SHORTEST, min(n, round(factor / s))) for n, s in zip(size, spacing, strict=True)]


def _shape(patch: Sequence[int], spacing: Sequence[float]) -> tuple[list[list[int]], list[list[int]]]:
    """Return strides per row and kernels per row, for at most the deepest level."""
    sizes, zooms = list(patch), list(spacing)
    strides: list[list[int]] = []
    kernels = [_kernel(zooms)]
    while len(strides) < DEEPEST:
        able = [axis for axis, n in enumerate(sizes) if n >= 2 * SHORTEST]
        if not able:
            break
        finest = min(zooms[axis] for axis in able)
        step = [2 if a in able and zooms[a] < NEAR * finest else 1 for a in range(len(sizes))]
        strides.append(step)
        sizes = [math.ceil(n / s) for n, s in zip(sizes, step, strict=True)]
        zooms = [z * s for z, s in zip(zooms, step, strict=True)]
        kernels.append(_kernel(zooms))
    if not strides:
        strides, kernels = [[2 if n >= 2 else 1 for n in patch]], [kernels[0], kernels[0]]
    return strides, kernels


def _kernel(zooms: Sequence[float]) -> list[int]:
    return [1 if zoom > NEAR * min(zooms) else 3 for zoom in zooms]


def _divisible(patch: Sequence[int], strides: Sequence[Sequence[int]]) -> list[int]:
    factors = [math.prod(step[axis] for step in strides) for axis in range(len(patch))]
    return [math.ceil(n / f) * f for n, f in zip(patch, factors, strict=True)]


def _smaller(patch: Sequence[int], size: Sequence[int], strides: Sequence[Sequence[int]]) -> list[int] | None:
    """Return a patch that is shorter along the axis that is longest in comparison with the median image."""
    factors = [math.prod(step[axis] for step in strides) for axis in range(len(patch))]
    able = [axis for axis, n in enumerate(patch) if n - factors[axis] >= 2 * SHORTEST]
    if not able:
        return None
    axis = max(able, key=lambda a: (patch[a] / size[a], patch[a]))
    return [n - factors[a] if a == axis else n for a, n in enumerate(patch)]


def _widths(levels: int, dims: int, device: str) -> list[int]:
    return [min(WIDTH[device] * 2**i, WIDEST[dims]) for i in range(levels + 1)]


def _reason_of_widths(levels: int, device: str) -> str:
    what = "a CPU" if device == "cpu" else "a GPU"
    return f"{levels} levels, of which validation chooses; doubled per row from {WIDTH[device]}, on {what}"


def network_of(choose: Choices, channels: Any, strides: Any, kernels: Any) -> UNetPlusPlus:
    """Return the network on the device ``meta``, which takes no memory."""
    with torch.device("meta"):
        return UNetPlusPlus(
            choose["spatial_dims"],
            choose["in_channels"],
            choose["out_channels"],
            channels,
            strides=strides,
            kernel_size=kernels,
        )
