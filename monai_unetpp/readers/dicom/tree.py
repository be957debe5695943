# SPDX-License-Identifier: Apache-2.0
"""The scans of a tree of folders, as an archive exports it or a CD holds it, and what each is called.

A folder that holds one scan stands for it. Where it holds several, each has a name, FOLDER/series-3-1f0a92bc:
the number of the series and the beginning of its UID's SHA-256, and -2 for the second part of a series. There
is no such file; the name stands wherever a path is wanted, and says nothing of the patient. A series whose
files lie in several folders is named so in the folder that holds them all.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from monai_unetpp.files import real_path
from monai_unetpp.readers.dicom.contents import DIRECTORY, Contents, scan_folder
from monai_unetpp.readers.dicom.directory import missing_files
from monai_unetpp.readers.dicom.parts import is_volume
from monai_unetpp.readers.dicom.series import Candidate, candidates_of, continued_by, passed_over

__all__ = ["Scan", "Tree", "find_scans", "folder_of", "folders_below", "goes_back_up", "is_named", "named"]

NAME = re.compile(r"series-(\d+-)?[0-9a-f]{8}(-\d+)?")


@dataclass(frozen=True, eq=False)
class Scan:
    """One volume in a tree.

    Args:
        path: Its name: a folder, or ``FOLDER/series-...``.
        folder: Folder that holds its files, at any depth.
        candidate: Its sections; ``None`` where files are damaged and nothing is known of them.
        damage: Why it cannot be read; "" if nothing stands against it so far.
    """

    path: Path
    folder: Path
    candidate: Candidate | None
    damage: str = ""


@dataclass
class Tree:
    """The scans of a tree.

    Args:
        scans: Scans in the order of their folders.
        names: What is behind the names of series, a line each.
        passed_over: What is no scan, a line each with the reason.
        aside: What the reader of each folder would say is no part of its volume, by folder.
    """

    scans: list[Scan] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)
    aside: dict[Path, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return names and what is passed over, a line each."""
        blocks = (("scans", self.names), ("passed over", self.passed_over))
        return "".join(
            f"\n  {title}:" + "".join(f"\n    {x}" for x in lines) for title, lines in blocks if lines
        )


def is_named(path: str | os.PathLike[str]) -> bool:
    """Whether a path is the name of one of several series in a folder."""
    path = Path(path)
    return NAME.fullmatch(path.name) is not None and not path.exists() and path.parent.is_dir()


def folder_of(path: str | os.PathLike[str]) -> Path:
    """Return the folder that holds the files of a scan."""
    return Path(path).parent if is_named(path) else Path(path)


def folders_below(folder: Path) -> Iterator[Path]:
    """Yield a folder and those in it, at any depth, sorted, without hidden ones and links back up."""
    yield folder
    for path in sorted(path for path in folder.iterdir() if path.name[0] != "." and path.is_dir()):
        if not goes_back_up(folder, path):
            yield from folders_below(path)


def goes_back_up(folder: Path, path: Path) -> bool:
    """Whether a path in a folder is a link to that folder, or to one above: one would go round for ever."""
    return path.is_symlink() and real_path(folder).is_relative_to(real_path(path))


def named(path: Path) -> Scan:
    """Return the scan of a name.

    Raises:
        FileNotFoundError: if the folder holds no series of that name; it lists those that it holds.
    """
    folder = path.parent
    for folders in ([folder], folders_below(folder)):  # as a rule its files lie in the folder itself
        every = [*folders]
        for divided in (True, False):
            known = _merged([_in_folder(each, divided) for each in every])
            for scan in known:
                if scan.path == path:
                    return scan
    names = [scan.path.relative_to(folder).as_posix() for scan in known if is_named(scan.path)]
    raise FileNotFoundError(
        f"{path} is no series of {folder}: it holds {', '.join(names) or 'none to name'}."
    )


def find_scans(
    folder: Path,
    modality: str | None = None,
    chosen: Sequence[str] = (),
    divided: bool = True,
    others: tuple[str, ...] = (),
) -> Tree:
    """Find the scans in a folder, at any depth.

    Args:
        folder: Path of the folder.
        modality: Modality of the series, ``None`` for any.
        chosen: UIDs of series, or patterns of their descriptions: a part of it, in which ``*`` stands for
            anything and ``?`` for one letter, in capitals or not. By default all that are volumes.
        divided: Whether a series of several volumes is a scan for each; it is one, and refused, if not.
        others: Suffixes of files that are scans themselves.

    Raises:
        ValueError: if one of ``chosen`` is none of the series; it lists these.
    """
    folders = [_in_folder(each, divided) for each in folders_below(folder)]
    tree, scans = Tree(), _merged(folders)
    lines = {s.candidate: f"{_place(folder, s.folder)}{s.candidate.describe()}" for s in scans if s.candidate}
    for each in chosen:
        if not any(_suits(c, each) for c in lines):
            listed = "".join(f"\n  {line}" for line in lines.values()) or " there is none."
            raise ValueError(f"series (--series) {each!r} is none of the series in {folder}:{listed}")
    picked = [c for c in lines if not chosen or any(_suits(c, each) for each in chosen)]
    reasons = passed_over(picked, modality)
    for c in picked:  # whoever gives its UID wants it, whatever it is
        if c.origin.series in chosen and modality in (None, c.modality) and any(s.placed for s in c.sections):
            reasons.pop(c, None)
    for scan in scans:
        candidate = scan.candidate
        if candidate is None or (candidate in picked and candidate not in reasons):
            tree.scans.append(scan)
            if candidate is not None and scan.path != scan.folder:
                tree.names.append(f"{scan.path.relative_to(folder).as_posix()}: {candidate.describe()}")
        else:
            tree.passed_over.append(f"{lines[candidate]}: {reasons.get(candidate, 'not chosen')}")
    if lines or any(contents.holds_dicom for contents, _ in folders):
        for contents, _ in folders:
            tree.aside[contents.folder] = contents.describe_aside()
            contents.leave_out(others)
            if contents.aside:
                tree.passed_over.append(f"{_place(folder, contents.folder)}{contents.describe_aside()}")
            for name in contents.aside.get(DIRECTORY, []):
                if missing := missing_files(contents.folder / name):
                    what = f"names {len(missing)} files that are not there, first {missing[0]}"
                    tree.passed_over.append(
                        f"{_place(folder, contents.folder)}{name} {what}: slices may lack"
                    )
    return tree


def _suits(candidate: Candidate, chosen: str) -> bool:
    """Whether a UID or a pattern names a series."""
    pattern = re.escape(chosen).replace(r"\*", ".*").replace(r"\?", ".")
    found = re.search(pattern, candidate.origin.description, re.IGNORECASE)
    return candidate.origin.series == chosen or found is not None


def _place(root: Path, folder: Path) -> str:
    """Where something lies, in front of what it is."""
    place = folder.relative_to(root).as_posix()
    return "" if place == "." else f"{place}: "


def _in_folder(folder: Path, divided: bool = True) -> tuple[Contents, list[Scan]]:
    """Return what lies in a folder itself, and the scans in it."""
    contents = scan_folder(folder)
    candidates = candidates_of(contents, divided)
    if not candidates and contents.broken:
        return contents, [Scan(folder, folder, None, contents.damage())]
    reasons = passed_over(candidates, None)
    alone = [c for c in candidates if c not in reasons]
    damage = {c: contents.damage(c.origin.series) for c in candidates}
    for single in candidates:
        for stack in continued_by(single, candidates):
            damage[single] = damage[stack] = damage[stack] or (
                f"{single.sections[0].path} lies where the next slice of another series of its folder would: "
                "if it is one, its series is not said rightly; if it is none, move it out of the folder."
            )
    return contents, [
        Scan(folder if alone == [c] else folder / _name(c), folder, c, damage[c]) for c in candidates
    ]


def _name(candidate: Candidate) -> str:
    """Return a name that says nothing of the patient, and is the same in every run."""
    origin, part = candidate.origin, candidate.part
    number = "" if origin.number is None else f"{origin.number}-"
    digest = hashlib.sha256(origin.series.encode()).hexdigest()[:8]
    return f"series-{number}{digest}{f'-{part}' if part else ''}"


def _merged(folders: Sequence[tuple[Contents, list[Scan]]]) -> list[Scan]:
    """Return the scans of all folders, series whose files lie in several put together.

    They are one series if no image lies in two of the folders and all together are a volume: copies, and
    phases that someone has put into folders, stay apart.
    """
    scans = [scan for _, found in folders for scan in found]
    spread: dict[tuple[str, str], list[Scan]] = {}
    for scan in scans:
        if scan.candidate is not None and scan.candidate.origin.series:
            origin = scan.candidate.origin
            spread.setdefault((origin.study, origin.series), []).append(scan)
    for parts in spread.values():
        whole = _whole(parts)
        if whole is not None:
            at = scans.index(parts[0])
            scans = [scan for scan in scans if scan not in parts]
            scans.insert(at, whole)
    return scans


def _whole(parts: Sequence[Scan]) -> Scan | None:
    """Return the scan that parts of a series in several folders are, or ``None``."""
    if len(parts) < 2 or len({scan.folder for scan in parts}) < len(parts):
        return None
    sections = [s for scan in parts if scan.candidate for s in scan.candidate.sections]
    instances = [(s.instance, s.frame) for s in sections]
    if len({*instances}) < len(instances) or not all(s.instance for s in sections):
        return None
    if not is_volume(sections):
        return None
    candidate = Candidate(tuple(sections))
    common = Path(os.path.commonpath([scan.folder for scan in parts]))
    damage = next((scan.damage for scan in parts if scan.damage), "")
    return Scan(common / _name(candidate), common, candidate, damage)
