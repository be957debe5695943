# SPDX-License-Identifier: Apache-2.0
"""How much memory volumes take, known from their headers before a voxel is read or unpacked."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

from monai_unetpp.readers.checks import GIB, available_memory, required_memory
from monai_unetpp.readers.loader import read_geometry

__all__ = ["available_memory", "cached_bytes", "check_cache", "check_volume"]

logger = logging.getLogger(__name__)


def check_cache(cases: Sequence[Mapping[str, str]], pixdim: Sequence[float], cache_rate: float) -> None:
    """Stop a training whose cached cases do not fit in memory before it starts.

    Args:
        cases: One dictionary per case, with the paths of its volumes.
        pixdim: Spacing at which they are cached, mm.
        cache_rate: Share of the cases that is cached.

    Raises:
        ValueError: if the cases take more memory than is available; the message names the rate that fits.
    """
    total = sum(cached_bytes(case, pixdim) for case in cases)
    available = available_memory()
    logger.info(f"{len(cases)} cases take {total / GIB:.2f} GiB of memory at pixdim {list(pixdim)} mm.")
    if available is not None and cache_rate * total > available:
        fits = math.floor(100 * 0.8 * available / total) / 100  # the rest is for the training itself
        raise ValueError(
            f"cache_rate {cache_rate:g} would keep {cache_rate * total / GIB:.1f} GiB of {len(cases)} cases "
            f"in memory, of which {available / GIB:.1f} GiB are available: --cache_rate {fits:g} fits."
        )


def cached_bytes(case: Mapping[str, str], pixdim: Sequence[float]) -> float:
    """Return the bytes of a case's volumes in float32; an estimate.

    ``pixdim`` is what they are resampled to, mm; as for ``Spacing``, one that is not positive stands for the
    volume's own.
    """
    total = 0.0
    for path in (case[key] for key in ("image", "label") if key in case):
        try:
            size, spacing = read_geometry(path)
            widths = [b if b > 0 else a for a, b in zip(spacing, pixdim, strict=True)]
        except (OSError, ValueError):  # said better, and with the file's name, where the case is loaded
            logger.debug(f"{path} has no header to read.")
            continue
        total += 4 * math.prod(n * a / b for n, a, b in zip(size, spacing, widths, strict=True))
    return total


def check_volume(path: str, pixdim: Sequence[float] | None = None) -> None:
    """Stop before a volume is loaded that does not fit in memory.

    Args:
        path: Path of the volume.
        pixdim: Spacing that it is resampled to, mm, as :func:`cached_bytes` takes it; default not at all.

    Raises:
        ValueError: if it takes more memory than is available: three times its voxels in float32, which
            reading and turning it, or resampling it, take at most.
    """
    try:
        size, spacing = read_geometry(path)
    except (OSError, ValueError):  # said better where it is loaded
        return
    voxels: float = math.prod(size)
    resampled = _resampled(size, spacing, pixdim) if pixdim is not None else 0.0
    required, available = required_memory(max(voxels, resampled)), available_memory()
    if available is not None and required > available:
        at = f" at pixdim {list(pixdim)} mm" if pixdim is not None and resampled > voxels else ""
        raise ValueError(
            f"{path} has {max(voxels, resampled) / 1e6:,.0f} million voxels{at}, which take "
            f"{required / GIB:.1f} GiB; {available / GIB:.1f} GiB of memory are available."
        )


def _resampled(size: Sequence[int], spacing: Sequence[float], pixdim: Sequence[float]) -> float:
    """Voxels of a volume at ``pixdim``, one at least along each axis."""
    widths = [b if b > 0 else a for a, b in zip(spacing, pixdim, strict=False)]
    return math.prod(max(n * a / b, 1) for n, a, b in zip(size, spacing, widths, strict=False))
