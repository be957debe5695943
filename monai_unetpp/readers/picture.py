# SPDX-License-Identifier: Apache-2.0
"""Pictures (PNG, TIFF, JPEG, BMP) as volumes of one slice: columns along X, rows along Y, pixels of 1 mm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from monai_unetpp.files import PICTURE_SUFFIXES
from monai_unetpp.readers.checks import Geometry, Volume, check_fits, voxels_of
from monai_unetpp.readers.itk import last_line

__all__ = [
    "LOSSY",
    "PICTURE_SUFFIXES",
    "is_picture",
    "label_of",
    "read",
    "read_geometry",
    "read_numbers",
    "read_raw",
]

COLOURED = 2**48  # added to the number of a colour, which is none of a grey value
HALF_OF_8_BIT = 127
LOSSY = (".jpg", ".jpeg")
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])  # as radiologists look at a slice: the first row is the front


def is_picture(path: Any) -> bool:
    """Whether a file has the suffix of a picture, in capitals or not."""
    return Path(path).suffix.lower() in PICTURE_SUFFIXES


def read_geometry(path: Path) -> Geometry:
    """Return columns, rows and 1, and a spacing of 1 mm.

    Raises:
        ValueError: if the file is damaged, or holds several pictures.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError(f"{path} cannot be read: {last_line(error)}") from error
    size = [n for n in reader.GetSize() if n > 1]
    if reader.GetDimension() > 2 and len(size) > 2:
        raise ValueError(f"{path} must hold one picture, got {reader.GetSize()[2]} of them.")
    return Geometry((*reader.GetSize()[:2], 1), (1.0, 1.0, 1.0))


def read(path: Path) -> Volume:
    """Read a picture; the channels are its colours, without an opaque alpha channel.

    Raises:
        ValueError: if the file is damaged, holds several pictures, or parts of it are transparent.
    """
    check_fits(path, voxels_of(read_geometry(path).size))
    picture = read_raw(path)
    if picture.ndim == 2:
        return Volume(picture.T[..., None], AFFINE.copy(), False, ())
    if picture.shape[-1] in (2, 4):
        alpha = picture[..., -1]
        if (alpha != alpha.flat[0]).any():
            raise ValueError(
                f"{path} has an alpha channel of {alpha.min():g} to {alpha.max():g}: transparent parts "
                "have no value; save it without transparency."
            )
        picture = picture[..., :-1]
    if picture.shape[-1] == 1:
        return Volume(picture[..., 0].T[..., None], AFFINE.copy(), False, ())
    return Volume(picture.transpose(1, 0, 2)[:, :, None], AFFINE.copy(), True, ())


def read_raw(path: Path) -> NDArray[Any]:
    """Return a picture as it is stored, (rows, columns) or with colours; a palette becomes its colours.

    Raises:
        ValueError: if it cannot be read.
    """
    try:
        picture = np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))
    except RuntimeError as error:
        raise ValueError(f"{path} cannot be read: {last_line(error)}") from error
    return picture


def read_numbers(path: Path) -> NDArray[np.int64]:
    """Return one number per pixel of a mask, (columns, rows, 1); see :func:`label_of`.

    JPEG blurs edges: what is brighter than half of 8 bits is 255, the rest is 0.
    """
    lossy = path.suffix.lower() in LOSSY
    numbers = label_of(read_raw(path), lossy)
    return (255 * (numbers > HALF_OF_8_BIT) if lossy else numbers).T[..., None]


def label_of(picture: NDArray[Any], lossy: bool = False) -> NDArray[np.int64]:
    """Return one number per pixel of a mask: 0 is black, or transparent where nothing else differs.

    Args:
        picture: Grey values (rows, columns), or colours (rows, columns, channels).
        lossy: Whether colours are blurred, so that the brightest channel tells more than the colour.
    """
    if picture.ndim == 2:
        return picture.astype(np.int64)
    colours, alpha = picture[..., :3], picture[..., 3] if picture.shape[-1] == 4 else None
    if picture.shape[-1] == 2:
        colours, alpha = picture[..., :1], picture[..., 1]
    if alpha is not None and (colours == colours[:1, :1]).all() and (alpha != alpha[0, 0]).any():
        return alpha.astype(np.int64)
    grey = colours.max(axis=-1).astype(np.int64)
    if lossy:
        return grey
    factors = np.array([2**32, 2**16, 1])[-colours.shape[-1] :]
    coded = COLOURED + (colours.astype(np.int64) * factors).sum(axis=-1)
    return np.where((colours == colours[..., :1]).all(axis=-1), grey, coded)
