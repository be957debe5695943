# SPDX-License-Identifier: Apache-2.0
"""Synthetic CT, to try everything on without a download: an abdomen with liver tumours, a chest with nodules.

A torso is painted first (:mod:`.torso`). In the abdomen follow the organs whose density is that of the liver
(:mod:`.abdomen`), then the liver, its vessels and its tumours (:mod:`.liver`); in the chest the lungs, their
vessels, and nodules (:mod:`.chest`). :meth:`.Canvas.scan` makes a CT of it. It is a stylised picture for
tests, tutorials and demonstrations; no figure measured on it says anything about patients.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from monai_unetpp.data.decathlon import Case, write_decathlon
from monai_unetpp.data.phantoms.abdomen import draw_gallbladder, draw_organs, random_organs
from monai_unetpp.data.phantoms.canvas import Canvas, Scan
from monai_unetpp.data.phantoms.chest import draw_chest, draw_nodules, random_chest
from monai_unetpp.data.phantoms.liver import draw_liver, random_liver
from monai_unetpp.data.phantoms.parts import Part
from monai_unetpp.data.phantoms.torso import Torso, draw_torso, random_torso

__all__ = [
    "PHANTOMS",
    "Phantom",
    "chest_phantom",
    "liver_phantom",
    "write_liver_phantoms",
    "write_phantoms",
]

ORIENTATIONS = ("RAS", "LPS", "LAS", "RPS", "LPI", "RAI", "PSR", "SAL")


@dataclass(frozen=True)
class Phantom:
    """One synthetic case; all arrays (X, Y, Z), in the axis order that ``affine`` tells.

    Args:
        image: int16, HU.
        label: uint8, classes as in :data:`PHANTOMS`.
        parts: uint8, see :class:`monai_unetpp.data.phantoms.parts.Part`.
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
    liver = random_liver(torso, organs, rng)
    canvas = _abdomen_canvas(torso, rng)
    hu = rng.uniform(60, 140)
    draw_torso(canvas, torso, rng)
    draw_organs(canvas, organs, torso, rng, hu)
    draw_liver(canvas, liver, torso, rng, hu)
    draw_gallbladder(canvas, organs, rng)
    scan = _scan(canvas, rng, noise=rng.uniform(8, 25))
    label = (scan.parts == Part.LIVER) + 2 * (scan.parts == Part.TUMOUR)
    return Phantom(scan.image, label.astype(np.uint8), scan.parts, scan.affine)


def chest_phantom(rng: np.random.Generator) -> Phantom:
    """Return 60 mm of one half of a chest with up to 7 nodules; voxels of 1.2 - 1.6 mm, slices up to 2.5.

    Args:
        rng: the only source of variation; an equal state gives equal arrays.
    """
    torso = random_torso(rng)
    chest = random_chest(torso, rng)
    canvas = _chest_canvas(torso, rng)
    draw_torso(canvas, torso, rng)
    draw_chest(canvas, chest, torso, rng)
    draw_nodules(canvas, chest, rng, count=int(rng.integers(3, 8)))
    scan = _scan(canvas, rng, noise=rng.uniform(12, 35))
    label = (scan.parts == Part.NODULE).astype(np.uint8)
    return Phantom(scan.image, label, scan.parts, scan.affine)


@dataclass(frozen=True)
class Kind:
    """What there is of phantoms.

    Args:
        draw: makes one.
        stem: of the files' names.
        name: of the data set.
        content: one line on it.
        labels: of the classes, by value.
    """

    draw: Callable[[np.random.Generator], Phantom]
    stem: str
    name: str
    content: str
    labels: dict[str, str]


PHANTOMS = {
    "liver": Kind(
        liver_phantom,
        "liver",
        "Liver phantom",
        "abdominal CT with liver and tumours",
        {"0": "background", "1": "liver", "2": "tumour"},
    ),
    "chest": Kind(
        chest_phantom,
        "chest",
        "Chest phantom",
        "chest CT with lung nodules",
        {"0": "background", "1": "nodule"},
    ),
}


def write_liver_phantoms(
    directory: str | os.PathLike[str],
    cases: int = 12,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Write abdomens: :func:`write_phantoms` of kind ``"liver"``."""
    return write_phantoms(directory, "liver", cases, seed, overwrite, progress)


def write_phantoms(
    directory: str | os.PathLike[str],
    kind: str,
    cases: int = 12,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Write a data set of phantoms in the layout of the Medical Segmentation Decathlon.

    Case ``k`` depends on ``(seed, k)`` only: more cases leave the earlier ones as they are, bit for bit.

    Args:
        directory: where ``dataset.json``, ``imagesTr`` and ``labelsTr`` go; made if it does not exist.
        kind: ``"liver"`` or ``"chest"``.
        cases: how many.
        seed: not negative.
        overwrite: whether a data set that is already there may be replaced.
        progress: whether to show a progress bar on stderr.

    Returns:
        The path of ``dataset.json``.

    Raises:
        ValueError: if ``kind`` is not known, ``cases`` is less than 1 or ``seed`` is negative.
        FileExistsError: if ``directory`` holds a data set and ``overwrite`` is false.
    """
    if kind not in PHANTOMS:
        msg = f"kind must be one of {', '.join(PHANTOMS)}, got {kind!r}."
        raise ValueError(msg)
    if cases < 1:
        msg = f"cases must be at least 1, got {cases}."
        raise ValueError(msg)
    if seed < 0:
        msg = f"seed must not be negative, got {seed}."
        raise ValueError(msg)

    made = PHANTOMS[kind]

    def draw() -> Iterator[Case]:
        for k in range(cases):
            phantom = made.draw(np.random.default_rng([seed, k]))
            yield Case(f"{made.stem}_{k:03d}", phantom.image, phantom.label, phantom.affine)

    return write_decathlon(
        directory,
        draw(),
        total=cases,
        name=made.name,
        description=f"Synthetic {made.content} (monai-unetpp, seed {seed}).",
        labels=made.labels,
        overwrite=overwrite,
        progress=progress,
    )


def _scan(canvas: Canvas, rng: np.random.Generator, noise: float) -> Scan:
    """The volume as some scanner would store it."""
    return canvas.scan(
        rng,
        noise=noise,
        offset=rng.uniform(-6, 6),
        axcodes=ORIENTATIONS[rng.integers(len(ORIENTATIONS))],
        origin=(rng.uniform(-8, 8), rng.uniform(-20, 20), rng.uniform(-700, 0)),
    )


def _abdomen_canvas(torso: Torso, rng: np.random.Generator) -> Canvas:
    """A field of view around the body, from the lung bases downwards."""
    pixel = rng.uniform(2.4, 3.6)
    x, y = torso.half_width + rng.uniform(4, 16), torso.half_depth + rng.uniform(4, 12)
    top = torso.dome + rng.uniform(12, 40)
    low = (-x, -y - rng.uniform(4, 14), top - rng.uniform(180, 220))
    return Canvas(low, (x, y, top), (pixel, pixel, rng.uniform(2.5, 5)))


def _chest_canvas(torso: Torso, rng: np.random.Generator) -> Canvas:
    """A field of view over one lung, somewhere between its base and its upper third."""
    pixel, side = rng.uniform(1.2, 1.6), rng.choice([-1, 1])
    x, y = torso.half_width + rng.uniform(2, 8), torso.half_depth + rng.uniform(2, 8)
    across = sorted((-20 * side, x * side))
    low = torso.dome + rng.uniform(-25, 60)
    return Canvas((across[0], -y, low), (across[1], y, low + 60), (pixel, pixel, rng.uniform(1.2, 2.5)))
