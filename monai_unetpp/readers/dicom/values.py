# SPDX-License-Identifier: Apache-2.0
"""The values of elements as text and numbers, by tag; what is not as it must be is named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Values", "tag_name"]

CHARACTER_SET = 0x00080005
UTF_8 = b"ISO_IR 192"
BINARY = {2: "u2", 4: "u4", 8: "f8"}  # numbers of a frame, by their bytes


class Values:
    """The values of elements.

    Args:
        path: Path of the file, for messages.
        values: Values as bytes by tag.
        byte_order: ``"<"`` or ``">"``.
    """

    def __init__(self, path: Path, values: Mapping[int, Any], byte_order: str = "<") -> None:
        self.path, self.values, self.byte_order = path, values, byte_order

    def text(self, tag: int) -> str:
        """Return the text of a value; empty if there is none."""
        value = self.values.get(tag, b"")
        return value.decode("latin-1").strip(" \0") if isinstance(value, bytes) else ""

    def words(self, tag: int) -> str:
        """Return what a person wrote, on one line."""
        value = self.values.get(tag, b"")
        if not isinstance(value, bytes):
            return ""
        utf_8 = UTF_8 in self.values.get(CHARACTER_SET, b"")
        text = value.decode("utf-8" if utf_8 else "latin-1", "replace")
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())

    def numbers(self, tag: int, count: int) -> NDArray[np.float64] | None:
        """Return numbers that are stated as text, ``None`` where they are not."""
        text = self.text(tag)
        if not text:
            return None
        try:
            found = np.array([float(part) for part in text.split("\\")])
        except ValueError:
            found = np.array([])
        if len(found) != count or not np.isfinite(found).all():
            raise ValueError(
                f"{self.path} must have {count} numbers in its tag {tag_name(tag)}, it may be damaged: "
                f"got {text[:60]!r}."
            )
        return found

    def number(self, tag: int, default: float) -> float:
        """Return one number that is stated as text."""
        found = self.numbers(tag, 1)
        return default if found is None else float(found[0])

    def rank(self, tag: int, binary: bool = False) -> float:
        """Return a number that sections are put in order by, of either kind; -1 if there is none."""
        value = self.values.get(tag, b"")
        if binary and len(value) == 4:
            return float(np.frombuffer(value, f"{self.byte_order}u4")[0])
        text = self.text(tag)
        return float(text) if text.isdecimal() else -1.0

    def trait(self, tag: int, binary: bool = False) -> str | float | None:
        """Return what tells images of one place apart: a number, if it is one, or else text."""
        value = self.values.get(tag, b"")
        if not isinstance(value, bytes) or not value:
            return None
        if binary and len(value) in BINARY:
            return float(np.frombuffer(value, f"{self.byte_order}{BINARY[len(value)]}")[0])
        text = self.text(tag)
        try:
            return round(float(text), 4)
        except ValueError:
            return text or None

    def whole(self, tag: int, default: int | None = None) -> int:
        """Return a binary number of two bytes."""
        value = self.values.get(tag, b"")
        if len(value) != 2:
            if not value and default is not None:
                return default
            raise ValueError(
                f"{self.path} must have one number in its tag {tag_name(tag)}, got {value[:20]!r}."
            )
        return int(np.frombuffer(value, f"{self.byte_order}u2")[0])


def tag_name(tag: int) -> str:
    """Return a tag as ``0028|0010``."""
    return f"{tag >> 16:04x}|{tag & 0xFFFF:04x}"
