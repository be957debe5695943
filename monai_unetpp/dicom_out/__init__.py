# SPDX-License-Identifier: Apache-2.0
"""From a label map on the grid of a DICOM series to DICOM SEG and RTSTRUCT.

- series: the images that a label map was made from, in the order of its slices; what is copied from them
- segments: what the values of a label map stand for, with codes
- seg: DICOM Segmentation, by highdicom
- outlines: the outlines of a mask, along the edges of its pixels
- rtstruct: RT Structure Set, by pydicom
"""

from monai_unetpp.dicom_out.rtstruct import write_rtstruct
from monai_unetpp.dicom_out.seg import SEG_TYPES, write_seg
from monai_unetpp.dicom_out.segments import Code, Segment, find_segments
from monai_unetpp.dicom_out.series import Algorithm, Plane, Series, read_series, require_packages

__all__ = [
    "SEG_TYPES",
    "Algorithm",
    "Code",
    "Plane",
    "Segment",
    "Series",
    "find_segments",
    "read_series",
    "require_packages",
    "write_rtstruct",
    "write_seg",
]
