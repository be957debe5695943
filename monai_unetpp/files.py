# SPDX-License-Identifier: Apache-2.0
"""Atomic writes, and where results go."""

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
from typing import TYPE_CHECKING, Any

from monai_unetpp.extras import renamed

__all__ = [
    "PICTURE_SUFFIXES",
    "PathLike",
    "atomic_directory",
    "atomic_write",
    "first_existing",
    "read_csv",
    "real_path",
    "refuse_existing",
    "result_path",
    "save_by_memory",
    "short_name",
    "stale_parts",
    "write_csv",
]

PathLike = str | os.PathLike[str]

PICTURE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff")
MAX_NAME_BYTES = 200  # file systems allow 255, of which prefixes and suffixes take some
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_SPACE_HINT = ": free some space, or write to another place"

if not TYPE_CHECKING:  # a type checker would accept any name
    old_names = {"whole_file": "atomic_write", "whole_folder": "atomic_directory", "left_over": "stale_parts"}
    __getattr__ = renamed(__name__, {old: f"{__name__}.{new}" for old, new in old_names.items()})


@contextmanager
def atomic_write(path: PathLike, overwrite: bool = True) -> Iterator[Path]:
    """Yield a path to write to, which is renamed to ``path`` when the block ends without an error.

    Until then the file is in a hidden folder beside ``path``, under the same name. If the block raises, for
    instance because the disk is full, the hidden folder is removed and an older file at ``path`` stays; it
    also survives a power failure. Only a process that is killed leaves the folder behind,
    ``.NAME.xxxxxxxx.part``: see :func:`stale_parts`.

    Args:
        path: Path of the file; missing folders are made.
        overwrite: Whether an existing file may be replaced.

    Raises:
        FileExistsError: if ``path`` exists and ``overwrite`` is false, also if another process wrote it in
            the meantime.
        OSError: if the disk is full; the error names ``path``.

    Example:
        >>> with TemporaryDirectory() as folder:
        ...     with atomic_write(Path(folder, "table.csv")) as part:
        ...         characters = part.write_text("a,b")
        ...     [path.name for path in Path(folder).iterdir()]
        ['table.csv']
    """
    path = Path(path)
    if not overwrite:
        refuse_existing(path)
    with _hidden_folder(path) as folder, _full_disk_named(path):
        part = folder / path.name
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())  # otherwise a power failure could leave the name without the content
        if overwrite or not _link(part, path):
            part.replace(path)


@contextmanager
def atomic_directory(path: PathLike, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill, which is renamed to ``path`` when the block ends without an error.

    Args:
        path: Path of the folder.
        overwrite: Whether an existing folder may be replaced, with all that is in it.

    Raises:
        FileExistsError: if ``path`` exists and ``overwrite`` is false.
    """
    path = Path(path)
    if not overwrite:
        refuse_existing(path)
    with _hidden_folder(path) as folder, _full_disk_named(path):
        part = folder / path.name
        part.mkdir()
        yield part
        if path.exists():
            path.replace(folder / "before")
        part.replace(path)


def _link(part: Path, path: Path) -> bool:
    """Give ``part`` its final name unless that exists; false on file systems without hard links."""
    try:
        path.hardlink_to(part)
    except OSError:
        refuse_existing(path)
        return False
    return True


@contextmanager
def _hidden_folder(path: Path) -> Iterator[Path]:
    """Make a folder beside ``path``, named after it, which is removed with its content at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{short_name(path.name)}."
    with TemporaryDirectory(prefix=prefix, suffix=".part", dir=path.parent) as folder:
        yield Path(folder)


@contextmanager
def _full_disk_named(path: Path) -> Iterator[None]:
    """Add the file and a hint to the error of a full disk, since the system's own message names no file."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE or str(error.strerror).endswith(NO_SPACE_HINT):
            raise
        raise OSError(error.errno, f"{error.strerror}{NO_SPACE_HINT}", str(path)) from error


def stale_parts(folder: PathLike) -> dict[Path, list[Path]]:
    """Return the hidden folders in which :func:`atomic_write` writes, or wrote when its process was killed.

    Only a lock tells whether a part is stale or in use.

    Args:
        folder: Folder that is searched at any depth.

    Returns:
        Path of the file, its name as :func:`short_name` gives it -> hidden folders.
    """
    found: dict[Path, list[Path]] = {}
    for part in Path(folder).rglob(".*.part"):
        name = re.fullmatch(r"\.(.+)\.[^.]{8}\.part", part.name)
        if name is not None:
            found.setdefault(part.with_name(name[1]), []).append(part)
    return found


def short_name(name: str) -> str:
    """Return ``name``, or its SHA-256 if it is longer than :data:`MAX_NAME_BYTES`."""
    return name if len(name.encode()) <= MAX_NAME_BYTES else hashlib.sha256(name.encode()).hexdigest()


def real_path(path: PathLike) -> Path:
    """Return a path without links."""
    return Path(os.path.realpath(path))  # before Python 3.13 Path.resolve raises on a loop of links


def first_existing(*paths: PathLike) -> str:
    """Return the first of ``paths`` that exists, or simply the first one: opening it gives a clear error.

    Example:
        >>> first_existing("no such folder/model.pt", "/")
        '/'
        >>> first_existing("no such folder/model.pt", "nor this")
        'no such folder/model.pt'
    """
    return str(next((path for path in paths if Path(path).exists()), paths[0]))


def result_path(
    image: PathLike,
    output_dir: PathLike,
    input_dir: PathLike | None = None,
    kind: str = "seg",
    suffix: str = ".nii.gz",
) -> Path:
    """Return the path to which a result for a volume is written.

    Args:
        image: Path of the volume, a file or a folder with a DICOM series.
        output_dir: Folder of the results.
        input_dir: Folder of volumes, whose sub-folders are mirrored in ``output_dir``.
        kind: Kind of the result, which is appended to its name.
        suffix: Suffix of the file.

    Example:
        >>> result_path("scans/ward/1.2.3", "out", "scans").as_posix()  # a DICOM series
        'out/ward/1.2.3_seg.nii.gz'
        >>> result_path("scans/ct.nii.gz", "out", "scans", "probability").as_posix()
        'out/ct_probability.nii.gz'
    """
    image = Path(image)
    inside = input_dir is not None and Path(input_dir) in image.parents
    place = image.parent.relative_to(input_dir) if inside and input_dir is not None else Path()
    if ".." in place.parts:  # INPUT_DIR/../ct.nii.gz begins with INPUT_DIR and is not in it
        place = Path()
    name = image.name
    for known in (".gz", ".nii", ".mhd", ".mha", ".nrrd", ".nhdr", *PICTURE_SUFFIXES):
        name = name.removesuffix(known)
    return Path(output_dir) / place / f"{name}_{kind}{suffix}"


def write_csv(
    path: PathLike,
    rows: Sequence[Mapping[str, Any]],
    overwrite: bool = True,
    columns: Sequence[str] | None = None,
) -> None:
    """Write a CSV file from rows with equal keys.

    Args:
        path: Path of the file.
        rows: Rows, one at least unless ``columns`` are given.
        overwrite: Whether an existing file may be replaced, see :func:`atomic_write`.
        columns: Keys in their order; by default those of the first row.
    """
    with atomic_write(path, overwrite) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0] if columns is None else columns))
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: PathLike, *columns: str) -> list[dict[str, str]]:
    """Return the rows of a CSV file that has these columns.

    Raises:
        ValueError: if it lacks one of them, or a row has more or fewer cells than the first one.
    """
    with Path(path).open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, strict=True)
        if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
            raise ValueError(f"it has no column {missing[0]}")
        rows = list(reader)
    if any(None in row or None in row.values() for row in rows):
        raise ValueError("a row does not have as many cells as the first one")
    return rows


def save_by_memory(path: Path, save: Callable[[io.BytesIO], object]) -> None:
    """Save into memory, then write: on a full disk torch's own file writer ends the process."""
    buffer = io.BytesIO()
    save(buffer)
    path.write_bytes(buffer.getvalue())


def refuse_existing(*paths: PathLike) -> None:
    """Raise a FileExistsError that names the first of ``paths`` that exists."""
    for path in map(Path, paths):
        if path.exists():
            raise FileExistsError(
                f"{path} exists, and is not overwritten: name another place, or pass overwrite=True "
                "(--overwrite)."
            )
