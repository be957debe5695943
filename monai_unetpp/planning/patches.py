# SPDX-License-Identifier: Apache-2.0
"""Network and patch: the largest for which memory and time suffice, with as many levels as it allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from monai_unetpp.network import UNetPlusPlus
from monai_unetpp.planning.budget import step_multiply_adds, total_memory
from monai_unetpp.planning.choices import Choices, Machine, Plan
from monai_unetpp.planning.fingerprint import Fingerprint
from monai_unetpp.planning.images import MIN_AXIS_VOXELS, median_size, target_diameter

__all__ = ["choose_patch", "network_of"]

MAX_HALVED_RATIO = 2.0  # spacings within this factor are halved together (Isensee)
MAX_LEVELS = 4  # levels of the papers' network
FIRST_WIDTH = {"cpu": 16, "cuda": 32}
MAX_WIDTH = {3: 320, 2: 512}  # as nnU-Net limits them
MAX_PATCH_VOXELS = {3: 192**3, 2: 1024**2}  # voxels of a patch
MIN_PATCH_VOXELS = {3: 32**3, 2: 128**2}  # voxels of a patch that is not made smaller to save time
MIN_STEPS = {3: 400, 2: 1000}  # of a training: a patch for which there is no time for so many is too large
MIN_BATCH_SIZE = {3: 1, 2: 2}
MANY_STEPS = 10_000  # of a training: with more of them than that, steps are made of more patches
MAX_BATCH_SHARE = 0.05  # of the voxels of all cases (Isensee)
COARSER = (1.25, 1.5, 1.75, 2.0)  # times the finest spacing, where there is little time
MIN_TARGET_VOXELS = 16  # diameter of the median target, below which voxels are not made coarser


@dataclass(frozen=True)
class _Candidate:
    """A patch with the network that it allows, and what a training step takes."""

    patch: list[int]
    channels: list[int]
    strides: list[list[int]]
    kernels: list[list[int]]
    batch: int
    needed: float
    steps: float


def choose_patch(choose: Choices, fingerprint: Fingerprint, machine: Machine) -> None:
    """Choose patch, widths, strides, kernels and batch; and coarser voxels where there is little time.

    Strides and kernels follow from patch and spacing. The patch is the median image, or becomes smaller along
    the axis that is longest in comparison with it until memory and time suffice. Where that is for the time,
    and what is segmented is large, voxels become coarser instead, so that a patch shows as much as before.

    Raises:
        ValueError: if not even the smallest patch, or the one that was given, fits in the memory.
    """
    dims, given = choose["spatial_dims"], choose.given.get("roi_size")
    choose.make("skips", lambda: ("long", "U-Net^e: a level costs what a U-Net does; 'dense' is UNet++"))
    if given is None:
        found, limit = _largest_that_fits(choose, fingerprint, choose["pixdim"], machine)
        if limit == "time" and "pixdim" not in choose.given:
            found, limit = _coarser(choose, fingerprint, machine, found)
    elif _is_size(given, dims):
        found, limit = _candidate(choose, given[:dims], choose["pixdim"], machine, fixed=True), ""
    else:
        wanted = "[X, Y, 1], for pictures or slices" if dims == 2 else "[X, Y, Z]"
        raise ValueError(f"roi_size must be {wanted}, whole numbers, got {given}.")
    if found.needed > machine.memory:
        which = f"roi_size {given}" if given is not None else f"the smallest patch, {found.patch},"
        raise ValueError(
            f"memory must be at least {found.needed / 2**30:.2f}GB for {which} with channels "
            f"{found.channels}, got {machine.memory / 2**30:.2f}GB: give more, a smaller "
            "roi_size or fewer channels (--memory, --set)."
        )
    size = median_size(fingerprint.cases, choose["pixdim"])[:dims]
    whole = all(n >= m for n, m in zip(found.patch, size, strict=True))
    reason = f"limited by {limit}" if limit else "the median image" if whole else "the largest that is taken"
    levels = len(found.strides)
    near = f"axes within {MAX_HALVED_RATIO:g} times the finest spacing"
    halved = f"{near} are halved, to {MIN_AXIS_VOXELS} voxels (Isensee)"
    flat = f"3, and 1 along an axis that is coarser than others by more than {MAX_HALVED_RATIO:g} (Isensee)"
    at = f"{reason}; the median image has {_by(size)} voxels at this spacing"
    choose.make("roi_size", lambda: ([*found.patch, 1] if dims == 2 else found.patch, at))
    choose.make("channels", lambda: (found.channels, _reason_of_widths(levels, machine.device)))
    choose.make("strides", lambda: (found.strides, halved))
    choose.make("kernel_size", lambda: (found.kernels, flat))
    choose.make(
        "batch_size", lambda: _batch_size(choose, found, len(fingerprint.cases) * math.prod(size), machine)
    )


def _largest_that_fits(
    choose: Choices, fingerprint: Fingerprint, pixdim: Sequence[float], machine: Machine
) -> tuple[_Candidate, str]:
    """Return the largest patch for which memory and time suffice, and which of them limits it."""
    dims, limit = choose["spatial_dims"], ""
    size = median_size(fingerprint.cases, pixdim)[:dims]
    least = math.inf  # voxels of the smallest patch so far: strides that change may round one up again
    patch = _first_patch(size, [abs(value) for value in pixdim[:dims]], dims)
    while True:
        found = _candidate(choose, patch, pixdim, machine, fixed=False)
        memory = found.needed / machine.memory
        time = min(MIN_STEPS[dims] / found.steps, math.prod(found.patch) / MIN_PATCH_VOXELS[dims])
        if max(memory, time) <= 1:
            return found, limit
        smaller = _smaller(found, size, max(memory, time))
        if smaller is None or math.prod(smaller) >= least:
            return found, limit
        limit = "memory" if memory > time else "time"
        patch, least = smaller, math.prod(smaller)


def _coarser(
    choose: Choices, fingerprint: Fingerprint, machine: Machine, found: _Candidate
) -> tuple[_Candidate, str]:
    """Make voxels coarser, until time no longer limits the patch, or what is segmented would be too small."""
    dims, fine, limit = choose["spatial_dims"], choose["pixdim"], "time"
    finest = min(fine[:dims])
    chosen = (fine, "")
    for factor in COARSER:
        coarse = [*(float(f"{max(value, factor * finest):.4g}") for value in fine[:dims]), *fine[dims:]]
        diameter = target_diameter(fingerprint, coarse, dims)
        if limit != "time" or diameter < MIN_TARGET_VOXELS:
            break
        found, limit = _largest_that_fits(choose, fingerprint, coarse, machine)
        chosen = coarse, f"coarser, as there is little time; the median target is {diameter:.0f} voxels wide"
    if chosen[1]:
        choose.make("pixdim", lambda: chosen)
    return found, limit


def _batch_size(choose: Choices, found: _Candidate, voxels: int, machine: Machine) -> tuple[int, str]:
    """Return as many patches as memory, time and the ``voxels`` of all cases allow; at least the smallest."""
    batch, needed = found.batch, found.needed
    net, limit = network_of(choose, found.channels, found.strides, found.kernels), ""
    while not limit:
        more = total_memory(net, found.patch, 2 * batch, machine.device)
        if more > machine.memory:
            limit = "memory"
        elif found.steps * found.batch < MANY_STEPS * 2 * batch:
            limit = f"time, of which {MANY_STEPS:,} steps need more"
        elif 2 * batch * math.prod(found.patch) > MAX_BATCH_SHARE * voxels:
            limit = f"the data, of which a step shall see at most {MAX_BATCH_SHARE:.0%} (Isensee)"
        else:
            batch, needed = 2 * batch, more
    return batch, f"a step takes {needed / 2**30:.2f} GiB by formula; limited by {limit}"


def _candidate(
    choose: Choices, patch: Sequence[int], pixdim: Sequence[float], machine: Machine, fixed: bool
) -> _Candidate:
    """Return a patch, rounded up to suit the strides unless it is ``fixed``, with its network."""
    dims, given = choose["spatial_dims"], choose.given
    channels, spacing = given.get("channels"), [abs(value) for value in pixdim[:dims]]
    strides, kernels = _shape(patch, spacing, MAX_LEVELS if channels is None else len(channels) - 1)
    strides, kernels = given.get("strides", strides), given.get("kernel_size", kernels)
    channels = _widths(len(strides), dims, machine.device) if channels is None else channels
    if len(channels) - 1 > len(strides):
        raise ValueError(
            f"channels must have at most {len(strides) + 1} entries for a patch of {_by(patch)} voxels, got "
            f"{channels}: fewer, a larger --set roi_size, or --set strides."
        )
    patch = list(patch) if fixed else _divisible(patch, strides)
    net = network_of(choose, channels, strides, kernels)
    batch = given.get("batch_size", MIN_BATCH_SIZE[dims])
    needed = total_memory(net, patch, batch, machine.device)
    steps = machine.hours * 3600 * machine.speed / step_multiply_adds(net, patch, batch)
    return _Candidate(patch, channels, strides, kernels, batch, needed, steps)


def _is_size(given: Any, dims: int) -> bool:
    is_list = isinstance(given, (list, tuple)) and len(given) == 3
    return is_list and all(type(n) is int and n > 0 for n in given) and (dims == 3 or given[2] == 1)


def _first_patch(size: Sequence[int], spacing: Sequence[float], dims: int) -> list[int]:
    """Median image, or, of a large one, a part of it that is as long in mm along each axis."""
    factor = (MAX_PATCH_VOXELS[dims] * math.prod(spacing)) ** (1 / dims)
    return [max(MIN_AXIS_VOXELS, min(n, round(factor / s))) for n, s in zip(size, spacing, strict=True)]


def _shape(
    patch: Sequence[int], spacing: Sequence[float], deepest: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Return strides per row and kernels per row, for at most ``deepest`` levels."""
    sizes, zooms = list(patch), list(spacing)
    strides: list[list[int]] = []
    kernels = [_kernel(zooms)]
    while len(strides) < deepest:
        able = [axis for axis, n in enumerate(sizes) if n >= 2 * MIN_AXIS_VOXELS]
        if not able:
            break
        finest = min(zooms[axis] for axis in able)
        step = [2 if a in able and zooms[a] < MAX_HALVED_RATIO * finest else 1 for a in range(len(sizes))]
        strides.append(step)
        sizes = [math.ceil(n / s) for n, s in zip(sizes, step, strict=True)]
        zooms = [z * s for z, s in zip(zooms, step, strict=True)]
        kernels.append(_kernel(zooms))
    if not strides:
        strides, kernels = [[2 if n >= 2 else 1 for n in patch]], [kernels[0], kernels[0]]
    return strides, kernels


def _kernel(zooms: Sequence[float]) -> list[int]:
    return [1 if zoom > MAX_HALVED_RATIO * min(zooms) else 3 for zoom in zooms]


def _divisible(patch: Sequence[int], strides: Sequence[Sequence[int]]) -> list[int]:
    """Return a patch that all strides but the last divide; the deepest row is small and rounds up itself."""
    *strides, _ = strides
    factors = [math.prod(step[axis] for step in strides) for axis in range(len(patch))]
    return [math.ceil(n / f) * f for n, f in zip(patch, factors, strict=True)]


def _smaller(found: _Candidate, size: Sequence[int], times: float) -> list[int] | None:
    """Return a patch that is nearly ``times`` smaller, by one step of the strides at least; None without one.

    It becomes shorter along the axis that is longest in comparison with the median image.
    """
    factors = [math.prod(step[axis] for step in found.strides) for axis in range(len(size))]
    patch, voxels = list(found.patch), math.prod(found.patch)
    while voxels / math.prod(patch) < max(0.8 * times, 1.0001):
        able = [a for a, n in enumerate(patch) if n - factors[a] >= 2 * MIN_AXIS_VOXELS]
        if not able:
            break
        axis = max(able, key=lambda a: (patch[a] / size[a], patch[a]))
        patch[axis] -= factors[axis]
    return patch if patch != found.patch else None


def _widths(levels: int, dims: int, device: str) -> list[int]:
    return [min(FIRST_WIDTH[device] * 2**i, MAX_WIDTH[dims]) for i in range(levels + 1)]


def _reason_of_widths(levels: int, device: str) -> str:
    what = "a CPU" if device == "cpu" else "a GPU"
    return (
        f"{levels} levels, of which validation chooses; doubled per row from {FIRST_WIDTH[device]}, on {what}"
    )


def network_of(choose: Choices | Plan, channels: Any, strides: Any, kernels: Any) -> UNetPlusPlus:
    """Return the network on the device ``meta``, which takes no memory."""
    with torch.device("meta"):
        return UNetPlusPlus(
            choose["spatial_dims"],
            choose["in_channels"],
            choose["out_channels"],
            channels,
            strides=strides,
            kernel_size=kernels,
            skips=choose["skips"],
        )


def _by(patch: Sequence[int]) -> str:
    return " x ".join(map(str, patch))
