# SPDX-License-Identifier: Apache-2.0
"""Pictures of masks: what kind they are, decided over a whole data set, and which pixels are the label."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_unetpp.readers.picture import LOSSY

__all__ = ["MASK_KINDS", "mask_rule"]

logger = logging.getLogger(__name__)

Rule = Callable[[NDArray[Any]], NDArray[np.uint8]]

MASK_KINDS = ("auto", "nonzero", "threshold")
HALF_OF_8_BIT = 127  # JPEG blurs edges: what is brighter is the label
MAX_CLASSES = 8  # different values of a mask without soft edges and instances
MIN_WHITE = 200  # brightest value of a mask with soft edges
MIN_CONTRAST = 64  # grey values between background and label of a JPEG


def mask_rule(pictures: Iterable[tuple[Path, NDArray[np.int64]]], kind: str, folder: Path) -> Rule:
    """Return the rule by which the masks of a data set become labels, 0 or 1.

    Two values, of whatever size or colour: what is not 0 is the label. Whole numbers of instances or classes:
    likewise, with a warning. Soft edges, as of JPEG: what is brighter than half.

    Args:
        pictures: Path and numbers, as of :func:`~monai_unetpp.readers.picture.label_of`, of every mask.
        kind: ``"nonzero"`` or ``"threshold"`` to say which; ``"auto"`` to find out.
        folder: Folder of the masks, for messages.

    Raises:
        ValueError: if no mask has a label, or the kind cannot be told.
    """
    counts: Counter[int] = Counter()
    lossy = False
    for path, numbers in pictures:
        lossy = lossy or path.suffix.lower() in LOSSY
        counts.update(dict(zip(*(a.tolist() for a in np.unique(numbers, return_counts=True)), strict=True)))
    chosen = _kind(counts, lossy, folder) if kind == "auto" else kind
    rule = _nonzero if chosen == "nonzero" else _bright
    found = rule(np.array(sorted(counts)))
    if not found.any() or found.all():
        raise ValueError(
            f"masks must show a label and what is not: in {folder} {'every' if found.all() else 'no'} "
            f"pixel is label, by the rule {chosen!r}; their values are {_listed(counts)}."
        )
    return rule


def _nonzero(numbers: NDArray[Any]) -> NDArray[np.uint8]:
    return (numbers != 0).astype(np.uint8)


def _bright(numbers: NDArray[Any]) -> NDArray[np.uint8]:
    return (numbers > HALF_OF_8_BIT).astype(np.uint8)


def _kind(counts: Counter[int], lossy: bool, folder: Path) -> str:
    """Tell the kind of the masks by how often which number is in them."""
    high = max(counts)
    if lossy:
        if high < HALF_OF_8_BIT + MIN_CONTRAST:
            raise ValueError(
                f"masks in {folder} are JPEG of values up to {high} with blurred edges: neither above 0 "
                f"nor above {HALF_OF_8_BIT} is certain; store them as PNG."
            )
        return "threshold"
    if counts[0] == 0:
        logger.warning(
            f"masks in {folder} have no pixel of 0 as background, but {_listed(counts)}: what is brighter "
            f"than {HALF_OF_8_BIT} is taken as the label."
        )
        return "threshold"
    label = sum(count for number, count in counts.items() if number)
    if len(counts) > MAX_CLASSES and MIN_WHITE <= high <= 255 and counts[high] > label / 2:
        return "threshold"  # of instances the last is not most of the label
    if len(counts) > 2:
        logger.warning(
            f"masks in {folder} hold {len(counts) - 1} values beside 0: instances or classes, which all "
            "become the one label. For soft edges: mask_kind='threshold' (--mask-kind threshold)."
        )
    return "nonzero"


def _listed(counts: Counter[int]) -> str:
    numbers = sorted(counts)
    return ", ".join(map(str, numbers[:8])) + (f" ... {numbers[-1]}" if len(numbers) > 8 else "")
