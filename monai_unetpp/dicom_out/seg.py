# SPDX-License-Identifier: Apache-2.0
"""DICOM Segmentation, by highdicom.

highdicom is given no header of the source: it would copy whatever the modules Patient and Study hold. It is
given images made of UIDs and geometry alone; what identifies the patient is written by :func:`identify`.
Each frame lies where its own image lies, so that tilted, oblique and reversed series keep their geometry.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from monai_unetpp.dicom_out.segments import Code, Segment, check_labels, plain_text
from monai_unetpp.dicom_out.series import (
    IDENTITY,
    LOSSY,
    MANUFACTURER,
    MODEL,
    SERIES_NUMBER,
    Algorithm,
    Plane,
    Series,
    as_text,
    identify,
    new_uid,
)
from monai_unetpp.extras import require
from monai_unetpp.files import PathLike, atomic_write, save_by_memory

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["SEG_TYPES", "write_seg"]

SEG_TYPES = ("binary", "labelmap")


def write_seg(
    path: PathLike,
    labels: NDArray[np.uint8],
    series: Series,
    segments: Sequence[Segment],
    algorithm: Algorithm,
    seg_type: str = "binary",
    empty_frames: bool = False,
) -> None:
    """Write a label map as DICOM SEG, atomically.

    Where nothing was found, every segment is described nevertheless, and all frames are written, empty: the
    standard has no image without frames.

    Args:
        path: Path of the file.
        labels: Label map (X, Y, Z), on the grid of the series: columns, rows, slices.
        series: Images that the label map was made from.
        segments: What its values stand for, one at least.
        algorithm: What made it.
        seg_type: ``"binary"``, a bit per pixel and segment, which every reader knows; or ``"labelmap"``, a
            byte per pixel for all of them, Label Map Segmentation Storage, which is newer.
        empty_frames: Whether frames without a pixel of the segment are written as well.

    Raises:
        ModuleNotFoundError: if highdicom is not installed.
        OSError: if the disk is full.
        ValueError: if ``seg_type`` is unknown, segments overlap in a label map, the shapes differ, a
            value has no segment, or the series is made of several files of several frames.
    """
    require("dicom", "highdicom")
    import highdicom as hd

    if seg_type not in SEG_TYPES:
        raise ValueError(f"seg_type must be {' or '.join(SEG_TYPES)}, got {seg_type!r}.")
    overlap = len({v for each in segments for v in each.values}) < sum(len(each.values) for each in segments)
    if seg_type == "labelmap" and overlap:
        raise ValueError("seg_type must be binary for regions that overlap, got labelmap.")
    check_labels(labels, segments, *series.size, len(series.planes))
    frames, images = labels.transpose(2, 1, 0), _images(series)
    if series.frames is not None:  # in the order of the file
        frames = frames[np.argsort([plane.frame or 0 for plane in series.planes])]
    found = hd.seg.Segmentation(
        source_images=images,
        pixel_array=_pixels(frames, segments, overlap),
        segmentation_type=seg_type.upper(),
        segment_descriptions=[_description(n, each, algorithm) for n, each in enumerate(segments, 1)],
        series_instance_uid=new_uid(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=new_uid(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL,
        software_versions=algorithm.software,
        device_serial_number=algorithm.serial,
        content_label="SEGMENTATION",
        content_description=plain_text(algorithm.description) or None,
        series_description=plain_text(f"Segmentation by {algorithm.name}"),
        pixel_measures=_measures(series),
        omit_empty_frames=not empty_frames,
    )
    found.BurnedInAnnotation, found.ContentCreatorName = "NO", ""
    identify(found, series)
    with atomic_write(path) as part:
        # pydicom hides a full disk in an error of its own
        save_by_memory(part, lambda buffer: found.save_as(buffer, enforce_file_format=True))


def _pixels(frames: NDArray[np.uint8], segments: Sequence[Segment], overlap: bool) -> NDArray[np.uint8]:
    """Return frames (Z, Y, X) with numbers of segments; or (Z, Y, X, S), 0 and 1, if segments overlap."""
    if overlap:
        return np.stack([np.isin(frames, each.values) for each in segments], axis=-1).astype(np.uint8)
    table = np.zeros(256, np.uint8)
    for n, each in enumerate(segments, 1):
        table[list(each.values)] = n
    return np.asarray(table[frames])


def _images(series: Series) -> list[Dataset]:
    """Return the images of a series as highdicom takes them: UIDs and geometry."""
    if series.frames is None:
        return [_image(series, plane) for plane in series.planes]
    if len({plane.instance for plane in series.planes}) > 1 or len(series.planes) != len(series.frames):
        raise ValueError(
            f"{series.folder} must be one file, all of whose frames are the volume, or files of one frame "
            "each, for format dicom-seg: leave it out."
        )
    return [_enhanced(series)]


def _common(series: Series, plane: Plane) -> Dataset:
    from pydicom import Dataset

    image = Dataset()
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(image, name, str(series.header[name].value))
    for name in IDENTITY:
        if name != "StudyInstanceUID":
            setattr(image, name, "")
    for name in LOSSY:
        if name in series.header:
            setattr(image, name, series.header[name].value)
    image.SOPClassUID, image.SOPInstanceUID = plane.sop_class, plane.instance
    image.Modality = series.modality
    image.Columns, image.Rows = series.size
    return image


def _image(series: Series, plane: Plane) -> Dataset:
    image = _common(series, plane)
    image.ImagePositionPatient = [as_text(n) for n in plane.position]
    image.ImageOrientationPatient = [as_text(n) for n in series.axes.ravel()]
    image.PixelSpacing = [as_text(n) for n in series.spacing[::-1]]
    image.SliceThickness, image.SpacingBetweenSlices = as_text(series.thickness), as_text(series.gap)
    return image


def _enhanced(series: Series) -> Dataset:
    """Return an image of several frames, each with its place."""
    from pydicom import Dataset

    assert series.frames is not None
    image = _common(series, series.planes[0])
    image.NumberOfFrames = len(series.frames)
    shared, orientation = Dataset(), Dataset()
    orientation.ImageOrientationPatient = [as_text(n) for n in series.axes.ravel()]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], _measures(series)
    image.SharedFunctionalGroupsSequence = [shared]
    image.PerFrameFunctionalGroupsSequence = []
    for place in series.frames:
        group, position = Dataset(), Dataset()
        position.ImagePositionPatient = [as_text(n) for n in place]
        group.PlanePositionSequence = [position]
        image.PerFrameFunctionalGroupsSequence.append(group)
    return image


def _measures(series: Series) -> Any:
    import highdicom as hd

    return hd.PixelMeasuresSequence(
        pixel_spacing=[float(as_text(n)) for n in series.spacing[::-1]],
        slice_thickness=float(as_text(series.thickness)),
        spacing_between_slices=float(as_text(series.gap)),
    )


def _description(number: int, segment: Segment, algorithm: Algorithm) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    kind = hd.AlgorithmIdentificationSequence(
        name=plain_text(algorithm.name),
        family=codes.DCM.ArtificialIntelligence,
        version=plain_text(algorithm.version),
    )
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=segment.name,
        segmented_property_category=_coded(segment.category),
        segmented_property_type=_coded(segment.type),
        algorithm_type="AUTOMATIC",
        algorithm_identification=kind,
        tracking_uid=new_uid(),
        tracking_id=segment.name,
        anatomic_regions=None if segment.region is None else [_coded(segment.region)],
        display_color=hd.color.CIELabColor.from_rgb(*segment.colour),
    )


def _coded(code: Code) -> Any:
    import highdicom as hd

    return hd.sr.CodedConcept(*code)
