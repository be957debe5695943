# SPDX-License-Identifier: Apache-2.0
"""Loading a volume and its label, and what no network should see."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from monai_unetpp.readers import is_dicom, is_picture, other_channels, volume_loader
from monai_unetpp.readers.checks import check_affine, greatest_distance
from monai_unetpp.readers.picture import AFFINE, read_numbers
from monai_unetpp.regions import check_regions, region_values
from monai_unetpp.transforms.classes import LabelValues, as_classes, check_ignore_label
from monai_unetpp.transforms.hounsfield import looks_like_labels, why_no_hounsfield

__all__ = ["LoadImageAndLabeld"]

logger = logging.getLogger(__name__)

MAX_ROUNDING = 1e-3  # by which a label may miss a whole number: arithmetic in float, or lossy compression
MOST_NAMED = 10  # values that a message lists


class LoadImageAndLabeld(MapTransform):
    """Load a volume and, where there is one, its label; stop at what no network should see.

    A host that has the volume already, such as MONAI Deploy, knows by the name that it does without: what
    follows it in a bundle is ``EnsureChannelFirstd``, for a volume that did not come from here.

    Each key becomes a ``MetaTensor`` (C, *spatial), float32, as ``LoadImaged`` with
    ``ensure_channel_first`` gives. Every error names the file.

    Args:
        keys: Keys of the files to load: NIfTI, a picture, or what
            :class:`~monai_unetpp.readers.SimpleITKReader` knows.
        image_key: Key of the volume.
        label_key: Key of its label map.
        out_channels: Number of classes; labels must be whole numbers below it.
        in_channels: Channels of the volume: of one file, or of ``case_0000.nii.gz`` and those beside it. A
            grey picture has equal colours, and one of equal colours is grey.
        label_values: Values of the classes where they are not 0, 1, 2, ..., see
            :func:`~monai_unetpp.transforms.classes.as_classes`.
        modality: Modality that a DICOM series must have; ``None`` for any.
        hounsfield: Whether the volume is CT in HU, and one that does not look like it worth a warning: MR, an
            offset that was left in, 8 bits. Warnings are logged, and kept in ``meta["warnings"]``.
        allow_missing_keys: Whether a case may lack some of the keys, such as the label.
        series: UID of the DICOM series to read from a folder that holds several.
        phase: Which of the images at each place to read, from 1, where a DICOM series holds several.
        ignore_label: Value of voxels that nobody annotated, which they keep; ``None`` if there are none.
        regions: Values of the label map in each region, where these overlap: it has them and 0 alone, and
            keeps them. The number of classes is then not looked at.

    Raises:
        ValueError: if a file cannot be read to its end, the volume has other channels, or NaN or infinite
            voxels, the label has another shape, lies elsewhere, or has a value that is no class; or if
            ``ignore_label`` is a class, or both ``regions`` and ``label_values`` are given.
    """

    def __init__(
        self,
        keys: KeysCollection = ("image", "label"),
        image_key: str = "image",
        label_key: str = "label",
        out_channels: int = 2,
        allow_missing_keys: bool = False,
        hounsfield: bool = False,
        series: str | None = None,
        phase: int | None = None,
        in_channels: int = 1,
        label_values: LabelValues = None,
        modality: str | None = "CT",
        ignore_label: int | None = None,
        regions: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.values = list(range(out_channels))
        if regions is None:
            check_ignore_label(ignore_label, out_channels, label_values)
        else:
            check_regions(regions)
            self.values = region_values(regions)
            check_ignore_label(ignore_label, 0, self.values, "the values of regions")
            if label_values is not None:
                raise ValueError(f"label_values must be left out with regions, got {label_values!r}.")
        self.regions = regions
        self.ignore_label = ignore_label
        self.hounsfield = hounsfield
        self.image_key = image_key
        self.label_key = label_key
        self.out_channels = out_channels
        self.in_channels = in_channels
        self.label_values = label_values
        self.series, self.phase, self.modality = series, phase, modality
        self.load = volume_loader(series, phase, modality)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the paths in ``data`` by what they hold."""
        case = dict(data)
        for key in self.key_iterator(case):
            path = case[key]
            is_label = key == self.label_key
            try:
                case[key] = self.load_label(path) if is_label else self._channels(path)
            except Exception as error:
                if is_dicom(path):
                    raise  # of a series more can be wrong than damage
                raise ValueError(f"{path} cannot be read, it may be damaged: {error}") from error
            case[key].meta["original_channel_dim"] = 0  # EnsureChannelFirstd has nothing left to do
            self._check_voxels(path, case[key], 1 if is_label else self.in_channels)
            check_affine(path, case[key].affine, case[key].shape[1:])
            if key == self.image_key:
                self._warn(path, case[key])
        if self.label_key in case and self.label_key in self.keys:
            self._check_label(data, case[self.image_key], case[self.label_key])
        return case

    def _channels(self, path: str) -> MetaTensor:
        """Load the volume with its channels, which may lie in files beside it."""
        volume: MetaTensor = self.load(path)
        if volume.shape[0] == self.in_channels:
            return volume
        others = other_channels(path) if volume.shape[0] == 1 else []
        if others and 1 + len(others) == self.in_channels:
            return self._stack(path, volume, others)
        if is_picture(path) and volume.shape[0] == 1:
            volume = MetaTensor(volume.as_tensor().repeat(self.in_channels, 1, 1, 1), meta=volume.meta)
        elif is_picture(path) and self.in_channels == 1 and bool((volume == volume[:1]).all()):
            volume = MetaTensor(volume.as_tensor()[:1], meta=volume.meta)
        return volume

    def _stack(self, path: str, volume: MetaTensor, others: Sequence[Path]) -> MetaTensor:
        channels = [volume]
        for other in others:
            channels.append(self.load(other))
            if channels[-1].shape != volume.shape:
                raise ValueError(
                    f"{other} must have the shape of {path}, {list(volume.shape[1:])}, "
                    f"got {list(channels[-1].shape[1:])}."
                )
            apart = greatest_distance(volume, channels[-1])
            if apart > 0.5 * float(volume.pixdim.min()):
                raise ValueError(f"{other} must lie where {path} lies; they are {apart:.1f} mm apart.")
        return MetaTensor(torch.cat([each.as_tensor() for each in channels]), meta=volume.meta)

    def load_label(self, path: str) -> MetaTensor:
        """Load a label map as classes."""
        if is_picture(path):
            values = read_numbers(Path(path))
            label: MetaTensor = MetaTensor.ensure_torch_and_prune_meta(
                values[None].astype(np.float32), {"affine": AFFINE.copy(), "filename_or_obj": str(path)}
            )
        else:
            label = self.load(path)
            values = label[0].numpy()
        if self.label_values is not None and label.shape[0] == 1:
            classes = as_classes(values, self.label_values, str(path), self.ignore_label)
            label.copy_(torch.from_numpy(classes)[None])
        return label

    def _check_voxels(self, path: str, volume: MetaTensor, channels: int) -> None:
        if volume.shape[0] != channels:
            wanted = "one channel" if channels == 1 else f"{channels} channels (in_channels)"
            raise ValueError(f"{path} must have {wanted}, got {volume.shape[0]}.")
        if volume.dim() != 4:
            raise ValueError(
                f"{path} must be a volume of three axes, got {volume.dim() - 1}: {list(volume.shape[1:])}."
            )
        values = volume.as_tensor()
        if torch.isfinite(values.sum()):  # which one that is not makes infinite or NaN
            return
        wrong = (~torch.isfinite(values)).sum().item()
        if wrong:
            raise ValueError(f"{path} has {wrong} voxels that are NaN or infinite; repair or leave it out.")

    def _warn(self, path: str, volume: MetaTensor) -> None:
        """Log what is odd about a volume that can be read, and keep it with those of its reader."""
        values = volume.as_tensor()
        found = ""
        if looks_like_labels(values) and not is_picture(path):
            found = f"holds whole numbers 0..{float(values.max()):g} alone: is it a label map or a mask?"
        elif self.hounsfield:
            found = why_no_hounsfield(values)
        if found:
            logger.warning(f"{path} {found}")
            volume.meta["warnings"] = ["; ".join([*volume.meta.get("warnings", []), f"{path} {found}"])]

    def _check_label(self, paths: Mapping[Hashable, Any], image: MetaTensor, label: MetaTensor) -> None:
        names = f"{paths[self.label_key]} of {paths[self.image_key]}"
        if image.shape[1:] != label.shape[1:]:
            raise ValueError(
                f"label {names} must have the shape of the image, {list(image.shape[1:])}, "
                f"got {list(label.shape[1:])}."
            )
        apart = greatest_distance(image, label)
        if apart > 0.5 * float(image.pixdim.min()):
            raise ValueError(
                f"label {names} must lie where the image lies; their affines put it {apart:.1f} mm apart."
            )
        values = torch.unique(label.as_tensor())
        off = (values - values.round()).abs()
        if 0 < float(off.max()) <= MAX_ROUNDING:
            logger.warning(
                f"label {names} has values that are no whole numbers, such as "
                f"{float(values[off > 0][0]):.9g}: they are rounded."
            )
            label.copy_(label.round())
            values = torch.unique(values.round())
        known = (*self.values, *([] if self.ignore_label is None else [self.ignore_label]))
        wrong = [value for value in values.tolist() if value not in known]
        if wrong:
            wanted = f"0..{self.out_channels - 1} (out_channels = {self.out_channels})"
            if self.regions is not None:
                wanted = f"{', '.join(map(str, self.values))} (regions = {list(self.regions)})"
            raise ValueError(
                f"label {names} must have values {wanted}, got "
                f"{', '.join(f'{value:.9g}' for value in wrong[:MOST_NAMED])}"
                f"{f' and {len(wrong) - MOST_NAMED} more' if len(wrong) > MOST_NAMED else ''}."
            )
