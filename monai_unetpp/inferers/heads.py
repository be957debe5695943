# SPDX-License-Identifier: Apache-2.0
"""What the heads say together: L segmentations of one pass, and where they disagree."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Overlap", "disagreement", "labels", "probabilities"]


def probabilities(logits: Tensor) -> Tensor:
    """Return the probability of every class: (B, K, *spatial) by softmax, or one channel by sigmoid."""
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)


def labels(logits: Tensor) -> Tensor:
    """Return the likeliest class (B, *spatial); for one channel whether it is likelier than not."""
    return logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(dim=1)


class Overlap:
    """Dice between two heads' segmentations of a case that comes piece by piece.

    Args:
        classes: of the network; one stands for foreground and background.
    """

    def __init__(self, classes: int) -> None:
        self.classes = max(classes, 2)
        self.counts = torch.zeros(self.classes, self.classes, dtype=torch.int64)

    def add(self, a: Tensor, b: Tensor) -> None:
        """Count the voxels of a piece by the classes that two heads give, logits (B, K, *spatial)."""
        joint = labels(a).long() * self.classes + labels(b)
        self.counts += joint.flatten().bincount(minlength=self.classes**2).view_as(self.counts).cpu()

    def dice(self) -> float:
        """Return the mean over the classes but background that either has; 1 if none has any."""
        both = 2 * self.counts.diagonal()[1:]
        either = (self.counts.sum(dim=0) + self.counts.sum(dim=1))[1:]
        found = either > 0
        return float((both[found] / either[found]).mean()) if found.any() else 1.0


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
