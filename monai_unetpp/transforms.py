# SPDX-License-Identifier: Apache-2.0
"""Dictionary transforms that our pipelines need and MONAI lacks."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import GaussianSmooth, MapTransform, RandomizableTransform, SaveImaged
from torch import Tensor

from monai_unetpp.files import result_path, whole_file
from monai_unetpp.headers import check_affine
from monai_unetpp.lungs import lung_region
from monai_unetpp.readers import check_header, volume_loader

__all__ = [
    "DeepestHeadd",
    "FocusOnLungsd",
    "LoadImageAndLabeld",
    "RandShiftLabeledIntensityd",
    "SaveImageAtomicd",
]

PathLike = str | os.PathLike[str]

logger = logging.getLogger(__name__)


class LoadImageAndLabeld(MapTransform):
    """Load a volume and, where there is one, its label; stop at what no network should see.

    A host that has the volume already, such as MONAI Deploy, knows by the name that it does without: what
    follows it in a bundle is ``EnsureChannelFirstd``, for a volume that did not come from here.

    Each key becomes a ``MetaTensor`` (1, *spatial), float32, as ``LoadImaged`` with
    ``ensure_channel_first`` gives. Every error names the file.

    Args:
        keys: of the files to load: NIfTI, or what :class:`~monai_unetpp.readers.SimpleITKReader` knows.
        image_key: the volume.
        label_key: its label map.
        out_channels: labels must be whole numbers below it.
        hounsfield: whether the volume is CT in HU, and one without a voxel below 0 worth a warning: MR, an
            offset that was left in, or 8 bits.
        allow_missing_keys: whether a case may lack some of the keys, such as the label.

    Raises:
        ValueError: if a file cannot be read to its end, the volume has several channels, or NaN or
            infinite voxels, the label has another shape, lies elsewhere, or has a value that is no class.
    """

    def __init__(
        self,
        keys: KeysCollection = ("image", "label"),
        image_key: str = "image",
        label_key: str = "label",
        out_channels: int = 2,
        allow_missing_keys: bool = False,
        hounsfield: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.hounsfield = hounsfield
        self.image_key = image_key
        self.label_key = label_key
        self.out_channels = out_channels
        self.load = volume_loader()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the paths in ``data`` by what they hold."""
        case = dict(data)
        for key in self.key_iterator(case):
            path = case[key]
            try:
                check_header(Path(path))
                case[key] = self.load(path)
            except Exception as error:
                raise ValueError(f"{path} cannot be read, it may be damaged: {error!r}.") from error
            case[key].meta["original_channel_dim"] = 0  # EnsureChannelFirstd has nothing left to do
            self._check_voxels(path, case[key])
            check_affine(path, case[key].affine, case[key].shape[1:])
            if key == self.image_key:
                self._warn(path, case[key])
        if self.label_key in case and self.label_key in self.keys:
            self._check_label(data, case[self.image_key], case[self.label_key])
        return case

    def _check_voxels(self, path: str, volume: MetaTensor) -> None:
        if volume.shape[0] != 1:
            raise ValueError(f"{path} must have one channel, got {volume.shape[0]}.")
        if volume.dim() != 4:
            raise ValueError(
                f"{path} must be a volume of three axes, got {volume.dim() - 1}: {list(volume.shape[1:])}."
            )
        wrong = (~torch.isfinite(volume.as_tensor())).sum().item()
        if wrong:
            raise ValueError(f"{path} has {wrong} voxels that are NaN or infinite; repair or leave it out.")

    def _warn(self, path: str, volume: MetaTensor) -> None:
        if int(volume.meta.get("qform_code", 1)) == int(volume.meta.get("sform_code", 1)) == 0:
            logger.warning(f"{path} does not say where it lies (no affine): its axes are taken for RAS.")
        low = float(volume.min())
        if self.hounsfield and low >= 0:
            logger.warning(
                f"{path} has no voxel below 0, got {low:g}..{float(volume.max()):g}: CT in HU has air. "
                "Is it MR, or stored with an offset?"
            )

    def _check_label(self, paths: Mapping[Hashable, Any], image: MetaTensor, label: MetaTensor) -> None:
        names = f"{paths[self.label_key]} of {paths[self.image_key]}"
        if image.shape != label.shape:
            raise ValueError(
                f"label {names} must have the shape of the image, {list(image.shape[1:])}, "
                f"got {list(label.shape[1:])}."
            )
        apart = _greatest_distance(image, label)
        if apart > 0.5 * float(image.pixdim.min()):
            raise ValueError(
                f"label {names} must lie where the image lies; their affines put it {apart:.1f} mm apart."
            )
        values = torch.unique(label.as_tensor()).tolist()
        wrong = [value for value in values if value not in range(self.out_channels)]
        if wrong:
            raise ValueError(
                f"label {names} must have values 0..{self.out_channels - 1} (out_channels = "
                f"{self.out_channels}), got {', '.join(f'{value:g}' for value in wrong)}."
            )


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


class FocusOnLungsd(MapTransform):
    """Fill a scaled CT with soft tissue wherever it is not near the lungs; leave one without lungs as it is.

    What is one value throughout takes a :class:`~monai_unetpp.VolumeInferer` no time, and no bone or table is
    taken for a nodule.

    Args:
        keys: of the volumes (1, X, Y, Z).
        hu_range: what 0 and 1 of the volumes are in HU.
        fill: what to fill with, HU.
        margin: around the lungs, mm, see :func:`~monai_unetpp.lungs.lung_region`.
    """

    def __init__(
        self, keys: KeysCollection, hu_range: Sequence[float], fill: float = 40.0, margin: float = 15.0
    ) -> None:
        super().__init__(keys)
        self.hu_range = hu_range
        self.fill = fill
        self.margin = margin

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the case with the volumes filled."""
        case = dict(data)
        low, high = self.hu_range
        for key in self.keys:
            image: MetaTensor = case[key]
            ct = image.as_tensor()[0] * (high - low) + low
            region = lung_region(ct, image.pixdim.tolist(), self.margin)
            if region.any():
                case[key] = image.masked_fill(
                    ~region[None].to(image.device), (self.fill - low) / (high - low)
                )
            else:
                logger.warning(
                    f"{image.meta.get('filename_or_obj')} shows no lungs: it is searched as a whole."
                )
        return case


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


class SaveImageAtomicd(SaveImaged):
    """Write each volume as NIfTI, whole or not at all, named after the file that it was made from.

    MONAI's ``SaveImaged`` writes under the final name from the start, and takes what follows a dot in the
    name of a DICOM folder for a suffix. This is one, so that a host that writes itself, such as MONAI Label
    or MONAI Deploy, finds it and does without.

    Args:
        keys: of the volumes to write, ``MetaTensor`` (1, *spatial) with ``affine``.
        output_dir: folder to write to, made if it does not exist.
        input_dir: folder that the files come from; what lies deeper in it is written as deep.
        what: kind of the result, in its name: ``ct.nii.gz`` becomes ``ct_seg.nii.gz``.
        dtype: of the voxels in the file.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: PathLike,
        input_dir: PathLike | Sequence[PathLike] | None = None,
        what: str = "seg",
        dtype: str = "uint8",
    ) -> None:
        super().__init__(keys)
        self.output_dir = output_dir
        self.input_dir = input_dir if isinstance(input_dir, (str, os.PathLike)) else None
        self.what = what
        self.dtype = dtype

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write, and return the data as they came."""
        for key in self.key_iterator(dict(data)):
            volume = data[key]
            source = volume.meta["filename_or_obj"]
            path = result_path(source, self.output_dir, self.input_dir, self.what)
            write_nifti(path, volume[0], volume.affine, self.dtype)
            logger.info(f"Wrote {path}.")
        return dict(data)


def write_nifti(path: PathLike, volume: Tensor, affine: Tensor, dtype: str) -> None:
    """Write a volume (*spatial) with its affine, voxels to mm in RAS+, whole or not at all."""
    image: Any = nib.Nifti1Image(  # type: ignore[no-untyped-call]
        volume.cpu().numpy().astype(dtype, copy=False), affine.cpu().numpy()
    )
    image.header.set_xyzt_units("mm")
    with whole_file(path) as part:
        nib.save(image, part)


def _greatest_distance(a: MetaTensor, b: MetaTensor) -> float:
    """How far apart, in mm, the affines of two arrays of one shape put the same corner."""
    corners = itertools.product(*((0, size - 1) for size in a.shape[1:]))
    index = np.array([(*corner, 1) for corner in corners], dtype=float).T
    shift = (a.affine - b.affine).cpu().numpy()[:-1] @ index
    return float(np.linalg.norm(shift, axis=0).max())
