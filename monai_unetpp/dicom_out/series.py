# SPDX-License-Identifier: Apache-2.0
"""The images that a label map was made from, in the order of its slices, and what is copied from them.

The geometry is that of :mod:`monai_unetpp.readers.dicom`, which proved the volume. A header adds UIDs and
what identifies patient and study: the elements that the standard requires of every object (types 1 and 2),
so that an archive files the result beside its scan. No other element is read: none is copied by mistake.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from monai_unetpp.extras import require
from monai_unetpp.readers.checks import lps_to_ras
from monai_unetpp.readers.dicom import folder_of
from monai_unetpp.readers.dicom.headers import read_slices
from monai_unetpp.readers.dicom.slices import Slice

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = [
    "IDENTITY",
    "LOSSY",
    "MANUFACTURER",
    "MODEL",
    "SERIES_NUMBER",
    "Algorithm",
    "Plane",
    "Series",
    "as_text",
    "identify",
    "new_uid",
    "read_series",
    "require_packages",
]

logger = logging.getLogger(__name__)

# modules Patient and General Study: type 1 is the study's UID, the others are of type 2 and may be empty
IDENTITY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"),
)
REQUIRED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
# what is made of pixels that were compressed with loss says so ever after
LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
READ = (
    *(*IDENTITY, *REQUIRED, *LOSSY),
    *("FrameOfReferenceUID", "PositionReferenceIndicator", "SpecificCharacterSet"),
)
MAX_CHARACTERS = 16  # of a number that is stated as text (DS)
UTF_8 = "ISO_IR 192"
SERIES_NUMBER = 300  # of results: viewers list series by number, after those of a scanner
MANUFACTURER, MODEL = "monai-unetpp contributors", "monai-unetpp"


@dataclass(frozen=True)
class Algorithm:
    """What made a label map, as the result states it.

    Args:
        name: Name of the algorithm, such as ``"monai-unetpp liver"``; 64 characters at most, as the others.
        version: Version, level, precision and weights.
        software: Version of this package.
        serial: Identifies the weights.
        description: What a later run compares, see :mod:`monai_unetpp.segment.provenance`.
    """

    name: str
    version: str
    software: str
    serial: str
    description: str = ""


@dataclass(frozen=True)
class Plane:
    """One slice of the label map.

    Args:
        sop_class: SOP class UID of the image.
        instance: SOP instance UID of the image.
        frame: Number of the frame, from 1; ``None`` for an image that has one alone.
        position: Centre of the first pixel, mm (LPS+), (3,).
    """

    sop_class: str
    instance: str
    frame: int | None
    position: NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """The images of a volume.

    Args:
        folder: Path of the series.
        planes: One per slice, in the order of the last axis of the volume.
        size: Columns and rows.
        axes: Directions of a row and of a column (LPS+), (2, 3).
        spacing: Between columns and between rows, mm.
        gap: Between slices, along their normal, mm; the thickness if there is one slice.
        thickness: Thickness of a slice, mm.
        modality: Such as ``"CT"``.
        header: Elements of the first slice: :data:`IDENTITY`, the UIDs, the frame of reference.
        frames: Places of all frames of the file, mm (n, 3), if the series is one file of several frames.
        warnings: What is odd about the headers, each a sentence.
    """

    folder: Path
    planes: tuple[Plane, ...]
    size: tuple[int, int]
    axes: NDArray[np.float64]
    spacing: tuple[float, float]
    gap: float
    thickness: float
    modality: str
    header: Dataset
    frames: NDArray[np.float64] | None
    warnings: tuple[str, ...] = ()

    def check_places(self, affine: NDArray[np.float64]) -> None:
        """Raise a ValueError unless an affine to mm (RAS+), (4, 4), puts slices where they lie."""
        affine = affine.astype(float)
        matrix = lps_to_ras(affine[:3, :3], affine[:3, 3])  # RAS+ to LPS+ likewise
        wanted = matrix[:3, 3] + np.arange(len(self.planes))[:, None] * matrix[:3, 2]
        apart = np.linalg.norm([plane.position for plane in self.planes] - wanted, axis=1)
        if apart.max() > np.linalg.norm(matrix[:3, 2]) / 2:
            raise ValueError(
                f"{self.folder} must hold the images of the mask: its slice {int(apart.argmax())} lies "
                f"{apart.max():.2f} mm away from its image."
            )


def require_packages() -> None:
    """Raise a ModuleNotFoundError that names the extra if pydicom or highdicom is not installed."""
    require("dicom", "pydicom", "highdicom")


def read_series(folder: Path | str, sections: str | Sequence[tuple[str, int]]) -> Series:
    """Read the headers of the images of a volume.

    Args:
        folder: Path of the series: a folder, or the name of one of several in it.
        sections: Name of the file and number of the frame, from 0, of each slice of the volume, in its order,
            as JSON or as a sequence: what a volume's ``meta["sections"]`` says.

    Raises:
        ModuleNotFoundError: if pydicom is not installed.
        ValueError: if a header lacks a UID, two slices have one UID, or the slices are not of one study,
            series and frame of reference.
    """
    require("dicom", "pydicom")
    folder = folder_of(folder)
    pairs = json.loads(sections) if isinstance(sections, str) else sections
    slices = [read_slices(folder / name)[1][int(frame)] for name, frame in pairs]
    _check_uids(folder, slices)
    first = _header(slices[0].path)
    planes = tuple(map(_plane, slices))
    _check_unique(folder, planes, slices)
    warnings_: tuple[str, ...] = ()
    if not first.get("FrameOfReferenceUID"):
        from pydicom.uid import generate_uid

        first.FrameOfReferenceUID = generate_uid(prefix=None, entropy_srcs=[str(first.SeriesInstanceUID)])
        warnings_ = (f"{folder} has no FrameOfReferenceUID: its DICOM results state one of their own.",)
    axes, spacing = slices[0].axes, slices[0].spacing
    assert axes is not None
    assert spacing is not None
    gap, thickness = _gap(planes, axes), slices[0].thickness or 0.0
    whole = slices[0].frames > 1
    places = np.array([s.position for s in read_slices(slices[0].path)[1]]) if whole else None
    return Series(
        folder=folder,
        planes=planes,
        size=slices[0].size,
        axes=axes,
        spacing=spacing,
        gap=gap or thickness or 1.0,
        thickness=thickness if thickness > 0 else gap or 1.0,
        modality=slices[0].modality,
        header=first,
        frames=places,
        warnings=warnings_,
    )


def identify(dataset: Dataset, series: Series) -> None:
    """Write what identifies patient, study and frame of reference; empty where the source does not say.

    Text is written as UTF-8 if it is not plain ASCII, whatever the source used.
    """
    from pydicom.datadict import dictionary_VR, tag_for_keyword
    from pydicom.dataelem import DataElement

    for name in (*IDENTITY, "FrameOfReferenceUID", "PositionReferenceIndicator"):
        tag = tag_for_keyword(name)
        assert tag is not None
        value = series.header.get(name)
        value = "" if value is None else str(value)
        # a value that is not as the standard wants it stays as it is: the archive knows the patient by it
        dataset[tag] = DataElement(tag, dictionary_VR(tag), value, validation_mode=0)
    dataset.pop("SpecificCharacterSet", None)
    if not all(str(element.value).isascii() for element in dataset.iterall() if element.VR != "SQ"):
        dataset.SpecificCharacterSet = UTF_8


def new_uid() -> str:
    """Return a UID of a random number (2.25): nothing of the scan or of this machine is in it."""
    from pydicom.uid import generate_uid

    return str(generate_uid(prefix=None))


def as_text(number: float) -> str:
    """Return a number as DICOM states it: at most 16 characters, with 12 digits where they fit.

    Example:
        >>> as_text(-123.45678901234567), as_text(0.7), as_text(1e-17)
        ('-123.456789012', '0.7', '0')
    """
    text = f"{number:.12g}" if abs(number) >= 1e-9 else "0"
    digits = 12
    while len(text) > MAX_CHARACTERS:
        digits -= 1
        text = f"{number:.{digits}g}"
    return text


def _header(path: Path) -> Dataset:
    import pydicom

    with warnings.catch_warnings():
        # values that are not as the standard wants them are copied as they are
        warnings.simplefilter("ignore")
        found = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=list(READ))
        for name in READ:
            found.get(name)  # decoded here, without the warnings
    return found


def _check_uids(folder: Path, slices: Sequence[Slice]) -> None:
    """Raise if an image has no UID to refer to, or they are not all of one study and frame of reference."""
    first = slices[0]
    for each in slices:
        origin = each.origin
        stated = zip(REQUIRED, (origin.sop_class, each.instance, origin.study, origin.series), strict=True)
        missing = [name for name, uid in stated if not uid]
        if missing:
            raise ValueError(
                f"{each.path} has no {missing[0]}, which a DICOM SEG or RTSTRUCT must refer to: repair the "
                "series, or leave the DICOM formats out (--format nifti)."
            )
        for name, uid, wanted in (
            ("StudyInstanceUID", origin.study, first.origin.study),
            ("SeriesInstanceUID", origin.series, first.origin.series),
            ("FrameOfReferenceUID", origin.frame_of_reference, first.origin.frame_of_reference),
        ):
            if uid != wanted:
                raise ValueError(
                    f"{folder} must hold images of one {name} for DICOM results: {each.path.name} has "
                    f"{uid or 'none'}, {first.path.name} has {wanted or 'none'}."
                )


def _plane(section: Slice) -> Plane:
    assert section.position is not None
    frame = section.frame + 1 if section.frames > 1 else None
    return Plane(section.origin.sop_class, section.instance, frame, section.position)


def _check_unique(folder: Path, planes: Sequence[Plane], slices: Sequence[Slice]) -> None:
    seen: dict[tuple[str, int | None], Slice] = {}
    for plane, section in zip(planes, slices, strict=True):
        before = seen.setdefault((plane.instance, plane.frame), section)
        if before is not section:
            raise ValueError(
                f"{folder} must hold images of different SOPInstanceUID for DICOM results: "
                f"{before.path.name} and {section.path.name} have the same, {plane.instance}."
            )


def _gap(planes: Sequence[Plane], axes: NDArray[np.float64]) -> float:
    """Return the distance of slices along their normal, mm; 0 if there is one slice."""
    if len(planes) < 2:
        return 0.0
    between = (planes[-1].position - planes[0].position) @ np.cross(*axes)
    return float(abs(between)) / (len(planes) - 1)
