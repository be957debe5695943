# SPDX-License-Identifier: Apache-2.0
"""Synthetic abdominal CT with liver and liver tumours, to try everything on without a download.

A torso is painted first (:mod:`.torso`), then the organs whose density is that of the liver
(:mod:`.abdomen`), then the liver, its vessels and its tumours; :meth:`.Canvas.scan` makes a CT of it.
It is a stylised picture for tests, tutorials and demonstrations; no figure measured on it says anything
about patients.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pathlib import Path

from monai_unetpp.data.abdomen import Organs, draw_gallbladder, draw_organs, random_organs
from monai_unetpp.data.canvas import Canvas
from monai_unetpp.data.decathlon import Case, write_decathlon
from monai_unetpp.data.parts import Part
from monai_unetpp.data.shapes import FloatArray, Shape, blob, grow, minus, ripple, tube, union, within
from monai_unetpp.data.torso import Torso, draw_torso, random_torso

__all__ = ["LABELS", "Phantom", "liver_phantom", "write_liver_phantoms"]

LABELS = {"0": "background", "1": "liver", "2": "tumour"}
ORIENTATIONS = ("RAS", "LPS", "LAS", "RPS", "LPI", "RAI", "PSR", "SAL")


@dataclass(frozen=True)
class Phantom:
    """One synthetic case; all arrays (X, Y, Z), in the axis order that ``affine`` tells.

    Args:
        image: int16, HU.
        label: uint8; 0 background, 1 liver, 2 tumour.
        parts: uint8, see :class:`monai_unetpp.data.parts.Part`.
        affine: float64 (4, 4), voxel index to world mm (RAS+).
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    parts: NDArray[np.uint8]
    affine: NDArray[np.float64]


def liver_phantom(rng: np.random.Generator) -> Phantom:
    """Return one random abdomen: 180 - 220 mm of it, voxels of 2.4 - 3.6 mm, slices of 2.5 - 5 mm.

    Args:
        rng: the only source of variation; an equal state gives equal arrays.
    """
    torso = random_torso(rng)
    organs = random_organs(torso, rng)
    liver = _random_liver(torso, organs, rng)
    canvas = _random_canvas(torso, rng)
    hu = rng.uniform(90, 130)
    draw_torso(canvas, torso, rng)
    draw_organs(canvas, organs, torso, rng, hu)
    canvas.paint(liver, hu, Part.LIVER, texture=ripple(rng, 6, 45))
    _draw_vessels(canvas, liver, torso, rng, hu)
    _draw_tumours(canvas, liver, rng, hu)
    draw_gallbladder(canvas, organs, rng)
    scan = canvas.scan(
        rng,
        noise=rng.uniform(8, 25),
        offset=rng.uniform(-6, 6),
        axcodes=ORIENTATIONS[rng.integers(len(ORIENTATIONS))],
        origin=(rng.uniform(-8, 8), rng.uniform(-20, 20), rng.uniform(-700, 0)),
    )
    label = (scan.parts == Part.LIVER) + 2 * (scan.parts == Part.TUMOUR)
    return Phantom(scan.image, label.astype(np.uint8), scan.parts, scan.affine)


def write_liver_phantoms(
    directory: str | os.PathLike[str],
    cases: int = 12,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Write a data set of phantoms in the layout of the Medical Segmentation Decathlon.

    Case ``k`` depends on ``(seed, k)`` only: more cases leave the earlier ones as they are, bit for bit.

    Args:
        directory: where ``dataset.json``, ``imagesTr`` and ``labelsTr`` go; made if it does not exist.
        cases: how many.
        seed: not negative.
        overwrite: whether a data set that is already there may be replaced.
        progress: whether to show a progress bar on stderr.

    Returns:
        The path of ``dataset.json``.

    Raises:
        ValueError: if ``cases`` is less than 1 or ``seed`` is negative.
        FileExistsError: if ``directory`` holds a data set and ``overwrite`` is false.
    """
    if cases < 1:
        msg = f"cases must be at least 1, got {cases}."
        raise ValueError(msg)
    if seed < 0:
        msg = f"seed must not be negative, got {seed}."
        raise ValueError(msg)

    def draw() -> Iterator[Case]:
        for k in range(cases):
            phantom = liver_phantom(np.random.default_rng([seed, k]))
            yield Case(f"liver_{k:03d}", phantom.image, phantom.label, phantom.affine)

    return write_decathlon(
        directory,
        draw(),
        total=cases,
        name="Liver phantom",
        description=f"Synthetic abdominal CT with liver and tumours (monai-unetpp, seed {seed}).",
        labels=LABELS,
        overwrite=overwrite,
        progress=progress,
    )


def _random_canvas(torso: Torso, rng: np.random.Generator) -> Canvas:
    """A field of view around the body, from the lung bases downwards."""
    pixel = rng.uniform(2.4, 3.6)
    x, y = torso.half_width + rng.uniform(4, 16), torso.half_depth + rng.uniform(4, 12)
    top = torso.dome + rng.uniform(12, 40)
    low = (-x, -y - rng.uniform(4, 14), top - rng.uniform(180, 220))
    return Canvas(low, (x, y, top), (pixel, pixel, rng.uniform(2.5, 5)))


def _random_liver(torso: Torso, organs: Organs, rng: np.random.Generator) -> Shape:
    """Two lobes under the diaphragm, cut below by the visceral surface, pressed in by neighbours."""
    wide, dome = torso.half_width / 160, torso.dome
    right = blob(
        (rng.uniform(66, 80) * wide, rng.uniform(-6, 8), dome - rng.uniform(72, 84)),
        (rng.uniform(66, 82), rng.uniform(76, 98), rng.uniform(78, 100)),
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
    at, dent = (rng.uniform(30, 46), 0.0, dome - rng.uniform(78, 98)), ripple(rng, 6, 60)

    def below(points: tuple[FloatArray, FloatArray, FloatArray]) -> FloatArray:
        plane = sum(w * (p - c) for w, p, c in zip(n, points, at, strict=True))
        return -plane + dent(points)

    liver = minus(union(right, left, rng.uniform(10, 30)), Shape(below), 12)
    spine = tube([(0, torso.spine_y, -400), (0, torso.spine_y, 400)], [46, 46])
    liver = minus(within(liver, organs.space, 5), spine, 10)
    for neighbour in (grow(organs.kidneys[1], 4), organs.gallbladder, grow(organs.vena_cava, 1)):
        liver = minus(liver, neighbour, 3)
    return liver


def _draw_vessels(
    canvas: Canvas, liver: Shape, torso: Torso, rng: np.random.Generator, hu: float
) -> None:
    """Hepatic veins that meet at the vena cava and a portal tree, somewhat brighter; still liver."""
    inside, dome = grow(liver, -4), torso.dome
    bright = hu + rng.uniform(15, 45)
    cava = (20.0, torso.spine_y + 40, dome - 22)
    hilum = (28.0, 8.0, dome - 80)
    trees = [
        (cava, [(120, 10, dome - 70), (65, 60, dome - 60), (0, 60, dome - 40)]),
        (hilum, [(95, 30, dome - 60), (100, -25, dome - 95), (75, 15, dome - 120), (10, 55, dome - 55)]),
    ]
    for root, ends in trees:
        for end in ends:
            tip = tuple(v + rng.uniform(-14, 14) for v in end)
            bend = tuple((a + b) / 2 + rng.uniform(-9, 9) for a, b in zip(root, tip, strict=True))
            twig = tuple(b + rng.uniform(-28, 28) for b in tip)
            wide = rng.uniform(3.5, 6)
            for path, radii in (([root, bend, tip], [wide, 3.5, 1.5]), ([bend, twig], [2.5, 1.2])):
                canvas.paint(within(tube(path, radii), inside), bright, Part.LIVER)


def _draw_tumours(canvas: Canvas, liver: Shape, rng: np.random.Generator, hu: float) -> None:
    """None to five tumours, apart from each other, anywhere in the liver."""
    points = canvas.points()
    depth = -liver.distance(points)
    taken: list[tuple[tuple[float, float, float], float]] = []
    for _ in range(rng.choice(6, p=[0.08, 0.26, 0.26, 0.2, 0.12, 0.08])):
        radius = float(4 * 7.5 ** rng.beta(1.1, 1.6))
        candidates = np.argwhere((depth > 0.45 * radius) & (canvas.parts == Part.LIVER))
        for _ in range(30):
            if not len(candidates):
                break
            index = candidates[rng.integers(len(candidates))]
            x, y, z = (float(axis[i]) for axis, i in zip(canvas.axes, index, strict=True))
            if all(np.hypot(np.hypot(x - a, y - b), z - c) > radius + r + 5 for (a, b, c), r in taken):
                taken.append(((x, y, z), radius))
                _draw_tumour(canvas, liver, (x, y, z), radius, rng, hu)
                break


def _draw_tumour(
    canvas: Canvas,
    liver: Shape,
    centre: tuple[float, float, float],
    radius: float,
    rng: np.random.Generator,
    hu: float,
) -> None:
    """A dark, bright or ringed lump with a sharp or a vague edge."""
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
