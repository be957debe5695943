# SPDX-License-Identifier: Apache-2.0
"""The heads of a network in postprocessing."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.transforms import MapTransform

__all__ = ["DeepestHeadd"]


class DeepestHeadd(MapTransform):
    """Replace the list of heads that a network returns in training by the deepest one.

    In training ``pred`` is a list of logits per item, deepest first; a single tensor is not changed.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each list (K, *spatial) by its first entry."""
        item = dict(data)
        for key in self.key_iterator(item):
            if isinstance(item[key], (list, tuple)):
                item[key] = item[key][0]
        return item
