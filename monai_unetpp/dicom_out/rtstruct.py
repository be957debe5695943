# SPDX-License-Identifier: Apache-2.0
"""RT Structure Set, by pydicom.

Why not rt-utils: its outlines run through the centres of the outermost pixels, so that a structure loses half
a pixel on every side; it reads the whole folder and orders it itself; it copies what it finds of the patient,
and stops at a series without a StudyID. Here every outline is put into space by the position of its own
image, which is right for tilted, oblique and reversed series, and no other image is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from monai_unetpp.dicom_out.outlines import find_outlines
from monai_unetpp.dicom_out.segments import Code, Segment, check_labels, plain_text
from monai_unetpp.dicom_out.series import (
    MANUFACTURER,
    MODEL,
    SERIES_NUMBER,
    Algorithm,
    Plane,
    Series,
    identify,
    new_uid,
)
from monai_unetpp.extras import require
from monai_unetpp.files import PathLike, atomic_write, save_by_memory

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["write_rtstruct"]

RT_STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management, as the standard has it
DIGITS = 4  # of a coordinate, after the point, mm


def write_rtstruct(
    path: PathLike,
    labels: NDArray[np.uint8],
    series: Series,
    segments: Sequence[Segment],
    algorithm: Algorithm,
) -> None:
    """Write the outlines of a label map as DICOM RTSTRUCT, atomically.

    Outlines follow the edges of pixels: filling them gives the label map back, voxel by voxel. A segment of
    which nothing was found is a structure without outlines.

    Args:
        path: Path of the file.
        labels: Label map (X, Y, Z), on the grid of the series: columns, rows, slices.
        series: Images that the label map was made from.
        segments: What its values stand for.
        algorithm: What made it.

    Raises:
        ModuleNotFoundError: if pydicom is not installed.
        OSError: if the disk is full.
        ValueError: if the shapes differ, or a value has no segment.
    """
    require("dicom", "pydicom")
    from pydicom import Dataset

    check_labels(labels, segments, *series.size, len(series.planes))
    found, date, time = Dataset(), *datetime.now().strftime("%Y%m%d %H%M%S").split()
    found.SOPClassUID, found.SOPInstanceUID = RT_STRUCTURE_SET, new_uid()
    found.InstanceCreationDate, found.InstanceCreationTime = date, time
    found.Modality, found.SeriesInstanceUID = "RTSTRUCT", new_uid()
    found.SeriesNumber, found.InstanceNumber = SERIES_NUMBER + 1, 1
    found.SeriesDescription = plain_text(f"Structures by {algorithm.name}")
    found.OperatorsName = ""
    found.Manufacturer, found.ManufacturerModelName = MANUFACTURER, MODEL
    found.SoftwareVersions, found.DeviceSerialNumber = algorithm.software, algorithm.serial
    found.StructureSetLabel = "monai-unetpp"
    found.StructureSetDescription = plain_text(algorithm.description) or "monai-unetpp"
    found.StructureSetDate, found.StructureSetTime = date, time
    found.ApprovalStatus = "UNAPPROVED"
    found.ReferencedFrameOfReferenceSequence = [_frame_of_reference(series)]
    numbered = [*enumerate(segments, 1)]
    found.StructureSetROISequence = [_roi(n, each, series, algorithm) for n, each in numbered]
    found.ROIContourSequence = [_contours(n, each, labels, series) for n, each in numbered]
    found.RTROIObservationsSequence = [_observation(n, each) for n, each in numbered]
    identify(found, series)
    _save(path, found)


def _save(path: PathLike, found: Dataset) -> None:
    """Write a file whose elements do not state their kind: an outline may be longer than 64 KiB."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ImplicitVRLittleEndian

    found.file_meta = FileMetaDataset()
    found.file_meta.MediaStorageSOPClassUID = found.SOPClassUID
    found.file_meta.MediaStorageSOPInstanceUID = found.SOPInstanceUID
    found.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    with atomic_write(path) as part:
        # pydicom hides a full disk in an error of its own
        save_by_memory(part, lambda buffer: found.save_as(buffer, enforce_file_format=True))


def _frame_of_reference(series: Series) -> Dataset:
    from pydicom import Dataset

    frame, study, of = Dataset(), Dataset(), Dataset()
    of.SeriesInstanceUID = str(series.header.SeriesInstanceUID)
    of.ContourImageSequence = [_reference(plane) for plane in series.planes]
    study.ReferencedSOPClassUID = STUDY_CLASS
    study.ReferencedSOPInstanceUID = str(series.header.StudyInstanceUID)
    study.RTReferencedSeriesSequence = [of]
    frame.FrameOfReferenceUID = str(series.header.FrameOfReferenceUID)
    frame.RTReferencedStudySequence = [study]
    return frame


def _reference(plane: Plane) -> Dataset:
    from pydicom import Dataset

    found = Dataset()
    found.ReferencedSOPClassUID, found.ReferencedSOPInstanceUID = plane.sop_class, plane.instance
    if plane.frame is not None:
        found.ReferencedFrameNumber = plane.frame
    return found


def _roi(number: int, segment: Segment, series: Series, algorithm: Algorithm) -> Dataset:
    from pydicom import Dataset

    roi = Dataset()
    roi.ROINumber, roi.ROIName = number, segment.name
    roi.ReferencedFrameOfReferenceUID = str(series.header.FrameOfReferenceUID)
    roi.ROIGenerationAlgorithm = "AUTOMATIC"
    roi.ROIGenerationDescription = plain_text(f"{algorithm.name} {algorithm.version}")
    return roi


def _contours(number: int, segment: Segment, labels: NDArray[np.uint8], series: Series) -> Dataset:
    from pydicom import Dataset

    item = Dataset()
    item.ReferencedROINumber, item.ROIDisplayColor = number, list(segment.colour)
    table = np.zeros(256, bool)
    table[list(segment.values)] = True
    outlines = list(_outlines(table[labels], series))
    if outlines:  # a sequence without items would not be allowed
        item.ContourSequence = []
    for n, (plane, points) in enumerate(outlines, 1):
        contour = Dataset()
        contour.ContourImageSequence = [_reference(plane)]
        contour.ContourGeometricType = "CLOSED_PLANAR"
        contour.NumberOfContourPoints, contour.ContourNumber = len(points), n
        contour.ContourData = [f"{value + 0.0:.{DIGITS}f}" for value in points.ravel()]
        item.ContourSequence.append(contour)
    return item


def _outlines(mask: NDArray[np.bool_], series: Series) -> Iterator[tuple[Plane, NDArray[np.float64]]]:
    """Yield the outlines of a mask (X, Y, Z), slice by slice, as points in mm (LPS+), (n, 3)."""
    steps = series.axes * np.array(series.spacing)[:, None]  # along a row and along a column, mm
    for z, plane in enumerate(series.planes):
        if mask[..., z].any():
            for outline in find_outlines(mask[..., z].T):
                yield plane, np.round(plane.position + outline @ steps, DIGITS)


def _observation(number: int, segment: Segment) -> Dataset:
    from pydicom import Dataset

    item = Dataset()
    item.ObservationNumber = item.ReferencedROINumber = number
    item.RTROIInterpretedType, item.ROIInterpreter = "", ""
    identification = _code(segment.type)
    item.RTROIIdentificationCodeSequence = [identification]
    return item


def _code(code: Code) -> Dataset:
    from pydicom import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code
    return item
