# SPDX-License-Identifier: Apache-2.0
"""Whole volumes: early exit in a sliding window, slabs on the file's grid, uncertainty of the heads."""

from typing import TYPE_CHECKING

from monai_unetpp.extras import renamed
from monai_unetpp.inferers.averaging import AveragedNetwork
from monai_unetpp.inferers.uncertainty import disagreement
from monai_unetpp.inferers.volume import Segmentation, VolumeInferer
from monai_unetpp.inferers.windows import (
    EarlyExitInferer,
    EarlyExitSliceInferer,
    early_exit_like,
    window_change,
    window_inferer,
    window_uncertainty,
)

__all__ = [
    "AveragedNetwork",
    "EarlyExitInferer",
    "EarlyExitSliceInferer",
    "Segmentation",
    "VolumeInferer",
    "disagreement",
    "early_exit_like",
    "window_change",
    "window_inferer",
    "window_uncertainty",
]

if not TYPE_CHECKING:  # a type checker would accept any name
    __getattr__ = renamed(__name__, {"doubt": f"{__name__}.window_uncertainty"})
