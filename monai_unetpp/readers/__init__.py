# SPDX-License-Identifier: Apache-2.0
"""Scans as they come: NIfTI, MetaImage (.mhd with its .raw, .mha), NRRD, folders of DICOM, pictures.

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
    is_dicom,
    is_volume,
    read_geometry,
    volume_loader,
)
from monai_unetpp.readers.names import other_channels, stem_of
from monai_unetpp.readers.picture import PICTURE_SUFFIXES, is_picture

__all__ = [
    "PICTURE_SUFFIXES",
    "SUFFIXES",
    "VOLUME_SUFFIXES",
    "NiftiReader",
    "SimpleITKReader",
    "VolumeLoader",
    "check_header",
    "is_dicom",
    "is_picture",
    "is_series",
    "is_volume",
    "other_channels",
    "read_geometry",
    "stem_of",
    "volume_loader",
]
