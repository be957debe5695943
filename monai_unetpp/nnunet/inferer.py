# SPDX-License-Identifier: Apache-2.0
"""From nnU-Net's windows to labels on the grid of the file, as its export does it: logits are resampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_unetpp.inferers import Segmentation, VolumeInferer
from monai_unetpp.inferers.file_grid import Planes
from monai_unetpp.inferers.uncertainty import probabilities
from monai_unetpp.inferers.volume import checked_volume, keep_largest_component, on_file, results_of
from monai_unetpp.nnunet.resampling import coarse_axis, resample
from monai_unetpp.nnunet.windows import PlansWindows

__all__ = ["PlansInferer"]


class PlansInferer(VolumeInferer):
    """Segment a volume that :class:`~monai_unetpp.nnunet.preprocessing.PlansPreprocessd` preprocessed.

    Logits are resampled to the box of the file that was cropped; outside of it there is background. The
    logits of the whole volume are in memory, as in nnU-Net.

    Args:
        inferer: Windows.
        pixdim: Spacing of the preprocessed volume per axis of the file, mm; -1 is that of the file.
        largest_component: Whether to keep only the largest connected component of the foreground.
        level: Level ``k`` of L^k, see :class:`~monai_unetpp.VolumeInferer`.
        regions: Values of the label map in each region, where classes overlap.
        regions_class_order: Value that is written in each region; later ones overwrite earlier ones.
        order: Order of the spline that resamples logits.
        order_z: Order along an axis that is much coarser than the others.
        separate: Whether such an axis is resampled on its own; None for where it is coarser by more than
            ``threshold``.
        threshold: Ratio of spacings.

    Raises:
        ValueError: if ``regions`` and ``regions_class_order`` do not fit each other.
    """

    def __init__(
        self,
        inferer: PlansWindows,
        pixdim: Sequence[float],
        largest_component: bool = False,
        level: int | None = None,
        regions: Sequence[Sequence[int]] | None = None,
        regions_class_order: Sequence[int] | None = None,
        order: int = 1,
        order_z: int = 0,
        separate: bool | None = None,
        threshold: float = 3.0,
    ) -> None:
        super().__init__(inferer, largest_component, False, level, regions, regions_class_order)
        self.pixdim = list(pixdim)
        self.resampling: tuple[int, int, bool | None, float] = (order, order_z, separate, threshold)

    def _segment(
        self,
        image: Tensor,
        network: Callable[..., Any],
        probability: int | None,
        uncertainty: bool,
        confidence: bool,
    ) -> Segmentation:
        if uncertainty:
            raise ValueError("uncertainty must be left out: it is not computed with nnU-Net's windows.")
        volume = checked_volume(image)
        logits, box = self._logits_on_file(volume, network)
        p = probabilities(logits[None].float(), self.order is not None)[0]
        part = Planes(2, torch.empty(0), p, torch.zeros(p.shape[1:], dtype=torch.bool))
        results: dict[str, Tensor] = {}
        for name, values in results_of(part, None, probability, self.order, confidence).items():
            outside = float(name == "probability" and probability == 0 and self.order is None)
            size = (*values.shape[:-3], *_file_size(volume))
            results[name] = torch.full(size, outside, dtype=values.dtype)
            results[name][(slice(None),) * (values.dim() - 3) + box] = values
        if self.largest_component:
            keep_largest_component(results["labels"])
        affine = _file_affine(volume)
        maps = {name: on_file(values, volume, affine) for name, values in results.items()}
        return Segmentation(maps["labels"], maps.get("probability"), confidence=maps.get("confidence"))

    def _logits_on_file(
        self, image: MetaTensor, network: Callable[..., Any]
    ) -> tuple[Tensor, tuple[slice, ...]]:
        """Return logits (K, *box), and the box of the file that they cover."""
        file = _file_affine(image).double()
        to_file = torch.linalg.solve(file, image.affine.reshape(4, 4).double()).numpy()
        steps, size = np.diag(to_file)[:3], np.array(image.shape[2:])
        first = np.rint(to_file[:3, 3] - (steps - 1) / 2).astype(int)  # edges stayed in place
        extent = np.rint(steps * size).astype(int)
        logits = self.inferer(image, network)[0].cpu().numpy()
        order, order_z, separate, threshold = self.resampling
        spacing = torch.linalg.norm(file[:3, :3], dim=0).tolist()
        here = [w if w > 0 else s for w, s in zip(self.pixdim, spacing, strict=True)]
        axis = coarse_axis(here, spacing, separate, threshold)
        made = resample(logits, extent.tolist(), order, order_z, axis)
        box = tuple(slice(int(s), int(s + n)) for s, n in zip(first, extent, strict=True))
        return torch.from_numpy(np.ascontiguousarray(made)), box


def _file_affine(image: MetaTensor) -> Tensor:
    return torch.as_tensor(image.meta["original_affine"]).reshape(4, 4)


def _file_size(image: MetaTensor) -> list[int]:
    size: list[int] = torch.as_tensor(image.meta["spatial_shape"]).flatten().tolist()
    return size
