# SPDX-License-Identifier: Apache-2.0
"""Whether the header of a file can be believed, before a library makes room for what it claims.

Libraries in C take a header as it is: a damaged one can cost gigabytes, or end the process. What is checked
is that it can be read, says how large a voxel is, and claims no more voxels than the file can hold.
"""

from __future__ import annotations

import gzip
import logging
import math
import mmap
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

__all__ = ["check_affine", "check_claim", "check_dicom", "check_metaimage", "check_nifti", "check_nrrd"]

logger = logging.getLogger(__name__)

HEADER = 100_000  # bytes of text that a header may take
WORD = 255  # of a value: longer ones overflow what MetaIO and teem keep them in
DEFLATED = 1032  # times smaller at most
SPACING = (1e-4, 1e3)  # mm between voxels: less or more is damage
EXTENT = 5000.0  # mm along an axis
FAR = 1e6  # mm from the origin of the scanner

# DICOM: kinds of values with a length of four bytes, and of two
LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
SHORT = tuple(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
NAMELESS = (b"??", b"  ")  # kinds that GDCM knows what to do with
NO_LENGTH = 0xFFFFFFFF  # of a sequence that ends by a mark
ITEM = 0xFFFE  # group of the items of a sequence
FOREIGN = (b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.2")  # deflated; the other way round

BYTES_OF_METAIMAGE = {
    "MET_CHAR": 1,
    "MET_UCHAR": 1,
    "MET_SHORT": 2,
    "MET_USHORT": 2,
    "MET_INT": 4,
    "MET_UINT": 4,
    "MET_LONG": 4,
    "MET_ULONG": 4,
    "MET_LONG_LONG": 8,
    "MET_ULONG_LONG": 8,
    "MET_FLOAT": 4,
    "MET_DOUBLE": 8,
}
BYTES_OF_NRRD = {"char": 1, "8": 1, "short": 2, "16": 2, "int": 4, "32": 4, "float": 4, "double": 8}
BYTES_OF_NRRD |= {"long": 8, "longlong": 8, "64": 8}


def check_affine(path: Path | str, affine: Any, shape: Sequence[int]) -> None:
    """Raise a ValueError if a volume cannot lie where its affine, (4, 4), to mm, puts it."""
    matrix = np.asarray(affine, dtype=np.float64)
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    low, high = SPACING
    near = np.isfinite(matrix).all() and np.abs(matrix[:3, 3]).max() <= FAR
    if not near or not ((low <= spacing) & (spacing <= high)).all():
        raise ValueError(
            f"{path} must have voxels of {low:g} to {high:g} mm, less than {FAR / 1e6:g} km away, got "
            f"{' x '.join(f'{s:g}' for s in spacing)} mm at {', '.join(f'{p:g}' for p in matrix[:3, 3])}."
        )
    if abs(np.linalg.det(matrix[:3, :3] / spacing)) < 1e-3:
        raise ValueError(f"{path} must have three axes in space, but two of them are one: {matrix[:3, :3]}.")
    extent = spacing * shape
    if extent.max() > EXTENT:
        raise ValueError(f"{path} must be at most {EXTENT / 1000:g} m long, got {extent.max() / 1000:g} m.")


def check_claim(path: Path | str, claimed: int, held: int, deflated: bool = False) -> None:
    """Raise a ValueError if ``held`` bytes, deflated or not, cannot hold what a header claims."""
    if claimed > held * (DEFLATED if deflated else 1):
        raise ValueError(
            f"{path} is cut off or damaged: it claims {claimed:,} bytes of voxels, and has {held:,}."
        )


def check_nifti(path: Path) -> None:
    """Raise a ValueError if a file is no NIfTI, is damaged, or claims more voxels than it holds."""
    packed = path.suffix.lower() == ".gz"
    held = _unpacked_bytes(path) if packed else path.stat().st_size
    image: Any = nib.load(path)  # the header alone
    header = image.header
    _check_stated_as_it_is(path, type(header))
    shape = [int(n) for n in header.get_data_shape()]
    if min(shape, default=0) < 1:
        raise ValueError(f"{path} must have one voxel or more along each axis, got {shape}.")
    claimed = math.prod(shape) * header.get_data_dtype().itemsize
    check_claim(path, claimed, held)
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)[: len(header.get_zooms())]
    stated = header.get_zooms()[:3]
    if header["sform_code"] > 0 and not np.allclose(spacing, stated, rtol=0.01, atol=1e-3):
        logger.warning(
            f"{path} contradicts itself: voxels of {' x '.join(f'{s:g}' for s in spacing)} mm by its sform, "
            f"which is taken, and of {' x '.join(f'{s:g}' for s in stated)} mm by its pixdim."
        )


def _check_stated_as_it_is(path: Path, kind: Any) -> None:
    """Raise a ValueError for what nibabel would set right by a guess: what it is, codes, spacing."""
    with nib.openers.Opener(str(path)) as file:
        raw = kind.from_fileobj(file, check=False)
    magic = bytes(raw["magic"]) if "magic" in raw.keys() else b""  # noqa: SIM118  no dictionary
    if int(raw["sizeof_hdr"]) not in (348, 540) or not magic.startswith((b"n+1", b"n+2")):
        raise ValueError(f"{path} is no NIfTI file, or its header is damaged.")
    for name in ("sform_code", "qform_code"):
        if not 0 <= raw[name] <= 5:
            raise ValueError(f"{path} is damaged: its {name} must be 0 to 5, got {int(raw[name])}.")
    stated = raw["pixdim"][1 : 1 + min(int(raw["dim"][0]), 3)]
    if raw["sform_code"] == 0 and not (stated > 0).all():
        raise ValueError(f"{path} is damaged: its pixdim must be above 0, got {stated.tolist()}.")


def _unpacked_bytes(path: Path, offset: int = 0) -> int:
    """Length of a file when unpacked, whose check sum is right; nothing is kept of it."""
    total = 0
    try:
        with path.open("rb") as packed, gzip.GzipFile(fileobj=packed) as file:
            packed.seek(offset)
            while read := len(file.read(2**22)):
                total += read
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is cut off or damaged: {error}.") from error
    return total


def check_metaimage(path: Path, voxels: bool = True) -> None:
    """Raise if the header of a MetaImage is damaged, or names voxels that are not there.

    Args:
        path: of the header.
        voxels: whether they are looked for.

    Raises:
        FileNotFoundError: if there is no file of the name that it has for its voxels.
        ValueError: if it is damaged, or does not say how large a voxel is.
    """
    head, sign, rest = _begin(path).partition(b"ElementDataFile")
    name, _, more = rest.partition(b"\n")
    lines = _text(path, head + sign + name)
    fields = _fields(path, lines, "=")
    if fields.get("ObjectType", "Image") != "Image":
        raise ValueError(f"{path} must have the ObjectType Image, got {fields['ObjectType']!r}.")
    data = fields.get("ElementDataFile", "")
    if not data:
        raise ValueError(f"{path} must name its voxels by ElementDataFile.")
    local = data.upper() == "LOCAL"
    if more.strip() and not local and not data.upper().startswith("LIST"):
        raise ValueError(f"{path} is damaged: after ElementDataFile, the last line, comes {more[:40]!r}.")
    held = _voxels(path, "" if local else data) if voxels else None
    shape = _sizes(path, fields, "NDims", "DimSize")
    _numbers(path, fields, ("ElementSpacing", "ElementSize"), len(shape), needed=True)
    _numbers(path, fields, ("Offset", "Position", "Origin"), len(shape))
    _numbers(path, fields, ("TransformMatrix", "Rotation", "Orientation"), len(shape) ** 2)
    for key in ("HeaderSize", "ElementNumberOfChannels"):
        _whole(path, key, fields.get(key, "1"))
    for key in ("BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB", "CompressedData"):
        if fields.get(key, "false").lower() not in ("true", "false"):
            raise ValueError(f"{path} must have {key} True or False, got {fields[key]!r}.")
    kind = fields.get("ElementType", "")
    if kind not in BYTES_OF_METAIMAGE:
        raise ValueError(f"{path} must have an ElementType such as MET_SHORT, got {kind!r}.")
    if held is not None:
        claimed = (
            math.prod(shape) * BYTES_OF_METAIMAGE[kind] * int(fields.get("ElementNumberOfChannels", "1"))
        )
        check_claim(path, claimed, held, fields.get("CompressedData", "false").lower() == "true")


def check_nrrd(path: Path, voxels: bool = True) -> None:
    """Raise if the header of an NRRD file is damaged; arguments and errors as of :func:`check_metaimage`."""
    begin = _begin(path)
    end = re.search(rb"\r?\n\r?\n", begin)
    head = begin[: end.start()] if end else begin
    magic, *lines = _text(path, head)
    if not magic.startswith("NRRD000"):
        raise ValueError(f"{path} must begin with NRRD000, got {magic[:20]!r}.")
    told = [line for line in lines if line[:1] != "#" and ":=" not in line]
    fields = {key.lower(): value for key, value in _fields(path, told, ":").items()}
    data = fields.get("data file", fields.get("datafile", ""))
    held = _voxels(path, data) if voxels else None
    shape = _sizes(path, fields, "dimension", "sizes")
    directions = fields.get("space directions", "").replace("none", "").split()
    for text in directions:
        _vector(path, text)
    if not directions:
        _numbers(path, fields, ("spacings", "space directions"), len(shape), needed=True)
    if fields.get("space origin") is None:
        logger.warning(f"{path} does not say where it lies (no space origin): at 0, 0, 0 is taken.")
    else:
        _vector(path, fields["space origin"])
    names = [
        name
        for name in fields.get("type", "").replace("_t", "").split()
        if name not in ("signed", "unsigned")
    ]
    size = "".join(names).removeprefix("u").removeprefix("int") if names else ""
    bytes_each = BYTES_OF_NRRD.get(names[-1] if names else "") or BYTES_OF_NRRD.get(size or "int")
    if bytes_each is None:
        raise ValueError(f"{path} must have a type such as short, got {fields.get('type', '')!r}.")
    encoding = fields.get("encoding", "").lower()
    if encoding not in ("raw", "gzip", "gz", "bzip2", "bz2", "text", "txt", "ascii", "hex"):
        raise ValueError(f"{path} must have an encoding such as raw or gzip, got {encoding!r}.")
    if held is None or encoding not in ("raw", "gzip", "gz"):
        return
    if encoding != "raw" and not {"line skip", "lineskip", "byte skip", "byteskip"} & fields.keys():
        held = _unpacked_bytes(path.parent / data) if data else _unpacked_bytes(path, end.end() if end else 0)
        encoding = "raw"
    check_claim(path, math.prod(shape) * bytes_each, held, deflated=encoding != "raw")


def _begin(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEADER + WORD)


def _voxels(path: Path, name: str) -> int | None:
    """Bytes of the file of voxels, by default the header itself; ``None`` where each slice has a file."""
    if name.upper().startswith("LIST") or re.fullmatch(r"[^%]+%\d*d[^%]*", name):
        return None  # they are looked at when they are read
    file = path.parent / name if name else path
    if not file.is_file():
        raise FileNotFoundError(f"{path} names its voxels {name}, which is not beside it.")
    return file.stat().st_size


def _text(path: Path, head: bytes) -> list[str]:
    """The lines of a header, if it is one."""
    if len(head) > HEADER or not head.isascii() or b"\0" in head:
        raise ValueError(f"{path} is damaged: its header is no text.")
    lines = head.decode("ascii").splitlines()
    long = [line for line in lines if len(line) > 2 * WORD]
    if long:
        raise ValueError(f"{path} is damaged: its header has {len(long[0])} characters in {long[0][:30]!r}.")
    return lines or [""]


def _fields(path: Path, lines: Sequence[str], mark: str) -> Mapping[str, str]:
    fields: dict[str, str] = {}
    for line in filter(str.strip, lines):
        key, found, value = line.partition(mark)
        key = key.strip()  # capitals count in MetaImage
        if not found or key in fields:
            raise ValueError(
                f"{path} is damaged: its header has the line {line[:60]!r}{' twice' if found else ''}."
            )
        if len(value.strip()) > WORD:
            raise ValueError(f"{path} is damaged: {key} has {len(value.strip())} characters.")
        fields[key] = value.strip()
    return fields


def _whole(path: Path, key: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{path} must have a whole number as {key}, got {text[:40]!r}.") from None


def _sizes(path: Path, fields: Mapping[str, str], count_key: str, key: str) -> list[int]:
    count = _whole(path, count_key, fields.get(count_key, ""))
    shape = [_whole(path, key, text) for text in fields.get(key, "").split()]
    if not 1 <= count <= 7 or len(shape) != count or min(shape) < 1:
        raise ValueError(
            f"{path} must have as many {key}, from 1 on, as {count_key} says, "
            f"got {fields.get(key, '')!r} and {count}."
        )
    return shape


def _numbers(
    path: Path, fields: Mapping[str, str], keys: Sequence[str], count: int, needed: bool = False
) -> None:
    """Raise if a vector is not one; warn, or raise, if it is missing."""
    text = next((fields[key] for key in keys if key in fields), None)
    if text is None:
        if needed:
            raise ValueError(f"{path} must say {keys[0]}: how far its voxels are apart.")
        logger.warning(f"{path} does not say {keys[0]}: the axes and origin of the scanner are taken.")
        return
    try:
        values = [float(word) for word in text.split()]
    except ValueError:
        values = []
    if len(values) != count or not _usable(values):
        raise ValueError(f"{path} must have {count} numbers up to {FAR:g} as {keys[0]}, got {text!r}.")


def _usable(values: Sequence[float]) -> bool:
    """Whether numbers are such that a library ends with them: ITK turns 1e308 over for ever."""
    return all(math.isfinite(value) and abs(value) <= FAR for value in values)


def _vector(path: Path, text: str) -> None:
    try:
        values = [float(number) for number in text.strip("()").split(",")]
    except ValueError:
        values = []
    if (
        not text.startswith("(")
        or not text.endswith(")")
        or not values
        or not all(map(math.isfinite, values))
    ):
        raise ValueError(f"{path} must have a vector such as (0,0,1.5) in its header, got {text!r}.")


def check_dicom(path: Path) -> None:
    """Raise a ValueError if an element of a slice is longer than the file: GDCM asks for that much first."""
    if path.stat().st_size < 140:
        return  # no slice
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[128:132] == b"DICM" and not _elements_end_in(path, data):
            raise ValueError(f"{path} is cut off or damaged: one of its elements is longer than the file.")


def _elements_end_in(path: Path, data: mmap.mmap) -> bool:
    """Whether elements follow each other to the end of a file, as far as that can be told.

    Raises a ValueError if pixels that are not compressed are fewer than rows, columns and bits say.
    """
    at, explicit, syntax = 132, None, b""
    stated: dict[int, int] = {}  # of the group that says what the pixels are
    while at + 8 <= len(data):
        group, element = struct.unpack_from("<HH", data, at)
        if explicit is None and group != 2:  # as it is, which some files do not say rightly
            explicit = data[at + 4 : at + 6] in (*LONG, *SHORT)
            if syntax in FOREIGN:
                return True
        kind = data[at + 4 : at + 6] if explicit is not False and group != ITEM else b""
        if kind in NAMELESS:
            return True
        if kind and kind not in (*LONG, *SHORT):
            return False
        start = at + (12 if kind in LONG else 8)
        if start > len(data):
            return False
        place = ("<H", data, start - 2) if kind in SHORT else ("<I", data, start - 4)
        (length,) = struct.unpack_from(*place)
        if length == NO_LENGTH:  # on, into its items
            if kind == b"UN":
                return True  # what is in it is in another syntax
            at = start
            continue
        at = start + length
        if group == 0x0028 and length == 2 and at <= len(data):
            (stated[element],) = struct.unpack_from("<H", data, start)
        if (group, element) == (0x7FE0, 0x0010):
            rows, columns, bits = (stated.get(element, 0) for element in (0x0010, 0x0011, 0x0100))
            check_claim(path, rows * columns * stated.get(0x0002, 1) * bits // 8, length)
        if (group, element) == (0x0002, 0x0010):
            syntax = data[start:at].rstrip(b"\0 ")
    return at == len(data)
