# SPDX-License-Identifier: Apache-2.0
"""Selecting the shallowest level that is good enough, and the precision for it."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from monai_unetpp.levels.score import LevelScore

__all__ = ["by_precision", "select_level", "select_precision", "within"]

ROUNDING = 1e-9  # 0.92 - 0.91 > 0.01 in binary

logger = logging.getLogger(__name__)


def select_level(scores: Sequence[LevelScore], tolerance: float = 0.01) -> int:
    """Return the shallowest level whose mean Dice is within ``tolerance`` of the best; the reason is logged.

    Args:
        scores: Scores of the levels of one network, from :func:`score_levels`; if they are of several
            precisions, those of the first one decide, and :func:`select_precision` comes next.
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
    _check_tolerance(tolerance)
    scores = next(iter(by_precision(scores).values()))
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


def select_precision(scores: Sequence[LevelScore], level: int, tolerance: float = 0.002) -> str:
    """Return the fastest precision at a level that loses at most ``tolerance`` Dice; the reason is logged.

    Args:
        scores: Scores of the levels of one network, from :func:`score_levels`, in one precision or several;
            the first one, float32, is what the others are compared with.
        level: Chosen level.
        tolerance: Loss of Dice to accept, at least 0.

    Returns:
        Such as ``"bfloat16"``.

    Raises:
        ValueError: if no score is of ``level``, or ``tolerance`` is negative or not a number.
    """
    _check_tolerance(tolerance)
    found = [score for score in scores if score.level == level]
    if not found:
        highest = max((score.level for score in scores), default=0)
        raise ValueError(f"level must be one of those in scores, 1..{highest}, got {level!r}.")
    first = found[0]
    chosen = min((s for s in found if within(s, first.dice, tolerance)), key=lambda score: score.seconds)
    for other in found[1:]:
        logger.info(
            f"L{level} in {other.precision}: Dice {other.dice:.4f}, {first.precision} {first.dice:.4f}, "
            f"tolerance {tolerance:g}; {first.seconds / other.seconds:.2f}x as fast. "
            f"Chosen: {chosen.precision}"
        )
    return chosen.precision


def by_precision(scores: Sequence[LevelScore]) -> dict[str, list[LevelScore]]:
    """Return the scores of each precision, in the order in which they were scored."""
    found: dict[str, list[LevelScore]] = {}
    for score in scores:
        found.setdefault(score.precision, []).append(score)
    return found


def within(score: LevelScore, best: float, tolerance: float) -> bool:
    """Whether a level's Dice is within ``tolerance`` of the best."""
    return best - score.dice <= tolerance + ROUNDING


def _check_tolerance(tolerance: float) -> None:
    if not tolerance >= 0 or math.isinf(tolerance):
        raise ValueError(f"tolerance must be a Dice of at least 0, such as 0.01, got {tolerance!r}.")


def _gain(chosen: LevelScore, deepest: LevelScore) -> str:
    fewer, faster = deepest.parameters / chosen.parameters, deepest.seconds / chosen.seconds
    return f"{fewer:.1f}x fewer parameters, {faster:.1f}x faster than L{deepest.level}"
