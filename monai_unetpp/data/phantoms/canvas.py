# SPDX-License-Identifier: Apache-2.0
"""A CT volume to draw on: shapes in, Hounsfield units and a map of body parts out.

The canvas lies along the patient's axes (x to the right, y to the front, z to the head, in mm).
:meth:`Canvas.paint` puts one shape over what is there; :meth:`Canvas.scan` adds what a scanner adds (blur,
correlated noise, integers) and stores the array in some other axis order, with the affine that says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monai_unetpp.data.phantoms.shapes import Field, FloatArray, Points, Shape

__all__ = ["AIR_HU", "Canvas", "Scan", "blur", "correlated_noise"]

AIR_HU = -1024.0


@dataclass(frozen=True)
class Scan:
    """A finished volume.

    Args:
        image: int16 (X, Y, Z), HU.
        parts: uint8 (X, Y, Z), the body part of each voxel.
        affine: float64 (4, 4), voxel index to world mm (RAS+).
    """

    image: NDArray[np.int16]
    parts: NDArray[np.uint8]
    affine: NDArray[np.float64]


class Canvas:
    """An empty volume of air.

    Args:
        low: corner of the volume with the smallest x, y, z, in mm.
        high: the opposite corner.
        spacing: voxel size in mm, one per axis.

    Raises:
        ValueError: if a spacing is not positive or the volume has no voxel.
    """

    def __init__(self, low: Sequence[float], high: Sequence[float], spacing: Sequence[float]) -> None:
        if min(spacing) <= 0:
            msg = f"spacing must be positive, got {tuple(spacing)}."
            raise ValueError(msg)
        size = [int((b - a) / s) for a, b, s in zip(low, high, spacing, strict=True)]
        if min(size) < 1:
            msg = f"high must be at least one voxel above low, got low={low}, high={high}."
            raise ValueError(msg)
        self.spacing = tuple(spacing)
        self.axes = [
            (a + s * (np.arange(n) + 0.5)).astype(np.float32)
            for a, s, n in zip(low, spacing, size, strict=True)
        ]
        self.image: FloatArray = np.full(size, AIR_HU, np.float32)
        self.parts: NDArray[np.uint8] = np.zeros(size, np.uint8)

    def points(self, box: Sequence[slice] = (slice(None),) * 3) -> Points:
        """Return the voxel centres of a box in mm, as three broadcastable arrays."""
        x, y, z = (axis[b] for axis, b in zip(self.axes, box, strict=True))
        return x[:, None, None], y[None, :, None], z[None, None, :]

    def paint(
        self, shape: Shape, hu: float, part: int, edge: float = 0, texture: Field | None = None
    ) -> None:
        """Draw ``shape`` over what is there.

        A voxel cut by the surface gets a mixture of both densities, and the part of its centre.

        Args:
            shape: what to draw.
            hu: density inside, HU.
            part: number written to the map of parts where the voxel centre lies inside.
            edge: width of the transition in mm; at least the in-plane voxel size is used.
            texture: field in HU added to ``hu``.
        """
        edge = max(edge, *self.spacing[:2])
        margin = edge + max(self.spacing)
        box = tuple(
            slice(int(np.searchsorted(axis, a - margin)), int(np.searchsorted(axis, b + margin)))
            for axis, a, b in zip(self.axes, shape.low, shape.high, strict=True)
        )
        if self.image[box].size == 0:
            return
        points = self.points(box)
        distance = np.broadcast_to(shape.distance(points), self.image[box].shape)
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
    ) -> Scan:
        """Return the volume as a scanner would store it; the canvas is left as it is.

        Args:
            rng: source of the noise.
            noise: standard deviation in HU.
            offset: calibration error in HU, the same everywhere.
            axcodes: directions in which the array axes run, as nibabel writes them, e.g. ``"LPS"``.
            origin: the world position in mm of the canvas's own zero.
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
        return Scan(
            np.ascontiguousarray(ct.transpose(order)[turn]),
            np.ascontiguousarray(self.parts.transpose(order)[turn]),
            affine,
        )


def blur(volume: FloatArray, sigmas: Sequence[float]) -> FloatArray:
    """Return ``volume`` smoothed by a Gaussian of five taps per axis; borders are repeated.

    Args:
        volume: (X, Y, Z).
        sigmas: standard deviations in voxels, one per axis, above 0, up to about 1.
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
    """Return noise like that of a CT: correlated over neighbours in a slice, hardly across slices.

    Args:
        rng: source.
        shape: (X, Y, Z).
        sigma: standard deviation of the result.
        grain: correlation length in the slice, voxels.
    """
    noise = blur(rng.standard_normal(shape, dtype=np.float32), (grain, grain, 0.3))
    return noise * (sigma / float(noise.std()))
