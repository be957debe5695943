# SPDX-License-Identifier: Apache-2.0
"""Pictures of cases, so that a person sees what went wrong."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.metrics import compute_dice

from monai_unetpp.files import whole_file
from monai_unetpp.readers import volume_loader

__all__ = ["ContactSheetSaver"]

logger = logging.getLogger(__name__)

orientations: Any = nib.orientations  # untyped

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


def _turn(affine: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """How to turn a volume for a slice as radiologists look at it: the patient's left on the right."""
    here = orientations.io_orientation(affine)
    return orientations.ornt_transform(here, orientations.axcodes2ornt("LAS"))


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
        self.window = tuple(window)
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
            turn = _turn(item["label"].affine.numpy())
            image, label, pred = (
                orientations.apply_orientation(np.asarray(volume), turn)
                for volume in (self.load(name)[0], label, pred)
            )
            all_spacing = [0.0] * 3
            for axis, size in zip(turn[:, 0], item["label"].pixdim.tolist(), strict=True):
                all_spacing[int(axis)] = round(size, 3)
            across = max(range(3), key=lambda axis: (all_spacing[axis], axis))
            mass = label if label.any() else pred
            n = int(mass.sum(axis=tuple(axis for axis in range(3) if axis != across)).argmax())
            spacing = [s for axis, s in enumerate(all_spacing) if axis != across]
            volumes = {"image": image, "label": label, "pred": pred}
            planes = {key: np.take(volume, n, axis=across).T for key, volume in volumes.items()}
            self.slices.append(
                _Slice(name=Path(name).name, dice=dice, aspect=spacing[1] / spacing[0], **planes)
            )

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
                low, high = self.window
                axes.imshow(kept.image, cmap="gray", vmin=low, vmax=high, origin="lower", aspect=kept.aspect)
                for mask, colour in ((kept.label, REFERENCE), (kept.pred, PREDICTION)):
                    if mask.any():
                        axes.contour(mask, levels=[0.5], colors=colour, linewidths=1)
                axes.set_title(f"{title}{kept.name}\nDice {kept.dice:.2f}", fontsize="x-small")
                title = ""
        figure.suptitle("reference green, prediction red", fontsize="small")
        with whole_file(self.path) as path:
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
