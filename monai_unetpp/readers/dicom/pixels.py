# SPDX-License-Identifier: Apache-2.0
"""The values of one section: stored numbers, each file's or frame's own slope and intercept, float32."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_unetpp.readers.dicom.codecs import check_codec, decode
from monai_unetpp.readers.dicom.elements import BIG_ENDIAN, DEFLATED, IMPLICIT, parse
from monai_unetpp.readers.dicom.slices import Slice

__all__ = ["check_readable", "read_plane"]

EXPLICIT = "1.2.840.10008.1.2.1"
NATIVE = (IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED)


def check_readable(section: Slice) -> None:
    """Raise for pixels whose values could not be told for certain: see :func:`check_codec`."""
    if section.pixels.length is not None and section.syntax not in NATIVE:
        raise ValueError(
            f"{section.path} has the transfer syntax {section.syntax}, but its pixels are not compressed."
        )
    if section.pixels.length is None:
        check_codec(section)


def read_plane(section: Slice) -> NDArray[np.float32]:
    """Return the values of a section, (rows, columns).

    Raises:
        ValueError: if the pixels are damaged; it names the file.
    """
    columns, rows = section.size
    if section.pixels.length is None:
        return _values(decode(section), section).reshape(rows, columns)
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
