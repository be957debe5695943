# SPDX-License-Identifier: Apache-2.0
"""CT as it comes: MetaImage (.mhd with its .raw, .mha), NRRD, and folders with a DICOM series."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813  its own documentation's name
from monai.data import ImageReader, NumpyReader
from monai.data.utils import orientation_ras_lps
from monai.transforms import LoadImage
from monai.utils import ensure_tuple
from numpy.typing import NDArray

__all__ = ["SUFFIXES", "SimpleITKReader", "is_series", "read_geometry", "volume_loader"]

SUFFIXES = (".mhd", ".mha", ".nrrd", ".nhdr")
SLACK = 0.02  # of the distance between slices by which it may vary, and 1 mm at most
MODALITY, POSITION, ORIENTATION = "0008|0060", "0020|0032", "0020|0037"


class SimpleITKReader(ImageReader):
    """Read one volume by SimpleITK, with spacing, origin and direction, into MONAI's RAS+.

    ``LoadImage`` takes it for ``.mhd``, ``.mha``, ``.nrrd``, ``.nhdr`` and for folders, once it is
    registered. What a DICOM series lacks or has too much is an error, not a distorted volume.

    Args:
        series: the UID of the DICOM series to read from a folder that holds several.
        modality: that the DICOM series must have; ``None`` for any.

    Raises:
        FileNotFoundError: if a folder holds no DICOM series, or a header names a file that is not there.
        ValueError: if a file is damaged; if a folder holds several series and ``series`` names none of them;
            if the series is of another modality, lacks a slice, or its slices differ in spacing or direction.

    Example:
        >>> from monai.transforms import LoadImage
        >>> load = LoadImage(image_only=True, ensure_channel_first=True)
        >>> load.register(SimpleITKReader())
    """

    def __init__(self, series: str | None = None, modality: str | None = "CT") -> None:
        self.series = series
        self.modality = modality

    def verify_suffix(self, filename: Sequence[str | os.PathLike[str]] | str | os.PathLike[str]) -> bool:
        """Whether every file is of a kind that this reader knows, or a folder."""
        paths = [Path(name) for name in ensure_tuple(filename)]
        return all(path.is_dir() or path.suffix.lower() in SUFFIXES for path in paths)

    def read(self, data: Sequence[str | os.PathLike[str]] | str | os.PathLike[str], **_: Any) -> Any:
        """Return a SimpleITK image, or a list of them for several files."""
        images = [self._read(Path(name)) for name in ensure_tuple(data)]
        return images if len(images) > 1 else images[0]

    def get_data(self, img: Any) -> tuple[NDArray[Any], dict[str, Any]]:
        """Return the array (X, Y, Z), channels last if there are several, and where it lies."""
        images = [img] if isinstance(img, sitk.Image) else list(img)  # an image is a sequence, too
        arrays = [_array(image) for image in images]
        meta = _meta(images[0])
        if len(arrays) == 1:
            return arrays[0], meta
        meta["original_channel_dim"] = 0
        return np.stack(arrays), meta

    def _read(self, path: Path) -> sitk.Image:
        if path.is_dir():
            return self._read_series(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist.")
        _check_data_file(path)
        try:
            return sitk.ReadImage(str(path))
        except RuntimeError as error:
            raise ValueError(f"{path} cannot be read, it may be damaged: {_reason(error)}") from error

    def _read_series(self, folder: Path) -> sitk.Image:
        found = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
        if not found:
            raise FileNotFoundError(f"{folder} holds no DICOM series.")
        if self.series is None and len(found) > 1:
            sizes = [len(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid)) for uid in found]
            listed = ", ".join(f"{uid} ({n} slices)" for uid, n in zip(found, sizes, strict=True))
            raise ValueError(f"{folder} holds {len(found)} DICOM series; name one as series: {listed}.")
        if self.series is not None and self.series not in found:
            raise ValueError(f"{folder} has no series {self.series}, only {', '.join(found)}.")
        _check_no_file_is_left_out(folder, found)
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), self.series or found[0])
        _check_slices(folder, [_header(name) for name in names], self.modality)
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(names)
        try:
            return reader.Execute()
        except RuntimeError as error:
            raise ValueError(f"{folder} cannot be read, a slice may be damaged: {_reason(error)}") from error


def is_series(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds DICOM: by the first of its files that is called .dcm or begins as DICOM does."""
    files = sorted(path for path in Path(folder).iterdir() if path.is_file() and path.name[0] != ".")
    return any(path.suffix.lower() == ".dcm" or _begins_as_dicom(path) for path in files)


def _begins_as_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def volume_loader() -> LoadImage:
    """Return MONAI's ``LoadImage``, channel first, for NIfTI and for what :class:`SimpleITKReader` knows."""
    load = LoadImage(image_only=True, ensure_channel_first=True)
    # MONAI 1.5 unpickles what is in a .npy file, which may be code
    load.readers = [reader for reader in load.readers if not isinstance(reader, NumpyReader)]
    load.register(SimpleITKReader())
    return load


def read_geometry(path: str | os.PathLike[str]) -> tuple[Sequence[int], Sequence[float]]:
    """Return size and spacing (mm) of a volume, without reading its voxels.

    Of a DICOM series the distance between slices is taken for their thickness: an estimate.
    """
    path, slices = Path(path), 1
    if not SimpleITKReader().verify_suffix(path):
        import nibabel as nib

        header: Any = nib.load(path).header
        return header.get_data_shape()[:3], header.get_zooms()[:3]
    if path.is_dir():
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path))
        path, slices = Path(names[0]), len(names)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    size, spacing = list(reader.GetSize()), list(reader.GetSpacing())
    size[2] *= slices
    return size, spacing


def _array(image: sitk.Image) -> NDArray[Any]:
    array = sitk.GetArrayFromImage(image)  # (Z, Y, X), channels last
    axes = list(range(image.GetDimension()))[::-1]
    return array.transpose(axes if image.GetNumberOfComponentsPerPixel() == 1 else [*axes, array.ndim - 1])


def _meta(image: sitk.Image) -> dict[str, Any]:
    axes = image.GetDimension()
    affine = np.eye(axes + 1)
    direction = np.array(image.GetDirection()).reshape(axes, axes)
    affine[:axes, :axes] = direction @ np.diag(image.GetSpacing())
    affine[:axes, axes] = image.GetOrigin()
    affine = orientation_ras_lps(affine)
    several = image.GetNumberOfComponentsPerPixel() > 1
    return {
        "affine": affine,
        "original_affine": affine.copy(),
        "space": "RAS",
        "spacing": np.array(image.GetSpacing()),
        "spatial_shape": np.array(image.GetSize()),
        "original_channel_dim": -1 if several else float("nan"),
    }


def _check_data_file(path: Path) -> None:
    """Raise if a text header names a file of voxels that is not there; ITK would only say that it failed."""
    if path.suffix.lower() not in (".mhd", ".nhdr"):
        return
    keys = ("elementdatafile", "data file", "datafile")
    for line in path.read_bytes()[:100_000].decode("latin-1").splitlines():
        key, _, name = line.replace("=", ":", 1).partition(":")
        name = name.strip()
        if key.strip().lower() in keys and name and name.split()[0].upper() not in ("LOCAL", "LIST"):
            if "%" not in name and not (path.parent / name).is_file():
                raise FileNotFoundError(f"{path} names its voxels {name}, which is not beside it.")
            return


def _header(name: str) -> Mapping[str, str]:
    """The tags of one slice that its place depends on."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(name)
    reader.ReadImageInformation()
    tags = {
        tag: reader.GetMetaData(tag).strip()
        for tag in (MODALITY, POSITION, ORIENTATION)
        if reader.HasMetaDataKey(tag)
    }
    return {
        **tags,
        "spacing": str(tuple(round(s, 4) for s in reader.GetSpacing()[:2])),
        "name": Path(name).name,
    }


def _check_no_file_is_left_out(folder: Path, series: Sequence[str]) -> None:
    """Raise if a ``.dcm`` file is in no series: GDCM passes over what it cannot read."""
    read = {
        Path(name).name
        for uid in series
        for name in sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid)
    }
    lost = sorted(path.name for path in folder.glob("*.dcm") if path.name not in read)
    if lost:
        raise ValueError(f"{folder / lost[0]} cannot be read as a slice, it may be damaged.")


def _check_slices(folder: Path, headers: Sequence[Mapping[str, str]], modality: str | None) -> None:
    """Raise if the slices of a series are not evenly spaced sections of one volume."""
    got = headers[0].get(MODALITY, "unknown")
    if modality is not None and got != modality:
        raise ValueError(f"{folder} must be {modality}, got modality {got}.")
    for tag, what in ((ORIENTATION, "direction"), ("spacing", "pixel spacing")):
        kinds = {header.get(tag, "") for header in headers}
        if len(kinds) > 1:
            raise ValueError(f"{folder} mixes slices of different {what}: {'; '.join(sorted(kinds))}.")
    if len(headers) < 2:
        return
    without = [h["name"] for h in headers if POSITION not in h or ORIENTATION not in h]
    if without:
        raise ValueError(f"{folder} has slices without a position or a direction, first {without[0]}.")
    row, column = np.array(headers[0][ORIENTATION].split("\\"), dtype=float).reshape(2, 3)
    normal = np.cross(row, column)
    places = np.array([h[POSITION].split("\\") for h in headers], dtype=float)
    heights = places @ normal
    aside = np.linalg.norm(places - places[0] - np.outer(heights - heights[0], normal), axis=1)
    if aside.max() > 0.5:
        raise ValueError(
            f"{folder} was scanned with a tilted gantry: slices are shifted by up to {aside.max():.1f} mm."
        )
    gaps = np.abs(np.diff(heights))
    usual = float(np.median(gaps))
    wrong = np.flatnonzero(np.abs(gaps - usual) > min(SLACK * usual + 0.01, 1.0))
    if len(wrong):
        n = int(wrong[0])
        between = f"{headers[n]['name']} and {headers[n + 1]['name']}"
        raise ValueError(
            f"{folder} lacks a slice or is unevenly spaced: {gaps[n]:.2f} mm between {between}, "
            f"{usual:.2f} mm elsewhere."
        )


def _reason(error: Exception) -> str:
    """The last line of what ITK says, which holds the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("Reason:")]  # of something before, as a rule
    return lines[-1] if lines else repr(error)
