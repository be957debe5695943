# SPDX-License-Identifier: Apache-2.0
"""A sliding window that yields its result slab by slab, so that memory holds one slab and not the volume.

The volume is split along its last axis into groups of rows of windows. A window inferer of MONAI blends the
windows of a group; overlapping groups are blended here by the sums of their windows' weights. Up to rounding
the result equals that of one call for the whole volume, and no window is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import SliceInferer, SlidingWindowInferer
from monai.utils import ensure_tuple_rep, fall_back_tuple
from torch import Tensor

__all__ = ["THICKNESS", "slabs"]

THICKNESS = 16  # planes of a slab, unless a window is thicker


def slabs(
    inferer: SlidingWindowInferer,
    image: Tensor,
    network: Callable[[Tensor], Tensor],
    progress: Callable[[Sequence[list[int]]], Sequence[list[int]]] | None = None,
) -> Iterator[Tensor]:
    """Yield what ``inferer(image, network)`` returns, from the first plane of the last axis to the last.

    Args:
        inferer: Sliding window of MONAI, over volumes or over slices.
        image: Volume (1, C, X, Y, Z).
        network: Function from windows (B, C, *window) to logits (B, K, *window).
        progress: Wrapper of the list of groups, such as ``tqdm``.

    Yields:
        Logits (1, K, X, Y, planes).
    """
    size = list(image.shape[2:])
    window = _window_of(inferer, size)
    groups = _groups([row.start for (row,) in _places(inferer, size, window, axes=(2,))], window[2])
    weights: dict[int, Tensor] = {}  # by thickness, which is the same for all groups but the last few
    rest: tuple[Tensor, Tensor] | None = None  # sums that later groups add to
    for n, group in enumerate(groups if progress is None else progress(groups)):
        start, stop = group[0], min(group[-1] + window[2], size[2])
        logits = cast(Tensor, inferer(image[..., start:stop], network))
        if stop - start not in weights:
            weights[stop - start] = _blending_weights(inferer, [*size[:2], stop - start], window).to(logits)
        weight = weights[stop - start].clone()
        total = logits * weight
        if rest is not None:
            planes = rest[1].shape[-1]
            total[..., :planes] += rest[0]
            weight[..., :planes] += rest[1]
        done = (groups[n + 1][0] if n + 1 < len(groups) else stop) - start
        rest = total[..., done:].clone(), weight[..., done:].clone()
        yield total[..., :done] / weight[..., :done]


def _window_of(inferer: SlidingWindowInferer, size: Sequence[int]) -> list[int]:
    """Return the window on a volume of ``size``; slices have size 1 on their axis."""
    window = inferer.roi_size
    if isinstance(inferer, SliceInferer):
        window = list(inferer.orig_roi_size)
        window.insert(inferer.spatial_dim, 1)
    return list(fall_back_tuple(window, size))


def _places(
    inferer: SlidingWindowInferer, size: Sequence[int], window: Sequence[int], axes: Sequence[int] = (0, 1, 2)
) -> list[tuple[slice, ...]]:
    """Return MONAI's windows on a volume of ``size``, padded to a window, along some of the axes."""
    overlap = ensure_tuple_rep(inferer.overlap, 3)
    padded = [max(size[n], window[n]) for n in axes]
    interval = [
        window[n] if window[n] == length else max(int(window[n] * (1 - overlap[n])), 1)
        for n, length in zip(axes, padded, strict=True)
    ]
    places: list[tuple[slice, ...]] = dense_patch_slices(padded, [window[n] for n in axes], interval)
    return places


def _groups(starts: Sequence[int], window: int) -> list[list[int]]:
    """Join evenly spaced rows up to :data:`THICKNESS` planes, so that windows fill a batch."""
    groups = [[starts[0]]]
    interval = starts[1] - starts[0] if len(starts) > 1 else 0
    for start in starts[1:]:
        last = groups[-1]
        if start - last[-1] == interval and start + window - last[0] <= max(THICKNESS, window):
            last.append(start)
        else:
            groups.append([start])
    return groups


def _blending_weights(inferer: SlidingWindowInferer, size: Sequence[int], window: Sequence[int]) -> Tensor:
    """Return the sum of the weights of all windows on a slab of ``size``, (1, 1, *size)."""
    padded = [max(n, w) for n, w in zip(size, window, strict=True)]
    importance = compute_importance_map(
        tuple(window), mode=inferer.mode, sigma_scale=inferer.sigma_scale, device="cpu"
    )
    total = torch.zeros(padded)
    for place in _places(inferer, size, window):
        total[place] += importance
    middle = tuple(slice((p - n) // 2, (p - n) // 2 + n) for p, n in zip(padded, size, strict=True))
    return total[middle][None, None]
