# SPDX-License-Identifier: Apache-2.0
"""The heads of a network in postprocessing."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.transforms import MapTransform

__all__ = ["DeepestHeadd"]


class DeepestHeadd(MapTransform):
    """Keep the deepest of the heads that a network returns in training; leave a single tensor alone.

    In training ``pred`` is a list of logits per item, deepest first; what follows wants one tensor.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each list (K, *spatial) by its first entry."""
        item = dict(data)
        for key in self.key_iterator(item):
            if isinstance(item[key], (list, tuple)):
                item[key] = item[key][0]
        return item
