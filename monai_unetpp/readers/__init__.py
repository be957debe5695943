# SPDX-License-Identifier: Apache-2.0
"""CT as it comes: NIfTI, MetaImage (.mhd with its .raw, .mha), NRRD, and folders with a DICOM series.

A file is proven before it is believed: each format has a room that checks the header and reads the voxels.
"""

from monai_unetpp.readers.dicom import is_series
from monai_unetpp.readers.loader import (
    SUFFIXES,
    VOLUME_SUFFIXES,
    NiftiReader,
    SimpleITKReader,
    VolumeLoader,
    check_header,
    is_volume,
    read_geometry,
    volume_loader,
)

__all__ = [
    "SUFFIXES",
    "VOLUME_SUFFIXES",
    "NiftiReader",
    "SimpleITKReader",
    "VolumeLoader",
    "check_header",
    "is_series",
    "is_volume",
    "read_geometry",
    "volume_loader",
]
