# SPDX-License-Identifier: Apache-2.0
"""Writing a volume as NIfTI, or the mask of a picture as a picture."""

from __future__ import annotations

import logging
import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import nibabel as nib
import SimpleITK as sitk  # noqa: N813
from monai.config import KeysCollection
from monai.transforms import SaveImaged
from torch import Tensor

from monai_unetpp.files import PathLike, atomic_write, result_path
from monai_unetpp.readers import is_picture

__all__ = ["DESCRIPTION", "RESULT_PATH", "SaveImageAtomicd", "write_nifti"]

RESULT_PATH = "result_path"  # keys of meta
DESCRIPTION = "description"

logger = logging.getLogger(__name__)


class SaveImageAtomicd(SaveImaged):
    """Write each volume as NIfTI, or that of a picture as PNG, atomically, named after the file it is from.

    MONAI's ``SaveImaged`` does not write atomically, and takes the part after a dot in the name of a DICOM
    folder for a suffix. This is a subclass, so that a host that saves results itself, such as MONAI Label or
    MONAI Deploy, recognises and removes it.

    A caller that has named the file already puts its path into the volume's ``meta`` as ``"result_path"``,
    and a text for the header, of up to 79 bytes, as ``"description"``.

    Args:
        keys: Keys of the volumes to write, ``MetaTensor`` (1, *spatial) with ``affine``.
        output_dir: Folder to write to, made if it does not exist.
        input_dir: Folder of the volumes, whose sub-folders are mirrored in ``output_dir``.
        output_postfix: Kind of the result, in its name: ``ct.nii.gz`` becomes ``ct_seg.nii.gz``.
        dtype: Type of the voxels in the file.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: PathLike,
        input_dir: PathLike | Sequence[PathLike] | None = None,
        output_postfix: str = "seg",
        dtype: str = "uint8",
    ) -> None:
        super().__init__(keys)
        self.output_dir = output_dir
        self.input_dir = input_dir if isinstance(input_dir, (str, os.PathLike)) else None
        self.output_postfix = output_postfix
        self.dtype = dtype

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the volumes, and return the data unchanged."""
        for key in self.key_iterator(dict(data)):
            volume = data[key]
            path = volume.meta.get(RESULT_PATH)
            if path is None:
                image = volume.meta["filename_or_obj"]
                suffix = ".png" if is_picture(image) else ".nii.gz"
                path = result_path(image, self.output_dir, self.input_dir, self.output_postfix, suffix)
            write_mask(path, volume[0], volume.affine, self.dtype, volume.meta.get(DESCRIPTION, ""))
            logger.info(f"Wrote {path}.")
        return dict(data)


def write_mask(path: PathLike, volume: Tensor, affine: Tensor, dtype: str, description: str = "") -> None:
    """Write a mask (*spatial) as a picture, whose pixels are classes, if ``path`` says so, else as NIfTI."""
    if not is_picture(path):
        write_nifti(path, volume, affine, dtype, description)
        return
    picture = sitk.GetImageFromArray(volume[..., 0].T.cpu().numpy().astype(dtype, copy=False))
    with atomic_write(path) as part:
        sitk.WriteImage(picture, str(part))


def write_nifti(path: PathLike, volume: Tensor, affine: Tensor, dtype: str, description: str = "") -> None:
    """Write a volume (*spatial) with its affine, voxel index to world mm (RAS+), atomically."""
    image: Any = nib.Nifti1Image(  # type: ignore[no-untyped-call]
        volume.cpu().numpy().astype(dtype, copy=False), affine.cpu().numpy()
    )
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode("ascii", "replace")[:79]
    with atomic_write(path) as part:
        nib.save(image, part)
