# SPDX-License-Identifier: Apache-2.0
"""Small valid volumes in every format, and what can befall them: drawn by a seed, each case on its own."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813  its own documentation's name
from numpy.random import Generator
from numpy.typing import NDArray
from stated import EXPLICIT, IMPLICIT, LONG, Element, elements

__all__ = ["FORMATS", "mutate", "write_sample"]

FORMATS = ("nii", "nii.gz", "nrrd", "mhd", "dicom")
SHAPE = (7, 6, 5)
UID, CT_IMAGE = b"1.2.826.0.1.3680043.2", b"1.2.840.10008.5.1.4.1.1.2"

# NIfTI header: where its fields are, and of what kind
NIFTI_FIELDS = [(0, "i"), (32, "i"), (36, "h"), (39, "b"), *((40 + 2 * n, "h") for n in range(8))]
NIFTI_FIELDS += [(68, "h"), (70, "h"), (72, "h"), (74, "h"), *((76 + 4 * n, "f") for n in range(8))]
NIFTI_FIELDS += [(108, "f"), (112, "f"), (116, "f"), (120, "h"), (123, "b"), (252, "h"), (254, "h")]
NIFTI_FIELDS += [*((256 + 4 * n, "f") for n in range(18)), (344, "i"), (348, "i")]
WHOLE = [0, 1, -1, 2, 3, 4, 5, 7, 8, 16, 64, 127, 128, 255, 256, 512, 1000]
WHOLE += [2**15 - 1, -(2**15), 2**31 - 1, -(2**31)]
REAL = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-3, 1e-10, 1e-30, 1e3, 1e5, 1e10, 1e30, 3e38]
REAL += [float("nan"), float("inf"), float("-inf"), 351.0, 352.5, 353.0, -352.0, 2.0**31, 2.0**40]
PLAIN = """
0 1 -1 2 3 4 255 65536 2147483648 4294967296 1099511627776 -9223372036854775809 99999999999999999999 1e30
1e-30 1e308 1e999 nan -nan inf -inf 0x10 1,5 1.5.2 True False none None LOCAL LIST %s%n %03d ../x short
double MET_DOUBLE MET_OTHER gzip raw ascii hex bzip2
"""
PLACES = "right-anterior-superior scanner-xyz (0,0,0) (1,0,0 (nan,0,0) /dev/zero ."
WORDS = ["", " ", *PLAIN.split(), "A" * 5000, *PLACES.split()]


def write_sample(folder: Path, kind: str, rng: Generator) -> Path:
    """Write a valid volume of a format, in one of the ways it may be written; returns its path."""
    voxels = rng.integers(-1000, 400, SHAPE).astype(np.int16)
    if kind == "dicom":
        return _write_series(folder / "scan", voxels, (IMPLICIT, EXPLICIT)[rng.integers(2)])
    image = sitk.GetImageFromArray(voxels.transpose())
    if rng.random() < 0.3:
        image = sitk.Cast(image, sitk.sitkFloat32)
    image.SetSpacing((0.75, 1.5, 3.0))
    image.SetOrigin((-20.0, 30.0, -400.0))
    if rng.random() < 0.5:
        c, s = np.cos(0.3), np.sin(0.3)
        image.SetDirection((c, -s, 0, s, c, 0, 0, 0, 1))
    path = folder / f"scan.{kind}"
    sitk.WriteImage(image, str(path), useCompression=kind == "nrrd" and rng.random() < 0.5)
    if kind.startswith("nii"):
        _vary_nifti(path, rng)
    return path


def _vary_nifti(path: Path, rng: Generator) -> None:
    """By its sform alone, its qform alone, both or neither; with a slope; and the other way round."""
    data = bytearray(_unpacked(path))
    if rng.random() < 0.7:
        struct.pack_into("<2h", data, 252, *rng.permutation([[1, 0], [0, 1], [0, 0]])[0])
    if rng.random() < 0.3:
        struct.pack_into("<2f", data, 112, 2.0, -10.0)
    _pack(path, bytes(data))


def _write_series(folder: Path, voxels: NDArray, syntax: bytes) -> Path:
    folder.mkdir()
    for n in range(voxels.shape[2]):
        plane = (voxels[:, :, n] + 1024).astype("<u2").tobytes(order="F")
        tags = {
            **{0x00080005: b"ISO_IR 100", 0x00080016: CT_IMAGE, 0x00080018: UID + b".%d" % n},
            **{0x00080060: b"CT", 0x00180050: b"3", 0x0020000D: UID, 0x0020000E: UID + b".9"},
            **{0x00200013: b"%d" % n, 0x00200032: b"-20\\30\\%d" % (3 * n - 400)},
            **{0x00200037: b"1\\0\\0\\0\\1\\0", 0x00280002: 1, 0x00280004: b"MONOCHROME2"},
            **{0x00280010: voxels.shape[1], 0x00280011: voxels.shape[0], 0x00280030: b"1.5\\0.75"},
            **{0x00280100: 16, 0x00280101: 16, 0x00280102: 15, 0x00280103: 0},
            **{0x00281052: b"-1024", 0x00281053: b"1", 0x7FE00010: plane},
        }
        second = {0x00020001: b"\0\1", 0x00020002: CT_IMAGE, 0x00020003: tags[0x00080018], 0x00020010: syntax}
        meta = b"".join(_packed_element(tag, value, True) for tag, value in second.items())
        meta = b"\2\0\0\0UL\4\0" + struct.pack("<I", len(meta)) + meta
        body = b"".join(_packed_element(tag, value, syntax == EXPLICIT) for tag, value in tags.items())
        (folder / f"{n}.dcm").write_bytes(bytes(128) + b"DICM" + meta + body)
    return folder


def _packed_element(tag: int, value: bytes | int, explicit: bool) -> bytes:
    kind = _KINDS.get(tag, b"US" if isinstance(value, int) else b"DS")
    content = struct.pack("<H", value) if isinstance(value, int) else value
    content += (b"\0" if kind in (b"UI", b"OB") else b" ") * (len(content) % 2)
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    if not explicit:
        return head + struct.pack("<I", len(content)) + content
    if kind in LONG:
        return head + kind + struct.pack("<HI", 0, len(content)) + content
    return head + kind + struct.pack("<H", len(content)) + content


_KINDS = {
    **dict.fromkeys(
        (0x00020002, 0x00020003, 0x00020010, 0x00080016, 0x00080018, 0x0020000D, 0x0020000E), b"UI"
    ),
    **dict.fromkeys((0x00080005, 0x00080060, 0x00280004), b"CS"),
    **{0x00020001: b"OB", 0x00200013: b"IS", 0x7FE00010: b"OW"},
}


def mutate(path: Path, rng: Generator) -> str:
    """Change a valid volume for worse; returns the kind of the mutation."""
    name, change = _CHANGES[path.suffix][rng.integers(len(_CHANGES[path.suffix]))]
    if not path.is_dir():
        change(path, rng)
        return name
    files = sorted(path.iterdir())
    if rng.random() < 0.7:
        change(files[rng.integers(len(files))], rng)
        return f"{name}, one slice"
    seed = int(rng.integers(2**31))
    for file in files:  # all in the same way, so that none stands out
        change(file, np.random.default_rng(seed))
    return f"{name}, all slices"


def _unpacked(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def _pack(path: Path, data: bytes) -> None:
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)


def _head(path: Path, data: bytes) -> int:
    """Where the voxels begin."""
    if path.suffix == ".nrrd":
        return data.find(b"\n\n") + 2 if b"\n\n" in data else len(data)
    if path.suffix == ".dcm":
        return data.rfind(b"\xe0\x7f\x10\x00") + 8 if b"\xe0\x7f\x10\x00" in data else len(data)
    return len(data) if path.suffix == ".mhd" else 352


# What can befall any file


def _flip_bits(path: Path, rng: Generator) -> None:
    data = bytearray(_unpacked(path))
    for _ in range(rng.integers(1, 4)):
        data[rng.integers(_head(path, data))] ^= 1 << int(rng.integers(8))
    _pack(path, bytes(data))


def _set_bytes(path: Path, rng: Generator) -> None:
    data = bytearray(_unpacked(path))
    at, count = int(rng.integers(_head(path, data))), int(rng.integers(1, 9))
    filler = [bytes(count), b"\xff" * count, rng.bytes(count)][rng.integers(3)]
    data[at : at + count] = filler
    _pack(path, bytes(data))


def _insert_or_remove(path: Path, rng: Generator) -> None:
    data = bytearray(_unpacked(path))
    at, count = int(rng.integers(_head(path, data))), int(rng.integers(1, 20))
    data[at : at + (count if rng.random() < 0.5 else 0)] = b"" if rng.random() < 0.5 else rng.bytes(count)
    _pack(path, bytes(data))


def _cut(path: Path, rng: Generator) -> None:
    """Anywhere, the head included."""
    data = _unpacked(path)
    _pack(path, data[: rng.integers(len(data))])


def _cut_body(path: Path, rng: Generator) -> None:
    raw = path.with_suffix(".raw") if path.suffix == ".mhd" else path
    data = _unpacked(raw)
    head = 0 if path.suffix == ".mhd" else _head(path, data)
    _pack(raw, data[: rng.integers(head, len(data))])


def _cut_or_spoil_packed(path: Path, rng: Generator) -> None:
    data = bytearray(path.read_bytes())
    if rng.random() < 0.5:
        path.write_bytes(data[: rng.integers(len(data))])
        return
    for _ in range(rng.integers(1, 4)):
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


# NIfTI


def _set_fields(path: Path, rng: Generator) -> None:
    data = bytearray(_unpacked(path))
    for _ in range(rng.integers(1, 4)):
        at, kind = NIFTI_FIELDS[rng.integers(len(NIFTI_FIELDS))]
        if kind == "f":
            struct.pack_into("<f", data, at, REAL[rng.integers(len(REAL))])
        else:
            bits = 8 * struct.calcsize(kind)
            value = WHOLE[rng.integers(len(WHOLE))] % 2**bits
            struct.pack_into("<" + kind.upper(), data, at, value)
    _pack(path, bytes(data))


def _claim_much(path: Path, rng: Generator) -> None:
    data = bytearray(_unpacked(path))
    dims = [int(rng.choice([1, 7, 512, 4000, 20000, 32767])) for _ in range(3)]
    struct.pack_into("<8h", data, 40, 3, *dims, 1, 1, 1, 1)
    _pack(path, bytes(data))


# Text


def _lines(path: Path) -> tuple[list[str], bytes]:
    data = path.read_bytes()
    head = _head(path, data)
    return data[:head].decode("latin-1").split("\n"), data[head:]


def _write_lines(path: Path, lines: list[str], body: bytes) -> None:
    path.write_bytes("\n".join(lines).encode("latin-1") + body)


def _set_words(path: Path, rng: Generator) -> None:
    lines, body = _lines(path)
    for _ in range(rng.integers(1, 3)):
        n = int(rng.integers(len(lines)))
        mark = "=" if path.suffix == ".mhd" else ":"
        key, _, value = lines[n].partition(mark)
        words = value.split()
        word = WORDS[rng.integers(len(WORDS))]
        if words and rng.random() < 0.6:
            words[rng.integers(len(words))] = word
        else:
            words = [word] * int(rng.integers(1, 5))
        lines[n] = f"{key}{mark} {' '.join(words)}"
    _write_lines(path, lines, body)


def _set_numbers(path: Path, rng: Generator) -> None:
    """Of one number one digit, or the whole; vectors of NRRD keep their brackets."""
    lines, body = _lines(path)
    text = "\n".join(lines)
    digits = [n for n, letter in enumerate(text) if letter.isdigit()]
    at = digits[rng.integers(len(digits))]
    new = ["-", "0", "9", "e", ".", "99999", "000000", "nan", "inf", "-1", "1e9", "e30", "e-30", "1000000000"]
    text = text[:at] + new[rng.integers(len(new))] + text[at + 1 :]
    _write_lines(path, text.split("\n"), body)


def _move_lines(path: Path, rng: Generator) -> None:
    lines, body = _lines(path)
    a, b = (int(n) for n in rng.integers(len(lines), size=2))
    which = rng.integers(3)
    if which == 0:
        del lines[a]
    elif which == 1:
        lines.insert(b, lines[a])
    else:
        lines[a], lines[b] = lines[b], lines[a]
    _write_lines(path, lines, body)


# DICOM


def _element(data: bytes, rng: Generator) -> Element:
    """One of the head, more often of those that say what the pixels are and where."""
    found = list(elements(data))
    heavy = [e for e in found if e.tag >> 16 in (0x0002, 0x0020, 0x0028, 0x7FE0)]
    some = heavy if rng.random() < 0.8 else found
    return some[rng.integers(len(some))]


def _set_value(path: Path, rng: Generator) -> None:
    """Of as many bytes as before, or of as many as it takes."""
    data = path.read_bytes()
    e = _element(data, rng)
    value = data[e.at : e.at + e.length]
    if e.tag == 0x7FE00010 or (e.length == 2 and e.tag >> 16 == 0x0028):
        words = [rng.bytes(e.length), bytes(e.length), b"\xff" * e.length, b"\x01".ljust(e.length, b"\0")]
        value = words[rng.integers(len(words))]
    else:
        parts = value.decode("latin-1").split("\\")
        parts[rng.integers(len(parts))] = WORDS[rng.integers(len(WORDS))]
        value = "\\".join(parts).encode()
        value += b" " * (len(value) % 2)
        if rng.random() < 0.3:
            value = value[: e.length].ljust(e.length)
    short = len(e.kind) > 0 and e.kind not in LONG
    length = struct.pack("<H" if short else "<I", len(value))
    path.write_bytes(data[: e.at - len(length)] + length + value + data[e.at + e.length :])


def _set_tag(path: Path, rng: Generator) -> None:
    """Its number, its kind, or how long it is said to be."""
    data = bytearray(path.read_bytes())
    e = _element(bytes(data), rng)
    which = rng.integers(3)
    if which == 0:
        data[e.start : e.start + 4] = rng.bytes(4)
    elif which == 1:
        kinds = [b"SQ", b"UN", b"OB", b"US", b"DS", b"UI", b"XX", b"\0\0", b"UT", b"FD"]
        data[e.start + 4 : e.start + 6] = kinds[rng.integers(len(kinds))]
    else:
        size = 2 if e.kind and e.kind not in LONG else 4
        lengths = [bytes(size), b"\xff" * size, b"\xfe".ljust(size, b"\xff"), rng.bytes(size)]
        data[e.at - size : e.at] = lengths[rng.integers(len(lengths))]
    path.write_bytes(data)


def _drop_element(path: Path, rng: Generator) -> None:
    """Or write it twice."""
    data = path.read_bytes()
    e = _element(data, rng)
    end = e.at + e.length
    twice = data[e.start : end] * (2 if rng.random() < 0.3 else 0)
    path.write_bytes(data[: e.start] + twice + data[end:])


def _remove(path: Path, _: Generator) -> None:
    (path.with_suffix(".raw") if path.suffix == ".mhd" else path).unlink()


_Change = tuple[str, Callable[[Path, Generator], None]]
_ANY: list[_Change] = [
    ("bits", _flip_bits),
    ("bytes", _set_bytes),
    ("shifted", _insert_or_remove),
    ("cut", _cut),
    ("body cut", _cut_body),
]
_NIFTI: list[_Change] = [
    *_ANY,
    ("fields", _set_fields),
    ("fields", _set_fields),
    ("size claimed", _claim_much),
]
_TEXT: list[_Change] = [
    *_ANY,
    ("words", _set_words),
    ("words", _set_words),
    ("numbers", _set_numbers),
    ("lines", _move_lines),
]
_CHANGES: dict[str, list[_Change]] = {
    ".nii": _NIFTI,
    ".gz": [*_NIFTI, ("packed", _cut_or_spoil_packed)],
    ".nrrd": _TEXT,
    ".mhd": [*_TEXT, ("removed", _remove)],
    "": [
        *_ANY,
        ("values", _set_value),
        ("values", _set_value),
        ("tags", _set_tag),
        ("dropped", _drop_element),
        ("removed", _remove),
    ],
}
