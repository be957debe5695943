# SPDX-License-Identifier: Apache-2.0
"""From folders of pictures, axial slices of CT and their masks, to volumes in the layout of the Decathlon."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from monai_unetpp.data.decathlon import Case, write_decathlon
from monai_unetpp.files import PathLike

__all__ = ["NAME", "write_slices"]

NAME = r"(?:.*_)?(?P<scan>[^_]+)_(?P<slice>\d+)"
PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff")
HALF = 127  # a mask is what is brighter: JPEG blurs edges


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
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Stack the slices of each scan to a volume: what is split by volume is then split by scan.

    Grey values become HU as they are, so 8 bits are HU saturated to 0..255. Neighbours in a volume need not
    be neighbours in the patient: it is for networks of two dimensions.

    Args:
        images: folder of the pictures.
        masks: folder of masks of the same names; what is brighter than 127 is the label.
        directory: of the data set, made if it does not exist.
        name: regular expression for a file's name without suffix, with groups ``scan`` and ``slice``. A
            picture whose name fits a group ``flip_rows`` or ``flip_columns`` was turned over, up to down or
            left to right, and is turned back.
        rows: axis of the patient along which a picture's rows are counted: ``"y"`` as radiologists look at
            slices, from front to back; ``"x"`` where arrays of volumes were saved as they are.
        pixel: size of a pixel, mm.
        spacing: between slices, mm.
        label: name of what the masks show.
        overwrite: whether a data set that is there may be replaced.
        progress: whether to show a progress bar.

    Returns:
        The path of ``dataset.json``.

    Raises:
        FileNotFoundError: if there are no pictures, or one lacks its mask.
        FileExistsError: if ``directory`` holds a ``dataset.json`` and ``overwrite`` is false.
        ValueError: if a name does not fit, slices of a scan differ in size, or a picture cannot be read.
    """
    if rows not in ("x", "y"):
        raise ValueError(f"rows must be 'x' or 'y', got {rows!r}.")
    scans = _scans(Path(images), Path(masks), name)
    affine = np.diag([pixel, pixel, spacing, 1.0])
    if rows == "y":  # pictures are seen from the feet, the front up
        affine[:2] *= -1

    def cases() -> Iterator[Case]:
        for scan, slices in scans.items():
            image = _stack([(each.image, each.flips) for each in slices], rows)
            mask = _stack([(each.mask, each.flips) for each in slices], rows)
            if image.shape != mask.shape:
                raise ValueError(f"{slices[0].mask} must be of the size of {slices[0].image}.")
            yield Case(f"scan_{scan}", image.astype(np.int16), (mask > HALF).astype(np.uint8), affine)

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


class _Slice(NamedTuple):
    image: Path
    mask: Path
    flips: tuple[int, ...]  # axes of the picture that were turned over
    number: int


def _scans(images: Path, masks: Path, name: str) -> Mapping[str, Sequence[_Slice]]:
    """Of every scan its slices in their order."""
    pictures = [path for path in sorted(images.glob("*")) if path.suffix.lower() in PICTURES]
    if not pictures:
        raise FileNotFoundError(
            f"images must be a folder of pictures ({', '.join(PICTURES)}): {images} has none."
        )
    found: dict[str, list[_Slice]] = {}
    for path in pictures:
        parts = re.fullmatch(name, path.stem)
        if parts is None:
            raise ValueError(f"{path} must be named like {name}, with the scan and the number of the slice.")
        mask = next(
            (p for p in (masks / f"{path.stem}{s}" for s in (path.suffix, *PICTURES)) if p.exists()), None
        )
        if mask is None:
            raise FileNotFoundError(f"{path} has no mask: there is no {masks / path.name}.")
        groups = parts.groupdict()
        flips = tuple(axis for axis, group in enumerate(("flip_rows", "flip_columns")) if groups.get(group))
        found.setdefault(groups["scan"], []).append(_Slice(path, mask, flips, int(groups["slice"])))
    return {scan: sorted(found[scan], key=lambda each: each.number) for scan in sorted(found)}


def _stack(pictures: Sequence[tuple[Path, tuple[int, ...]]], rows: str) -> NDArray[Any]:
    """Grey pictures, turned back along their axes, as one array (X, Y, slices)."""
    slices = []
    for path, flips in pictures:
        try:
            picture = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))  # (rows, columns) or with colours
        except RuntimeError as error:
            raise ValueError(f"{path} cannot be read: {str(error).strip().splitlines()[-1]}") from error
        grey = np.flip(picture if picture.ndim == 2 else picture[..., :3].mean(axis=-1), flips)
        slices.append(grey if rows == "x" else grey.T)
        if slices[-1].shape != slices[0].shape:
            raise ValueError(f"{path} must be of the size of {pictures[0][0]}: they are slices of one scan.")
    return np.stack(slices, axis=-1)
