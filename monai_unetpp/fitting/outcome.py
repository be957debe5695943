# SPDX-License-Identifier: Apache-2.0
"""What all folds say together: the scores of every held-out case by level, and the choice.

Each case is scored once, by the network that was not trained on it.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from monai_unetpp.fitting.stages import Training
from monai_unetpp.levels import (
    LevelScore,
    pool_levels,
    read_levels,
    select_level,
    select_precision,
    write_levels,
)
from monai_unetpp.levels.select import by_precision
from monai_unetpp.weights import read_record, write_record

__all__ = ["Outcome", "choose", "report_path", "tolerances"]


@dataclass(frozen=True)
class Outcome:
    """Scores by level, and the choice.

    Args:
        scores: Scores of all levels over all folds.
        level: Chosen level ``k`` of L^k.
        precision: Chosen precision.
        weights: Paths of the weights, one per fold.
        bundle: Folder of the bundle.
    """

    scores: list[LevelScore]
    level: int
    precision: str
    weights: list[Path]
    bundle: Path

    def chosen(self) -> LevelScore:
        """Return the score of the choice."""
        for score in self.scores:
            if (score.level, score.precision) == (self.level, self.precision):
                return score
        raise ValueError(
            f"{self.weights[0]} was calibrated for L{self.level} in {self.precision}, which is not in the "
            f"table of its levels: remove {self.bundle / 'levels'}, and the same command scores them again."
        )

    def table(self) -> list[str]:
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
        cases = len(deepest.dice_per_case)
        return [
            f"Dice of {cases} held-out case{'s' * (cases != 1)}, in {deepest.precision}:",
            head,
            *rows,
            f"Chosen: L{chosen.level} in {chosen.precision}: {_gain(chosen, deepest)}.",
        ]

    def lines(self) -> list[str]:
        """Return the table, the places of weights and report, and the next command."""
        return [
            *self.table(),
            f"Weights: {', '.join(map(str, self.weights))}",
            f"Report:  {report_path(self.bundle)}",
            f"Segment: {self.command()}",
        ]

    def command(self) -> str:
        """Return the command that segments with the weights, as one types it."""
        words = ["monai-unetpp", "segment", "-i", "SCANS", "-o", "MASKS", "--bundle", str(self.bundle)]
        if len(self.weights) > 1:  # of folds, which are named, not chosen
            words += ["--checkpoint", *map(str, self.weights)]
        return shlex.join(words)


def _gain(chosen: LevelScore, deepest: LevelScore) -> str:
    """Return what a choice saves of the deepest level in the first precision."""
    faster = f"{deepest.seconds / chosen.seconds:.1f} times faster than"
    loses = f"in {deepest.precision}, Dice {chosen.dice - deepest.dice:+.4f}"
    if chosen.level < deepest.level:
        fewer = f"{deepest.parameters / chosen.parameters:.1f} times fewer parameters"
        return f"{fewer} and {faster} L{deepest.level} {loses}"
    which = "the only level" if deepest.level == 1 else "the deepest; no shallower level is good enough"
    return which if chosen.precision == deepest.precision else f"{which}; {faster} {loses}"


def report_path(bundle: Path) -> Path:
    """Return the path of a bundle's report."""
    return bundle / "report.html"


def tolerances(bundle: Path) -> tuple[float, float]:
    """Return the loss of Dice to accept for a shallower level, and for a faster precision."""
    levels = json.loads((bundle / "levels.json").read_text(encoding="utf-8"))
    return levels["tolerance"], levels["precision_tolerance"]


def choose(trainings: Sequence[Training]) -> Outcome:
    """Choose level and precision by the scores of all folds, and write them beside the weights of each.

    Args:
        trainings: Folds whose levels are scored.

    Raises:
        ValueError: if a table of scores is damaged, or the folds have different levels.
    """
    first = trainings[0]
    if first.folds is None:
        record = read_record(first.weights)
        scores = read_levels(first.levels)
        if record is None or record.level is None:
            raise ValueError(
                f"{first.weights} has no record with a level: monai-unetpp levels {first.bundle}"
            )
        precision = record.precision or scores[0].precision
        return Outcome(scores, record.level, precision, [first.weights], first.bundle)
    folds = [read_levels(training.levels) for training in trainings]
    levels = [sorted({score.level for score in scores}) for scores in folds]
    if any(each != levels[0] for each in levels):
        raise ValueError(
            f"all folds must have the same levels, got {' and '.join(map(str, levels))}: delete "
            f"{first.levels.parent}, and the same call scores them again."
        )
    scores = pool_levels(folds)  # in precisions that all have: folds may be of several machines
    tolerance, for_precision = tolerances(first.bundle)
    level = select_level(scores, tolerance)
    precision = select_precision(scores, level, for_precision)
    folder = first.bundle / "levels"
    title = f"Levels, {len(trainings)} folds: {', '.join(scores[0].dice_per_class)}"
    write_levels(scores, folder, level, tolerance, title, overwrite=True, precision=precision)
    for training in trainings:
        record = read_record(training.weights)
        if record is None:
            raise ValueError(f"{training.weights} has no record: train the fold again.")
        if (record.level, record.precision) != (level, precision):
            exit_score = record.exit if record.precision == precision else None  # of another precision
            changed = dataclasses.replace(record, level=level, precision=precision, exit=exit_score)
            write_record(training.weights, changed)
    return Outcome(scores, level, precision, [training.weights for training in trainings], first.bundle)
