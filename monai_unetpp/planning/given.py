# SPDX-License-Identifier: Apache-2.0
"""Settings that are given instead of chosen: each is checked before anything is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from monai_unetpp.network import SKIPS

__all__ = ["check_given"]

Test = Callable[[Any], bool]


def check_given(given: Mapping[str, Any]) -> None:
    """Raise a ValueError that says what would work, unless every value is of the kind that its key takes.

    Keys that a plan does not have pass: ``make_plan`` lists those that it has.
    """
    for key, value in given.items():
        test, wanted = CHECKS.get(key, (None, ""))
        if test is not None and not test(value):
            raise ValueError(f"{key} must be {wanted}, got {value!r}.")


def _whole(low: int) -> Test:
    return lambda value: type(value) is int and value >= low


def _between(low: float, high: float, ends: str = "[]") -> Test:
    """Numbers of an interval, whose ends are in it, ``[]``, or not, ``()``."""

    def test(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        above = value >= low if ends[0] == "[" else value > low
        return above and (value <= high if ends[1] == "]" else value < high)

    return test


def _list_of(test: Test, lengths: tuple[int, ...] = (), least: int = 1) -> Test:
    return lambda value: (
        isinstance(value, (list, tuple))
        and (len(value) in lengths if lengths else len(value) >= least)
        and all(map(test, value))
    )


def _or_none(test: Test) -> Test:
    return lambda value: value is None or test(value)


def _one_of(*values: Any) -> Test:
    return lambda value: any(type(value) is type(each) and value == each for each in values)


def _each_row(test: Test) -> Test:
    """A list with a number per row, or with a list of one number per axis."""
    return _list_of(lambda row: test(row) or _list_of(test, (2, 3))(row))


_window = _list_of(_between(-math.inf, math.inf, "()"), (2,))
CHECKS: dict[str, tuple[Test, str]] = {
    "spatial_dims": (_one_of(2, 3), "2 or 3"),
    "in_channels": (_whole(1), "a whole number from 1 on"),
    "out_channels": (_whole(1), "a whole number from 1 on"),
    "pixdim": (
        _list_of(lambda value: _between(-math.inf, math.inf, "()")(value) and value != 0, (3,)),
        "[X, Y, Z], mm, such as [1.0, 1.0, 1.5]",
    ),
    "hounsfield": (_one_of(True, False), "True or False"),
    "hu_range": (
        _or_none(lambda value: _window(value) and value[0] < value[1]),
        "[LOW, HIGH], such as [-100, 300], or None",
    ),
    "normalize_nonzero": (_one_of(True, False), "True or False"),
    "skips": (_one_of(*SKIPS), f"one of {', '.join(SKIPS)}"),
    "channels": (_list_of(_whole(1), least=2), "a list with a width per row, such as [16, 32, 64]"),
    "strides": (_each_row(_whole(1)), "a list with the step down to each row, such as [2, [2, 2, 1]]"),
    "kernel_size": (_each_row(_whole(1)), "a list with the size of each row, such as [[3, 3, 1], 3, 3]"),
    "batch_size": (_whole(1), "a whole number from 1 on"),
    "patches_per_case": (_whole(1), "a whole number from 1 on"),
    "val_fraction": (_between(0, 1, "()"), "a share between 0 and 1, such as 0.2"),
    "growth": (
        _or_none(_list_of(_between(0, 1, "()"))),
        "a list of shares of the epochs between 0 and 1, such as [0.33, 0.67], or None",
    ),
    "max_epochs": (_whole(1), "a whole number from 1 on"),
    "val_interval": (_whole(1), "a whole number of epochs from 1 on"),
    "optimizer": (
        lambda value: isinstance(value, str) and bool(value),
        "the name of a class, such as torch.optim.AdamW",
    ),
    "learning_rate": (_between(0, math.inf, "()"), "a number above 0, such as 0.003"),
    "average_decay": (_between(0, 1, "[)"), "0, for no average, or a number below 1, such as 0.998"),
    "cache_rate": (_between(0, 1), "a share from 0 to 1"),
    "num_workers": (_whole(0), "a whole number from 0 on"),
    "shift": (_or_none(_list_of(_whole(0), (2, 3))), "voxels by axis, such as [8, 8, 8], or None"),
    "flip_axes": (_list_of(_one_of(0, 1, 2), least=0), "a list of axes, such as [0, 1]"),
    "rotate_range": (
        _list_of(_between(0, math.inf, "[)"), (1, 2, 3)),
        "radians by axis, such as [0.26, 0.26, 0.26], or [0.3] in 2D",
    ),
    "augmentation_prob": (_between(0, 1), "a share from 0 to 1"),
    "largest_component": (_one_of(True, False), "True or False"),
}
