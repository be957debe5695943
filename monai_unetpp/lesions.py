# SPDX-License-Identifier: Apache-2.0
"""Lesions one by one, as radiologists count them: found or missed, overlap, by size; FROC.

A lesion is a connected component (neighbours across faces, edges and corners) of the reference. It is matched
with all components of the prediction that touch it; a component that touches no lesion is a false positive.
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

__all__ = [
    "SIZES",
    "CaseLesions",
    "Lesion",
    "equivalent_diameter",
    "froc",
    "label_components",
    "lesion_labels",
    "score_lesions",
    "size_of",
    "summarise_lesions",
]

SIZES: Mapping[str, tuple[float, float]] = {"< 6 mm": (0, 6), "6-10 mm": (6, 10), "> 10 mm": (10, math.inf)}
FALSE_POSITIVES_PER_CASE = (0.125, 0.25, 0.5, 1, 2, 4, 8)  # as in the LUNA16 challenge
CANDIDATE_PROBABILITY = 0.1  # threshold of the components that are candidates of the FROC curve
LESION_WORDS = (
    "tumour",
    "tumor",
    "lesion",
    "nodule",
    "metasta",
    "cancer",
    "carcinoma",
    "cyst",
    "mass",
    "polyp",
)


def lesion_labels(labels: Sequence[str]) -> list[str]:
    """Return the classes whose names say that they are lesions, of which a case may have any number.

    Args:
        labels: Names of the classes, the background first.

    Example:
        >>> lesion_labels(["background", "liver", "liver tumour"])
        ['liver tumour']
    """
    return [name for name in labels[1:] if any(word in name.lower() for word in LESION_WORDS)]


@dataclass(frozen=True)
class Lesion:
    """One lesion of the reference, and the prediction of it.

    Args:
        case: Name of the file.
        number: Number of the lesion in the case, from 1.
        diameter: Diameter of the ball of equal volume, mm.
        size: Class of the diameter, a key of :data:`SIZES`.
        found: Whether any component of the prediction touches the lesion.
        dice: Dice with all components of the prediction that touch it, in [0, 1]; 0 if missed.
        iou: Intersection over union with the same components, in [0, 1]; 0 if missed.
        surface_distance: Symmetric mean distance of the two surfaces, mm; NaN if missed.
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
    """Lesions of a case.

    Args:
        lesions: Lesions of the reference.
        false_positives: Number of components of the prediction that touch no lesion.
        probabilities: For the FROC curve, the probabilities of the lesions and of the false positives.
    """

    lesions: list[Lesion]
    false_positives: int
    probabilities: tuple[list[float], list[float]] | None = field(default=None)


def score_lesions(
    pred: Tensor, label: Tensor, spacing: Sequence[float], case: str = "", probability: Tensor | None = None
) -> CaseLesions:
    """Score a case lesion by lesion.

    Args:
        pred: Predicted mask (X, Y, Z).
        label: Reference mask (X, Y, Z).
        spacing: Voxel size per axis, mm.
        case: Name of the case.
        probability: Probabilities (X, Y, Z), in [0, 1], for the FROC curve.

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
    references, count = label_components(label)
    predictions, candidates = label_components(pred)
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
    """Return one row per size class and one for all: number, found, mean Dice, IoU and distance."""
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
    """Return the sensitivity at 1/8 to 8 false positives per case, and the mean, from probabilities.

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
    # MONAI takes the lowest probability for that of missed lesions and leaves it out: it must be 0
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


def label_components(mask: Any) -> tuple[NDArray[np.int32], int]:
    """Return the components of a mask (*spatial) by number, from 1 on, and how many they are.

    Voxels that share a face, an edge or a corner belong together.
    """
    array = np.asarray(torch.as_tensor(mask).cpu()) > 0
    labelled, count = ndimage.label(array, structure=np.ones((3,) * array.ndim))
    return labelled, int(count)


def equivalent_diameter(volume: float) -> float:
    """Return the diameter, mm, of the ball of a volume, mm^3."""
    return 2 * (3 * volume / (4 * math.pi)) ** (1 / 3)


def size_of(diameter: float) -> str:
    """Return the class of a diameter, mm, a key of :data:`SIZES`."""
    return next(name for name, (low, high) in SIZES.items() if low <= diameter < high)


def _score(
    reference: NDArray[np.bool_],
    pred: NDArray[np.bool_],
    found: bool,
    number: int,
    spacing: Sequence[float],
    case: str,
) -> Lesion:
    overlap, both = int((reference & pred).sum()), int(reference.sum() + pred.sum())
    diameter = equivalent_diameter(float(reference.sum() * np.prod(spacing)))
    distance = math.nan
    if found:
        box = tuple(slice(max(int(a.min()) - 1, 0), int(a.max()) + 2) for a in np.nonzero(reference | pred))
        y_pred, y = (torch.from_numpy(m[box].copy())[None, None].float() for m in (pred, reference))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of a deprecated argument inside MONAI
            distance = float(compute_average_surface_distance(y_pred, y, True, True, spacing=list(spacing)))
    return Lesion(
        case=case,
        number=number,
        diameter=diameter,
        size=size_of(diameter),
        found=found,
        dice=2 * overlap / both,
        iou=overlap / (both - overlap),
        surface_distance=distance,
    )


def _probabilities(
    probability: Tensor | None, references: NDArray[np.int32]
) -> tuple[list[float], list[float]] | None:
    """Return each lesion's highest candidate, 0 if none touches it, and all other candidates."""
    if probability is None:
        return None
    values = np.asarray(torch.as_tensor(probability).cpu())
    candidates, count = label_components(values > CANDIDATE_PROBABILITY)
    heights = ndimage.maximum(values, candidates, range(1, count + 1)) if count else []
    true, false = [0.0] * int(references.max()), []
    for n, height in enumerate(heights, start=1):
        touched = set(np.unique(references[candidates == n])) - {0}
        for lesion in touched:
            true[lesion - 1] = max(true[lesion - 1], float(height))
        if not touched:
            false.append(float(height))
    return true, false
