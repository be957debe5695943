# SPDX-License-Identifier: Apache-2.0
"""Which series of a folder is read: the one that is a volume of the modality, or the one that is named.

What is no volume where others are is set aside, and named in the log. Several that are stay a question, which
:mod:`monai_unetpp.readers.dicom.tree` answers by a name for each.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from monai_unetpp.readers.dicom.contents import Contents, scan_folder
from monai_unetpp.readers.dicom.grid import continues
from monai_unetpp.readers.dicom.parts import split, why_no_scan
from monai_unetpp.readers.dicom.slices import Origin, Slice

__all__ = [
    "Candidate",
    "candidates_of",
    "check_modality",
    "continued_by",
    "find_series",
    "passed_over",
    "say_aside",
]

logger = logging.getLogger(__name__)

_SAID: set[tuple[Path, str]] = set()  # what has been logged


@dataclass(frozen=True, eq=False)
class Candidate:
    """What may be one volume: the sections of a series, or of one part of it.

    Args:
        sections: Sections in no order.
        part: Number of the part, from 1; 0 if the series is whole.
    """

    sections: tuple[Slice, ...]
    part: int = 0

    @property
    def origin(self) -> Origin:
        """Where it comes from."""
        return self.sections[0].origin

    @property
    def modality(self) -> str:
        """Modality of most sections."""
        return Counter(s.modality for s in self.sections).most_common(1)[0][0]

    def describe(self) -> str:
        """Return the series in words, for a person to choose by."""
        origin, number = self.origin, self.origin.number
        part = f", part {self.part}" if self.part else ""
        name = f' "{origin.description}"' if origin.description else ""
        count = "1 image" if len(self.sections) == 1 else f"{len(self.sections)} images"
        return (
            f"series{'' if number is None else f' {number}'}{name}{part} ({self.modality or 'no modality'}, "
            f"{count}, {origin.series or 'no UID'})"
        )


def candidates_of(contents: Contents, divided: bool = True) -> list[Candidate]:
    """Return the series of a folder, those that are several volumes divided."""
    found = []
    for sections in contents.series.values():
        parts = split(sections) if divided else [sections]
        found += [Candidate(tuple(part), n if len(parts) > 1 else 0) for n, part in enumerate(parts, start=1)]
    return sorted(found, key=lambda each: (each.origin.number or 0, each.origin.series, each.part))


def passed_over(candidates: Sequence[Candidate], modality: str | None) -> dict[Candidate, str]:
    """Return which candidates are none to segment, with the reason, where others are.

    They are of another modality, do not say where they lie, or are not what a network is meant for where
    others of their study and modality are: see :func:`why_no_scan`. A single image that continues a stack is
    kept: it would be a slice whose series is not said rightly.
    """
    reasons = {c: "of another modality" for c in candidates if modality not in (None, c.modality)}
    reasons |= {
        c: reasons.get(c) or "without a place" for c in candidates if not any(s.placed for s in c.sections)
    }
    groups: dict[tuple[str, str], list[Candidate]] = {}
    for each in candidates:
        if each not in reasons:
            groups.setdefault((each.origin.study, each.modality), []).append(each)
    for group in groups.values():
        found = {c: "" if continued_by(c, candidates) else why_no_scan(c.sections) for c in group}
        if not all(found.values()):
            reasons |= {c: reason for c, reason in found.items() if reason}
    return reasons


def continued_by(single: Candidate, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the stacks whose next slice would lie where a single image does."""
    if len(single.sections) > 1:
        return []
    stacks = [each for each in candidates if len(each.sections) > 1]
    return [stack for stack in stacks if continues(stack.sections, single.sections[0])]


def find_series(
    folder: Path, series: str | None = None, modality: str | None = "CT", quiet: bool = False
) -> tuple[Slice, ...]:
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
    if series is not None and (reason := contents.damage(series)):
        raise ValueError(reason)
    if series is None and contents.broken:
        raise ValueError(contents.damage())
    if series is not None:
        if series not in contents.series:
            raise ValueError(f"{folder} has no series {series}, only {', '.join(contents.series) or 'none'}.")
        others = [s.path for uid, found in contents.series.items() if uid != series for s in found]
        contents.set_aside("another series", others)
        contents.series = {series: contents.series[series]}
    candidates = candidates_of(contents)
    reasons = passed_over(candidates, modality)
    chosen = [each for each in candidates if each not in reasons]
    if not chosen:  # reading says better what is wrong with it
        chosen = [c for c in candidates if reasons[c] == "without a place"] or candidates
    for each in candidates:
        if each not in chosen:
            contents.set_aside(reasons[each], (s.path for s in each.sections))
    if not quiet:
        say_aside(folder, contents.describe_aside())
    if not chosen:
        raise FileNotFoundError(f"{folder} holds no DICOM series.")
    counts = Counter(c.origin.series for c in chosen)
    if len(counts) > 1:
        sizes = {uid: sum(len(c.sections) for c in chosen if c.origin.series == uid) for uid in counts}
        listed = ", ".join(f"{uid} ({number} slices)" for uid, number in sizes.items())
        raise ValueError(
            f"{folder} holds {len(counts)} DICOM series; name one as series: {listed}. Or move each into "
            "a folder of its own."
        )
    sections = tuple(section for each in chosen for section in each.sections)
    check_modality(folder, sections, None if quiet else modality)
    return sections


def check_modality(folder: Path, sections: Sequence[Slice], modality: str | None) -> None:
    """Raise a ValueError that names the first section of another modality."""
    odd = [s for s in sections if modality not in (None, s.modality)]
    if odd:
        raise ValueError(
            f"{folder} must be {modality}, got modality {odd[0].modality or 'unknown'} in {odd[0].path.name}."
        )


def say_aside(folder: Path, text: str, log: bool = True) -> None:
    """Log what is set aside in a folder, once; or note that it has been said."""
    if text and (folder, text) not in _SAID:
        _SAID.add((folder, text))
        if log:
            logger.warning(f"{folder}: not part of the volume: {text}.")
