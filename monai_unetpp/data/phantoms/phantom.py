# SPDX-License-Identifier: Apache-2.0
"""Synthetic CT for tests, tutorials and demonstrations: an abdomen with liver tumours, a chest with nodules.

A torso is painted first (:mod:`.torso`). In the abdomen, organs with about the density of the liver follow
(:mod:`.abdomen`), then the liver with its vessels and tumours (:mod:`.liver`); in the chest, the lungs with
their vessels and nodules (:mod:`.chest`). :meth:`.Canvas.scan` turns the canvas into a CT. No figure
measured on such a stylised picture says anything about patients.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from monai_unetpp.data.decathlon import Case, write_decathlon
from monai_unetpp.data.phantoms.abdomen import draw_gallbladder, draw_organs, random_organs
from monai_unetpp.data.phantoms.canvas import Canvas, Volume
from monai_unetpp.data.phantoms.chest import draw_chest, draw_nodules, random_chest
from monai_unetpp.data.phantoms.liver import draw_liver, random_liver
from monai_unetpp.data.phantoms.parts import Part
from monai_unetpp.data.phantoms.torso import Torso, draw_torso, random_torso
from monai_unetpp.files import PathLike

__all__ = [
    "KINDS",
    "Phantom",
    "chest_phantom",
    "ensure_phantoms",
    "liver_phantom",
    "write_liver_phantoms",
    "write_phantoms",
]

DEFAULT_CASES = 12
ORIENTATIONS = ("RAS", "LPS", "LAS", "RPS", "LPI", "RAI", "PSR", "SAL")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Phantom:
    """One synthetic case; all arrays are (X, Y, Z), in the axis order of ``affine``.

    Args:
        image: Intensities, int16, HU.
        label: Classes as in :data:`KINDS`, uint8.
        parts: Body parts, uint8, see :class:`monai_unetpp.data.phantoms.parts.Part`.
        affine: Voxel index to world mm (RAS+), float64 (4, 4).
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    parts: NDArray[np.uint8]
    affine: NDArray[np.float64]


def liver_phantom(rng: np.random.Generator) -> Phantom:
    """Return one random abdomen: 180 - 220 mm of it, voxels of 2.4 - 3.6 mm, slices of 2.5 - 5 mm.

    Args:
        rng: Only source of variation: equal states give equal arrays.
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
        rng: Only source of variation: equal states give equal arrays.
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
    """One kind of phantoms.

    Args:
        draw: Function that draws a case.
        stem: Beginning of the names of the files.
        name: Name of the data set.
        content: Content of the data set, for its description.
        labels: Value of a class, as a string -> its name.
    """

    draw: Callable[[np.random.Generator], Phantom]
    stem: str
    name: str
    content: str
    labels: dict[str, str]


KINDS = {
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
    directory: PathLike,
    cases: int = DEFAULT_CASES,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Write a data set of abdomens: :func:`write_phantoms` with kind ``"liver"``."""
    return write_phantoms(directory, "liver", cases, seed, overwrite, progress)


def write_phantoms(
    directory: PathLike,
    kind: str,
    cases: int = DEFAULT_CASES,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Write a data set of phantoms in the layout of the Medical Segmentation Decathlon.

    Case ``k`` depends on ``(seed, k)`` only: with more cases the earlier ones stay the same, bit for bit.

    Args:
        directory: Folder for ``dataset.json``, ``imagesTr`` and ``labelsTr``, made if it does not exist.
        kind: Kind of phantoms, ``"liver"`` or ``"chest"``.
        cases: Number of cases.
        seed: Seed, at least 0.
        overwrite: Whether an existing data set may be replaced.
        progress: Whether to show a progress bar on stderr.

    Returns:
        The path of ``dataset.json``.

    Raises:
        ValueError: if ``kind`` is not known, ``cases`` is less than 1 or ``seed`` is negative.
        FileExistsError: if ``directory`` holds a data set and ``overwrite`` is false.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    if cases < 1:
        raise ValueError(f"cases must be at least 1, got {cases}.")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}.")
    made = KINDS[kind]

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


def ensure_phantoms(dataset_dir: PathLike | None, phantom_dir: PathLike | None, kind: str) -> PathLike | None:
    """Write phantoms if the default folder of a bundle is used and is empty; return ``dataset_dir``.

    Of several processes the first one writes, and the others wait.

    Args:
        dataset_dir: Folder of the data set to use.
        phantom_dir: Folder of the phantoms; no other folder is written to.
        kind: Kind of phantoms, ``"liver"`` or ``"chest"``.
    """
    if not (dataset_dir and phantom_dir and Path(dataset_dir).resolve() == Path(phantom_dir).resolve()):
        return dataset_dir
    index = Path(dataset_dir) / "dataset.json"
    first = not dist.is_available() or not dist.is_initialized() or dist.get_rank() == 0
    if first and not index.is_file():
        logger.info(f"No data set given: making {DEFAULT_CASES} synthetic CTs (phantoms) in {index.parent}.")
        write_phantoms(index.parent, kind, DEFAULT_CASES, progress=True)
    while not index.is_file():  # no barrier: a process that starts late finds them made
        time.sleep(0.5)
    return dataset_dir


def _scan(canvas: Canvas, rng: np.random.Generator, noise: float) -> Volume:
    """Return the volume as a random scanner would store it."""
    return canvas.scan(
        rng,
        noise=noise,
        offset=rng.uniform(-6, 6),
        axcodes=ORIENTATIONS[rng.integers(len(ORIENTATIONS))],
        origin=(rng.uniform(-8, 8), rng.uniform(-20, 20), rng.uniform(-700, 0)),
    )


def _abdomen_canvas(torso: Torso, rng: np.random.Generator) -> Canvas:
    """Return a field of view around the body, from the lung bases downwards."""
    pixel = rng.uniform(2.4, 3.6)
    x, y = torso.half_width + rng.uniform(4, 16), torso.half_depth + rng.uniform(4, 12)
    top = torso.dome + rng.uniform(12, 40)
    low = (-x, -y - rng.uniform(4, 14), top - rng.uniform(180, 220))
    return Canvas(low, (x, y, top), (pixel, pixel, rng.uniform(2.5, 5)))


def _chest_canvas(torso: Torso, rng: np.random.Generator) -> Canvas:
    """Return a field of view over one lung, between its base and its upper third."""
    pixel, side = rng.uniform(1.2, 1.6), rng.choice([-1, 1])
    x, y = torso.half_width + rng.uniform(2, 8), torso.half_depth + rng.uniform(2, 8)
    across = sorted((-20 * side, x * side))
    low = torso.dome + rng.uniform(-25, 60)
    return Canvas((across[0], -y, low), (across[1], y, low + 60), (pixel, pixel, rng.uniform(1.2, 2.5)))
