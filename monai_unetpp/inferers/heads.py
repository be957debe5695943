# SPDX-License-Identifier: Apache-2.0
"""What the heads say together: L segmentations of one pass, and where they disagree."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["disagreement", "probabilities"]


def probabilities(logits: Tensor) -> Tensor:
    """Return the probability of every class: (B, K, *spatial) by softmax, or one channel by sigmoid."""
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)


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
