# SPDX-License-Identifier: Apache-2.0
"""CT as it comes: NIfTI, MetaImage (.mhd with its .raw, .mha), NRRD, and folders with a DICOM series."""

from monai_unetpp.readers.volumes import (
    SUFFIXES,
    NiftiReader,
    SimpleITKReader,
    check_header,
    is_series,
    read_geometry,
    volume_loader,
)

__all__ = [
    "SUFFIXES",
    "NiftiReader",
    "SimpleITKReader",
    "check_header",
    "is_series",
    "read_geometry",
    "volume_loader",
]
