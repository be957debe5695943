# SPDX-License-Identifier: Apache-2.0
"""NRRD, ``.nrrd`` or ``.nhdr`` with its file of voxels: the header is proven, then the voxels are read.

Fields of the format are proven; ``key:=value`` lines and comments, which 3D Slicer fills with names in any
script and lines of any length, are passed over. Lengths in other units become millimetres.
"""

from __future__ import annotations

import bz2
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_unetpp.readers.checks import Geometry, Volume, check_claim, check_fits, voxels_of
from monai_unetpp.readers.itk import read_by_itk
from monai_unetpp.readers.text import Fields, begin_of

__all__ = ["read", "read_geometry"]

KNOWN = frozenset(
    [
        *("dimension", "type", "block size", "blocksize", "encoding", "endian", "content", "min", "max"),
        *("old min", "oldmin", "old max", "oldmax", "data file", "datafile", "line skip", "lineskip"),
        *("byte skip", "byteskip", "number", "sample units", "sampleunits", "sizes", "spacings", "labels"),
        *("thicknesses", "axis mins", "axismins", "axis maxs", "axismaxs", "centers", "centerings", "units"),
        *("kinds", "space", "space dimension", "space units", "space origin", "space directions"),
        *("measurement frame",),
    ]
)
INTEGERS = {"char": 1, "short": 2, "int": 4, "long": 8, "longlong": 8}
INTEGERS |= {"int8": 1, "int16": 2, "int32": 4, "int64": 8}
ENCODINGS = ("raw", "gzip", "gz", "bzip2", "bz2", "text", "txt", "ascii", "hex")
TO_RAS = {  # of each axis of space, by the side that it points to
    **dict.fromkeys(("left-posterior-superior", "lps"), (-1.0, -1.0, 1.0)),
    **dict.fromkeys(("left-anterior-superior", "las"), (-1.0, 1.0, 1.0)),
    **dict.fromkeys(("right-anterior-superior", "ras"), (1.0, 1.0, 1.0)),
}
OF_SPACE = ("", "domain", "space", "none", "???")  # kinds of an axis that has a spacing
MM_PER_UNIT_NAME = {
    **dict.fromkeys(("", "mm", "millimeter", "millimetre"), 1.0),
    **dict.fromkeys(("m", "meter", "metre"), 1000.0),
    **dict.fromkeys(("um", "µm", "\u03bcm", "micron", "micrometer", "micrometre"), 1e-3),
    "cm": 10.0,
}


@dataclass(frozen=True)
class _NrrdHeader:
    """What the header of a file says.

    Args:
        size: Values along each axis, the fastest first.
        spatial: Which of the axes are axes of space.
        dtype: Type of a value, with its byte order.
        encoding: How values are written.
        data: Name of their file, empty if they follow the header, which ends at ``end``.
        skips: Whether lines or bytes before them are passed over.
        affine: Voxel index to mm (RAS+).
    """

    size: tuple[int, ...]
    spatial: tuple[int, ...]
    dtype: np.dtype[Any]
    encoding: str
    data: str
    end: int
    skips: bool
    affine: NDArray[np.float64]
    warnings: tuple[str, ...]

    @property
    def by_itk(self) -> bool:
        """Whether values are stored in a way that is left to ITK."""
        several = self.data.upper().startswith("LIST") or "%" in self.data
        return several or self.skips or self.encoding in ("text", "txt", "ascii", "hex")


def read_geometry(path: Path) -> Geometry:
    """Return size and spacing; the voxels need not be there.

    Raises:
        ValueError: if the header is damaged, or does not say how large a voxel is.
    """
    header = _parse(path)
    spacing = np.linalg.norm(header.affine[:-1, :-1], axis=0)
    return Geometry(tuple(header.size[axis] for axis in header.spatial), tuple(spacing.tolist()))


def read(path: Path) -> Volume:
    """Read a volume; an axis that is none of space becomes the channels.

    Raises:
        FileNotFoundError: if there is no file of the name that the header has for its voxels.
        ValueError: if the file is damaged, truncated, or larger than memory.
    """
    header = _parse(path)
    check_fits(path, voxels_of(header.size))
    others = [axis for axis, n in enumerate(header.size) if axis not in header.spatial and n > 1]
    if len(others) > 1:
        raise ValueError(f"{path} must have one axis of channels at most, got sizes {list(header.size)}.")
    array = read_by_itk(path) if header.by_itk else _voxels(path, header)
    if header.by_itk and others:
        array = np.moveaxis(array, -1, others[0])  # as it is in the file
    keep = [*header.spatial, *others]
    array = array.reshape(header.size).transpose([*keep, *(a for a in range(array.ndim) if a not in keep)])
    return Volume(array.reshape([header.size[a] for a in keep]), header.affine, bool(others), header.warnings)


def _parse(path: Path) -> _NrrdHeader:
    """Prove a header."""
    begin = begin_of(path)
    end = re.search(rb"\r?\n\r?\n", begin)
    magic, *lines = (begin[: end.start()] if end else begin).splitlines() or [b""]
    if not magic.startswith(b"NRRD000"):
        raise ValueError(f"{path} is damaged: it must begin with NRRD000, got {magic[:20]!r}.")
    if b"\0" in b"".join(lines):
        raise ValueError(f"{path} is damaged: its header is no text.")
    fields = Fields(
        path, [_lower_key(line) for line in lines if line[:1] != b"#" and b":=" not in line], b":"
    )
    unknown = [key for key in fields.values if key not in KNOWN]
    if unknown:
        raise ValueError(
            f"{path} is damaged: its header has the field {unknown[0][:40]!r}, which NRRD does not know."
        )
    size = fields.sizes("dimension", "sizes")
    encoding = fields.text("encoding").lower()
    if encoding not in ENCODINGS:
        raise ValueError(f"{path} must have an encoding such as raw or gzip, got {encoding!r}.")
    spatial, affine, warnings = _place(path, fields, size)
    header = _NrrdHeader(
        size=size,
        spatial=spatial,
        dtype=_dtype(fields),
        encoding=encoding,
        data=fields.text("data file", "datafile"),
        end=end.end() if end else len(begin),
        skips=any(
            fields.text(key, default="0") != "0" for key in ("line skip", "lineskip", "byte skip", "byteskip")
        ),
        affine=affine,
        warnings=warnings,
    )
    if header.by_itk:
        fields.check_short()
    return header


def _lower_key(line: bytes) -> bytes:
    key, mark, value = line.partition(b":")
    return key.lower() + mark + value


def _dtype(fields: Fields) -> np.dtype[Any]:
    """The type of a value: a name of C, with or without its sign."""
    stated = fields.text("type")
    words = [word for word in stated.removesuffix("_t").split() if word != "signed"]
    sign = "u" if words[:1] == ["unsigned"] else "i"
    name = "".join(words[words[:1] == ["unsigned"] :]) or ("int" if stated else "none")
    if name[0] == "u":
        sign, name = "u", name[1:]
    name = name if name in INTEGERS else name.removesuffix("int")
    kind = {"float": "f4", "double": "f8"}.get(name) or (
        f"{sign}{INTEGERS[name]}" if name in INTEGERS else ""
    )
    if not kind:
        raise ValueError(f"{fields.path} must have a type such as short, got {stated!r}.")
    if kind[1] == "1":
        return np.dtype(kind)
    endian = fields.text("endian").lower()
    if endian not in ("little", "big"):
        raise ValueError(f"{fields.path} must have the endian little or big, got {endian!r}.")
    return np.dtype(("<" if endian == "little" else ">") + kind)


def _place(
    path: Path, fields: Fields, size: tuple[int, ...]
) -> tuple[tuple[int, ...], NDArray[np.float64], tuple[str, ...]]:
    """Return which axes are axes of space, the affine, and what the header does not say."""
    warnings = []
    directions = re.findall(r"none|\([^()]*\)|\S+", fields.text("space directions").replace(", ", ","))
    if directions:
        if len(directions) != len(size):
            raise ValueError(f"{path} must have {len(size)} space directions, got {len(directions)}.")
        spatial = tuple(axis for axis, text in enumerate(directions) if text != "none")
        columns = np.array([_vector(path, directions[axis]) for axis in spatial])
    else:
        spacings = fields.text("spacings").split()
        numbers = [_number(path, text) for text in spacings]
        kinds = fields.text("kinds").lower().split() or [""] * len(size)
        if len(kinds) != len(size):
            raise ValueError(f"{path} must have {len(size)} kinds, one for each axis, got {len(kinds)}.")
        named = zip(numbers, kinds, strict=False)
        spatial = tuple(a for a, (n, kind) in enumerate(named) if not np.isnan(n) and kind in OF_SPACE)
        if len(spacings) != len(size) or not spatial:
            raise ValueError(
                f"{path} must say spacings (such as 'spacings: 0.8 0.8 5') or space directions: how far its "
                "voxels are apart."
            )
        columns = np.diag([numbers[axis] for axis in spatial])
    if not 2 <= len(spatial) <= 3 or columns.shape != (len(spatial), len(spatial)):
        raise ValueError(
            f"{path} must have as many axes of space as its vectors have numbers, got {columns.shape}."
        )
    if "space origin" in fields.values:
        origin = _vector(path, fields.text("space origin"))
    else:
        origin = np.zeros(len(spatial))
        warnings.append(f"{path} does not say where it lies (no space origin): at 0, 0, 0 is taken.")
    if len(origin) != len(spatial):
        raise ValueError(f"{path} must have a space origin of {len(spatial)} numbers, got {len(origin)}.")
    scale, note = _scale(path, fields, len(spatial))
    space, said = _space(fields)
    warnings += [f"{path} {text}" for text in (note, said) if text]
    affine = np.eye(len(spatial) + 1)
    signs = np.array(space[: len(spatial)]) * scale  # of each axis of space
    affine[:-1, :-1], affine[:-1, -1] = columns.T * signs[:, None], origin * signs
    return spatial, affine, tuple(warnings)


def _space(fields: Fields) -> tuple[tuple[float, ...], str]:
    """Return the factors that turn its space into RAS+, and what is not said."""
    space = fields.text("space").lower()
    if space in TO_RAS:
        return TO_RAS[space], ""
    if space:
        raise ValueError(f"{fields.path} must be in one of the spaces {', '.join(TO_RAS)}, got {space!r}.")
    return TO_RAS[
        "lps"
    ], "does not say which way its axes point (no space): left-posterior-superior is taken."


def _scale(path: Path, fields: Fields, axes: int) -> tuple[NDArray[np.float64], str]:
    """Return mm per unit of each axis of space, and what is odd about the units."""
    raw = (fields.values.get("space units") or fields.values.get("units", b"")).decode("utf-8", "replace")
    names = [a or b for a, b in re.findall(r'"([^"]*)"|(\S+)', raw)]
    names = [name.strip().lower() for name in names]
    names = [name for name in names if name in MM_PER_UNIT_NAME or name not in ("none", "???")]
    if not names:
        return np.ones(axes), ""
    wrong = [name for name in names if name not in MM_PER_UNIT_NAME]
    if wrong or len(names) < axes:
        raise ValueError(f"{path} must have lengths in mm, cm, m or um as its units, got {raw[:60]!r}.")
    scale = np.array([MM_PER_UNIT_NAME[name] for name in names[:axes]])
    note = f"is in {names[0]}, and is taken as {scale[0]:g} mm each." if (scale != 1).any() else ""
    return scale, note


def _vector(path: Path, text: str) -> NDArray[np.float64]:
    parts = text.strip("()").split(",") if text[:1] + text[-1:] == "()" else []
    values = [_number(path, part) for part in parts]
    if not values or not np.isfinite(values).all():
        raise ValueError(f"{path} must have a vector such as (0,0,1.5) in its header, got {text!r}.")
    return np.array(values)


def _number(path: Path, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"{path} must have numbers in its header, such as (0,0,1.5), got {text!r}."
        ) from None


def _voxels(path: Path, header: _NrrdHeader) -> NDArray[Any]:
    """Read values, in the order of the axes of the file."""
    file = path.parent / header.data if header.data else path
    if not file.is_file():
        raise FileNotFoundError(f"{path} names its voxels {header.data}, which is not beside it.")
    start = 0 if header.data else header.end
    claimed, held = voxels_of(header.size) * header.dtype.itemsize, file.stat().st_size - start
    check_claim(path, claimed, held, header.encoding != "raw")
    if header.encoding == "raw":
        values = np.fromfile(file, header.dtype, claimed // header.dtype.itemsize, offset=start)
    else:
        values = np.frombuffer(_unpacked(path, file, start, claimed, header.encoding), header.dtype)
    return values.reshape(header.size, order="F")


def _unpacked(path: Path, file: Path, start: int, claimed: int, encoding: str) -> bytes:
    """Unpack values, which must be as many as claimed; the check sum is looked at."""
    inflate: Any = bz2.BZ2Decompressor() if encoding in ("bzip2", "bz2") else zlib.decompressobj(wbits=31)
    try:
        content = bytes(inflate.decompress(file.read_bytes()[start:], claimed + 1))
    except (OSError, zlib.error) as error:
        raise ValueError(f"{path} is truncated or damaged: {error}.") from error
    if len(content) < claimed or (len(content) == claimed and not inflate.eof):
        raise ValueError(
            f"{path} is truncated or damaged: its header claims {claimed:,} bytes of voxels, "
            f"it holds {len(content):,}."
        )
    return content[:claimed]
