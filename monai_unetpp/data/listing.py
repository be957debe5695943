# SPDX-License-Identifier: Apache-2.0
"""Which files of a folder are images: by their names alone."""

from __future__ import annotations

from pathlib import Path

from monai_unetpp.readers import PICTURE_SUFFIXES, SUFFIXES, is_series

__all__ = ["VOLUMES", "list_files"]

VOLUMES = (".nii", ".nii.gz", *SUFFIXES)


def list_files(folder: Path) -> list[Path]:
    """Return the volumes, pictures and series in a folder, sorted, without hidden ones."""
    if not folder.is_dir():
        return []
    known = (*VOLUMES, *PICTURE_SUFFIXES)
    paths = sorted(path for path in folder.iterdir() if path.name[0] != ".")
    return [p for p in paths if (is_series(p) if p.is_dir() else p.name.lower().endswith(known))]
