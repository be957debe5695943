# SPDX-License-Identifier: Apache-2.0
"""The elements of one DICOM file, up to its pixels: what is claimed must lie within the file.

Each element is a tag, a kind of value (VR) and a length; a sequence holds items, which hold elements. Of
sequences only the functional groups of an enhanced file, and the records of a DICOMDIR, are kept. Why this is
not left to GDCM in a child process: by SimpleITK it shows no sequences, cannot tell a report from a damaged
slice, passes over one whose pixels are claimed to be 4 GB, and costs seconds (benchmarks/faults/README.md).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from monai_unetpp.readers.checks import MAX_DEFLATE_RATIO

__all__ = ["DamagedElementsError", "DicomFile", "Pixels", "fragments", "looks_like_dicom", "parse"]

Items = Sequence[dict[int, Any]]

TRANSFER_SYNTAX, PIXEL_DATA = 0x00020010, 0x7FE00010
FLOAT_PIXELS = (0x7FE00008, 0x7FE00009)
SHARED_GROUPS, FRAME_GROUPS, RECORDS = 0x52009229, 0x52009230, 0x00041220
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
UNDEFINED_LENGTH = 0xFFFFFFFF
IMPLICIT, DEFLATED, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"

# kinds of values with a length of four bytes, and of two
LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
SHORT = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
MAX_DEPTH = 16  # sequences within sequences
MAX_KEPT_BYTES = 1024  # bytes of a value that is kept


class DamagedElementsError(ValueError):
    """Elements that cannot be read to their end; ``values`` are those before, by tag."""

    def __init__(self, message: str, values: dict[int, Any]) -> None:
        super().__init__(message)
        self.values = values


@dataclass(frozen=True)
class Pixels:
    """Where the pixels of a file are.

    Args:
        start: Offset of the first byte of their value.
        length: Number of bytes; ``None`` where they are encapsulated, hence compressed.
    """

    start: int
    length: int | None


@dataclass(frozen=True)
class DicomFile:
    """What a file holds before its pixels.

    Args:
        values: Values as bytes by tag; of the functional groups, a list of items, nested likewise.
        syntax: UID of the transfer syntax.
        pixels: Where the pixels are, ``None`` if there are none.
        content: All bytes of the file, inflated if the syntax is deflated.
    """

    values: dict[int, Any] = field(repr=False)
    syntax: str
    pixels: Pixels | None
    content: Any = field(repr=False)

    @property
    def byte_order(self) -> str:
        """``"<"`` or, for the big-endian syntax, ``">"``."""
        return ">" if self.syntax == BIG_ENDIAN else "<"


def looks_like_dicom(head: bytes) -> bool:
    """Whether the first 132 bytes are those of DICOM: with the magic, or an element of group 2 or 8."""
    if head[128:132] == b"DICM":
        return True
    if len(head) < 8 or head[:2] not in (b"\x02\x00", b"\x08\x00") or head[3] != 0:
        return False
    return head[4:6] in LONG | SHORT or struct.unpack_from("<I", head, 4)[0] < 2**16


def parse(content: Any) -> DicomFile:
    """Return the elements of a file.

    Args:
        content: All bytes of a file, or a memory map of it.

    Raises:
        DamagedElementsError: if an element is longer than the file, or the bytes are no elements; it names no
            file.
        ValueError: if they are damaged before the first element of the data set.
    """
    at = 132 if content[128:132] == b"DICM" else 0
    meta, at = _Walker(content, "<", True).walk_group(at, 2)
    syntax = _text(meta.get(TRANSFER_SYNTAX, b""))
    if syntax == DEFLATED:
        content, at = _inflated(content[at:]), 0
    order = ">" if syntax == BIG_ENDIAN else "<"
    # what a file says of its syntax is not always so: its first element shows it
    explicit = bytes(content[at + 4 : at + 6]) in LONG | SHORT
    walker = _Walker(content, order, explicit)
    values: dict[int, Any] = dict(meta)
    try:
        walker.walk(at, len(content), values=values)
    except ValueError as error:
        raise DamagedElementsError(str(error), values) from error
    return DicomFile(values, syntax or IMPLICIT, walker.pixels, content)


def fragments(content: Any, start: int) -> list[tuple[int, int]]:
    """Return offset and length of the fragments of encapsulated pixels, the first of which is a table.

    Args:
        content: All bytes of a file, or a memory map of it.
        start: Offset of the value of its pixels.

    Raises:
        ValueError: if one is longer than the file; it names no file.
    """
    return _Walker(content, "<", True).fragments(start)[0]


def _inflated(content: bytes) -> bytes:
    inflate = zlib.decompressobj(-15)
    try:
        found = inflate.decompress(content, len(content) * MAX_DEFLATE_RATIO)
    except zlib.error as error:
        raise ValueError(f"its deflated elements are damaged: {error}") from error
    if not inflate.eof:
        raise ValueError("its deflated elements are truncated")
    return found


def _text(value: bytes) -> str:
    return value.decode("latin-1").strip(" \0")


class _Walker:
    """Goes over elements that follow each other.

    Args:
        content: All bytes.
        order: ``"<"`` or ``">"``.
        explicit: Whether elements say the kind of their value.
    """

    def __init__(self, content: Any, order: str, explicit: bool) -> None:
        self.content = content
        self.order = order
        self.explicit = explicit
        self.pixels: Pixels | None = None
        self.tag_format = struct.Struct(order + "HH")
        self.long_format, self.short_format = struct.Struct(order + "I"), struct.Struct(order + "H")

    def walk_group(self, at: int, group: int) -> tuple[dict[int, Any], int]:
        """Return the elements of one group, and where the next begins."""
        values: dict[int, Any] = {}
        while at + 8 <= len(self.content) and self.tag_format.unpack_from(self.content, at)[0] == group:
            tag, _, start, length = self._head(at, len(self.content))
            at = start + length
            if at > len(self.content):
                raise ValueError(f"its element {_name(tag)} is longer than the file")
            values[tag] = bytes(self.content[start:at])
        return values, at

    def walk(
        self, at: int, end: int, depth: int = 0, keep: bool = True, values: dict[int, Any] | None = None
    ) -> tuple[dict[int, Any], int]:
        """Return the elements from ``at`` on, to the pixels, the mark of an item's end, or ``end``.

        Args:
            at: Offset of the first.
            end: Offset beyond which none may reach.
            depth: Number of sequences around them.
            keep: Whether sequences in them are kept; they are passed over otherwise.
            values: Dictionary to put the values into; default a new one.

        Returns:
            Values by tag, and the offset of what follows.
        """
        values = {} if values is None else values
        while at < end:
            if depth == 0 and self.content[at] == 0 and not any(self.content[at : at + 8]):
                if any(self.content[at:end]):
                    raise ValueError(f"its elements end in other bytes at {at:,}")
                break  # zeros that fill up
            tag, kind, start, length = self._head(at, end)
            if depth == 0 and (tag == PIXEL_DATA or tag in FLOAT_PIXELS):
                self.pixels = self._pixels(tag, start, length)
                break
            if tag == ITEM_END and depth > 0:
                return values, start
            if tag == PIXEL_DATA and length == UNDEFINED_LENGTH:  # of an icon
                _, at = self.fragments(start)
                continue
            wanted = tag in (SHARED_GROUPS, FRAME_GROUPS, RECORDS) if depth == 0 else keep
            if length == UNDEFINED_LENGTH or (wanted and self._is_sequence(kind, start, length)):
                items, at = self._items(start, length, end, depth + 1, wanted, kind == b"UN")
                if wanted:
                    values[tag] = items
                continue
            at = start + length
            if at > end:
                raise ValueError(f"its element {_name(tag)} is longer than the file")
            if length <= MAX_KEPT_BYTES:
                value = bytes(self.content[start:at])
                if values.setdefault(tag, value) != value:
                    raise ValueError(f"its element {_name(tag)} is there twice, with different values")
        return values, at

    def _head(self, at: int, end: int) -> tuple[int, bytes, int, int]:
        """Return tag, kind, and start and length of the value of the element at ``at``."""
        if at + 8 > end:
            raise ValueError("it is truncated: an element has no end")
        group, element = self.tag_format.unpack_from(self.content, at)
        tag = group << 16 | element
        kind = bytes(self.content[at + 4 : at + 6]) if self.explicit and group != 0xFFFE else b""
        if kind in SHORT:
            return tag, kind, at + 8, self.short_format.unpack_from(self.content, at + 6)[0]
        if kind == b"":
            return tag, kind, at + 8, self.long_format.unpack_from(self.content, at + 4)[0]
        if kind not in LONG:
            raise ValueError(f"its element {_name(tag)} has the unknown kind of value {kind!r}")
        if at + 12 > end:
            raise ValueError("it is truncated: an element has no end")
        return tag, kind, at + 12, self.long_format.unpack_from(self.content, at + 8)[0]

    def _is_sequence(self, kind: bytes, start: int, length: int) -> bool:
        """Whether a value holds items, which an implicit syntax does not say."""
        if kind:
            return kind == b"SQ"
        return length >= 8 and bytes(self.content[start : start + 4]) == b"\xfe\xff\x00\xe0"

    def _items(
        self, at: int, length: int, end: int, depth: int, keep: bool, implicit: bool = False
    ) -> tuple[Items, int]:
        """Return the items of a sequence, and the offset of what follows it."""
        if depth > MAX_DEPTH:
            raise ValueError(f"its sequences are nested more than {MAX_DEPTH} deep")
        if implicit and self.explicit:  # what is in a value of the kind UN is implicit
            return _Walker(self.content, self.order, False)._items(at, length, end, depth, keep)
        stop = end if length == UNDEFINED_LENGTH else at + length
        if stop > end:
            raise ValueError("one of its sequences is longer than the file")
        items: list[dict[int, Any]] = []
        while at < stop:
            tag, _, start, size = self._head(at, stop)
            if tag == SEQUENCE_END:
                return items, start
            if tag != ITEM:
                raise ValueError(f"one of its sequences holds {_name(tag)} in place of an item")
            item_end = stop if size == UNDEFINED_LENGTH else start + size
            if item_end > stop:
                raise ValueError("one of its items is longer than the file")
            item, at = self.walk(start, item_end, depth, keep)
            items.append(item)
        if length == UNDEFINED_LENGTH:
            raise ValueError("it is truncated: a sequence has no end")
        return items, stop

    def _pixels(self, tag: int, start: int, length: int) -> Pixels:
        """Return where pixels are; of encapsulated ones every fragment must lie within the file."""
        if tag in FLOAT_PIXELS:
            raise ValueError("its pixels are floating point, which is no CT image")
        if length != UNDEFINED_LENGTH:
            if start + length > len(self.content):
                raise ValueError("its pixels are longer than the file")
            return Pixels(start, length)
        self.fragments(start)
        return Pixels(start, None)

    def fragments(self, at: int) -> tuple[list[tuple[int, int]], int]:
        """Return offset and length of each fragment of encapsulated pixels, and where they end."""
        found: list[tuple[int, int]] = []
        while True:
            if at + 8 > len(self.content):
                raise ValueError("it is truncated: its compressed pixels have no end")
            tag, _, begin, size = self._head(at, len(self.content))
            if tag == SEQUENCE_END:
                return found, begin
            if tag != ITEM:
                raise ValueError(f"its compressed pixels hold {_name(tag)} in place of a fragment")
            found.append((begin, size))
            at = begin + size


def _name(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
