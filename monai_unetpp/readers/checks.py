# SPDX-License-Identifier: Apache-2.0
"""What every format is held to: a volume lies somewhere, claims what file and memory can hold."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor
from monai.data.utils import orientation_ras_lps
from numpy.typing import NDArray

__all__ = [
    "GIB",
    "MAX_DEFLATE_RATIO",
    "Geometry",
    "Volume",
    "available_memory",
    "check_affine",
    "check_claim",
    "check_fits",
    "greatest_distance",
    "lps_to_ras",
    "required_memory",
    "voxels_of",
]

MIN_SPACING_MM, MAX_SPACING_MM = 1e-4, 1e3  # less or more is damage, or another unit
MAX_EXTENT_MM = 5000.0  # along an axis
MAX_DISTANCE_MM = 1e6  # from the origin of the scanner
MAX_DEFLATE_RATIO = 1032  # the most that DEFLATE can make of a byte
COPIES = 3  # of a volume in float32 that reading and turning it, or resampling it, take at most
GIB = 2**30


@dataclass(frozen=True)
class Geometry:
    """Size and spacing of a volume, known from its header.

    Args:
        size: Voxels along each spatial axis.
        spacing: Distance between voxels along each of them, mm.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...]


@dataclass(frozen=True)
class Volume:
    """One volume as it was read.

    Args:
        array: Voxels (X, Y, Z), followed by an axis of channels if ``channels``.
        affine: Voxel index to world mm (RAS+), (4, 4); (3, 3) for a picture of two axes.
        channels: Whether the last axis holds channels.
        warnings: What is odd about the file, each a sentence with its name.
        sections: Of a DICOM series, name of the file and number of the frame, from 0, of each slice along the
            last spatial axis.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]
    channels: bool = False
    warnings: tuple[str, ...] = ()
    sections: tuple[tuple[str, int], ...] = ()


def check_affine(path: Path | str, affine: Any, shape: Sequence[int]) -> None:
    """Raise a ValueError if a volume cannot lie where its affine, (4, 4), to mm, puts it."""
    matrix = np.asarray(affine, dtype=np.float64)
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    near = np.isfinite(matrix).all() and np.abs(matrix[:3, 3]).max() <= MAX_DISTANCE_MM
    if not near or not ((spacing >= MIN_SPACING_MM) & (spacing <= MAX_SPACING_MM)).all():
        raise ValueError(
            f"{path} must have voxels of {MIN_SPACING_MM:g} to {MAX_SPACING_MM:g} mm, less than "
            f"{MAX_DISTANCE_MM / 1e6:g} km away, got {' x '.join(f'{s:g}' for s in spacing)} mm at "
            f"{', '.join(f'{p:g}' for p in matrix[:3, 3])}."
        )
    if abs(np.linalg.det(matrix[:3, :3] / spacing)) < 1e-3:
        raise ValueError(f"{path} must have three axes in space, but two of them are one: {matrix[:3, :3]}.")
    extent = spacing * shape
    if extent.max() > MAX_EXTENT_MM:
        raise ValueError(
            f"{path} must be at most {MAX_EXTENT_MM / 1000:g} m long, got {extent.max() / 1000:g} m."
        )


def check_claim(path: Path | str, claimed: int, held: int, deflated: bool = False) -> None:
    """Raise a ValueError if ``held`` bytes, deflated or not, cannot hold what a header claims."""
    if claimed > held * (MAX_DEFLATE_RATIO if deflated else 1):
        raise ValueError(
            f"{path} is truncated or damaged: its header claims {claimed:,} bytes of voxels, the file holds "
            f"{held:,}{' deflated ones' if deflated else ''}."
        )


def required_memory(voxels: float) -> float:
    """Return the bytes that loading a volume of so many voxels takes at most."""
    return COPIES * 4 * voxels


def check_fits(path: Path | str, voxels: int) -> None:
    """Raise a ValueError if a volume of so many voxels takes more memory than is available."""
    required, available = required_memory(voxels), available_memory()
    if available is not None and required > available:
        raise ValueError(
            f"{path} has {voxels / 1e6:,.0f} million voxels, which take {required / GIB:.1f} GiB; "
            f"{available / GIB:.1f} GiB of memory are available."
        )


def available_memory() -> int | None:
    """Return the bytes that a process may still take, or ``None`` where the system does not tell."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024


def lps_to_ras(matrix: NDArray[np.float64], origin: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return an affine to RAS+ from axes (columns, mm per voxel) and an origin in LPS+, as ITK has them."""
    axes = len(origin)
    affine = np.eye(axes + 1)
    affine[:axes, :axes], affine[:axes, axes] = matrix, origin
    return np.asarray(orientation_ras_lps(affine))


def voxels_of(size: Sequence[int]) -> int:
    """Return the number of voxels, exactly."""
    return math.prod(int(n) for n in size)


def greatest_distance(a: MetaTensor, b: MetaTensor) -> float:
    """Return how far apart, in mm, the affines of two arrays of one shape put the same corner."""
    corners = itertools.product(*((0, size - 1) for size in a.shape[1:]))
    index = np.array([(*corner, 1) for corner in corners], dtype=float).T
    shift = (a.affine - b.affine).cpu().numpy()[:-1] @ index
    return float(np.linalg.norm(shift, axis=0).max())
