# SPDX-License-Identifier: Apache-2.0
"""Data sets to train on and volumes to segment; :mod:`monai_unetpp.data.phantoms` paints synthetic ones."""

from typing import TYPE_CHECKING

from monai_unetpp.data.cases import DataSet, data_folder, list_volumes, read_dataset, read_labels
from monai_unetpp.data.folds import fold_folder
from monai_unetpp.data.splits import deal_folds, scan_names, split_cases
from monai_unetpp.extras import renamed

__all__ = [
    "DataSet",
    "data_folder",
    "deal_folds",
    "fold_folder",
    "list_volumes",
    "read_dataset",
    "read_labels",
    "scan_names",
    "split_cases",
]

if not TYPE_CHECKING:  # lazily: a patient's scan must not import the painter of synthetic ones
    moved = ("Phantom", "chest_phantom", "liver_phantom", "write_liver_phantoms", "write_phantoms")
    __getattr__ = renamed(__name__, {name: f"{__name__}.phantoms.{name}" for name in moved})
