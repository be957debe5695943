# SPDX-License-Identifier: Apache-2.0
"""From candidates to a confidence: logistic regression with two safeguards against too much of it.

The targets are those of Platt, a little inside of 0 and 1, so that few candidates that happen to be separable
do not give certainty; and coefficients have the sign that reason gives them, or are 0: a finding does not
become less likely by a higher probability, nor more likely by being longer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize  # type: ignore[import-untyped]
from scipy.special import expit  # type: ignore[import-untyped]

from monai_unetpp.confidence.candidates import CaseFindings
from monai_unetpp.findings import FEATURES, Confidence

__all__ = ["fit_confidence", "held_out_confidence"]

Floats = NDArray[np.float64]
BOUNDS = {1: (0, None), -1: (None, 0), 0: (None, None)}


def fit_confidence(cases: Sequence[CaseFindings], features: Sequence[str]) -> Confidence:
    """Return the confidence of findings like those of some cases; its operating point is 0.

    Args:
        cases: Cases of one class.
        features: Features that it depends on, keys of :data:`~monai_unetpp.findings.FEATURES`.

    Raises:
        ValueError: if there are no features, one is unknown, or the findings are all true or all false.

    Reference:
        Platt, Probabilistic outputs for support vector machines (Advances in Large Margin Classifiers, 1999).
    """
    unknown = [name for name in features if name not in FEATURES]
    if unknown or not features or isinstance(features, str):
        raise ValueError(
            f"features must be some of {', '.join(FEATURES)}, as a list, got "
            f"{unknown[0] if unknown and not isinstance(features, str) else features!r}."
        )
    values = np.array([_scaled(each, features) for case in cases for each in case.findings])
    true = np.array([bool(touched) for case in cases for touched in case.touched], dtype=bool)
    if true.all() or not true.any():
        raise ValueError(
            "a confidence requires true and false findings in the held-out cases, got "
            f"{int(true.sum())} true and {int((~true).sum())} false ones: hold out more cases, or leave the "
            "weights uncalibrated."
        )
    targets = np.where(true, (true.sum() + 1) / (true.sum() + 2), 1 / ((~true).sum() + 2))
    mean, spread = values.mean(axis=0), values.std(axis=0)
    spread[spread == 0] = 1.0
    scaled = (values - mean) / spread

    def loss(weights: Floats) -> tuple[float, Floats]:
        odds = weights[0] + scaled @ weights[1:]
        error = expit(odds) - targets
        return float((np.logaddexp(0, odds) - targets * odds).sum()), np.r_[error.sum(), error @ scaled]

    bounds = [BOUNDS[0], *(BOUNDS[FEATURES[name].sign] for name in features)]
    options = {"ftol": 1e-14, "gtol": 1e-9, "maxiter": 10_000}
    start = np.zeros(1 + len(features))
    weights = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    coefficients = weights[1:] / spread
    intercept = float(weights[0] - coefficients @ mean)
    return Confidence(intercept, dict(zip(features, coefficients.tolist(), strict=True)), 0.0)


def held_out_confidence(cases: Sequence[CaseFindings], features: Sequence[str]) -> list[list[float]]:
    """Return for each case the confidence of its findings, fitted on all other cases.

    Arguments and errors are those of :func:`fit_confidence`, also where all others are of one kind.
    """
    found: list[list[float]] = []
    for n, case in enumerate(cases):
        if not case.findings:
            found.append([])
            continue
        confidence = fit_confidence([*cases[:n], *cases[n + 1 :]], features)
        found.append([confidence(vars(each)) for each in case.findings])
    return found


def _scaled(finding: object, features: Sequence[str]) -> list[float]:
    return [FEATURES[name].scale(getattr(finding, name)) for name in features]
