# SPDX-License-Identifier: Apache-2.0
"""Finding the volumes to work on: a Decathlon data set to learn from, or files to segment.

Everything that can be wrong with a data set as a whole is said here, before the first volume is loaded;
what is wrong with one volume is said by :class:`monai_unetpp.transforms.LoadImageAndLabeld`.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
from monai.data import load_decathlon_datalist, partition_dataset

from monai_unetpp.data.phantoms.phantom import write_phantoms
from monai_unetpp.files import result_path
from monai_unetpp.readers import SUFFIXES, is_series
from monai_unetpp.readers.memory import check_cache

__all__ = ["DataSet", "list_volumes", "read_dataset", "split_cases"]

PathLike = str | os.PathLike[str]
VOLUMES = (".nii", ".nii.gz", *SUFFIXES)
PHANTOMS = 12

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataSet:
    """A data set to learn from.

    Args:
        cases: one dictionary per case, with the paths of ``"image"`` and ``"label"``; where several are of
            one scan, its name as ``"scan"``.
        labels: the names of the classes, in the order of their values; the background first.
    """

    cases: list[dict[str, str]]
    labels: list[str]


def read_dataset(
    dataset_dir: PathLike | None,
    out_channels: int,
    phantom_dir: PathLike | None = None,
    phantom: str = "liver",
    pixdim: Sequence[float] | None = None,
    cache_rate: float = 0.0,
    allow_outside: bool = False,
) -> DataSet:
    """Read what a data set in the layout of the Medical Segmentation Decathlon holds.

    Args:
        dataset_dir: the folder of ``dataset.json``.
        out_channels: channels of the network, which must be as many as the data set has labels.
        phantom_dir: the one folder in which phantoms are made if it holds no data set.
        phantom: which are made, ``"liver"`` or ``"chest"``.
        pixdim: spacing in mm at which a share ``cache_rate`` of the cases will be kept in memory.
        cache_rate: see :func:`~monai_unetpp.readers.memory.check_cache`.
        allow_outside: whether ``dataset.json`` may name files that are not in its folder, by an absolute
            path, by ``..``, or through a link that leads out: for one that you wrote, not for one that came
            from elsewhere.

    Raises:
        ValueError: if ``dataset_dir`` is not given, or ``dataset.json`` is damaged, names no training
            cases, or one without a label, or files outside of its folder, or has another number of labels
            than ``out_channels``; or if the cases do not fit in memory.
        FileNotFoundError: if the folder has no ``dataset.json``, or a file that it names does not exist.
    """
    if dataset_dir is None:
        raise ValueError("dataset_dir must be given: --dataset_dir FOLDER. " + _LAYOUT)
    index = Path(dataset_dir) / "dataset.json"
    if not index.is_file():
        if phantom_dir is None or Path(phantom_dir).resolve() != index.parent.resolve():
            raise FileNotFoundError(
                f"dataset_dir has no dataset.json: {index.parent.absolute()}. {_LAYOUT} To try things on "
                f"synthetic CT: python -m monai_unetpp phantom --kind {phantom} --out {index.parent}"
            )
        _make_phantoms(index, phantom)
    try:
        labels = json.loads(index.read_text())["labels"]
        cases = load_decathlon_datalist(index, is_segmentation=True)
        names = [labels[str(value)] for value in range(len(labels))]
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


def split_cases(
    cases: Sequence[dict[str, str]], val_fraction: float, seed: int
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Split cases into those to train on and those held back.

    Cases of one ``"scan"``, such as cubes cut out of it, stay together.

    Args:
        cases: as :func:`read_dataset` returns them.
        val_fraction: share that is held back, of the scans.
        seed: that alone decides which.

    Raises:
        ValueError: if ``val_fraction`` is not between 0 and 1.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction must be between 0 and 1, got {val_fraction!r}.")
    scans: dict[str, list[dict[str, str]]] = {}
    for case in cases:
        scans.setdefault(case.get("scan", case["image"]), []).append(case)
    ratios = [1 - val_fraction, val_fraction]
    train, held_back = partition_dataset(list(scans.values()), ratios, shuffle=True, seed=seed)
    return [case for scan in train for case in scan], [case for scan in held_back for case in scan]


def _check_inside(index: Path, cases: Sequence[dict[str, str]]) -> None:
    """Raise if a data set names files that are not in its folder, before any of them is looked at."""
    home = _real(index.parent)
    paths = [case[k] for case in cases for k in ("image", "label")]
    outside = [path for path in paths if not _real(path).is_relative_to(home)]
    if outside:
        raise ValueError(
            f"{index} names {len(outside)} files outside of its folder, first {outside[0]}: put them into "
            "it, or, if you trust it, allow that by allow_outside=True (--dataset#allow_outside True)."
        )


def _real(path: PathLike) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve raises where links go round, before Python 3.13


def _make_phantoms(index: Path, phantom: str) -> None:
    """Make the default data set; of several processes one does, and the others wait."""
    together = dist.is_available() and dist.is_initialized()
    if not together or dist.get_rank() == 0:
        logger.info(f"No data set given: making {PHANTOMS} synthetic CTs (phantoms) in {index.parent}.")
        write_phantoms(index.parent, phantom, cases=PHANTOMS, progress=True)
    while not index.is_file():  # no barrier: a process that starts late finds them made
        time.sleep(0.5)


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
