# SPDX-License-Identifier: Apache-2.0
"""From the elements of a file to its sections; a header is parsed once in a process."""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_unetpp.readers.checks import check_claim, voxels_of
from monai_unetpp.readers.dicom.elements import (
    FRAME_GROUPS,
    SHARED_GROUPS,
    DamagedElementsError,
    DicomFile,
    parse,
)
from monai_unetpp.readers.dicom.slices import Origin, PixelFormat, Slice
from monai_unetpp.readers.dicom.values import Values, tag_name

__all__ = ["CONTRAST", "NO_PIXELS", "DamagedSliceError", "read_slices"]

IMAGE_TYPE, FRAME_TYPE, MODALITY, SERIES = 0x00080008, 0x00089007, 0x00080060, 0x0020000E
INSTANCE, STUDY, FRAME_OF_REFERENCE = 0x00080018, 0x0020000D, 0x00200052
DESCRIPTION, SERIES_NUMBER, UNIT = 0x0008103E, 0x00200011, 0x00281054
FRAME_TIME = 0x00209128
# images that differ in one of these are no slices of one volume
CONTRAST = {
    "convolution kernel": (0x00181210,),
    "tube voltage": (0x00180060,),
    "echo time": (0x00180081, 0x00189082),
    "diffusion b-value": (0x00189087,),
    "position in time": (0x00200100, FRAME_TIME),
    "cardiac phase": (0x00209241,),
}
# further ones tell images at one place apart: image type, echo, stack, thickness, acquisition and its time
PARTS = (
    *((0x00080008, 0x00089007), (0x00180086,), (0x00209056,), (0x00180050,), (0x00200012, 0x00209156)),
    *((0x00181060,), (0x00080032,)),
)
BINARY = (0x00189082, 0x00189087, FRAME_TIME, 0x00209156, 0x00209241)  # numbers that are not text
TIMES = (0x00200100, FRAME_TIME, 0x00200012, 0x00200013)  # position in time, acquisition, number
POSITION, ORIENTATION, PIXEL_SPACING = 0x00200032, 0x00200037, 0x00280030
THICKNESS = 0x00180050
SAMPLES, FRAMES, ROWS, COLUMNS = 0x00280002, 0x00280008, 0x00280010, 0x00280011
BITS = (0x00280100, 0x00280101, 0x00280102, 0x00280103)  # allocated, stored, highest, whether signed
INTERCEPT, SLOPE, LOOKUP_TABLE = 0x00281052, 0x00281053, 0x00283000
# of a frame: its type, content, place, direction, pixel spacing, slope and intercept; what its contrast is of
GROUPS = (
    *(0x00189329, 0x00209111, 0x00209113, 0x00209116, 0x00289110, 0x00289145),
    *(0x00189314, 0x00189325, 0x00189114, 0x00189117, 0x00189118, 0x00189226),
)
SOP_CLASS, STATED_CLASS = 0x00080016, 0x00020002  # in the data set, and before it
NO_PIXELS = "it states an image and holds no pixels"
MAX_RESCALE = 1e6  # of a slope or an intercept
MAX_HEADERS = 2**15  # that are kept, of about 2 KiB each
SETTLED_S = 2.0  # age of a file whose header is kept


class DamagedSliceError(ValueError):
    """A file that cannot be read, with what is known of where it comes from."""

    def __init__(self, message: str, origin: Origin) -> None:
        super().__init__(message)
        self.origin = origin


@dataclass(frozen=True)
class _Stamp:
    """What changes when a file does."""

    size: int
    modified: int
    inode: int


@dataclass(frozen=True)
class _Found:
    """What a file holds: sections of a class, or damage."""

    sop_class: str = ""
    sections: tuple[Slice, ...] = ()
    damage: str = ""
    origin: Origin | None = None


def read_slices(path: Path) -> tuple[str, tuple[Slice, ...]]:
    """Return the class of a file (SOP class UID) and its sections: one, those of an enhanced file, or none.

    A header is parsed once in a process, unless its file changes.

    Raises:
        DamagedSliceError: if it is truncated or damaged, or stored in a way that is not read; it names the
            file.
        ValueError: if it is damaged before it says what it is.
    """
    stat = path.stat()
    stamp = _Stamp(stat.st_size, stat.st_mtime_ns, stat.st_ino)
    # a file that was written just now may change again within the resolution of its time
    settled = time.time() - stat.st_mtime > SETTLED_S
    found = (_read_once if settled else _read_once.__wrapped__)(str(path), stamp)
    if found.origin is not None:
        raise DamagedSliceError(found.damage, found.origin)
    if found.damage:
        raise ValueError(found.damage)
    return found.sop_class, found.sections


@lru_cache(maxsize=MAX_HEADERS)
def _read_once(name: str, _: _Stamp) -> _Found:
    path = Path(name)
    values: dict[int, Any] = {}
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            dataset = parse(content)
            values = dataset.values
            sop_class = _origin(Values(path, values)).sop_class
            if dataset.pixels is not None:
                return _Found(sop_class, tuple(_slices(path, dataset)))
            if values.keys() & {ROWS, COLUMNS}:
                raise ValueError(NO_PIXELS)
            return _Found(sop_class)
    except ValueError as error:
        text = str(error)
        text = text if name in text else f"{path} is truncated or damaged: {text}."
        values = error.values if isinstance(error, DamagedElementsError) else values
        return _Found(damage=text, origin=_origin(Values(path, values)) if values else None)


def _slices(path: Path, dataset: DicomFile) -> Iterator[Slice]:
    top = Values(path, dataset.values, dataset.byte_order)
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
    read = Values(path, values, dataset.byte_order)
    assert dataset.pixels is not None
    if LOOKUP_TABLE in values:
        raise ValueError(f"{path} has a lookup table for its values, which is not read; convert it.")
    spacing, position = read.numbers(PIXEL_SPACING, 2), read.numbers(POSITION, 3)
    axes = read.numbers(ORIENTATION, 6)
    thickness = read.text(THICKNESS)
    return Slice(
        path=path,
        frame=frame,
        origin=_origin(read),
        instance=read.text(INSTANCE),
        kind=tuple(
            word.strip().upper() for tag in (IMAGE_TYPE, FRAME_TYPE) for word in read.text(tag).split("\\")
        ),
        moment=tuple(read.rank(tag, tag in BINARY) for tag in TIMES),
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
        contrast=tuple(_trait(read, tags) for tags in CONTRAST.values()),
        parts=tuple(_trait(read, tags) for tags in PARTS),
    )


def _trait(read: Values, tags: Sequence[int]) -> str | float | None:
    return next((value for tag in tags if (value := read.trait(tag, tag in BINARY)) is not None), None)


def _origin(read: Values) -> Origin:
    number = read.text(SERIES_NUMBER)
    return _shared(
        Origin(
            series=read.text(SERIES),
            study=read.text(STUDY),
            frame_of_reference=read.text(FRAME_OF_REFERENCE),
            number=int(number) if number.isdecimal() and len(number) < 10 else None,
            description=read.words(DESCRIPTION),
            modality=read.text(MODALITY).upper(),
            sop_class=read.text(SOP_CLASS) or read.text(STATED_CLASS),
            unit=read.text(UNIT).upper(),
        )
    )


@lru_cache(maxsize=1024)
def _shared(origin: Origin) -> Origin:
    """One object for all files of a series."""
    return origin


def _format(path: Path, read: Values) -> PixelFormat:
    allocated, stored = read.whole(BITS[0]), read.whole(BITS[1])
    high, signed = read.whole(BITS[2], stored - 1), read.whole(BITS[3])
    if allocated not in (8, 16, 32) or not 1 <= stored == high + 1 <= allocated or signed > 1:
        raise ValueError(
            f"{path} must have pixels of 8, 16 or 32 bits, of which the lowest are stored, got "
            f"{allocated}, {stored} and {high} (tags {', '.join(map(tag_name, BITS[:3]))})."
        )
    slope, intercept = read.number(SLOPE, 1.0), read.number(INTERCEPT, 0.0)
    for tag, value in ((SLOPE, slope), (INTERCEPT, intercept)):
        if abs(value) > MAX_RESCALE or (tag == SLOPE and value == 0):
            raise ValueError(f"{path} is damaged: its tag {tag_name(tag)} is {read.text(tag)}.")
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
    if (
        first.pixels.length is not None and first.samples == 1
    ):  # of colours, some may be stored for two pixels
        check_claim(first.path, claimed, first.pixels.length)
