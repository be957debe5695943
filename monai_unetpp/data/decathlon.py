# SPDX-License-Identifier: Apache-2.0
"""Writing a data set in the layout of the Medical Segmentation Decathlon.

``dataset.json`` comes last, and every file appears under its name only when it is complete: a directory
with a ``dataset.json`` is a finished data set, whatever interrupted the run before.
"""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm  # type: ignore[import-untyped]

from monai_unetpp.files import atomic_write

__all__ = ["Case", "check_name", "write_case", "write_decathlon", "write_index"]


@dataclass(frozen=True)
class Case:
    """A volume with its label.

    Args:
        name: of both files, without suffix or folders.
        image: int16 (X, Y, Z), HU.
        label: uint8 (X, Y, Z).
        affine: (4, 4), voxel index to world mm (RAS+).
    """

    name: str
    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]


def write_decathlon(
    directory: str | os.PathLike[str],
    cases: Iterable[Case],
    *,
    total: int,
    name: str,
    description: str,
    labels: Mapping[str, str],
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Write CT volumes, labels and ``dataset.json``; equal cases give equal bytes.

    Args:
        directory: made if it does not exist.
        cases: drawn one at a time.
        total: how many there are, for the progress bar.
        name: of the data set.
        description: one sentence.
        labels: label value, as a string, to its name.
        overwrite: whether a data set that is there may be replaced. Its volumes are removed only where
            a new one has the same name.
        progress: whether to show a progress bar on stderr.

    Returns:
        The path of ``dataset.json``.

    Raises:
        FileExistsError: if ``directory`` holds a ``dataset.json`` and ``overwrite`` is false.
    """
    root = Path(directory)
    index = root / "dataset.json"
    if index.exists():
        if not overwrite:
            msg = (
                f"directory already holds a data set: {index}. "
                "Choose another directory, or replace it with overwrite=True (--overwrite)."
            )
            raise FileExistsError(msg)
        index.unlink()
    (root / "imagesTr").mkdir(parents=True, exist_ok=True)  # before the first is drawn
    names = []
    for case in tqdm(cases, desc=name, total=total, unit="case", disable=not progress):
        write_case(root, case)
        names.append(case.name)
    return write_index(root, names, name=name, description=description, labels=labels)


def write_case(directory: str | os.PathLike[str], case: Case) -> None:
    """Write the image and the label of one case."""
    for key, array in (("image", case.image), ("label", case.label)):
        with atomic_write(Path(directory) / _entry(case.name)[key]) as part:
            part.write_bytes(_nifti(array, case.affine))


def write_index(
    directory: str | os.PathLike[str],
    names: Sequence[str],
    *,
    name: str,
    description: str,
    labels: Mapping[str, str],
    scans: Mapping[str, str] | None = None,
) -> Path:
    """Write ``dataset.json`` over the cases ``names``, which are there; return its path.

    ``scans`` tells of a case the scan that it was cut out of.
    """
    index = Path(directory) / "dataset.json"
    dataset = {
        "name": name,
        "description": description,
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": dict(labels),
        "numTraining": len(names),
        "numTest": 0,
        "training": [{**_entry(case), **({"scan": scans[case]} if scans else {})} for case in names],
        "test": [],
    }
    with atomic_write(index) as part:
        part.write_bytes((json.dumps(dataset, indent=4) + "\n").encode())
    return index


def check_name(name: str) -> str:
    """Return the name of a case, which may come from a DICOM header; refuse one that leads elsewhere."""
    if not name or not PurePosixPath(name).name == PureWindowsPath(name).name == name:
        raise ValueError(f"name of a case must be that of a file, without folders, got {name!r}.")
    return name


def _entry(name: str) -> dict[str, str]:
    check_name(name)
    return {key: f"./{key}sTr/{name}.nii.gz" for key in ("image", "label")}


def _nifti(array: NDArray[np.int16] | NDArray[np.uint8], affine: NDArray[np.float64]) -> bytes:
    """Return a gzipped NIfTI-1 file without a time stamp or a file name in it."""
    volume: Any = nib.Nifti1Image(array, affine)  # type: ignore[no-untyped-call]
    volume.set_qform(affine, code="scanner")
    volume.set_sform(affine, code="scanner")
    volume.header.set_xyzt_units("mm")
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=buffer, mtime=0) as file:
        file.write(volume.to_bytes())
    return buffer.getvalue()
