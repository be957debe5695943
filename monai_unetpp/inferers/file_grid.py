# SPDX-License-Identifier: Apache-2.0
"""From the reoriented and resampled grid of the network back to the grid of the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F

__all__ = ["FileGrid", "Planes"]

PLANES_AT_ONCE = 8  # planes of the file that are interpolated in one step
MAX_OFFSET_VOXELS = 0.05  # distance of a corner from its axis up to which axes are taken to match


class Planes(NamedTuple):
    """Maps on some planes of the file.

    Args:
        axis: Axis of the file that the planes are perpendicular to.
        numbers: Numbers of the planes along that axis.
        maps: Maps (K, *spatial), of the file's size on the other axes.
        unseen: Mask (*spatial) of voxels that are a voxel or more outside of the network's grid.
    """

    axis: int
    numbers: Tensor
    maps: Tensor
    unseen: Tensor


@dataclass(frozen=True)
class _Axis:
    """Positions of the file's planes along an axis of the network's grid, in voxels of that grid."""

    of_file: int
    places: Tensor
    step: float
    size: int

    def unseen(self, planes: Tensor | None = None) -> Tensor:
        places, voxel = self.places if planes is None else self.places[planes], max(1.0, self.step)
        return (places <= -voxel) | (places >= self.size - 1 + voxel)


class FileGrid:
    """Grid of a file, onto which maps on the network's grid are resampled slab by slab.

    Interpolation is linear, and constant beyond the last plane. If the axes of the two grids match, as after
    rotation by right angles, mirroring, cropping and scaling, each slab is resampled as it arrives; if not,
    as with a tilted gantry, all slabs are collected first.

    Args:
        affine: Affine of the network's grid, voxel index to world mm, (4, 4).
        size: Size of the network's grid, voxels.
        file_affine: Affine of the file, (4, 4).
        file_size: Size of the file, voxels.
    """

    def __init__(
        self, affine: ArrayLike, size: Sequence[int], file_affine: ArrayLike, file_size: Sequence[int]
    ) -> None:
        self.size, self.file_size = list(size), list(file_size)
        # voxels of the file to voxels of the network's grid
        self.matrix = np.linalg.solve(np.asarray(affine, dtype=float), np.asarray(file_affine, dtype=float))
        self.axes = _match(self.matrix, self.size, self.file_size)

    def resample(self, slabs: Iterator[Tensor]) -> Iterator[Planes]:
        """Resample slabs (K, X, Y, planes), given in order, to planes of the file, in any order."""
        return self._oblique(slabs) if self.axes is None else self._aligned(slabs, self.axes)

    def _aligned(self, slabs: Iterator[Tensor], axes: Sequence[_Axis]) -> Iterator[Planes]:
        across = axes[2]
        order, done, stop = across.places.argsort(), 0, 0
        known = torch.empty(0)
        in_file = [axis.of_file for axis in axes]
        to_file = [in_file.index(axis) for axis in range(3)]
        for maps in slabs:
            known = torch.cat([known[..., -1:], maps], dim=-1) if stop else maps
            stop += maps.shape[-1]
            first = stop - known.shape[-1]
            ready = len(order) if stop == across.size else int((across.places <= stop - 1).sum())
            for planes in torch.split(order[done:ready], PLANES_AT_ONCE):
                part = _interpolate(known, 3, across.places[planes] - first)
                part = _interpolate(_interpolate(part, 2, axes[1].places), 1, axes[0].places)
                unseen = axes[0].unseen()[:, None, None] | axes[1].unseen()[:, None] | across.unseen(planes)
                yield Planes(
                    across.of_file,
                    planes,
                    part.permute(0, *(axis + 1 for axis in to_file)),
                    unseen.permute(to_file),
                )
            done = ready

    def _oblique(self, slabs: Iterator[Tensor]) -> Iterator[Planes]:
        maps = torch.cat(list(slabs), dim=-1)
        matrix = torch.as_tensor(self.matrix)
        last = torch.tensor(self.size) - 1
        voxel = matrix[:3, :3].abs().sum(dim=1).clamp(min=1)
        for planes in torch.split(torch.arange(self.file_size[2]), PLANES_AT_ONCE):
            ranges = torch.arange(self.file_size[0]), torch.arange(self.file_size[1]), planes
            voxels = torch.stack(torch.meshgrid(*ranges, indexing="ij"), dim=-1).double()
            places = voxels @ matrix[:3, :3].T + matrix[:3, 3]
            unseen = ((places <= -voxel) | (places >= last + voxel)).any(dim=-1)
            shares = 2 * places / last.clamp(min=1) - 1  # from -1, the first voxel, to 1, the last
            grid = shares.flip(-1)[None].to(maps)
            part = F.grid_sample(maps[None], grid, padding_mode="border", align_corners=True)
            yield Planes(2, planes, part[0], unseen)


def _match(matrix: ArrayLike, size: Sequence[int], file_size: Sequence[int]) -> list[_Axis] | None:
    """Return for each axis of the network's grid the matching one of the file, or None without a match."""
    matrix = np.asarray(matrix)
    spans = np.abs(matrix[:3, :3]) * np.asarray(file_size)
    turn = spans.argmax(axis=1)
    aside = spans.copy()
    aside[range(3), turn] = 0
    if len(set(turn)) < 3 or aside.max() > MAX_OFFSET_VOXELS:
        return None
    axes = []
    for axis, of_file in enumerate(turn):
        step, first = matrix[axis, of_file], matrix[axis, 3]
        places = torch.as_tensor(step * np.arange(file_size[of_file]) + first)
        axes.append(_Axis(int(of_file), places, abs(float(step)), size[axis]))
    return axes


def _interpolate(volume: Tensor, axis: int, places: Tensor) -> Tensor:
    """Interpolate ``volume`` at ``places`` along ``axis``: linear inside, constant outside."""
    last = volume.shape[axis] - 1
    places = places.clamp(0, last).to(volume.device)
    low = places.floor().long()
    share = (places - low).to(volume.dtype).view([-1 if n == axis else 1 for n in range(volume.dim())])
    below, above = volume.index_select(axis, low), volume.index_select(axis, (low + 1).clamp(max=last))
    return torch.lerp(below, above, share)
