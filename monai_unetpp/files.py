# SPDX-License-Identifier: Apache-2.0
"""Writing files that are whole or absent."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

__all__ = [
    "first_existing",
    "refuse_existing",
    "result_path",
    "save_by_memory",
    "whole_file",
    "whole_folder",
    "write_csv",
]


@contextmanager
def whole_file(path: str | os.PathLike[str], overwrite: bool = True) -> Iterator[Path]:
    """Yield a path to write to, which becomes ``path`` when the block ends well.

    Until then it lies in a hidden folder beside ``path``, under the same name; if the block raises, for
    instance because the disk is full, nothing is left of it, and what was at ``path`` stays.

    Args:
        path: of the file; its folder is made if it does not exist.
        overwrite: whether a file that is there may be replaced.

    Raises:
        FileExistsError: if ``path`` exists and ``overwrite`` is false.

    Example:
        >>> with TemporaryDirectory() as folder:
        ...     with whole_file(Path(folder, "table.csv")) as part:
        ...         characters = part.write_text("a,b")
        ...     [path.name for path in Path(folder).iterdir()]
        ['table.csv']
    """
    path = Path(path)
    if not overwrite:
        refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".", suffix=".part", dir=path.parent) as folder:
        part = Path(folder) / path.name
        yield part
        part.replace(path)


@contextmanager
def whole_folder(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill, which becomes ``path`` when the block ends well.

    Args:
        path: of the folder.
        overwrite: whether a folder that is there may be replaced, with all that is in it.

    Raises:
        FileExistsError: if ``path`` exists and ``overwrite`` is false.
    """
    path = Path(path)
    if not overwrite:
        refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".", suffix=".part", dir=path.parent) as folder:
        part = Path(folder) / path.name
        part.mkdir()
        yield part
        if path.exists():
            path.replace(Path(folder) / "before")
        part.replace(path)


def first_existing(*paths: str | os.PathLike[str]) -> str:
    """Return the first of ``paths`` that exists; if none does the first, for whoever opens it to complain of.

    Example:
        >>> first_existing("no such folder/model.pt", "/")
        '/'
        >>> first_existing("no such folder/model.pt", "nor this")
        'no such folder/model.pt'
    """
    return str(next((path for path in paths if Path(path).exists()), paths[0]))


def result_path(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    what: str = "seg",
    suffix: str = ".nii.gz",
) -> Path:
    """Return where a result for the volume ``source`` is written.

    Args:
        source: a file, or a folder with a DICOM series.
        folder: of the results.
        root: a folder of volumes; what lies deeper in it lies as deep in ``folder``.
        what: kind of the result.
        suffix: of the file.

    Example:
        >>> result_path("scans/ward/1.2.3", "out", "scans").as_posix()  # a DICOM series
        'out/ward/1.2.3_seg.nii.gz'
        >>> result_path("scans/ct.nii.gz", "out", "scans", "probability").as_posix()
        'out/ct_probability.nii.gz'
    """
    source = Path(source)
    inside = root is not None and Path(root) in source.parents
    place = source.parent.relative_to(root) if inside and root is not None else Path()
    name = source.name
    for known in (".gz", ".nii", ".mhd", ".mha", ".nrrd", ".nhdr"):
        name = name.removesuffix(known)
    return Path(folder) / place / f"{name}_{what}{suffix}"


def write_csv(
    path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], overwrite: bool = True
) -> None:
    """Write rows of equal keys, at least one; ``path`` and ``overwrite`` as in :func:`whole_file`."""
    with whole_file(path, overwrite) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def save_by_memory(path: Path, save: Callable[[io.BytesIO], object]) -> None:
    """Let torch save into memory, and write that: where the disk is full, its own writer ends the process."""
    buffer = io.BytesIO()
    save(buffer)
    path.write_bytes(buffer.getvalue())


def refuse_existing(*paths: str | os.PathLike[str]) -> None:
    """Raise a FileExistsError that names the first of ``paths`` that exists."""
    for path in map(Path, paths):
        if path.exists():
            raise FileExistsError(
                f"{path} exists, and is not overwritten: name another place, or pass overwrite=True "
                "(--overwrite)."
            )
