# SPDX-License-Identifier: Apache-2.0
"""Whether the sections of a series are a volume: proven from their own numbers, within stated tolerances."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from monai_unetpp.readers.checks import lps_to_ras
from monai_unetpp.readers.dicom.headers import CONTRAST
from monai_unetpp.readers.dicom.slices import Slice

__all__ = ["choose_phase", "continues", "prove_volume"]

MAX_TURN = 1e-3  # by which a component of a direction may differ between slices: 0.06 degrees
MAX_SPACING_VARIATION = 1e-3  # share by which the spacing of pixels may differ between slices
MAX_GAP_VARIATION = 0.02  # share of the distance between slices by which it may vary, and ...
MAX_GAP_VARIATION_MM = 1.0  # ... at most
ROUNDING_MM = 0.01  # of positions, which are stated as text
SAME_PLACE_MM = 0.05  # slices that are nearer than that lie at one place
MAX_LOWEST_HU = -500.0  # that a slice must be able to hold, where others can
MAX_GAP_MM = 50.0  # between slices of one volume
MAX_SHIFT_MM = 0.5  # of slices against each other, across the stack or the line of a tilted one
MAX_TILT_DEGREES = 35.0  # of a gantry; scanners reach 30


def prove_volume(
    folder: Path, sections: Sequence[Slice]
) -> tuple[list[Slice], NDArray[np.float64], tuple[str, ...]]:
    """Return the sections of a volume in order, its affine (RAS+, mm), and warnings.

    Args:
        folder: Path of the series, for messages.
        sections: Its sections in any order, one at least.

    Raises:
        ValueError: if they differ in size, direction, spacing or kind of values, two lie at one place, one is
            missing, or they do not lie behind each other; it names the file that is odd.
    """
    _check_alike(folder, sections)
    row, column = np.median([s.axes for s in sections], axis=0)
    normal = np.cross(row, column)
    heights = np.array([s.position @ normal for s in sections])
    order = np.argsort(heights, kind="stable")
    sections, heights = [sections[n] for n in order], heights[order]
    warnings = _check_heights(folder, sections, heights) if len(sections) > 1 else ()
    warnings += _cut_off(folder, sections)
    places = np.array([s.position for s in sections])
    spacing = sections[0].spacing
    assert spacing is not None
    gap = _single_gap(sections[0])
    step = normal * gap if len(sections) == 1 else (places[-1] - places[0]) / (len(sections) - 1)
    warnings += _check_line(folder, places, step, normal)
    matrix = np.stack([row * spacing[0], column * spacing[1], step], axis=1)
    return sections, lps_to_ras(matrix, places[0]), warnings


def _check_alike(folder: Path, sections: Sequence[Slice]) -> None:
    """Raise if sections are not all of one size, direction, pixel spacing and kind of values."""
    without = [s.name for s in sections if s.position is None or s.axes is None]
    if without:
        raise ValueError(f"{without[0]} has no position or no direction: where it lies is not known.")
    without = [s.name for s in sections if s.spacing is None]
    if without:
        raise ValueError(f"{without[0]} does not say how far its pixels are apart.")
    axes = np.array([s.axes for s in sections]).reshape(len(sections), 6)
    spacing = np.array([s.spacing for s in sections])
    sizes = np.array([(*s.size, s.samples) for s in sections])
    rescaled = np.array([s.format.rescaled for s in sections])
    for values, what, rtol, atol in (
        (sizes, "size or number of colours", 0, 0),
        (axes, "direction", 0, MAX_TURN),
        (spacing, "pixel spacing", MAX_SPACING_VARIATION, 0),
        (rescaled.astype(float), "kinds, with and without slope and intercept to HU", 0, 0),
    ):
        usual = _usual(values)
        odd = np.flatnonzero(~np.isclose(values, usual, rtol=rtol, atol=atol).all(axis=1))
        if len(odd):
            got, wanted = (", ".join(f"{float(v):g}" for v in row) for row in (values[odd[0]], usual))
            raise ValueError(
                f"{folder} mixes slices of different {what}: {_name(sections[odd[0]])} has {got}, "
                f"most have {wanted}."
            )
    for what, traits in zip(CONTRAST, zip(*(s.contrast for s in sections), strict=True), strict=True):
        stated = Counter(value for value in traits if value is not None)
        if 1 < len(stated) <= max(2, len(sections) // 2):  # more of them count slices
            most = stated.most_common(1)[0][0]
            n = next(n for n, value in enumerate(traits) if value not in (None, most))
            raise ValueError(
                f"{folder} mixes slices of different {what}: {_name(sections[n])} has {traits[n]}, most have "
                f"{most}."
            )


def _usual(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The row that most others are near to."""
    rounded = Counter(map(tuple, np.round(values.astype(float), 3) + 0.0))
    most = rounded.most_common(1)[0][0]
    return np.asarray(values[[tuple(row) for row in np.round(values.astype(float), 3) + 0.0].index(most)])


def _check_heights(folder: Path, sections: Sequence[Slice], heights: NDArray[np.float64]) -> tuple[str, ...]:
    """Raise if sections do not follow each other at even distances of a plausible size; return warnings."""
    gaps = np.diff(heights)
    if (gaps < SAME_PLACE_MM).any():
        _refuse_twice(folder, sections, heights)
    usual = float(np.median(gaps))
    wrong = np.flatnonzero(
        np.abs(gaps - usual) > min(MAX_GAP_VARIATION * usual + ROUNDING_MM, MAX_GAP_VARIATION_MM)
    )
    if len(wrong):
        n = int(wrong[0])
        raise ValueError(
            f"{folder} lacks a slice or is unevenly spaced: {gaps[n]:.2f} mm between "
            f"{_name(sections[n])} and {_name(sections[n + 1])}, {usual:.2f} mm elsewhere."
        )
    if usual > MAX_GAP_MM:
        raise ValueError(f"{folder} must have slices at most {MAX_GAP_MM:g} mm apart, got {usual:g} mm.")
    thickness = sections[0].thickness
    if thickness and usual > 2 * thickness + ROUNDING_MM:
        return (
            f"{folder} has slices of {thickness:g} mm that lie {usual:g} mm apart: either some are missing, "
            "or what lies between them was not scanned.",
        )
    return ()


def continues(stack: Sequence[Slice], other: Slice) -> bool:
    """Whether a section lies where the next one of a stack would, at either end."""
    if not other.placed or not all(s.placed for s in stack) or stack[0].size != other.size:
        return False
    axes, places = (
        np.array([s.axes for s in [*stack, other]]),
        np.array([s.position for s in [*stack, other]]),
    )
    if np.abs(axes - axes[0]).max() > MAX_TURN:
        return False
    normal = np.cross(*axes[0])
    places = places[[*np.argsort(places[:-1] @ normal), -1]]
    heights, height = places[:-1] @ normal, places[-1] @ normal
    beyond = max(heights[0] - height, height - heights[-1])
    rise = max(heights[-1] - heights[0], SAME_PLACE_MM)
    line = places[0] + (places[-2] - places[0]) * (height - heights[0]) / rise  # tilted or not
    gap = float(np.median(np.diff(heights)))
    return bool(SAME_PLACE_MM < beyond < 1.5 * gap and np.linalg.norm(places[-1] - line) < MAX_SHIFT_MM)


def choose_phase(folder: Path, sections: Sequence[Slice], phase: int) -> list[Slice]:
    """Return one image of each place: the first, second, ... by position in time, acquisition and number.

    Raises:
        ValueError: if the places do not all have as many images.
    """
    placed = [s for s in sections if s.position is not None and s.axes is not None]
    normals = np.cross(*np.array([s.axes for s in placed]).transpose(1, 0, 2))
    heights = (np.array([s.position for s in placed]) * normals).sum(axis=1)
    order = np.argsort(heights, kind="stable")
    at = dict(zip(order.tolist(), _places(heights[order]).tolist(), strict=True))
    taken: dict[int, list[Slice]] = {}
    for n in sorted(range(len(placed)), key=lambda n: (placed[n].moment, placed[n].name)):
        taken.setdefault(at[n], []).append(placed[n])
    if any(not 1 <= phase <= len(images) for images in taken.values()):
        fewest = min(len(images) for images in taken.values())
        raise ValueError(f"{folder} has {fewest} phases, got phase={phase}.")
    return [images[phase - 1] for images in taken.values()]


def _places(heights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number the places of heights that are in order."""
    return np.concatenate([[0], np.cumsum(np.diff(heights) >= SAME_PLACE_MM)])


def _refuse_twice(folder: Path, sections: Sequence[Slice], heights: NDArray[np.float64]) -> None:
    """Raise for sections at one place: a copy of one, or several phases."""
    counts = np.bincount(_places(heights))
    if len(set(counts)) == 1:
        raise ValueError(
            f"{folder} holds {counts[0]} images at each of {len(counts)} places: phases of one scan, or "
            f"copies. Name one as phase of SimpleITKReader or LoadImageAndLabeld, 1 to {counts[0]} "
            "(--set preprocessing_transforms#0#phase 1), or move each into a folder of its own."
        )
    n = int(np.flatnonzero(np.diff(heights) < SAME_PLACE_MM)[0])
    raise ValueError(
        f"{folder} holds two images at one place, {_name(sections[n])} and {_name(sections[n + 1])}"
        f"{', and more such' if (counts > 1).sum() > 1 else ''}: leave one out."
    )


def _cut_off(folder: Path, sections: Sequence[Slice]) -> tuple[str, ...]:
    """Warn of CT sections that cannot hold air by the way they are stored, where others can."""
    lowest = [s.format.lowest for s in sections]
    odd = [s for s, low in zip(sections, lowest, strict=True) if low > MAX_LOWEST_HU]
    if not odd or len(odd) == len(sections) or sections[0].modality != "CT":
        return ()
    return (
        f"{folder} has slices that cannot hold air, first {_name(odd[0])} (unsigned, intercept "
        f"{odd[0].format.intercept:g}), where others can: were its values cut off?",
    )


def _check_line(
    folder: Path, places: NDArray[np.float64], step: NDArray[np.float64], normal: NDArray[np.float64]
) -> tuple[str, ...]:
    """Raise if sections are shifted against each other; return a warning if they are so evenly, by a tilt."""
    line = places[0] + np.arange(len(places))[:, None] * step
    uneven = np.linalg.norm((places - line) - np.outer((places - line) @ normal, normal), axis=1).max()
    if uneven > MAX_SHIFT_MM:
        raise ValueError(
            f"{folder} must have slices that lie behind each other: they are shifted by up to {uneven:.1f} "
            "mm, and not evenly, as a tilted gantry would."
        )
    whole = (len(places) - 1) * step
    aside = float(np.linalg.norm(whole - whole @ normal * normal))
    if aside <= MAX_SHIFT_MM:
        return ()
    degrees = np.degrees(np.arctan2(aside, abs(whole @ normal)))
    if degrees > MAX_TILT_DEGREES:
        raise ValueError(
            f"{folder} must be tilted by at most {MAX_TILT_DEGREES:g} degrees, got {degrees:.1f}: its slices "
            f"are shifted by {aside:.1f} mm."
        )
    return (
        f"{folder} was scanned with a gantry tilted by {degrees:.1f} degrees: its mask lies on the same "
        "sheared grid, which programs that know right angles alone, such as ITK, do not read from NIfTI.",
    )


def _single_gap(section: Slice) -> float:
    """The thickness of a section, for a volume that has no other."""
    return section.thickness if section.thickness and section.thickness > 0 else 1.0


def _name(section: Slice) -> str:
    """The name without its folder, which the message begins with."""
    return Path(section.name).name
