# SPDX-License-Identifier: Apache-2.0
"""Several volumes under one series UID: acquisitions, echoes, phases, kernels, directions.

They are told apart by what their headers state, and only if each part is then proven to be a volume by
itself: one odd slice among others is no volume, and is named when the series is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from monai_unetpp.readers.dicom.grid import MAX_SPACING_VARIATION, MAX_TURN, SAME_PLACE_MM, prove_volume
from monai_unetpp.readers.dicom.slices import Slice

__all__ = ["is_volume", "places_of", "split", "why_no_scan"]

MIN_SLICES = 3  # of a part: fewer lie evenly by chance
MAX_PARTS = 200
PARALLEL = 0.9  # cosine of the angle between normals
FEW = 10  # images, which are key images if they lie apart
PROJECTIONS = ("MIP", "MINIP", "MAXIMUM", "MINIMUM", "VRT", "SSD", "PROJECTION IMAGE")
HOUNSFIELD = ("", "HU", "US")  # units of CT; US is unspecified
DIRECTIONS = ("sagittal", "coronal", "axial")


def is_volume(sections: Sequence[Slice]) -> bool:
    """Whether sections are proven to be a volume."""
    try:
        prove_volume(Path(), sections)
    except ValueError:
        return False
    return True


def split(sections: Sequence[Slice]) -> list[list[Slice]]:
    """Return the volumes that sections of one series are made of; all sections if that cannot be told."""
    stacks = _by_geometry(sections)
    if len(stacks) > 1 and _is_one_stack(sections):
        return [list(sections)]
    found = [part for stack in stacks for part in _by_attributes(stack)]
    whole = len(found) < 2 or not all(_is_part(part) for part in found)
    return [list(sections)] if whole else found


def _is_part(sections: Sequence[Slice]) -> bool:
    return len(sections) >= MIN_SLICES and is_volume(sections)


def _is_one_stack(sections: Sequence[Slice]) -> bool:
    """Whether sections lie evenly behind each other, one at each place: then some are stated wrongly."""
    normals = np.cross(*np.array([s.axes for s in sections]).transpose(1, 0, 2))
    if np.abs(normals @ normals[0]).min() < PARALLEL:
        return False
    gaps = np.diff(np.sort([s.position @ normals[0] for s in sections]))
    return bool(np.abs(gaps - np.median(gaps)).max() < 0.05 * np.median(gaps))


def _by_geometry(sections: Sequence[Slice]) -> list[list[Slice]]:
    """Put sections together that have one size, direction and spacing of pixels."""
    if not all(s.placed for s in sections):
        return [list(sections)]
    rest, found = np.arange(len(sections)), list[list[Slice]]()
    sizes = np.array([(*s.size, s.samples) for s in sections])
    axes = np.array([s.axes for s in sections]).reshape(len(sections), 6)
    spacing = np.array([s.spacing for s in sections])
    while len(rest) and len(found) < MAX_PARTS:
        first = rest[0]
        alike = (sizes[rest] == sizes[first]).all(1) & (np.abs(axes[rest] - axes[first]) <= MAX_TURN).all(1)
        alike &= np.isclose(spacing[rest], spacing[first], rtol=MAX_SPACING_VARIATION, atol=0).all(1)
        found.append([sections[n] for n in rest[alike]])
        rest = rest[~alike]
    return found if not len(rest) else [list(sections)]


def _by_attributes(sections: list[Slice]) -> list[list[Slice]]:
    """Divide sections by the first attributes whose values leave volumes."""
    if len(sections) < 2 * MIN_SLICES or is_volume(sections):
        return [sections]
    values = [(*s.contrast, *s.parts) for s in sections]
    for n in range(len(values[0])):
        groups: dict[str | float | None, list[Slice]] = {}
        for section, each in zip(sections, values, strict=True):
            groups.setdefault(each[n], []).append(section)
        if 1 < len(groups) <= min(MAX_PARTS, len(sections) // MIN_SLICES):
            ordered = [groups[key] for key in sorted(groups, key=lambda key: (str(type(key)), key))]
            parts = [part for group in ordered for part in _by_attributes(group)]
            if all(_is_part(part) for part in parts):
                return parts
    return [sections]


def places_of(sections: Sequence[Slice]) -> tuple[np.ndarray, np.ndarray]:
    """Return the heights of different places along the normal, mm, in order; and the normal."""
    placed = [s for s in sections if s.placed]
    normal = np.cross(*np.median([s.axes for s in placed], axis=0))
    heights = np.sort([s.position @ normal for s in placed])
    return heights[np.concatenate([[True], np.diff(heights) >= SAME_PLACE_MM])], normal


def why_no_scan(sections: Sequence[Slice]) -> str:
    """Return why a series is none to segment where its study has others that are; "" if it is.

    A single image, key images, a projection, values in another unit, CT in another direction than axial.
    """
    heights, normal = places_of(sections)
    if len(heights) == 1:
        return (
            "a single image of another series"
            if len(sections) == 1
            else f"{len(sections)} images of one place"
        )
    gaps = np.diff(heights)
    usual, thickness = float(np.median(gaps)), sections[0].thickness or 0.0
    apart = thickness > 0 and usual > 2 * thickness + SAME_PLACE_MM
    even = float(np.mean(np.abs(gaps - usual) <= 0.05 * usual))
    if even < 0.5 or (apart and len(heights) < FEW):
        return f"{len(heights)} images that do not lie side by side"
    if sections[0].modality != "CT":
        return ""
    kinds = Counter(word for s in sections for word in {*s.kind})
    projection = [word for word in PROJECTIONS if 2 * kinds[word] > len(sections)]
    if projection:
        return f"a projection, {projection[0]}"
    if sections[0].origin.unit not in HOUNSFIELD:
        return f"values in {sections[0].origin.unit}, not HU"
    direction = DIRECTIONS[int(np.argmax(np.abs(normal)))]
    return "" if direction == "axial" else direction
