# SPDX-License-Identifier: Apache-2.0
"""From the values of a mask to classes 0, 1, 2, ..."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LabelValues", "as_classes"]

LabelValues = Sequence[int] | str | None

MOST_NAMED = 10  # values that a message lists


def as_classes(numbers: NDArray[Any], label_values: LabelValues, name: str) -> NDArray[np.float32]:
    """Return the classes of a mask.

    Args:
        numbers: Values of the mask, whole numbers.
        label_values: Values of the classes in their order, the background first; ``"nonzero"`` for one class,
            which is all that is not 0.
        name: Name of the mask, for the message.

    Raises:
        ValueError: if the mask has a value that is none of ``label_values``.
    """
    if label_values == "nonzero":
        return (numbers != 0).astype(np.float32)
    if label_values is None or isinstance(label_values, str):
        raise ValueError(f"label_values must be a list of values, or 'nonzero', got {label_values!r}.")
    classes = np.full(numbers.shape, -1, np.float32)
    for number, value in enumerate(label_values):
        classes[numbers == value] = number
    if (classes < 0).any():
        wrong = np.unique(numbers[classes < 0]).tolist()
        raise ValueError(
            f"label {name} must have values {', '.join(map(str, label_values))} (label_values), got "
            f"{', '.join(f'{value:.9g}' for value in wrong[:MOST_NAMED])}"
            f"{f' and {len(wrong) - MOST_NAMED} more' if len(wrong) > MOST_NAMED else ''}."
        )
    return classes
