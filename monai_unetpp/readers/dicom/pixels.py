# SPDX-License-Identifier: Apache-2.0
"""The values of one section: stored numbers, each file's or frame's own slope and intercept, float32."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813  its own documentation's name
from numpy.typing import NDArray

from monai_unetpp.readers.dicom.elements import BIG_ENDIAN, DEFLATED, IMPLICIT, parse
from monai_unetpp.readers.dicom.slices import Slice
from monai_unetpp.readers.itk import last_line

__all__ = ["check_readable", "read_plane"]

EXPLICIT = "1.2.840.10008.1.2.1"
NATIVE = (IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED)


def check_readable(section: Slice) -> None:
    """Raise a ValueError for pixels whose values could not be told for certain."""
    if section.pixels.length is not None and section.syntax not in NATIVE:
        raise ValueError(
            f"{section.path} has the transfer syntax {section.syntax}, but its pixels are not compressed."
        )
    if section.pixels.length is None and section.frames > 1:
        raise ValueError(
            f"{section.path} is a compressed file of {section.frames} frames, which is not read: decompress "
            "it, for instance by gdcmconv --raw."
        )
    rescaled = (section.format.slope, section.format.intercept) != (1.0, 0.0)
    if section.pixels.length is None and rescaled and section.modality != "CT":
        raise ValueError(
            f"{section.path} is compressed and has slope and intercept, which GDCM applies to CT alone: "
            "decompress it, for instance by gdcmconv --raw."
        )


def read_plane(section: Slice) -> NDArray[np.float32]:
    """Return the values of a section, (rows, columns).

    Raises:
        ValueError: if the pixels are damaged; it names the file.
    """
    if section.pixels.length is None:
        return _decompressed(section)
    columns, rows = section.size
    order = ">" if section.syntax == BIG_ENDIAN else "<"
    stored = np.dtype(f"{order}u{section.format.allocated // 8}")
    start = section.pixels.start + section.frame * rows * columns * stored.itemsize
    if section.syntax == DEFLATED:
        with section.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            numbers = np.frombuffer(parse(content).content, stored, rows * columns, start)
    else:
        numbers = np.fromfile(section.path, stored, rows * columns, offset=start)
    if len(numbers) != rows * columns:
        raise ValueError(f"{section.path} is truncated: its pixels end early.")
    return _values(numbers, section).reshape(rows, columns)


def _values(numbers: NDArray[Any], section: Slice) -> NDArray[np.float32]:
    """Turn stored numbers into values; other bits than those stored, such as overlays, are cleared."""
    form = section.format
    native = numbers.astype(numbers.dtype.newbyteorder("="), copy=False)
    unused = form.allocated - form.stored
    if unused:
        native = native << native.dtype.type(unused)
    signed = native.view(f"i{native.itemsize}") if form.signed else native
    if unused:
        signed = signed >> signed.dtype.type(unused)  # keeps the sign
    if form.slope == 1 and form.intercept == round(form.intercept) and form.allocated < 32:
        values = signed.astype(np.float32)
        values += np.float32(form.intercept)  # whole numbers below 2^24: exact
        return values
    return (signed * np.float64(form.slope) + form.intercept).astype(np.float32)


def _decompressed(section: Slice) -> NDArray[np.float32]:
    """What GDCM makes of compressed pixels, slope and intercept applied."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(section.path))
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise ValueError(
            f"{section.path} cannot be decompressed, it may be damaged: {last_line(error)}"
        ) from error
    plane = sitk.GetArrayFromImage(image).astype(np.float32)
    if plane.shape[-2:] != section.size[::-1] or plane.size != section.size[0] * section.size[1]:
        raise ValueError(f"{section.path} must have {section.size} pixels, got {plane.shape[::-1]}.")
    return plane.reshape(section.size[::-1])
