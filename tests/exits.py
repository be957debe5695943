# SPDX-License-Identifier: Apache-2.0
"""Where a window stops, from the heads of all levels and in numpy: what tests of early exit compare with."""

import numpy as np
from torch import Tensor


def needed(heads: list[Tensor]) -> list[float]:
    """The least threshold at which one window stops, level by level but for the deepest.

    ``heads`` are the logits (1, K, *spatial), shallowest first, K > 1.
    """
    found = []
    for k, head in enumerate(heads[:-1]):
        e = np.exp(head.double().numpy())
        uncertainty = float((1 - e.max(1) / e.sum(1)).mean())
        if k == 0:
            found.append(4 * uncertainty)
        else:
            changed = float((head.numpy().argmax(1) != heads[k - 1].numpy().argmax(1)).mean())
            found.append(max(uncertainty, changed / 2))
    return found


def stop(heads: list[Tensor], threshold: float) -> int:
    """The level at which one window stops; 0 is the shallowest."""
    return next((k for k, least in enumerate(needed(heads)) if least <= threshold), len(heads) - 1)
