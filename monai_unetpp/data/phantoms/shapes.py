# SPDX-License-Identifier: Apache-2.0
"""Solids in world millimetres, as signed distances: negative inside, zero on the surface.

A :class:`Solid` is a distance function with a bounding box. Two primitives (:func:`blob`, :func:`tube`) and
four operations (:func:`union`, :func:`within`, :func:`minus`, :func:`grow`) are enough for a body. Distances
are approximate away from the surface; near it they are accurate enough to draw partial volumes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Field",
    "FloatArray",
    "Points",
    "Solid",
    "Vector",
    "blob",
    "grow",
    "jitter",
    "minus",
    "ripple",
    "tube",
    "union",
    "within",
]

FloatArray = NDArray[np.floating]  # float32 throughout; the stubs lose track of it
Vector = tuple[float, float, float]
Points = tuple[FloatArray, FloatArray, FloatArray]  # x, y, z in mm, broadcastable to (X, Y, Z)
Field = Callable[[Points], FloatArray]


@dataclass(frozen=True)
class Solid:
    """Solid with a signed distance and a bounding box.

    Args:
        distance: Function from points to signed distances (X, Y, Z), negative inside, mm.
        low: Corner of the box with the smallest x, y, z, mm.
        high: Corner of the box with the largest x, y, z, mm.
    """

    distance: Field
    low: Vector = (-math.inf, -math.inf, -math.inf)
    high: Vector = (math.inf, math.inf, math.inf)


def ripple(rng: np.random.Generator, amplitude: float, wavelength: float, waves: int = 4) -> Field:
    """Return a smooth random field, in the unit of ``amplitude``.

    Args:
        rng: Source of directions and phases.
        amplitude: Bound on the absolute value.
        wavelength: Mean wavelength, around which the waves vary by a third, mm.
        waves: Number of products of three sines that are summed.
    """
    k = 2 * np.pi / (wavelength * rng.uniform(0.67, 1.33, (waves, 3)))
    phase = rng.uniform(0, 2 * np.pi, (waves, 3))
    size = 1.6 * amplitude / waves

    def field(points: Points) -> FloatArray:
        total = np.float32(0)
        for n in range(waves):
            a, b, c = (np.sin(float(k[n, i]) * p + float(phase[n, i])) for i, p in enumerate(points))
            total = total + size * a * b * c
        return np.clip(total, -amplitude, amplitude)

    return field


def jitter(rng: np.random.Generator, point: Vector, by: float) -> Vector:
    """Return ``point``, moved by up to ``by`` mm along each axis."""
    x, y, z = point
    return x + rng.uniform(-by, by), y + rng.uniform(-by, by), z + rng.uniform(-by, by)


def _rotation(degrees: Vector) -> NDArray[np.float64]:
    """Return the (3, 3) matrix of rotations about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[j, i] = math.sin(angle)
        turn[i, j] = -turn[j, i]
        matrix = turn @ matrix
    return matrix


def blob(centre: Vector, radii: Vector, degrees: Vector = (0, 0, 0), dent: Field | None = None) -> Solid:
    """Return a rotated ellipsoid with dents.

    Args:
        centre: Centre, mm.
        radii: Half axes, mm.
        degrees: Rotations about x, y and z, degrees.
        dent: Field that is added to the distance, such as a :func:`ripple`; positive is inwards, mm.
    """
    turn = _rotation(degrees)
    reach = np.sqrt((turn**2) @ np.square(radii)) + 0.3 * min(radii)

    def distance(points: Points) -> FloatArray:
        offset = [p - c for p, c in zip(points, centre, strict=True)]
        near, far = np.float32(1e-6), np.float32(1e-6)
        for column, radius in zip(turn.T.tolist(), radii, strict=True):
            q = sum(w * o for w, o in zip(column, offset, strict=True) if abs(w) > 1e-12) / radius
            near = near + q * q
            far = far + (q / radius) ** 2
        norm = np.sqrt(near)
        d = norm * (norm - 1) / np.sqrt(far)
        return d if dent is None else d + dent(points)

    low, high = (np.asarray(centre) - reach).tolist(), (np.asarray(centre) + reach).tolist()
    return Solid(distance, tuple(low), tuple(high))


def tube(path: Sequence[Vector], radii: Sequence[float]) -> Solid:
    """Return a round tube along ``path``, with radii that are interpolated linearly.

    Args:
        path: At least two points, mm.
        radii: One radius per point, mm.
    """
    if len(path) < 2:
        raise ValueError(f"path must have at least two points, got {len(path)}.")
    segments = list(zip(path[:-1], path[1:], radii[:-1], radii[1:], strict=True))

    def distance(points: Points) -> FloatArray:
        return reduce(np.minimum, (_cone(points, *segment) for segment in segments))

    corners, wide = np.asarray(path), max(radii)
    return Solid(distance, tuple((corners.min(0) - wide).tolist()), tuple((corners.max(0) + wide).tolist()))


def _cone(points: Points, start: Vector, end: Vector, r: float, s: float) -> FloatArray:
    """Return the distance to the round cone from ``start`` with radius ``r`` to ``end`` with radius ``s``."""
    along = [v - u for u, v in zip(start, end, strict=True)]
    offset = [p - u for p, u in zip(points, start, strict=True)]
    length = sum(v * v for v in along)
    t = np.clip(sum(v * o for v, o in zip(along, offset, strict=True)) / length, 0, 1)
    square = sum((o - t * v) ** 2 for v, o in zip(along, offset, strict=True))
    distance: FloatArray = np.sqrt(square) - (r + t * (s - r))
    return distance


def _smooth_min(a: FloatArray, b: FloatArray, blend: float) -> FloatArray:
    """Return the minimum, its crease rounded over ``blend`` mm."""
    if blend <= 0:
        return np.minimum(a, b)
    overlap = np.maximum(blend - np.abs(a - b), 0)
    return np.minimum(a, b) - overlap * overlap / (4 * blend)


def union(first: Solid, second: Solid, blend: float = 0) -> Solid:
    """Return the points in either solid; the crease is filled over ``blend`` mm."""
    return Solid(
        lambda p: _smooth_min(first.distance(p), second.distance(p), blend),
        _corner(min, first.low, second.low),
        _corner(max, first.high, second.high),
    )


def within(first: Solid, second: Solid, blend: float = 0) -> Solid:
    """Return the points in both solids; the edge is rounded over ``blend`` mm."""
    return Solid(
        lambda p: -_smooth_min(-first.distance(p), -second.distance(p), blend),
        _corner(max, first.low, second.low),
        _corner(min, first.high, second.high),
    )


def minus(first: Solid, second: Solid, blend: float = 0) -> Solid:
    """Return the points in the first solid and not in the second."""
    return within(first, Solid(lambda p: -second.distance(p)), blend)


def grow(solid: Solid, margin: float) -> Solid:
    """Return the solid with its surface moved outwards by ``margin`` mm (inwards if negative)."""
    low, high = solid.low, solid.high
    return Solid(
        lambda p: solid.distance(p) - margin,
        (low[0] - margin, low[1] - margin, low[2] - margin),
        (high[0] + margin, high[1] + margin, high[2] + margin),
    )


def _corner(pick: Callable[[float, float], float], a: Vector, b: Vector) -> Vector:
    return pick(a[0], b[0]), pick(a[1], b[1]), pick(a[2], b[2])
