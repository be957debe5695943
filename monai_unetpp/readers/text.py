# SPDX-License-Identifier: Apache-2.0
"""Headers of text, as MetaImage and NRRD have them: lines of a key and a value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from monai_unetpp.readers.checks import MAX_DISTANCE_MM

__all__ = ["MAX_HEADER_BYTES", "Fields", "begin_of"]

MAX_HEADER_BYTES = 10_000_000  # bytes of text; 3D Slicer keeps what it knows of each segment there
MAX_FIELD_CHARACTERS = 255  # characters of a field that is used


class Fields:
    """The fields of a header, by key.

    Args:
        path: Path of the file, for messages.
        lines: Lines of the header that hold fields.
        mark: What stands between a key and its value.

    Raises:
        ValueError: if a line has no mark, or a key is there twice.
    """

    def __init__(self, path: Path, lines: Sequence[bytes], mark: bytes) -> None:
        self.path = path
        self.values: dict[str, bytes] = {}
        for line in filter(bytes.strip, lines):
            key, found, value = line.partition(mark)
            name = key.strip().decode("latin-1")
            if not found or name in self.values or not name.isascii() or not name.isprintable():
                twice = " twice" if name in self.values else ""
                raise ValueError(f"{path} is damaged: its header has the line {_shown(line)}{twice}.")
            self.values[name] = value.strip()

    def text(self, *keys: str, default: str = "") -> str:
        """Return the value of the first of ``keys`` that is there."""
        key = next((key for key in keys if key in self.values), None)
        if key is None:
            return default
        value = self.values[key]
        if len(value) > MAX_FIELD_CHARACTERS or not value.isascii():
            raise ValueError(f"{self.path} is damaged: its header has {len(value)} characters as {key}.")
        return value.decode("ascii")

    def check_short(self) -> None:
        """Raise a ValueError for a header that MetaIO or teem may not survive: long words, other scripts."""
        for key, value in self.values.items():
            if len(value) > MAX_FIELD_CHARACTERS or not value.isascii():
                raise ValueError(
                    f"{self.path} must have a header of short lines in ASCII to be read by ITK, got "
                    f"{len(value)} characters as {key}: store its voxels as raw or gzip."
                )

    def whole(self, key: str, default: str = "") -> int:
        """Return a whole number."""
        text = self.text(key, default=default)
        try:
            return int(text)
        except ValueError:
            raise ValueError(f"{self.path} must have a whole number as {key}, got {text[:40]!r}.") from None

    def sizes(self, count_key: str, key: str) -> tuple[int, ...]:
        """Return the sizes of the axes, first axis first, as many as another field says."""
        count, text = self.whole(count_key), self.text(key)
        try:
            shape = [int(word) for word in text.split()]
        except ValueError:
            shape = []
        if not 1 <= count <= 7 or len(shape) != count or min(shape) < 1:
            raise ValueError(
                f"{self.path} must have as many {key}, from 1 on, as {count_key} says, "
                f"got {text!r} and {count}."
            )
        return tuple(shape)

    def numbers(self, keys: Sequence[str], count: int) -> NDArray[np.float64] | None:
        """Return the numbers of the first of ``keys`` that is there, ``None`` if none is."""
        if not any(key in self.values for key in keys):
            return None
        text = self.text(*keys)
        try:
            values = [float(word) for word in text.split()]
        except ValueError:
            values = []
        if len(values) != count or not all(math.isfinite(v) and abs(v) <= MAX_DISTANCE_MM for v in values):
            raise ValueError(
                f"{self.path} must have {count} numbers up to {MAX_DISTANCE_MM:g} as {keys[0]}, got {text!r}."
            )
        return np.array(values)

    def choice(self, key: str, known: Mapping[str, object], default: str = "") -> str:
        """Return a value that is one of those known."""
        text = self.text(key, default=default)
        if text not in known:
            raise ValueError(f"{self.path} must have one of {', '.join(known)} as {key}, got {text!r}.")
        return text


def begin_of(path: Path) -> bytes:
    """Return the bytes that may be a header.

    Raises:
        ValueError: if the first of them are no text.
    """
    with path.open("rb") as file:
        head = file.read(4096)
        if b"\0" in head.split(b"\n", 1)[0][:MAX_FIELD_CHARACTERS]:
            raise ValueError(f"{path} is damaged: its header is no text.")
        return head + file.read(MAX_HEADER_BYTES - len(head))


def _shown(line: bytes) -> str:
    return repr(line[:60].decode("ascii", "replace"))
