# SPDX-License-Identifier: Apache-2.0
"""Distances of surfaces in mm, as metrics of an evaluator: MONAI's, with the spacing of each label."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.metrics import CumulativeIterationMetric, HausdorffDistanceMetric, SurfaceDiceMetric
from torch import Tensor

from monai_unetpp.handlers.scores import ScoreOfCases

__all__ = ["HausdorffDistance95", "SurfaceDice"]


class _SurfaceMetric(ScoreOfCases):
    """A metric of MONAI that takes the spacing; a class that a label lacks has no score, NaN, as in Dice."""

    def __init__(self, metric: CumulativeIterationMetric, output_transform: Callable[[Any], Any]) -> None:
        super().__init__(metric_fn=metric, output_transform=output_transform)

    def update(self, output: Sequence[Any]) -> None:
        """Add cases: predictions and labels, one-hot, lists of (C, *spatial)."""
        for pred, label in zip(*output, strict=True):
            spacing = label.pixdim.tolist() if hasattr(label, "pixdim") else 1
            with warnings.catch_warnings():
                # MONAI's: of a class without a voxel, and of an argument that it passes to itself
                warnings.simplefilter("ignore", UserWarning)
                warnings.filterwarnings("ignore", "monai.metrics.utils get_mask_edges", FutureWarning)
                self.metric_fn([torch.as_tensor(pred)], [torch.as_tensor(label)], spacing=spacing)


class HausdorffDistance95(_SurfaceMetric):
    """95th percentile of the distance of the surfaces of each class, symmetric, mm (pixels without spacing).

    It is infinite where nothing of a class was found, and NaN for a class that the label lacks.

    Args:
        output_transform: Function from an engine's output to predictions and labels, one-hot, lists of
            (C, *spatial) with the background first.
    """

    def __init__(self, output_transform: Callable[[Any], Any]) -> None:
        super().__init__(_Hausdorff(include_background=False, percentile=95), output_transform)


class SurfaceDice(_SurfaceMetric):
    """Normalised surface Dice of each class: share of the surfaces that agree up to a tolerance, in [0, 1].

    It is NaN for a class that the label lacks.

    Args:
        tolerance: Distance up to which surfaces agree, mm (pixels without a spacing).
        classes: Number of classes without the background.
        output_transform: As in :class:`HausdorffDistance95`.
    """

    def __init__(self, tolerance: float, classes: int, output_transform: Callable[[Any], Any]) -> None:
        super().__init__(_SurfaceDice([tolerance] * classes), output_transform)


class _Hausdorff(HausdorffDistanceMetric):
    def _compute_tensor(self, y_pred: Tensor, y: Tensor, **kwargs: Any) -> Tensor:  # type: ignore[override]
        scores = super()._compute_tensor(y_pred, y, **kwargs)
        found = y_pred[:, 1:].flatten(2).any(dim=2).to(scores.device)
        return _only_present(torch.where(found, scores, torch.inf), y)


class _SurfaceDice(SurfaceDiceMetric):
    def _compute_tensor(self, y_pred: Tensor, y: Tensor, **kwargs: Any) -> Tensor:  # type: ignore[override]
        return _only_present(super()._compute_tensor(y_pred, y, **kwargs), y)


def _only_present(scores: Tensor, y: Tensor) -> Tensor:
    """Return the scores (B, C - 1) with NaN for classes without a voxel in the labels (B, C, *spatial)."""
    present = y[:, 1:].flatten(2).any(dim=2).to(scores.device)
    return torch.where(present, scores, torch.nan)
