# SPDX-License-Identifier: Apache-2.0
"""DICOM: the elements of a file, its sections, their series, the volume that they are proven to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from monai_unetpp.readers.checks import Geometry, Volume, check_fits, voxels_of
from monai_unetpp.readers.dicom.grid import choose_phase, prove_volume
from monai_unetpp.readers.dicom.pixels import check_readable, read_plane
from monai_unetpp.readers.dicom.series import choose_series, find_series, is_series, scan_folder

__all__ = ["is_series", "read", "read_geometry", "series_in"]


def series_in(folder: Path) -> list[str]:
    """Return the UIDs of the CT series in a folder, those that :func:`read` would read or ask about."""
    return list(choose_series(scan_folder(folder)))


def read_geometry(folder: Path) -> Geometry:
    """Return size and spacing of a series from its headers; see :func:`read` for what is refused."""
    sections = find_series(folder, quiet=True)
    ordered, affine, _ = prove_volume(folder, sections)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return Geometry((*ordered[0].size, len(ordered)), tuple(spacing.tolist()))


def read(
    folder: Path, series: str | None = None, modality: str | None = "CT", phase: int | None = None
) -> Volume:
    """Read the series of a folder, float32 in the unit of its slopes and intercepts.

    Args:
        folder: Path of the folder.
        series: UID of the series, where there are several.
        modality: Modality of the series, ``None`` for any.
        phase: Which of the images at each place to read, from 1, where there are several.

    Raises:
        FileNotFoundError: if the folder holds no series.
        ValueError: if it holds several, a slice is damaged, or the slices are not proven to be one volume.
    """
    sections = find_series(folder, series, modality)
    if phase is not None:
        sections = choose_phase(folder, sections, phase)
    ordered, affine, warnings = prove_volume(folder, sections)
    for section in ordered:
        check_readable(section)
    columns, rows = ordered[0].size
    check_fits(folder, voxels_of((columns, rows, len(ordered))))
    array = np.empty((len(ordered), rows, columns), np.float32)
    for n, section in enumerate(ordered):
        array[n] = read_plane(section)
    names = tuple((section.path.name, section.frame) for section in ordered)
    return Volume(array.transpose(), affine, warnings=warnings, sections=names)
