# SPDX-License-Identifier: Apache-2.0
"""Augmentation of intensities that MONAI lacks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import GaussianSmooth, MapTransform, RandomizableTransform
from torch import Tensor

__all__ = ["RandShiftLabeledIntensityd"]


class RandShiftLabeledIntensityd(RandomizableTransform, MapTransform):
    """Make what is labelled darker or brighter than the rest: a fatty liver, another phase of contrast.

    Scaling or shifting the whole volume leaves an organ as bright beside the others as it was, and a network
    may learn that it always is.

    Args:
        keys: of the volumes (C, *spatial).
        label_key: of the label map (1, *spatial); all that is not 0 is shifted.
        offsets: least and greatest shift. The result stays within the volume's own range of values.
        sigma: of the Gaussian that softens the edge, voxels.
        prob: how often.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_key: str = "label",
        offsets: tuple[float, float] = (-0.2, 0.1),
        sigma: float = 1.0,
        prob: float = 0.1,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.label_key = label_key
        self.offsets = offsets
        self.sigma = sigma

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the case with the volumes shifted, all by the same."""
        case = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return case
        offset = self.R.uniform(*self.offsets)
        label = torch.as_tensor(case[self.label_key] != 0).float()
        where = torch.as_tensor(GaussianSmooth(self.sigma)(label))
        for key in self.keys:
            image: Tensor = case[key]
            case[key] = (image + offset * where).clamp(image.min(), image.max())
        return case
