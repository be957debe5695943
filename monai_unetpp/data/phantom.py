# SPDX-License-Identifier: Apache-2.0
"""Synthetic abdominal CT with liver and liver tumours, to try everything on without a download.

A torso is painted first (:mod:`.torso`), then the organs whose density is that of the liver
(:mod:`.abdomen`), then the liver, its vessels and its tumours (:mod:`.liver`); :meth:`.Canvas.scan` makes a
CT of it. It is a stylised picture for tests, tutorials and demonstrations; no figure measured on it says
anything about patients.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from monai_unetpp.data.abdomen import draw_gallbladder, draw_organs, random_organs
from monai_unetpp.data.canvas import Canvas
from monai_unetpp.data.decathlon import Case, write_decathlon
from monai_unetpp.data.liver import draw_liver, random_liver
from monai_unetpp.data.parts import Part
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
    liver = random_liver(torso, organs, rng)
    canvas = _random_canvas(torso, rng)
    hu = rng.uniform(60, 140)
    draw_torso(canvas, torso, rng)
    draw_organs(canvas, organs, torso, rng, hu)
    draw_liver(canvas, liver, torso, rng, hu)
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
