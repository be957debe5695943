# SPDX-License-Identifier: Apache-2.0
"""The arguments of a network, checked once and spelled out per row and axis; and the grid they describe."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from monai_unetpp.network.backbones import backbone_widths
from monai_unetpp.network.blocks import BLOCKS

__all__ = ["SKIPS", "PerAxis", "Spec"]

SKIPS = ("dense", "short", "long")
PerAxis = int | Sequence[int]
Layer = tuple[Any, ...] | str | None
Rows = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Spec:
    """What a network is made of; the arguments are those of :class:`~monai_unetpp.UNetPlusPlus`.

    Attributes:
        column: widths of column 0, which are a backbone's where there is one.

    Raises:
        ValueError: if an argument is out of range or lengths do not agree.
    """

    spatial_dims: int
    in_channels: int
    out_channels: int
    channels: tuple[int, ...]
    strides: Rows
    kernel_size: Rows
    skips: str
    deep_supervision: bool
    act: Layer
    norm: Layer
    dropout: float
    bias: bool
    upsample: str
    use_checkpoint: bool
    up_channels: tuple[int, ...]
    last_channels: int
    block: str
    encoder: str | None
    pretrained: bool
    column: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check, and spell out."""
        self._check_choices()
        _widths("in_channels, out_channels", [self.in_channels, self.out_channels])
        channels = self._set("channels", _widths("channels", self.channels))
        if len(channels) < 2:
            raise ValueError(f"channels must have at least 2 entries (one level), got {channels}.")
        given = self.strides
        self._set("strides", _per_axis_and_row("strides", given, self.depth, self.spatial_dims))
        kernel = _per_axis_and_row("kernel_size", self.kernel_size, self.depth + 1, self.spatial_dims)
        if any(k % 2 == 0 for row in kernel for k in row):
            raise ValueError(f"kernel_size must be odd on every axis, got {self.kernel_size}.")
        self._set("kernel_size", kernel)
        up = channels[:-1] if self.up_channels is None else _widths("up_channels", self.up_channels)
        if len(up) != self.depth:
            raise ValueError(
                f"up_channels must have one entry per row 0..{self.depth - 1}, so {self.depth}, got {up}."
            )
        self._set("up_channels", up)
        last = channels[0] if self.last_channels is None else self.last_channels
        self._set("last_channels", _widths("last_channels", [last])[0])
        self._set("column", channels if self.encoder is None else self._backbone_column(given))

    def _set(self, name: str, value: Any) -> Any:
        object.__setattr__(self, name, value)  # a frozen dataclass has no other way
        return value

    def _check_choices(self) -> None:
        if self.spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {self.spatial_dims!r}.")
        if self.skips not in SKIPS:
            raise ValueError(f"skips must be one of {', '.join(SKIPS)}, got {self.skips!r}.")
        if self.block not in BLOCKS:
            raise ValueError(f"block must be one of {', '.join(BLOCKS)}, got {self.block!r}.")
        if _layer_name("act", self.act) == "geglu":
            raise ValueError("act must keep the number of channels; geglu halves it.")
        _layer_name("norm", self.norm)
        if not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout!r}.")
        for name in ("deep_supervision", "bias", "use_checkpoint"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}.")
        if self.pretrained and self.encoder is None:
            raise ValueError("pretrained must be False without an encoder: there are no weights for ours.")

    def _backbone_column(self, given: Any) -> tuple[int, ...]:
        maps = backbone_widths(str(self.encoder))
        if self.depth > len(maps):
            raise ValueError(
                f"channels must have at most {len(maps) + 1} entries, row 0 and the {len(maps)} feature "
                f"maps of {self.encoder}, got {self.channels}."
            )
        if any(step != 2 for row in self.strides for step in row):
            raise ValueError(f"strides must be 2, those of {self.encoder}, got {given}.")
        return (self.channels[0], *maps[: self.depth])

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of the arguments."""
        return [each.name for each in dataclasses.fields(cls) if each.init]

    @property
    def depth(self) -> int:
        """``L``, the deepest level."""
        return len(self.channels) - 1

    @property
    def levels(self) -> range:
        """The levels that have a head, shallowest first."""
        return range(1 if self.deep_supervision else self.depth, self.depth + 1)

    @property
    def nodes(self) -> list[tuple[int, int]]:
        """``(i, j)`` of every node outside column 0, diagonal by diagonal, each from the bottom up.

        Only nodes that a head depends on: with ``"long"`` skips no diagonal feeds another.
        """
        diagonals = self.levels if self.skips == "long" else range(1, self.depth + 1)
        return [(k - j, j) for k in diagonals for j in range(1, k + 1)]

    @property
    def norm_name(self) -> str:
        """Name of the norm, as MONAI's factory knows it."""
        return _layer_name("norm", self.norm)

    def skip_columns(self, j: int) -> tuple[int, int]:
        """Return which columns of row ``i`` enter node ``(i, j)``: the first, and one past the last."""
        return {"dense": (0, j), "short": (j - 1, j), "long": (0, 1)}[self.skips]

    def width(self, i: int, j: int) -> int:
        """Return the channels of node ``(i, j)``."""
        if j == 0:
            return self.column[i]
        return self.last_channels if j == self.depth else self.channels[i]

    def divisors(self, level: int) -> list[int]:
        """Return how many voxels of the input, per axis, become one in row ``level``."""
        return [math.prod(row[axis] for row in self.strides[:level]) for axis in range(self.spatial_dims)]

    def receptive_field(self, level: int) -> list[int]:
        """Return how many voxels of the input, per axis, a voxel of L^level sees at most; no backbone's."""
        return [
            max(self._seen_by(place, level, axis) for place in range(divisor))
            for axis, divisor in enumerate(self.divisors(level))
        ]

    def _seen_by(self, place: int, level: int, axis: int) -> int:
        """Count what one voxel sees along an axis: up the diagonal backwards, then down the encoder."""
        reach = [row[axis] - 1 for row in self.kernel_size]  # to either side, of two convolutions
        strides = [row[axis] for row in self.strides[:level]]
        first = last = place
        for i, stride in enumerate(strides):
            first, last = (first - reach[i]) // stride, (last + reach[i]) // stride
        first, last = first - reach[level], last + reach[level]
        for i in reversed(range(level)):
            first, last = first * strides[i] - reach[i], last * strides[i] + strides[i] - 1 + reach[i]
        return last - first + 1

    def at(self, level: int) -> Spec:
        """Return what L^level keeps: a network of depth ``level`` with one head."""
        return dataclasses.replace(
            self,
            channels=self.channels[: level + 1],
            strides=self.strides[:level],
            kernel_size=self.kernel_size[: level + 1],
            up_channels=self.up_channels[:level],
            last_channels=self.width(0, level),
            deep_supervision=False,
        )

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that make this network again; its weights follow, so none are downloaded."""
        return {**{name: getattr(self, name) for name in self.names()}, "pretrained": False}


def _layer_name(name: str, layer: Layer) -> str:
    """Of a layer as MONAI's factories take it: its name, or that and its arguments."""
    if isinstance(layer, (tuple, list)) and not layer:
        raise ValueError(f"{name} must be a name, (name, arguments) or None, got {layer!r}.")
    return str(layer[0] if isinstance(layer, (tuple, list)) else layer).lower()


def _widths(name: str, widths: Sequence[int]) -> tuple[int, ...]:
    is_list = not isinstance(widths, (str, int))
    if not is_list or not all(type(width) is int and width > 0 for width in widths):  # no bool
        raise ValueError(f"{name} must be positive ints, got {widths!r}.")
    return tuple(widths)


def _per_axis_and_row(name: str, value: int | Sequence[PerAxis], rows: int, axes: int) -> Rows:
    """Spell out an int, or one entry per row, each an int or one per axis, as one tuple per row."""
    entries = [value] * rows if isinstance(value, int) else list(value)
    if len(entries) != rows:
        raise ValueError(
            f"{name} must be an int or have {rows} entries for these channels, got {len(entries)}: {value}."
        )
    spelled = []
    for entry in entries:
        row = (entry,) * axes if isinstance(entry, int) else tuple(entry)
        if len(row) != axes:
            raise ValueError(f"each entry of {name} must be an int or {axes} ints, got {entry!r}.")
        spelled.append(_widths(name, row))
    return tuple(spelled)
