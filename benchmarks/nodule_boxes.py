# SPDX-License-Identifier: Apache-2.0
r"""One data set of lung nodules from cubes that are annotated as a whole and from tight boxes.

python benchmarks/nodule_boxes.py --cubes lidc_nodules --boxes lidc_vois --scan '(?P<scan>LIDC-IDRI-\d+)' \
    --out NODULES

What lies outside of a box is unknown: boxes are padded to a useful size, on their own grid, with the label
``ignore``, which bundles/lung_nodule/boxes.json leaves out of the loss, the choice of patches and the scores.
A voxel of a box stays where it was in the world. Cases of one scan stay on one side of a split; the names of
cubes are what they were, so that the same cubes are held out as of the cubes alone.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from monai_unetpp.data.decathlon import Case, write_case, write_index
from monai_unetpp.data.layouts import Layout, find_layout
from monai_unetpp.files import refuse_existing
from monai_unetpp.readers import stem_of
from monai_unetpp.transforms import LoadImageAndLabeld

IGNORE = 2
LABELS = {"background": 0, "nodule": 1, "ignore": IGNORE}
PREFIX = "box_"  # of the names of padded cases, by which boxes.json tells them from cubes
Fill = str | float


def pad(case: Case, size: float, fill: Fill = "edge") -> Case:
    """Return a box in the middle of a larger one, whose label outside of it is ``IGNORE``.

    Args:
        case: Box, and where it lies.
        size: Number of voxels of 1 mm that the result has at least along each axis after resampling.
        fill: Intensities outside: ``"edge"`` repeats the nearest voxel of the box, ``"reflect"`` mirrors the
            box at its faces, a number is HU.
    """
    spacing = np.linalg.norm(case.affine[:3, :3], axis=0)
    # the distance between the first and the last voxel is what resampling keeps
    wanted = [math.ceil((size - 1) / step) + 1 for step in spacing]
    missing = [max(0, n - have) for n, have in zip(wanted, case.image.shape, strict=True)]
    margins = [(n // 2, n - n // 2) for n in missing]
    affine = case.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ [before for before, _ in margins]
    return Case(
        case.name,
        filled(case.image, margins, fill),
        np.pad(case.label, margins, constant_values=IGNORE),
        affine,
    )


def filled(image: NDArray[np.int16], margins: list[tuple[int, int]], fill: Fill) -> NDArray[np.int16]:
    """Return a volume with ``margins`` before and after each axis."""
    if isinstance(fill, str):
        modes: Any = {"edge": "edge", "reflect": "reflect"}
        if fill not in modes:
            raise ValueError(f"fill must be edge, reflect or a number of HU such as -1000, got {fill!r}.")
        return np.pad(image, margins, mode=modes[fill])
    return np.pad(image, margins, constant_values=round(fill))


def read_case(name: str, case: dict[str, str]) -> Case:
    """Read an image and its label, which must lie on one grid, with the axes as they are stored."""
    item = LoadImageAndLabeld(["image", "label"], out_channels=2)(case)
    image, label = (item[key][0].numpy() for key in ("image", "label"))
    affine = np.asarray(item["image"].affine, np.float64)
    return Case(name, image.round().astype(np.int16), label.astype(np.uint8), affine)


def write_nodules(
    out: Path,
    cubes: Sequence[Path],
    boxes: Sequence[Path],
    scan: str | None = None,
    size: float = 40,
    fill: Fill = "edge",
    overwrite: bool = False,
) -> list[str]:
    """Write the data set, ``dataset.json`` last; returns the names of its cases.

    Args:
        out: Folder of the data set.
        cubes: Data sets that are annotated as a whole.
        boxes: Data sets of boxes, of which nothing is known outside.
        scan: Regular expression that finds the scan, or the patient, in the name of a box.
        size: Number of voxels of 1 mm that a padded box has at least along each axis.
        fill: Intensities outside of a box, see :func:`pad`.
        overwrite: Whether a data set in ``out`` may be replaced.

    Raises:
        FileExistsError: if ``out`` holds a data set and ``overwrite`` is false.
        ValueError: if two cases have the same name, or a data set has other classes, or none.
    """
    if not overwrite:
        refuse_existing(out / "dataset.json")
    (out / "dataset.json").unlink(missing_ok=True)
    sources = [(path, find_layout(path), "") for path in cubes]
    sources += [(path, find_layout(path, scan=scan), PREFIX) for path in boxes]
    found: dict[str, dict[str, str]] = {}
    for path, layout, prefix in sources:
        for case in _checked(path, layout):
            name = prefix + stem_of(case["image"])
            if name in found:
                raise ValueError(f"{case['image']} and {found[name]['image']} would both be {name}.")
            found[name] = case
    for name, case in tqdm(found.items(), desc="nodules", unit="case", disable=None):
        read = read_case(name, case)
        write_case(out, pad(read, size, fill) if name.startswith(PREFIX) else read)
    write_index(
        out,
        list(found),
        name="Lung nodules",
        description="Cubes and padded boxes around lung nodules; 'ignore' lies outside of the boxes.",
        labels=LABELS,
        scans={name: case["scan"] for name, case in found.items() if "scan" in case},
    )
    return list(found)


def _checked(path: Path, layout: Layout) -> list[dict[str, str]]:
    if layout.problems:
        first, why = next(iter(layout.problems.items()))
        raise ValueError(
            f"{path} has {len(layout.problems)} files that do not fit, first {first}, which {why}."
        )
    if layout.labels not in ({}, {0: "background", 1: "nodule"}):
        raise ValueError(f"{path} must have the classes background and nodule, got {layout.labels}.")
    return layout.cases


def main() -> None:
    """Write the data set and say what it holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cubes", nargs="+", type=Path, default=[], help="data sets annotated as a whole")
    parser.add_argument("--boxes", nargs="+", type=Path, required=True, help="data sets of tight boxes")
    parser.add_argument("--scan", help="regular expression: (?P<scan>...) in the name of a box")
    parser.add_argument(
        "--size", type=float, default=40, help="voxels of 1 mm that a padded box has at least"
    )
    parser.add_argument("--fill", default="edge", help="edge, reflect or HU: intensities outside of a box")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    fill = args.fill if args.fill.isalpha() else float(args.fill)
    names = write_nodules(args.out, args.cubes, args.boxes, args.scan, args.size, fill, args.overwrite)
    padded = sum(name.startswith(PREFIX) for name in names)
    sys.stdout.write(f"{args.out}: {len(names) - padded} cubes, {padded} padded boxes.\n")


if __name__ == "__main__":
    main()
