# SPDX-License-Identifier: Apache-2.0
"""Lesions one by one, as readers of CT count them: found or missed, how well outlined, by size; FROC.

A lesion is a connected component (neighbours across faces, edges and corners) of the reference; what belongs
to it of a prediction are all its components that touch it. A component that touches none is a false positive.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_average_surface_distance
from monai.metrics.froc import compute_froc_curve_data
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]
from torch import Tensor

__all__ = ["SIZES", "CaseLesions", "Lesion", "froc", "score_lesions", "summarise_lesions"]

SIZES: Mapping[str, tuple[float, float]] = {"< 6 mm": (0, 6), "6-10 mm": (6, 10), "> 10 mm": (10, math.inf)}
FALSE_POSITIVES_PER_CASE = (0.125, 0.25, 0.5, 1, 2, 4, 8)  # those of the LUNA16 challenge
CANDIDATE = 0.1  # probability from which a component is a candidate of the FROC curve


@dataclass(frozen=True)
class Lesion:
    """One lesion of the reference and what was found of it.

    Args:
        case: name of the file.
        number: 1, 2, ... within the case.
        diameter: of the ball of equal volume, mm.
        size: its class, a key of :data:`SIZES`.
        found: whether any of the prediction touches it.
        dice: with all components of the prediction that touch it; 0 if missed.
        iou: the same, intersection over union.
        surface_distance: mean distance between the two surfaces, both ways, mm; NaN if missed.
    """

    case: str
    number: int
    diameter: float
    size: str
    found: bool
    dice: float
    iou: float
    surface_distance: float

    def row(self) -> dict[str, Any]:
        """Return a row of a CSV file."""
        return {key: round(v, 4) if isinstance(v, float) else v for key, v in asdict(self).items()}


@dataclass(frozen=True)
class CaseLesions:
    """The lesions of a case.

    Args:
        lesions: of the reference.
        false_positives: components of the prediction that touch no lesion.
        probabilities: of the candidates, those on a lesion and those on none, for the FROC curve.
    """

    lesions: list[Lesion]
    false_positives: int
    probabilities: tuple[list[float], list[float]] | None = field(default=None)


def score_lesions(
    pred: Tensor,
    label: Tensor,
    spacing: Sequence[float],
    case: str = "",
    probability: Tensor | None = None,
) -> CaseLesions:
    """Score a case lesion by lesion.

    Args:
        pred: (X, Y, Z), true where a lesion is predicted.
        label: (X, Y, Z), true where there is one.
        spacing: mm per axis.
        case: name.
        probability: (X, Y, Z), for the FROC curve.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> label = torch.zeros(9, 9, 9)
        >>> label[2:5, 2:5, 2:5] = 1
        >>> score_lesions(label, label, (1, 1, 1)).lesions[0].dice
        1.0
    """
    if pred.shape != label.shape:
        raise ValueError(f"pred must have the shape of label, {list(label.shape)}, got {list(pred.shape)}.")
    references, count = _components(label)
    predictions, candidates = _components(pred)
    lesions = []
    for n in range(1, count + 1):
        reference = references == n
        touching = set(np.unique(predictions[reference])) - {0}
        lesions.append(
            _score(reference, np.isin(predictions, list(touching)), bool(touching), n, spacing, case)
        )
    touched = set(np.unique(predictions[references > 0])) - {0}
    return CaseLesions(lesions, candidates - len(touched), _probabilities(probability, references))


def summarise_lesions(cases: Sequence[CaseLesions]) -> list[dict[str, Any]]:
    """Return one row per class of size, and one for all: how many, found, means of Dice, IoU and distance."""
    lesions = [lesion for case in cases for lesion in case.lesions]
    false = sum(case.false_positives for case in cases) / max(len(cases), 1)
    rows = []
    for size in (*SIZES, "all"):
        of_size = [lesion for lesion in lesions if size in (lesion.size, "all")]
        row: dict[str, Any] = {
            "size": size,
            "lesions": len(of_size),
            "found": sum(lesion.found for lesion in of_size),
        }
        for name in ("dice", "iou", "surface_distance"):
            values = np.array([getattr(lesion, name) for lesion in of_size])
            values = values[~np.isnan(values)]
            row[name] = round(float(values.mean()), 4) if len(values) else math.nan
        rows.append({**row, "false positives per case": round(false, 3) if size == "all" else ""})
    return rows


def froc(cases: Sequence[CaseLesions]) -> list[dict[str, float]]:
    """Return the sensitivity at 1/8 to 8 false positives per case, and the mean; none without probabilities.

    Reference:
        Setio et al., the LUNA16 challenge (Medical Image Analysis 42, 2017).
    """
    scored = [case for case in cases if case.probabilities is not None]
    targets = sum(len(case.lesions) for case in scored)
    if not scored or not targets:
        return []
    true, false = (
        np.array([p for case in scored for p in (case.probabilities or ([], []))[k]]) for k in (0, 1)
    )
    # MONAI takes the lowest probability for that of missed lesions, 0, and leaves it out
    false = np.append(false, 0.0)
    false_per_case, sensitivity = compute_froc_curve_data(false, true, targets, len(scored))
    rows = [
        {
            "false positives per case": wanted,
            "sensitivity": round(float(max(sensitivity[false_per_case <= wanted], default=0.0)), 4),
        }
        for wanted in FALSE_POSITIVES_PER_CASE
    ]
    mean = round(float(np.mean([row["sensitivity"] for row in rows])), 4)
    return [*rows, {"false positives per case": math.nan, "sensitivity": mean}]


def _components(mask: Any) -> tuple[NDArray[np.int32], int]:
    array = np.asarray(torch.as_tensor(mask).cpu()) > 0
    labelled, count = ndimage.label(array, structure=np.ones((3,) * array.ndim))
    return labelled, int(count)


def _score(
    reference: NDArray[np.bool_],
    pred: NDArray[np.bool_],
    found: bool,
    number: int,
    spacing: Sequence[float],
    case: str,
) -> Lesion:
    overlap, both = int((reference & pred).sum()), int(reference.sum() + pred.sum())
    diameter = 2 * (3 * float(reference.sum() * np.prod(spacing)) / (4 * math.pi)) ** (1 / 3)
    distance = math.nan
    if found:
        box = tuple(slice(max(int(a.min()) - 1, 0), int(a.max()) + 2) for a in np.nonzero(reference | pred))
        y_pred, y = (torch.from_numpy(m[box].copy())[None, None].float() for m in (pred, reference))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # MONAI's, of how it calls itself
            distance = float(compute_average_surface_distance(y_pred, y, True, True, spacing=list(spacing)))
    return Lesion(
        case=case,
        number=number,
        diameter=diameter,
        size=next(name for name, (low, high) in SIZES.items() if low <= diameter < high),
        found=found,
        dice=2 * overlap / both,
        iou=overlap / (both - overlap),
        surface_distance=distance,
    )


def _probabilities(
    probability: Tensor | None, references: NDArray[np.int32]
) -> tuple[list[float], list[float]] | None:
    """Of each lesion the highest candidate that touches it, 0 if none does; and of each other candidate."""
    if probability is None:
        return None
    values = np.asarray(torch.as_tensor(probability).cpu())
    candidates, count = _components(values > CANDIDATE)
    heights = ndimage.maximum(values, candidates, range(1, count + 1)) if count else []
    true, false = [0.0] * int(references.max()), []
    for n, height in enumerate(heights, start=1):
        touched = set(np.unique(references[candidates == n])) - {0}
        for lesion in touched:
            true[lesion - 1] = max(true[lesion - 1], float(height))
        if not touched:
            false.append(float(height))
    return true, false
