# SPDX-License-Identifier: Apache-2.0
"""Data to try things on: synthetic CT in the layout of the Medical Segmentation Decathlon."""

from monai_unetpp.data.cases import DataSet, list_volumes, read_dataset, split_cases
from monai_unetpp.data.phantoms.phantom import (
    Phantom,
    chest_phantom,
    liver_phantom,
    write_liver_phantoms,
    write_phantoms,
)

__all__ = [
    "DataSet",
    "Phantom",
    "chest_phantom",
    "list_volumes",
    "liver_phantom",
    "read_dataset",
    "split_cases",
    "write_liver_phantoms",
    "write_phantoms",
]
