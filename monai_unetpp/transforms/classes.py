# SPDX-License-Identifier: Apache-2.0
"""From the values of a mask to classes 0, 1, 2, ..."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LabelValues", "as_classes", "check_ignore_label"]

LabelValues = Sequence[int] | str | None

MOST_NAMED = 10  # values that a message lists


def as_classes(
    numbers: NDArray[Any], label_values: LabelValues, name: str, ignore_label: int | None = None
) -> NDArray[np.float32]:
    """Return the classes of a mask.

    Args:
        numbers: Values of the mask, whole numbers.
        label_values: Values of the classes in their order, the background first; ``"nonzero"`` for one class,
            which is all that is not 0.
        name: Name of the mask, for the message.
        ignore_label: Value of voxels that nobody annotated, which they keep.

    Raises:
        ValueError: if the mask has a value that is none of ``label_values``.
    """
    ignored = np.zeros(numbers.shape, bool) if ignore_label is None else numbers == ignore_label
    gap = np.float32(0 if ignore_label is None else ignore_label)
    if label_values == "nonzero":
        return np.where(ignored, gap, (numbers != 0).astype(np.float32))
    if label_values is None or isinstance(label_values, str):
        raise ValueError(f"label_values must be a list of values, or 'nonzero', got {label_values!r}.")
    classes = np.full(numbers.shape, -1, np.float32)
    for number, value in enumerate(label_values):
        classes[numbers == value] = number
    unknown = (classes < 0) & ~ignored
    if unknown.any():
        wrong = np.unique(numbers[unknown]).tolist()
        raise ValueError(
            f"label {name} must have values {', '.join(map(str, label_values))} (label_values), got "
            f"{', '.join(f'{value:.9g}' for value in wrong[:MOST_NAMED])}"
            f"{f' and {len(wrong) - MOST_NAMED} more' if len(wrong) > MOST_NAMED else ''}."
        )
    return np.where(ignored, gap, classes)


def check_ignore_label(
    ignore_label: int | None, classes: int, label_values: LabelValues = None, name: str = "label_values"
) -> None:
    """Check that a value for voxels that nobody annotated is the value of no class.

    Args:
        ignore_label: That value, or ``None``.
        classes: Number of classes.
        label_values: Values of the classes in masks, see :func:`as_classes`.
        name: Name of these values, for the message.

    Raises:
        ValueError: if it is a class, or not a whole number.
    """
    if ignore_label is None:
        return
    if not isinstance(ignore_label, int) or isinstance(ignore_label, bool):
        raise ValueError(f"ignore_label must be a whole number such as 255, or None, got {ignore_label!r}.")
    if ignore_label in range(classes):
        raise ValueError(
            f"ignore_label must be none of the classes 0..{classes - 1} (out_channels = {classes}), "
            f"got {ignore_label}: use a value of no class, such as 255."
        )
    values = [] if label_values is None or isinstance(label_values, str) else label_values
    if ignore_label in values:
        raise ValueError(
            f"ignore_label must be none of {name}, {', '.join(map(str, values))}, got {ignore_label}."
        )
