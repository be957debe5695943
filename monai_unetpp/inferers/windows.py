# SPDX-License-Identifier: Apache-2.0
"""Early exit: a window is computed as deep as it needs, and no deeper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import SliceInferer, SlidingWindowInferer
from torch import Tensor

from monai_unetpp.inferers.uncertainty import probabilities
from monai_unetpp.network import UNetPlusPlus

__all__ = [
    "EarlyExitInferer",
    "EarlyExitSliceInferer",
    "FlatOnce",
    "doubt",
    "early_exit_like",
    "window_inferer",
]


def doubt(logits: Tensor) -> Tensor:
    """Return the doubt of each window: the share of its voxels that it expects to have wrong.

    That is the mean over voxels of how far the likeliest class is from certain. Other rules were tried, and
    which is best changes with how long the network was trained (benchmarks/README.md).

    Args:
        logits: (B, K, *spatial).

    Returns:
        (B,), between 0, certain everywhere, and ``1 - 1 / K``.
    """
    p = probabilities(logits)
    likeliest = torch.maximum(p, 1 - p) if p.shape[1] == 1 else p.amax(dim=1, keepdim=True)
    return 1 - likeliest.flatten(start_dim=1).mean(dim=1)


class EarlyExitInferer(SlidingWindowInferer):
    """MONAI's sliding window over a UNet++, in which a window stops at the first level that is sure of it.

    A batch of windows is computed diagonal by diagonal of the triangle. After each, windows whose
    :func:`doubt` is at most ``threshold`` keep the segmentation that they have; the others go on, and what
    they have computed so far is used, not computed again. Of windows of one same value, one
    is computed.

    Args:
        threshold: doubt up to which a window stops; 0 stops none, and gives what the deepest level gives.
        **settings: of ``monai.inferers.SlidingWindowInferer``: ``roi_size``, ``sw_batch_size``, ...

    Attributes:
        exits: how many windows have stopped at each level, shallowest first, since :meth:`reset`.

    Raises:
        ValueError: if ``threshold`` is not in [0, 1).

    Reference:
        Zhou et al., UNet++ (IEEE TMI 2020, arXiv:1912.05074): each level is a segmentation of its own.
    """

    def __init__(self, threshold: float, **settings: Any) -> None:
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold must be at least 0 and below 1, got {threshold!r}.")
        super().__init__(**settings)
        self.threshold = threshold
        self.exits: list[int] = []

    def reset(self) -> None:
        """Forget how many windows have stopped where."""
        self.exits = []

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Segment ``inputs`` (B, C, *spatial).

        Args:
            inputs: as for MONAI's inferers.
            network: a :class:`~monai_unetpp.UNetPlusPlus` with deep supervision, in evaluation.
            args: as MONAI's inferer takes them.
            kwargs: as MONAI's inferer takes them.

        Raises:
            ValueError: if ``network`` has no levels to stop at.
        """
        if not isinstance(network, UNetPlusPlus) or not network.deep_supervision:
            got = "one head" if isinstance(network, UNetPlusPlus) else type(network).__name__
            raise ValueError(
                f"network must be a UNetPlusPlus with deep_supervision: levels to stop at, got {got}."
            )
        stopping = FlatOnce(lambda windows: self._stop_early(windows, network))
        return super().__call__(inputs, stopping, *args, **kwargs)

    def _stop_early(self, windows: Tensor, network: UNetPlusPlus) -> Tensor:
        """Map windows (B, C, *window) to logits (B, K, *window), each of the level at which it stopped."""
        diagonals = network.diagonals(windows)
        logits = next(diagonals)
        result = torch.empty_like(logits)
        going = torch.arange(len(windows), device=windows.device)
        self.exits += [0] * (network.level - len(self.exits))
        for k in range(1, network.level):
            unsure = doubt(logits) > self.threshold
            sure = ~unsure
            result[going[sure]] = logits[sure]
            self.exits[k - 1] += int(sure.sum())
            if not unsure.any():
                return result
            going = going[unsure]
            logits = diagonals.send(unsure.nonzero()[:, 0] if sure.any() else None)
        result[going] = logits
        self.exits[network.level - 1] += len(going)
        return result


class EarlyExitSliceInferer(EarlyExitInferer, SliceInferer):
    """The same over a volume, slice by slice, by a network of two dimensions; see ``SliceInferer``."""


def window_inferer(
    spatial_dims: int, roi_size: Sequence[int], threshold: float | None = None, **settings: Any
) -> SlidingWindowInferer:
    """Return the inferer that blends windows of a volume, for a network of three dimensions or of two.

    Args:
        spatial_dims: of the network; one of two goes along the last axis, slice by slice.
        roi_size: of the windows; for slices its first two count.
        threshold: of early exit, see :class:`EarlyExitInferer`; ``None`` for none.
        **settings: of ``monai.inferers.SlidingWindowInferer``.
    """
    if spatial_dims == 2:
        settings |= {"roi_size": tuple(roi_size[:2]), "spatial_dim": 2}
        plain: type[SlidingWindowInferer] = SliceInferer
        early: type[EarlyExitInferer] = EarlyExitSliceInferer
    else:
        settings |= {"roi_size": roi_size}
        plain, early = SlidingWindowInferer, EarlyExitInferer
    return plain(**settings) if threshold is None else early(threshold, **settings)


def early_exit_like(inferer: SlidingWindowInferer, threshold: float) -> EarlyExitInferer:
    """Return an early exit over the windows of ``inferer``, blended as it blends them."""
    names = ("sw_batch_size", "overlap", "mode", "sigma_scale", "padding_mode", "cval", "sw_device", "device")
    settings = {name: getattr(inferer, name) for name in names}
    if isinstance(inferer, SliceInferer):
        settings["spatial_dim"] = inferer.spatial_dim
        return EarlyExitSliceInferer(threshold, roi_size=inferer.orig_roi_size, **settings)
    return EarlyExitInferer(threshold, roi_size=inferer.roi_size, **settings)


class FlatOnce:
    """A network that computes windows of one and the same value once, and then remembers.

    Args:
        network: windows (B, C, *window) -> logits (B, K, *window), each window by itself.
    """

    def __init__(self, network: Callable[[Tensor], Tensor]) -> None:
        self.network = network
        self.known: dict[tuple[float, ...], Tensor] = {}  # value of each channel -> logits (K, *window)

    def __call__(self, windows: Tensor) -> Tensor:
        """Return what the network returns for ``windows``."""
        values = _flat_values(windows)
        new = [n for n, v in enumerate(values) if v is None or (v not in self.known and values.index(v) == n)]
        logits = dict(zip(new, self.network(windows[new]), strict=True)) if new else {}
        self.known.update({v: logits[n].clone() for n in new if (v := values[n]) is not None})
        return torch.stack([logits[n] if v is None else self.known[v] for n, v in enumerate(values)])


def _flat_values(windows: Tensor) -> list[tuple[float, ...] | None]:
    """The value of each channel of each window, or ``None`` where there are several."""
    least, most = torch.aminmax(windows.flatten(start_dim=2), dim=2)
    return [tuple(a) if a == b else None for a, b in zip(least.tolist(), most.tolist(), strict=True)]
