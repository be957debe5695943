# SPDX-License-Identifier: Apache-2.0
"""What the files of a folder are: one rule for all who ask.

Every regular file of a folder that is not hidden and is DICOM with pixels belongs to the series that it
names. Reports, DICOMDIR, localizers and pictures in colour are set aside. A file that cannot be read and has
the look of a slice is an error, not a gap: of the series that it names, or of the whole folder.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from monai_unetpp.readers.dicom.elements import looks_like_dicom
from monai_unetpp.readers.dicom.headers import NO_PIXELS, DamagedSliceError, read_slices
from monai_unetpp.readers.dicom.slices import Origin, Slice

__all__ = ["Contents", "is_series", "scan_folder"]

logger = logging.getLogger(__name__)

DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")  # of a file that is meant to be DICOM
DIRECTORY_CLASS = "1.2.840.10008.1.3.10"  # of a DICOMDIR
NO_IMAGES = ("DOC", "KO", "PR", "REG", "RTDOSE", "RTIMAGE", "RTPLAN", "RTSTRUCT", "SEG", "SR")  # modalities
DIRECTORY, NO_DICOM = "a directory", "no DICOM"  # reasons
SHOWN = 5  # files that a message names


@dataclass(frozen=True)
class Damage:
    """Why a file that is meant to be a slice cannot be read.

    Args:
        reason: Sentence with the path of the file.
        origin: What it says of where it comes from, if that can be read.
    """

    reason: str
    origin: Origin | None = None


@dataclass
class Contents:
    """What a folder holds, as far as DICOM is concerned.

    Args:
        folder: Path of the folder.
        series: Sections by series UID.
        aside: Names of files that are set aside, by the reason.
        broken: Files that are meant to be slices and cannot be read.
        unknown: Files without the bytes of DICOM.
        classes: SOP class UIDs of the sections.
        without_pixels: SOP class UIDs by path, of files without pixels.
    """

    folder: Path
    series: dict[str, list[Slice]] = field(default_factory=dict)
    aside: dict[str, list[str]] = field(default_factory=dict)
    broken: dict[Path, Damage] = field(default_factory=dict)
    unknown: list[Path] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)
    without_pixels: dict[Path, str] = field(default_factory=dict)

    def set_aside(self, reason: str, paths: Iterable[Path]) -> None:
        """Note files that are no part of a volume."""
        names = dict.fromkeys(self.aside.get(reason, []))
        self.aside[reason] = [*names | dict.fromkeys(path.name for path in paths)]
        if not self.aside[reason]:
            del self.aside[reason]

    @property
    def holds_dicom(self) -> bool:
        """Whether a file is DICOM, or is meant to be."""
        return bool(self.broken or self.aside.keys() - {NO_DICOM})

    def leave_out(self, suffixes: tuple[str, ...]) -> None:
        """Take files with these suffixes out of those that are no DICOM: they are something else."""
        names = [each for each in self.aside.get(NO_DICOM, []) if not each.lower().endswith(suffixes)]
        self.aside.pop(NO_DICOM, None)
        if names:
            self.aside[NO_DICOM] = names

    def describe_aside(self) -> str:
        """Return the files that are set aside, with the reason of each."""
        return "; ".join(f"{_some(names)} ({reason})" for reason, names in self.aside.items())

    def damage(self, series: str | None = None) -> str:
        """Return why a series cannot be read, ``None`` for any: damaged files that are, or may be, of it."""
        found = [
            each.reason
            for each in self.broken.values()
            if series is None
            or each.origin is None
            or each.origin.series == series
            or each.origin.series not in self.series
        ]
        if not found:
            return ""
        others = f" {len(found) - 1} more files are damaged." if len(found) > 1 else ""
        return f"{found[0]}{others} Replace it, or move it out of the folder."


def is_series(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder itself, not one below it, holds sections of a patient in DICOM.

    A localizer, a report or a DICOMDIR alone is none; a file that is meant to be a slice and is damaged
    counts, so that reading it says so.
    """
    contents = Contents(Path(folder))
    for path in _files(Path(folder)):
        sections = _add(contents, path)
        if any(not section.localizer and section.samples == 1 for section in sections):
            return True
    _judge(contents)
    if contents.aside and not contents.broken:
        logger.info(f"{folder} is passed over: {contents.describe_aside()}.")
    return bool(contents.broken)


def scan_folder(folder: Path) -> Contents:
    """Read the header of every file of a folder, and sort what may belong to a volume from what does not."""
    contents = Contents(folder)
    for path in _files(folder):
        _add(contents, path)
    _judge(contents)
    for uid in list(contents.series):
        sections = contents.series.pop(uid)
        contents.set_aside("a localizer", (s.path for s in sections if s.localizer))
        sections = [s for s in sections if not s.localizer]
        no_image = sections and sections[0].modality in NO_IMAGES
        if no_image:
            contents.set_aside(f"of modality {sections[0].modality}", (s.path for s in sections))
        elif sections and all(s.samples != 1 for s in sections):
            contents.set_aside("a picture in colour", (s.path for s in sections))
        elif sections:
            contents.series[uid] = sections
    return contents


def _files(folder: Path) -> Iterator[Path]:
    """Regular files that are not hidden, in the order of their names."""
    yield from sorted(path for path in folder.iterdir() if path.name[0] != "." and path.is_file())


def _add(contents: Contents, path: Path) -> Sequence[Slice]:
    """Sort one file in; returns its sections."""
    with path.open("rb") as file:
        head = file.read(132)
    if path.name.upper() == "DICOMDIR":
        contents.set_aside(DIRECTORY, [path])
        return []
    if not looks_like_dicom(head):
        contents.unknown.append(path)
        return []
    try:
        sop_class, sections = read_slices(path)
    except ValueError as error:
        if head[128:] == b"DICM":
            origin = error.origin if isinstance(error, DamagedSliceError) else None
            contents.broken[path] = Damage(str(error), origin)
        else:
            contents.unknown.append(path)
        return []
    if sections:
        contents.classes.add(sop_class)
    elif sop_class == DIRECTORY_CLASS:
        contents.set_aside(DIRECTORY, [path])
    else:
        contents.without_pixels[path] = sop_class
    for section in sections:
        contents.series.setdefault(section.series, []).append(section)
    return sections


def _judge(contents: Contents) -> None:
    """Find the files that are meant to be slices: by their names, or by a class that has pixels."""
    for path, damage in list(contents.broken.items()):
        origin = damage.origin
        if origin is None or origin.series in contents.series:
            continue
        if origin.modality in NO_IMAGES or origin.sop_class == DIRECTORY_CLASS:
            del contents.broken[path]
            is_directory = origin.sop_class == DIRECTORY_CLASS
            contents.set_aside(DIRECTORY if is_directory else f"of modality {origin.modality}", [path])
    for path, sop_class in contents.without_pixels.items():
        if sop_class in (*contents.classes, ""):
            contents.broken[path] = Damage(f"{path} is truncated or damaged: {NO_PIXELS}.")
        else:
            contents.set_aside("no pixels", [path])
    patterns = {_pattern(s.path) for sections in contents.series.values() for s in sections}
    patterns |= {_pattern(path) for path in contents.broken}
    for path in contents.unknown:
        if path.suffix.lower() in DICOM_SUFFIXES or _pattern(path) in patterns:
            what = "it is empty" if path.stat().st_size == 0 else "it does not begin as DICOM does"
            reason = f"{path} cannot be read as a slice, it may be damaged: {what}."
            contents.broken[path] = Damage(reason)
        else:
            contents.set_aside(NO_DICOM, [path])


def _pattern(path: Path) -> str:
    """A name with its numbers left out, by which slices are like each other."""
    return re.sub(r"\d+", "#", path.name.lower())


def _some(names: Sequence[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
