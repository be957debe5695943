# SPDX-License-Identifier: Apache-2.0
"""What the values of a label map stand for: segments, with names and codes.

Codes come from ``segment_codes`` of a bundle's ``metadata.json``: name of a class -> ``category``, ``type``
and, if it helps, ``region``, each ``[value, scheme, meaning]``. The standard requires category and type. A
class without codes gets the category "Tissue" of context group 7150 and, as type, its name in a private
scheme, as PS3.16 allows for designators that begin with 99: no code of SNOMED CT is guessed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["PRIVATE_SCHEME", "Code", "Segment", "check_labels", "find_segments", "plain_text"]

PRIVATE_SCHEME = "99MONAIUNETPP"
MAX_VALUE, MAX_TEXT = 16, 64  # characters of DICOM's short (SH) and long (LO) texts
KEYS = ("category", "type", "region")
# sRGB, 0 to 255; the order in which segments are coloured
COLOURS = ((221, 130, 101), (220, 245, 20), (78, 63, 255), (128, 174, 128), (230, 60, 60), (111, 184, 210))


class Code(NamedTuple):
    """A coded concept.

    Args:
        value: Code value, such as ``"10200004"``.
        scheme: Designator of its coding scheme, such as ``"SCT"`` for SNOMED CT.
        meaning: Text for people, such as ``"Liver"``.
    """

    value: str
    scheme: str
    meaning: str


TISSUE = Code("85756007", "SCT", "Tissue")


@dataclass(frozen=True)
class Segment:
    """One segment.

    Args:
        name: Name of the class or of the region.
        values: Values of the label map that belong to it.
        category: Segmented property category, of DICOM's context group 7150.
        type: Segmented property type.
        region: Anatomic region; ``None`` if the type is one, or none is known.
        colour: Colour that viewers may draw it in, sRGB, 0 to 255.
    """

    name: str
    values: tuple[int, ...]
    category: Code
    type: Code
    region: Code | None = None
    colour: tuple[int, int, int] = COLOURS[0]


def find_segments(
    names: Sequence[str],
    regions: Mapping[str, Sequence[int]] | None = None,
    codes: Mapping[str, Any] | None = None,
) -> list[Segment]:
    """Return the segments of a label map: one for each class but the background, or for each region.

    Args:
        names: Names of the values of the label map, with the background's.
        regions: Name of a region -> values in it, where classes overlap; they replace ``names``.
        codes: ``segment_codes`` of ``metadata.json``: codes by the name of a class or region.

    Raises:
        ValueError: if ``codes`` is not of this form.
    """
    values: dict[str, tuple[int, ...]] = {name: (n,) for n, name in enumerate(names) if n > 0}
    if len(values) < len(names) - 1:
        values = {f"{name} {n}": (n,) for n, name in enumerate(names) if n > 0}  # names that are not unique
    if regions:
        values = {name: tuple(int(v) for v in of) for name, of in regions.items()}
    known = {} if codes is None else _checked(codes)
    return [
        _segment(name, of, known.get(name, {}), COLOURS[n % len(COLOURS)])
        for n, (name, of) in enumerate(values.items())
    ]


def check_labels(
    labels: NDArray[np.uint8], segments: Sequence[Segment], columns: int, rows: int, slices: int
) -> None:
    """Raise a ValueError if a label map (X, Y, Z) has another shape, or a value that no segment has."""
    if labels.shape != (columns, rows, slices):
        raise ValueError(
            f"labels must have the shape of the series, {(columns, rows, slices)}, got {labels.shape}."
        )
    unknown = np.ones(256, bool)
    unknown[[0, *(value for each in segments for value in each.values)]] = False
    for z in range(slices):  # one after another: a table of all voxels would take as much again
        if unknown[labels[..., z]].any():
            values = np.unique(labels[..., z][unknown[labels[..., z]]]).tolist()
            raise ValueError(
                f"segments must name every value of the labels but 0, slice {z} has {values} as well."
            )


def plain_text(text: str, most: int = MAX_TEXT) -> str:
    r"""Return a text as DICOM's short texts can hold it.

    Example:
        >>> plain_text("left\\right\n", 10)
        'left/right'
    """
    printable = "".join(c if c.isprintable() else " " for c in text.replace("\\", "/"))
    return printable.strip()[:most].strip()


def _segment(
    name: str, values: tuple[int, ...], found: Mapping[str, Code], colour: tuple[int, int, int]
) -> Segment:
    label = plain_text(name) or f"class {values[0]}"
    short = label if len(label) <= MAX_VALUE else hashlib.sha256(label.encode()).hexdigest()[:MAX_VALUE]
    return Segment(
        name=label,
        values=values,
        category=found.get("category", TISSUE),
        type=found.get("type", Code(short, PRIVATE_SCHEME, label)),
        region=found.get("region"),
        colour=colour,
    )


def _checked(codes: Any) -> dict[str, dict[str, Code]]:
    form = (
        "segment_codes of metadata.json must be {name of a class: {'category': [value, scheme, meaning], "
        "'type': [value, scheme, meaning], 'region': likewise, if there is one}}"
    )
    if not isinstance(codes, Mapping):
        raise ValueError(f"{form}, got {codes!r}.")
    found: dict[str, dict[str, Code]] = {}
    for name, of in codes.items():
        if not isinstance(of, Mapping) or not {"category", "type"} <= {*of} <= {*KEYS}:
            raise ValueError(f"{form}, got {of!r} for {name}.")
        for key, code in of.items():
            if not isinstance(code, Sequence) or [*map(type, code)] != [str] * 3 or not all(code):
                raise ValueError(f"{form}, got {code!r} as {key} of {name}.")
            if max(map(len, code[:2])) > MAX_VALUE or len(code[2]) > MAX_TEXT:
                raise ValueError(
                    f"segment_codes of metadata.json must have values and schemes of {MAX_VALUE} characters "
                    f"at most, meanings of {MAX_TEXT}, got {code!r} as {key} of {name}."
                )
        found[name] = {key: Code(*code) for key, code in of.items()}
    return found
