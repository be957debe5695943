# SPDX-License-Identifier: Apache-2.0
"""Real data sets that fit in memory, and one way to train on each; shared by claims.py and depth_study.py.

nodules        100 cubes of CT around lung nodules (LIDC-IDRI), 3D
nuclei         430 microscopy images (Data Science Bowl 2018), 2D
liver_slices   465 axial CT slices (Medical Segmentation Decathlon), 2D, split by scan
lung_nodules   the cubes, and 626 tight boxes around nodules of other patients (nodule_boxes.py), 3D
hippocampus    200 crops of MR around the hippocampus (Medical Segmentation Decathlon), 3D, two classes
"""

from __future__ import annotations

import argparse
import re
import sys
import time
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
from monai.utils import set_determinism
from nodule_boxes import IGNORE, PREFIX
from PIL import Image
from torch import Tensor, nn

from monai_unetpp import DeepSupervisionDiceLoss
from monai_unetpp.data import read_dataset
from monai_unetpp.data.splits import scan_names
from monai_unetpp.files import atomic_write
from monai_unetpp.transforms import RandCropByPosNegAnnotatedd

HELD_OUT = 0.25
KEYS = ("image", "label")
PAPER = (32, 64, 128, 256, 512)
NODULES, PICTURES, HIPPOCAMPUS = (40, 40, 40), (128, 128), (40, 56, 40)
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
        channels: Widths, unless those of the paper are requested.
        epochs: Number of passes over the cases, one patch each.
        batch_size: Number of patches per step.
        classes: Number of classes, with the background.
        steps: Number of steps of a training to convergence, see ``study.py``.
        mirrored: Whether patches are mirrored and turned by right angles; otherwise rotated a little.
        loss: Additional arguments of the loss.
    """

    read: Callable[[Path], Cases]
    window: tuple[int, ...]
    crop: tuple[Any, ...]
    channels: tuple[int, ...]
    epochs: int
    batch_size: int
    classes: int = 2
    steps: int = 0
    mirrored: bool = True
    loss: Mapping[str, Any] = field(default_factory=dict)


def read_nodules(folder: Path) -> Cases:
    """Cubes of 51^3 voxels in HU, in the layout of the Decathlon; one per patient."""
    load = Compose(
        [
            LoadImaged(KEYS),
            EnsureChannelFirstd(KEYS),
            ScaleIntensityRanged("image", a_min=-1000, a_max=400, b_min=0, b_max=1, clip=True),
            ToTensord(KEYS, track_meta=False),
        ]
    )
    cases = read_dataset(folder, out_channels=2).cases
    return [_volume(load(case), Path(case["image"])) for case in cases]


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
    "epochs": 12,
    "batch_size": 4,
    "steps": 1500,
}
TASKS = {
    "nodules": Task(
        read_nodules,
        NODULES,
        # a nodule lies in the middle of its cube: without shifts the network learns the middle
        (RandSpatialCropd(KEYS, NODULES, random_size=False),),
        channels=(8, 16, 32, 64, 128),
        epochs=20,
        batch_size=2,
    ),
    "nuclei": Task(read_nuclei, **_OF_PICTURES),
    "liver_slices": Task(read_liver_slices, **_OF_PICTURES, mirrored=False),
    "lung_nodules": Task(
        read_lung_nodules,
        SMALL,
        _AROUND_NODULES,
        channels=(8, 16, 32, 64),
        epochs=4,
        batch_size=2,
        steps=2000,
        loss={"ignore_index": IGNORE},
    ),
    "hippocampus": Task(
        read_hippocampus,
        HIPPOCAMPUS,
        (RandSpatialCropd(KEYS, HIPPOCAMPUS, random_size=False),),
        channels=(8, 16, 32, 64),
        epochs=20,
        batch_size=1,
        classes=3,
        steps=2000,
        mirrored=False,
    ),
}


def study_arguments(description: str | None) -> argparse.ArgumentParser:
    """The arguments of a study: which data, where they are, where results go, how long to train."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", choices=TASKS)
    parser.add_argument("--dir", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--work", type=Path, required=True, help="folder for trained weights")
    parser.add_argument(
        "--out", type=Path, required=True, help="without suffix: .csv, .md and .png are written"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="default: what fits in an hour or two on two cores")
    parser.add_argument("--paper", action="store_true", help=f"the paper's widths, {PAPER}; requires a GPU")
    return parser


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


def train(net: nn.Module, task: Task, cases: Cases, epochs: int, seed: int, path: Path, **loss: Any) -> None:
    """Load the weights of ``net`` from ``path``, or train it on all heads and store them there.

    The random numbers of an epoch depend only on the seed and its number: an interrupted training resumes
    after its last complete epoch, with the same result.

    Args:
        net: Network, initialised with this seed.
        task: How to train.
        cases: Training cases.
        epochs: Number of epochs, over which the learning rate falls to zero.
        seed: Seed of the random numbers.
        path: File of the trained weights.
        **loss: Additional arguments of the loss.
    """
    if path.exists():
        net.load_state_dict(torch.load(path, weights_only=True))
        return
    begun, started, first = path.with_suffix(".part"), time.perf_counter(), 0
    criterion = DeepSupervisionDiceLoss(include_background=False, batch=True, **loss)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-5)
    steps = len(windows(task, cases, seed))
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, epochs * steps, power=0.9)
    parts = {"net": net, "optimizer": optimizer, "schedule": schedule}
    if begun.exists():
        state = torch.load(begun, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        first = state["epoch"]
    net.train()
    for epoch in range(first, epochs):
        set_determinism(1000 * seed + epoch)
        for batch in windows(task, cases, 1000 * seed + epoch):
            optimizer.zero_grad()
            criterion(net(batch["image"]), batch["label"]).backward()
            optimizer.step()
            schedule.step()
        with atomic_write(begun) as file:
            torch.save({name: p.state_dict() for name, p in parts.items()} | {"epoch": epoch + 1}, file)
    with atomic_write(path) as file:
        torch.save(net.state_dict(), file)
    begun.unlink()
    sys.stdout.write(f"{path.stem}: trained in {time.perf_counter() - started:.0f} s\n")
    sys.stdout.flush()
