# SPDX-License-Identifier: Apache-2.0
"""Augmentation of what is labelled, which MONAI lacks: another contrast, or none of it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import GaussianSmooth, MapTransform, RandomizableTransform
from torch import Tensor

__all__ = ["RandRemoveLabeledd", "RandShiftLabeledIntensityd"]


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
        labelled = _labelled(torch.as_tensor(case[self.label_key]), self.ignore_label)
        where = torch.as_tensor(GaussianSmooth(self.sigma)(labelled.float()))
        for key in self.keys:
            image: Tensor = case[key]
            case[key] = (image + offset * where).clamp(image.min(), image.max())
        return case


class RandRemoveLabeledd(RandomizableTransform, MapTransform):
    """Replace what is labelled by what lies opposite of it: a scan of the same body without the organ.

    Where every training scan shows the organ, a network learns that one is always there, and finds one below
    the liver, too. A body is nearly symmetrical, so that the other flank fits in its place. What crosses the
    middle, opposite of itself, is left as it is.

    Args:
        keys: Keys of the volumes (C, *spatial).
        label_key: Key of the label map (1, *spatial); voxels that are neither 0 nor ``ignore_label`` are
            replaced, and are 0 then.
        spatial_axis: Axis from one side of the body to the other. The middle is that of the voxels above the
            volume's lowest value.
        sigma: Standard deviation of the Gaussian that smooths the edge, voxels.
        prob: Probability of the replacement, in [0, 1].
        ignore_label: Value of voxels that nobody annotated; ``None`` if there are none.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_key: str = "label",
        spatial_axis: int = 0,
        sigma: float = 1.0,
        prob: float = 0.1,
        ignore_label: int | None = None,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.label_key = label_key
        self.dim = spatial_axis + 1
        self.sigma = sigma
        self.ignore_label = ignore_label

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the case without what is labelled, or as it is."""
        case = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return case
        label = torch.as_tensor(case[self.label_key])
        labelled = _labelled(label, self.ignore_label)
        for key in self.keys:
            image: Tensor = case[key]
            middle = self._middle(torch.as_tensor(image))
            if (labelled & self._opposite(labelled, middle)).any():
                return dict(data)
            where = torch.as_tensor(GaussianSmooth(self.sigma)(labelled.float())).maximum(labelled.float())
            case[key] = image + where * (self._opposite(torch.as_tensor(image), middle) - image)
        case[self.label_key] = case[self.label_key] * ~labelled
        return case

    def _middle(self, image: Tensor) -> float:
        """Return the mean index, along the axis, of the voxels above the lowest value."""
        counts = (image > image.min()).movedim(self.dim, 0).flatten(1).sum(1).double()
        indices = torch.arange(len(counts), dtype=counts.dtype)
        total = float(counts.sum())
        return float((indices * counts).sum()) / total if total else (len(counts) - 1) / 2

    def _opposite(self, volume: Tensor, middle: float) -> Tensor:
        """Return the volume mirrored at the middle; what lies outside comes from the far edge."""
        shift = round(2 * middle) - (volume.shape[self.dim] - 1)
        return volume.flip(self.dim).roll(shift, self.dim)


def _labelled(label: Tensor, ignore_label: int | None) -> Tensor:
    labelled = label != 0
    return labelled if ignore_label is None else labelled & (label != ignore_label)
