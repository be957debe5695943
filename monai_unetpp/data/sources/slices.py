# SPDX-License-Identifier: Apache-2.0
"""Folders of pictures, axial slices of CT and their masks, become volumes in the layout of the Decathlon."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monai_unetpp.data.decathlon import Case, check_name, write_decathlon
from monai_unetpp.data.sources.masks import MASK_KINDS, mask_rule
from monai_unetpp.files import PathLike
from monai_unetpp.readers.picture import LOSSY, PICTURE_SUFFIXES, label_of, read_raw

__all__ = ["NAME", "write_slices"]

NAME = r"(?:.*_)?(?P<scan>[^_]+)_(?P<slice>\d+)"

logger = logging.getLogger(__name__)


def write_slices(
    images: PathLike,
    masks: PathLike,
    directory: PathLike,
    *,
    name: str = NAME,
    rows: str = "y",
    pixel: float = 1.5,
    spacing: float = 5.0,
    label: str = "liver",
    mask_kind: str = "auto",
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Stack the slices of each scan to a volume: what is split by volume is then split by scan.

    Grey values become HU as they are, so 8 bits are HU saturated to 0..255; 16 bits keep their range.
    Neighbours in a volume need not be neighbours in the patient: it is for networks of two dimensions.

    Args:
        images: Folder of the pictures.
        masks: Folder of masks of the same names.
        directory: Folder of the data set, made if it does not exist.
        name: Regular expression for a file's name without suffix, with groups ``scan`` and ``slice``. A
            picture whose name fits a group ``flip_rows`` or ``flip_columns`` was turned over, up to down or
            left to right, and is turned back.
        rows: Axis of the patient along which a picture's rows are counted: ``"y"`` as radiologists look at
            slices, from front to back; ``"x"`` where arrays of volumes were saved as they are.
        pixel: Size of a pixel, mm.
        spacing: Distance between slices, mm.
        label: Name of what the masks show.
        mask_kind: ``"nonzero"`` if all but black is the label, ``"threshold"`` if what is brighter than 127
            is; ``"auto"`` to tell by all masks, see :func:`~monai_unetpp.data.sources.masks.mask_rule`.
        overwrite: Whether a data set that is there may be replaced.
        progress: Whether to show a progress bar.

    Returns:
        The path of ``dataset.json``.

    Raises:
        FileNotFoundError: if there are no pictures, or one lacks its mask.
        FileExistsError: if ``directory`` holds a ``dataset.json`` and ``overwrite`` is false.
        ValueError: if a name does not fit, slices of a scan differ in size, a picture cannot be read, or no
            mask has a label.
    """
    for argument, value, known in (("rows", rows, ("x", "y")), ("mask_kind", mask_kind, MASK_KINDS)):
        if value not in known:
            raise ValueError(f"{argument} must be {' or '.join(map(repr, known))}, got {value!r}.")
    scans = _scans(Path(images), Path(masks), _name_expression(name))
    for scan in scans:
        check_name(f"scan_{scan}")  # before all masks are read
    every = [each for slices in scans.values() for each in slices]
    rule = mask_rule(((each.mask, _numbers(each.mask)) for each in every), mask_kind, Path(masks))
    affine = np.diag([pixel, pixel, spacing, 1.0])
    if rows == "y":  # pictures are seen from the feet, the front up
        affine[:2] *= -1

    def cases() -> Iterator[Case]:
        for scan, slices in scans.items():
            flips = [each.flips for each in slices]
            image = _stack([each.image for each in slices], _grey, flips, rows)
            mask = _stack([each.mask for each in slices], lambda path: rule(_numbers(path)), flips, rows)
            if image.shape != mask.shape:
                raise ValueError(f"{slices[0].mask} must be of the size of {slices[0].image}.")
            yield Case(f"scan_{scan}", _narrow(image), mask, affine)

    return write_decathlon(
        directory,
        cases(),
        total=len(scans),
        name=f"Slices: {label}",
        description=f"Slices of {Path(images).absolute().name}, a volume a scan.",
        labels={"0": "background", "1": label},
        overwrite=overwrite,
        progress=progress,
    )


def _name_expression(name: str) -> re.Pattern[str]:
    """Return a regular expression for names, which must have its two groups."""
    try:
        pattern = re.compile(name)
    except re.error as error:
        raise ValueError(
            f"name must be a regular expression such as {NAME}, got {name!r}: {error}."
        ) from error
    lacking = [group for group in ("scan", "slice") if group not in pattern.groupindex]
    if lacking:
        raise ValueError(
            f"name must have the groups (?P<scan>...) and (?P<slice>...), as {NAME} has; {name!r} lacks "
            f"{' and '.join(lacking)}."
        )
    return pattern


class _PictureAndMask(NamedTuple):
    image: Path
    mask: Path
    flips: tuple[int, ...]  # axes of the picture that were turned over
    number: int


def _scans(images: Path, masks: Path, name: re.Pattern[str]) -> Mapping[str, Sequence[_PictureAndMask]]:
    """Of every scan its slices in their order."""
    pictures = [path for path in sorted(images.glob("*")) if path.suffix.lower() in PICTURE_SUFFIXES]
    if not pictures:
        raise FileNotFoundError(
            f"images must be a folder of pictures ({', '.join(PICTURE_SUFFIXES)}): {images} has none."
        )
    found: dict[str, list[_PictureAndMask]] = {}
    for path in pictures:
        parts = name.fullmatch(path.stem)
        if parts is None or not str(parts["slice"]).isdecimal() or not parts["scan"]:
            raise ValueError(
                f"{path} must be named like {name.pattern}, with the scan and the number of the slice."
            )
        mask = next(
            (p for p in (masks / f"{path.stem}{s}" for s in (path.suffix, *PICTURE_SUFFIXES)) if p.exists()),
            None,
        )
        if mask is None:
            raise FileNotFoundError(f"{path} has no mask: there is no {masks / path.name}.")
        groups = parts.groupdict()
        flips = tuple(axis for axis, group in enumerate(("flip_rows", "flip_columns")) if groups.get(group))
        found.setdefault(groups["scan"], []).append(_PictureAndMask(path, mask, flips, int(groups["slice"])))
    ordered = {scan: sorted(found[scan], key=lambda each: each.number) for scan in sorted(found)}
    pairs = [pair for slices in ordered.values() for pair in pairwise(slices)]
    twice = [(a, b) for a, b in pairs if a.number == b.number]
    if twice:
        logger.warning(
            f"{len(twice)} pictures are of a slice that another is of, first {twice[0][0].image} and "
            f"{twice[0][1].image}: all are taken."
        )
    return ordered


def _stack(
    paths: Sequence[Path], read: Callable[[Path], NDArray[Any]], flips: Sequence[tuple[int, ...]], rows: str
) -> NDArray[Any]:
    """Pictures, turned back along their axes, as one array (X, Y, slices)."""
    slices = []
    for path, axes in zip(paths, flips, strict=True):
        picture = np.flip(read(path), axes)
        slices.append(picture if rows == "x" else picture.T)
        if slices[-1].shape != slices[0].shape:
            raise ValueError(f"{path} must be of the size of {paths[0]}: they are slices of one scan.")
    return np.stack(slices, axis=-1)


def _grey(path: Path) -> NDArray[Any]:
    """Return the grey values of a picture; of colours their mean, rounded."""
    picture = read_raw(path)
    if picture.ndim == 2:
        return picture
    colours = picture[..., : 3 if picture.shape[-1] > 2 else 1]
    return colours[..., 0] if (colours == colours[..., :1]).all() else np.rint(colours.mean(axis=-1))


def _numbers(path: Path) -> NDArray[np.int64]:
    return label_of(read_raw(path), lossy=path.suffix.lower() in LOSSY)


def _narrow(image: NDArray[Any]) -> NDArray[Any]:
    """Return voxels as int16 where they fit, else in a type that keeps their range."""
    if image.dtype.kind == "f" and (image != np.rint(image)).any():
        return image.astype(np.float32)
    limits = np.iinfo(np.int16)
    fits = limits.min <= image.min() and image.max() <= limits.max
    return image.astype(np.int16 if fits else np.int32)
