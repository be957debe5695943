# SPDX-License-Identifier: Apache-2.0
"""Pictures of cases, so that a person sees what went wrong, or how it gets better while training."""

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
class _Slice:
    """What is kept of a case: one slice, (rows, columns) each, and its score."""

    name: str
    dice: float
    image: np.ndarray[Any, Any]
    label: np.ndarray[Any, Any]
    pred: np.ndarray[Any, Any]
    aspect: float


class ContactSheetSaver:
    """Draw the best, the median and the worst cases: reference and prediction outlined on one slice each.

    The slice, across the axis of the largest spacing, is the one with most of the last class in the
    reference, or else in the prediction. A case without that class counts 1 if none of it was predicted, and
    otherwise 0.

    Args:
        path: of the PNG.
        window: intensities drawn black and white, such as HU.
        count: cases of each sort.
    """

    def __init__(self, path: str, window: tuple[float, float] = (-1000, 400), count: int = 4) -> None:
        self.path = Path(path)
        self.window = (window[0], window[1])
        self.count = count
        self.load = volume_loader()
        self.slices: list[_Slice] = []

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator that gives ``pred`` and ``label`` one-hot on the file's own grid."""
        engine.add_event_handler(Events.STARTED, lambda: self.slices.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def __call__(self, engine: Engine) -> None:
        """Keep a slice of every case of an iteration."""
        for item in engine.state.output:  # type: ignore[union-attr]
            name = str(item["image"].meta["filename_or_obj"])
            pred, label = (torch.as_tensor(item[key])[-1].cpu() for key in ("pred", "label"))
            dice = float(compute_dice(pred[None, None], label[None, None], ignore_empty=False))
            view = View(item["label"].affine, item["label"].pixdim.tolist())
            planes = _telling_planes(view, image=self.load(name)[0], label=label, pred=pred)
            self.slices.append(_Slice(name=Path(name).name, dice=dice, aspect=view.aspect, **planes))

    def write(self) -> None:
        """Draw the sheet."""
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

    def _rows(self, scored: list[_Slice]) -> list[tuple[str, list[_Slice]]]:
        """Best, median and worst; where there are few cases, all of them, best first."""
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
    """Draw cases in TensorBoard, ``cases/NAME``: all classes of reference and prediction outlined on a slice.

    The slice, across the axis of the largest spacing, is the one with most of the last class in the
    reference: the same at every validation. MONAI's ``TensorBoardImageHandler`` shows whole volumes as
    animations, without outlines.

    Args:
        log_dir: folder of the event file.
        window: intensities drawn black and white, of the image that the network is given.
        count: cases that are drawn, the first of the validation set.
        summary_writer: default one of its own, in ``log_dir``.
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
        """Attach to an evaluator that gives ``image`` and, one-hot, ``pred`` and ``label`` on one grid."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, lambda: self._writer.flush())

    def __call__(self, engine: Engine) -> None:
        """Draw the cases of an iteration, as long as there are some left to draw.

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
        planes = _telling_planes(view, image=item["image"][0].cpu(), **maps)
        figure = Figure(figsize=(4, 4), dpi=100, facecolor="black")
        outlines = {REFERENCE: planes["label"], PREDICTION: planes["pred"]}
        draw_plane(figure.add_axes((0, 0, 1, 1)), planes["image"], outlines, self.window, view.aspect)
        return figure


def _telling_planes(view: View, image: ArrayLike, label: ArrayLike, pred: ArrayLike) -> dict[str, Array]:
    """Return one slice of each volume: with most of the last class in ``label``, or else in ``pred``."""
    turned = {"image": view.turn(image), "label": view.turn(label), "pred": view.turn(pred)}
    found = turned["label"] if turned["label"].any() else turned["pred"]
    n = int(view.profile(found == found.max()).argmax())
    return {key: view.plane(volume, n) for key, volume in turned.items()}


def _label_map(one_hot: Tensor) -> Tensor:
    """(C, *spatial) to class numbers (*spatial)."""
    return torch.as_tensor(one_hot).argmax(0).cpu()
