# SPDX-License-Identifier: Apache-2.0
"""CT as it comes: MetaImage (.mhd with its .raw, .mha), NRRD, and folders with a DICOM series."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813  its own documentation's name
from monai.data import ImageReader, NibabelReader, NumpyReader
from monai.data.utils import orientation_ras_lps
from monai.transforms import LoadImage
from monai.utils import ensure_tuple
from numpy.typing import NDArray

from monai_unetpp.readers.headers import check_dicom, check_metaimage, check_nifti, check_nrrd

__all__ = [
    "SUFFIXES",
    "NiftiReader",
    "SimpleITKReader",
    "check_header",
    "is_series",
    "read_geometry",
    "volume_loader",
]

SUFFIXES = (".mhd", ".mha", ".nrrd", ".nhdr")
MOST = 1e6  # of a slope or an intercept to HU
SLACK = 0.02  # of the distance between slices by which it may vary, and 1 mm at most
MODALITY, POSITION, ORIENTATION = "0008|0060", "0020|0032", "0020|0037"
RESCALE = ("0028|1053", "0028|1052")  # slope and intercept
SPACING, FRAMES = "0028|0030", "0028|0008"
FORMAT = ("0028|0100", "0028|0101", "0028|0102", "0028|0103")  # bits, and whether they are signed


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
        check_header(path)
        try:
            return sitk.ReadImage(str(path))
        except RuntimeError as error:
            raise ValueError(f"{path} cannot be read, it may be damaged: {_reason(error)}") from error

    def _read_series(self, folder: Path) -> sitk.Image:
        check_header(folder)
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


class NiftiReader(NibabelReader):
    """Read NIfTI where its sform puts it, else its qform, as the standard says.

    MONAI's reader believes one that agrees with ``pixdim`` to the fifth digit more: a rounded spacing is
    enough to lose where a scan lies.
    """

    def read(self, data: Sequence[str | os.PathLike[str]] | str | os.PathLike[str], **settings: Any) -> Any:
        """Return a nibabel image, or a list of them for several files."""
        self.filenames = ensure_tuple(data)
        images = [nib.load(path, **{**self.kwargs, **settings}) for path in self.filenames]
        return images if len(images) > 1 else images[0]


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
    load.register(NiftiReader())
    return load


def read_geometry(path: str | os.PathLike[str]) -> tuple[Sequence[int], Sequence[float]]:
    """Return size and spacing (mm) of a volume, without reading its voxels.

    Of a DICOM series the distance between slices is taken for their thickness: an estimate.
    """
    path, slices = Path(path), 1
    check_header(path, voxels=False)
    if not SimpleITKReader().verify_suffix(path):
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


def check_header(path: Path, voxels: bool = True) -> None:
    """Raise if a header is damaged, before a library takes it as it is; of a folder every slice is looked at.

    Args:
        path: of a volume.
        voxels: whether the file of voxels that it names is looked for.

    Raises:
        FileNotFoundError: if it names a file of voxels that is not there.
        ValueError: if it is damaged, or claims more voxels than the file can hold.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        for file in sorted(path.iterdir()):
            if file.is_file():
                check_dicom(file)
    elif suffix in (".mhd", ".mha"):
        check_metaimage(path, voxels)
    elif suffix in (".nrrd", ".nhdr"):
        check_nrrd(path, voxels)
    elif path.name.lower().endswith((".nii", ".nii.gz")):
        check_nifti(path)


def _header(name: str) -> Mapping[str, str]:
    """The tags of one slice that its place depends on."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(name)
    reader.ReadImageInformation()
    tags = {
        tag: reader.GetMetaData(tag).strip(" \0")
        for tag in (MODALITY, POSITION, ORIENTATION, SPACING, FRAMES, *RESCALE, *FORMAT)
        if reader.HasMetaDataKey(tag)
    }
    _check_pixels(name, tags, reader)
    if min(reader.GetSize()[:2]) < 2:
        raise ValueError(f"{name} must have two rows and columns or more, got {reader.GetSize()[:2]}.")
    return {
        **tags,
        "format": ", ".join(tags.get(tag, "?") for tag in FORMAT),
        "rescaled": " and ".join("with" if tag in tags else "without" for tag in RESCALE),
        "spacing": str(tuple(round(s, 4) for s in reader.GetSpacing()[:2])),
        "name": Path(name).name,
    }


def _check_pixels(name: str, tags: Mapping[str, str], reader: sitk.ImageFileReader) -> None:
    """Raise if the pixels of a slice, or their spacing, are not what GDCM takes them for."""
    allocated, stored, high, _ = (int(tags.get(tag, "-1")) for tag in FORMAT)
    if allocated not in (8, 16, 32) or not 1 <= stored <= allocated or high != stored - 1:
        raise ValueError(
            f"{name} must have pixels of 8, 16 or 32 bits, of which the lowest are used, got "
            f"{allocated}, {stored} and {high} (tags {', '.join(FORMAT[:3])})."
        )
    if SPACING in tags:
        rows, columns = _decimals(Path(name).parent, {**tags, "name": Path(name).name}, SPACING, 2)
        if not np.allclose(reader.GetSpacing()[:2], (columns, rows), rtol=1e-3):
            raise ValueError(f"{name} must have a spacing of pixels above 0, got {tags[SPACING]}.")


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
    for key, what in (
        (ORIENTATION, "direction"),
        ("spacing", "pixel spacing"),
        ("format", "pixel format"),
        ("rescaled", "kinds, with and without slope and intercept to HU"),
    ):
        kinds = {header.get(key, "") for header in headers}
        if len(kinds) > 1:
            raise ValueError(f"{folder} mixes slices of different {what}: {'; '.join(sorted(kinds))}.")
    for header in headers:
        for tag, count in {SPACING: 2, **dict.fromkeys(RESCALE, 1)}.items():
            if tag in header and np.abs(_decimals(folder, header, tag, count)).max() > MOST:
                raise ValueError(f"{folder / header['name']} is damaged: its tag {tag} is {header[tag]}.")
        if SPACING not in header and FRAMES not in header:  # several frames keep it elsewhere
            raise ValueError(f"{folder / header['name']} does not say how far its pixels are apart.")
        if ORIENTATION in header:
            _check_direction(folder, header)
    if len(headers) < 2:
        return
    without = [h["name"] for h in headers if POSITION not in h or ORIENTATION not in h]
    if without:
        raise ValueError(f"{folder} has slices without a position or a direction, first {without[0]}.")
    row, column = _decimals(folder, headers[0], ORIENTATION, 6).reshape(2, 3)
    normal = np.cross(row, column)
    places = np.array([_decimals(folder, header, POSITION, 3) for header in headers])
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


def _check_direction(folder: Path, header: Mapping[str, str]) -> None:
    """Raise if rows and columns of a slice are no two directions at a right angle."""
    row, column = _decimals(folder, header, ORIENTATION, 6).reshape(2, 3)
    if not np.allclose([row @ row, column @ column, row @ column], [1, 1, 0], atol=0.01):
        raise ValueError(
            f"{folder / header['name']} must have directions at a right angle, got {row}, {column}."
        )


def _decimals(folder: Path, header: Mapping[str, str], tag: str, count: int) -> NDArray[Any]:
    """The numbers of a tag; raises a ValueError that names the slice if they are none."""
    try:
        values = np.array([float(text) for text in header[tag].split("\\")])
    except ValueError:
        values = np.array([])
    if len(values) != count or not np.isfinite(values).all():
        raise ValueError(
            f"{folder / header['name']} must have {count} numbers in its tag {tag}, it may be damaged."
        )
    return values


def _reason(error: Exception) -> str:
    """The last line of what ITK says, which holds the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("Reason:")]  # of something before, as a rule
    return lines[-1] if lines else repr(error)
