# SPDX-License-Identifier: Apache-2.0
"""How much memory a cached data set takes, known from the headers before a voxel is read."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from monai_unetpp.readers import read_geometry

__all__ = ["available_memory", "cached_bytes", "check_cache", "check_volume"]

logger = logging.getLogger(__name__)

_GIB = 2**30


def check_cache(cases: Sequence[Mapping[str, str]], pixdim: Sequence[float], cache_rate: float) -> None:
    """Stop a training whose cached cases do not fit in memory before it starts.

    Args:
        cases: one dictionary per case, with the paths of its volumes.
        pixdim: spacing at which they are cached, in mm.
        cache_rate: share of the cases that is cached.

    Raises:
        ValueError: if the cases take more memory than is available; the message names the rate that fits.
    """
    total = sum(cached_bytes(case, pixdim) for case in cases)
    available = available_memory()
    logger.info(f"{len(cases)} cases take {total / _GIB:.2f} GiB of memory at pixdim {list(pixdim)} mm.")
    if available is not None and cache_rate * total > available:
        fits = math.floor(100 * 0.8 * available / total) / 100  # the rest is for the training itself
        raise ValueError(
            f"cache_rate {cache_rate:g} would keep {cache_rate * total / _GIB:.1f} GiB of {len(cases)} cases "
            f"in memory, of which {available / _GIB:.1f} GiB are available: --cache_rate {fits:g} fits."
        )


def cached_bytes(case: Mapping[str, str], pixdim: Sequence[float]) -> float:
    """Return the bytes of a case's volumes in float32; an estimate.

    ``pixdim`` is what they are resampled to, mm; as for ``Spacing``, one that is not positive stands for the
    volume's own.
    """
    total = 0.0
    for path in (case[key] for key in ("image", "label") if key in case):
        try:
            shape, spacing = read_geometry(path)
        except Exception:  # said better, and with the file's name, where the case is loaded
            logger.debug(f"{path} has no header to read.")
            continue
        widths = [b if b > 0 else a for a, b in zip(spacing, pixdim, strict=True)]
        total += 4 * math.prod(n * a / b for n, a, b in zip(shape, spacing, widths, strict=True))
    return total


def check_volume(path: str, pixdim: Sequence[float] | None = None) -> None:
    """Stop before a volume is loaded that does not fit in memory.

    Args:
        path: of the volume.
        pixdim: what it is resampled to, in mm, as :func:`cached_bytes` takes it; default not at all.

    Raises:
        ValueError: if it takes more memory than is available: three times its voxels in float32, which
            reading and turning it, or resampling it, take at most.
    """
    try:
        size, spacing = read_geometry(path)
    except Exception:  # said better where it is loaded
        return
    voxels: float = math.prod(size)
    resampled = _resampled(size, spacing, pixdim) if pixdim is not None else 0.0
    needed, available = 3 * 4 * max(voxels, resampled), available_memory()
    if available is not None and needed > available:
        at = f" at pixdim {list(pixdim)} mm" if pixdim is not None and resampled > voxels else ""
        raise ValueError(
            f"{path} has {max(voxels, resampled) / 1e6:,.0f} million voxels{at}, which take "
            f"{needed / _GIB:.1f} GiB; {available / _GIB:.1f} GiB of memory are available."
        )


def _resampled(size: Sequence[int], spacing: Sequence[float], pixdim: Sequence[float]) -> float:
    """Voxels of a volume at ``pixdim``, one at least along each axis."""
    widths = [b if b > 0 else a for a, b in zip(spacing, pixdim, strict=False)]
    return math.prod(max(n * a / b, 1) for n, a, b in zip(size, spacing, widths, strict=False))


def available_memory() -> int | None:
    """Return the bytes that a process may still take, or None where the system does not tell."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024
