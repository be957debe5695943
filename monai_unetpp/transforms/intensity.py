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
    """Shift the intensity of labelled voxels alone, as in a fatty liver or another contrast phase.

    Scaling or shifting a whole volume does not change the contrast between organs, and a network may learn
    to rely on it.

    Args:
        keys: Keys of the volumes (C, *spatial).
        label_key: Key of the label map (1, *spatial); voxels that are neither 0 nor ``ignore_label`` are
            shifted.
        offsets: Smallest and largest shift. The result is clipped to the volume's range of values.
        sigma: Standard deviation of the Gaussian that smooths the edge, voxels.
        prob: Probability of a shift, in [0, 1].
        ignore_label: Value of voxels that nobody annotated; ``None`` if there are none.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_key: str = "label",
        offsets: tuple[float, float] = (-0.2, 0.1),
        sigma: float = 1.0,
        prob: float = 0.1,
        ignore_label: int | None = None,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.label_key = label_key
        self.offsets = offsets
        self.sigma = sigma
        self.ignore_label = ignore_label

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the case with all volumes shifted by one offset."""
        case = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return case
        offset = self.R.uniform(*self.offsets)
        label = torch.as_tensor(case[self.label_key])
        labelled = label != 0
        if self.ignore_label is not None:
            labelled &= label != self.ignore_label
        where = torch.as_tensor(GaussianSmooth(self.sigma)(labelled.float()))
        for key in self.keys:
            image: Tensor = case[key]
            case[key] = (image + offset * where).clamp(image.min(), image.max())
        return case
