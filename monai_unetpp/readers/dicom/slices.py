# SPDX-License-Identifier: Apache-2.0
"""One section of a patient, as a file or a frame of an enhanced file states it: numbers, not text."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_unetpp.readers.checks import check_claim, voxels_of
from monai_unetpp.readers.dicom.elements import FRAME_GROUPS, SHARED_GROUPS, DicomFile, Pixels, parse

__all__ = ["NO_PIXELS", "PixelFormat", "Slice", "read_slices"]

IMAGE_TYPE, FRAME_TYPE, MODALITY, SERIES = 0x00080008, 0x00089007, 0x00080060, 0x0020000E
FRAME_TIME = 0x00209128
TIMES = (0x00200100, FRAME_TIME, 0x00200012, 0x00200013)  # position in time, acquisition, number
POSITION, ORIENTATION, PIXEL_SPACING = 0x00200032, 0x00200037, 0x00280030
THICKNESS = 0x00180050
SAMPLES, FRAMES, ROWS, COLUMNS = 0x00280002, 0x00280008, 0x00280010, 0x00280011
BITS = (0x00280100, 0x00280101, 0x00280102, 0x00280103)  # allocated, stored, highest, whether signed
INTERCEPT, SLOPE, LOOKUP_TABLE = 0x00281052, 0x00281053, 0x00283000
# of a frame: its type, content, place, direction, pixel spacing, and slope and intercept
GROUPS = (0x00189329, 0x00209111, 0x00209113, 0x00209116, 0x00289110, 0x00289145)
SOP_CLASS = 0x00080016
NO_PIXELS = "it states an image and holds no pixels"
MAX_RESCALE = 1e6  # of a slope or an intercept


@dataclass(frozen=True)
class PixelFormat:
    """How a stored number becomes a value.

    Args:
        allocated: Bits that a number takes in the file: 8, 16 or 32.
        stored: How many of them, the lowest, hold the number.
        signed: Whether it is in two's complement.
        slope: What it is multiplied by.
        intercept: What is added then.
        rescaled: Whether the file states slope and intercept.
    """

    allocated: int
    stored: int
    signed: bool
    slope: float
    intercept: float
    rescaled: tuple[bool, bool]

    @property
    def lowest(self) -> float:
        """The lowest value that can be stored."""
        ends = (
            (-(2 ** (self.stored - 1)), 2 ** (self.stored - 1) - 1)
            if self.signed
            else (0, 2**self.stored - 1)
        )
        return min(self.slope * end + self.intercept for end in ends)


@dataclass(frozen=True)
class Slice:
    """One section: which, where, and how its pixels are stored.

    Args:
        path: Path of the file.
        frame: Its number in the file, from 0.
        series: Series UID.
        modality: Such as ``"CT"``.
        kind: Image type, such as ``("ORIGINAL", "PRIMARY", "AXIAL")``.
        moment: Position in time, acquisition number and instance number, -1 where they are not stated.
        size: Columns and rows.
        samples: Values per pixel; 3 for colours.
        position: Centre of the first pixel, mm (LPS+), (3,), if it is stated.
        axes: Directions of a row and of a column, (2, 3), if they are stated.
        spacing: Between columns and between rows, mm, if it is stated.
        thickness: mm, if it is stated.
        format: How a stored number becomes a value.
        syntax: UID of the transfer syntax.
        pixels: Where the pixels of the file are.
        frames: Number of sections in the file.
    """

    path: Path
    frame: int
    series: str
    modality: str
    kind: tuple[str, ...]
    moment: tuple[float, ...]
    size: tuple[int, int]
    samples: int
    position: NDArray[np.float64] | None
    axes: NDArray[np.float64] | None
    spacing: tuple[float, float] | None
    thickness: float | None
    format: PixelFormat
    syntax: str
    pixels: Pixels
    frames: int

    @property
    def name(self) -> str:
        """Path of the file, with the number of the frame where it holds several."""
        return str(self.path) if self.frames == 1 else f"{self.path}, frame {self.frame + 1}"

    @property
    def localizer(self) -> bool:
        """Whether it says that it is one: a radiograph on which a scan is planned."""
        return any(word in ("LOCALIZER", "SCOUT", "TOPOGRAM") for word in self.kind)

    @property
    def placed(self) -> bool:
        """Whether it says where it lies."""
        return self.position is not None and self.axes is not None and self.spacing is not None


def read_slices(path: Path) -> tuple[str, list[Slice]]:
    """Return the class of a file (SOP class UID) and its sections: one, those of an enhanced file, or none.

    Raises:
        ValueError: if it is truncated or damaged, or is stored in a way that is not read; it names the file.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            dataset = parse(content)
            sop_class = _Values(path, dataset.values, dataset.byte_order).text(SOP_CLASS)
            if dataset.pixels is None:
                if dataset.values.keys() & {ROWS, COLUMNS}:
                    raise ValueError(NO_PIXELS)
                return sop_class, []
            return sop_class, list(_slices(path, dataset))
    except ValueError as error:
        text = str(error)
        raise ValueError(text if str(path) in text else f"{path} is truncated or damaged: {text}.") from error


def _slices(path: Path, dataset: DicomFile) -> Iterator[Slice]:
    top = _Values(path, dataset.values, dataset.byte_order)
    count = int(top.number(FRAMES, 1))
    frames = dataset.values.get(FRAME_GROUPS, [{}])
    if count < 1 or len(frames) not in (1, count):
        raise ValueError(f"{path} must have a place for each of its {count} frames, got {len(frames)}.")
    if count > 1 and len(frames) == 1:
        frames = [{}] * count  # nothing says where each lies
    shared = _flat(dataset.values.get(SHARED_GROUPS, [{}]))
    stated = [
        _slice(path, n, count, dataset, {**dataset.values, **shared, **_flat([frame])})
        for n, frame in enumerate(frames)
    ]
    _check_length(stated[0], len(stated))
    yield from stated


def _flat(items: Any) -> dict[int, Any]:
    """The elements of the groups of a frame, whose tags differ from group to group."""
    groups = [group for item in items for tag, group in item.items() if tag in GROUPS]
    return {tag: value for group in groups for item in group[:1] for tag, value in item.items()}


def _slice(path: Path, frame: int, frames: int, dataset: DicomFile, values: Mapping[int, Any]) -> Slice:
    read = _Values(path, values, dataset.byte_order)
    assert dataset.pixels is not None
    if LOOKUP_TABLE in values:
        raise ValueError(f"{path} has a lookup table for its values, which is not read; convert it.")
    spacing, position = read.numbers(PIXEL_SPACING, 2), read.numbers(POSITION, 3)
    axes = read.numbers(ORIENTATION, 6)
    thickness = read.text(THICKNESS)
    return Slice(
        path=path,
        frame=frame,
        series=read.text(SERIES),
        modality=read.text(MODALITY).upper(),
        kind=tuple(
            word.strip().upper() for tag in (IMAGE_TYPE, FRAME_TYPE) for word in read.text(tag).split("\\")
        ),
        moment=tuple(read.rank(tag) for tag in TIMES),
        size=(read.whole(COLUMNS), read.whole(ROWS)),
        samples=read.whole(SAMPLES, 1),
        position=position,
        axes=None if axes is None else _checked_axes(path, axes.reshape(2, 3)),
        spacing=None if spacing is None else _checked_spacing(path, spacing),
        thickness=read.number(THICKNESS, 0) if thickness else None,
        format=_format(path, read),
        syntax=dataset.syntax,
        pixels=dataset.pixels,
        frames=frames,
    )


class _Values:
    """The values of elements as text and numbers."""

    def __init__(self, path: Path, values: Mapping[int, Any], byte_order: str) -> None:
        self.path, self.values, self.byte_order = path, values, byte_order

    def text(self, tag: int) -> str:
        """Return the text of a value; empty if there is none."""
        value = self.values.get(tag, b"")
        return value.decode("latin-1").strip(" \0") if isinstance(value, bytes) else ""

    def numbers(self, tag: int, count: int) -> NDArray[np.float64] | None:
        """Return numbers that are stated as text, ``None`` where they are not."""
        text = self.text(tag)
        if not text:
            return None
        try:
            found = np.array([float(part) for part in text.split("\\")])
        except ValueError:
            found = np.array([])
        if len(found) != count or not np.isfinite(found).all():
            raise ValueError(
                f"{self.path} must have {count} numbers in its tag {_dictionary_name(tag)}, it may be "
                f"damaged: got {text[:60]!r}."
            )
        return found

    def number(self, tag: int, default: float) -> float:
        """Return one number that is stated as text."""
        found = self.numbers(tag, 1)
        return default if found is None else float(found[0])

    def rank(self, tag: int) -> float:
        """Return a number that sections are put in order by, of either kind; -1 if there is none."""
        value = self.values.get(tag, b"")
        if tag == FRAME_TIME and len(value) == 4:
            return float(np.frombuffer(value, f"{self.byte_order}u4")[0])
        text = self.text(tag)
        return float(text) if text.isdecimal() else -1.0

    def whole(self, tag: int, default: int | None = None) -> int:
        """Return a binary number of two bytes."""
        value = self.values.get(tag, b"")
        if len(value) != 2:
            if not value and default is not None:
                return default
            raise ValueError(
                f"{self.path} must have one number in its tag {_dictionary_name(tag)}, got {value[:20]!r}."
            )
        return int(np.frombuffer(value, f"{self.byte_order}u2")[0])


def _dictionary_name(tag: int) -> str:
    return f"{tag >> 16:04x}|{tag & 0xFFFF:04x}"


def _format(path: Path, read: _Values) -> PixelFormat:
    allocated, stored = read.whole(BITS[0]), read.whole(BITS[1])
    high, signed = read.whole(BITS[2], stored - 1), read.whole(BITS[3])
    if allocated not in (8, 16, 32) or not 1 <= stored == high + 1 <= allocated or signed > 1:
        raise ValueError(
            f"{path} must have pixels of 8, 16 or 32 bits, of which the lowest are stored, got "
            f"{allocated}, {stored} and {high} (tags {', '.join(map(_dictionary_name, BITS[:3]))})."
        )
    slope, intercept = read.number(SLOPE, 1.0), read.number(INTERCEPT, 0.0)
    for tag, value in ((SLOPE, slope), (INTERCEPT, intercept)):
        if abs(value) > MAX_RESCALE or (tag == SLOPE and value == 0):
            raise ValueError(f"{path} is damaged: its tag {_dictionary_name(tag)} is {read.text(tag)}.")
    rescaled = (bool(read.text(SLOPE)), bool(read.text(INTERCEPT)))
    return PixelFormat(allocated, stored, bool(signed), slope, intercept, rescaled)


def _checked_axes(path: Path, axes: NDArray[np.float64]) -> NDArray[np.float64]:
    row, column = axes
    if not np.allclose([row @ row, column @ column, row @ column], [1, 1, 0], atol=0.01):
        raise ValueError(f"{path} must have directions at a right angle, got {row}, {column}.")
    return axes


def _checked_spacing(path: Path, spacing: NDArray[np.float64]) -> tuple[float, float]:
    if spacing.min() <= 0:
        raise ValueError(f"{path} must have a spacing of pixels above 0, got {spacing.tolist()}.")
    return float(spacing[1]), float(spacing[0])


def _check_length(first: Slice, frames: int) -> None:
    """Raise if pixels that are not compressed are fewer than rows, columns and bits say."""
    if min(first.size) < 2:
        raise ValueError(f"{first.path} must have two rows and columns or more, got {first.size}.")
    claimed = voxels_of((*first.size, first.samples, frames)) * first.format.allocated // 8
    if first.pixels.length is not None:
        check_claim(first.path, claimed, first.pixels.length)
