# SPDX-License-Identifier: Apache-2.0
"""Mean scores as MONAI's handlers compute them, but NaN where no case has a score; theirs are 0 there."""

from __future__ import annotations

import math
from typing import Any

import monai.handlers
import torch
from monai.handlers import IgniteMetricHandler

__all__ = ["MeanDice", "MeanIoU", "ScoreOfCases"]


class ScoreOfCases(IgniteMetricHandler):
    """A mean over cases and classes, or of each class; a class that a label lacks has no score there, NaN."""

    def compute(self) -> Any:
        """Return the mean, or a mapping from the name of each class to its mean."""
        found: Any = super().compute()
        scores: Any = self.metric_fn.get_buffer()  # type: ignore[no-untyped-call]
        has = ~torch.isnan(scores)  # (cases, classes)
        if not isinstance(found, dict):
            return found if has.any() else math.nan
        return {
            name: value if any_case else math.nan
            for (name, value), any_case in zip(found.items(), has.any(0), strict=True)
        }


class MeanDice(ScoreOfCases, monai.handlers.MeanDice):
    """``monai.handlers.MeanDice``, with its arguments."""


class MeanIoU(ScoreOfCases, monai.handlers.MeanIoUHandler):
    """``monai.handlers.MeanIoUHandler``, with its arguments."""
