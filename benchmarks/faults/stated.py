# SPDX-License-Identifier: Apache-2.0
"""What a file states, read anew from its bytes by the letter of its format: the other opinion in fuzzing.

It knows what :mod:`mutations` writes and does to it, and raises on what it does not know. No reader of the
package, nor a library that one of them uses, takes part.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["EXPLICIT", "IMPLICIT", "LONG", "Element", "Volume", "elements", "stated"]

IMPLICIT, EXPLICIT = b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1"
LONG = (b"OB", b"OD", b"OF", b"OL", b"OW", b"SQ", b"UC", b"UN", b"UR", b"UT")  # kinds of a longer length
LPS = np.diag([-1.0, -1.0, 1.0])
NIFTI_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4"}
NIFTI_TYPES |= {1024: "i8", 1280: "u8"}
TEXT_TYPES = {
    ("signed char", "int8", "MET_CHAR"): "i1",
    ("unsigned char", "uchar", "uint8", "MET_UCHAR"): "u1",
    ("short", "int16", "MET_SHORT"): "i2",
    ("unsigned short", "ushort", "uint16", "MET_USHORT"): "u2",
    ("int", "int32", "MET_INT"): "i4",
    ("unsigned int", "uint", "uint32", "MET_UINT"): "u4",
    ("float", "MET_FLOAT"): "f4",
    ("double", "MET_DOUBLE"): "f8",
}


class Volume(NamedTuple):
    """Voxels (X, Y, Z) and the affine from them to mm, RAS+."""

    voxels: NDArray
    affine: NDArray


def stated(path: Path) -> list[Volume]:
    """Return the volume that a file, or a folder of slices, states.

    A NIfTI file can state two places, by sform and by qform; where they contradict each other, either is.
    """
    if path.is_dir():
        return [_series(path)]
    if path.suffix in (".nii", ".gz"):
        return _nifti(path)
    return [{".nrrd": _nrrd, ".mhd": _metaimage}[path.suffix](path)]


def _array(data: bytes, kind: str, shape: list[int], offset: int = 0) -> NDArray:
    count = int(np.prod(shape, dtype=object))
    if min(shape) < 1 or offset < 0 or count * np.dtype(kind).itemsize > len(data) - offset:
        raise ValueError("voxels are missing")
    return np.frombuffer(data, kind, count, offset).reshape(shape, order="F")


def _volume(array: NDArray, matrix: NDArray, origin: NDArray) -> Volume:
    """Leave out axes of length 1 beyond the third."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix, origin
    shape = list(array.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    return Volume(array.reshape(shape, order="F").astype(np.float64), affine)


# NIfTI


def _nifti(path: Path) -> list[Volume]:
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    end = "<" if struct.unpack_from("<i", data)[0] == 348 else ">"
    if struct.unpack_from(end + "i", data)[0] != 348 or data[344:348] != b"n+1\0":
        raise ValueError("no NIfTI")
    dim = struct.unpack_from(end + "8h", data, 40)
    pixdim = np.array(struct.unpack_from(end + "8f", data, 76), dtype=np.float64)
    offset, slope, inter = struct.unpack_from(end + "3f", data, 108)
    kind = NIFTI_TYPES[struct.unpack_from(end + "h", data, 70)[0]]
    if not 1 <= dim[0] <= 7:
        raise ValueError("no dimensions")
    array = _array(data, end + kind, list(dim[1 : dim[0] + 1]), int(offset))
    if np.isfinite(slope) and slope != 0:
        array = array.astype(np.float64) * slope + inter
    qform, sform = struct.unpack_from(end + "2h", data, 252)
    unit = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}[data[123] & 7]  # mm
    found = []
    if sform > 0:
        rows = np.array(struct.unpack_from(end + "12f", data, 280), dtype=np.float64).reshape(3, 4)
        found.append(_volume(array, rows[:, :3] * unit, rows[:, 3] * unit))
    if found:
        return found
    if qform > 0:
        quaternion = struct.unpack_from(end + "6f", data, 256)
        turn = _rotation(*quaternion[:3]) * [1, 1, -1 if pixdim[0] < 0 else 1]
        return [_volume(array, turn * pixdim[1:4] * unit, np.array(quaternion[3:]) * unit)]
    middle = (
        np.array(array.shape[:3]) - 1
    ) / 2  # it does not say: by custom, centred, first axis to the left
    matrix = np.diag(pixdim[1:4] * unit) * [-1, 1, 1]
    return [_volume(array, matrix, -matrix @ middle)]


def _rotation(b: float, c: float, d: float) -> NDArray:
    rest = 1 - (b * b + c * c + d * d)
    if rest < -1e-6:
        raise ValueError("no rotation")
    a = max(rest, 0) ** 0.5
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )


# NRRD and MetaImage


def _nrrd(path: Path) -> Volume:
    head, _, body = path.read_bytes().partition(b"\n\n")
    lines = head.decode("latin-1").splitlines()  # of comments; in fields other letters are unknown words
    if not lines[0].startswith("NRRD000"):
        raise ValueError("no NRRD")
    pairs = [line.split(":", 1) for line in lines[1:] if not line.startswith("#")]
    field = {key.strip().lower(): value.strip() for key, value in pairs if not value.startswith("=")}
    if len(field) < len([pair for pair in pairs if not pair[1].startswith("=")]):
        raise ValueError("a field twice")
    shape = [int(size) for size in field["sizes"].split()]
    if len(shape) != int(field["dimension"]):
        raise ValueError("sizes and dimension differ")
    if field["encoding"] in ("gzip", "gz"):
        body = gzip.decompress(body)
    elif field["encoding"] != "raw":
        raise ValueError("unknown encoding")
    kind = _text_type(field["type"])
    if kind[1] != "1":
        kind = {"little": "<", "big": ">"}[field["endian"]] + kind
    array = _array(body, kind, shape)
    known = {"left-posterior-superior": [-1, -1, 1], "lps": [-1, -1, 1]}
    known |= {"right-anterior-superior": [1, 1, 1], "ras": [1, 1, 1]}
    known |= {"left-anterior-superior": [-1, 1, 1], "las": [-1, 1, 1]}
    to_ras = np.diag(known[field["space"].lower()])
    columns = np.array([_vector(text) for text in field["space directions"].split()]).T
    return _volume(array, to_ras @ columns, to_ras @ _vector(field.get("space origin", "(0,0,0)")))


def _vector(text: str) -> NDArray:
    if text[0] + text[-1] != "()":
        raise ValueError("no vector")
    values = np.array([float(number) for number in text[1:-1].split(",")])
    if len(values) != 3:
        raise ValueError("no vector of three")
    return values


def _metaimage(path: Path) -> Volume:
    field: dict[str, str] = {}
    for line in path.read_text("ascii").splitlines():
        key, value = (part.strip() for part in line.split("=", 1))
        if key in field:
            raise ValueError("a field twice")
        field[key] = value
        if key == "ElementDataFile":
            break
    data = (path.parent / field["ElementDataFile"]).read_bytes()
    binary, packed = (field.get(key, "False").lower() for key in ("BinaryData", "CompressedData"))
    if binary != "true" or packed != "false" or field["ObjectType"] != "Image":
        raise ValueError("another kind of MetaImage")
    if int(field.get("ElementNumberOfChannels", "1")) != 1:
        raise ValueError("several channels")
    shape = [int(size) for size in field["DimSize"].split()]
    if len(shape) != int(field["NDims"]):
        raise ValueError("DimSize and NDims differ")
    end = {"false": "<", "true": ">"}[field.get("BinaryDataByteOrderMSB", "False").lower()]
    skip = int(field.get("HeaderSize", "0"))
    array = _array(data, end + _text_type(field["ElementType"]), shape, max(skip, 0))
    spacing, origin = _numbers(field["ElementSpacing"], 3), _numbers(field.get("Offset", "0 0 0"), 3)
    turn = _numbers(field.get("TransformMatrix", "1 0 0 0 1 0 0 0 1"), 9).reshape(3, 3).T
    return _volume(array, LPS @ turn * spacing, LPS @ origin)


def _numbers(text: str, count: int) -> NDArray:
    numbers = np.array([float(number) for number in text.split()])
    if len(numbers) != count:
        raise ValueError(f"not {count} numbers")
    return numbers


def _text_type(name: str) -> str:
    return next(kind for names, kind in TEXT_TYPES.items() if name in names)


# DICOM


def _series(folder: Path) -> Volume:
    files = [path.read_bytes() for path in sorted(folder.iterdir())]
    slices = [{e.tag: data[e.at : e.at + e.length] for e in elements(data)} for data in files]
    if len({tags[0x0020000E] for tags in slices}) > 1:
        raise ValueError("several series")
    planes = [_plane(tags) for tags in slices]
    turn = [_decimals(tags[0x00200037], 6).reshape(2, 3) for tags in slices]
    spacing = [_decimals(tags[0x00280030], 2) for tags in slices]
    places = np.array([_decimals(tags[0x00200032], 3) for tags in slices])
    if not (np.allclose(turn, turn[0]) and np.allclose(spacing, spacing[0])):
        raise ValueError("slices differ")
    row, column = turn[0]
    normal = np.cross(row, column)
    order = np.argsort(places @ normal)
    first, last = places[order[0]], places[order[-1]]
    step = (last - first) / (len(slices) - 1)
    matrix = np.stack([row * spacing[0][1], column * spacing[0][0], step], axis=1)
    return _volume(np.stack([planes[n] for n in order], axis=-1), LPS @ matrix, LPS @ first)


class Element(NamedTuple):
    """Where an element of a DICOM file begins, and where its value does."""

    tag: int
    kind: bytes
    start: int
    at: int
    length: int


def elements(data: bytes) -> Iterator[Element]:
    """Yield the elements of a file, little endian, explicit or implicit as its second group says."""
    if data[128:132] != b"DICM":
        raise ValueError("no DICOM")
    start, explicit = 132, True
    while start < len(data):
        group, element, kind = struct.unpack_from("<HH2s", data, start)
        if group != 2 and not explicit:
            kind, at = b"", start + 8
        else:
            at = start + (12 if kind in LONG else 8)
        short = bool(kind) and kind not in LONG
        length = struct.unpack_from("<H" if short else "<I", data, at - (2 if short else 4))[0]
        if at + length > len(data):
            raise ValueError("an element is cut off")
        found = Element(group << 16 | element, kind, start, at, length)
        if found.tag == 0x00020010:
            explicit = data[at : at + length].rstrip(b"\0 ") != IMPLICIT
        yield found
        start = at + length


def _plane(tags: dict[int, bytes]) -> NDArray:
    if tags[0x00020010].rstrip(b"\0 ") not in (IMPLICIT, EXPLICIT):
        raise ValueError("another transfer syntax")
    numbers = {n: struct.unpack("<H", tags[0x00280000 | n])[0] for n in (2, 0x10, 0x11, 0x100, 0x101, 0x103)}
    if numbers[2] != 1 or numbers[0x100] not in (8, 16) or numbers[0x101] != numbers[0x100]:
        raise ValueError("another kind of pixels")
    kind = "<" + ("i" if numbers[0x103] else "u") + str(numbers[0x100] // 8)
    stored = _array(tags[0x7FE00010], kind, [numbers[0x11], numbers[0x10]])
    slope, inter = (
        _decimals(tags[tag], 1)[0] if tag in tags else default
        for tag, default in ((0x00281053, 1.0), (0x00281052, 0.0))
    )
    return stored.astype(np.float64) * slope + inter


def _decimals(value: bytes, count: int) -> NDArray:
    numbers = np.array([float(text) for text in value.decode("ascii").strip(" \0").split("\\")])
    if len(numbers) != count:
        raise ValueError(f"not {count} numbers")
    return numbers
