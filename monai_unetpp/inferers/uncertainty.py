# SPDX-License-Identifier: Apache-2.0
"""Uncertainty: the disagreement of the heads, voxel by voxel, and the expected error of a case."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["ExpectedError", "disagreement", "labels", "probabilities"]


def probabilities(logits: Tensor, sigmoid: bool = False) -> Tensor:
    """Return the probabilities of all classes (B, K, *spatial): softmax, or sigmoid for one channel.

    Args:
        logits: Logits (B, K, *spatial).
        sigmoid: Whether classes overlap (regions), each with a channel of its own and a sigmoid.
    """
    return logits.sigmoid() if sigmoid or logits.shape[1] == 1 else logits.softmax(dim=1)


def labels(logits: Tensor) -> Tensor:
    """Return the most probable class (B, *spatial); for one channel, a mask."""
    return logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(dim=1)


class ExpectedError:
    """Expected 1 - Dice of the labels of a case, if its probabilities are correct; summed piece by piece.

    Args:
        classes: Number of classes; 1 stands for foreground and background.
        sigmoid: Whether classes overlap; then none of them is the background.
    """

    def __init__(self, classes: int, sigmoid: bool = False) -> None:
        self.sigmoid = sigmoid
        self.classes = classes + 1 if sigmoid else max(classes, 2)
        self.inside, self.expected, self.found = torch.zeros(3, self.classes, dtype=torch.float64)
        self.greatest = torch.zeros(self.classes, dtype=torch.float64)

    def add(self, logits: Tensor) -> None:
        """Add the logits (B, K, *spatial) of a piece to the sums of labelled and of expected voxels."""
        p = probabilities(logits, self.sigmoid)
        overlap = self.sigmoid or p.shape[1] == 1
        classes = labels(logits).long()
        for k in range(1, self.classes):
            each = p[:, k - 1] if overlap else p[:, k]
            here = each > 0.5 if overlap else classes == k
            self.found[k] += float(here.sum())
            self.inside[k] += float(each[here].double().sum())
            self.expected[k] += float(each.double().sum())
            self.greatest[k] = max(self.greatest[k].item(), each.max().item())

    def value(self) -> float:
        """Return the mean over the labelled classes, or without one the largest foreground probability."""
        found = self.found > 0
        if not found.any():
            return float(self.greatest.max())
        return float((1 - 2 * self.inside / (self.found + self.expected))[found].mean())


def disagreement(heads: Sequence[Tensor], sigmoid: bool = False) -> Tensor:
    """Return the disagreement of the heads' probabilities at each voxel, 0 if they agree, 1 at most.

    It is the Jensen-Shannon divergence, the entropy of the heads' mean less the mean of their entropies,
    divided by its maximum.

    Args:
        heads: Logits (B, K, *spatial) of at least two heads.
        sigmoid: Whether classes overlap; then it is the largest disagreement on one of them.

    Returns:
        Disagreement (B, 1, *spatial), in [0, 1].

    Raises:
        ValueError: if there is only one head.

    Reference:
        Lin, Divergence measures based on the Shannon entropy (IEEE Transactions on Information Theory 1991).
    """
    if len(heads) < 2:
        raise ValueError("heads must be at least two, to disagree, got one.")
    if sigmoid:
        every = [disagreement([head[:, k : k + 1] for head in heads]) for k in range(heads[0].shape[1])]
        return torch.cat(every, dim=1).amax(dim=1, keepdim=True)
    several = [probabilities(head) for head in heads]
    if several[0].shape[1] == 1:
        several = [torch.cat([1 - p, p], dim=1) for p in several]
    mean = torch.stack(several).mean(dim=0)
    apart = _entropy(mean) - torch.stack([_entropy(p) for p in several]).mean(dim=0)
    return apart.clamp(min=0) / math.log(min(len(heads), mean.shape[1]))


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(dim=1, keepdim=True)
