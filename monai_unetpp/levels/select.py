# SPDX-License-Identifier: Apache-2.0
"""Selecting the shallowest level that is good enough."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from monai_unetpp.levels.score import LevelScore

__all__ = ["select_level", "within"]

ROUNDING = 1e-9  # 0.92 - 0.91 > 0.01 in binary

logger = logging.getLogger(__name__)


def select_level(scores: Sequence[LevelScore], tolerance: float = 0.01) -> int:
    """Return the shallowest level whose mean Dice is within ``tolerance`` of the best; the reason is logged.

    Args:
        scores: Scores of the levels of one network, from :func:`score_levels`.
        tolerance: Loss of Dice to accept, at least 0.

    Raises:
        ValueError: if ``scores`` is empty or has no Dice, or ``tolerance`` is negative or not a number.

    Example:
        >>> costs = dict(parameters=1, multiply_adds=1, seconds=1.0, peak_mib=1.0)
        >>> rest = dict(dice_per_class={}, iou_per_class={}, surface_dice_per_class={}, dice_per_case=())
        >>> scores = [LevelScore(k, d, d, d, **rest, **costs) for k, d in ((1, 0.80), (2, 0.91), (3, 0.915))]
        >>> select_level(scores, tolerance=0.01)
        2
    """
    if not scores:
        raise ValueError("scores must hold at least one level, got none.")
    if not tolerance >= 0 or math.isinf(tolerance):
        raise ValueError(f"tolerance must be a Dice of at least 0, such as 0.01, got {tolerance!r}.")
    if any(math.isnan(score.dice) for score in scores):
        raise ValueError("scores must have a Dice for every level, got NaN: no case has a class to score.")
    best = max(scores, key=lambda score: (score.dice, -score.level))
    good = [score for score in scores if within(score, best.dice, tolerance)]
    chosen = min(good, key=lambda score: score.level)
    deepest = max(scores, key=lambda score: score.level)
    reason = f"L{chosen.level}: Dice {chosen.dice:.3f}, best L{best.level} {best.dice:.3f}"
    gain = "no shallower level is good enough" if chosen is deepest else _gain(chosen, deepest)
    logger.info(f"{reason}, tolerance {tolerance:.3f}; {gain}")
    return chosen.level


def within(score: LevelScore, best: float, tolerance: float) -> bool:
    """Whether a level's Dice is within ``tolerance`` of the best."""
    return best - score.dice <= tolerance + ROUNDING


def _gain(chosen: LevelScore, deepest: LevelScore) -> str:
    fewer, faster = deepest.parameters / chosen.parameters, deepest.seconds / chosen.seconds
    return f"{fewer:.1f}x fewer parameters, {faster:.1f}x faster than L{deepest.level}"
