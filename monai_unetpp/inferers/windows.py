# SPDX-License-Identifier: Apache-2.0
"""Early exit: a window is computed up to the first level that is confident, and no deeper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import SliceInferer, SlidingWindowInferer
from torch import Tensor

from monai_unetpp.inferers.uncertainty import labels, probabilities
from monai_unetpp.network import UNetPlusPlus, unwrap

__all__ = [
    "EarlyExitInferer",
    "EarlyExitSliceInferer",
    "FlatOnce",
    "early_exit_like",
    "window_change",
    "window_inferer",
    "window_uncertainty",
]

# Shares of the threshold, measured on liver and nodules (benchmarks/README.md). L1 is compared with nothing,
# and is at times sure and wrong: it has to be surer.
FIRST = 0.25  # uncertainty, at L1
CHANGED = 2.0  # voxels that changed, from L2 on


def window_uncertainty(logits: Tensor, sigmoid: bool = False) -> Tensor:
    """Return the expected error of each window: the share of its voxels that are expected to be wrong.

    It is the mean over voxels of 1 - the probability of the most probable class.

    Args:
        logits: Logits (B, K, *spatial).
        sigmoid: Whether classes overlap (regions); then a voxel counts for the least certain one of them.

    Returns:
        Uncertainty (B,), from 0 (certain everywhere) to ``1 - 1 / K``; with ``sigmoid`` to 1/2.
    """
    p = probabilities(logits, sigmoid)
    overlap = sigmoid or p.shape[1] == 1
    most_probable = torch.maximum(p, 1 - p).amin(dim=1) if overlap else p.amax(dim=1)
    return 1 - most_probable.flatten(start_dim=1).mean(dim=1)


def window_change(logits: Tensor, previous: Tensor, sigmoid: bool = False) -> Tensor:
    """Return the share of each window's voxels whose most probable class is not that of another level.

    Args:
        logits: Logits (B, K, *spatial) of a level.
        previous: Logits (B, K, *spatial) of the level before.
        sigmoid: Whether classes overlap (regions); then a voxel has changed if it is in other ones.

    Returns:
        Share (B,), in [0, 1].
    """
    if sigmoid:
        return ((logits > 0) != (previous > 0)).any(dim=1).flatten(start_dim=1).float().mean(dim=1)
    return (labels(logits) != labels(previous)).flatten(start_dim=1).float().mean(dim=1)


class EarlyExitInferer(SlidingWindowInferer):
    """MONAI's sliding window over a UNet++, in which a window stops at the first level that is confident.

    A batch of windows is computed diagonal by diagonal of the triangle. After each one, windows that are
    confident keep their segmentation; the others continue with the maps that they have, so that nothing is
    computed twice. Windows of a single value are computed once.

    A window is confident at L^k, k > 1, if its :func:`window_uncertainty` is at most ``threshold``, and its
    :func:`window_change` since L^(k-1) at most twice that; at L^1, which is compared with nothing, if its
    uncertainty is at most a quarter of ``threshold``. Other rules were measured (benchmarks/README.md).

    Args:
        threshold: Uncertainty up to which a window stops, in [0, 1); with 0 all windows reach the deepest
            level.
        sigmoid: Whether the classes of the network overlap (regions), see :func:`window_uncertainty`.
        **settings: Arguments of ``monai.inferers.SlidingWindowInferer``: ``roi_size``, ``sw_batch_size``, ...
            but ``with_coord``, since the network takes no coordinates.

    Attributes:
        exits: Number of windows that stopped at each level since :meth:`reset`, shallowest first.

    Raises:
        ValueError: if ``threshold`` is not in [0, 1), or ``with_coord`` is set.

    Reference:
        Zhou et al., UNet++ (IEEE TMI 2020, arXiv:1912.05074): each level is a segmentation of its own.
    """

    def __init__(self, threshold: float, sigmoid: bool = False, **settings: Any) -> None:
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold must be at least 0 and below 1, got {threshold!r}.")
        if settings.get("with_coord"):
            raise ValueError("with_coord must be left out: a UNetPlusPlus takes no coordinates.")
        super().__init__(**settings)
        self.threshold = threshold
        self.sigmoid = sigmoid
        self.exits: list[int] = []

    def reset(self) -> None:
        """Set the number of windows that stopped at each level to 0."""
        self.exits = []

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Segment ``inputs`` (B, C, *spatial).

        Args:
            inputs: Volumes, as for MONAI's inferers.
            network: :class:`~monai_unetpp.UNetPlusPlus` with deep supervision, in evaluation.
            args: Further arguments of the network, of which a UNetPlusPlus has none.
            kwargs: The same, by name.

        Raises:
            ValueError: if ``network`` has only one level, or there are further arguments.
        """
        if args or kwargs:
            raise ValueError(f"a UNetPlusPlus takes no further arguments, got {len(args) + len(kwargs)}.")
        network = unwrap(network)  # levels one after another are computed in eager mode
        if not isinstance(network, UNetPlusPlus) or not network.deep_supervision:
            got = "one head" if isinstance(network, UNetPlusPlus) else type(network).__name__
            raise ValueError(
                f"network must be a UNetPlusPlus with deep_supervision: levels to stop at, got {got}."
            )
        stopping = FlatOnce(lambda windows: self._stop_early(windows, network))
        return super().__call__(inputs, stopping)

    def _stop_early(self, windows: Tensor, network: UNetPlusPlus) -> Tensor:
        """Map windows (B, C, *window) to logits (B, K, *window), each from the level at which it stopped."""
        diagonals = network.diagonals(windows)
        logits = next(diagonals)
        result = torch.empty_like(logits)
        active = torch.arange(len(windows), device=windows.device)
        self.exits += [0] * (network.level - len(self.exits))
        previous = None
        for k in range(1, network.level):
            confident = self._confident(logits, previous)
            uncertain = ~confident
            result[active[confident]] = logits[confident]
            self.exits[k - 1] += int(confident.sum())
            if not uncertain.any():
                return result
            active, previous = active[uncertain], logits[uncertain]
            logits = diagonals.send(uncertain.nonzero()[:, 0] if confident.any() else None)
        result[active] = logits
        self.exits[network.level - 1] += len(active)
        return result

    def _confident(self, logits: Tensor, previous: Tensor | None) -> Tensor:
        """Return which windows stop at a level, (B,); ``previous`` are the logits of the level before."""
        uncertainty = window_uncertainty(logits, self.sigmoid)
        if self.threshold == 0:
            return torch.zeros_like(uncertainty, dtype=torch.bool)
        if previous is None:
            return uncertainty <= FIRST * self.threshold
        changed = window_change(logits, previous, self.sigmoid)
        return (uncertainty <= self.threshold) & (changed <= CHANGED * self.threshold)


class EarlyExitSliceInferer(EarlyExitInferer, SliceInferer):
    """Early exit over a volume, slice by slice, for a network of two dimensions; see ``SliceInferer``."""


def window_inferer(
    spatial_dims: int,
    roi_size: Sequence[int],
    threshold: float | None = None,
    sigmoid: bool = False,
    **settings: Any,
) -> SlidingWindowInferer:
    """Return an inferer that blends windows of a volume, for a network of three dimensions or of two.

    Args:
        spatial_dims: Dimensions of the network; with 2 it is applied slice by slice along the last axis.
        roi_size: Size of the windows, of which slices use the first two entries, voxels.
        threshold: Threshold of early exit, see :class:`EarlyExitInferer`; by default none.
        sigmoid: Whether classes overlap, likewise.
        **settings: Further arguments of ``monai.inferers.SlidingWindowInferer``.
    """
    if spatial_dims == 2:
        settings |= {"roi_size": tuple(roi_size[:2]), "spatial_dim": 2}
        plain: type[SlidingWindowInferer] = SliceInferer
        early: type[EarlyExitInferer] = EarlyExitSliceInferer
    else:
        settings |= {"roi_size": roi_size}
        plain, early = SlidingWindowInferer, EarlyExitInferer
    return plain(**settings) if threshold is None else early(threshold, sigmoid, **settings)


def early_exit_like(
    inferer: SlidingWindowInferer, threshold: float, sigmoid: bool = False
) -> EarlyExitInferer:
    """Return an early exit with the windows and the blending of ``inferer``."""
    names = ("sw_batch_size", "overlap", "mode", "sigma_scale", "padding_mode", "cval", "sw_device", "device")
    settings = {name: getattr(inferer, name) for name in names}
    if isinstance(inferer, SliceInferer):
        settings["spatial_dim"] = inferer.spatial_dim
        return EarlyExitSliceInferer(threshold, sigmoid, roi_size=inferer.orig_roi_size, **settings)
    return EarlyExitInferer(threshold, sigmoid, roi_size=inferer.roi_size, **settings)


class FlatOnce:
    """Network that computes windows of a single value once, and caches their logits.

    Args:
        network: Function from windows (B, C, *window) to logits (B, K, *window), window by window.
    """

    def __init__(self, network: Callable[[Tensor], Tensor]) -> None:
        self.network = network
        self.known: dict[tuple[float, ...], Tensor] = {}  # value of each channel -> logits (K, *window)

    def __call__(self, windows: Tensor) -> Tensor:
        """Return the network's logits for ``windows``."""
        values = _flat_values(windows)
        new = [n for n, v in enumerate(values) if v is None or (v not in self.known and values.index(v) == n)]
        logits = dict(zip(new, self.network(windows[new]), strict=True)) if new else {}
        self.known.update({v: logits[n].clone() for n in new if (v := values[n]) is not None})
        return torch.stack([logits[n] if v is None else self.known[v] for n, v in enumerate(values)])


def _flat_values(windows: Tensor) -> list[tuple[float, ...] | None]:
    """Return each window's value per channel, or ``None`` if it has several values."""
    least, most = torch.aminmax(windows.flatten(start_dim=2), dim=2)
    return [tuple(a) if a == b else None for a, b in zip(least.tolist(), most.tolist(), strict=True)]
