# SPDX-License-Identifier: Apache-2.0
"""Real data sets that fit in memory, and one way to train on each; for study.py and frontier.py.

nuclei         430 microscopy images (Data Science Bowl 2018), 2D
liver_slices   465 axial CT slices (Medical Segmentation Decathlon), 2D, split by scan
lung_nodules   100 cubes of CT around lung nodules (LIDC-IDRI), and 626 tight boxes around nodules of other
               patients (nodule_boxes.py), 3D
hippocampus    200 crops of MR around the hippocampus (Medical Segmentation Decathlon), 3D, two classes
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import DataLoader, Dataset
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensityd,
    RandAdjustContrastd,
    RandAffined,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandRotate90d,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandSpatialCropd,
    ScaleIntensityd,
    ScaleIntensityRanged,
    Spacingd,
    SpatialPadd,
    ToTensord,
)
from nodule_boxes import IGNORE, PREFIX
from PIL import Image
from torch import Tensor, nn

from monai_unetpp.data import read_dataset
from monai_unetpp.data.splits import scan_names
from monai_unetpp.transforms import RandCropByPosNegAnnotatedd

HELD_OUT = 0.25
KEYS = ("image", "label")
PICTURES, HIPPOCAMPUS = (128, 128), (40, 56, 40)
SMALL, SHIFTED = (32, 32, 32), (48, 48, 48)
ROTATED: dict[str, Any] = {
    "rotate_range": [0.26] * 3,
    "scale_range": [0.15] * 3,
    "mode": ["bilinear", "nearest"],
    "padding_mode": "border",
}
Cases = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """A data set and how to train on it.

    Args:
        read: Function from its folder to cases: image and label as tensors (1, *spatial), and the name of
            their scan, all cases of which are held out, or none; and its own: what has the same is scored
            together. ``repeats`` of a case is the number of its patches per epoch, one by default; one with
            ``scored`` false is only trained on.
        window: Size of the training patch and of the sliding window, in voxels.
        crop: Transforms that cut one patch out of a case, at random.
        channels: Widths.
        batch_size: Number of patches per step.
        steps: Number of steps of a training.
        classes: Number of classes, with the background.
        mirrored: Whether patches are mirrored and turned by right angles; otherwise rotated a little.
        loss: Additional arguments of the loss.
    """

    read: Callable[[Path], Cases]
    window: tuple[int, ...]
    crop: tuple[Any, ...]
    channels: tuple[int, ...]
    batch_size: int
    steps: int
    classes: int = 2
    mirrored: bool = True
    loss: Mapping[str, Any] = field(default_factory=dict)


def read_lung_nodules(folder: Path) -> Cases:
    """Cubes, of which alone the scores are, and boxes, padded by what nobody annotated; voxels of 1 mm."""
    load = Compose(
        [
            LoadImaged(KEYS),
            EnsureChannelFirstd(KEYS),
            Spacingd(KEYS, (1, 1, 1), mode=("bilinear", "nearest")),
            ScaleIntensityRanged("image", a_min=-1000, a_max=400, b_min=0, b_max=1, clip=True),
            SpatialPadd("image", SHIFTED, mode="edge"),
            SpatialPadd("label", SHIFTED, value=IGNORE),
            ToTensord(KEYS, track_meta=False),
        ]
    )
    found, cases = read_dataset(folder, out_channels=2).cases, []
    for case, scan in zip(found, scan_names(found), strict=True):
        path = Path(case["image"])
        is_box = path.name.startswith(PREFIX)
        # about half of all patches are of cubes
        more = {"scan": scan, "scored": not is_box, "repeats": 1 if is_box else 6}
        cases.append(_volume(load(case), path) | more)
    return cases


def read_hippocampus(folder: Path) -> Cases:
    """Crops of about 35 x 50 x 36 voxels of 1 mm, normalised by case and padded to the window."""
    load = Compose(
        [
            LoadImaged(KEYS),
            EnsureChannelFirstd(KEYS),
            NormalizeIntensityd("image"),
            SpatialPadd(KEYS, HIPPOCAMPUS),
            ToTensord(KEYS, track_meta=False),
        ]
    )
    cases = read_dataset(folder, out_channels=3).cases
    return [_volume(load(case), Path(case["image"])) for case in cases]


def read_nuclei(folder: Path) -> Cases:
    """Pictures in grey, and maps of instances, of which only the foreground is used."""
    return [
        _picture(path, np.asarray(Image.open(folder / "labels" / path.name)) > 0, path.name)
        for path in sorted((folder / "images").glob("*.png"))
    ]


def read_liver_slices(folder: Path) -> Cases:
    """Slices of 256^2 at half of their size, all turned alike; the scan's number is in the file's name."""
    cases = []
    for path in sorted((folder / "images").glob("*.jpg")):
        mask = np.asarray(Image.open(folder / "masks" / path.name).convert("L")) > 127
        name = re.fullmatch(r"(flipped|mirrored)_(\d+)_\d+", path.stem)
        if name is None:
            raise ValueError(f"{path} must be named flipped_ or mirrored_<scan>_<slice>.jpg.")
        case = _picture(path, mask, name[2]) | {"case": name[2]}
        axis = 1 if name[1] == "flipped" else 2
        case["image"] = nn.functional.avg_pool2d(case["image"], 2).flip(axis)
        case["label"] = case["label"][:, ::2, ::2].flip(axis)
        cases.append(case)
    return cases


def _volume(loaded: Any, path: Path) -> dict[str, Any]:
    return {"image": loaded["image"], "label": loaded["label"], "scan": path.name, "case": path.name}


def _picture(path: Path, mask: Any, scan: str) -> dict[str, Any]:
    scale = Compose([SpatialPadd(KEYS, PICTURES), ScaleIntensityd("image")])
    grey = np.asarray(Image.open(path).convert("L"), dtype=np.float32)
    case = scale({"image": torch.tensor(grey)[None], "label": torch.tensor(mask).float()[None]})
    return {
        **{key: value.as_subclass(Tensor) for key, value in case.items()},
        "scan": scan,
        "case": path.name,
    }


# shifted within a larger patch: a nodule lies in the middle of its cube, which a network would learn
_AROUND_NODULES = (
    RandCropByPosNegAnnotatedd(
        KEYS, "label", SHIFTED, 3, 1, 1, image_key="image", image_threshold=0.36, ignore_label=IGNORE
    ),
    RandSpatialCropd(KEYS, SMALL, random_size=False),
)
_AROUND_LABELS = (RandCropByPosNegLabeld(KEYS, "label", PICTURES, pos=3, neg=1, num_samples=1),)
_OF_PICTURES: dict[str, Any] = {
    "window": PICTURES,
    "crop": _AROUND_LABELS,
    "channels": (8, 16, 32, 64, 128),
    "batch_size": 4,
    "steps": 1500,
}
TASKS = {
    "nuclei": Task(read_nuclei, **_OF_PICTURES),
    "liver_slices": Task(read_liver_slices, **_OF_PICTURES, mirrored=False),
    "lung_nodules": Task(
        read_lung_nodules,
        SMALL,
        _AROUND_NODULES,
        channels=(8, 16, 32, 64),
        batch_size=2,
        steps=2000,
        loss={"ignore_index": IGNORE},
    ),
    "hippocampus": Task(
        read_hippocampus,
        HIPPOCAMPUS,
        (RandSpatialCropd(KEYS, HIPPOCAMPUS, random_size=False),),
        channels=(8, 16, 32, 64),
        batch_size=1,
        classes=3,
        steps=2000,
        mirrored=False,
    ),
}


def windows(task: Task, cases: Cases, seed: int) -> DataLoader:
    """Batches of augmented patches."""
    dims = len(task.window)
    moved = (
        [
            *(RandFlipd(KEYS, prob=0.5, spatial_axis=axis) for axis in range(dims)),
            RandRotate90d(KEYS, prob=0.5),
        ]
        if task.mirrored
        else [RandAffined(KEYS, prob=0.3, **ROTATED)]
    )
    transform = Compose(
        [
            *task.crop,
            *moved,
            RandScaleIntensityd("image", factors=0.1, prob=0.5),
            RandShiftIntensityd("image", offsets=0.05, prob=0.5),
            RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5)),
        ]
    ).set_random_state(seed)
    cases = [case for case in cases for _ in range(case.get("repeats", 1))]
    return DataLoader(Dataset(cases, transform), batch_size=task.batch_size, shuffle=True, drop_last=True)
