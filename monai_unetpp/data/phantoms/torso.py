# SPDX-License-Identifier: Apache-2.0
"""The trunk that all phantoms share: skin, fat, muscle, bones, lungs, heart, great vessels.

Patient axes in mm: x to the patient's right, y to the front, z to the head; (0, 0) is the middle of the
body, z = 0 is the height of the kidneys.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from monai_unetpp.data.phantoms.canvas import Canvas
from monai_unetpp.data.phantoms.parts import Part
from monai_unetpp.data.phantoms.shapes import FloatArray, Points, Solid, blob, grow, ripple, tube, within

__all__ = ["Torso", "draw_torso", "random_torso"]


@dataclass(frozen=True)
class Torso:
    """Spaces that organs are fitted into.

    Args:
        half_width: Half of the body's width at the skin, mm.
        half_depth: Half of the body's depth, front to back, mm.
        dome: Height of the right diaphragm, mm.
        wall: Thickness of the muscle wall, mm.
        body: Everything inside the skin.
        muscle: Muscle wall and everything inside it.
        cavity: Everything inside the muscle wall.
        thorax: Everything above the diaphragm.
        blood: Density of venous blood, somewhat below that of the aorta, HU.
    """

    half_width: float
    half_depth: float
    dome: float
    wall: float
    body: Solid
    muscle: Solid
    cavity: Solid
    thorax: Solid
    blood: float

    @property
    def spine_y(self) -> float:
        """Coordinate y of the centres of the vertebral bodies, mm."""
        return -0.46 * self.half_depth


def random_torso(rng: np.random.Generator) -> Torso:
    """Return a random trunk, 300 to 340 mm wide, with thin or thick fat."""
    a, b = rng.uniform(150, 170), rng.uniform(104, 122)
    dome, fat, wall = rng.uniform(62, 78), rng.uniform(7, 24), rng.uniform(8, 13)
    dent, power = ripple(rng, 4, 150), 2.35

    def skin(points: Points) -> FloatArray:
        u, v = np.abs(points[0]) / a, np.abs(points[1]) / b
        k = (u**power + v**power + 1e-6) ** (1 / power)
        slope = np.hypot(u ** (power - 1) / a, v ** (power - 1) / b) * k ** (1 - power)
        return (k - 1) / slope + dent(points)

    drop, side, bumps = rng.uniform(8, 22), rng.uniform(75, 95), ripple(rng, 4, 90)

    def above_dome(points: Points) -> FloatArray:
        x, y, z = points
        right = dome - ((x - 72) ** 2 + (y - 8) ** 2) / (2 * side)
        left = dome - drop - ((x + 72) ** 2 + (y - 5) ** 2) / (2 * side)
        crease = np.maximum(30 - np.abs(right - left), 0) ** 2 / 120
        return 0.8 * (np.maximum(right, left) + crease + bumps(points) - z)

    body = Solid(skin)
    muscle = grow(body, -fat)
    blood = rng.uniform(125, 160)
    cavity = grow(body, -fat - wall)
    return Torso(a, b, dome, wall, body, muscle, cavity, Solid(above_dome), blood)


def draw_torso(canvas: Canvas, torso: Torso, rng: np.random.Generator) -> None:
    """Paint table, skin, fat, muscles, ribs, lungs, heart, spine and aorta."""
    _table(canvas, torso, rng)
    canvas.paint(torso.body, 45, Part.FAT)  # the skin; fat covers all but its outermost 2 mm
    canvas.paint(grow(torso.body, -2), rng.uniform(-112, -95), Part.FAT, texture=ripple(rng, 9, 25))
    flesh = rng.uniform(58, 76)
    canvas.paint(torso.muscle, flesh, Part.MUSCLE, texture=ripple(rng, 8, 18))
    canvas.paint(torso.cavity, rng.uniform(-105, -88), Part.FAT, texture=ripple(rng, 14, 22))
    _ribs(canvas, torso, rng)
    _chest(canvas, torso, rng)
    _back(canvas, torso, rng, flesh)
    _aorta(canvas, torso, rng)


def _table(canvas: Canvas, torso: Torso, rng: np.random.Generator) -> None:
    """Paint a thin curved plate under the back."""
    top, bend = -torso.half_depth - rng.uniform(2, 8), rng.uniform(900, 2500)

    def plate(points: Points) -> FloatArray:
        x, y, z = points
        return np.maximum(np.abs(y - top - x**2 / bend) - 2, np.abs(x) - 190) + 0 * z

    canvas.paint(Solid(plate), rng.uniform(-350, -50), Part.TABLE)


def _ribs(canvas: Canvas, torso: Torso, rng: np.random.Generator) -> None:
    """Paint slanting bars inside the muscle wall, down to the costal arch."""
    pitch, phase, arch = rng.uniform(28, 34), rng.uniform(0, 30), rng.uniform(-45, -20)

    def bars(points: Points) -> FloatArray:
        x, y, z = points
        slanted = z - 0.45 * y + 0 * x
        height = (slanted + phase) % pitch - pitch / 2
        depth = torso.cavity.distance(points) - 0.45 * torso.wall
        bar = np.hypot(depth / 0.7, height / 1.3) - 4.5
        return np.maximum(bar, arch + 0.7 * np.maximum(y, 0) - z)

    canvas.paint(Solid(bars), rng.uniform(330, 480), Part.BONE)
    canvas.paint(grow(Solid(bars), -2.2), rng.uniform(120, 200), Part.BONE)


def _chest(canvas: Canvas, torso: Torso, rng: np.random.Generator) -> None:
    """Paint lung bases with vessels, the diaphragm, the heart, and fat between them."""
    inside = grow(torso.cavity, -1)
    canvas.paint(within(inside, grow(torso.thorax, 3)), rng.uniform(60, 80), Part.MUSCLE)
    lungs, air = within(inside, torso.thorax), rng.uniform(-870, -780)
    canvas.paint(lungs, air, Part.LUNG, texture=ripple(rng, 30, 60))
    for _ in range(24):
        x, y = rng.uniform(-115, 115), rng.uniform(-70, 60)
        path = [(x, y, torso.dome + 40.0), (x + rng.uniform(-25, 25), y - 10, torso.dome - 35.0)]
        branch = within(tube(path, [rng.uniform(1.5, 3.5), 0.8]), grow(lungs, -3))
        canvas.paint(branch, 40, Part.LUNG)
    middle = blob((-8, 0, torso.dome + 25), (45, 0.75 * torso.half_depth, 70), dent=ripple(rng, 5, 60))
    canvas.paint(within(middle, lungs), -90, Part.FAT)
    heart = blob(
        (rng.uniform(-28, -12), 28, torso.dome + rng.uniform(16, 26)),
        (rng.uniform(54, 66), rng.uniform(40, 48), rng.uniform(34, 42)),
        (rng.uniform(-15, 15), rng.uniform(10, 30), rng.uniform(15, 35)),
        ripple(rng, 4, 60),
    )
    heart = within(heart, within(grow(torso.thorax, 3.5), grow(torso.cavity, -4)), 3)
    canvas.paint(heart, rng.uniform(95, 120), Part.HEART)
    canvas.paint(grow(heart, -9), torso.blood + 5, Part.HEART)


def _back(canvas: Canvas, torso: Torso, rng: np.random.Generator, flesh: float) -> None:
    """Paint paraspinal muscles, psoas, crura of the diaphragm, and vertebrae with discs."""
    y, bottom, top = torso.spine_y, -400.0, 400.0
    fibres, inside = ripple(rng, 12, 16), grow(torso.muscle, 2)
    for side in (-1, 1):
        canvas.paint(within(_erector(34 * side, y - 30), inside, 4), flesh, Part.MUSCLE, texture=fibres)
        psoas = tube([(26 * side, y - 4, 15), (44 * side, y + 4, -140)], [7, 23])
        canvas.paint(psoas, flesh, Part.MUSCLE, texture=fibres)
        crus = tube([(16 * side, y + 18, torso.dome), (12 * side, y + 20, -50)], [7, 4])
        canvas.paint(crus, flesh, Part.MUSCLE)
        process = blob((28 * side, y - 24, 0), (24, 5, 400), (0, 0, -15 * side))
        canvas.paint(process, rng.uniform(180, 260), Part.BONE)
    canvas.paint(tube([(0, y - 28, bottom), (0, y - 28, top)], [15, 15]), 330, Part.BONE)
    canvas.paint(tube([(0, y - 27, bottom), (0, y - 27, top)], [8, 8]), 35, Part.MUSCLE)
    spinous = Solid(lambda p: np.hypot(p[0] / 0.35, (p[1] - y + 50) / 1.2) - 11 + 0 * p[2])
    canvas.paint(spinous, rng.uniform(250, 350), Part.BONE)
    pitch, phase, wide = rng.uniform(30, 36), rng.uniform(0, 30), rng.uniform(20, 24)

    def column(points: Points) -> FloatArray:
        waist = 1.5 * np.cos(2 * np.pi * (points[2] + phase) / pitch)
        return np.hypot(points[0] / 1.15, points[1] - y) - wide * 0.85 + waist

    def disc(points: Points) -> FloatArray:
        height = np.abs((points[2] + phase) % pitch - pitch / 2) - 3.5
        return np.maximum(height, column(points))

    canvas.paint(Solid(column), rng.uniform(380, 650), Part.BONE)
    canvas.paint(grow(Solid(column), -3), rng.uniform(140, 220), Part.BONE, texture=ripple(rng, 40, 14))
    canvas.paint(grow(Solid(disc), 1.5), 450, Part.BONE)
    canvas.paint(Solid(disc), rng.uniform(75, 105), Part.MUSCLE)


def _erector(x: float, y: float) -> Solid:
    """Return the muscle beside the spinous processes, an endless oval column."""
    return Solid(lambda p: np.hypot((p[0] - x) / 1.35, p[1] - y) - 24)


def _aorta(canvas: Canvas, torso: Torso, rng: np.random.Generator) -> None:
    """Paint the aorta, in front of the spine and left of the vena cava."""
    front = torso.spine_y + 30
    aorta = tube([(-20, front - 6, 400), (-14, front, 20), (-8, front, -400)], [12, 10.5, 9])
    canvas.paint(aorta, torso.blood + rng.uniform(5, 25), Part.VESSEL)
