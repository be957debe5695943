# SPDX-License-Identifier: Apache-2.0
"""The confidence of findings: calibrated on held-out cases, and written beside the weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from monai_unetpp.confidence.candidates import CaseFindings
from monai_unetpp.confidence.fitting import fit_confidence, held_out_confidence
from monai_unetpp.confidence.scores import froc_by_size, reliability, score_by_size, score_reliability
from monai_unetpp.files import PathLike, write_csv
from monai_unetpp.findings import Confidence, parse_confidence
from monai_unetpp.weights import Record, read_record, record_path, sha256, write_record

__all__ = ["CalibratedConfidence", "calibrate_confidence", "read_confidence", "write_confidence"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CalibratedConfidence:
    """Confidence of the findings of a class, and how good it is.

    Scores are those of confidences that were fitted without the case that they are of, before the odds were
    divided by ``enrichment``.

    Args:
        confidence: The confidence, for scans to segment.
        enrichment: How many times as many true findings per false one the held-out cases have as scans.
        cases: Number of held-out cases.
        true: Number of findings that touch a lesion.
        false: Number of the others.
        reliability: That of ``"mean_probability"``, as it would be without, and of ``"confidence"``; see
            :func:`~monai_unetpp.confidence.score_reliability`.
        at_operating_point: Lesions and false positives by size, see
            :func:`~monai_unetpp.confidence.score_by_size`.
        tables: Rows of the tables by name; they are not part of the record.
    """

    confidence: Confidence
    enrichment: float
    cases: int
    true: int
    false: int
    reliability: Mapping[str, Mapping[str, float]]
    at_operating_point: Sequence[Mapping[str, Any]]
    tables: Mapping[str, Sequence[Mapping[str, Any]]]


def calibrate_confidence(
    candidates: Sequence[CaseFindings],
    features: Sequence[str] = ("mean_probability", "elongation"),
    sensitivity: float = 0.95,
    enrichment: float = 1.0,
) -> dict[str, CalibratedConfidence]:
    """Fit the confidence of each class of lesions, choose its operating point, and measure how good it is.

    The operating point keeps a share of the lesions that were found. It is chosen by sensitivity since that
    of cases that were selected around lesions is the one of whole scans, and their false positives are not.

    Args:
        candidates: Findings of held-out cases, see :func:`~monai_unetpp.confidence.find_candidates`.
        features: Features of the confidence, keys of :data:`~monai_unetpp.findings.FEATURES`.
        sensitivity: Share of the lesions found that the operating point keeps, in (0, 1].
        enrichment: How many times as many true findings per false one the cases have as the scans to segment:
            1 for cases that are such scans. For cubes of 0.13 l around a nodule each, of lungs of 5 l with
            one nodule, 38. The odds of the confidence are divided by it.

    Returns:
        Name of the class -> its confidence.

    Raises:
        ValueError: if an argument is out of its range, there are no cases, or a class has true findings
            only, or false ones.

    Reference:
        Saerens et al., Adjusting the outputs of a classifier to new a priori probabilities (Neural
        Computation 14, 2002), for ``enrichment``.
    """
    if not 0 < sensitivity <= 1:
        raise ValueError(f"sensitivity must be a share, above 0 and at most 1, got {sensitivity}.")
    if not 0 < enrichment < math.inf:
        raise ValueError(f"enrichment must be a positive number, 1 for whole scans, got {enrichment}.")
    if not candidates:
        raise ValueError("candidates must be those of held-out cases, got none: hold some out.")
    found = {}
    for label in dict.fromkeys(case.label for case in candidates):
        cases = [case for case in candidates if case.label == label]
        try:
            found[label] = _calibrate(cases, features, sensitivity, enrichment)
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from error
        logger.info(_summary(label, found[label]))
    return found


def write_confidence(
    weights: PathLike, level: int, calibrated: Mapping[str, CalibratedConfidence], directory: PathLike
) -> Path:
    """Write the confidence into the record beside the weights, and its tables; return the path of the record.

    Args:
        weights: Path of the file of weights.
        level: Level ``k`` of L^k that the candidates are of.
        calibrated: Name of a class -> its confidence.
        directory: Folder of ``candidates.csv``, ``reliability.csv`` and ``froc.csv``.

    Raises:
        ValueError: if the record names other classes.
    """
    record = read_record(weights) or Record(sha256(weights))
    unknown = [label for label in calibrated if record.labels and label not in record.labels]
    if unknown:
        raise ValueError(
            f"labels must be those of the weights, {', '.join(record.labels)}, got {unknown[0]}: score a "
            "data set whose classes have these names."
        )
    names = next(iter(calibrated.values())).tables
    for name in names:
        rows = [{"class": label, **row} for label, of in calibrated.items() for row in of.tables[name]]
        write_csv(Path(directory) / f"{name}.csv", rows)
    classes = {}
    for label, of in calibrated.items():
        fields = asdict(of)
        fields.pop("tables")
        classes[label] = {**fields.pop("confidence"), **fields}
    return write_record(weights, replace(record, confidence={"level": level, "classes": classes}))


def read_confidence(weights: PathLike) -> tuple[int, dict[str, Confidence]] | None:
    """Return the level that the confidence of findings was calibrated for, and the confidence of each class.

    None if the weights have no record, or it has none.

    Raises:
        ValueError: if the record is of other weights, or damaged.
    """
    record = read_record(weights)
    if record is None or record.confidence is None:
        return None
    return parse_confidence(record.confidence, record_path(weights))


def _calibrate(
    cases: Sequence[CaseFindings], features: Sequence[str], sensitivity: float, enrichment: float
) -> CalibratedConfidence:
    fitted = fit_confidence(cases, features)
    values = held_out_confidence(cases, features)
    heights = [case.heights(of_case)[0] for case, of_case in zip(cases, values, strict=True)]
    best = sorted(height for of_case in heights for height in of_case if height > 0)
    least = best[math.floor((1 - sensitivity) * len(best) + 1e-9)]
    before = [[each.mean_probability for each in case.findings] for case in cases]
    ranks = {"mean_probability": before, "confidence": values}
    diagrams = {name: reliability(cases, of) for name, of in ranks.items()}
    true = sum(bool(touched) for case in cases for touched in case.touched)
    return CalibratedConfidence(
        confidence=Confidence(
            fitted.intercept - math.log(enrichment),
            fitted.coefficients,
            math.floor(1e6 * least / (least + (1 - least) * enrichment)) / 1e6,
        ),
        enrichment=enrichment,
        cases=len(cases),
        true=true,
        false=sum(len(case.findings) for case in cases) - true,
        reliability={name: score_reliability(cases, of) for name, of in ranks.items()},
        at_operating_point=score_by_size(cases, values, least),
        tables={
            "candidates": _rows(cases, values),
            "reliability": [{"of": name, **row} for name, of in diagrams.items() for row in of],
            "froc": [{"by": name, **row} for name, of in ranks.items() for row in froc_by_size(cases, of)],
        },
    )


def _rows(cases: Sequence[CaseFindings], values: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """Return a row per candidate, with the confidence that was fitted on the other cases."""
    shown = ("peak_probability", "equivalent_diameter_mm", "elongation")
    return [
        {
            "case": Path(case.case).name,
            "lesions": " ".join(map(str, touched)),
            "confidence_without_case": round(value, 4),
            "mean_probability": round(each.mean_probability, 4),
            **{name: round(getattr(each, name), 3) for name in shown},
        }
        for case, of_case in zip(cases, values, strict=True)
        for each, touched, value in zip(case.findings, case.touched, of_case, strict=True)
    ]


def _summary(label: str, found: CalibratedConfidence) -> str:
    total, before, after = found.at_operating_point[-1], *found.reliability.values()
    return (
        f"{label}: confidence from {found.true} true and {found.false} false findings of {found.cases} "
        f"cases. Calibration error {after['calibration_error']:.3f} (by chance {after['by_chance']:.3f}), of "
        f"the mean probability {before['calibration_error']:.3f} ({before['by_chance']:.3f}); Brier score "
        f"{after['brier']:.3f}, {before['brier']:.3f}. At the operating point, "
        f"{found.confidence.operating_point:.3g}, {total['kept']} of {total['lesions']} lesions, of which "
        f"{total['found']} were found, and {total['false_positives_per_case_kept']:.2f} false positives per "
        f"case, of {total['false_positives_per_case']:.2f}."
    )
