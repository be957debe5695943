# SPDX-License-Identifier: Apache-2.0
"""The layouts in which people keep a data set: Decathlon, nnU-Net v2, two folders of equal names.

A case of several files, one per channel, is named by the first of them, ``case_0000.nii.gz``: what loads it
finds ``case_0001.nii.gz`` and so on beside it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from monai_unetpp.data.index import (
    check_inside,
    decathlon_cases,
    index_ignored,
    index_labels,
    index_regions,
    nnunet_cases,
    read_index,
)
from monai_unetpp.data.listing import list_files
from monai_unetpp.files import PathLike
from monai_unetpp.readers.names import CHANNEL, other_channels, stem_of

__all__ = ["WANTED", "Layout", "find_layout"]

IMAGES = ("images", "imagesTr", "image", "img", "imgs", "scans", "volumes")
MASKS = ("labels", "labelsTr", "masks", "mask", "label", "annotations", "segmentations")

WANTED = (
    "It must hold a data set: dataset.json in the layout of the Decathlon (imagesTr, labelsTr) or of nnU-Net "
    "v2 (imagesTr/CASE_0000.nii.gz), such as Task03_Liver of http://medicaldecathlon.com, or two folders of "
    "equal names, such as images and labels."
)


@dataclass(frozen=True)
class Layout:
    """A data set as it lies in its folder; nothing of its images is read.

    Args:
        kind: ``"decathlon"``, ``"nnunet"`` or ``"folders"``.
        cases: One dictionary per case with the paths of ``"image"`` and ``"label"``, and the name of the
            ``"scan"`` where it is known.
        labels: Value of a class, or number of a region from 1 on, -> its name, where ``dataset.json`` says
            so; the background first.
        modality: Names of the channels, where ``dataset.json`` says so.
        channels: Files per case.
        problems: Path -> what is wrong there.
        regions: Values of each region and ``regions_class_order``, where ``dataset.json`` has regions.
        ignored: Value of voxels that nobody annotated, where ``dataset.json`` has one.
    """

    kind: str
    cases: list[dict[str, str]]
    labels: dict[int, str] = field(default_factory=dict)
    modality: list[str] = field(default_factory=list)
    channels: int = 1
    problems: dict[str, str] = field(default_factory=dict)
    regions: tuple[list[list[int]], list[int]] | None = None
    ignored: int | None = None


def find_layout(
    dataset_dir: PathLike,
    images: PathLike | None = None,
    masks: PathLike | None = None,
    scan: str | None = None,
    allow_outside: bool = False,
) -> Layout:
    """Find the cases of a data set.

    Args:
        dataset_dir: Folder of the data set.
        images: Folder of the images in it, or elsewhere; default ``images``, ``imagesTr`` or the like.
        masks: Folder of the masks, likewise.
        scan: Regular expression with a group ``scan`` that finds the scan in the name of a case: cases of one
            scan, or of one patient, are never divided between training and validation.
        allow_outside: Whether ``dataset.json`` may name files outside of its folder, by an absolute path,
            by ``..`` or through a link. Only for a file that you trust.

    Raises:
        FileNotFoundError: if the folder holds no data set.
        ValueError: if ``dataset.json`` is damaged, names files outside of its folder or a case without a
            label, or ``scan`` is no such expression.
    """
    root = Path(dataset_dir)
    index = root / "dataset.json"
    if images is None and masks is None and index.is_file():
        layout = _indexed(root, read_index(index), allow_outside)
    else:
        layout = _folders(root, images, masks)
    if scan is not None:
        layout.cases[:] = [{**case, "scan": _scan(case, _expression(scan))} for case in layout.cases]
    return layout


def _indexed(root: Path, content: Mapping[str, Any], allow_outside: bool) -> Layout:
    """Read the cases that ``dataset.json`` lists, or, of nnU-Net, those that lie beside it."""
    index = root / "dataset.json"
    decathlon = "channel_names" not in content  # which nnU-Net has
    names = content.get("modality" if decathlon else "channel_names", {})
    modality = [str(name) for name in (names.values() if isinstance(names, dict) else [])]
    layout = Layout(
        "decathlon" if decathlon else "nnunet",
        [],
        index_labels(index, content),
        modality,
        1 if decathlon else len(modality),
        regions=index_regions(index, content),
        ignored=index_ignored(index, content),
    )
    cases = decathlon_cases(index) if decathlon else nnunet_cases(root, content, layout.channels)
    if not allow_outside:
        check_inside(index, [path for _, files, mask in cases for path in (*files, mask)])
    for name, files, mask in cases:
        _add(layout, name, files, mask)
    return replace(layout, channels=max(len(files) for _, files, _ in cases))


def _add(layout: Layout, scan: str, files: Sequence[Path], mask: Path) -> None:
    """Add a case, or the files that it lacks to the problems."""
    if len(files) > 1 and all(path.exists() for path in files) and other_channels(files[0]) != [*files[1:]]:
        names = ", ".join(path.name for path in files)
        layout.problems[str(files[0])] = f"has channels that must be named CASE_0000, CASE_0001, ...: {names}"
        return
    for path in (*files, mask):
        if not path.exists():
            channel = f"channel {files.index(path)}" if path in files and len(files) > 1 else "image"
            layout.problems[str(path)] = (
                f"does not exist: {'mask' if path == mask else channel} of {files[0]}"
            )
    if all(path.exists() for path in (*files, mask)):
        layout.cases.append({"image": str(files[0]), "label": str(mask), **({"scan": scan} if scan else {})})


def _folders(root: Path, images: PathLike | None, masks: PathLike | None) -> Layout:
    """Match two folders by the names of their files."""
    if not root.is_dir():
        raise FileNotFoundError(_nothing(root))
    places = [_folder(root, given, names) for given, names in ((images, IMAGES), (masks, MASKS))]
    if places[0] is None or places[1] is None:
        raise FileNotFoundError(_nothing(root))
    files, labels = list_files(places[0]), list_files(places[1])
    by_stem: dict[str, list[Path]] = {}
    for path in labels:
        by_stem.setdefault(stem_of(path), []).append(path)
    layout = Layout("folders", [])
    groups: dict[str, list[Path]] = {}
    for path in files:
        stem = stem_of(path)
        found = CHANNEL.fullmatch(stem)
        several = found is not None and stem not in by_stem and found["case"] in by_stem
        groups.setdefault(found["case"] if several and found else stem, []).append(path)
    channels = {len(paths) for paths in groups.values()}
    layout = Layout("folders", [], channels=max(channels, default=1))
    for name, paths in groups.items():
        masks_of = by_stem.pop(name, [])
        stems = [stem_of(path) for path in paths]
        twice = next((path for n, path in enumerate(paths) if stems[n] in stems[:n]), None)
        if twice is not None:
            layout.problems[str(twice)] = f"has the name of another image: {paths[0]}"
        elif len(masks_of) > 1:
            layout.problems[str(masks_of[1])] = f"has the name of another mask: {masks_of[0]}"
        elif not masks_of:
            layout.problems[str(paths[0])] = f"has no mask: {places[1]} has no file of the name {name}"
        elif len(paths) < layout.channels:
            number = next(n for n in range(layout.channels) if f"{name}_{n:04d}" not in stems)
            layout.problems[str(paths[0])] = f"has no channel {number}: there is no {name}_{number:04d}"
        else:
            _add(layout, name if len(paths) > 1 else "", paths, masks_of[0])
    for paths in by_stem.values():
        layout.problems[str(paths[0])] = f"has no image: {places[0]} has no file of its name"
    return layout


def _nothing(root: Path) -> str:
    return (
        f"dataset_dir holds no data set: {root.absolute()}. {WANTED} To try it on synthetic CT: monai-unetpp "
        f"phantom --kind liver --out {root} (or --kind chest)."
    )


def _folder(root: Path, given: PathLike | None, names: Sequence[str]) -> Path | None:
    if given is not None:
        if not (root / given).is_dir():
            raise FileNotFoundError(f"{(root / given).absolute()} is no folder. {WANTED}")
        return root / given
    return next((root / name for name in names if (root / name).is_dir()), None)


def _expression(scan: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(scan)
    except re.error as error:
        raise ValueError(f"scan must be a regular expression, got {scan!r}: {error}.") from error
    if "scan" not in pattern.groupindex:
        raise ValueError(f"scan must have the group (?P<scan>...), got {scan!r}.")
    return pattern


def _scan(case: Mapping[str, str], pattern: re.Pattern[str]) -> str:
    found = pattern.search(stem_of(case["image"]))
    if found is None or not found["scan"]:  # an empty group would make one scan of all such cases
        raise ValueError(
            f"scan must fit the name of every case, {pattern.pattern!r} does not fit {case['image']}"
            f"{', in which its group scan is empty' if found else ''}."
        )
    return found["scan"]
