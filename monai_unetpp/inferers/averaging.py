# SPDX-License-Identifier: Apache-2.0
"""Several networks, or one on mirrored windows, as one network: the mean of their probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, combinations
from typing import Any

import torch
from torch import Tensor, nn

from monai_unetpp.inferers.uncertainty import probabilities

__all__ = ["AveragedNetwork"]


class AveragedNetwork(nn.Module):
    """The mean of the probabilities of networks, on windows and on their mirror images.

    It returns the logarithm of the mean (of its odds, for one channel or with ``sigmoid``), whose softmax
    (sigmoid) is the mean, window by window: memory holds one window batch more than for one network, whatever
    their number.

    Args:
        networks: Functions from windows (B, C, *window) to logits (B, K, *window), or to those of all heads,
            of which the deepest counts.
        mirror_axes: Spatial axes along which windows are mirrored, in all combinations: ``n`` axes take 2^n
            times the time.
        sigmoid: Whether classes overlap (regions), each with a channel of its own and a sigmoid.

    Raises:
        ValueError: if there is no network.

    Reference:
        Isensee et al., nnU-Net (Nature Methods 18, 2021): mirroring and ensembles of folds.
    """

    def __init__(
        self,
        networks: Sequence[Callable[[Tensor], Any]],
        mirror_axes: Sequence[int] = (),
        sigmoid: bool = False,
    ) -> None:
        super().__init__()
        self.sigmoid = sigmoid
        if not networks:
            raise ValueError("networks must hold at least one, got none.")
        self.networks = list(networks)
        for n, network in enumerate(networks):  # the parameters are this module's, too
            if isinstance(network, nn.Module):
                self.add_module(str(n), network)
        number = len(mirror_axes)
        every = chain.from_iterable(combinations(mirror_axes, k) for k in range(number + 1))
        self.flips = [tuple(axis + 2 for axis in axes) for axes in every]

    def forward(self, windows: Tensor) -> Tensor:
        """Map windows (B, C, *window) to logits (B, K, *window)."""
        total: Tensor | None = None
        for axes in self.flips:
            mirrored = windows.flip(axes) if axes else windows
            for network in self.networks:
                logits = network(mirrored)
                logits = logits[0] if isinstance(logits, (list, tuple)) else logits
                p = probabilities(logits.float(), self.sigmoid)
                p = p.flip(axes) if axes else p
                total = p if total is None else total.add_(p)
        assert total is not None
        mean = total / (len(self.flips) * len(self.networks))
        smallest = torch.finfo(mean.dtype).tiny  # where a probability is 0 its logarithm is not
        if mean.shape[1] > 1 and not self.sigmoid:
            return mean.clamp_(min=smallest).log_()
        return mean.clamp_(smallest, 1 - torch.finfo(mean.dtype).eps).logit_()
