# SPDX-License-Identifier: Apache-2.0
"""Whole volumes: early exit in the sliding window, back to the file's grid by slabs, doubt of the heads."""

from monai_unetpp.inferers.uncertainty import disagreement
from monai_unetpp.inferers.volume import Segmentation, VolumeInferer
from monai_unetpp.inferers.windows import (
    EarlyExitInferer,
    EarlyExitSliceInferer,
    doubt,
    early_exit_like,
    window_inferer,
)

__all__ = [
    "EarlyExitInferer",
    "EarlyExitSliceInferer",
    "Segmentation",
    "VolumeInferer",
    "disagreement",
    "doubt",
    "early_exit_like",
    "window_inferer",
]
