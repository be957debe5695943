# SPDX-License-Identifier: Apache-2.0
"""How deep the network needs to be: every level is scored on the validation set, and one is selected.

- score: accuracy and cost of each level
- cases: accuracy of one prediction, and its mean
- cost: multiply-adds, seconds and memory of a forward pass
- select: the shallowest level that is good enough, and the precision for it
- calibration: the threshold of early exit, and the file beside the weights
- report: table and figure
- reading: the table again, so that folds can be compared
"""

from monai_unetpp.levels.calibration import (
    ExitScore,
    calibrate_exit,
    calibrated_level,
    read_calibration,
    write_calibration,
)
from monai_unetpp.levels.reading import pool_levels, read_levels
from monai_unetpp.levels.report import check_report, draw_levels, write_levels
from monai_unetpp.levels.score import LevelScore, score_levels
from monai_unetpp.levels.select import select_level, select_precision

__all__ = [
    "ExitScore",
    "LevelScore",
    "calibrate_exit",
    "calibrated_level",
    "check_report",
    "draw_levels",
    "pool_levels",
    "read_calibration",
    "read_levels",
    "score_levels",
    "select_level",
    "select_precision",
    "write_calibration",
    "write_levels",
]
