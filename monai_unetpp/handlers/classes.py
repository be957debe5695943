# SPDX-License-Identifier: Apache-2.0
"""Classes that cannot be learnt, or were not.

- AbsentClasses: before training, classes that no label of one side has; a validation without any is refused
- ZeroDice: after validation, classes of which not one voxel was found
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import Dataset
from monai.transforms import Compose
from torch import Tensor

from monai_unetpp.readers import volume_loader
from monai_unetpp.transforms import LoadImageAndLabeld

__all__ = ["AbsentClasses", "ZeroDice"]

logger = logging.getLogger(__name__)

ADVICE = {
    "training": "the network cannot learn it. Look at the values of the labels, at pixdim (small structures "
    "vanish when labels are resampled), and at the split: another --seed holds out other scans.",
    "validation": "it has no validation Dice, and the best epoch is chosen without it. Another --seed or a "
    "larger --val_fraction holds out scans that have it.",
    "fold": "it has no validation Dice in this fold, and the best epoch is chosen without it. Another fold "
    "may have it. If few scans have it, fewer --folds hold out more of them; if none has, look at the values "
    "of the labels.",
}


class AbsentClasses:
    """Name the classes that are in none of the training labels, or of the validation labels, before training.

    Without any class in a validation label no epoch would be the best, and the training is refused.

    Labels that a ``CacheDataset`` keeps in memory are looked at as they were resampled, others are read
    from disk; reading stops as soon as every class was seen.

    Args:
        train: Data set of the training cases.
        validate: Data set of the held-out cases.
        labels: Names of the classes in the order of their values, the background first.
        folds: Number of folds of the cross-validation, if there is one: then the advice is another.
        regions: Values of the labels in each class, where classes overlap.
    """

    def __init__(
        self,
        train: Dataset,
        validate: Dataset,
        labels: Sequence[str],
        folds: int | None = None,
        regions: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.datasets = {"training": train, "validation": validate}
        values = [[n] for n in range(1, len(labels))] if regions is None else regions
        self.values = dict(zip(labels[1:], values, strict=True))
        self.advice = ADVICE if folds is None else {**ADVICE, "validation": ADVICE["fold"]}

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self) -> None:
        """Log a warning for each class that is absent.

        Raises:
            ValueError: if all are absent from the validation labels.
        """
        for side, dataset in self.datasets.items():
            absent = self.values
            for label in _labels(dataset):
                found = {int(value) for value in torch.unique(label)}
                absent = {name: values for name, values in absent.items() if found.isdisjoint(values)}
                if not absent:
                    break
            if side == "validation" and absent == self.values:
                raise ValueError(
                    f"none of the {len(dataset)} validation labels has a class, {' or '.join(absent)}: no "
                    "epoch would be the best. Hold out scans that have one, by another --seed, a larger "
                    "--val_fraction or fewer --folds, or look at the values of the labels."
                )
            for name, values in absent.items():
                shown = ", ".join(map(str, values))
                logger.warning(
                    f"{name} (value {shown}) is in none of the {len(dataset)} {side} labels: "
                    f"{self.advice[side]}"
                )


class ZeroDice:
    """Warn once of each class whose Dice is exactly 0 after a validation, with what to look at.

    Args:
        class_labels: Names of the classes without the background.
        prefix: Beginning of the metrics' names, which end in the name of a class.
    """

    def __init__(self, class_labels: Sequence[str], prefix: str = "val_dice_") -> None:
        self.class_labels = list(class_labels)
        self.prefix = prefix
        self.warned: set[str] = set()

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator that computes the Dice of each class."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Warn of the classes that have not been warned of."""
        zero = [name for name in self.class_labels if engine.state.metrics.get(self.prefix + name) == 0]
        if new := [name for name in zero if name not in self.warned]:
            self.warned.update(new)
            logger.warning(
                f"The validation Dice of {' and '.join(new)} is exactly 0: not one voxel is right. In the "
                "first epochs this is common. If it stays, look at pixdim (is the structure some voxels "
                "wide?), hu_range (are its intensities clipped?), roi_size and patches_per_case (do patches "
                "contain it?), random_transforms (a flip turns left into right), learning_rate, max_epochs."
            )


def _labels(dataset: Dataset) -> Iterator[Tensor]:
    """Yield the labels in memory, then those on disk."""
    in_memory = [item["label"] for item in getattr(dataset, "_cache", []) if _has_label(item)]
    yield from in_memory
    transforms = dataset.transform.flatten().transforms if isinstance(dataset.transform, Compose) else []  # type: ignore[no-untyped-call]
    loader = next((each for each in transforms if isinstance(each, LoadImageAndLabeld)), None)
    load = volume_loader() if loader is None else loader.load_label
    for case in list(dataset.data)[len(in_memory) :]:
        yield load(case["label"])


def _has_label(item: Any) -> bool:
    return isinstance(item, Mapping) and isinstance(item.get("label"), Tensor)
