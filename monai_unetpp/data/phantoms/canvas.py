# SPDX-License-Identifier: Apache-2.0
"""A CT volume to paint solids on, with a map of body parts.

The axes of the canvas are the patient's (x to the right, y to the front, z to the head, in mm).
:meth:`Canvas.paint` paints a solid over what is there; :meth:`Canvas.scan` adds what a scanner adds (blur,
correlated noise, integers) and stores the array in another axis order, with the affine of that order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monai_unetpp.data.phantoms.shapes import Field, FloatArray, Points, Solid

__all__ = ["AIR_HU", "Canvas", "Volume", "blur", "correlated_noise"]

AIR_HU = -1024.0


@dataclass(frozen=True)
class Volume:
    """Volume as a scanner stores it.

    Args:
        image: Intensities, int16 (X, Y, Z), HU.
        parts: Body part of each voxel, uint8 (X, Y, Z).
        affine: Voxel index to world mm (RAS+), float64 (4, 4).
    """

    image: NDArray[np.int16]
    parts: NDArray[np.uint8]
    affine: NDArray[np.float64]


class Canvas:
    """Volume of air, to paint on.

    Args:
        low: Corner of the volume with the smallest x, y, z, mm.
        high: Opposite corner, mm.
        spacing: Voxel size, one per axis, mm.

    Raises:
        ValueError: if a spacing is not positive or the volume has no voxel.
    """

    def __init__(self, low: Sequence[float], high: Sequence[float], spacing: Sequence[float]) -> None:
        if min(spacing) <= 0:
            raise ValueError(f"spacing must be positive, got {tuple(spacing)}.")
        size = [int((b - a) / s) for a, b, s in zip(low, high, spacing, strict=True)]
        if min(size) < 1:
            raise ValueError(f"high must be at least one voxel above low, got low={low}, high={high}.")
        self.spacing = tuple(spacing)
        self.axes = [
            (a + s * (np.arange(n) + 0.5)).astype(np.float32)
            for a, s, n in zip(low, spacing, size, strict=True)
        ]
        self.image: FloatArray = np.full(size, AIR_HU, np.float32)
        self.parts: NDArray[np.uint8] = np.zeros(size, np.uint8)

    def points(self, box: Sequence[slice] = (slice(None),) * 3) -> Points:
        """Return the voxel centres of a box in mm, as three arrays that broadcast to (X, Y, Z)."""
        x, y, z = (axis[b] for axis, b in zip(self.axes, box, strict=True))
        return x[:, None, None], y[None, :, None], z[None, None, :]

    def paint(
        self, solid: Solid, hu: float, part: int, edge: float = 0, texture: Field | None = None
    ) -> None:
        """Paint ``solid`` over what is there.

        A voxel that the surface cuts gets a mixture of both densities, and the part of its centre.

        Args:
            solid: Solid to paint.
            hu: Density inside, HU.
            part: Number that voxels with their centre inside get in the map of parts.
            edge: Width of the transition, at least the in-plane voxel size, mm.
            texture: Field that is added to ``hu``, HU.
        """
        edge = max(edge, *self.spacing[:2])
        margin = edge + max(self.spacing)
        box = tuple(
            slice(int(np.searchsorted(axis, a - margin)), int(np.searchsorted(axis, b + margin)))
            for axis, a, b in zip(self.axes, solid.low, solid.high, strict=True)
        )
        if self.image[box].size == 0:
            return
        points = self.points(box)
        distance = np.broadcast_to(solid.distance(points), self.image[box].shape)
        density = hu if texture is None else hu + texture(points)
        self.image[box] += np.clip(0.5 - distance / edge, 0, 1) * (density - self.image[box])
        self.parts[box][distance < 0] = part

    def scan(
        self,
        rng: np.random.Generator,
        noise: float,
        offset: float = 0,
        axcodes: str = "RAS",
        origin: Sequence[float] = (0, 0, 0),
    ) -> Volume:
        """Return the volume as a scanner would store it; the canvas is not changed.

        Args:
            rng: Source of the noise.
            noise: Standard deviation of the noise, HU.
            offset: Calibration error, the same everywhere, HU.
            axcodes: Directions of the array axes in nibabel's notation, e.g. ``"LPS"``.
            origin: World position of the canvas's zero, mm.
        """
        image = blur(self.image, (0.45, 0.45, 0.35))
        image += offset + correlated_noise(rng, image.shape, noise)
        ct = np.clip(np.rint(image), AIR_HU, 3071).astype(np.int16)
        order = ["RLAPSI".index(code) // 2 for code in axcodes]
        steps = [-1 if code in "LPI" else 1 for code in axcodes]
        affine = np.zeros((4, 4))
        affine[3, 3] = 1
        for column, (axis, step) in enumerate(zip(order, steps, strict=True)):
            affine[axis, column] = step * self.spacing[axis]
            affine[axis, 3] = origin[axis] + self.axes[axis][0 if step > 0 else -1]
        turn = tuple(slice(None, None, step) for step in steps)
        return Volume(
            np.ascontiguousarray(ct.transpose(order)[turn]),
            np.ascontiguousarray(self.parts.transpose(order)[turn]),
            affine,
        )


def blur(volume: FloatArray, sigmas: Sequence[float]) -> FloatArray:
    """Return ``volume`` smoothed by a Gaussian of five taps per axis; borders are repeated.

    Args:
        volume: Volume (X, Y, Z).
        sigmas: Standard deviations, one per axis, above 0 and up to about 1, voxels.
    """
    for axis, sigma in enumerate(sigmas):
        taps = np.exp(-0.5 * (np.arange(-2, 3) / sigma) ** 2)
        pad = [(2, 2) if a == axis else (0, 0) for a in range(volume.ndim)]
        padded = np.moveaxis(np.pad(volume, pad, mode="edge"), axis, 0)
        size = volume.shape[axis]
        total = sum(float(w) * padded[i : i + size] for i, w in enumerate(taps / taps.sum()))
        volume = np.moveaxis(np.asarray(total, np.float32), 0, axis)
    return np.array(volume)


def correlated_noise(
    rng: np.random.Generator, shape: tuple[int, ...], sigma: float, grain: float = 0.7
) -> FloatArray:
    """Return noise like that of a CT: correlated in a slice, hardly across slices.

    Args:
        rng: Source of the noise.
        shape: Shape (X, Y, Z) of the result.
        sigma: Standard deviation of the result.
        grain: Correlation length in a slice, voxels.
    """
    noise = blur(rng.standard_normal(shape, dtype=np.float32), (grain, grain, 0.3))
    return noise * (sigma / float(noise.std()))
