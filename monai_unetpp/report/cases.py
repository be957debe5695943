# SPDX-License-Identifier: Apache-2.0
"""Which held-out cases are shown, and their pictures: the slice with the most foreground, outlined."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from monai_unetpp.extras import require
from monai_unetpp.pictures import View, display_window
from monai_unetpp.pictures.panels import Panels
from monai_unetpp.report.results import Results

__all__ = ["PREDICTION", "REFERENCE", "CasePicture", "CaseScore", "draw_case", "representative_cases"]

REFERENCE, PREDICTION = "#40c4ff", "#ff9100"  # blue and orange differ for everybody
WIDTH, DPI = 2.8, 200  # inches, so that the text can be read where three pictures are side by side


@dataclass(frozen=True)
class CaseScore:
    """Score of a held-out case.

    Args:
        case: Path of the image, as the data name it.
        dice: Mean Dice over the classes, in [0, 1].
        fold: Name of the folder of the fold that held it out, such as ``"fold_0"``; ``""`` without folds.
    """

    case: str
    dice: float
    fold: str = ""


@dataclass(frozen=True)
class CasePicture:
    """Picture of a held-out case.

    Args:
        case: Path or name of the image.
        dice: Mean Dice over the classes, in [0, 1].
        png_bytes: Picture as PNG.
    """

    case: str
    dice: float
    png_bytes: bytes


def representative_cases(
    results: Results, level: int, precision: str = "float32", count: int = 1
) -> list[CaseScore]:
    """Return the best, the median and the worst held-out cases of all folds by Dice, best first.

    Args:
        results: Results of a bundle, with the scores of cases.
        level: Level whose scores count.
        precision: Precision whose scores count.
        count: Number of cases of each kind; of fewer cases than three times as many, all are returned.
    """
    scored = [
        CaseScore(case, dice, fold)
        for fold, scores in results.levels.items()
        for score in scores
        if (score.level, score.precision) == (level, precision)
        for case, dice in zip(score.cases, score.dice_per_case, strict=True)
        if not math.isnan(dice)
    ]
    scored.sort(key=lambda each: -each.dice)
    if len(scored) <= 3 * count:
        return scored
    middle = (len(scored) - count) // 2
    return [*scored[:count], *scored[middle : middle + count], *scored[-count:]]


def draw_case(
    case: str,
    dice: float,
    image: ArrayLike,
    label: ArrayLike,
    prediction: ArrayLike,
    affine: ArrayLike | None = None,
    picture: bool = False,
) -> CasePicture:
    """Draw the slice with the most foreground in the label, or else in the prediction, with both outlined.

    It is cut across the axis of the largest spacing, in radiological orientation, with the window of
    intensities that suits it, orientation and scale. A small structure is magnified in a corner.

    Args:
        case: Path or name of the image.
        dice: Mean Dice over the classes, in [0, 1].
        image: Volume (*spatial) of one channel, three or two dimensions.
        label: Label map (*spatial), class numbers.
        prediction: Label map (*spatial), class numbers.
        affine: Voxel index to world mm (RAS+), (4, 4); by default voxels of 1 mm.
        picture: Whether it is a picture: no sides of a patient, pixels instead of mm.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
        ValueError: if the three have other shapes, or are no volume of one channel.
    """
    require("figures", "matplotlib")
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    arrays = [np.asarray(each) for each in (image, label, prediction)]
    shapes = [each.shape for each in arrays]
    if len({*shapes}) > 1 or len(shapes[0]) not in (2, 3):
        raise ValueError(
            "image, label and prediction must be on one grid of two or three dimensions, got shapes "
            + ", ".join(map(str, shapes))
            + "."
        )
    volumes = [each.reshape(*shapes[0], *[1] * (3 - len(shapes[0]))) for each in arrays]
    matrix = np.eye(4) if affine is None else np.asarray(affine, dtype=float)
    view = View(matrix, np.linalg.norm(matrix[:3, :3], axis=0).tolist())
    if len(shapes[0]) == 2:
        picture = True
    turned = [view.turn(each) for each in volumes]
    found = turned[1] if turned[1].any() else turned[2]
    areas = view.profile(found != 0)
    n = int(areas.argmax()) if areas.any() else len(areas) // 2
    plane, reference, predicted = (view.plane(each, n) for each in turned)
    pair = (plane, ((reference != 0) | (predicted != 0)).astype(np.uint8))
    window = display_window(torch.as_tensor(volumes[0].astype(np.float32)), [pair], view.pixel)
    caption = "" if picture else f"{view.plane_name}, {n + 1} / {len(areas)}"
    outlines = [{REFERENCE: reference, PREDICTION: predicted}]
    panels = Panels([pair], [caption], window, view, picture, outlines, WIDTH)
    sheet: Any = _Sheet(Figure(figsize=panels.size, dpi=DPI), *panels.size)
    panels.draw(sheet)
    buffer = io.BytesIO()
    sheet.figure.savefig(buffer, format="png")
    return CasePicture(case, float(dice), buffer.getvalue())


class _Sheet:
    """A figure that consists of panels alone."""

    def __init__(self, figure: Any, width: float, height: float) -> None:
        self.figure, self.width, self.height = figure, width, height

    def axes(self, x: float, y: float, width: float, height: float) -> Any:
        """Return black axes, ``x`` and ``y`` inches from the lower left corner."""
        place = (x / self.width, y / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(place, facecolor="black", xticks=[], yticks=[])
