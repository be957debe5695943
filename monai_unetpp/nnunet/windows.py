# SPDX-License-Identifier: Apache-2.0
"""The sliding window of nnU-Net's predictor as an inferer of MONAI."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, combinations, product
from typing import Any

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from scipy.ndimage import gaussian_filter  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn import functional as F

__all__ = ["PlansWindows", "places"]

SIGMA = 1 / 8  # of the weights, in window sizes
PEAK = 10.0  # largest weight: half precision has no room for small ones


class PlansWindows(SlidingWindowInferer):
    """Windows at nnU-Net's places, with its weights, its mirroring and its half-precision sums.

    MONAI's own windows lie elsewhere where a volume is no multiple of their interval. Logits are summed in
    half precision because nnU-Net does so, and masks are to be equal.

    Args:
        roi_size: Size of the window per axis of the volume, voxels; for slices 1 on ``slice_axis``.
        step: Largest distance between windows, in window sizes.
        mirrored: Axes of the volume along which windows are mirrored as well, in every combination: the mean
            of the logits is taken. Each axis doubles the time.
        slice_axis: Axis across which a network of two dimensions is applied slice by slice; None for a
            network of three.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        step: float = 0.5,
        mirrored: Sequence[int] = (),
        slice_axis: int | None = None,
    ) -> None:
        super().__init__(roi_size=roi_size, overlap=1 - step, mode="gaussian", sigma_scale=SIGMA)
        self.window, self.step = [int(n) for n in roi_size], step
        self.mirrored, self.slice_axis = tuple(mirrored), slice_axis

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return logits (1, K, X, Y, Z), in half precision, of one volume (1, C, X, Y, Z).

        Args:
            inputs: Preprocessed volume.
            network: Function from windows (1, C, *window) to logits (1, K, *window).
            args: Further arguments of the network.
            kwargs: The same, by name.

        Raises:
            ValueError: if there are several volumes.
        """
        if inputs.dim() != 5 or len(inputs) != 1:
            raise ValueError(f"inputs must be one volume (1, C, X, Y, Z), got {list(inputs.shape)}.")
        volume = inputs.as_subclass(Tensor)
        window = self.window
        missing = [max(w - n, 0) for n, w in zip(volume.shape[2:], window, strict=True)]
        before = [n // 2 for n in missing]
        pads = list(zip(before, (n - b for n, b in zip(missing, before, strict=True)), strict=True))
        padded = F.pad(volume, [*chain.from_iterable(reversed(pads))])
        weight = _weights([n for a, n in enumerate(window) if a != self.slice_axis], volume.device)
        if self.slice_axis is not None:
            weight = weight.unsqueeze(self.slice_axis)
        total, sums = torch.empty(0), torch.zeros(padded.shape[2:], dtype=torch.half, device=volume.device)
        for place in places(padded.shape[2:], window, self.step, self.slice_axis):
            x, y, z = place
            logits = self._mirrored(padded[..., x, y, z], lambda x: network(x, *args, **kwargs))
            if not total.numel():
                shape = (1, logits.shape[1], *padded.shape[2:])
                total = torch.zeros(shape, dtype=torch.half, device=volume.device)
            total[..., x, y, z] += logits * weight
            sums[place] += weight
        total /= sums
        x, y, z = (slice(b, b + n) for b, n in zip(before, volume.shape[2:], strict=True))
        return total[..., x, y, z]

    def _mirrored(self, window: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the mean of the logits over all combinations of mirrored axes."""
        total = self._applied(window, network)
        turns = [c for n in range(len(self.mirrored)) for c in combinations(self.mirrored, n + 1)]
        for turn in turns:
            axes = [axis + 2 for axis in turn]
            total = total + self._applied(window.flip(axes), network).flip(axes)
        return total / (1 + len(turns))

    def _applied(self, window: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        if self.slice_axis is None:
            return network(window)
        return network(window.squeeze(self.slice_axis + 2)).unsqueeze(self.slice_axis + 2)


def places(
    size: Sequence[int], window: Sequence[int], step: float, slice_axis: int | None = None
) -> Iterator[tuple[slice, ...]]:
    """Yield nnU-Net's windows: as few as ``step`` allows, evenly spaced from edge to edge.

    Args:
        size: Size of the volume, at least that of the window, voxels.
        window: Size of the window, voxels.
        step: Largest distance between windows, in window sizes.
        slice_axis: Axis on which every plane is a window.
    """
    starts = []
    for axis, (n, w) in enumerate(zip(size, window, strict=True)):
        if axis == slice_axis:
            starts.append(list(range(n)))
            continue
        count = int(np.ceil((n - w) / (w * step))) + 1
        distance = (n - w) / (count - 1) if count > 1 else 0.0
        starts.append([int(np.round(distance * number)) for number in range(count)])
    for corner in product(*starts):
        yield tuple(slice(s, s + w) for s, w in zip(corner, window, strict=True))


def _weights(window: Sequence[int], device: torch.device) -> Tensor:
    """Return the weights of a window's voxels, none of which is 0, in half precision."""
    middle = np.zeros(window)
    middle[tuple(n // 2 for n in window)] = 1
    weights = gaussian_filter(middle, [n * SIGMA for n in window], mode="constant")
    found = torch.from_numpy(weights * (PEAK / weights.max())).to(torch.half)
    found[found == 0] = found[found > 0].min()
    return found.to(device)
