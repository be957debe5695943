# SPDX-License-Identifier: Apache-2.0
"""Candidates: the findings of cases whose lesions are known, measured as ``segment --findings`` does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import decollate_batch
from monai.networks.utils import eval_mode
from numpy.typing import NDArray
from torch import nn

from monai_unetpp.findings import Finding, find
from monai_unetpp.lesions import Lesion, label_components, score_lesions
from monai_unetpp.network import kernels

__all__ = ["CaseFindings", "find_candidates", "match_lesions"]


@dataclass(frozen=True)
class CaseFindings:
    """The findings of a class in a case, and its lesions.

    Args:
        case: Path of the scan.
        label: Name of the class or region.
        lesions: Lesions of the reference.
        findings: Findings, whatever their confidence, without those in what nobody annotated.
        touched: For each finding the numbers of the lesions that it touches; none if it is false.
    """

    case: str
    label: str
    lesions: tuple[Lesion, ...]
    findings: tuple[Finding, ...]
    touched: tuple[tuple[int, ...], ...]

    def heights(self, values: Sequence[float]) -> tuple[list[float], list[float]]:
        """Return the highest value of the findings of each lesion, 0 if missed, and those of false ones.

        Args:
            values: A value for each finding, such as its confidence.
        """
        true, false = [0.0] * len(self.lesions), []
        for value, touched in zip(values, self.touched, strict=True):
            for number in touched:
                true[number - 1] = max(true[number - 1], value)
            if not touched:
                false.append(value)
        return true, false


def find_candidates(
    network: nn.Module,
    data: Iterable[Mapping[str, Any]],
    inferer: Any,
    labels: Sequence[str],
    lesion_labels: Sequence[str],
    regions: Sequence[Sequence[int]] | None = None,
    ignore_label: int | None = None,
    amp: bool = False,
    amp_kwargs: Mapping[str, Any] | None = None,
) -> list[CaseFindings]:
    """Segment cases as ``segment`` does, and match the findings with the lesions of their labels.

    Args:
        network: Network at the level that the confidence is for.
        data: Batches with ``"image"``, preprocessed, and ``"label"`` (B, 1, *spatial) on its file's grid.
        inferer: :class:`~monai_unetpp.VolumeInferer`.
        labels: Names of the classes, or of the regions, the background first.
        lesion_labels: Names among them whose components are lesions.
        regions: Values of the label in each region, where classes overlap.
        ignore_label: Value of the label where nobody annotated: findings that reach it and touch no lesion
            are left out, as nobody knows whether they are false.
        amp: Whether to compute in mixed precision.
        amp_kwargs: Arguments of ``torch.autocast``.

    Returns:
        One entry per case and class of lesions.

    Raises:
        ValueError: if ``lesion_labels`` is empty or names no class.
    """
    names = list(labels[1:])
    unknown = [name for name in lesion_labels if name not in names]
    if unknown or not lesion_labels:
        raise ValueError(
            f"lesion_labels must name classes whose components are lesions, among {', '.join(names)}, got "
            f"{unknown[0] if unknown else 'none'}: --lesion_labels \"['{names[-1]}']\"."
        )
    of_regions = regions or [(n,) for n in range(1, len(labels))]
    classes = {name: tuple(values) for name, values in zip(names, of_regions, strict=True)}
    if regions is None:  # which classes are measured is free: there is one probability for all
        classes = {name: classes[name] for name in lesion_labels}
    device = next(network.parameters()).device
    found = []
    with eval_mode(network), kernels.autocast(device, amp, amp_kwargs)():
        for batch in data:
            for item in decollate_batch(dict(batch)):
                made = inferer.segment(item["image"][None].to(device), network, confidence=True)
                every = _matched(item, made, classes, ignore_label)
                found += [each for each in every if each.label in lesion_labels]
    return found


def _matched(
    item: Mapping[str, Any], made: Any, classes: Mapping[str, tuple[int, ...]], ignore_label: int | None
) -> Iterator[CaseFindings]:
    """Yield the findings of each class in a case."""
    mask = made.labels[0, 0].cpu().numpy()
    affine = made.labels.affine.reshape(4, 4).cpu().double().numpy()
    image = np.broadcast_to(np.float32(0), mask.shape)  # intensities are no features
    findings = find(mask, affine, classes, image, made.confidence[0].cpu().numpy())
    label = torch.as_tensor(item["label"][0]).cpu().numpy()
    unknown = None if ignore_label is None else label == ignore_label
    case = str(item["image"].meta.get("filename_or_obj", ""))
    for name, values in classes.items():
        of_class = [each for each in findings if each.label == name]
        yield match_lesions(
            case, name, of_class, np.isin(mask, values), np.isin(label, values), affine, unknown
        )


def match_lesions(
    case: str,
    label: str,
    findings: Sequence[Finding],
    mask: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    affine: NDArray[np.float64],
    unknown: NDArray[np.bool_] | None = None,
) -> CaseFindings:
    """Match findings with the lesions that they touch, by the rule of :mod:`monai_unetpp.lesions`.

    Args:
        case: Path of the scan.
        label: Name of the class.
        findings: Findings of the class.
        mask: Mask that they are the components of, (*spatial).
        reference: Mask whose components are the lesions, (*spatial).
        affine: Voxel index to world mm, (4, 4).
        unknown: Where nobody annotated, (*spatial).
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    lesions = score_lesions(torch.from_numpy(mask), torch.from_numpy(reference), spacing, case).lesions
    (numbered, _), (references, _) = label_components(mask), label_components(reference)
    kept, touched = [], []
    for each in findings:
        assert each.box is not None
        inside = numbered[each.box] == numbered[each.voxel]
        numbers = tuple(int(n) for n in np.unique(references[each.box][inside]) if n)
        if numbers or unknown is None or not unknown[each.box][inside].any():
            kept.append(each)
            touched.append(numbers)
    return CaseFindings(case, label, tuple(lesions), tuple(kept), tuple(touched))
