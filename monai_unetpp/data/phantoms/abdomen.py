# SPDX-License-Identifier: Apache-2.0
"""Organs around the liver, many of which have about its density.

Coordinates as in :mod:`monai_unetpp.data.phantoms.torso`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from monai_unetpp.data.phantoms.canvas import Canvas
from monai_unetpp.data.phantoms.parts import Part
from monai_unetpp.data.phantoms.shapes import Solid, blob, grow, jitter, minus, ripple, tube, union, within
from monai_unetpp.data.phantoms.torso import Torso

__all__ = ["Organs", "draw_gallbladder", "draw_organs", "random_organs"]


@dataclass(frozen=True)
class Organs:
    """Solids of the organs around the liver.

    Args:
        space: Abdominal cavity, below the diaphragm and inside the muscle wall.
        spleen: Spleen, on the patient's left, at the back.
        kidneys: Left and right kidney.
        stomach: Stomach, on the left, at the front.
        gallbladder: Gallbladder, under the right lobe of the liver.
        vena_cava: Inferior vena cava, along the right side of the spine.
        bed: Thickness of the fat around the kidneys, mm.
    """

    space: Solid
    spleen: Solid
    kidneys: tuple[Solid, Solid]
    stomach: Solid
    gallbladder: Solid
    vena_cava: Solid
    bed: float


def random_organs(torso: Torso, rng: np.random.Generator) -> Organs:
    """Return random organs that fit into ``torso``."""
    wide, back, dome = torso.half_width / 160, torso.spine_y, torso.dome
    space = minus(grow(torso.cavity, -0.5), grow(torso.thorax, 3))
    bed = rng.uniform(0, 4)
    spleen = blob(
        (rng.uniform(-104, -92) * wide, back + rng.uniform(8, 22), dome - rng.uniform(48, 66)),
        (rng.uniform(25, 36), rng.uniform(42, 58), rng.uniform(38, 56)),
        (rng.uniform(-35, -5), rng.uniform(-15, 15), rng.uniform(15, 40)),
        ripple(rng, 5, 55),
    )
    kidneys = []
    for side in (-1, 1):
        kidneys.append(
            blob(
                (
                    side * rng.uniform(60, 68) * wide,
                    back + rng.uniform(-6, 6),
                    rng.uniform(-52, -34) - 8 * side,
                ),
                (rng.uniform(24, 30), rng.uniform(22, 27), rng.uniform(46, 58)),
                (rng.uniform(-15, 5), side * rng.uniform(5, 18), side * rng.uniform(-30, 0)),
                ripple(rng, 2.5, 40),
            )
        )
    fundus = blob(
        (rng.uniform(-62, -42) * wide, rng.uniform(12, 32), dome - rng.uniform(40, 55)),
        (rng.uniform(34, 50), rng.uniform(34, 48), rng.uniform(36, 50)),
        dent=ripple(rng, 5, 60),
    )
    end = (rng.uniform(5, 25), rng.uniform(38, 52), rng.uniform(-30, -5))
    antrum = tube([(-60 * wide, 38, dome - 60), (-30, 50, -10), end], [28, 24, 15])
    gallbladder = blob(
        (rng.uniform(42, 58), rng.uniform(34, 48), rng.uniform(-38, -18)),
        (rng.uniform(10, 17), rng.uniform(16, 24), rng.uniform(18, 30)),
        (rng.uniform(-40, 0), rng.uniform(-25, 25), 0),
    )
    vena_cava = tube(
        [(12, back + 46, dome + 20), (22, back + 36, dome - 40), (17, back + 27, -400)], [11, 12, 10]
    )
    return Organs(
        space,
        minus(within(spleen, space), grow(kidneys[0], bed), 4),
        (kidneys[0], kidneys[1]),
        within(union(fundus, antrum, 12), space, 4),
        gallbladder,
        vena_cava,
        bed,
    )


def draw_organs(
    canvas: Canvas, organs: Organs, torso: Torso, rng: np.random.Generator, liver_hu: float
) -> None:
    """Paint the organs, over which the liver is painted afterwards.

    Args:
        canvas: Canvas with the torso.
        organs: Organs to paint.
        torso: Torso that the organs were fitted to.
        rng: Source of densities, and of the loops of bowel.
        liver_hu: Density of the liver, near which spleen, bowel and pancreas are drawn, HU.
    """
    _bowel(canvas, organs, rng, liver_hu)
    _stomach(canvas, organs, rng, liver_hu)
    tail = [(-70, torso.spine_y + 40, 18), (-10, torso.spine_y + 58, 4), (38, 18, -28)]
    canvas.paint(
        tube(tail, [rng.uniform(8, 11), 9, rng.uniform(12, 17)]),
        liver_hu - rng.uniform(5, 30),
        Part.PANCREAS,
        texture=ripple(rng, 20, 12),
    )
    canvas.paint(organs.spleen, liver_hu + rng.uniform(-12, 15), Part.SPLEEN, texture=ripple(rng, 4, 40))
    for kidney in organs.kidneys:
        _kidney(canvas, within(kidney, organs.space), organs.bed, rng, torso.blood)
    canvas.paint(organs.vena_cava, torso.blood - rng.uniform(0, 15), Part.VESSEL)


def draw_gallbladder(canvas: Canvas, organs: Organs, rng: np.random.Generator) -> None:
    """Paint the gallbladder: bile in a thin wall."""
    canvas.paint(organs.gallbladder, 65, Part.GALLBLADDER)
    canvas.paint(grow(organs.gallbladder, -2), rng.uniform(2, 18), Part.GALLBLADDER)


def _kidney(canvas: Canvas, kidney: Solid, bed: float, rng: np.random.Generator, blood: float) -> None:
    """Paint cortex, pyramids and the fat of the sinus, in a bed of fat."""
    canvas.paint(grow(kidney, bed), -95, Part.FAT)
    canvas.paint(kidney, blood + rng.uniform(-15, 45), Part.KIDNEY)
    canvas.paint(grow(kidney, -7), blood + rng.uniform(-15, 10), Part.KIDNEY, 3, ripple(rng, 25, 18))
    canvas.paint(grow(kidney, -16), rng.uniform(-60, 10), Part.KIDNEY, 5)


def _stomach(canvas: Canvas, organs: Organs, rng: np.random.Generator, liver_hu: float) -> None:
    """Paint a wall, a meal (water, food, or contrast near the liver's density), and gas on top."""
    canvas.paint(organs.stomach, rng.uniform(70, 95), Part.STOMACH)
    meal = (rng.uniform(5, 30), liver_hu - rng.uniform(10, 40), liver_hu + rng.uniform(-15, 25))
    lumen, level = grow(organs.stomach, -4), rng.uniform(38, 62)
    canvas.paint(lumen, meal[rng.integers(3)], Part.STOMACH, texture=ripple(rng, 15, 25))
    canvas.paint(within(lumen, _in_front_of(level)), -950, Part.STOMACH)


def _bowel(canvas: Canvas, organs: Organs, rng: np.random.Generator, liver_hu: float) -> None:
    """Paint colon and loops of small bowel in the lower half, with walls and varying content."""
    height, space = rng.uniform(-62, -45), grow(organs.space, -3)
    bends = [
        (-112.0, -5.0, height + 35),
        (-70.0, 52.0, height + 5),
        (0.0, 66.0, height - 14),
        (70.0, 55.0, height - 8),
        (105.0, 10.0, height - 30),
    ]
    colon = tube(bends, rng.uniform(14, 23, 5).tolist())
    loops = [colon]
    for _ in range(rng.integers(22, 32)):
        path = [(rng.uniform(-100, 95), rng.uniform(-10, 80), rng.uniform(-150, -22))]
        for _ in range(2):
            path.append(jitter(rng, path[-1], 28))
        loops.append(tube(path, rng.uniform(9, 14, 3).tolist()))
    for loop in loops[::-1]:
        loop = within(loop, space)
        canvas.paint(grow(loop, 1.5), -90, Part.FAT)
        canvas.paint(loop, rng.uniform(70, 110), Part.BOWEL)
        content = (rng.uniform(10, 40), liver_hu + rng.uniform(-25, 25), rng.uniform(40, 80))
        canvas.paint(grow(loop, -2.5), content[rng.integers(3)], Part.BOWEL)
        if rng.random() < 0.25:
            level = rng.uniform(40, 70)
            canvas.paint(within(grow(loop, -3), _in_front_of(level)), -900, Part.BOWEL)


def _in_front_of(y: float) -> Solid:
    """Return the half space in which gas collects, in a patient who lies on the back."""
    return Solid(lambda p: y - p[1])
