# SPDX-License-Identifier: Apache-2.0
"""Measuring one case: geometry, intensities, classes, and what is wrong with it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]

from monai_unetpp.readers import is_picture, other_channels, volume_loader
from monai_unetpp.readers.checks import check_affine, greatest_distance
from monai_unetpp.readers.names import segment_names
from monai_unetpp.readers.picture import LOSSY, read_numbers

__all__ = ["CaseFacts", "files_of", "inside", "measure_case"]

QUANTILES = np.linspace(0, 100, 201)  # percentiles of a case that are kept, per channel
MAX_SAMPLE_VOXELS = 20_000  # voxels per case and channel from which they are taken
MAX_VALUES = 20  # values of a mask up to which each is measured; more are instances


@dataclass(frozen=True)
class CaseFacts:
    """What one case is like; axes are those of the patient, left to right, back to front, feet to head.

    Args:
        image: Path of the image in the data set.
        label: Path of its mask.
        scan: Name of the scan, where several cases are of one.
        size: Voxels along each axis.
        spacing: Distance between voxels, mm.
        channels: Number of channels.
        picture: Whether the image is a picture.
        whole: Whether all values are whole numbers.
        low: Smallest value by channel.
        high: Largest value by channel.
        zero: Share of the voxels that are 0 in all channels.
        quantiles: Percentiles of the foreground by channel, in steps of 0.5.
        mean: Mean over the image by channel.
        std: Standard deviation, likewise.
        values: Value of the mask -> voxels, components, and voxels of the median component.
        largest: Share of the foreground that its largest component has.
        centre: Centre of the foreground, as a share of the size, by axis.
        lossy: Whether the mask is a JPEG.
        names: Value -> name, where the mask has names (3D Slicer).
        sha: Checksum of the files.
        warnings: What is odd.
        problem: Why the case cannot be used.
    """

    image: str
    label: str
    scan: str | None = None
    size: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    channels: int = 0
    picture: bool = False
    whole: bool = False
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    zero: float = 0.0
    quantiles: tuple[tuple[float, ...], ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    values: dict[str, tuple[int, int, float]] = field(default_factory=dict)
    largest: float = 1.0
    centre: tuple[float, ...] = ()
    lossy: bool = False
    names: dict[str, str] = field(default_factory=dict)
    sha: str = ""
    warnings: tuple[str, ...] = ()
    problem: str = ""


def files_of(case: Mapping[str, str], channels: int) -> list[Path]:
    """Return the files of an image, one per channel if there are several, and its mask."""
    image = Path(case["image"])
    return [image, *(other_channels(image) if channels > 1 else []), Path(case["label"])]


def measure_case(case: Mapping[str, str], root: Path, channels: int, ignored: int | None = None) -> CaseFacts:
    """Load a case, whose channels lie in several files if there are, and measure it.

    What is wrong with it becomes its ``problem``. Voxels of the value ``ignored`` are no foreground.
    """
    *images, label = files_of(case, channels)
    facts = CaseFacts(inside(root, images[0]), inside(root, label), case.get("scan"))
    try:
        return _measure(facts, images, label, ignored)
    except Exception as error:  # one case does not stop the others
        return dataclasses.replace(facts, problem=str(error) or repr(error))


def _measure(facts: CaseFacts, images: Sequence[Path], label: Path, ignored: int | None) -> CaseFacts:
    load, image = volume_loader(modality=None), images[0]
    volumes = [load(path) for path in images]
    loaded = volumes[0]
    check_affine(str(image), loaded.affine, loaded.shape[1:])
    for path, each in zip(images[1:], volumes[1:], strict=True):
        if each.shape != loaded.shape:
            raise ValueError(f"{path} is of {_by(each.shape[1:])} voxels, {image} of {_by(loaded.shape[1:])}")
        _check_grid(image, path, loaded, each)
    values = torch.cat([each.as_tensor() for each in volumes]).numpy()
    if is_picture(image) and (values == values[:1]).all():
        values = values[:1]  # grey, stored as colours
    if values.ndim != 4:
        raise ValueError(
            f"{image} must be a volume of three axes or a picture, got {list(values.shape[1:])}."
        )
    finite = np.isfinite(values)
    if not finite.all():
        raise ValueError(f"{image} has {int((~finite).sum())} voxels that are NaN or infinite")
    if is_picture(label):
        mask = read_numbers(label)
        if not is_picture(image):
            raise ValueError(f"{label} is a picture, {image} is a volume")
    else:
        found = load(label)
        mask = found[0].numpy()
        if found.shape[0] != 1:
            raise ValueError(f"{label} has {found.shape[0]} channels: classes that overlap are not known")
        check_affine(str(label), found.affine, found.shape[1:])
        _check_grid(image, label, loaded, found)
    if mask.shape != values.shape[1:]:
        raise ValueError(f"{label} is of {_by(mask.shape)} voxels, {image} of {_by(values.shape[1:])}")
    axes = _axes(loaded.affine.numpy())
    zooms = np.linalg.norm(loaded.affine.numpy()[:3, :3], axis=0)
    foreground = (mask != 0) & (mask != ignored)
    where = values[:, foreground] if foreground.any() else values.reshape(len(values), -1)
    step = max(1, where.shape[1] // MAX_SAMPLE_VOXELS)
    quantiles = np.percentile(where[:, ::step], QUANTILES, axis=1).T
    centre = ndimage.center_of_mass(foreground) if foreground.any() else ()
    return dataclasses.replace(
        facts,
        size=tuple(int(mask.shape[a]) for a in axes),
        spacing=tuple(round(float(zooms[a]), 5) for a in axes),
        channels=len(values),
        picture=is_picture(image),
        whole=bool((values == np.rint(values)).all()),
        low=_rounded(values.min(axis=(1, 2, 3))),
        high=_rounded(values.max(axis=(1, 2, 3))),
        zero=round(float((values == 0).all(axis=0).mean()), 4),
        quantiles=tuple(_rounded(each) for each in quantiles),
        mean=_rounded(values.mean(axis=(1, 2, 3), dtype=np.float64)),
        std=_rounded(values.std(axis=(1, 2, 3), dtype=np.float64)),
        values={value: found for value, found in _values(mask).items() if value != str(ignored)},
        largest=_largest(foreground),
        centre=tuple(round(float(centre[a]) / mask.shape[a], 3) for a in axes) if centre else (),
        lossy=label.suffix.lower() in LOSSY,
        names=segment_names(label),
        sha=_checksum(images) if image.is_file() else "",
        warnings=tuple(loaded.meta.get("warnings", ())),
    )


def _check_grid(image: Path, other: Path, loaded: MetaTensor, found: MetaTensor) -> None:
    if loaded.shape[1:] != found.shape[1:]:
        return  # said with both sizes
    apart = greatest_distance(loaded, found)
    if apart > 0.5 * float(loaded.pixdim.min()):
        raise ValueError(f"{other} lies elsewhere than {image}: their affines put them {apart:.1f} mm apart")


def _values(mask: NDArray[Any]) -> dict[str, tuple[int, int, float]]:
    """Return value -> voxels, components, voxels of the median component; of many values voxels alone."""
    numbers, counts = np.unique(mask, return_counts=True)
    if (numbers != np.rint(numbers)).any():
        off = numbers[numbers != np.rint(numbers)]
        raise ValueError(f"the mask has values that are no whole numbers, such as {off[0]:g}")
    found = {}
    for value, count in zip(numbers.tolist(), counts.tolist(), strict=True):
        components, median = 1, float(count)
        if value and len(numbers) <= MAX_VALUES:
            components, median = _components(mask == value)
        found[str(int(value))] = (int(count), components, median)
    return found


def _components(mask: NDArray[np.bool_]) -> tuple[int, float]:
    """Return the number of components, which touch at corners as well, and the voxels of the median one."""
    sizes = _sizes(mask)
    return len(sizes), float(np.median(sizes))


def _sizes(mask: NDArray[np.bool_]) -> NDArray[Any]:
    """Return the voxels of each component of a mask that is not empty."""
    box = ndimage.find_objects(mask.astype(np.int8))[0]
    labelled, _ = ndimage.label(mask[box], np.ones((3,) * mask.ndim))
    return np.bincount(labelled.ravel())[1:]


def _largest(foreground: NDArray[np.bool_]) -> float:
    """Return the share of the foreground that is in its largest component."""
    if not foreground.any():
        return 1.0
    sizes = _sizes(foreground)
    return round(float(sizes.max() / sizes.sum()), 4)


def _axes(affine: NDArray[Any]) -> list[int]:
    """Return the axes of an array that run closest to left-right, back-front, feet-head."""
    ornt = nib.io_orientation(affine)[:, 0]  # type: ignore[no-untyped-call]
    return [int(np.flatnonzero(ornt == axis)[0]) for axis in range(3)]


def _rounded(values: Any) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in np.asarray(values).tolist())


def inside(root: Path, path: Path) -> str:
    """Return the path of a file in the data set, or its whole path if it lies elsewhere."""
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        return path.as_posix()


def _by(shape: Sequence[Any]) -> str:
    return " x ".join(map(str, shape))


def _checksum(paths: Sequence[Path]) -> str:
    found = hashlib.blake2b(digest_size=12)
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
    return found.hexdigest()
