# SPDX-License-Identifier: Apache-2.0
"""The UID of an image, for what refers to it."""

from __future__ import annotations

import mmap
from pathlib import Path

from monai_unetpp.readers.dicom.elements import parse

__all__ = ["instance_uid"]

SOP_INSTANCE = 0x00080018


def instance_uid(path: Path) -> str:
    """Return the SOP instance UID of a file, empty if it states none."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        value = parse(content).values.get(SOP_INSTANCE, b"")
        return value.decode("latin-1").strip(" \0")
