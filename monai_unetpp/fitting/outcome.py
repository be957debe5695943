# SPDX-License-Identifier: Apache-2.0
"""What all folds say together: the scores of every held-out case by level, and the choice.

Each case is scored once, by the network that was not trained on it.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from monai_unetpp.fitting.stages import Part
from monai_unetpp.levels import LevelScore, read_levels, select_level, select_precision, write_levels
from monai_unetpp.levels.select import by_precision
from monai_unetpp.weights import read_record, write_record

__all__ = ["TOLERANCE", "Outcome", "choose", "pool"]

TOLERANCE = 0.01  # loss of Dice for a shallower level, as in levels.json
PRECISION_TOLERANCE = 0.002  # and for a faster precision


@dataclass(frozen=True)
class Outcome:
    """Scores by level, and the choice.

    Args:
        scores: Scores of all levels over all folds.
        level: Chosen level ``k`` of L^k.
        precision: Chosen precision.
        weights: Paths of the weights, one per fold.
        folder: Folder with the table of the levels.
    """

    scores: list[LevelScore]
    level: int
    precision: str
    weights: list[Path]
    folder: Path

    def chosen(self) -> LevelScore:
        """Return the score of the choice."""
        return next(s for s in self.scores if (s.level, s.precision) == (self.level, self.precision))

    def lines(self) -> list[str]:
        """Return Dice by class at each level, and what the choice saves of the deepest one."""
        first = next(iter(by_precision(self.scores).values()))
        deepest, chosen = first[-1], self.chosen()
        names = list(deepest.dice_per_class)
        width = max(9, *(len(name) for name in names))
        head = f"{'level':>6}  {'mean':>{width}}  " + "  ".join(f"{name:>{width}}" for name in names)
        rows = [
            f"{f'L{s.level}':>6}  {s.dice:{width}.3f}  "
            + "  ".join(f"{s.dice_per_class[name]:{width}.3f}" for name in names)
            for s in first
        ]
        fewer, faster = deepest.parameters / chosen.parameters, deepest.seconds / chosen.seconds
        saves = (
            f"{fewer:.1f} times fewer parameters and {faster:.1f} times faster than L{deepest.level} in "
            f"{deepest.precision}, Dice {chosen.dice - deepest.dice:+.4f}"
        )
        if (chosen.level, chosen.precision) == (deepest.level, deepest.precision):
            saves = "the deepest; no shallower level is good enough"
        cases = len(deepest.dice_per_case)
        return [
            f"Dice of {cases} held-out case{'s' * (cases != 1)}, in {deepest.precision}:",
            head,
            *rows,
            f"Chosen: L{chosen.level} in {chosen.precision}: {saves}.",
        ]


def choose(parts: Sequence[Part]) -> Outcome:
    """Choose level and precision by the scores of all folds, and write them beside the weights of each.

    Args:
        parts: Folds whose levels are scored.

    Raises:
        ValueError: if a table of scores is damaged, or the folds have different levels.
    """
    first = parts[0]
    if first.folds is None:
        record = read_record(first.weights)
        scores = read_levels(first.levels)
        if record is None or record.level is None:
            raise ValueError(
                f"{first.weights} has no record with a level: monai-unetpp levels {first.bundle}"
            )
        precision = record.precision or scores[0].precision
        return Outcome(scores, record.level, precision, [first.weights], first.levels)
    scores = pool([read_levels(part.levels) for part in parts])
    level = select_level(scores, TOLERANCE)
    precision = select_precision(scores, level, PRECISION_TOLERANCE)
    folder = first.bundle / "levels"
    title = f"Levels of UNet++, {len(parts)} folds: {', '.join(scores[0].dice_per_class)}"
    write_levels(scores, folder, level, TOLERANCE, title, overwrite=True, precision=precision)
    for part in parts:
        record = read_record(part.weights)
        if record is None:
            raise ValueError(f"{part.weights} has no record: train the fold again.")
        if (record.level, record.precision) != (level, precision):
            write_record(part.weights, dataclasses.replace(record, level=level, precision=precision))
    return Outcome(scores, level, precision, [part.weights for part in parts], folder)


def pool(folds: Sequence[Sequence[LevelScore]]) -> list[LevelScore]:
    """Return the scores over the cases of all folds; costs are those of the first one.

    Args:
        folds: Scores of the levels of each fold, with those of each case.

    Raises:
        ValueError: if the folds have different levels or precisions.
    """
    keys = [[(s.level, s.precision) for s in scores] for scores in folds]
    if any(each != keys[0] for each in keys):
        raise ValueError(
            f"all folds must have the same levels and precisions, got {' and '.join(map(str, keys))}: score "
            "them on one machine."
        )
    return [_pooled([scores[n] for scores in folds]) for n in range(len(keys[0]))]


def _pooled(scores: Sequence[LevelScore]) -> LevelScore:
    cases = [len(score.dice_per_case) for score in scores]

    def over_cases(values: Sequence[float]) -> float:
        known = [(value, n) for value, n in zip(values, cases, strict=True) if not math.isnan(value)]
        total = sum(n for _, n in known)
        return sum(value * n for value, n in known) / total if total else math.nan

    def by_class(metric: str) -> dict[str, float]:
        each = [getattr(score, f"{metric}_per_class") for score in scores]
        return {name: over_cases([values[name] for values in each]) for name in each[0]}

    per_case = [value for score in scores for value in score.dice_per_case]
    by_case = {
        name: tuple(value for score in scores for value in score.dice_per_case_and_class[name])
        for name in scores[0].dice_per_case_and_class
    }
    return dataclasses.replace(
        scores[0],
        dice=_mean(per_case),
        iou=over_cases([score.iou for score in scores]),
        surface_dice=over_cases([score.surface_dice for score in scores]),
        dice_per_class={name: _mean(values) for name, values in by_case.items()},
        iou_per_class=by_class("iou"),
        surface_dice_per_class=by_class("surface_dice"),
        dice_per_case=tuple(per_case),
        cases=tuple(case for score in scores for case in score.cases),
        dice_per_case_and_class=by_case,
    )


def _mean(values: Sequence[float]) -> float:
    """Return the mean of the values that are numbers; NaN without any."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan
