# SPDX-License-Identifier: Apache-2.0
"""Writing a data set in the layout of the Medical Segmentation Decathlon.

All files are written atomically and ``dataset.json`` is written last: a directory that has one holds a
complete data set.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm  # type: ignore[import-untyped]

from monai_unetpp.files import PathLike, atomic_write

__all__ = ["Case", "check_name", "write_case", "write_decathlon", "write_index"]


@dataclass(frozen=True)
class Case:
    """A volume with its label.

    Args:
        name: Name of both files, without folders or suffix.
        image: Intensities, int16 (X, Y, Z), HU.
        label: Classes, uint8 (X, Y, Z).
        affine: Voxel index to world mm (RAS+), (4, 4).
    """

    name: str
    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]


def write_decathlon(
    directory: PathLike,
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
        directory: Folder of the data set, made if it does not exist.
        cases: Cases, taken one at a time.
        total: Number of cases, for the progress bar.
        name: Name of the data set.
        description: Description in one sentence.
        labels: Value of a class, as a string -> its name.
        overwrite: Whether an existing data set may be replaced. A volume of it is removed only if a new
            one has the same name.
        progress: Whether to show a progress bar on stderr.

    Returns:
        Path of ``dataset.json``.

    Raises:
        FileExistsError: if ``directory`` holds a ``dataset.json`` and ``overwrite`` is false.
    """
    root = Path(directory)
    index = root / "dataset.json"
    if index.exists():
        if not overwrite:
            raise FileExistsError(
                f"directory already holds a data set: {index}. "
                "Choose another directory, or replace it with overwrite=True (--overwrite)."
            )
        index.unlink()
    (root / "imagesTr").mkdir(parents=True, exist_ok=True)  # fails early, if it must
    names = []
    for case in tqdm(cases, desc=name, total=total, unit="case", disable=None if progress else True):
        write_case(root, case)
        names.append(case.name)
    return write_index(root, names, name=name, description=description, labels=labels)


def write_case(directory: PathLike, case: Case) -> None:
    """Write the image and the label of one case."""
    for key, array in (("image", case.image), ("label", case.label)):
        with atomic_write(Path(directory) / _entry(case.name)[key]) as part:
            part.write_bytes(_nifti(array, case.affine))


def write_index(
    directory: PathLike,
    names: Sequence[str],
    *,
    name: str,
    description: str,
    labels: Mapping[str, str] | Mapping[str, int],
    scans: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Write ``dataset.json`` for cases that have been written, and return its path.

    ``labels`` maps values to names, or names to values, as nnU-Net does, with its label ``ignore``. ``scans``
    maps the name of a case that was cut out of a scan to that scan.
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
        "training": [{**_entry(case), **({"scan": scans[case]} if case in scans else {})} for case in names],
        "test": [],
    }
    with atomic_write(index) as part:
        part.write_bytes((json.dumps(dataset, indent=4) + "\n").encode())
    return index


def check_name(name: str) -> str:
    """Return the name of a case; one with a folder, which a DICOM header may have, is a ValueError."""
    if not name or not PurePosixPath(name).name == PureWindowsPath(name).name == name:
        raise ValueError(f"name of a case must be a file name without folders, got {name!r}.")
    return name


def _entry(name: str) -> dict[str, str]:
    check_name(name)
    return {key: f"./{key}sTr/{name}.nii.gz" for key in ("image", "label")}


def _nifti(array: NDArray[np.int16] | NDArray[np.uint8], affine: NDArray[np.float64]) -> bytes:
    """Return a gzipped NIfTI-1 file, without the time stamp and the file name that gzip adds."""
    volume: Any = nib.Nifti1Image(array, affine)  # type: ignore[no-untyped-call]
    volume.set_qform(affine, code="scanner")
    volume.set_sform(affine, code="scanner")
    volume.header.set_xyzt_units("mm")
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=buffer, mtime=0) as file:
        file.write(volume.to_bytes())
    return buffer.getvalue()
