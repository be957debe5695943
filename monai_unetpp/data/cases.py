# SPDX-License-Identifier: Apache-2.0
"""Listing volumes: those of a Decathlon data set to train on, or files to segment.

A data set is checked as a whole before the first volume is loaded; a single volume is checked by
:class:`monai_unetpp.transforms.LoadImageAndLabeld`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from monai.data import load_decathlon_datalist

from monai_unetpp.files import PathLike, result_path
from monai_unetpp.readers import SUFFIXES, is_series
from monai_unetpp.readers.memory import check_cache

__all__ = ["DataSet", "data_folder", "list_volumes", "read_dataset", "read_labels"]

VOLUMES = (".nii", ".nii.gz", *SUFFIXES)


@dataclass(frozen=True)
class DataSet:
    """A data set to train on.

    Args:
        cases: One dictionary per case, with the paths of ``"image"`` and ``"label"``, and the name of the
            ``"scan"`` where several cases are cut out of one.
        labels: Names of the classes in the order of their values, the background first.
    """

    cases: list[dict[str, str]]
    labels: list[str]


def read_dataset(
    dataset_dir: PathLike | None,
    out_channels: int,
    pixdim: Sequence[float] | None = None,
    cache_rate: float = 0.0,
    allow_outside: bool = False,
) -> DataSet:
    """Read and check the index of a data set in the layout of the Medical Segmentation Decathlon.

    Args:
        dataset_dir: Folder with ``dataset.json``.
        out_channels: Channels of the network, as many as the data set has labels.
        pixdim: Spacing in mm to which the cached cases are resampled; by default memory is not checked.
        cache_rate: Share of the cases that is kept in memory, in [0, 1].
        allow_outside: Whether ``dataset.json`` may name files outside of its folder, by an absolute path,
            by ``..`` or through a link. Only for a file that you trust.

    Raises:
        ValueError: if ``dataset_dir`` is None; if ``dataset.json`` is damaged, has no training cases, a case
            without a label, files outside of its folder, or not ``out_channels`` labels; or if the cases do
            not fit in memory.
        FileNotFoundError: if the folder has no ``dataset.json``, or a file that it names does not exist.
    """
    if dataset_dir is None:
        raise ValueError("dataset_dir must be given: --dataset_dir FOLDER. " + _LAYOUT)
    index = Path(dataset_dir) / "dataset.json"
    if not index.is_file():
        raise FileNotFoundError(
            f"dataset_dir has no dataset.json: {index.parent.absolute()}. {_LAYOUT} To try it on synthetic "
            f"CT: monai-unetpp phantom --kind liver --out {index.parent} (or --kind chest)."
        )
    names = _index_labels(index)
    try:
        cases = load_decathlon_datalist(index, is_segmentation=True)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not a Decathlon data set: {error!r}.") from error
    if not cases:
        raise ValueError(f"{index} lists no training cases.")
    lacking = [case for case in cases if not all(isinstance(case.get(k), str) for k in ("image", "label"))]
    if lacking:
        raise ValueError(f"{index} must name an image and a label for every training case, got {lacking[0]}.")
    if not allow_outside:
        _check_inside(index, cases)
    missing = [case[k] for case in cases for k in ("image", "label") if not Path(case[k]).exists()]
    if missing:
        raise FileNotFoundError(f"{index} names {len(missing)} files that do not exist, first {missing[0]}.")
    if len(names) != out_channels:
        raise ValueError(
            f"out_channels must be {len(names)} for the labels {', '.join(names)} of {index}, "
            f"got {out_channels}: --out_channels {len(names)}."
        )
    if pixdim is not None:
        check_cache(cases, pixdim, cache_rate)
    return DataSet(cases, names)


def read_labels(dataset_dir: PathLike, otherwise: Sequence[str]) -> list[str]:
    """Return the names of the classes of a Decathlon data set, or ``otherwise`` where there is none.

    Args:
        dataset_dir: Folder, with or without ``dataset.json``.
        otherwise: Names for the cases of a host, such as MONAI Label, which has no ``dataset.json``.

    Raises:
        ValueError: if ``dataset.json`` is damaged.
    """
    index = Path(dataset_dir) / "dataset.json"
    return _index_labels(index) if index.is_file() else list(otherwise)


def _index_labels(index: Path) -> list[str]:
    try:
        labels = json.loads(index.read_text())["labels"]
        return [labels[str(value)] for value in range(len(labels))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not a Decathlon data set: {error!r}.") from error


def data_folder(cases: Sequence[dict[str, str]], dataset_dir: PathLike) -> Path:
    """Return ``dataset_dir`` if the images of all cases lie in it, else the folder that holds them all.

    A host such as MONAI Label trains on cases of its own, whatever ``dataset_dir`` says.
    """
    images = [Path(case["image"]).absolute() for case in cases]
    if not images or all(image.is_relative_to(Path(dataset_dir).absolute()) for image in images):
        return Path(dataset_dir)
    return Path(os.path.commonpath([image.parent for image in images]))


def _check_inside(index: Path, cases: Sequence[dict[str, str]]) -> None:
    """Raise if a data set names files outside of its folder, before any of them is opened."""
    home = _real(index.parent)
    paths = [case[k] for case in cases for k in ("image", "label")]
    outside = [path for path in paths if not _real(path).is_relative_to(home)]
    if outside:
        raise ValueError(
            f"{index} names {len(outside)} files outside of its folder, first {outside[0]}: move them into "
            "it, or, if you trust it, set allow_outside=True (--dataset#allow_outside True)."
        )


def _real(path: PathLike) -> Path:
    return Path(os.path.realpath(path))  # before Python 3.13 Path.resolve raises on a loop of links


def list_volumes(source: PathLike | Sequence[PathLike]) -> list[dict[str, str]]:
    """List the volumes to segment.

    Args:
        source: a file (NIfTI, NRRD, MetaImage), a folder with a DICOM series, a folder of such files and
            series at any depth (sorted, hidden ones left out), or a sequence of such.

    Returns:
        One dictionary per volume, with its path as ``"image"``.

    Raises:
        FileNotFoundError: if a file does not exist, or a folder holds no volume.
        ValueError: if a file is no volume, or the segmentations of two would be one file.
    """
    root, sources = (source, [source]) if isinstance(source, (str, os.PathLike)) else (None, list(source))
    found: list[Path] = []
    for path in map(Path, sources):
        if path.is_dir():
            inside = _volumes_in(path)
            if not inside:
                raise FileNotFoundError(
                    f"{path.absolute()} holds no volume: {', '.join(VOLUMES)}, or a DICOM series."
                )
            found += inside
        elif not path.is_file():
            raise FileNotFoundError(f"{path.absolute()} does not exist; give a volume or a folder of them.")
        elif not path.name.lower().endswith(VOLUMES):
            raise ValueError(f"{path} is no volume: {', '.join(VOLUMES)}, or a folder with a DICOM series.")
        else:
            found.append(path)
    first: dict[Path, Path] = {}
    for path in found:
        name = result_path(path, "", root)
        if name in first:
            raise ValueError(f"{first[name]} and {path} would both be written as {name}: segment them apart.")
        first[name] = path
    return [{"image": str(path)} for path in found]


def _volumes_in(folder: Path) -> list[Path]:
    """The volumes in a folder at any depth: the folder itself if it holds a DICOM series, and files."""
    found = [folder] if is_series(folder) else []
    for path in sorted(path for path in folder.iterdir() if path.name[0] != "."):
        if path.is_symlink() and _real(folder).is_relative_to(_real(path)):
            continue  # back up: one would go round for ever
        if path.is_dir():
            found += _volumes_in(path)
        elif path.name.lower().endswith(VOLUMES):
            found.append(path)
    return found


_LAYOUT = (
    "It must hold a data set in Decathlon layout (dataset.json, imagesTr, labelsTr), such as Task03_Liver "
    "of http://medicaldecathlon.com."
)
