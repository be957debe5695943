# SPDX-License-Identifier: Apache-2.0
"""Accuracy of one prediction, and its mean over cases."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.metrics import compute_dice, compute_iou, compute_surface_dice
from monai.metrics.utils import do_metric_reduction
from torch import Tensor

__all__ = ["METRICS", "case_name", "check_scored", "mean_scores", "score_case"]

METRICS = ("dice", "iou", "surface_dice")

logger = logging.getLogger(__name__)


def score_case(item: Mapping[str, Any], surface_tolerance: float, warn: bool) -> Tensor:
    """Return Dice, IoU and surface Dice of one case, (3, classes); NaN for a class that its label lacks."""
    label = item["label"]
    pred = item["pred"].to(label.device)
    if pred.shape != label.shape:
        raise ValueError(
            f"the label of {case_name(item)} must be one-hot on the grid of the prediction, "
            f"{list(pred.shape)}, got {list(label.shape)}: see postprocessing."
        )
    # MONAI 1.5 has three axes even for a picture
    spacing = label.pixdim.tolist()[: label.ndim - 1] if isinstance(label, MetaTensor) else None
    y_pred, y = (torch.as_tensor(x)[None].float() for x in (pred, label))
    background = y.shape[1] == 1  # the only channel is the class
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI's, of a missing class and of its own arguments
        scores = [
            compute_dice(y_pred, y, background),
            compute_iou(y_pred, y, background),
            compute_surface_dice(
                y_pred,
                y,
                class_thresholds=[surface_tolerance] * (y.shape[1] - (not background)),
                include_background=background,
                spacing=spacing,
            ),
        ]
    result = torch.cat([score.cpu().float() for score in scores])
    result[:, result[0].isnan()] = torch.nan
    if warn and result.isnan().all():
        logger.warning(f"{case_name(item)} has no class but background in its label: it has no score.")
    return result


def mean_scores(cases: Sequence[Tensor], names: Sequence[str]) -> dict[str, Any]:
    """Return the accuracy of a ``LevelScore`` from the (metrics, classes) of each case."""
    found: dict[str, Any] = {}
    for metric, values in zip(METRICS, torch.stack(list(cases), dim=1), strict=True):  # (cases, classes) each
        # a copy, since MONAI writes into its input
        found[metric] = float(do_metric_reduction(values.clone(), "mean")[0])
        by_class = values.nanmean(dim=0).tolist()
        found[f"{metric}_per_class"] = dict(zip(names, by_class, strict=True))
        if metric == "dice":
            found["dice_per_case"] = tuple(values.nanmean(dim=1).tolist())
            columns = [tuple(column) for column in values.T.tolist()]
            found["dice_per_case_and_class"] = dict(zip(names, columns, strict=True))
    return found


def check_scored(cases: Sequence[Tensor]) -> None:
    """Raise a ValueError if there is no case, or none that has a class."""
    if not cases:
        raise ValueError("data must hold at least one case: the validation set is empty.")
    if torch.stack(list(cases)).isnan().all():
        raise ValueError(
            f"data must have a label with a class other than background: the labels of all {len(cases)} "
            "cases are background only, so no level can be told from another."
        )


def case_name(item: Mapping[str, Any], unknown: str = "a case") -> str:
    """Return the path of the image of a case, or ``unknown`` if it has none."""
    image = item["image"]
    return str(image.meta.get("filename_or_obj", unknown)) if isinstance(image, MetaTensor) else unknown
