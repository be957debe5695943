# SPDX-License-Identifier: Apache-2.0
"""How deep does the network need to be: every level measured on the validation set, and one chosen.

- score: what each level is worth and what it costs
- cost: multiply-adds, seconds, memory of a forward pass
- select: the shallowest level that is good enough
- exit: how sure a window has to be to stop at a level
- report: table and figure
"""

from monai_unetpp.levels.calibration import ExitScore, calibrate_exit, read_calibration, write_calibration
from monai_unetpp.levels.report import check_report, draw_levels, write_levels
from monai_unetpp.levels.score import LevelScore, score_levels
from monai_unetpp.levels.select import select_level

__all__ = [
    "ExitScore",
    "LevelScore",
    "calibrate_exit",
    "check_report",
    "draw_levels",
    "read_calibration",
    "score_levels",
    "select_level",
    "write_calibration",
    "write_levels",
]
