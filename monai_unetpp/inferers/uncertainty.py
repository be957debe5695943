# SPDX-License-Identifier: Apache-2.0
"""Uncertainty: the disagreement of the heads, voxel by voxel, and the expected error of a case."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["ExpectedError", "disagreement", "labels", "probabilities"]


def probabilities(logits: Tensor) -> Tensor:
    """Return the probabilities of all classes (B, K, *spatial): softmax, or sigmoid for one channel."""
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)


def labels(logits: Tensor) -> Tensor:
    """Return the most probable class (B, *spatial); for one channel, a mask."""
    return logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(dim=1)


class ExpectedError:
    """Expected 1 - Dice of the labels of a case, if its probabilities are correct; summed piece by piece.

    Args:
        classes: Number of classes; 1 stands for foreground and background.
    """

    def __init__(self, classes: int) -> None:
        self.classes = max(classes, 2)
        self.inside, self.expected, self.found = torch.zeros(3, self.classes, dtype=torch.float64)
        self.greatest = torch.zeros(self.classes, dtype=torch.float64)

    def add(self, logits: Tensor) -> None:
        """Add the logits (B, K, *spatial) of a piece to the sums of labelled and of expected voxels."""
        p, here = probabilities(logits), labels(logits).long()
        if p.shape[1] == 1:
            p = torch.cat([1 - p, p], dim=1)
        for k in range(1, self.classes):
            self.found[k] += float((here == k).sum())
            self.inside[k] += float(p[:, k][here == k].double().sum())
            self.expected[k] += float(p[:, k].double().sum())
            self.greatest[k] = max(self.greatest[k].item(), p[:, k].max().item())

    def value(self) -> float:
        """Return the mean over the labelled classes, or without one the largest foreground probability."""
        found = self.found > 0
        if not found.any():
            return float(self.greatest.max())
        return float((1 - 2 * self.inside / (self.found + self.expected))[found].mean())


def disagreement(heads: Sequence[Tensor]) -> Tensor:
    """Return the disagreement of the heads' probabilities at each voxel, 0 if they agree, 1 at most.

    It is the Jensen-Shannon divergence, the entropy of the heads' mean less the mean of their entropies,
    divided by its maximum.

    Args:
        heads: Logits (B, K, *spatial) of at least two heads.

    Returns:
        Disagreement (B, 1, *spatial), in [0, 1].

    Raises:
        ValueError: if there is only one head.

    Reference:
        Lin, Divergence measures based on the Shannon entropy (IEEE Transactions on Information Theory 1991).
    """
    if len(heads) < 2:
        raise ValueError("heads must be at least two, to disagree, got one.")
    several = [probabilities(head) for head in heads]
    if several[0].shape[1] == 1:
        several = [torch.cat([1 - p, p], dim=1) for p in several]
    mean = torch.stack(several).mean(dim=0)
    apart = _entropy(mean) - torch.stack([_entropy(p) for p in several]).mean(dim=0)
    return apart.clamp(min=0) / math.log(min(len(heads), mean.shape[1]))


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(dim=1, keepdim=True)
