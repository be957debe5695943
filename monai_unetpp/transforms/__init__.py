# SPDX-License-Identifier: Apache-2.0
"""Dictionary transforms that our pipelines need and MONAI lacks."""

from monai_unetpp.transforms.annotated import (
    AsDiscreteAnnotatedd,
    RandCropByLabelClassesAnnotatedd,
    RandCropByPosNegAnnotatedd,
)
from monai_unetpp.transforms.contrast import LocalContrastd
from monai_unetpp.transforms.heads import DeepestHeadd
from monai_unetpp.transforms.intensity import RandShiftLabeledIntensityd
from monai_unetpp.transforms.loading import LoadImageAndLabeld
from monai_unetpp.transforms.lungs import FocusOnLungsd
from monai_unetpp.transforms.saving import SaveImageAtomicd

__all__ = [
    "AsDiscreteAnnotatedd",
    "DeepestHeadd",
    "FocusOnLungsd",
    "LoadImageAndLabeld",
    "LocalContrastd",
    "RandCropByLabelClassesAnnotatedd",
    "RandCropByPosNegAnnotatedd",
    "RandShiftLabeledIntensityd",
    "SaveImageAtomicd",
]
