# SPDX-License-Identifier: Apache-2.0
"""Windows of one value throughout, such as air beyond the range of values: all are segmented alike."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["FlatOnce"]


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
