# SPDX-License-Identifier: Apache-2.0
"""Transforms of MONAI for label maps with voxels that nobody annotated, whose value is ``ignore_label``.

- RandCropByLabelClassesAnnotatedd, RandCropByPosNegAnnotatedd: no patch is drawn around such a voxel
- AsDiscreteAnnotatedd: such a voxel is in no class, of the prediction and of the label; classes may overlap
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import monai.transforms as mt
import torch
from monai.config import KeysCollection
from monai.transforms.utils import map_binary_to_indices, map_classes_to_indices
from torch import Tensor

from monai_unetpp.regions import check_regions, to_regions, with_background

__all__ = ["AsDiscreteAnnotatedd", "RandCropByLabelClassesAnnotatedd", "RandCropByPosNegAnnotatedd"]


class RandCropByLabelClassesAnnotatedd(mt.RandCropByLabelClassesd):
    """MONAI's ``RandCropByLabelClassesd``, which also crops a case without any annotated voxel: anywhere.

    Otherwise no patch is drawn around a voxel whose value is no class.

    Args:
        *args: Arguments of MONAI's transform.
        ignore_label: Value of voxels that nobody annotated, which may lie among those of regions; ``None``
            if there are none.
        **settings: Further arguments of MONAI's transform.
    """

    def __init__(self, *args: Any, ignore_label: int | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.ignore_label = ignore_label

    def randomize(self, label: Tensor, indices: list[Any] | None = None, image: Tensor | None = None) -> None:
        """Choose the centres of the patches."""
        if indices is None:
            crop = self.cropper
            indices = map_classes_to_indices(
                label, crop.num_classes, image, crop.image_threshold, crop.max_samples_per_class
            )
            if self.ignore_label is not None and 0 <= self.ignore_label < len(indices):
                indices[self.ignore_label] = indices[self.ignore_label][:0]
            if not any(len(each) for each in indices):
                indices = [torch.arange(label[0].numel()), *indices[1:]]
        super().randomize(label, indices, image)


class RandCropByPosNegAnnotatedd(mt.RandCropByPosNegLabeld):
    """MONAI's ``RandCropByPosNegLabeld``, of which voxels that nobody annotated are neither kind.

    A case without a voxel of either kind is cropped around any annotated one, or else anywhere.

    Args:
        *args: Arguments of MONAI's transform.
        ignore_label: Value of voxels that nobody annotated; ``None`` if there are none.
        **settings: Further arguments of MONAI's transform.
    """

    def __init__(self, *args: Any, ignore_label: int | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.ignore_label = ignore_label

    def randomize(
        self,
        label: Tensor | None = None,
        fg_indices: Any = None,
        bg_indices: Any = None,
        image: Tensor | None = None,
    ) -> None:
        """Choose the centres of the patches."""
        given = fg_indices is not None and bg_indices is not None
        if self.ignore_label is not None and label is not None and not given:
            annotated = (torch.as_tensor(label) != self.ignore_label).any(0).flatten().cpu()
            found = map_binary_to_indices(label, image, self.cropper.image_threshold)
            fg_indices, bg_indices = (each[annotated[each]] for each in map(torch.as_tensor, found))
            if not len(fg_indices) and not len(bg_indices):
                bg_indices = (annotated if annotated.any() else ~annotated).nonzero()[:, 0]
        super().randomize(label, fg_indices, bg_indices, image)


class AsDiscreteAnnotatedd(mt.AsDiscreted):
    """MONAI's ``AsDiscreted`` for predictions and label maps with voxels that nobody annotated.

    These voxels are 0 in every channel afterwards, so that metrics count them neither as hits nor as misses.

    Args:
        keys: Keys of the predictions and the label map (1, *spatial), on one grid.
        *args: Arguments of MONAI's transform.
        label_key: Key of the label map.
        ignore_label: Value of voxels that nobody annotated; ``None`` if there are none.
        zeroed: Further keys, such as of probabilities, that are 0 at these voxels, if they are there.
        regions: Values of the label map in each of R regions, which may overlap. Predictions are then
            probabilities (R, *spatial), of which a threshold of 1/2 makes masks, whatever the arguments of
            MONAI's transform; what is in no region becomes the first channel of all keys, (1 + R, *spatial).
        **settings: Further arguments of MONAI's transform.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *args: Any,
        label_key: str = "label",
        ignore_label: int | None = None,
        zeroed: Sequence[str] = (),
        regions: list[list[int]] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(keys, *args, **settings)
        if regions is not None:
            check_regions(regions)
        self.regions = regions
        self.label_key = label_key
        self.ignore_label = ignore_label
        self.zeroed = tuple(zeroed)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with classes, one-hot if that is asked for.

        Raises:
            ValueError: if the label map is not on the grid of what is to be 0 where it has gaps, or a
                prediction has another number of channels than there are regions.
        """
        item = dict(data)
        if self.ignore_label is None or self.label_key not in item:
            return self._discrete(item)
        label = item[self.label_key]
        hole = torch.as_tensor(label) == self.ignore_label
        item[self.label_key] = label.masked_fill(hole, 0)  # a class, to be encoded
        found = self._discrete(item)
        for key in (*self.keys, *self.zeroed):
            if key in found:
                found[key] = self._zero(key, found[key], hole)
        return found

    def _discrete(self, item: dict[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with classes, or with regions."""
        if self.regions is None:
            found: dict[Hashable, Any] = super().__call__(item)
            return found
        for key in (*self.key_iterator(item), *(key for key in self.zeroed if key in item)):
            masks = to_regions(item[key], self.regions) if key == self.label_key else item[key]
            if len(masks) != len(self.regions):
                raise ValueError(
                    f"{key} must have a channel for each of the {len(self.regions)} regions, "
                    f"{self.regions}, got {len(masks)}."
                )
            if key in self.keys and key != self.label_key:
                masks = (masks > 0.5).to(masks.dtype)
            item[key] = with_background(masks)
        return item

    def _zero(self, key: Hashable, volume: Tensor, hole: Tensor) -> Tensor:
        if volume.shape[1:] != hole.shape[1:]:
            raise ValueError(
                f"{key} must be on the grid of the label, {list(hole.shape[1:])}, "
                f"got {list(volume.shape[1:])}: ignore_label = {self.ignore_label} excludes its voxels."
            )
        return volume.masked_fill(hole.to(volume.device), 0)
