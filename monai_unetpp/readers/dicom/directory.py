# SPDX-License-Identifier: Apache-2.0
"""The DICOMDIR of a medium: which of the files that it names are not there.

What the files are is read from the files; a directory tells only what a copy of the medium has lost, such as
the last slices of a stack, which nothing else would show.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from monai_unetpp.readers.dicom.elements import RECORDS, parse
from monai_unetpp.readers.dicom.values import Values

__all__ = ["missing_files"]

FILE_ID = 0x00041500  # the components of a path, in capitals


def missing_files(path: Path) -> list[str]:
    """Return the files, relative to a DICOMDIR, that it names and that are not there."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            records = parse(content).values.get(RECORDS, [])
    except ValueError:
        return []
    names = [Values(path, each).text(FILE_ID) for each in records if isinstance(each, dict)]
    parts = [[part.strip() for part in name.split("\\")] for name in names if name]
    return ["/".join(each) for each in parts if not _exists(path.parent, each)]


def _exists(folder: Path, parts: list[str]) -> bool:
    """Whether a file is there; some systems copy names in small letters, or with the version of ISO 9660."""
    small = [part.lower() for part in parts]
    return any(folder.joinpath(*each).exists() for each in (parts, small, [*parts[:-1], f"{parts[-1]};1"]))
