# SPDX-License-Identifier: Apache-2.0
"""The chest: two lungs around a mediastinum, their vessels and airways, and nodules.

Coordinates as in :mod:`monai_unetpp.data.phantoms.torso`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from monai_unetpp.data.phantoms.canvas import Canvas
from monai_unetpp.data.phantoms.parts import Part
from monai_unetpp.data.phantoms.shapes import (
    Solid,
    Vector,
    blob,
    grow,
    jitter,
    minus,
    ripple,
    tube,
    union,
    within,
)
from monai_unetpp.data.phantoms.torso import Torso

__all__ = ["Chest", "draw_chest", "draw_nodules", "random_chest"]

SOLITARY, WALL, VESSEL = range(3)


@dataclass(frozen=True)
class Chest:
    """Lungs, heart and pulmonary vessels.

    Args:
        lungs: Right and left lung.
        heart: Heart, between the lungs, more to the left.
        vessels: Paths of the pulmonary tree with the radii at their points, mm; thick ones first.
        air: Density of the lung between the vessels, HU.
    """

    lungs: tuple[Solid, Solid]
    heart: Solid
    vessels: list[tuple[list[Vector], list[float]]]
    air: float


def random_chest(torso: Torso, rng: np.random.Generator) -> Chest:
    """Return random lungs that fit into ``torso``, each with a tree of vessels from its hilum."""
    wide, deep, dome = torso.half_width / 160, torso.half_depth, torso.dome
    inside = within(grow(torso.cavity, -rng.uniform(1, 3)), torso.thorax)
    heart = blob(
        (rng.uniform(-36, -22), 26, dome + rng.uniform(14, 26)),
        (rng.uniform(50, 62), rng.uniform(40, 48), rng.uniform(40, 50)),
        (rng.uniform(-15, 15), rng.uniform(10, 30), rng.uniform(15, 35)),
        ripple(rng, 4, 60),
    )
    middle = tube([(0, 12, dome - 60), (-6, 8, dome + 40), (0, 0, dome + 220)], [40, 34, 24])
    lungs = []
    for side in (1, -1):
        half = blob(
            (side * 76 * wide, -6, dome - 5),
            (70 * wide, 0.96 * deep, rng.uniform(165, 190)),
            (0, side * rng.uniform(0, 5), 0),
            ripple(rng, 4, 110),
        )
        lung = minus(within(half, inside, 4), union(middle, grow(heart, 3), 6), 8)
        lungs.append(minus(lung, tube([(0, torso.spine_y, -400), (0, torso.spine_y, 400)], [30, 30]), 6))
    vessels = []
    for side in (1, -1):
        root = (side * 30.0, 2.0, dome + rng.uniform(50, 70))
        for _ in range(18):
            x, y = side * rng.uniform(45, 140) * wide, rng.uniform(-0.8, 0.7) * deep
            end = (x, y, dome + rng.uniform(-60, 150))
            vessels += _branch(root, end, rng.uniform(3.5, 6.5), rng, generations=3)
    vessels.sort(key=lambda vessel: -vessel[1][0])
    return Chest((lungs[0], lungs[1]), heart, vessels, rng.uniform(-880, -790))


def draw_chest(canvas: Canvas, chest: Chest, torso: Torso, rng: np.random.Generator) -> None:
    """Paint mediastinum, heart, great vessels, lungs with their vessels, trachea and bronchi."""
    dome, blood, flesh = torso.dome, torso.blood, rng.uniform(40, 65)
    inside = within(grow(torso.cavity, -1), torso.thorax)
    canvas.paint(inside, rng.uniform(-60, 40), Part.MUSCLE, texture=ripple(rng, 30, 25))
    arch = tube(
        [
            (10, 30, dome + 40),
            (14, 28, dome + 95),
            (-8, 0, dome + 118),
            (-24, -26, dome + 95),
            (-20, torso.spine_y + 24, dome - 80),
        ],
        [14, 14, 13, 12.5, 11.5],
    )
    canvas.paint(within(arch, inside), blood + 15, Part.VESSEL)
    canvas.paint(within(chest.heart, inside), rng.uniform(95, 120), Part.HEART)
    canvas.paint(grow(within(chest.heart, inside), -9), blood + 5, Part.HEART)
    for lung in chest.lungs:
        canvas.paint(lung, chest.air, Part.LUNG, 1.5, ripple(rng, 35, 60))
    both = union(*chest.lungs)
    for path, radii in chest.vessels:
        canvas.paint(within(tube(path, radii), grow(both, 3)), flesh, Part.VESSEL)
    carina = (0.0, -8.0, dome + 85)
    airways = [([(0.0, -8.0, dome + 240), carina], [8.5, 8.5])]
    for side in (1, -1):
        airways.append(
            ([carina, (side * 32.0, -4.0, dome + 58), (side * 62.0, -14.0, dome + 20)], [7, 5.5, 2.5])
        )
    for path, radii in airways:
        canvas.paint(tube(path, [r + 1.5 for r in radii]), 10, Part.MUSCLE)
        canvas.paint(tube(path, radii), -990, Part.AIR)


def draw_nodules(canvas: Canvas, chest: Chest, rng: np.random.Generator, count: int) -> None:
    """Paint up to ``count`` nodules of 4 to 30 mm: solitary, at the lung's wall, or at a vessel.

    Each kind is equally likely, and small ones are frequent. Most are solid, some are of ground glass, some
    have spicules.
    """
    both = union(*chest.lungs)
    depth = -both.distance(canvas.points())
    taken: list[tuple[Vector, float]] = []
    for _ in range(count):
        radius, kind = float(2 * 7.5 ** rng.beta(1.0, 1.7)), int(rng.integers(3))
        fits = {
            SOLITARY: (depth > radius + 3) & (canvas.parts == Part.LUNG),
            WALL: (depth > 0) & (depth < 0.75 * radius) & (canvas.parts == Part.LUNG),
            VESSEL: (depth > 0.6 * radius) & (canvas.parts == Part.VESSEL),
        }[kind]
        candidates = np.argwhere(fits)
        for _ in range(30 if len(candidates) else 0):
            index = candidates[rng.integers(len(candidates))]
            x, y, z = (float(axis[i]) for axis, i in zip(canvas.axes, index, strict=True))
            if all(np.hypot(np.hypot(x - a, y - b), z - c) > radius + r + 6 for (a, b, c), r in taken):
                taken.append(((x, y, z), radius))
                _draw_nodule(canvas, both, chest.air, (x, y, z), radius, rng)
                break


def _draw_nodule(
    canvas: Canvas, lungs: Solid, air: float, centre: Vector, radius: float, rng: np.random.Generator
) -> None:
    a, b, c = (radius * rng.uniform(0.85, 1.15, 3)).tolist()
    turn = rng.uniform(-90, 90, 3).tolist()
    lump = blob(centre, (a, b, c), turn, ripple(rng, 0.15 * radius, 2 * radius + 4))
    lump = within(lump, grow(lungs, 1.5))
    texture, kind = ripple(rng, 20, 6), rng.random()
    if kind < 0.15:
        canvas.paint(lump, air + rng.uniform(220, 420), Part.NODULE, 2, ripple(rng, 50, 8))  # ground glass
        return
    hu = rng.uniform(-20, 90)
    if kind < 0.45 and radius > 4:
        for _ in range(rng.integers(3, 8)):
            tip = jitter(rng, centre, 1.8 * radius)
            canvas.paint(
                within(tube([centre, tip], [0.35 * radius, 0.4]), grow(lungs, -1)), hu - 60, Part.LUNG
            )
    canvas.paint(lump, hu, Part.NODULE, 1.2, texture)
    if kind > 0.93:
        canvas.paint(grow(lump, -0.5 * radius), 350, Part.NODULE)  # a calcified core


def _branch(
    start: Vector, end: Vector, radius: float, rng: np.random.Generator, generations: int
) -> list[tuple[list[Vector], list[float]]]:
    """Return a bent vessel from ``start`` to ``end``, and thinner ones from its middle and its end."""
    middle = jitter(rng, _between(start, end, 0.5), 0.12 * _length(start, end))
    paths = [([start, middle, end], [radius, 0.75 * radius, 0.5 * radius])]
    if generations > 1:
        for at, share in ((middle, 0.6), (end, 0.45)):
            tip = jitter(rng, _between(start, end, 1.25), 0.45 * _length(start, end))
            paths += _branch(at, tip, share * radius, rng, generations - 1)
    return paths


def _between(start: Sequence[float], end: Sequence[float], share: float) -> Vector:
    x, y, z = (a + share * (b - a) for a, b in zip(start, end, strict=True))
    return x, y, z


def _length(start: Sequence[float], end: Sequence[float]) -> float:
    return float(np.linalg.norm(np.subtract(end, start)))
