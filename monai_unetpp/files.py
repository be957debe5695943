# SPDX-License-Identifier: Apache-2.0
"""Writing files that are whole or absent."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

__all__ = [
    "first_existing",
    "left_over",
    "refuse_existing",
    "result_path",
    "save_by_memory",
    "short_name",
    "whole_file",
    "whole_folder",
    "write_csv",
]

LONGEST = 200  # of a name; file systems take 255 bytes, of which what we add needs some
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
WHAT_TO_DO = ": free some space, or write to another place"


@contextmanager
def whole_file(path: str | os.PathLike[str], overwrite: bool = True) -> Iterator[Path]:
    """Yield a path to write to, which becomes ``path`` when the block ends well.

    Until then it lies in a hidden folder beside ``path``, under the same name; if the block raises, for
    instance because the disk is full, nothing is left of it, and what was at ``path`` stays, also when the
    power fails. Only a process that is killed leaves that folder behind, ``.NAME.xxxxxxxx.part``: see
    :func:`left_over`.

    Args:
        path: of the file; its folder is made if it does not exist.
        overwrite: whether a file that is there may be replaced.

    Raises:
        FileExistsError: if ``path`` exists and ``overwrite`` is false.
        OSError: if the disk is full; it names ``path``.

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
    with _hidden_folder(path) as folder, _names_a_full_disk(path):
        part = folder / path.name
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())  # or the name may survive a power failure, and the content not
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
    with _hidden_folder(path) as folder, _names_a_full_disk(path):
        part = folder / path.name
        part.mkdir()
        yield part
        if path.exists():
            path.replace(folder / "before")
        part.replace(path)


@contextmanager
def _hidden_folder(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` whose name tells what it is for, and which goes with all that is in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{short_name(path.name)}."
    with TemporaryDirectory(prefix=prefix, suffix=".part", dir=path.parent) as folder:
        yield Path(folder)


@contextmanager
def _names_a_full_disk(path: Path) -> Iterator[None]:
    """Say what could not be written, and what to do: the system's own message names no file."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE or str(error.strerror).endswith(WHAT_TO_DO):  # of a file in a folder
            raise
        raise OSError(error.errno, f"{error.strerror}{WHAT_TO_DO}", str(path)) from error


def left_over(folder: str | os.PathLike[str]) -> dict[Path, list[Path]]:
    """Return the hidden folders in which :func:`whole_file` is writing, or was when its process was killed.

    They lie in ``folder`` at any depth; the keys are the files, with :func:`short_name`. Which of the two it
    is only a lock tells.
    """
    found: dict[Path, list[Path]] = {}
    for part in Path(folder).rglob(".*.part"):
        name = re.fullmatch(r"\.(.+)\.[^.]{8}\.part", part.name)
        if name is not None:
            found.setdefault(part.with_name(name[1]), []).append(part)
    return found


def short_name(name: str) -> str:
    """Return ``name``, or, if it is too long to add something to it, another that stands for it alone."""
    return name if len(name.encode()) <= LONGEST else hashlib.sha256(name.encode()).hexdigest()


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
        root: a folder of volumes; what lies deeper in it lies as deep in ``folder``, and nothing outside.
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
    if ".." in place.parts:  # ROOT/../ct.nii.gz begins with ROOT and is not in it
        place = Path()
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
