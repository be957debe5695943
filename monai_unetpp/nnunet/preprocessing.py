# SPDX-License-Identifier: Apache-2.0
"""nnU-Net's preprocessing as a transform of MONAI: crop to what is not 0, normalise, resample.

Axes stay in the order of the file; weights of a network are exported in that order as well.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes  # type: ignore[import-untyped]

from monai_unetpp.nnunet.resampling import coarse_axis, new_size, resample

__all__ = ["SCHEMES", "PlansPreprocessd"]

SCHEMES = ("ZScoreNormalization", "CTNormalization", "NoNormalization", "RescaleTo01Normalization")
LEAST_DEVIATION = 1e-8  # below which nnU-Net divides by this instead
OF_CT = ("mean", "std", "percentile_00_5", "percentile_99_5")

Array = NDArray[np.float32]


class PlansPreprocessd(MapTransform):
    """Preprocess volumes (C, X, Y, Z) as nnU-Net's ``DefaultPreprocessor`` does.

    The affine of the result leads back to the file: the result covers, edge to edge, the box of the file that
    was cropped.

    Args:
        keys: Keys of the volumes, ``MetaTensor`` with the affine of their file.
        pixdim: Spacing to resample to per axis of the file, mm; -1 keeps that of the file.
        schemes: Name of the normalisation of each channel, one of :data:`SCHEMES`.
        masked: Whether the normalisation of each channel leaves out what is 0 around the body.
        intensities: ``mean``, ``std``, ``percentile_00_5`` and ``percentile_99_5`` of each channel, for CT.
        order: Order of the spline.
        order_z: Order along an axis that is much coarser than the others.
        separate: Whether such an axis is resampled on its own; None for where it is coarser by more than
            ``threshold``.
        threshold: Ratio of spacings.
        allow_missing_keys: Whether keys may be missing.

    Raises:
        ValueError: if a scheme is unknown, lists differ in length, or intensities for CT are missing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        pixdim: Sequence[float],
        schemes: Sequence[str],
        masked: Sequence[bool],
        intensities: Sequence[Mapping[str, float]],
        order: int = 3,
        order_z: int = 0,
        separate: bool | None = None,
        threshold: float = 3.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if not len(schemes) == len(masked) == len(intensities):
            raise ValueError(
                "schemes, masked and intensities must have one entry per channel, got "
                f"{len(schemes)}, {len(masked)} and {len(intensities)}."
            )
        for scheme, values in zip(schemes, intensities, strict=True):
            if scheme not in SCHEMES:
                raise ValueError(f"schemes must be of {', '.join(SCHEMES)}, got {scheme}.")
            lacking = [name for name in OF_CT if name not in values]
            if scheme == "CTNormalization" and lacking:
                raise ValueError(f"intensities must have {', '.join(OF_CT)} for CT, {lacking[0]} is missing.")
        self.pixdim, self.schemes, self.masked = list(pixdim), list(schemes), list(masked)
        self.intensities = [dict(values) for values in intensities]
        self.order, self.order_z, self.separate, self.threshold = order, order_z, separate, threshold

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the volumes in ``data`` by preprocessed ones, float32.

        Raises:
            ValueError: if a volume has another number of channels.
        """
        case = dict(data)
        for key in self.key_iterator(case):
            case[key] = self._preprocess(case[key])
        return case

    def _preprocess(self, volume: MetaTensor) -> MetaTensor:
        values: Array = volume.as_tensor().cpu().numpy().astype(np.float32)
        if values.ndim != 4 or len(values) != len(self.schemes):
            raise ValueError(
                f"a volume must have {len(self.schemes)} channels and three axes, got {list(values.shape)}."
            )
        body = binary_fill_holes((values != 0).any(axis=0))
        x, y, z = box = _box(body)
        values, body = values[:, x, y, z], body[box]
        values = np.stack([self._normalise(n, channel, body) for n, channel in enumerate(values)])
        spacing = volume.pixdim.tolist()
        wanted = [w if w > 0 else s for w, s in zip(self.pixdim, spacing, strict=True)]
        size = new_size(values.shape[1:], spacing, wanted)
        axis = coarse_axis(spacing, wanted, self.separate, self.threshold)
        made = resample(values, size, self.order, self.order_z, axis)
        steps = np.array([n / m for n, m in zip(values.shape[1:], size, strict=True)])
        to_file = np.diag([*steps, 1.0])
        to_file[:3, 3] = [place.start for place in box] + (steps - 1) / 2  # edges stay in place
        affine = volume.affine.to(torch.float64) @ torch.from_numpy(to_file)
        meta = {**volume.meta, "affine": affine}
        return MetaTensor(torch.from_numpy(np.ascontiguousarray(made)), meta=meta)

    def _normalise(self, channel: int, values: Array, body: NDArray[np.bool_]) -> Array:
        scheme, values = self.schemes[channel], values.copy()
        if scheme == "ZScoreNormalization":
            inside = body if self.masked[channel] else np.ones_like(body)
            mean, deviation = values[inside].mean(), values[inside].std()
            values[inside] = (values[inside] - mean) / max(deviation, LEAST_DEVIATION)
        elif scheme == "CTNormalization":
            mean, deviation, low, high = (self.intensities[channel][name] for name in OF_CT)
            values = (np.clip(values, low, high) - mean) / max(deviation, LEAST_DEVIATION)
        elif scheme == "RescaleTo01Normalization":
            values -= values.min()
            values /= max(values.max(), LEAST_DEVIATION)
        return values.astype(np.float32, copy=False)


def _box(body: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Return the bounding box of a mask; the whole volume if it is empty."""
    if not body.any():
        return tuple(slice(0, n) for n in body.shape)
    return tuple(slice(int(p.min()), int(p.max()) + 1) for p in np.nonzero(body))
