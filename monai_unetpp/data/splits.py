# SPDX-License-Identifier: Apache-2.0
"""Splitting a data set into training and validation cases, by a hash of the seed and the name of a scan.

- hold-out: a scan is held out if its hash, as a number in [0, 1), is below ``val_fraction``
- folds: the scans, sorted by their hash, are dealt out in turn
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

from monai_unetpp.data.folds import Fold, check_folds, keep_folds
from monai_unetpp.files import PathLike

__all__ = ["deal_folds", "scan_names", "split_cases"]

Cases = list[dict[str, str]]
TAIL = 2  # parts of a path in the name of a scan: imagesTr/a.nii.gz


def split_cases(
    cases: Sequence[dict[str, str]],
    val_fraction: float,
    seed: int,
    folds: int | None = None,
    fold: int = 0,
    path: PathLike | None = None,
    write: bool = False,
) -> tuple[Cases, Cases]:
    """Split cases into training and held-out validation cases; those of one ``"scan"`` stay together.

    The side of a scan depends on the seed and on its name (:func:`scan_names`), not on the order or the
    number of the others: a case more moves none. The share that is held out is near ``val_fraction``, and
    the nearer the more scans there are. Where no scan would be held out (or trained on), although
    ``val_fraction`` asks for one, it is the scan that comes next.

    With ``folds`` those scans are held out that :func:`deal_folds` gives to ``fold``. Since folds are of
    nearly equal size, a scan more can move others there: the folds in the file at ``path``, which the first
    training writes, must be those of now.

    Args:
        cases: Cases as :func:`~monai_unetpp.data.read_dataset` returns them.
        val_fraction: Share of the scans that is held out, in (0, 1); not used with ``folds``.
        seed: Seed of the split.
        folds: Number of folds of a cross-validation; by default there are none.
        fold: Number of the fold that is held out, from 0 on.
        path: Path of the JSON that keeps the folds; by default they are neither compared nor written.
        write: Whether the JSON is written if it does not exist.

    Returns:
        Training cases and held-out cases, both in the order of ``cases``.

    Raises:
        ValueError: if ``val_fraction`` is not between 0 and 1, or leaves one side without a scan; if there is
            no such fold, or there are fewer scans than folds; if the JSON at ``path`` holds other folds.

    Example:
        >>> cases = [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in range(100)]
        >>> train, held_out = split_cases(cases, 0.25, seed=0)
        >>> all(case in held_out for case in split_cases(cases[:50], 0.25, seed=0)[1])
        True
    """
    names = scan_names(cases)
    check_folds(folds, fold)
    if folds is not None:
        dealt = deal_folds(names, folds, seed)
        if path is not None:
            keep_folds(path, dealt, seed, write)
        return _sides(cases, names, {*dealt[fold]["val"]})
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction must be between 0 and 1, got {val_fraction!r}.")
    place = {name: _place(seed, name) for name in names}
    held_out = {name for name in place if place[name] < val_fraction}
    wanted = math.floor(len(place) * val_fraction + 0.5)
    if len(place) > 1 and wanted and not held_out:
        held_out = {min(place, key=place.__getitem__)}
    elif len(place) > 1 and wanted < len(place) and len(held_out) == len(place):
        held_out.remove(max(place, key=place.__getitem__))
    if not 0 < len(held_out) < len(place):
        raise ValueError(_empty_side(val_fraction, len(place), len(held_out)))
    return _sides(cases, names, held_out)


def deal_folds(names: Sequence[str], folds: int, seed: int) -> list[Fold]:
    """Deal scans out to folds whose sizes differ by at most one.

    Args:
        names: Names of the scans in any order; a name that is there several times is one scan.
        folds: Number of folds, from 2 on.
        seed: Seed of the split.

    Returns:
        One entry per fold: the sorted names of its training scans, ``"train"``, and of its held-out scans,
        ``"val"``, as in nnU-Net's ``splits_final.json``.

    Raises:
        ValueError: if there are fewer than 2 folds, or fewer scans than folds.

    Example:
        >>> [fold["val"] for fold in deal_folds(["a", "b", "c", "d", "e"], 2, seed=0)]
        [['a', 'd', 'e'], ['b', 'c']]
    """
    check_folds(folds)
    scans = sorted({*names}, key=lambda name: (_place(seed, name), name))
    if folds > len(scans):
        works = f": --folds {len(scans)} would work" if len(scans) > 1 else ": at least 2 scans are required"
        raise ValueError(f"folds must be at most the number of scans, {len(scans)}, got {folds}{works}.")
    held_out = [{*scans[fold::folds]} for fold in range(folds)]
    return [{"train": sorted({*scans} - val), "val": sorted(val)} for val in held_out]


def scan_names(cases: Sequence[dict[str, str]]) -> list[str]:
    """Name the scan of each case, independently of where the data set lies.

    Args:
        cases: Cases with an ``"image"``, and a ``"scan"`` where several cases are cut out of one.

    Returns:
        One name per case: its ``"scan"``, or else the image's file name with its folder, such as
        ``imagesTr/a.nii.gz``, and with further folders where that is the name of several images.
    """
    paths = {case["image"]: Path(case["image"]).parts for case in cases if "scan" not in case}
    names: dict[str, str] = {}
    tail, left = TAIL, list(paths)
    while left:
        found: dict[str, list[str]] = {}
        for image in left:
            found.setdefault("/".join(paths[image][-tail:]), []).append(image)
        for name, images in found.items():
            if len(images) == 1 or all(len(paths[image]) <= tail for image in images):
                names |= dict.fromkeys(images, name)
        tail, left = tail + 1, [image for image in left if image not in names]
    return [case["scan"] if "scan" in case else names[case["image"]] for case in cases]


def _sides(cases: Sequence[dict[str, str]], names: Sequence[str], held_out: set[str]) -> tuple[Cases, Cases]:
    named = list(zip(names, cases, strict=True))
    return [c for name, c in named if name not in held_out], [c for name, c in named if name in held_out]


def _place(seed: int, name: str) -> float:
    """Return the hash of seed and name as a number in [0, 1)."""
    digest = hashlib.sha256(f"{name}:{seed}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _empty_side(val_fraction: float, scans: int, held_out: int) -> str:
    side = "holds out none" if not held_out else "leaves none to train on"
    if scans < 2:
        return f"val_fraction {val_fraction} {side} of {scans} scans: at least 2 scans are required."
    works = math.ceil(100 / scans) / 100 if not held_out else math.floor(100 - 100 / scans) / 100
    return f"val_fraction {val_fraction} {side} of {scans} scans: --val_fraction {works:g} would work."
