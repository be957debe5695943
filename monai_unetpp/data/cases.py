# SPDX-License-Identifier: Apache-2.0
"""Listing volumes: those of a data set to train on, or files to segment.

A data set is checked as a whole before the first volume is loaded; a single volume is checked by
:class:`monai_unetpp.transforms.LoadImageAndLabeld`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from monai_unetpp.data.index import check_names, index_labels, read_index
from monai_unetpp.data.layouts import WANTED, Layout, find_layout
from monai_unetpp.data.listing import VOLUMES
from monai_unetpp.data.splits import scan_names
from monai_unetpp.files import PathLike, result_path
from monai_unetpp.readers import PICTURE_SUFFIXES, is_dicom, other_channels
from monai_unetpp.readers.dicom import Tree, find_scans, goes_back_up, say_aside
from monai_unetpp.readers.memory import check_cache
from monai_unetpp.readers.picture import read_raw
from monai_unetpp.regions import check_writable, region_values

__all__ = ["DataSet", "data_folder", "list_volumes", "read_dataset", "read_labels"]

logger = logging.getLogger(__name__)


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
    labels: Sequence[str] | None = None,
    images: PathLike | None = None,
    masks: PathLike | None = None,
    scan: str | None = None,
    skip: Sequence[str] = (),
    regions: list[list[int]] | None = None,
    regions_class_order: list[int] | None = None,
) -> DataSet:
    """Find the cases of a data set, and check that they are there.

    Args:
        dataset_dir: Folder of the data set, in one of the layouts that :func:`find_layout` knows.
        out_channels: Channels of the network, as many as the data set has labels, or regions.
        pixdim: Spacing in mm to which the cached cases are resampled; by default memory is not checked.
        cache_rate: Share of the cases that is kept in memory, in [0, 1].
        allow_outside: Whether ``dataset.json`` may name files outside of its folder, by an absolute path,
            by ``..`` or through a link. Only for a file that you trust.
        labels: Names of the classes in the order of their values, or of the regions, the background first;
            default those in ``dataset.json``.
        images: Folder of the images where there is no ``dataset.json``; see :func:`find_layout`.
        masks: Folder of the masks, likewise.
        scan: Regular expression that finds the scan in the name of a case, likewise.
        skip: Paths in ``dataset_dir`` of files that are not used, and neither is the case that they are of.
        regions: Values of the label maps in each region, for classes that overlap; where ``dataset.json`` has
            regions, those.
        regions_class_order: Value that a mask gets in each region, likewise.

    Raises:
        ValueError: if ``dataset_dir`` is None; if ``dataset.json`` is damaged, has no training cases, a case
            without a label, files outside of its folder, or not ``out_channels`` labels, or other regions; or
            if the cases do not fit in memory.
        FileNotFoundError: if the folder holds no data set, or a file that belongs to it does not exist.
    """
    if dataset_dir is None:
        raise ValueError(f"dataset_dir must be given: --dataset_dir FOLDER. {WANTED}")
    root = Path(os.path.normpath(dataset_dir))  # as MONAI makes the paths of a dataset.json
    layout = find_layout(root, images, masks, scan, allow_outside)
    left_out = {str(root / path) for path in skip}
    known = {*layout.problems, *(case[key] for case in layout.cases for key in ("image", "label"))}
    if not left_out <= known:
        raise ValueError(
            f"skip must be files of {root}, got {sorted(left_out - known)[0]}, which is none of them."
        )
    problems = {path: why for path, why in layout.problems.items() if path not in left_out}
    if problems:
        number, (first, why) = len(problems), next(iter(problems.items()))
        if layout.kind == "folders":
            raise FileNotFoundError(f"{root} has {number} files that do not fit, first {first}, which {why}.")
        raise FileNotFoundError(
            f"{root / 'dataset.json'} names {number} files that do not exist, first {first}."
        )
    cases = [case for case in layout.cases if left_out.isdisjoint((case["image"], case["label"]))]
    if not cases:
        raise ValueError(f"{root} has no training cases.")
    if any("scan" in case for case in cases):  # in all of them, or they do not make up a batch
        cases = [{**case, "scan": name} for case, name in zip(cases, scan_names(cases), strict=True)]
    check_writable(regions, regions_class_order)
    _check_regions(root, layout, regions, regions_class_order, labels is not None)
    if labels is not None:
        names = list(labels)
    elif regions is not None and layout.regions is None:
        names = _names_of_regions(root, layout.labels, regions)
    else:
        names = _names(root, layout.labels)
    place = root / "dataset.json" if layout.labels else root
    check_names(names, place)
    channels = len(names) - (regions is not None)  # the background is no region
    if channels != out_channels or (regions is not None and len(regions) != channels):
        what = "labels" if regions is None else f"regions {regions}"
        raise ValueError(
            f"out_channels must be {channels} for the {what} {', '.join(names)} of {place}, "
            f"got {out_channels}: --out_channels {channels}."
        )
    if pixdim is not None:
        check_cache(cases, pixdim, cache_rate)
    return DataSet(cases, names)


def _check_regions(
    root: Path, layout: Layout, regions: list[list[int]] | None, order: list[int] | None, named: bool
) -> None:
    """Raise if ``dataset.json`` has other regions; classes that are named may be all that is not 0."""
    if layout.regions is None or (named and regions is None):
        return
    if layout.regions != (regions, order):
        raise ValueError(
            f"regions and regions_class_order must be {layout.regions[0]} and {layout.regions[1]}, as in "
            f"{root / 'dataset.json'}, got {regions} and {order}: monai-unetpp plan takes them from there."
        )


def _names_of_regions(root: Path, labels: Mapping[int, str], regions: list[list[int]]) -> list[str]:
    """Return the background and names for regions, made from those of the classes that they consist of."""
    values = region_values(regions)
    if labels and values != list(labels):
        raise ValueError(
            f"regions must have all values of {root / 'dataset.json'} but 0, {', '.join(map(str, labels))}, "
            f"and no other, got {', '.join(map(str, values))} in {regions}."
        )
    return ["background", *("+".join(labels.get(v, str(v)) for v in each) for each in regions)]


def read_labels(dataset_dir: PathLike, otherwise: Sequence[str]) -> list[str]:
    """Return the names of the classes of a Decathlon data set, or ``otherwise`` where there is none.

    Args:
        dataset_dir: Folder, with or without ``dataset.json``.
        otherwise: Names for the cases of a host, such as MONAI Label, which has no ``dataset.json``.

    Raises:
        ValueError: if ``dataset.json`` is damaged.
    """
    index = Path(dataset_dir) / "dataset.json"
    if not index.is_file():
        return list(otherwise)
    return _names(Path(dataset_dir), index_labels(index, read_index(index)))


def _names(root: Path, labels: Mapping[int, str]) -> list[str]:
    """Return the names of the classes, whose values must be 0, 1, 2, ..."""
    if not labels:
        raise ValueError(f"{root} has no dataset.json that names its classes: labels must be given.")
    if list(labels) != list(range(len(labels))):
        raise ValueError(
            f"{root / 'dataset.json'} must have labels of the values 0..{len(labels) - 1}, got "
            f"{', '.join(map(str, labels))}: monai-unetpp plan takes them as they are."
        )
    return list(labels.values())


def data_folder(cases: Sequence[dict[str, str]], dataset_dir: PathLike) -> Path:
    """Return ``dataset_dir`` if the images of all cases lie in it, else the folder that holds them all.

    A host such as MONAI Label trains on cases of its own, whatever ``dataset_dir`` says.
    """
    images = [Path(case["image"]).absolute() for case in cases]
    if not images or all(image.is_relative_to(Path(dataset_dir).absolute()) for image in images):
        return Path(dataset_dir)
    return Path(os.path.commonpath([image.parent for image in images]))


def list_volumes(
    source: PathLike | Sequence[PathLike],
    channels: int = 1,
    pictures: bool = False,
    modality: str | None = None,
    series: Sequence[str] = (),
    divided: bool = True,
    quiet: bool = False,
) -> list[dict[str, str]]:
    """List the volumes to segment; log which DICOM series and files of a folder are passed over, and why.

    A folder that holds one DICOM volume stands for it. Of several, each has a name of its own,
    ``FOLDER/series-3-1f0a92bc``, which is read like a path (:mod:`monai_unetpp.readers.dicom.tree`).
    Localizers, reports and pictures are no volumes. Where a study has others, neither are single images, key
    images, projections, CT that is not in HU, and CT in another direction than axial.

    Args:
        source: a file (NIfTI, NRRD, MetaImage), a folder with DICOM series, a folder of such files and
            series at any depth (sorted, hidden ones left out), or a sequence of such.
        channels: Channels of the network. With several, ``case_0000.nii.gz`` stands for a case whose other
            channels are ``case_0001.nii.gz`` and so on.
        pictures: Whether pictures (PNG, TIFF, JPEG, BMP) are what is segmented, instead of volumes.
        modality: Modality of DICOM series; by default any.
        series: UIDs of DICOM series, or patterns of their descriptions: a part of it, in which ``*`` stands
            for anything and ``?`` for one letter, in capitals or not. By default all that are volumes; with
            it, files that are no DICOM are left out.
        divided: Whether a series of several volumes, such as phases, is a volume for each; it is one, which
            cannot be read without the number of a phase, if not.
        quiet: Whether nothing is logged.

    Returns:
        One dictionary per volume, with its path as ``"image"``.

    Raises:
        FileNotFoundError: if a file does not exist, or a folder holds no volume.
        ValueError: if a file is no volume, the segmentations of two would be one file, or one of ``series``
            is none of those in a folder; it lists these.
    """
    root, sources = (source, [source]) if isinstance(source, (str, os.PathLike)) else (None, list(source))
    known = PICTURE_SUFFIXES if pictures else VOLUMES
    kind = ", ".join(known) + ("" if pictures else ", or a DICOM series")
    found: list[Path] = []
    for path in map(Path, sources):
        if path.is_dir():
            tree = Tree() if pictures else find_scans(path, modality, series, divided, VOLUMES)
            inside = [*_volumes_in(path, known if not series else (), tree)]
            if not inside:
                raise FileNotFoundError(
                    f"{path.absolute()} holds no {'picture' if pictures else 'volume'}: {kind}.{tree}"
                )
            if str(tree) and not quiet:
                logger.warning(f"{path} holds DICOM:{tree}")
            for folder, text in tree.aside.items():
                say_aside(folder, text, log=False)
            found += inside
        elif is_dicom(path) and not pictures:
            found.append(path)
        elif not path.is_file():
            raise FileNotFoundError(f"{path.absolute()} does not exist; give a volume or a folder of them.")
        elif not path.name.lower().endswith(known):
            wanted = kind if pictures else f"{', '.join(VOLUMES)}, or a folder with a DICOM series"
            raise ValueError(f"{path} is no {'picture' if pictures else 'volume'}: {wanted}.")
        else:
            found.append(path)
    if channels > 1:
        groups = [others for path in found if len(others := other_channels(path)) == channels - 1]
        several = [others for others in groups if not (pictures and _has_colours(others[0]))]
        of_others = {other for others in several for other in others}
        found = [path for path in found if path not in of_others]
    first: dict[Path, Path] = {}
    for path in found:
        name = result_path(path, "", root)
        if name in first:
            raise ValueError(f"{first[name]} and {path} would both be written as {name}: segment them apart.")
        first[name] = path
    return [{"image": str(path)} for path in found]


def _has_colours(path: Path) -> bool:
    """Whether a picture holds its channels itself: then its neighbours are others, not its channels."""
    return read_raw(path).ndim > 2


def _volumes_in(folder: Path, known: tuple[str, ...], tree: Tree) -> Iterator[Path]:
    """Yield the volumes in a folder at any depth: of each folder its DICOM series, then files and folders."""
    yield from (scan.path for scan in tree.scans if scan.folder == folder)
    for path in sorted(path for path in folder.iterdir() if path.name[0] != "."):
        if goes_back_up(folder, path):
            continue
        if path.is_dir():
            yield from _volumes_in(path, known, tree)
        elif path.name.lower().endswith(known):
            yield path
