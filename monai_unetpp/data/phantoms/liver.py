# SPDX-License-Identifier: Apache-2.0
"""The liver: its outline between its neighbours, its vessels and its tumours.

Coordinates as in :mod:`monai_unetpp.data.phantoms.torso`.
"""

from __future__ import annotations

import numpy as np

from monai_unetpp.data.phantoms.abdomen import Organs
from monai_unetpp.data.phantoms.canvas import Canvas
from monai_unetpp.data.phantoms.parts import Part
from monai_unetpp.data.phantoms.shapes import (
    FloatArray,
    Points,
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

__all__ = ["draw_liver", "random_liver"]


def random_liver(torso: Torso, organs: Organs, rng: np.random.Generator) -> Solid:
    """Return two lobes under the diaphragm, cut by the visceral surface and dented by neighbours."""
    wide, dome, size = torso.half_width / 160, torso.dome, rng.uniform(0.84, 1.12)
    right = blob(
        (rng.uniform(66, 80) * wide, rng.uniform(-6, 8), dome - rng.uniform(72, 84)),
        (rng.uniform(66, 82) * size, rng.uniform(76, 98) * size, rng.uniform(78, 100) * size),
        (rng.uniform(-10, 10), rng.uniform(-12, 5), rng.uniform(-10, 10)),
        ripple(rng, 7, 90),
    )
    left = blob(
        (rng.uniform(-6, 14), rng.uniform(38, 52), dome - rng.uniform(34, 48)),
        (rng.uniform(56, 92), rng.uniform(26, 40), rng.uniform(32, 48)),
        (rng.uniform(-10, 10), rng.uniform(0, 18), rng.uniform(-12, 5)),
        ripple(rng, 6, 70),
    )
    tilt = np.array([rng.uniform(-0.75, -0.4), rng.uniform(-0.45, -0.15), rng.uniform(-0.8, -0.5)])
    n = (tilt / np.linalg.norm(tilt)).tolist()
    at, dent = (rng.uniform(30, 46), 0.0, dome - rng.uniform(70, 108)), ripple(rng, 6, 60)

    def below(points: Points) -> FloatArray:
        plane = sum(w * (p - c) for w, p, c in zip(n, points, at, strict=True))
        return -plane + dent(points)

    liver = minus(union(right, left, rng.uniform(10, 30)), Solid(below), 12)
    spine = tube([(0, torso.spine_y, -400), (0, torso.spine_y, 400)], [46, 46])
    liver = minus(within(liver, organs.space, 5), spine, 10)
    for neighbour in (grow(organs.kidneys[1], organs.bed), organs.gallbladder, organs.vena_cava):
        liver = minus(liver, neighbour, 3)
    return liver


def draw_liver(canvas: Canvas, liver: Solid, torso: Torso, rng: np.random.Generator, hu: float) -> None:
    """Paint the liver with its vessels and tumours over its neighbours.

    Args:
        canvas: Canvas with torso and organs.
        liver: Liver from :func:`random_liver`.
        torso: Torso that the liver was fitted to.
        rng: Source of texture, vessels and tumours.
        hu: Density of the parenchyma, HU.
    """
    canvas.paint(liver, hu, Part.LIVER, texture=ripple(rng, 6, 45))
    _draw_vessels(canvas, liver, torso, rng, hu)
    _draw_tumours(canvas, liver, rng, hu)


def _draw_vessels(canvas: Canvas, liver: Solid, torso: Torso, rng: np.random.Generator, hu: float) -> None:
    """Paint hepatic veins and a portal tree, brighter than the parenchyma; they count as liver."""
    inside, dome = grow(liver, -4), torso.dome
    bright = hu + rng.uniform(15, 50)
    cava = (20.0, torso.spine_y + 40, dome - 22)
    hilum = (28.0, 8.0, dome - 80)
    trees = [
        (cava, [(120, 10, dome - 70), (65, 60, dome - 60), (0, 60, dome - 40)]),
        (hilum, [(95, 30, dome - 60), (100, -25, dome - 95), (75, 15, dome - 120), (10, 55, dome - 55)]),
    ]
    for root, ends in trees:
        for end in ends:
            tip = jitter(rng, end, 14)
            middle = ((root[0] + tip[0]) / 2, (root[1] + tip[1]) / 2, (root[2] + tip[2]) / 2)
            bend, twig = jitter(rng, middle, 9), jitter(rng, tip, 28)
            wide = rng.uniform(4.5, 7)
            for path, radii in (([root, bend, tip], [wide, 3.5, 1.5]), ([bend, twig], [2.5, 1.2])):
                canvas.paint(within(tube(path, radii), inside), bright, Part.LIVER)


def _draw_tumours(canvas: Canvas, liver: Solid, rng: np.random.Generator, hu: float) -> None:
    """Paint zero to five tumours that do not touch, anywhere in the liver."""
    points = canvas.points()
    depth = -liver.distance(points)
    taken: list[tuple[Vector, float]] = []
    for _ in range(rng.choice(6, p=[0.08, 0.26, 0.26, 0.2, 0.12, 0.08])):
        radius = float(5 * 6 ** rng.beta(1.1, 1.6))
        candidates = np.argwhere((depth > 0.45 * radius) & (canvas.parts == Part.LIVER))
        for _ in range(30):
            index = candidates[rng.integers(len(candidates))]
            x, y, z = (float(axis[i]) for axis, i in zip(canvas.axes, index, strict=True))
            if all(np.hypot(np.hypot(x - a, y - b), z - c) > radius + r + 5 for (a, b, c), r in taken):
                taken.append(((x, y, z), radius))
                _draw_tumour(canvas, liver, (x, y, z), radius, rng, hu)
                break


def _draw_tumour(
    canvas: Canvas, liver: Solid, centre: Vector, radius: float, rng: np.random.Generator, hu: float
) -> None:
    """Paint a dark, bright or ringed tumour with a sharp or a blurred edge."""
    a, b, c = (radius * rng.uniform(0.85, 1.15, 3)).tolist()
    angles = rng.uniform(-90, 90, 3).tolist()
    lump = blob(centre, (a, b, c), angles, ripple(rng, 0.16 * radius, 2.2 * radius + 8))
    lump = within(lump, grow(liver, -1))
    edge, texture = rng.uniform(2, min(8, 2 + 0.4 * radius)), ripple(rng, 7, 14)
    kind = rng.random()
    if kind < 0.12:
        canvas.paint(lump, hu + rng.uniform(14, 35), Part.TUMOUR, edge, texture)
    elif kind < 0.3 and radius > 7:
        canvas.paint(lump, hu + rng.uniform(5, 30), Part.TUMOUR, edge, texture)
        core = grow(lump, -rng.uniform(2.5, 0.4 * radius))
        canvas.paint(core, hu - rng.uniform(30, 75), Part.TUMOUR, edge, texture)
    else:
        canvas.paint(lump, hu - rng.uniform(15, 70), Part.TUMOUR, edge, texture)
