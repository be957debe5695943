# SPDX-License-Identifier: Apache-2.0
"""DICOM series for tests, written slice by slice, or element by element."""

import locale
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813


def write_series(
    folder: Path,
    planes: Iterable[tuple[float, np.ndarray]],
    uid: str = "1.2.3",
    origin: tuple[float, float] = (-20.0, -30.0),
    pixel: float = 0.7,
    modality: str = "CT",
    first: int = 0,
    more: Mapping[str, str] | None = None,
) -> Path:
    """Write slices, (z in mm, int16 (X, Y) in HU) each, numbered from ``first``; returns ``folder``.

    ``more`` are tags of every slice, such as the patient's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = locale.setlocale(locale.LC_ALL)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for n, (z, plane) in enumerate(planes, start=first + 1):
        image = sitk.GetImageFromArray(plane.T)
        image.SetSpacing((pixel, pixel))
        for tag, value in {
            "0008|0060": modality,
            "0008|0018": f"{uid}.{n}",
            "0020|000d": "1.2",
            "0020|000e": uid,
            "0020|0013": str(n),
            "0020|0032": f"{origin[0]}\\{origin[1]}\\{z}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0028|1052": "-1024",
            "0028|1053": "1",
            **(more or {}),
        }.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{uid}_{n - 1:02d}.dcm"))
        writer.Execute(image)
    locale.setlocale(locale.LC_ALL, before)  # writing DICOM leaves that of C behind
    return folder


# Files element by element, for what no writer of images writes

IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
CT_IMAGE, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
KINDS = {
    **dict.fromkeys((0x00020010, 0x00080016, 0x00080018, 0x0020000D, 0x0020000E, 0x00200052), b"UI"),
    **dict.fromkeys((0x00080008, 0x00080060, 0x00280004), b"CS"),
    **dict.fromkeys((0x00200012, 0x00200013, 0x00280008, 0x00200100), b"IS"),
    **dict.fromkeys((0x00100010,), b"PN"),
    **dict.fromkeys((0x7FE00010,), b"OW"),
}
LONG = (b"OB", b"OW", b"SQ", b"UN", b"UT")


def element(tag: int, value: Any, explicit: bool = True, order: str = "<", undefined: bool = False) -> bytes:
    """One element: text, a number of two bytes, raw bytes, or a list of dictionaries for a sequence."""
    head = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
    if isinstance(value, list):
        content = b"".join(_item(item, explicit, order, undefined) for item in value)
        content += struct.pack(f"{order}HHI", 0xFFFE, 0xE0DD, 0) if undefined else b""
        length = 0xFFFFFFFF if undefined else len(content)
        return head + (b"SQ\0\0" if explicit else b"") + struct.pack(f"{order}I", length) + content
    kind = KINDS.get(tag, b"US" if isinstance(value, int) else b"OB" if isinstance(value, bytes) else b"DS")
    content = struct.pack(f"{order}H", value) if isinstance(value, int) else value
    content = content.encode("latin-1") if isinstance(content, str) else content
    content += (b"\0" if kind in (b"UI", b"OB", b"OW") else b" ") * (len(content) % 2)
    if not explicit:
        return head + struct.pack(f"{order}I", len(content)) + content
    if kind in LONG:
        return head + kind + struct.pack(f"{order}HI", 0, len(content)) + content
    return head + kind + struct.pack(f"{order}H", len(content)) + content


def _item(item: Mapping[int, Any], explicit: bool, order: str, undefined: bool) -> bytes:
    content = b"".join(element(tag, value, explicit, order, undefined) for tag, value in item.items())
    if not undefined:
        return struct.pack(f"{order}HHI", 0xFFFE, 0xE000, len(content)) + content
    end = struct.pack(f"{order}HHI", 0xFFFE, 0xE00D, 0)
    return struct.pack(f"{order}HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + content + end


def dicom_bytes(
    tags: Mapping[int, Any], syntax: str = EXPLICIT, preamble: bool = True, **settings: Any
) -> bytes:
    """A file of elements, in the order of their tags; those that are None are left out."""
    explicit, order = syntax != IMPLICIT, ">" if syntax == BIG_ENDIAN else "<"
    body = b"".join(
        element(tag, value, explicit, order, **settings)
        for tag, value in sorted(tags.items())
        if value is not None
    )
    if syntax == DEFLATED:
        deflate = zlib.compressobj(wbits=-15)
        body = deflate.compress(body) + deflate.flush()
    if not preamble:
        return body
    meta = element(0x00020010, syntax)
    meta = b"\2\0\0\0UL\4\0" + struct.pack("<I", len(meta)) + meta
    return bytes(128) + b"DICM" + meta + body


SHAPE = (12, 10, 6)  # columns, rows, slices
SPACING = (0.7, 0.8, 2.5)  # mm


def hounsfield_of(n: int) -> np.ndarray:
    """Values of the slice ``n``, (rows, columns): air, a block of tissue, and the number of the slice."""
    plane = np.full((SHAPE[1], SHAPE[0]), -1000, np.int16)
    plane[3:7, 4:9] = 40
    return plane + np.int16(n)


def slice_tags(n: int, uid: str = "1.2.3", **changes: Any) -> dict[int, Any]:
    """The elements of slice ``n`` of a plain series, some of them changed: ``t00200032="0\\0\\1"``."""
    tags = {
        **{0x00080008: "ORIGINAL\\PRIMARY\\AXIAL", 0x00080016: CT_IMAGE, 0x00080018: f"{uid}.{n + 1}"},
        **{0x00080060: "CT", 0x00100010: "Anon^Test", 0x00180050: "2.5", 0x0020000D: "1.2", 0x0020000E: uid},
        **{0x00200013: str(n + 1), 0x00200032: f"-20\\-30\\{SPACING[2] * n - 40}"},
        **{0x00200037: "1\\0\\0\\0\\1\\0", 0x00280002: 1, 0x00280004: "MONOCHROME2"},
        **{0x00280010: SHAPE[1], 0x00280011: SHAPE[0], 0x00280030: f"{SPACING[1]}\\{SPACING[0]}"},
        **{0x00280100: 16, 0x00280101: 16, 0x00280102: 15, 0x00280103: 0},
        **{0x00281052: "-1024", 0x00281053: "1"},
    }
    tags |= {int(key[1:], 16): value for key, value in changes.items()}
    if 0x7FE00010 not in tags:  # a change to None leaves them out
        offset, slope = float(tags[0x00281052] or 0), float(tags[0x00281053] or 1) or 1
        stored = np.round((hounsfield_of(n) - offset) / slope)
        tags[0x7FE00010] = stored.astype("<i2" if tags[0x00280103] else "<u2").tobytes()
    return tags


def write_slices(
    folder: Path, change: Callable[[int], Mapping[str, Any]] | None = None, **settings: Any
) -> Path:
    """Write a plain series, ``IM0000.dcm`` on, whose slice ``n`` differs as ``change(n)`` says."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(SHAPE[2]):
        tags = slice_tags(n, **(change(n) if change else {}))
        (folder / f"IM{n:04d}.dcm").write_bytes(dicom_bytes(tags, **settings))
    return folder


def enhanced_tags(
    order: Sequence[int], rescale: Callable[[int], tuple[float, float]] | None = None
) -> dict[int, Any]:
    """The elements of an enhanced file of CT whose frames are the slices ``order``.

    ``rescale`` gives slope and intercept of each slice; by default all frames share one.
    """
    shared = {
        0x00209116: [{0x00200037: "1\\0\\0\\0\\1\\0"}],
        0x00289110: [{0x00180050: "2.5", 0x00280030: f"{SPACING[1]}\\{SPACING[0]}"}],
    }
    if rescale is None:
        shared[0x00289145] = [{0x00281052: "-1024", 0x00281053: "1"}]
    frames, stored = [], []
    for n in order:
        slope, intercept = rescale(n) if rescale else (1.0, -1024.0)
        frames.append({0x00209113: [{0x00200032: f"-20\\-30\\{SPACING[2] * n - 40}"}]})
        if rescale:
            frames[-1][0x00289145] = [{0x00281052: str(intercept), 0x00281053: str(slope)}]
        stored.append(np.round((hounsfield_of(n) - intercept) / slope).astype("<u2"))
    tags = slice_tags(
        0, t00080016=ENHANCED_CT, t7fe00010=np.stack(stored).tobytes(), t00280008=str(len(order))
    )
    for tag in (0x00180050, 0x00200032, 0x00200037, 0x00280030, 0x00281052, 0x00281053):
        del tags[tag]
    return tags | {0x52009229: [shared], 0x52009230: frames}
