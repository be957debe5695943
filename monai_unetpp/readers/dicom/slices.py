# SPDX-License-Identifier: Apache-2.0
"""One section of a patient, as a file or a frame of an enhanced file states it: numbers, not text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from monai_unetpp.readers.dicom.elements import Pixels

__all__ = ["Origin", "PixelFormat", "Slice"]


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
class Origin:
    """Where a file comes from: what all files of a series have in common, as a rule.

    Args:
        series: Series UID.
        study: Study UID.
        frame_of_reference: UID of the frame of reference.
        number: Number of the series, if it is stated.
        description: What a person or a protocol calls the series.
        modality: Such as ``"CT"``.
        sop_class: SOP class UID.
        unit: Of the values, such as ``"HU"``, if it is stated.
    """

    series: str
    study: str
    frame_of_reference: str
    number: int | None
    description: str
    modality: str
    sop_class: str
    unit: str


@dataclass(frozen=True)
class Slice:
    """One section: which, where, and how its pixels are stored.

    Args:
        path: Path of the file.
        frame: Its number in the file, from 0.
        origin: Which series it is of.
        instance: SOP instance UID.
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
        contrast: Values of :data:`CONTRAST`, ``None`` where they are not stated.
        parts: Values of what else tells images at one place apart, likewise.
    """

    path: Path
    frame: int
    origin: Origin
    instance: str
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
    contrast: tuple[str | float | None, ...]
    parts: tuple[str | float | None, ...]

    @property
    def series(self) -> str:
        """Series UID."""
        return self.origin.series

    @property
    def modality(self) -> str:
        """Such as ``"CT"``."""
        return self.origin.modality

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
