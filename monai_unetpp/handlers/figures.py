# SPDX-License-Identifier: Apache-2.0
"""Figures of cases with outlines, after an evaluation and during training."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.handlers import TensorBoardHandler
from monai.metrics import compute_dice
from numpy.typing import ArrayLike
from torch import Tensor

from monai_unetpp.files import atomic_write
from monai_unetpp.pictures import Array, View, draw_plane
from monai_unetpp.readers import volume_loader

__all__ = ["ContactSheetSaver", "OutlineImages"]

logger = logging.getLogger(__name__)

REFERENCE, PREDICTION = "#3ddc84", "#ff5252"


@dataclass(frozen=True)
class _CaseSlice:
    """One slice (rows, columns) of a case, and the score of the case."""

    name: str
    dice: float
    image: np.ndarray[Any, Any]
    label: np.ndarray[Any, Any]
    pred: np.ndarray[Any, Any]
    aspect: float


class ContactSheetSaver:
    """Draw the best, the median and the worst cases, each as a slice with reference and prediction outlined.

    The slice, across the axis of the largest spacing, has the most voxels of the last class in the reference,
    or else in the prediction. A case without that class scores 1 if it is not predicted either, otherwise 0.

    Args:
        path: Path of the PNG to write.
        window: Intensities drawn black and white, such as HU.
        count: Number of cases of each kind.
    """

    def __init__(self, path: str, window: tuple[float, float] = (-1000, 400), count: int = 4) -> None:
        self.path = Path(path)
        self.window = (window[0], window[1])
        self.count = count
        self.load = volume_loader()
        self.slices: list[_CaseSlice] = []

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator whose ``pred`` and ``label`` are one-hot on the file's own grid."""
        engine.add_event_handler(Events.STARTED, lambda: self.slices.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def __call__(self, engine: Engine) -> None:
        """Store a slice of every case of an iteration."""
        for item in engine.state.output:  # type: ignore[union-attr]
            name = str(item["image"].meta["filename_or_obj"])
            pred, label = (torch.as_tensor(item[key])[-1].cpu() for key in ("pred", "label"))
            dice = float(compute_dice(pred[None, None], label[None, None], ignore_empty=False))
            view = View(item["label"].affine, item["label"].pixdim.tolist())
            planes = _slice_with_most(view, image=self.load(name)[0], label=label, pred=pred)
            self.slices.append(_CaseSlice(name=Path(name).name, dice=dice, aspect=view.aspect, **planes))

    def write(self) -> None:
        """Write the figure."""
        from matplotlib.figure import Figure  # not pyplot: no window, no global state

        scored = sorted(self.slices, key=lambda s: -s.dice)
        if not scored:
            return
        rows = self._rows(scored)
        count = max(len(slices) for _, slices in rows)
        figure = Figure(figsize=(2.6 * count, 2.8 * len(rows)), layout="constrained")
        grid = figure.subplots(len(rows), count, squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        for axes_of_row, (title, slices) in zip(grid, rows, strict=True):
            for axes, kept in zip(axes_of_row, slices, strict=False):
                outlines = {REFERENCE: kept.label, PREDICTION: kept.pred}
                draw_plane(axes, kept.image, outlines, self.window, kept.aspect)
                axes.set_title(f"{title}{kept.name}\nDice {kept.dice:.2f}", fontsize="x-small")
                title = ""
        figure.suptitle("reference green, prediction red", fontsize="small")
        with atomic_write(self.path) as path:
            figure.savefig(path, dpi=110)
        logger.info(f"Drew {len(scored)} cases, best to worst, in {self.path}.")

    def _rows(self, scored: list[_CaseSlice]) -> list[tuple[str, list[_CaseSlice]]]:
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
    """Draw cases in TensorBoard, ``cases/NAME``: a slice with reference and prediction outlined.

    The slice, across the axis of the largest spacing, has the most voxels of the last class in the reference,
    and is the same at every validation. MONAI's ``TensorBoardImageHandler`` shows whole volumes as
    animations, without outlines.

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
        maps = {key: _label_map(item[key]) for key in ("label", "pred")}
        planes = _slice_with_most(view, image=item["image"][0].cpu(), **maps)
        figure = Figure(figsize=(4, 4), dpi=100, facecolor="black")
        outlines = {REFERENCE: planes["label"], PREDICTION: planes["pred"]}
        draw_plane(figure.add_axes((0, 0, 1, 1)), planes["image"], outlines, self.window, view.aspect)
        return figure


def _slice_with_most(view: View, image: ArrayLike, label: ArrayLike, pred: ArrayLike) -> dict[str, Array]:
    """Return the slice of each volume with the most of the last class in ``label``, or else in ``pred``."""
    turned = {"image": view.turn(image), "label": view.turn(label), "pred": view.turn(pred)}
    found = turned["label"] if turned["label"].any() else turned["pred"]
    n = int(view.profile(found == found.max()).argmax())
    return {key: view.plane(volume, n) for key, volume in turned.items()}


def _label_map(one_hot: Tensor) -> Tensor:
    """Return the classes (*spatial) of a one-hot map (C, *spatial)."""
    return torch.as_tensor(one_hot).argmax(0).cpu()
