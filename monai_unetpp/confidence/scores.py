# SPDX-License-Identifier: Apache-2.0
"""How good a confidence is: how reliable, what it keeps at an operating point, and FROC by size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from monai_unetpp.confidence.candidates import CaseFindings
from monai_unetpp.lesions import SIZES, CaseLesions, froc, size_of

__all__ = ["froc_by_size", "reliability", "score_by_size", "score_reliability"]

BINS = 10
DRAWS = 1000  # of what is true, to know the calibration error that chance makes
Values = Sequence[Sequence[float]]  # of the findings of each case


def reliability(cases: Sequence[CaseFindings], values: Values) -> list[dict[str, float]]:
    """Return a reliability diagram: by bins of equal width the mean confidence, and the share that is true.

    These are the bins of MONAI's ``calibration_binning``, which versions before 1.6 do not have.

    Args:
        cases: Cases of one class.
        values: Confidence of the findings of each case.

    Returns:
        A row for each bin with a finding.
    """
    true, p, numbers = _flat(cases, values)
    return [
        {
            "from": n / BINS,
            "to": (n + 1) / BINS,
            "findings": int((numbers == n).sum()),
            "confidence": round(float(p[numbers == n].mean()), 4),
            "true": round(float(true[numbers == n].mean()), 4),
        }
        for n in range(BINS)
        if (numbers == n).any()
    ]


def score_reliability(cases: Sequence[CaseFindings], values: Values) -> dict[str, float]:
    """Return how reliable a confidence is.

    Args:
        cases: Cases of one class.
        values: Confidence of the findings of each case.

    Returns:
        ``calibration_error``, the expected calibration error over bins of equal width, in [0, 1];
        ``by_chance``, the one that so many findings would have on average if their confidence were right, as
        the share of a few that is true differs from it by chance; ``brier``, the mean squared error, without
        bins, lower for a confidence that is right and tells true from false.

    Reference:
        Guo et al., On calibration of modern neural networks (ICML 2017).
    """
    true, p, numbers = _flat(cases, values)
    draws = np.random.default_rng(0).random((DRAWS, len(p))) < p
    return {
        "calibration_error": round(_calibration_error(p, true[None], numbers), 4),
        "by_chance": round(_calibration_error(p, draws, numbers), 4),
        "brier": round(float(np.mean((p - true) ** 2)), 4),
    }


def _flat(cases: Sequence[CaseFindings], values: Values) -> tuple[Any, Any, Any]:
    """Return of all findings whether they are true, their confidence, and the numbers of their bins."""
    true = np.array([bool(touched) for case in cases for touched in case.touched])
    p = np.array([value for of_case in values for value in of_case], dtype=float)
    return true, p, np.minimum((p * BINS).astype(int), BINS - 1)


def _calibration_error(p: Any, true: Any, numbers: Any) -> float:
    """Return the mean over draws, (draws, findings), of the expected calibration error."""
    gaps = [abs((p - true)[:, numbers == n].sum(axis=1)) for n in range(BINS)]
    return float(np.mean(np.sum(gaps, axis=0)) / len(p))


def score_by_size(cases: Sequence[CaseFindings], values: Values, least: float) -> list[dict[str, Any]]:
    """Return one row per size class and one for all: lesions, those found and kept, false positives.

    Args:
        cases: Cases of one class.
        values: Confidence of the findings of each case.
        least: Smallest confidence that is kept. A lesion is found if a finding touches it, and kept if one
            of this confidence does. False positives have the size of the finding.
    """
    rows = []
    for size in (*SIZES, "all"):
        best = [
            height
            for case, of_case in zip(cases, values, strict=True)
            for lesion, height in zip(case.lesions, case.heights(of_case)[0], strict=True)
            if size in (lesion.size, "all")
        ]
        false = [
            value
            for case, of_case in zip(cases, values, strict=True)
            for each, touched, value in zip(case.findings, case.touched, of_case, strict=True)
            if not touched and size in (size_of(each.equivalent_diameter_mm), "all")
        ]
        rows.append(
            {
                "size": size,
                "lesions": len(best),
                "found": sum(height > 0 for height in best),
                "kept": sum(height >= least for height in best),
                "false_positives_per_case": round(len(false) / len(cases), 3),
                "false_positives_per_case_kept": round(sum(v >= least for v in false) / len(cases), 3),
            }
        )
    return rows


def froc_by_size(cases: Sequence[CaseFindings], values: Values) -> list[dict[str, Any]]:
    """Return the rows of :func:`~monai_unetpp.lesions.froc` for the lesions of each size, and for all.

    False positives are those of all sizes: what a lesion of some size costs to find.

    Args:
        cases: Cases of one class.
        values: Confidence, or another rank, of the findings of each case.
    """
    rows: list[dict[str, Any]] = []
    for size in (*SIZES, "all"):
        of_size = []
        for case, of_case in zip(cases, values, strict=True):
            true, false = case.heights(of_case)
            pairs = zip(case.lesions, true, strict=True)
            chosen = [(lesion, p) for lesion, p in pairs if size in (lesion.size, "all")]
            lesions = [replace(lesion, found=p > 0) for lesion, p in chosen]
            of_size.append(CaseLesions(lesions, len(false), ([p for _, p in chosen], false)))
        number = sum(len(case.lesions) for case in of_size)
        rows += [
            {"size": size, "lesions": number, **row}
            for row in froc(of_size)
            if not math.isnan(row["false positives per case"])  # the mean over them
        ]
    return rows
