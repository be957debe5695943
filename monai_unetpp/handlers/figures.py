# SPDX-License-Identifier: Apache-2.0
"""Figures of cases with outlines, after an evaluation and during training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.handlers import TensorBoardHandler
from monai.metrics import compute_dice
from numpy.typing import ArrayLike
from torch import Tensor

from monai_unetpp.files import atomic_write
from monai_unetpp.handlers.gathering import gather_cases
from monai_unetpp.pictures import Array, DisplayWindow, View, display_window, draw_plane, largest_slices
from monai_unetpp.readers import volume_loader

__all__ = ["ContactSheetSaver", "OutlineImages"]

logger = logging.getLogger(__name__)

REFERENCE, PREDICTION = "#3ddc84", "#ff5252"


@dataclass(frozen=True)
class _CaseSlice:
    """One slice (rows, columns) of a case for one of its classes, and the scores of the case."""

    name: str
    label_class: int
    dice: float
    mean_dice: float
    image: Array
    label: Array
    pred: Array
    aspect: float
    window: DisplayWindow


class ContactSheetSaver:
    """Draw the best, the median and the worst cases by mean Dice, with reference and prediction outlined.

    Each case is drawn once for each class: the slice, across the axis of the largest spacing, with the most
    voxels of the class in the reference, or else in the prediction. A class that is absent from a case scores
    1 if it is not predicted either, otherwise 0.

    Args:
        path: Path of the PNG to write.
        window: Intensities drawn black and white, such as HU; by default those that suit each case, see
            :func:`~monai_unetpp.pictures.display_window`.
        count: Number of cases of each kind.
        labels: Names of the classes, with the background's.
    """

    def __init__(
        self,
        path: str,
        window: Sequence[float] | None = None,
        count: int = 4,
        labels: Sequence[str] | None = None,
    ) -> None:
        self.path = Path(path)
        self.window = window
        self.count = count
        self.labels = labels
        self.load = volume_loader(modality=None)  # the case was checked where it was loaded
        self.slices: list[_CaseSlice] = []  # one per case and class; the classes of a case are neighbours

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator whose ``pred`` and ``label`` are one-hot on the file's own grid."""
        engine.add_event_handler(Events.STARTED, lambda: self.slices.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def __call__(self, engine: Engine) -> None:
        """Store a slice of every class of every case of an iteration."""
        for item in engine.state.output:  # type: ignore[union-attr]
            name = str(item["image"].meta["filename_or_obj"])
            pred, label = (torch.as_tensor(item[key]).cpu() for key in ("pred", "label"))
            view = View(item["label"].affine, item["label"].pixdim.tolist())
            volume = torch.as_tensor(self.load(name)[0])
            dice = [_dice(pred[c], label[c]) for c in range(1, len(label))]
            for c, score in enumerate(dice, 1):
                planes = _slice_with_most(view, image=volume, label=label[c], pred=pred[c])
                found = (planes["image"], planes["label"] + planes["pred"])
                window = display_window(volume, [found], view.pixel, self.window)
                mean = sum(dice) / len(dice)
                case = _CaseSlice(
                    Path(name).name, c, score, mean, **planes, aspect=view.aspect, window=window
                )
                self.slices.append(case)

    def write(self) -> None:
        """Write the figure of all processes' cases, in the first process."""
        from matplotlib.figure import Figure  # not pyplot: no window, no global state

        cases = sorted(gather_cases(self._cases()), key=lambda case: (-case[0].mean_dice, case[0].name))
        classes = sorted({kept.label_class for case in cases for kept in case})
        if idist.get_rank() != 0 or not classes:
            return
        rows = [
            (title, [case[n] for case in chosen])
            for title, chosen in self._rows(cases)
            for n in range(len(classes))
        ]
        count = max(len(slices) for _, slices in rows)
        # text is in points: a style that makes text larger, such as seaborn's, would fill the figure with it
        figure = Figure(figsize=(2.6 * count, 3.1 * len(rows)), dpi=110, layout="constrained")
        grid = figure.subplots(len(rows), count, squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        for axes_of_row, (title, slices) in zip(grid, rows, strict=True):
            for axes, kept in zip(axes_of_row, slices, strict=False):
                self._draw(axes, kept, title)
                title = ""
        figure.suptitle("reference green, prediction red", fontsize=8)
        with atomic_write(self.path) as path:
            figure.savefig(path)
        logger.info(f"Drew {len(cases)} cases, best to worst, in {self.path}.")

    def _draw(self, axes: Any, kept: _CaseSlice, title: str) -> None:
        outlines = {REFERENCE: kept.label, PREDICTION: kept.pred}
        draw_plane(axes, kept.image, outlines, kept.window[:2], kept.aspect)
        c = kept.label_class
        label = self.labels[c] if self.labels and c < len(self.labels) else f"class {c}"
        lines = [f"{title}{_shortened(kept.name)}", f"{label}: Dice {kept.dice:.2f}", kept.window.text]
        axes.set_title("\n".join(lines), fontsize=7, parse_math=False)

    def _cases(self) -> list[list[_CaseSlice]]:
        """Return the slices of each case, by class."""
        starts = [n for n, kept in enumerate(self.slices) if kept.label_class == 1]
        return [self.slices[n:end] for n, end in zip(starts, [*starts[1:], None], strict=True)]

    def _rows(self, scored: list[Any]) -> list[tuple[str, list[Any]]]:
        """Return best, median and worst cases, or all of them, best first, if there are few."""
        if len(scored) <= 3 * self.count:
            chunks = [scored[n : n + self.count] for n in range(0, len(scored), self.count)]
            return [("best: " if n == 0 else "", chunk) for n, chunk in enumerate(chunks)]
        middle = (len(scored) - self.count) // 2
        return [
            ("best: ", scored[: self.count]),
            ("median: ", scored[middle : middle + self.count]),
            ("worst: ", scored[-self.count :]),
        ]


class OutlineImages(TensorBoardHandler):
    """Draw cases in TensorBoard, ``cases/NAME``: slices with reference and prediction outlined.

    The slices, across the axis of the largest spacing, are those with the most voxels of each class in the
    reference, and are the same at every validation. MONAI's ``TensorBoardImageHandler`` shows whole volumes
    as animations, without outlines.

    Args:
        log_dir: Folder of the event file.
        window: Intensities of the network's input that are drawn black and white.
        count: Number of cases that are drawn, the first of the validation set.
        summary_writer: Writer of the event file; by default a new one in ``log_dir``.
    """

    def __init__(
        self,
        log_dir: str = "./runs",
        window: tuple[float, float] = (0, 1),
        count: int = 4,
        summary_writer: Any = None,
    ) -> None:
        super().__init__(summary_writer, log_dir)
        self.window = (window[0], window[1])
        self.count = count
        self._left = count

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator with ``image``, and ``pred`` and ``label`` one-hot, on one grid."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, lambda: self._writer.flush())

    def __call__(self, engine: Engine) -> None:
        """Draw the cases of an iteration, up to ``count``.

        Raises:
            ValueError: if an image is not on the grid of its label.
        """
        for item in engine.state.output[: self._left]:  # type: ignore[index]
            self._left -= 1
            image, label = item["image"][0], item["label"]
            if image.shape != label.shape[1:]:
                raise ValueError(
                    f"image and label must be on one grid to be drawn, got {tuple(image.shape)} and "
                    f"{tuple(label.shape[1:])}: resample both (resampled), or leave OutlineImages out."
                )
            name = Path(str(image.meta["filename_or_obj"])).name
            self._writer.add_figure(f"cases/{name}", self._draw(item), engine.state.epoch, close=False)

    def _begin(self) -> None:
        self._left = self.count

    def _draw(self, item: dict[str, Any]) -> Any:
        from matplotlib.figure import Figure  # not pyplot: no window, no global state

        view = View(item["label"].affine, item["label"].pixdim.tolist())
        maps = {"image": item["image"][0].cpu(), **{key: _label_map(item[key]) for key in ("label", "pred")}}
        turned = {key: view.turn(volume) for key, volume in maps.items()}
        chosen = _slices_of_classes(view, turned["label"], turned["pred"])
        figure = Figure(figsize=(4 * len(chosen), 4), dpi=100, facecolor="black")
        for place, n in enumerate(chosen):
            image, label, pred = (view.plane(turned[key], n) for key in ("image", "label", "pred"))
            axes = figure.add_axes((place / len(chosen), 0, 1 / len(chosen), 1))
            draw_plane(axes, image, {REFERENCE: label, PREDICTION: pred}, self.window, view.aspect)
        return figure


def _slice_with_most(view: View, image: ArrayLike, label: ArrayLike, pred: ArrayLike) -> dict[str, Array]:
    """Return the slice of each volume with the most of the mask ``label``, or else of ``pred``."""
    turned = {"image": view.turn(image), "label": view.turn(label), "pred": view.turn(pred)}
    found = turned["label"] if turned["label"].any() else turned["pred"]
    n = int(view.profile(found != 0).argmax())
    return {key: view.plane(volume, n) for key, volume in turned.items()}


def _slices_of_classes(view: View, label: Array, pred: Array) -> list[int]:
    """Return the slices with the most of each class in ``label``, or, if it has none, in ``pred``."""
    areas = view.areas(label if label.any() else pred)
    return sorted({*largest_slices(areas).values()}) or [len(areas) // 2]


def _dice(pred: Tensor, label: Tensor) -> float:
    """Return the Dice of two masks (*spatial); 1 if both are empty."""
    return float(compute_dice(pred[None, None], label[None, None], ignore_empty=False))


def _shortened(name: str) -> str:
    """Return a name of at most 32 characters, without its middle."""
    return name if len(name) <= 32 else f"{name[:16]}…{name[-15:]}"


def _label_map(one_hot: Tensor) -> Tensor:
    """Return the classes (*spatial) of a one-hot map (C, *spatial); the last one where classes overlap."""
    return len(one_hot) - 1 - torch.as_tensor(one_hot).flip(0).argmax(0).cpu()
