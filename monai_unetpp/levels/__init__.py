# SPDX-License-Identifier: Apache-2.0
"""How deep does the network need to be: every level measured on the validation set, and one chosen.

score   what each level is worth and what it costs
cost    multiply-adds, seconds, memory of a forward pass
select  the shallowest level that is good enough
report  table and figure
"""

from monai_unetpp.levels.report import check_report, draw_levels, write_levels
from monai_unetpp.levels.score import LevelScore, score_levels
from monai_unetpp.levels.select import select_level

__all__ = ["LevelScore", "check_report", "draw_levels", "score_levels", "select_level", "write_levels"]
