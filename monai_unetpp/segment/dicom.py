# SPDX-License-Identifier: Apache-2.0
"""DICOM results of a run: which are asked for, from which scans, and what makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from monai_unetpp.dicom_out import (
    SEG_TYPES,
    Algorithm,
    Segment,
    Series,
    find_segments,
    read_series,
    require_packages,
    write_rtstruct,
    write_seg,
)
from monai_unetpp.readers import is_dicom
from monai_unetpp.segment.pipeline import Pipeline
from monai_unetpp.segment.provenance import check_provenance, describe
from monai_unetpp.transforms import SaveImageAtomicd

Change = Callable[[dict[str, Any]], dict[str, Any]]

__all__ = ["DICOM_FORMATS", "FORMATS", "DicomResults", "check_formats", "split_at_saving"]

DICOM_FORMATS = ("dicom-seg", "dicom-rtstruct")
FORMATS = ("nifti", *DICOM_FORMATS)
SECTIONS = "sections"  # of the meta of a loaded series


def check_formats(formats: Sequence[str], seg_type: str) -> list[str]:
    """Return the DICOM formats among those that are asked for.

    Raises:
        ModuleNotFoundError: if highdicom or pydicom is not installed and a DICOM format is asked for.
        ValueError: if a format or ``seg_type`` is unknown, or there is none.
    """
    unknown = [each for each in formats if each not in FORMATS]
    if unknown or not formats or isinstance(formats, str):
        got = repr(formats) if isinstance(formats, str) or not formats else ", ".join(unknown)
        raise ValueError(f"formats (--format) must be some of {', '.join(FORMATS)}, got {got}.")
    if seg_type not in SEG_TYPES:
        raise ValueError(f"seg_type (--seg-type) must be {' or '.join(SEG_TYPES)}, got {seg_type!r}.")
    asked = [each for each in DICOM_FORMATS if each in formats]
    if asked:
        require_packages()
    return asked


def split_at_saving(postprocessing: Any) -> tuple[Change, Change]:
    """Return the postprocessing of a bundle up to the transform that writes the mask, and from there on."""
    steps = list(postprocessing.transforms) if isinstance(postprocessing, Compose) else [postprocessing]
    first = next((n for n, each in enumerate(steps) if isinstance(each, SaveImageAtomicd)), len(steps))
    before, after = (Compose(part) if part else dict for part in (steps[:first], steps[first:]))
    return before, after


@dataclass(frozen=True)
class DicomResults:
    """The DICOM results of a run.

    Args:
        pipeline: What segments the scans.
        seg_type: ``"binary"`` or ``"labelmap"``.
        empty_frames: Whether a SEG has frames without a pixel of the segment.
        segments: What the values of a label map stand for.
    """

    pipeline: Pipeline
    seg_type: str
    empty_frames: bool
    segments: Sequence[Segment]

    @classmethod
    def of(cls, pipeline: Pipeline, seg_type: str, empty_frames: bool) -> DicomResults:
        """Return those of a pipeline; raises a ValueError if its codes are not of the form they must have."""
        names = pipeline.names or ("background", *(f"class {n}" for n in range(1, pipeline.classes)))
        segments = find_segments(names, pipeline.regions, pipeline.codes)
        return cls(pipeline, seg_type, empty_frames, segments)

    @property
    def description(self) -> str:
        """What makes the results, in 64 characters."""
        options = {"seg_type": self.seg_type, "empty_frames": self.empty_frames}
        codes = [[each.name, each.values, each.category, each.type, each.region] for each in self.segments]
        return describe(self.pipeline.made_by, options, codes)[:64]

    def check_input(self, image: str) -> None:
        """Raise a ValueError for a scan that is no DICOM series."""
        if not is_dicom(image):
            raise ValueError(
                f"{image} must be a folder with a DICOM series for --format {' or '.join(DICOM_FORMATS)}: "
                "these refer to the images that were segmented, by UIDs that other files do not have. Name "
                "the series that it was converted from, or ask for --format nifti alone."
            )

    def check_existing(self, paths: Mapping[str, Path], side: Path) -> None:
        """Raise a FileExistsError if one of the results, paths by format, was made by something else."""
        for path in (paths[each] for each in DICOM_FORMATS if each in paths):
            if path.exists():
                check_provenance(path, self.pipeline.made_by, side, _described, self.description)

    def read_series(self, image: str, scan: MetaTensor) -> Series:
        """Return the images of a loaded scan; see :func:`monai_unetpp.dicom_out.read_series`."""
        if SECTIONS not in scan.meta:
            raise ValueError(
                f"{image} was loaded by another transform than monai_unetpp.transforms.LoadImageAndLabeld, "
                f"which says what slices it read: ask for --format nifti alone."
            )
        return read_series(image, str(scan.meta[SECTIONS]))

    def write(self, paths: Mapping[str, Path], labels: MetaTensor, series: Series) -> None:
        """Write the results.

        Args:
            paths: Path by format; those of other results are passed over.
            labels: Label map (X, Y, Z) on the grid of the scan.
            series: Images of the scan.
        """
        values = labels.as_tensor().to(torch.uint8).cpu().numpy()
        series.check_places(labels.affine.cpu().numpy())
        made_by = self.pipeline.made_by
        version, weights = made_by["monai_unetpp"], made_by["weights"]
        algorithm = Algorithm(
            name=f"monai-unetpp {self.pipeline.bundle}",
            version=f"{version} {made_by['level']} {made_by['precision']} w={weights[:12]}",
            software=version,
            serial=weights[:16],
            description=self.description,
        )
        if "dicom-rtstruct" in paths:
            write_rtstruct(paths["dicom-rtstruct"], values, series, self.segments, algorithm)
        if "dicom-seg" in paths:
            kind, empty = self.seg_type, self.empty_frames
            write_seg(paths["dicom-seg"], values, series, self.segments, algorithm, kind, empty)


def _described(path: Path) -> str:
    """Return what a DICOM result says of what made it."""
    import pydicom

    names = ["ContentDescription", "StructureSetDescription"]
    try:
        found = pydicom.dcmread(path, specific_tags=list(names), stop_before_pixels=True)
    except pydicom.errors.InvalidDicomError as error:
        raise ValueError(str(error)) from error
    return str(found.get(names[0]) or found.get(names[1]) or "")
