# SPDX-License-Identifier: Apache-2.0
"""Regions: classes that overlap, such as a whole tumour and its core.

Each region is a set of values of one label map. The network has one channel with a sigmoid per region, and no
background. A mask is a label map again: regions are written in their order, each with a value of its own over
the ones before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "check_regions",
    "check_writable",
    "region_values",
    "to_regions",
    "with_background",
    "write_regions",
]

MAX_VALUE = 255  # masks are written as uint8


def to_regions(label: Tensor, regions: list[list[int]], dim: int = 0) -> Tensor:
    """Return the masks of regions.

    Args:
        label: Label map (1, *spatial), or (B, 1, *spatial).
        regions: Values of the label map in each of R regions.
        dim: Axis of the channel: 0, or 1 in a batch.

    Returns:
        Masks of 0 and 1, (R, *spatial) or (B, R, *spatial), of the type of ``label``.
    """
    masks = []
    for values in regions:
        inside = label == values[0]
        for value in values[1:]:
            inside = inside | (label == value)
        masks.append(inside.to(label.dtype))
    return torch.cat(masks, dim=dim)


def write_regions(p: Tensor, order: Sequence[int]) -> Tensor:
    """Return the label map (*spatial) of regions, each written over the ones before it.

    Args:
        p: Probabilities of R regions, or their masks, (R, *spatial).
        order: Value that each region gets, ``regions_class_order``.

    Raises:
        ValueError: if there are more or fewer values than regions.
    """
    if len(p) != len(order):
        raise ValueError(
            f"regions must be as many as the network has channels, {len(p)}, got {len(order)} values in "
            f"regions_class_order, {list(order)}."
        )
    labels = torch.zeros_like(p[0], dtype=torch.uint8)
    for region, value in zip(p, order, strict=True):
        labels.masked_fill_(region > 0.5, value)
    return labels


def with_background(masks: Tensor) -> Tensor:
    """Return masks or probabilities (R, *spatial) with what is in no region as first channel."""
    return torch.cat([1 - masks.amax(dim=0, keepdim=True), masks])


def region_values(regions: Sequence[Sequence[int]]) -> list[int]:
    """Return the values that a label map of regions may have, the background's 0 first."""
    return sorted({0, *(value for values in regions for value in values)})


def check_regions(regions: Any) -> None:
    """Check that regions are lists of values of a label map.

    Raises:
        ValueError: if they are none, or a value is not a whole number from 1 to 255.
    """
    wanted = "regions must be a list with the label values of each region, such as [[1, 2, 3], [2, 3], [3]]"
    lists = isinstance(regions, (list, tuple)) and all(isinstance(each, (list, tuple)) for each in regions)
    if not lists or not regions or not all(regions):
        raise ValueError(f"{wanted}, got {regions!r}.")
    for value in (value for values in regions for value in values):
        if type(value) is not int or not 1 <= value <= MAX_VALUE:
            raise ValueError(f"{wanted}, whole numbers 1..{MAX_VALUE}, got {value!r} in {regions!r}.")
    for values in regions:
        if len(set(values)) < len(values):
            raise ValueError(f"{wanted}, each value once, got {values!r}.")


def check_writable(regions: Any, order: Any, names: Sequence[str] = ()) -> None:
    """Check regions, and that a label map of ``order`` says which of them a voxel is in.

    Args:
        regions: Values of the label map in each region, or ``None`` if there are no regions.
        order: Value that is written in each region, ``regions_class_order``; ``None`` without regions.
        names: Names of the regions, for the message.

    Raises:
        ValueError: if one of them is missing, ``order`` has another length, or a mask that is right in every
            region would be written as other regions.
    """
    if regions is None and order is None:
        return
    if regions is None:
        raise ValueError(f"regions_class_order must be left out without regions, got {order!r}.")
    check_regions(regions)
    wanted = f"regions_class_order must have the value that a mask gets in each of {len(regions)} regions"
    shown = dict(zip(names, regions, strict=True)) if names else regions
    if not isinstance(order, (list, tuple)) or len(order) != len(regions):
        raise ValueError(f"{wanted}, {shown}, got {order!r}.")
    for value, values in zip(order, regions, strict=True):
        if type(value) is not int or value not in values:
            raise ValueError(f"{wanted}, one of its own, {shown}, got {value!r} for {list(values)}.")
    for value in region_values(regions)[1:]:
        inside = [value in values for values in regions]
        written = next(o for o, here in zip(reversed(order), reversed(inside), strict=True) if here)
        if [written in values for values in regions] != inside:
            raise ValueError(
                f"{wanted}, so that it can be told from the mask: with {list(order)} for {shown} the value "
                f"{value} would be written as {written}, which is not in the same regions. Later regions "
                "overwrite earlier ones: list outer regions before inner ones, each with a value that is in "
                "no region inside of it, and what two of them share as a region of its own."
            )
