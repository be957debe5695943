# SPDX-License-Identifier: Apache-2.0
"""DICOM series for tests, written slice by slice."""

import locale
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813


def write_series(
    folder: Path,
    planes: Iterable[tuple[float, np.ndarray]],
    uid: str = "1.2.3",
    origin: tuple[float, float] = (-20.0, -30.0),
    pixel: float = 0.7,
    modality: str = "CT",
    first: int = 0,
    more: Mapping[str, str] | None = None,
) -> Path:
    """Write slices, (z in mm, int16 (X, Y) in HU) each, numbered from ``first``; returns ``folder``.

    ``more`` are tags of every slice, such as the patient's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = locale.setlocale(locale.LC_ALL)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for n, (z, plane) in enumerate(planes, start=first + 1):
        image = sitk.GetImageFromArray(plane.T)
        image.SetSpacing((pixel, pixel))
        for tag, value in {
            "0008|0060": modality,
            "0008|0018": f"{uid}.{n}",
            "0020|000d": "1.2",
            "0020|000e": uid,
            "0020|0013": str(n),
            "0020|0032": f"{origin[0]}\\{origin[1]}\\{z}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0028|1052": "-1024",
            "0028|1053": "1",
            **(more or {}),
        }.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{uid}_{n - 1:02d}.dcm"))
        writer.Execute(image)
    locale.setlocale(locale.LC_ALL, before)  # writing DICOM leaves that of C behind
    return folder
