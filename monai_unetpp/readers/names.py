# SPDX-License-Identifier: Apache-2.0
"""Names of files: without their suffix, and of the files that hold the other channels of a case."""

from __future__ import annotations

import os
import re
from pathlib import Path

from monai_unetpp.readers.picture import PICTURE_SUFFIXES
from monai_unetpp.readers.text import begin_of

__all__ = ["CHANNEL", "other_channels", "segment_names", "stem_of"]

PathLike = str | os.PathLike[str]

SEGMENTATIONS = (".seg.nrrd", ".seg.nhdr")  # of 3D Slicer
SUFFIXES = (*SEGMENTATIONS, ".nii.gz", ".nii", ".mhd", ".mha", ".nrrd", ".nhdr", *PICTURE_SUFFIXES)
CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


def stem_of(path: PathLike) -> str:
    """Return the name of a file without the suffix of a volume or a picture, or the name of a folder."""
    name = Path(path).name
    suffix = next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def other_channels(path: PathLike) -> list[Path]:
    """Return the files of the other channels of a case that is named by its first, in their order."""
    path = Path(path)
    found = CHANNEL.fullmatch(stem_of(path))
    if found is None or int(found["channel"]) != 0:
        return []
    end, others, number = path.name[len(stem_of(path)) :], [], 1
    while (other := path.with_name(f"{found['case']}_{number:04d}{end}")).exists():
        others.append(other)
        number += 1
    return others


def segment_names(path: PathLike) -> dict[str, str]:
    """Return value -> name of the segments in a mask of 3D Slicer; empty for others."""
    if not Path(path).name.lower().endswith(SEGMENTATIONS):
        return {}
    lines = begin_of(Path(path)).split(b"\n\n")[0].decode("utf-8", "replace").splitlines()
    fields = dict(line.partition(":=")[::2] for line in lines if line.startswith("Segment") and ":=" in line)
    return {
        value.strip(): fields.get(key.replace("_LabelValue", "_Name"), "").strip()
        for key, value in fields.items()
        if key.endswith("_LabelValue")
    }
