# SPDX-License-Identifier: Apache-2.0
"""DICOM: the elements of a file, its sections, their series, the volume that they are proven to be.

A path is a folder, or the name of one of several series in it: see :mod:`monai_unetpp.readers.dicom.tree`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from monai_unetpp.readers.checks import Geometry, Volume, check_fits, voxels_of
from monai_unetpp.readers.dicom.contents import is_series, scan_folder
from monai_unetpp.readers.dicom.grid import choose_phase, prove_volume
from monai_unetpp.readers.dicom.pixels import check_readable, read_plane
from monai_unetpp.readers.dicom.series import (
    candidates_of,
    check_modality,
    find_series,
    passed_over,
    say_aside,
)
from monai_unetpp.readers.dicom.slices import Slice
from monai_unetpp.readers.dicom.tree import Tree, find_scans, folder_of, goes_back_up, is_named, named

__all__ = [
    "Tree",
    "find_scans",
    "folder_of",
    "goes_back_up",
    "is_named",
    "is_series",
    "read",
    "read_geometry",
    "say_aside",
    "series_in",
]


def series_in(folder: Path) -> list[str]:
    """Return the UIDs of the CT series in a folder, those that :func:`read` would read or ask about."""
    candidates = candidates_of(scan_folder(folder))
    reasons = passed_over(candidates, "CT")
    return [*dict.fromkeys(each.origin.series for each in candidates if each not in reasons)]


def read_geometry(path: Path) -> Geometry:
    """Return size and spacing of a series from its headers; see :func:`read` for what is refused."""
    ordered, affine, _ = prove_volume(path, _sections(path, quiet=True))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return Geometry((*ordered[0].size, len(ordered)), tuple(spacing.tolist()))


def read(
    path: Path, series: str | None = None, modality: str | None = "CT", phase: int | None = None
) -> Volume:
    """Read a series, float32 in the unit of its slopes and intercepts.

    Args:
        path: Path of the folder, or the name of a series in it.
        series: UID of the series, where there are several.
        modality: Modality of the series, ``None`` for any.
        phase: Which of the images at each place to read, from 1, where there are several.

    Raises:
        FileNotFoundError: if the folder holds no series.
        ModuleNotFoundError: if a package that decompresses its pixels is not installed.
        ValueError: if it holds several, a slice is damaged, or the slices are not proven to be one volume.
    """
    sections = _sections(path, series, modality)
    if phase is not None:
        sections = choose_phase(path, sections, phase)
    ordered, affine, warnings = prove_volume(path, sections)
    for section in ordered:
        check_readable(section)
    columns, rows = ordered[0].size
    check_fits(path, voxels_of((columns, rows, len(ordered))))
    array = np.empty((len(ordered), rows, columns), np.float32)
    for n, section in enumerate(ordered):
        array[n] = read_plane(section)
    folder = folder_of(path)
    names = tuple((section.path.relative_to(folder).as_posix(), section.frame) for section in ordered)
    return Volume(array.transpose(), affine, warnings=warnings, sections=names)


def _sections(
    path: Path, series: str | None = None, modality: str | None = "CT", quiet: bool = False
) -> Sequence[Slice]:
    """Return the sections of a path, in no order."""
    if not is_named(path):
        return find_series(path, series, modality, quiet)
    scan = named(path)
    if scan.damage or scan.candidate is None:
        raise ValueError(scan.damage)
    sections = scan.candidate.sections
    if series not in (None, sections[0].series):
        raise ValueError(f"{path} is the series {sections[0].series}, got series {series}.")
    check_modality(path, sections, None if quiet else modality)
    return sections
