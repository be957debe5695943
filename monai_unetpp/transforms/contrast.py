# SPDX-License-Identifier: Apache-2.0
"""Where a volume is brighter than what surrounds it: thin structures, such as vessels in the lung."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import GaussianSmooth, MapTransform

__all__ = ["LocalContrastd"]


class LocalContrastd(MapTransform):
    """Subtract the Gaussian mean around each voxel, of a volume that is clipped above.

    With a ceiling below soft tissue neither the inside of a wall nor bone in it has contrast: what remains
    above a threshold are structures thinner than about ``4 * sigma`` in darker surroundings. In CT of the
    lung these are nodules and vessels, to draw patches around (``image_key`` of MONAI's
    ``RandCropByPosNegLabeld``).

    Args:
        keys: Keys of the volumes (C, *spatial).
        sigma: Standard deviation of the Gaussian, voxels.
        ceiling: Intensity at which the volume is clipped; by default it is not.
        allow_missing_keys: Whether a key may be missing.

    Raises:
        ValueError: if ``sigma`` is not greater than 0.
    """

    def __init__(
        self,
        keys: KeysCollection,
        sigma: float = 4.0,
        ceiling: float | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if not sigma > 0:
            raise ValueError(f"sigma must be greater than 0, such as 4.0, got {sigma}.")
        self.smooth = GaussianSmooth(sigma)
        self.ceiling = ceiling

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the contrast in place of each volume."""
        item = dict(data)
        for key in self.key_iterator(item):
            volume = item[key] if self.ceiling is None else torch.clamp(item[key], max=self.ceiling)
            item[key] = volume - self.smooth(volume)
        return item
