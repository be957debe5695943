# SPDX-License-Identifier: Apache-2.0
"""The confidence of a finding: the probability that it is a true lesion, from what is measured of it.

It is logistic in a few features. How it is fitted on held-out cases is in :mod:`monai_unetpp.confidence`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["FEATURES", "Confidence", "Feature", "parse_confidence"]

CERTAIN = 0.999  # probabilities have three digits; the logit of 1 is infinite


@dataclass(frozen=True)
class Feature:
    """A column of the findings, as the confidence depends on it.

    Args:
        scale: Function from the value to the scale on which the confidence is logistic.
        sign: 1 where more of it must not lower the confidence, -1 where it must not raise it, 0 for either.
    """

    scale: Callable[[float], float]
    sign: int


def _logit(probability: float) -> float:
    p = min(max(probability, 1 - CERTAIN), CERTAIN)
    return math.log(p / (1 - p))


FEATURES: Mapping[str, Feature] = {
    "mean_probability": Feature(_logit, 1),
    "peak_probability": Feature(_logit, 1),
    "equivalent_diameter_mm": Feature(math.log, 0),
    "elongation": Feature(math.log, -1),
}


@dataclass(frozen=True)
class Confidence:
    """Probability that a finding of a class is a true lesion.

    Args:
        intercept: Log odds where all features are 0 on their scales.
        coefficients: Name of a feature, a key of :data:`FEATURES` -> change of the log odds.
        operating_point: Smallest confidence that is kept by default.

    Raises:
        ValueError: if a feature is unknown, a coefficient is no number, or the operating point is no
            probability.

    Example:
        >>> confidence = Confidence(-3.4, {"mean_probability": 2.1, "elongation": 0.0}, 0.57)
        >>> round(confidence({"mean_probability": 0.93, "elongation": 1.03}), 2)
        0.88
    """

    intercept: float
    coefficients: Mapping[str, float]
    operating_point: float

    def __post_init__(self) -> None:
        """Check the arguments."""
        unknown = sorted({*self.coefficients} - {*FEATURES})
        if unknown:
            raise ValueError(f"features must be among {', '.join(FEATURES)}, got {unknown[0]!r}.")
        numbers = (self.intercept, *self.coefficients.values())
        if not all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers):
            raise ValueError(f"intercept and coefficients must be numbers, got {numbers}.")
        if not 0 <= self.operating_point <= 1:
            raise ValueError(
                f"operating_point must be a probability, 0 to 1, such as 0.5, got {self.operating_point!r}."
            )

    def __call__(self, values: Mapping[str, float]) -> float:
        """Return the confidence of a finding, in [0, 1], from the values of its features by name."""
        odds = self.intercept + sum(
            coefficient * FEATURES[name].scale(values[name])
            for name, coefficient in self.coefficients.items()
        )
        return 1 / (1 + math.exp(-odds)) if odds > 0 else math.exp(odds) / (1 + math.exp(odds))


def parse_confidence(content: Mapping[str, Any], source: object) -> tuple[int, dict[str, Confidence]]:
    """Return the level that a confidence was calibrated for, and the confidence of each class.

    Args:
        content: ``confidence`` of a record of weights, see :class:`~monai_unetpp.weights.Record`.
        source: Path of the record, for the message.

    Raises:
        ValueError: if it is damaged.
    """
    names = ("intercept", "coefficients", "operating_point")
    try:
        of_classes = content["classes"].items()
        found = {label: Confidence(*(of[name] for name in names)) for label, of in of_classes}
        return int(content["level"]), found
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        how = "restore it, or calibrate again: run findings.json merged over train.json."
        raise ValueError(f"{source} is damaged: confidence has {error!r}; {how}") from error
