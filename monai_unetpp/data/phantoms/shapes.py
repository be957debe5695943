# SPDX-License-Identifier: Apache-2.0
"""Shapes in world millimetres, as signed distances: negative inside, zero on the surface.

A :class:`Shape` is a distance function and the box that holds it. Two makers (:func:`blob`, :func:`tube`)
and four operations (:func:`union`, :func:`within`, :func:`minus`, :func:`grow`) are enough for a body.
Distances are approximate away from the surface; near it they are good enough to shade partial volume.
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
    "Shape",
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
class Shape:
    """A solid: signed distance in mm, and the corners of a box around it.

    Args:
        distance: maps points to (X, Y, Z) signed distances in mm, negative inside.
        low: corner of the box with the smallest x, y, z, in mm.
        high: corner with the largest.
    """

    distance: Field
    low: Vector = (-math.inf, -math.inf, -math.inf)
    high: Vector = (math.inf, math.inf, math.inf)


def ripple(rng: np.random.Generator, amplitude: float, wavelength: float, waves: int = 4) -> Field:
    """Return a smooth random field that stays within ``amplitude`` (mm, HU, whatever it is added to).

    Args:
        rng: source of directions and phases.
        amplitude: bound on the absolute value.
        wavelength: mean wavelength in mm; the waves vary by a third around it.
        waves: number of products of three sines that are summed.
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
    """Return ``point`` moved by up to ``by`` mm along each axis."""
    x, y, z = point
    return x + rng.uniform(-by, by), y + rng.uniform(-by, by), z + rng.uniform(-by, by)


def _rotation(degrees: Vector) -> NDArray[np.float64]:
    """Return the 3x3 matrix that turns about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[j, i] = math.sin(angle)
        turn[i, j] = -turn[j, i]
        matrix = turn @ matrix
    return matrix


def blob(centre: Vector, radii: Vector, degrees: Vector = (0, 0, 0), dent: Field | None = None) -> Shape:
    """Return an ellipsoid, turned and dented.

    Args:
        centre: in mm.
        radii: half axes in mm.
        degrees: turns about x, y and z.
        dent: field in mm added to the distance, e.g. a :func:`ripple`; positive dents inwards.
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
    return Shape(distance, tuple(low), tuple(high))


def tube(path: Sequence[Vector], radii: Sequence[float]) -> Shape:
    """Return a round tube along ``path``; its radius runs linearly between the points.

    Args:
        path: at least two points, in mm.
        radii: one radius per point, in mm.
    """
    if len(path) < 2:
        msg = f"path must have at least two points, got {len(path)}."
        raise ValueError(msg)
    segments = list(zip(path[:-1], path[1:], radii[:-1], radii[1:], strict=True))

    def distance(points: Points) -> FloatArray:
        return reduce(np.minimum, (_cone(points, *segment) for segment in segments))

    corners, wide = np.asarray(path), max(radii)
    return Shape(
        distance,
        tuple((corners.min(0) - wide).tolist()),
        tuple((corners.max(0) + wide).tolist()),
    )


def _cone(points: Points, start: Vector, end: Vector, r: float, s: float) -> FloatArray:
    """Distance to the round cone from ``start`` with radius ``r`` to ``end`` with radius ``s``."""
    along = [v - u for u, v in zip(start, end, strict=True)]
    offset = [p - u for p, u in zip(points, start, strict=True)]
    length = sum(v * v for v in along)
    t = np.clip(sum(v * o for v, o in zip(along, offset, strict=True)) / length, 0, 1)
    square = sum((o - t * v) ** 2 for v, o in zip(along, offset, strict=True))
    distance: FloatArray = np.sqrt(square) - (r + t * (s - r))
    return distance


def _smooth_min(a: FloatArray, b: FloatArray, blend: float) -> FloatArray:
    """Minimum whose crease is rounded over ``blend`` mm."""
    if blend <= 0:
        return np.minimum(a, b)
    overlap = np.maximum(blend - np.abs(a - b), 0)
    return np.minimum(a, b) - overlap * overlap / (4 * blend)


def union(first: Shape, second: Shape, blend: float = 0) -> Shape:
    """Return the points in either shape; the crease is filled over ``blend`` mm."""
    return Shape(
        lambda p: _smooth_min(first.distance(p), second.distance(p), blend),
        _corner(min, first.low, second.low),
        _corner(max, first.high, second.high),
    )


def within(first: Shape, second: Shape, blend: float = 0) -> Shape:
    """Return the points in both shapes; the edge is rounded over ``blend`` mm."""
    return Shape(
        lambda p: -_smooth_min(-first.distance(p), -second.distance(p), blend),
        _corner(max, first.low, second.low),
        _corner(min, first.high, second.high),
    )


def minus(first: Shape, second: Shape, blend: float = 0) -> Shape:
    """Return the points in the first shape and not in the second."""
    return within(first, Shape(lambda p: -second.distance(p)), blend)


def grow(shape: Shape, margin: float) -> Shape:
    """Return the shape with its surface moved outwards by ``margin`` mm (inwards if negative)."""
    low, high = shape.low, shape.high
    return Shape(
        lambda p: shape.distance(p) - margin,
        (low[0] - margin, low[1] - margin, low[2] - margin),
        (high[0] + margin, high[1] + margin, high[2] + margin),
    )


def _corner(pick: Callable[[float, float], float], a: Vector, b: Vector) -> Vector:
    return pick(a[0], b[0]), pick(a[1], b[1]), pick(a[2], b[2])
