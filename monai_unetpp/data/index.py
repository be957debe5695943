# SPDX-License-Identifier: Apache-2.0
"""``dataset.json``, of the Decathlon or of nnU-Net v2: classes, and the files that it names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.data import load_decathlon_datalist

from monai_unetpp.data.listing import list_files
from monai_unetpp.files import real_path
from monai_unetpp.readers import PICTURE_SUFFIXES
from monai_unetpp.readers.names import CHANNEL
from monai_unetpp.regions import check_writable

__all__ = [
    "check_inside",
    "check_names",
    "decathlon_cases",
    "index_ignored",
    "index_labels",
    "index_regions",
    "nnunet_cases",
    "read_index",
]

IGNORE = "ignore"  # nnU-Net's name for voxels that nobody annotated
Cases = list[tuple[str, list[Path], Path]]  # scan, files, mask


def read_index(index: Path) -> dict[str, Any]:
    """Return what ``dataset.json`` says.

    Raises:
        ValueError: if it is damaged.
    """
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError("it must hold an object")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{index} is not a data set of the Decathlon or of nnU-Net: {error}.") from error
    return content


def index_labels(index: Path, content: Mapping[str, Any]) -> dict[int, str]:
    """Return value -> name of the classes, of the Decathlon (value first) or of nnU-Net v2 (name first).

    Of regions it is their number, from 1 on, instead of the value; see :func:`index_regions`.

    Raises:
        ValueError: if they are neither, are regions that do not fit, or ``ignore`` does not.
    """
    labels = content.get("labels")
    if not isinstance(labels, dict) or not labels:
        raise ValueError(f"{index} is not a data set of the Decathlon or of nnU-Net: it has no labels.")
    index_ignored(index, content)
    if index_regions(index, content) is not None:
        return dict(enumerate(["background", *_regions(labels)]))
    try:
        if all(str(key).isdecimal() for key in labels):
            found = {int(key): str(name) for key, name in labels.items() if name != IGNORE}
        else:
            found = {int(value): str(name) for name, value in labels.items() if name != IGNORE}
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{index} is not a data set of the Decathlon or of nnU-Net: its labels are {labels}."
        ) from error
    return dict(sorted(found.items()))


def check_names(names: Sequence[str], source: object) -> None:
    """Check that no two classes share a name, by which scores are told apart.

    Args:
        names: Names of the classes, or of the regions, the background first.
        source: Where they are from, for the message.

    Raises:
        ValueError: if two do.
    """
    if twice := [name for n, name in enumerate(names) if name in names[:n]]:
        raise ValueError(
            f"classes of {source} must have different names, got {twice[0]!r} more than once in "
            f"{', '.join(names)}: scores are told apart by them."
        )


def index_ignored(index: Path, content: Mapping[str, Any]) -> int | None:
    """Return the value of voxels that nobody annotated, the label ``ignore``; ``None`` without it.

    The name is nnU-Net's; an index of the Decathlon, value first, may have it as well.

    Raises:
        ValueError: if it is not a whole number above those of all classes, as nnU-Net requires.
    """
    labels: dict[str, Any] = content["labels"]
    if IGNORE in labels.values() and all(key.isdecimal() for key in labels):
        labels = {str(name): int(value) for value, name in labels.items()}
    if IGNORE not in labels:
        return None
    ignored, others = labels[IGNORE], [value for name, value in labels.items() if name != IGNORE]
    values = [n for each in others for n in (each if isinstance(each, list) else [each])]
    if type(ignored) is not int or any(type(n) is int and n >= ignored for n in values):
        raise ValueError(
            f"{index}: the label {IGNORE} must be a whole number above those of all classes, got {ignored!r} "
            f"beside {', '.join(map(str, values))}."
        )
    return ignored


def index_regions(index: Path, content: Mapping[str, Any]) -> tuple[list[list[int]], list[int]] | None:
    """Return the values of each region, and the value that a mask gets in each, as nnU-Net v2 states them.

    Args:
        index: Path of the file, for messages.
        content: ``labels`` with the values of each region, such as ``"tumour": [1, 2]``, and
            ``regions_class_order``.

    Returns:
        Both lists in the order of ``labels``, without the background; ``None`` if there are no regions.

    Raises:
        ValueError: if the two do not fit, see :func:`~monai_unetpp.regions.check_writable`.
    """
    labels: dict[str, Any] = content["labels"]
    order: Any = content.get("regions_class_order")
    if order is None and not any(isinstance(value, list) for value in labels.values()):
        return None
    if labels.get("background") not in (0, [0]):
        raise ValueError(
            f"{index} has regions: its labels must have background 0, got {labels.get('background')!r}."
        )
    regions = _regions(labels)
    try:
        check_writable(list(regions.values()), order, list(regions))
    except ValueError as error:
        raise ValueError(f"{index} has regions: {error}") from error
    return list(regions.values()), list(order)


def _regions(labels: Mapping[str, Any]) -> dict[str, Any]:
    """Return name -> values of the regions in ``labels``."""
    named = {name: value for name, value in labels.items() if name not in ("background", IGNORE)}
    return {name: value if isinstance(value, list) else [value] for name, value in named.items()}


def decathlon_cases(index: Path) -> Cases:
    """Return what the Decathlon's ``dataset.json`` lists for training.

    Raises:
        ValueError: if it is damaged, or lacks an image or a label.
    """
    try:
        cases = load_decathlon_datalist(index, is_segmentation=True)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not a Decathlon data set: {error!r}.") from error
    if not cases:
        raise ValueError(f"{index} lists no training cases.")
    lacking = [case for case in cases if not all(isinstance(case.get(k), str) for k in ("image", "label"))]
    if lacking:
        raise ValueError(f"{index} must name an image and a label for every training case, got {lacking[0]}.")
    return [(_scan_of(case), [Path(case["image"])], Path(case["label"])) for case in cases]


def _scan_of(case: Mapping[str, Any]) -> str:
    """Return the name of the scan that a case is of, which may be a number such as 0; "" without one."""
    return "" if case.get("scan") is None else str(case["scan"])


def nnunet_cases(root: Path, content: Mapping[str, Any], channels: int) -> Cases:
    """Return the cases of nnU-Net: those that ``dataset.json`` lists, or those that lie in ``imagesTr``.

    Raises:
        ValueError: if it is damaged, or there is none.
    """
    index, ending = root / "dataset.json", str(content.get("file_ending", ".nii.gz"))
    listed = content.get("dataset")
    try:
        if listed is not None:
            return [
                (name, [root / path for path in case["images"]], root / case["label"])
                for name, case in listed.items()
            ]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is not a data set of nnU-Net: {error!r}.") from error
    stems = [
        path.name.removesuffix(ending) for path in list_files(root / "imagesTr") if path.name.endswith(ending)
    ]
    names = sorted({found["case"] for stem in stems if (found := CHANNEL.fullmatch(stem))})
    if not names:
        raise ValueError(
            f"{index} is of nnU-Net, but {root / 'imagesTr'} has no file like CASE_0000{ending}."
        )
    if ending.lower() in PICTURE_SUFFIXES and not (root / "imagesTr" / f"{names[0]}_0001{ending}").exists():
        channels = 1  # the channels are the colours of one picture
    return [
        (
            name if channels > 1 else "",
            [root / "imagesTr" / f"{name}_{n:04d}{ending}" for n in range(channels)],
            root / "labelsTr" / f"{name}{ending}",
        )
        for name in names
    ]


def check_inside(index: Path, paths: Sequence[Path]) -> None:
    """Raise if a data set names files outside of its folder, before any of them is opened."""
    home = real_path(index.parent)
    outside = [path for path in paths if not real_path(path).is_relative_to(home)]
    if outside:
        raise ValueError(
            f"{index} names {len(outside)} files outside of its folder, first {outside[0]}: move them into "
            "it, or, if you trust it, set allow_outside=True (plan --allow-outside; of a bundle "
            "--dataset#allow_outside True)."
        )
