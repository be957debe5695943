# SPDX-License-Identifier: Apache-2.0
"""One way to read them all: a path to a volume, or to its geometry; and the same as readers for MONAI."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813  its own documentation's name
from monai.data import ImageReader, MetaTensor, NibabelReader
from monai.data.utils import orientation_ras_lps
from monai.utils import ensure_tuple
from numpy.typing import NDArray

from monai_unetpp.readers import dicom, metaimage, nifti, nrrd, picture
from monai_unetpp.readers.checks import Volume, lps_to_ras
from monai_unetpp.readers.picture import PICTURE_SUFFIXES

__all__ = [
    "SUFFIXES",
    "VOLUME_SUFFIXES",
    "NiftiReader",
    "SimpleITKReader",
    "VolumeLoader",
    "check_header",
    "is_dicom",
    "is_volume",
    "read_geometry",
    "volume_loader",
]

PathLike = str | os.PathLike[str]

FORMATS: dict[str, ModuleType] = {
    **dict.fromkeys((".nii", ".nii.gz"), nifti),
    **dict.fromkeys((".mhd", ".mha"), metaimage),
    **dict.fromkeys((".nrrd", ".nhdr"), nrrd),
}
VOLUME_SUFFIXES = tuple(FORMATS)
PLANES_AT_ONCE = 8  # copied together: a quarter of the time of turning a volume over as a whole
SUFFIXES = (".mhd", ".mha", ".nrrd", ".nhdr")  # of what SimpleITKReader reads, beside folders

logger = logging.getLogger(__name__)


def is_volume(path: PathLike) -> bool:
    """Whether a file has the suffix of a volume, in capitals or not."""
    return Path(path).name.lower().endswith(VOLUME_SUFFIXES)


def is_dicom(path: PathLike) -> bool:
    """Whether a path is a folder, or names one of several DICOM series in a folder."""
    return Path(path).is_dir() or dicom.is_named(path)


def read_geometry(path: PathLike) -> tuple[Sequence[int], Sequence[float]]:
    """Return size and spacing (mm) of a volume, without reading or unpacking its voxels.

    Raises:
        FileNotFoundError: if there is no such file, or a folder holds no series.
        ValueError: if a header is damaged, or the slices of a series are no volume.
    """
    geometry = _format(Path(path)).read_geometry(Path(path))
    return geometry.size, geometry.spacing


def check_header(path: PathLike) -> None:
    """Raise what :func:`read_geometry` raises for a header that cannot be believed."""
    read_geometry(path)


def volume_loader(
    series: str | None = None, phase: int | None = None, modality: str | None = "CT"
) -> VolumeLoader:
    """Return what loads a volume of any kind as MONAI's ``LoadImage`` does, channel first."""
    return VolumeLoader(series, modality, phase)


class VolumeLoader:
    """Load NIfTI, MetaImage, NRRD, a picture or a folder of DICOM as a ``MetaTensor`` (C, X, Y, Z), float32.

    In place of ``LoadImage``, whose default readers unpickle NumPy's files (MONAI 1.5) and warn of packages
    that are of no use here. ``meta`` holds where the volume lies; if there are any, ``"warnings"``, a list of
    one text, since lists of different lengths do not collate; and, for the same reason as JSON in one text,
    the ``"sections"`` of a DICOM series: ``[file name, frame]`` of each slice, in the order of the volume.

    Args:
        series: UID of the DICOM series to read from a folder that holds several.
        modality: Modality that a DICOM series must have; ``None`` for any.
        phase: Which of the images at each place to read, from 1, where a series holds several.
    """

    def __init__(
        self, series: str | None = None, modality: str | None = "CT", phase: int | None = None
    ) -> None:
        self.readers = (NiftiReader(), SimpleITKReader(series, modality, phase))

    def __call__(self, path: PathLike) -> MetaTensor:
        """Return the volume; raises what the reader of its format raises."""
        reader = next((reader for reader in self.readers if reader.verify_suffix(path)), None)
        volume = _read(Path(path)) if reader is None else reader.read_volume(Path(path))
        array, meta = _channel_first(volume), _meta(volume)
        meta["filename_or_obj"] = str(path)
        meta["original_channel_dim"] = 0
        loaded: MetaTensor = MetaTensor.ensure_torch_and_prune_meta(array, meta)
        return loaded


class SimpleITKReader(ImageReader):
    """Read one volume with spacing, origin and direction into MONAI's RAS+.

    ``LoadImage`` takes it for ``.mhd``, ``.mha``, ``.nrrd``, ``.nhdr`` and for folders, once it is
    registered. What a DICOM series lacks or has too much is an error, not a distorted volume. SimpleITK
    decompresses pixels of DICOM, and reads the rarer ways to store voxels.

    Args:
        series: UID of the DICOM series to read from a folder that holds several.
        modality: Modality that the DICOM series must have; ``None`` for any.
        phase: Which of the images at each place to read, from 1, where a series holds several.

    Raises:
        FileNotFoundError: if a folder holds no DICOM series, or a header names a file that is not there.
        ValueError: if a file is damaged; if a folder holds several series and ``series`` names none of them;
            if the series is of another modality, lacks a slice, or its slices differ in spacing or direction.

    Example:
        >>> from monai.transforms import LoadImage
        >>> load = LoadImage(image_only=True, ensure_channel_first=True)
        >>> load.register(SimpleITKReader())
    """

    def __init__(
        self, series: str | None = None, modality: str | None = "CT", phase: int | None = None
    ) -> None:
        self.series = series
        self.modality = modality
        self.phase = phase

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether every file is of a kind that this reader knows, or a folder."""
        paths = [Path(name) for name in ensure_tuple(filename)]
        return all(is_dicom(path) or path.name.lower().endswith(SUFFIXES) for path in paths)

    def read(self, data: Sequence[PathLike] | PathLike, **_: Any) -> Any:
        """Return a SimpleITK image, or a list of them for several files."""
        images = [_itk_image(self.read_volume(Path(name))) for name in ensure_tuple(data)]
        return images if len(images) > 1 else images[0]

    def read_volume(self, path: Path) -> Volume:
        """Return what is read, without a copy."""
        if is_dicom(path):
            return _said(dicom.read(path, self.series, self.modality, self.phase))
        return _read(path)

    def get_data(self, img: Any) -> tuple[NDArray[Any], dict[str, Any]]:
        """Return the array (X, Y, Z), channels last if there are several, and where it lies."""
        volumes = [_volume(image) for image in ([img] if isinstance(img, sitk.Image) else img)]
        if len(volumes) == 1:
            return volumes[0].array, _meta(volumes[0])
        return np.stack([v.array for v in volumes]), {**_meta(volumes[0]), "original_channel_dim": 0}


class NiftiReader(NibabelReader):
    """Read NIfTI where its sform puts it, else its qform, as the standard says.

    MONAI's reader believes one that agrees with ``pixdim`` to the fifth digit more: a rounded spacing is
    enough to lose where a scan lies.
    """

    def read(self, data: Sequence[PathLike] | PathLike, **_: Any) -> Any:
        """Return a nibabel image in mm, or a list of them for several files."""
        volumes = [self.read_volume(Path(name)) for name in ensure_tuple(data)]
        images = [nib.Nifti1Image(v.array, v.affine, dtype=v.array.dtype) for v in volumes]
        return images if len(images) > 1 else images[0]

    def read_volume(self, path: Path) -> Volume:
        """Return what is read, without a copy."""
        return _read(path)


def _read(path: Path) -> Volume:
    """Read a single file."""
    return _said(_format(path).read(path))


def _said(volume: Volume) -> Volume:
    """Log what is odd about a volume."""
    for text in volume.warnings:
        logger.warning(text)
    return volume


def _format(path: Path) -> ModuleType:
    """Return the room of a format: it has ``read`` and ``read_geometry``."""
    if is_dicom(path):
        return dicom
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    if picture.is_picture(path):
        return picture
    suffix = next((suffix for suffix in FORMATS if path.name.lower().endswith(suffix)), None)
    if suffix is None:
        raise ValueError(
            f"{path} cannot be read: it must be {', '.join((*VOLUME_SUFFIXES, *PICTURE_SUFFIXES))}, or "
            "a folder of DICOM."
        )
    return FORMATS[suffix]


def _channel_first(volume: Volume) -> NDArray[np.float32]:
    """Return float32 voxels (C, X, Y, Z), contiguous."""
    array = np.moveaxis(volume.array, -1, 0) if volume.channels else volume.array[None]
    found = np.empty(array.shape, np.float32)
    for at in range(0, array.shape[-1], PLANES_AT_ONCE):
        found[..., at : at + PLANES_AT_ONCE] = array[..., at : at + PLANES_AT_ONCE]
    return found


def _meta(volume: Volume) -> dict[str, Any]:
    axes = len(volume.affine) - 1
    meta = {
        "affine": volume.affine.copy(),
        "original_affine": volume.affine.copy(),
        "space": "RAS",
        "spacing": np.linalg.norm(volume.affine[:axes, :axes], axis=0),
        "spatial_shape": np.array(volume.array.shape[:axes]),
        "original_channel_dim": -1 if volume.channels else float("nan"),
    }
    if volume.sections:
        meta["sections"] = json.dumps(volume.sections)
    return {**meta, "warnings": ["; ".join(volume.warnings)]} if volume.warnings else meta


def _itk_image(volume: Volume) -> sitk.Image:
    """Return a volume as an image of SimpleITK, in LPS+."""
    axes = len(volume.affine) - 1
    order = [*range(axes)[::-1], *([axes] if volume.channels else [])]
    image = sitk.GetImageFromArray(volume.array.transpose(order), isVector=volume.channels)
    affine = orientation_ras_lps(volume.affine)
    spacing = np.linalg.norm(affine[:axes, :axes], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:axes, axes].tolist())
    image.SetDirection((affine[:axes, :axes] / spacing).flatten().tolist())
    return image


def _volume(image: sitk.Image) -> Volume:
    """Return an image of SimpleITK as a volume, in RAS+."""
    axes, channels = image.GetDimension(), image.GetNumberOfComponentsPerPixel() > 1
    array = sitk.GetArrayFromImage(image)  # (Z, Y, X), channels last
    matrix = np.array(image.GetDirection()).reshape(axes, axes) * image.GetSpacing()
    order = [*range(axes)[::-1], *([axes] if channels else [])]
    return Volume(array.transpose(order), lps_to_ras(matrix, np.array(image.GetOrigin())), channels)
