# SPDX-License-Identifier: Apache-2.0
"""MetaImage, ``.mhd`` with its file of voxels or ``.mha``: the header is proven, then the voxels are read.

MetaIO, which ITK reads it by, ends the process on some damaged headers, and fills in what they do not say. So
the voxels are read here, but for those stored as text or in one file per slice.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_unetpp.readers.checks import Geometry, Volume, check_claim, check_fits, lps_to_ras, voxels_of
from monai_unetpp.readers.itk import read_by_itk
from monai_unetpp.readers.text import Fields, begin_of

__all__ = ["read", "read_geometry"]

DTYPES = {
    **{"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4"},
    **{"MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8"},
    **{"MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}
SPACINGS = ("ElementSpacing", "ElementSize")
ORIGINS = ("Offset", "Position", "Origin")
MATRICES = ("TransformMatrix", "Rotation", "Orientation")
SWITCHES = {"true": True, "false": False}
MM_PER_DISTANCE_UNIT = {"?": 1.0, "mm": 1.0, "um": 1e-3, "cm": 10.0}


@dataclass(frozen=True)
class _MetaImageHeader:
    """What the header of a file says.

    Args:
        size: Voxels along each axis.
        channels: Values per voxel, which lie beside each other.
        dtype: Type of a value, with its byte order.
        compressed: Whether the voxels are deflated.
        text: Whether they are written as text.
        data: Name of their file, empty if they follow the header, which ends at ``end``.
        skip: Bytes before the voxels; -1 if they are the last of the file.
        affine: Voxel index to mm (RAS+).
    """

    size: tuple[int, ...]
    channels: int
    dtype: np.dtype[Any]
    compressed: bool
    text: bool
    data: str
    end: int
    skip: int
    affine: NDArray[np.float64]
    warnings: tuple[str, ...]

    @property
    def listed(self) -> bool:
        """Whether each slice has a file."""
        return _is_listed(self.data)


def read_geometry(path: Path) -> Geometry:
    """Return size and spacing; the voxels need not be there.

    Raises:
        ValueError: if the header is damaged, or does not say how large a voxel is.
    """
    header = _parse(path)
    return Geometry(
        header.size[:3], tuple(np.linalg.norm(header.affine[:3, :3], axis=0)[: len(header.size)].tolist())
    )


def read(path: Path) -> Volume:
    """Read a volume.

    Raises:
        FileNotFoundError: if there is no file of the name that the header has for its voxels.
        ValueError: if the file is damaged, truncated, or larger than memory.
    """
    header = _parse(path, voxels=True)
    check_fits(path, voxels_of((*header.size, header.channels)))
    array = read_by_itk(path) if header.listed or header.text else _voxels(path, header)
    shape = [*header.size[:3], *(n for n in (*header.size[3:], header.channels) if n > 1)]
    if len(shape) > max(len(header.size[:3]), 3) + 1:
        raise ValueError(f"{path} must have three axes, and one of channels at most, got shape {shape}.")
    return Volume(array.reshape(shape), header.affine, len(shape) > len(header.size[:3]), header.warnings)


def _parse(path: Path, voxels: bool = False) -> _MetaImageHeader:
    """Prove a header; ``voxels`` are looked for on request."""
    begin = begin_of(path)
    head, mark, rest = begin.partition(b"ElementDataFile")
    name, _, more = rest.partition(b"\n")
    if b"\0" in head:
        raise ValueError(f"{path} is damaged: its header is no text.")
    fields = Fields(path, (head + mark + name).splitlines(), b"=")
    if fields.text("ObjectType", default="Image") != "Image":
        raise ValueError(f"{path} must have the ObjectType Image, got {fields.text('ObjectType')!r}.")
    data = fields.text("ElementDataFile")
    if not data:
        raise ValueError(f"{path} must name its voxels by ElementDataFile.")
    local = data.upper() == "LOCAL"
    if more.strip() and not local and not data.upper().startswith("LIST"):
        raise ValueError(f"{path} is damaged: after ElementDataFile, the last line, comes {more[:40]!r}.")
    if voxels and not local and not _is_listed(data) and not (path.parent / data).is_file():
        raise FileNotFoundError(f"{path} names its voxels {data}, which is not beside it.")
    size = fields.sizes("NDims", "DimSize")
    channels = fields.whole("ElementNumberOfChannels", default="1")
    if channels < 1:
        raise ValueError(f"{path} must have 1 or more as ElementNumberOfChannels, got {channels}.")
    big = _switch(fields, "BinaryDataByteOrderMSB") or _switch(fields, "ElementByteOrderMSB")
    kind = fields.choice("ElementType", DTYPES)
    affine, warnings = _place(path, fields, len(size))
    header = _MetaImageHeader(
        size=size,
        channels=channels,
        dtype=np.dtype(f"{'>' if big else '<'}{DTYPES[kind]}"),
        compressed=_switch(fields, "CompressedData"),
        text="BinaryData" in fields.values and not _switch(fields, "BinaryData"),
        data="" if local else data,
        end=len(begin) - len(more),
        skip=fields.whole("HeaderSize", default="0"),
        affine=affine,
        warnings=warnings,
    )
    if header.listed or header.text:
        fields.check_short()
    return header


def _is_listed(data: str) -> bool:
    return data.upper().startswith("LIST") or bool(re.fullmatch(r"[^% ]+%\d*d.*", data))


def _switch(fields: Fields, key: str) -> bool:
    text = fields.text(key, default="False")
    if text.lower() not in SWITCHES:
        raise ValueError(f"{fields.path} must have {key} True or False, got {text!r}.")
    return SWITCHES[text.lower()]


def _place(path: Path, fields: Fields, axes: int) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Return where a volume lies, and what its header does not say of that."""
    spacing = fields.numbers(SPACINGS, axes)
    if spacing is None:
        raise ValueError(f"{path} must say {SPACINGS[0]}: how far its voxels are apart.")
    origin, matrix = fields.numbers(ORIGINS, axes), fields.numbers(MATRICES, axes**2)
    warnings = tuple(
        f"{path} does not say {keys[0]}: the axes and origin of the scanner are taken."
        for keys, found in ((ORIGINS, origin), (MATRICES, matrix))
        if found is None
    )
    unit = fields.choice("DistanceUnits", MM_PER_DISTANCE_UNIT, default="?")
    scale = MM_PER_DISTANCE_UNIT[unit]
    if scale != 1:
        warnings = (*warnings, f"{path} is in {unit}, and is taken as {scale:g} mm each.")
    spacing, origin = spacing * scale, np.zeros(axes) if origin is None else origin * scale
    directions = np.eye(axes) if matrix is None else matrix.reshape(axes, axes).T  # stated axis by axis
    space = min(axes, 3)
    return lps_to_ras((directions * spacing)[:space, :space], origin[:space]), warnings


def _voxels(path: Path, header: _MetaImageHeader) -> NDArray[Any]:
    """Read voxels, (X, Y, Z), channels last."""
    file = path.parent / header.data if header.data else path
    shape = (*header.size, header.channels)
    claimed, held = voxels_of(shape) * header.dtype.itemsize, file.stat().st_size
    start = header.end if not header.data else 0
    start = start + header.skip if header.skip >= 0 else held - claimed
    check_claim(path, claimed, max(held - max(start, 0), 0), header.compressed)
    if header.compressed:
        content = _inflated(path, file, max(start, 0), claimed)
        values = np.frombuffer(content, header.dtype, claimed // header.dtype.itemsize)
    else:
        values = np.fromfile(file, header.dtype, claimed // header.dtype.itemsize, offset=start)
    axes = len(header.size)  # values of one voxel lie beside each other: the channel is the fastest axis
    return values.reshape((*header.size[::-1], header.channels)).transpose([*range(axes)[::-1], axes])


def _inflated(path: Path, file: Path, start: int, claimed: int) -> bytes:
    """Unpack voxels, which must be as many as claimed; the check sum is looked at."""
    inflate = zlib.decompressobj(wbits=47)  # with a header of zlib or of gzip
    try:
        content = inflate.decompress(file.read_bytes()[start:], claimed + 1)
    except zlib.error as error:
        raise ValueError(f"{path} is truncated or damaged: {error}.") from error
    if len(content) != claimed or not inflate.eof:
        raise ValueError(
            f"{path} is truncated or damaged: its header claims {claimed:,} bytes of voxels, "
            f"it holds {'other' if len(content) >= claimed else f'{len(content):,}'}."
        )
    return content
