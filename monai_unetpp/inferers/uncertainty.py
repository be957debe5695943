# SPDX-License-Identifier: Apache-2.0
"""What the heads say together: L segmentations of one pass, and where they disagree."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["ExpectedError", "disagreement", "labels", "probabilities"]


def probabilities(logits: Tensor) -> Tensor:
    """Return the probability of every class: (B, K, *spatial) by softmax, or one channel by sigmoid."""
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)


def labels(logits: Tensor) -> Tensor:
    """Return the likeliest class (B, *spatial); for one channel whether it is likelier than not."""
    return logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(dim=1)


class ExpectedError:
    """1 - Dice that the labels of a case would have if its probabilities were right; it comes piece by piece.

    Args:
        classes: of the network; one stands for foreground and background.
    """

    def __init__(self, classes: int) -> None:
        self.classes = max(classes, 2)
        self.inside, self.expected, self.found = torch.zeros(3, self.classes, dtype=torch.float64)
        self.greatest = torch.zeros(self.classes, dtype=torch.float64)

    def add(self, logits: Tensor) -> None:
        """Count in a piece (B, K, *spatial), by class, the voxels found and the voxels to be expected."""
        p, here = probabilities(logits), labels(logits).long()
        if p.shape[1] == 1:
            p = torch.cat([1 - p, p], dim=1)
        for k in range(1, self.classes):
            self.found[k] += float((here == k).sum())
            self.inside[k] += float(p[:, k][here == k].double().sum())
            self.expected[k] += float(p[:, k].double().sum())
            self.greatest[k] = max(self.greatest[k].item(), p[:, k].max().item())

    def value(self) -> float:
        """Return the mean over the classes found; if there is none, how likely the likeliest voxel is."""
        found = self.found > 0
        if not found.any():
            return float(self.greatest.max())
        return float((1 - 2 * self.inside / (self.found + self.expected))[found].mean())


def disagreement(heads: Sequence[Tensor]) -> Tensor:
    """Return how far the heads' probabilities lie apart, voxel by voxel: 0 they agree, 1 as far as can be.

    It is the Jensen-Shannon divergence: the entropy of the heads' mean, less the mean of their entropies,
    as a share of the greatest that it can be.

    Args:
        heads: logits (B, K, *spatial) of at least two heads.

    Returns:
        (B, 1, *spatial).

    Raises:
        ValueError: if there is one head only.

    Reference:
        Lin, Divergence measures based on the Shannon entropy (IEEE Transactions on Information Theory 1991).
    """
    if len(heads) < 2:
        raise ValueError("heads must be two at least: one alone has nobody to disagree with.")
    several = [probabilities(head) for head in heads]
    if several[0].shape[1] == 1:
        several = [torch.cat([1 - p, p], dim=1) for p in several]
    mean = torch.stack(several).mean(dim=0)
    apart = _entropy(mean) - torch.stack([_entropy(p) for p in several]).mean(dim=0)
    return apart.clamp(min=0) / math.log(min(len(heads), mean.shape[1]))


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(dim=1, keepdim=True)
