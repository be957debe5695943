# SPDX-License-Identifier: Apache-2.0
"""What belongs to a series: one rule for all who ask.

Every regular file of a folder that is not hidden and is DICOM with pixels belongs to the series that it
names. Reports, DICOMDIR, localizers, pictures in colour and other series are set aside, and named in the log.
A file that cannot be read and has the look of a slice is an error, not a gap.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from monai_unetpp.readers.dicom.elements import looks_like_dicom
from monai_unetpp.readers.dicom.grid import continues
from monai_unetpp.readers.dicom.slices import NO_PIXELS, Slice, read_slices

__all__ = ["Contents", "choose_series", "find_series", "is_series", "scan_folder"]

logger = logging.getLogger(__name__)

DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")  # of a file that is meant to be DICOM
SHOWN = 5  # files that a message names


@dataclass
class Contents:
    """What a folder holds, as far as DICOM is concerned.

    Args:
        series: Sections by series UID.
        aside: Names of files that are set aside, by the reason.
        broken: Reasons by path, of files that are meant to be slices and cannot be read.
        unknown: Files without the bytes of DICOM.
        classes: SOP class UIDs of the sections.
        without_pixels: SOP class UIDs by path, of files without pixels.
    """

    series: dict[str, list[Slice]] = field(default_factory=dict)
    aside: dict[str, list[str]] = field(default_factory=dict)
    broken: dict[Path, str] = field(default_factory=dict)
    unknown: list[Path] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)
    without_pixels: dict[Path, str] = field(default_factory=dict)

    def set_aside(self, reason: str, paths: Iterable[Path]) -> None:
        """Note files that are no part of a volume."""
        for path in paths:
            names = self.aside.setdefault(reason, [])
            if path.name not in names:
                names.append(path.name)

    def describe_aside(self) -> str:
        """Return the files that are set aside, with the reason of each."""
        return "; ".join(f"{_some(names)} ({reason})" for reason, names in self.aside.items())


def is_series(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder itself, not one below it, holds sections of a patient in DICOM.

    A localizer, a report or a DICOMDIR alone is none; a file that is meant to be a slice and is damaged
    counts, so that reading it says so.
    """
    contents = Contents()
    for path in _files(Path(folder)):
        sections = _add(contents, path)
        if any(not section.localizer and section.samples == 1 for section in sections):
            return True
    _judge_unknown(contents)
    if contents.aside and not contents.broken:
        logger.info(f"{folder} is passed over: {contents.describe_aside()}.")
    return bool(contents.broken)


def scan_folder(folder: Path) -> Contents:
    """Read the header of every file of a folder, and sort what belongs to a volume from what does not."""
    contents = Contents()
    for path in _files(folder):
        _add(contents, path)
    _judge_unknown(contents)
    for uid in list(contents.series):
        sections = contents.series.pop(uid)
        contents.set_aside("a localizer", (s.path for s in sections if s.localizer))
        sections = [s for s in sections if not s.localizer]
        if sections and all(s.samples != 1 for s in sections):
            contents.set_aside("a picture in colour", (s.path for s in sections))
        elif sections:
            contents.series[uid] = sections
    return contents


def choose_series(contents: Contents, modality: str | None = "CT") -> dict[str, list[Slice]]:
    """Set aside the series that are no volume where others are; return the rest by UID.

    They are of another modality, do not say where they lie, or hold a single image beside a stack, which it
    does not continue: that one would be a slice whose series is not said rightly.
    """
    found = contents.series
    stacks = [sections for sections in found.values() if len(sections) > 1]
    for reason, suits in (
        ("of another modality", lambda sections: modality in (None, _usual_modality(sections))),
        ("without a place", lambda sections: any(s.placed for s in sections)),
        (
            "a single image of another series",
            lambda sections: len(sections) > 1 or any(continues(stack, sections[0]) for stack in stacks),
        ),
    ):
        _keep(contents, [uid for uid, sections in found.items() if suits(sections)], reason)
    return found


def find_series(
    folder: Path, series: str | None = None, modality: str | None = "CT", quiet: bool = False
) -> list[Slice]:
    """Return the sections of the one series to read from a folder, in no order; log what is set aside.

    Args:
        folder: Path of the folder.
        series: UID of the series, where there are several.
        modality: Modality of the series, ``None`` for any.
        quiet: Whether nothing is logged, and the only series there is may be of another modality.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if a file has the look of a slice and is empty, truncated or damaged; if there are several
            series, none of that UID or of that modality.
    """
    contents = scan_folder(folder)
    if contents.broken:
        reason, *more = contents.broken.values()
        others = f" {len(more)} more files are damaged." if more else ""
        raise ValueError(f"{reason}{others} Replace it, or move it out of the folder.")
    if series is not None:
        if series not in contents.series:
            raise ValueError(f"{folder} has no series {series}, only {', '.join(contents.series) or 'none'}.")
        _keep(contents, [series], "another series")
    found = choose_series(contents, modality)
    if contents.aside and not quiet:
        logger.warning(f"{folder}: not part of the volume: {contents.describe_aside()}.")
    if not found:
        raise FileNotFoundError(f"{folder} holds no DICOM series.")
    if len(found) > 1:
        listed = ", ".join(f"{uid} ({len(sections)} slices)" for uid, sections in found.items())
        raise ValueError(
            f"{folder} holds {len(found)} DICOM series; name one as series: {listed}. Or move each into "
            "a folder of its own."
        )
    [sections] = found.values()
    odd = [s for s in sections if modality not in (None, s.modality)]
    if odd and not quiet:
        raise ValueError(
            f"{folder} must be {modality}, got modality {odd[0].modality or 'unknown'} in {odd[0].path.name}."
        )
    return sections


def _usual_modality(sections: Sequence[Slice]) -> str:
    return Counter(s.modality for s in sections).most_common(1)[0][0]


def _keep(contents: Contents, uids: Sequence[str], reason: str) -> None:
    """Set all series but those aside, unless there are none of those."""
    if uids:
        for uid in [uid for uid in contents.series if uid not in uids]:
            contents.set_aside(reason, (s.path for s in contents.series.pop(uid)))


def _files(folder: Path) -> Iterator[Path]:
    """Regular files that are not hidden, in the order of their names."""
    yield from sorted(path for path in folder.iterdir() if path.name[0] != "." and path.is_file())


def _add(contents: Contents, path: Path) -> list[Slice]:
    """Sort one file in; returns its sections."""
    with path.open("rb") as file:
        head = file.read(132)
    if path.name.upper() == "DICOMDIR":
        contents.set_aside("a directory", [path])
        return []
    if not looks_like_dicom(head):
        contents.unknown.append(path)
        return []
    try:
        sop_class, sections = read_slices(path)
    except ValueError as error:
        if head[128:] == b"DICM":
            contents.broken[path] = str(error)
        else:
            contents.unknown.append(path)
        return []
    if sections:
        contents.classes.add(sop_class)
    else:
        contents.without_pixels[path] = sop_class
    for section in sections:
        contents.series.setdefault(section.series, []).append(section)
    return sections


def _judge_unknown(contents: Contents) -> None:
    """Find the files that are meant to be slices: by their names, or by a class that has pixels."""
    for path, sop_class in contents.without_pixels.items():
        if sop_class in (*contents.classes, ""):
            contents.broken[path] = f"{path} is truncated or damaged: {NO_PIXELS}."
        else:
            contents.set_aside("no pixels", [path])
    patterns = {_pattern(s.path) for sections in contents.series.values() for s in sections}
    patterns |= {_pattern(path) for path in contents.broken}
    for path in contents.unknown:
        if path.suffix.lower() in DICOM_SUFFIXES or _pattern(path) in patterns:
            what = "it is empty" if path.stat().st_size == 0 else "it does not begin as DICOM does"
            contents.broken[path] = f"{path} cannot be read as a slice, it may be damaged: {what}."
        else:
            contents.set_aside("no DICOM", [path])


def _pattern(path: Path) -> str:
    """A name with its numbers left out, by which slices are like each other."""
    return re.sub(r"\d+", "#", path.name.lower())


def _some(names: Sequence[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
