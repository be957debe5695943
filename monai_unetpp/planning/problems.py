# SPDX-License-Identifier: Apache-2.0
"""What does not fit in a data set, by file, and what the values of its masks mean."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from monai_unetpp.data.index import check_names
from monai_unetpp.data.layouts import Layout
from monai_unetpp.planning.measuring import CaseFacts
from monai_unetpp.planning.source import Source
from monai_unetpp.regions import region_values

__all__ = ["find_problems"]

MAX_CLASSES = 100  # more values than that are instances
MAX_PICTURE_CLASSES = 12  # of pictures, in which instances are usual
MAX_SPACING_RATIO = 10.0  # times the usual spacing: another unit, or another kind of scan

Problems = dict[str, str]


def find_problems(
    source: Source, layout: Layout, cases: Sequence[CaseFacts]
) -> tuple[list[str], list[int] | str | None, Problems]:
    """Return the names of the classes or regions, the masks' values, and path -> what does not fit.

    Args:
        source: The data set.
        layout: Its files.
        cases: What was measured of each case.

    Raises:
        ValueError: if the data set as a whole cannot be used: no case fits, or its masks hold no classes.
    """
    root = Path(os.path.normpath(source.data))
    problems = {_relative(root, path): why for path, why in layout.problems.items()}
    problems |= {case.image: case.problem for case in cases if case.problem}
    read = [case for case in cases if not case.problem]
    if not read:
        first = "".join(f", first {path}: {why}" for path, why in list(problems.items())[:1])
        raise ValueError(f"{root} has no case that can be used: {len(problems)} problems{first}.")
    labels, values = _classes(root, layout, read, source.foreground, source.classes)
    check_names(labels, root)
    if source.classes is not None and [*source.classes] != labels[1:]:
        of_index = layout.labels and not source.foreground
        raise ValueError(
            f"classes must be {'those of dataset.json, or left out' if of_index else 'one name'}, "
            f"{', '.join(labels[1:])}, got {', '.join(source.classes)}."
        )
    for check in (_twice, _channels, _kinds, _spacings):
        problems |= check(read)
    known = {str(value) for value in (values if isinstance(values, list) else range(len(labels)))}
    for case in read:
        unknown = [] if isinstance(values, str) else [value for value in case.values if value not in known]
        if unknown:
            problems[case.label] = (
                f"has values that are no class: {', '.join(unknown[:10])}; classes are "
                f"{', '.join(sorted(known, key=int))} ({', '.join(labels)})"
            )
        elif not source.allow_empty and set(case.values) <= {"0"}:
            problems[case.label] = "is empty: --allow-empty keeps such cases"
    problems |= _other_names(read)
    return labels, values, problems


def _classes(
    root: Path,
    layout: Layout,
    cases: Sequence[CaseFacts],
    foreground: bool,
    classes: Sequence[str] | None,
) -> tuple[list[str], list[int] | str | None]:
    """Tell the classes by ``dataset.json``, by names in the masks, or by their values."""
    found = sorted({int(value) for case in cases for value in case.values})
    lossy = any(case.lossy for case in cases)
    if foreground:
        return ["background", *(classes or ["foreground"])[:1]], "nonzero"
    if layout.regions:
        return list(layout.labels.values()), region_values(layout.regions[0])
    if layout.labels:
        values = list(layout.labels)
        return list(layout.labels.values()), None if values == list(range(len(values))) else values
    if lossy and {*found} <= {0, 1, 255}:  # JPEG beside masks of 0 and 1, or of 0 and 255
        return ["background", *(classes or ["foreground"])[:1]], "nonzero"
    limit = MAX_PICTURE_CLASSES if any(case.picture for case in cases) else MAX_CLASSES
    if len(found) > limit:
        raise ValueError(
            f"masks of {root} hold {len(found)} values, 0 to {found[-1]}: instances rather than classes? "
            "--foreground makes one class of all that is not 0."
        )
    if found[0] != 0 or len(found) < 2:
        raise ValueError(
            f"masks of {root} must be 0 where there is nothing, and another value where there is something, "
            f"got {', '.join(map(str, found[:10]))}."
        )
    names = list(classes) if classes is not None else _names(cases, found[1:])
    if len(names) != len(found) - 1:
        raise ValueError(
            f"classes must be {len(found) - 1} names for the values {', '.join(map(str, found[1:]))}, got "
            f"{', '.join(names)}."
        )
    return ["background", *names], None if found == list(range(len(found))) else found


def _names(cases: Sequence[CaseFacts], values: Sequence[int]) -> list[str]:
    """Return the names of the values: those in most masks, else numbers."""
    counts: dict[str, Counter[str]] = {}
    for case in cases:
        for value, name in case.names.items():
            counts.setdefault(value, Counter())[name] += 1
    return [
        counts[str(v)].most_common(1)[0][0] if str(v) in counts else f"class_{n}"
        for n, v in enumerate(values, start=1)
    ]


def _other_names(cases: Sequence[CaseFacts]) -> Problems:
    """Masks in which a value has another name than in most: 3D Slicer numbers segments by file."""
    values = sorted({value for case in cases for value in case.names}, key=int)
    usual = dict(zip(values, _names(cases, [int(value) for value in values]), strict=True))
    return {
        case.label: f"calls the value {value} {name!r}, which is {usual[value]!r} in most masks"
        for case in cases
        for value, name in case.names.items()
        if name != usual[value]
    }


def _twice(cases: Sequence[CaseFacts]) -> Problems:
    """Images that are there twice, which would be trained on and validated with."""
    first: dict[str, CaseFacts] = {}
    found = {}
    for case in cases:
        other = first.setdefault(case.sha, case)
        if case.sha and other is not case:
            same = f"is listed twice, with {other.label} and {case.label}: list it with one mask"
            found[case.image] = same if case.image == other.image else f"is the same file as {other.image}"
    return found


def _channels(cases: Sequence[CaseFacts]) -> Problems:
    """Images of other channels than most; a grey picture among coloured ones is not one."""
    numbers = Counter(case.channels for case in cases)
    usual = max(numbers) if all(case.picture for case in cases) else numbers.most_common(1)[0][0]
    return {
        case.image: f"has {case.channels} channels, others have {usual}"
        for case in cases
        if case.channels != usual and not (case.picture and case.channels == 1)
    }


def _kinds(cases: Sequence[CaseFacts]) -> Problems:
    pictures = Counter(case.picture for case in cases).most_common(1)[0][0]
    one, many = ("a volume", "a picture"), ("volumes", "pictures")
    return {
        case.image: f"is {one[case.picture]}, others are {many[pictures]}"
        for case in cases
        if case.picture != pictures
    }


def _spacings(cases: Sequence[CaseFacts]) -> Problems:
    """Spacings by a factor of ten apart; of two cases nobody knows which one is right."""
    usual = [statistics.median_low(case.spacing[axis] for case in cases) for axis in range(3)]
    return {
        case.image: f"has a spacing of {_by(case.spacing)} mm, others about {_by(usual)}: is the unit right?"
        for case in cases
        if any(
            not 1 / MAX_SPACING_RATIO < a / b < MAX_SPACING_RATIO
            for a, b in zip(case.spacing, usual, strict=True)
        )
    }


def _by(spacing: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in spacing)


def _relative(root: Path, path: str) -> str:
    return Path(path).relative_to(root).as_posix() if Path(path).is_relative_to(root) else path
