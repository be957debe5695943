# SPDX-License-Identifier: Apache-2.0
"""Compressed pixels: the stored numbers of one frame, whatever file it is in.

A frame is given to GDCM, which comes with SimpleITK, as a file of its own that states nothing but the form of
its pixels: so frames of an enhanced file are decoded like others, and no slope is applied on the way. What
GDCM does not know, high-throughput JPEG 2000, is decoded by pydicom with pylibjpeg, an extra.
"""

from __future__ import annotations

import mmap
import struct
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813  its own documentation's name
from numpy.typing import NDArray

from monai_unetpp.extras import require
from monai_unetpp.readers.dicom.elements import fragments
from monai_unetpp.readers.dicom.slices import Slice
from monai_unetpp.readers.itk import last_line

__all__ = ["check_codec", "decode"]

PREFIX = "1.2.840.10008.1.2."
GDCM = {
    **{"5": "RLE", "4.50": "JPEG baseline", "4.51": "JPEG extended", "4.57": "JPEG lossless"},
    **{"4.70": "JPEG lossless", "4.80": "JPEG-LS", "4.81": "JPEG-LS near-lossless"},
    **{"4.90": "JPEG 2000 lossless", "4.91": "JPEG 2000"},
}
PYDICOM = dict.fromkeys(("4.201", "4.202", "4.203"), "high-throughput JPEG 2000")
PACKAGES = ("pydicom", "pylibjpeg", "openjpeg")  # the last is the module of pylibjpeg-openjpeg
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # Secondary Capture, whose values are what is stored


def check_codec(section: Slice) -> None:
    """Raise unless the pixels of a section can be decompressed.

    Raises:
        ModuleNotFoundError: if a package is missing; it names the extra that installs it.
        ValueError: if nothing here decompresses them.
    """
    code = section.syntax.removeprefix(PREFIX)
    if code in PYDICOM:
        try:
            require("codecs", *PACKAGES)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{section.path} is {PYDICOM[code]}, which pylibjpeg-openjpeg decompresses: {error}"
            ) from error
    elif code not in GDCM:
        known = sorted({*GDCM.values(), *PYDICOM.values()})
        raise ValueError(
            f"{section.path} has compressed pixels of the transfer syntax {section.syntax}, which is none of "
            f"{', '.join(known)}: decompress it, for instance by gdcmconv --raw."
        )


def decode(section: Slice) -> NDArray[Any]:
    """Return the stored numbers of a section, (rows * columns,).

    Raises:
        ValueError: if its pixels are damaged; it names the file.
    """
    stat = section.path.stat()
    table, parts = _parts(str(section.path), section.pixels.start, stat.st_size, stat.st_mtime_ns)
    data = b""
    with section.path.open("rb") as file:
        for begin, size in _of_frame(section, table, parts):
            file.seek(begin)
            data += file.read(size)
    by_gdcm = section.syntax.removeprefix(PREFIX) in GDCM
    plane = _by_gdcm(section, data) if by_gdcm else _by_pydicom(section, data)
    if plane.shape[-2:] != section.size[::-1] or plane.size != section.size[0] * section.size[1]:
        raise ValueError(f"{section.path} must have {section.size} pixels, got {plane.shape[::-1]}.")
    # the bits of the number, as they would be in a file that is not compressed
    return plane.ravel().astype(np.int64).astype(f"u{section.format.allocated // 8}")


@lru_cache(maxsize=4)
def _parts(name: str, start: int, *_: int) -> tuple[bytes, list[tuple[int, int]]]:
    """Return the table of offsets and the fragments of a file, once for all its frames."""
    with Path(name).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        (at, length), *parts = fragments(content, start)
        return bytes(content[at : at + length]), parts


def _of_frame(section: Slice, table: bytes, parts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the fragments of one frame; the table's offsets count from the head of the first fragment."""
    if section.frames == 1:
        return parts
    if len(parts) == section.frames:
        return [parts[section.frame]]
    if len(table) != 4 * section.frames or not parts:
        raise ValueError(
            f"{section.path} has {len(parts)} compressed fragments for {section.frames} frames and no table "
            "that says which are whose: decompress it, for instance by gdcmconv --raw."
        )
    offsets = [*struct.unpack(f"<{section.frames}I", table), 2**32]
    first, end = offsets[section.frame], offsets[section.frame + 1]
    return [(at, size) for at, size in parts if first <= at - parts[0][0] < end]


def _by_gdcm(section: Slice, data: bytes) -> NDArray[Any]:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    with TemporaryDirectory() as folder:
        path = Path(folder, "frame.dcm")
        path.write_bytes(_as_file(section, data))
        reader.SetFileName(str(path))
        try:
            return np.asarray(sitk.GetArrayFromImage(reader.Execute()))
        except RuntimeError as error:
            reason = last_line(error).replace(str(path), section.path.name)
            raise ValueError(f"{section.name} cannot be decompressed, it may be damaged: {reason}") from error


def _as_file(section: Slice, data: bytes) -> bytes:
    """Return a DICOM file of one compressed frame."""
    form, (columns, rows) = section.format, section.size
    meta = _element(0x00020002, b"UI", CAPTURE) + _element(0x00020003, b"UI", "2.25.1")
    meta += _element(0x00020010, b"UI", section.syntax)
    numbers = {0x00280010: rows, 0x00280011: columns, 0x00280100: form.allocated, 0x00280101: form.stored}
    body = _element(0x00080016, b"UI", CAPTURE) + _element(0x00080018, b"UI", "2.25.1")
    body += _element(0x00080060, b"CS", "OT") + _number(0x00280002, 1)
    body += _element(0x00280004, b"CS", "MONOCHROME2")
    body += b"".join(_number(tag, value) for tag, value in numbers.items())
    body += _number(0x00280102, form.stored - 1) + _number(0x00280103, int(form.signed))
    data += b"\0" * (len(data) % 2)
    body += struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)
    body += _item(b"") + _item(data) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return bytes(128) + b"DICM" + _element(0x00020000, b"UL", struct.pack("<I", len(meta))) + meta + body


def _element(tag: int, kind: bytes, value: str | bytes) -> bytes:
    content = value.encode("ascii") if isinstance(value, str) else value
    content += (b"\0" if kind == b"UI" else b" ") * (len(content) % 2)
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, kind, len(content)) + content


def _number(tag: int, value: int) -> bytes:
    return _element(tag, b"US", struct.pack("<H", value))


def _item(content: bytes) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content


def _by_pydicom(section: Slice, data: bytes) -> NDArray[Any]:
    from pydicom.pixels import get_decoder

    form, (columns, rows) = section.format, section.size
    options: dict[str, Any] = {
        **{"rows": rows, "columns": columns, "number_of_frames": 1, "samples_per_pixel": 1},
        **{"bits_allocated": form.allocated, "bits_stored": form.stored},
        "pixel_representation": int(form.signed),
        **{"photometric_interpretation": "MONOCHROME2", "pixel_keyword": "PixelData"},
    }
    try:
        found, _ = get_decoder(section.syntax).as_array(_item(b"") + _item(data), raw=True, **options)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{section.name} cannot be decompressed, it may be damaged: {last_line(error)}"
        ) from error
    return np.asarray(found)
