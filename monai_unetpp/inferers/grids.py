# SPDX-License-Identifier: Apache-2.0
"""From the grid that a network sees, turned and resampled, back to the grid of the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

__all__ = ["Axis", "interpolate", "match_axes"]

SLACK = 0.05  # voxels by which a corner may lie elsewhere than axes that match say


@dataclass(frozen=True)
class Axis:
    """Where the planes of the file lie along one axis of the network's grid.

    Args:
        of_file: the axis of the file that runs along it.
        places: of every plane of the file, in voxels of the network's grid.
        size: of the network's grid along this axis.
    """

    of_file: int
    places: Tensor
    size: int

    @property
    def unseen(self) -> Tensor:
        """Numbers of the file's planes that lie a voxel or more outside of the network's grid."""
        return torch.nonzero((self.places <= -1) | (self.places >= self.size))[:, 0]


def interpolate(volume: Tensor, axis: int, places: Tensor) -> Tensor:
    """Return planes of ``volume`` at ``places`` along ``axis``: linear between them, constant beyond."""
    last = volume.shape[axis] - 1
    places = places.clamp(0, last).to(volume.device)
    low = places.floor().long()
    share = (places - low).to(volume.dtype).view([-1 if n == axis else 1 for n in range(volume.dim())])
    below, above = volume.index_select(axis, low), volume.index_select(axis, (low + 1).clamp(max=last))
    return torch.lerp(below, above, share)


def match_axes(
    affine: ArrayLike, size: Sequence[int], file_affine: ArrayLike, file_size: Sequence[int]
) -> list[Axis]:
    """Match each axis of the network's grid with the axis of the file that runs along it.

    Args:
        affine: of the network's grid, voxels to mm, (4, 4).
        size: of the network's grid.
        file_affine: of the file.
        file_size: of the file.

    Raises:
        ValueError: if the preprocessing did more than turn, mirror, crop, pad and scale along the axes.
    """
    file_affine = np.asarray(file_affine, dtype=float)
    to_grid = np.linalg.solve(np.asarray(affine, dtype=float), file_affine)  # voxels of the file to voxels
    strength = np.abs(to_grid[:3, :3]) * np.asarray(file_size)  # voxels that each axis of the file spans
    turn = strength.argmax(axis=1)
    aside = strength.copy()
    aside[range(3), turn] = 0
    if len(set(turn)) < 3 or aside.max() > SLACK:
        raise ValueError(
            "the preprocessing must keep to the axes of the file (turn, mirror, crop, pad, scale): of a grid "
            f"that is rotated against them the way back is not known. Its axes: {to_grid[:3, :3].tolist()}."
        )
    return [
        Axis(
            of_file=int(turn[axis]),
            places=torch.as_tensor(
                to_grid[axis, turn[axis]] * np.arange(file_size[turn[axis]]) + to_grid[axis, 3]
            ),
            size=size[axis],
        )
        for axis in range(3)
    ]
