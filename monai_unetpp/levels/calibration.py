# SPDX-License-Identifier: Apache-2.0
"""The threshold of early exit: found on the validation set, and written beside the weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from monai.data import decollate_batch
from monai.inferers import SlidingWindowInferer
from monai.metrics import compute_dice
from torch import Tensor, nn

from monai_unetpp.files import PathLike
from monai_unetpp.inferers import early_exit_like
from monai_unetpp.levels.postprocessing import default_postprocessing
from monai_unetpp.levels.score import evaluating
from monai_unetpp.network import kernels, unwrap_unetplusplus
from monai_unetpp.weights import Record, read_record, record_path, sha256, write_record

__all__ = [
    "THRESHOLDS",
    "Calibration",
    "ExitScore",
    "calibrate_exit",
    "calibrated_level",
    "read_calibration",
    "write_calibration",
]

THRESHOLDS = (
    *(0.99, 0.5, 0.2, 0.1, 0.07, 0.05, 0.04, 0.03, 0.025, 0.02, 0.0175, 0.015, 0.0125, 0.01),
    *(0.009, 0.008, 0.007, 0.006, 0.005, 0.004, 0.003, 0.002, 0.001, 5e-4, 2e-4),
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExitScore:
    """Accuracy and exits of early exit on a validation set.

    Args:
        threshold: Threshold of :class:`~monai_unetpp.EarlyExitInferer`; 0 stops no window.
        dice: Mean Dice over cases and classes with early exit, in [0, 1].
        full_dice: Mean Dice of the deepest level without early exit, in [0, 1].
        exits: Number of windows that stopped at each level, shallowest first.
        tolerance: Loss of Dice that was accepted.
    """

    threshold: float
    dice: float
    full_dice: float
    exits: tuple[int, ...]
    tolerance: float


@dataclass(frozen=True)
class Calibration:
    """Calibration of a file of weights.

    Args:
        weights: SHA-256 of the file.
        level: Level that is deep enough, see :func:`~monai_unetpp.select_level`.
        exit: Score of early exit at the chosen threshold.
        precision: Precision that is good enough, see :func:`~monai_unetpp.levels.select_precision`; None if
            none was scored.
    """

    weights: str
    level: int
    exit: ExitScore
    precision: str | None = None


def calibrate_exit(
    network: nn.Module,
    data: Iterable[Mapping[str, Any]],
    inferer: SlidingWindowInferer,
    postprocessing: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None,
    tolerance: float = 0.005,
    thresholds: Sequence[float] = THRESHOLDS,
    amp: bool = False,
    amp_kwargs: Mapping[str, Any] | None = None,
    regions: list[list[int]] | None = None,
) -> ExitScore:
    """Find the largest threshold of early exit that loses at most ``tolerance`` Dice, by bisection.

    Args:
        network: UNetPlusPlus, as for :func:`~monai_unetpp.score_levels`.
        data: Batches with ``"image"`` and ``"label"``, as for :func:`~monai_unetpp.score_levels`.
        inferer: Sliding window of MONAI.
        postprocessing: Transform of an item, as for :func:`~monai_unetpp.score_levels`.
        tolerance: Loss of mean Dice to accept, compared with the deepest level everywhere.
        thresholds: Thresholds to choose from; a larger one is taken to lose more.
        amp: Whether to compute in mixed precision.
        amp_kwargs: Arguments of ``torch.autocast``.
        regions: Values of the label in each channel, as for :func:`~monai_unetpp.score_levels`.

    Raises:
        TypeError: if ``network`` is no UNetPlusPlus.
        ValueError: if ``tolerance`` is negative, all labels are background only, or the network has only one
            level.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be a Dice of at least 0, such as 0.005, got {tolerance!r}.")
    network = unwrap_unetplusplus(network)
    post = postprocessing or default_postprocessing(network.arguments["out_channels"], regions)
    device = next(network.parameters()).device
    autocast = kernels.autocast(device, amp, amp_kwargs)

    def score(threshold: float) -> tuple[float, tuple[int, ...]]:
        early = early_exit_like(inferer, threshold, sigmoid=regions is not None)
        found = []
        for batch in data:
            with autocast():
                logits = early(batch["image"].to(device), network)
            found += [case_dice(post(item)) for item in decollate_batch({**batch, "pred": logits.float()})]
        return float(torch.stack(found).nanmean()) if found else math.nan, tuple(early.exits)

    ascending = sorted(thresholds)
    with evaluating(network), torch.no_grad():
        network.level = network.depth
        full, exits = score(0.0)
        if math.isnan(full):
            raise ValueError("data must have a label with a class other than background: none has.")
        best = ExitScore(0.0, full, full, exits, tolerance)
        low, high = 0, len(ascending)  # thresholds before low are good enough, those from high on are not
        while low < high:
            middle = (low + high) // 2
            dice, exits = score(ascending[middle])
            if full - dice <= tolerance:
                best, low = ExitScore(ascending[middle], dice, full, exits, tolerance), middle + 1
            else:
                high = middle
    stops = ", ".join(f"L{k} {n}" for k, n in enumerate(best.exits, 1))
    logger.info(
        f"Early exit at an uncertainty of {best.threshold:g}: Dice {best.dice:.3f}, without {full:.3f}, "
        f"tolerance {tolerance:.3f}; windows that stop at {stops}"
    )
    return best


def write_calibration(weights: PathLike, level: int, exit: ExitScore, precision: str | None = None) -> Path:
    """Write the calibration into the record beside the file of weights; return the path of the record."""
    try:
        record = read_record(weights) or Record(sha256(weights))
    except ValueError as error:  # of weights that were replaced
        logger.warning(f"{error} A new record is written, with the calibration alone.")
        record = Record(sha256(weights))
    return write_record(weights, replace(record, level=level, precision=precision, exit=asdict(exit)))


def read_calibration(weights: PathLike) -> Calibration:
    """Read the calibration of a file of weights from their record.

    Raises:
        FileNotFoundError: if the weights were not calibrated.
        ValueError: if the record is of other weights, or damaged.
    """
    how = "to calibrate, run levels.json merged over train.json."
    path = record_path(weights)
    try:
        record = read_record(weights)
        if record is None or record.level is None or record.exit is None:
            missing = f"{path} has no level" if path.is_file() else f"there is no {path}"
            raise FileNotFoundError(f"{weights} was not calibrated, {missing}; {how}")
        found = ExitScore(**{**record.exit, "exits": tuple(record.exit["exits"])})
    except (ValueError, KeyError, TypeError) as error:
        reason = str(error) if type(error) is ValueError else f"{path} is damaged: {error!r}"
        raise ValueError(f"{reason.rstrip('.')}; {how}") from error
    return Calibration(record.weights, record.level, found, record.precision)


def calibrated_level(weights: PathLike) -> int | None:
    """Return the level that was selected for a file of weights; None, which is said, if none was."""
    record = read_record(weights)
    if record is None or record.level is None:
        logger.info(f"{weights} was not calibrated: the deepest level is used.")
        return None
    logger.info(f"{weights} was calibrated: L{record.level} is deep enough.")
    return record.level


def case_dice(item: Mapping[str, Any]) -> Tensor:
    """Return the mean Dice over the classes of one case; NaN if its label is background only."""
    y_pred, y = (torch.as_tensor(item[key])[None].float().cpu() for key in ("pred", "label"))
    return compute_dice(y_pred, y, include_background=y.shape[1] == 1).nanmean()
