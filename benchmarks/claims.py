# SPDX-License-Identifier: Apache-2.0
"""The claims of UNet++ about pruning, tried on real data: lung nodules in CT (3D), nuclei in microscopy (2D).

1. After one training with deep supervision, is a pruned level as good as the deepest, and at what share of
   the time?
2. Why not train the small network directly? L1, L2, ... trained alone, beside the same levels of the full
   training: same cases, epochs and seeds.
3. Does the time of a level follow its multiply-adds?

A quarter of the cases is held back. Nothing is chosen on it but the level: the last weights are scored.
What is trained is kept in --work, and is not trained again.

python benchmarks/claims.py nodules --dir lidc_nodules --work WORK --out benchmarks/results/claims_nodules
python benchmarks/claims.py nuclei --dir dsb2018_nuclei --work WORK --out benchmarks/results/claims_nuclei
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from measure import machine
from monai.data import DataLoader, Dataset, partition_dataset
from monai.inferers import SlidingWindowInferer
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    RandAdjustContrastd,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandRotate90d,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandSpatialCropd,
    ScaleIntensityd,
    ScaleIntensityRanged,
    SpatialPadd,
    ToTensord,
)
from monai.utils import set_determinism
from PIL import Image
from torch import Tensor

from monai_unetpp import DeepSupervisionDiceLoss, LevelScore, UNetPlusPlus, score_levels, select_level
from monai_unetpp.data import read_dataset
from monai_unetpp.files import whole_file, write_csv

KEYS = ("image", "label")
PAPER = (32, 64, 128, 256, 512)
TOLERANCE = 0.01
Cases = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """A data set and how to learn from it.

    Args:
        read: from its folder to cases, image and label as tensors (1, *spatial).
        window: to train on and to slide.
        crop: transforms that cut one window out of a case, at random.
        channels: widths, unless those of the paper are asked for.
        epochs: passes over the cases, one window each.
        batch_size: windows per step.
    """

    read: Callable[[Path], Cases]
    window: tuple[int, ...]
    crop: tuple[Any, ...]
    channels: tuple[int, ...]
    epochs: int
    batch_size: int


def read_nodules(folder: Path) -> Cases:
    """Cubes of 51^3 voxels in HU, in the layout of the Decathlon."""
    load = Compose(
        [
            LoadImaged(KEYS),
            EnsureChannelFirstd(KEYS),
            ScaleIntensityRanged("image", a_min=-1000, a_max=400, b_min=0, b_max=1, clip=True),
            ToTensord(KEYS, track_meta=False),
        ]
    )
    return [load(case) for case in read_dataset(folder, out_channels=2).cases]


def read_nuclei(folder: Path) -> Cases:
    """Pictures in grey, and maps of instances, of which only the foreground is taken."""
    scale = Compose([SpatialPadd(KEYS, NUCLEI), ScaleIntensityd("image")])
    cases = []
    for path in sorted((folder / "images").glob("*.png")):
        grey = np.asarray(Image.open(path).convert("L"), dtype=np.float32)
        instances = np.asarray(Image.open(folder / "labels" / path.name))
        case = {"image": torch.tensor(grey)[None], "label": torch.tensor(instances > 0).float()[None]}
        cases.append({key: value.as_subclass(Tensor) for key, value in scale(case).items()})
    return cases


NODULES, NUCLEI = (40, 40, 40), (128, 128)
TASKS = {
    "nodules": Task(
        read_nodules,
        NODULES,
        # a nodule lies in the middle of its cube: shifted windows, or the network learns the middle
        (RandSpatialCropd(KEYS, NODULES, random_size=False),),
        channels=(8, 16, 32, 64, 128),
        epochs=20,
        batch_size=2,
    ),
    "nuclei": Task(
        read_nuclei,
        NUCLEI,
        (RandCropByPosNegLabeld(KEYS, "label", NUCLEI, pos=3, neg=1, num_samples=1),),
        channels=(8, 16, 32, 64, 128),
        epochs=12,
        batch_size=8,
    ),
}


def windows(task: Task, cases: Cases, seed: int) -> DataLoader:
    """Batches of augmented windows."""
    dims = len(task.window)
    transform = Compose(
        [
            *task.crop,
            *(RandFlipd(KEYS, prob=0.5, spatial_axis=axis) for axis in range(dims)),
            RandRotate90d(KEYS, prob=0.5),
            RandScaleIntensityd("image", factors=0.1, prob=0.5),
            RandShiftIntensityd("image", offsets=0.05, prob=0.5),
            RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5)),
        ]
    ).set_random_state(seed)
    return DataLoader(Dataset(cases, transform), batch_size=task.batch_size, shuffle=True, drop_last=True)


def train(net: UNetPlusPlus, task: Task, cases: Cases, epochs: int, seed: int) -> None:
    """Train on all heads; the learning rate falls to zero."""
    loader, loss = windows(task, cases, seed), DeepSupervisionDiceLoss(include_background=False, batch=True)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, epochs * len(loader), power=0.9)
    net.train()
    for _ in range(epochs):
        for batch in loader:
            optimizer.zero_grad()
            loss(net(batch["image"]), batch["label"]).backward()
            optimizer.step()
            schedule.step()


def trained(
    task: Task, channels: Sequence[int], cases: Cases, epochs: int, seed: int, path: Path
) -> UNetPlusPlus:
    """A network of these widths, from ``path``, or trained now and kept there."""
    set_determinism(seed)
    net = UNetPlusPlus(len(task.window), 1, 2, channels, strides=2)
    if path.exists():
        net.load_state_dict(torch.load(path, weights_only=True))
    else:
        start = time.perf_counter()
        train(net, task, cases, epochs, seed)
        with whole_file(path) as part:
            torch.save(net.state_dict(), part)
        sys.stdout.write(f"{path.stem}: trained in {time.perf_counter() - start:.0f} s\n")
    return net


def rows(name: str, seed: int, way: str, scores: Sequence[LevelScore]) -> Iterator[dict[str, Any]]:
    """One line of the CSV file per level."""
    for score in scores:
        yield {
            "data": name,
            "seed": seed,
            "level": score.level,
            "trained": way,
            "dice": round(score.dice, 4),
            "iou": round(score.iou, 4),
            "surface dice": round(score.surface_dice, 4),
            "cases": len(score.dice_per_case),
            "parameters": score.parameters,
            "multiply-adds": score.multiply_adds,
            "seconds": float(f"{score.seconds:.4g}"),
            "peak MiB": round(score.peak_mib, 1),
            "machine": machine(),
        }


def main() -> None:
    """Train what is not trained yet, score it, and write CSV, table and figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", choices=TASKS)
    parser.add_argument("--dir", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--work", type=Path, required=True, help="folder for trained weights")
    parser.add_argument(
        "--out", type=Path, required=True, help="without suffix: .csv, .md and .png are written"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="default: what fits in an hour on two cores")
    parser.add_argument("--paper", action="store_true", help=f"the paper's widths, {PAPER}; wants a GPU")
    args = parser.parse_args()

    task = TASKS[args.data]
    channels = PAPER if args.paper else task.channels
    epochs = args.epochs or task.epochs
    cases = task.read(args.dir)
    found: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        learn, held_back = partition_dataset(cases, ratios=[0.75, 0.25], shuffle=True, seed=seed)
        loader = DataLoader(Dataset(held_back), batch_size=1)
        for depth in range(len(channels) - 1, 0, -1):
            path = args.work / f"{args.data}_{channels[0]}_{epochs}_seed{seed}_L{depth}.pt"
            net = trained(task, channels[: depth + 1], learn, epochs, seed, path)
            inferer = SlidingWindowInferer(task.window, sw_batch_size=4, overlap=0.5, mode="gaussian")
            scores = score_levels(net, loader, inferer, rounds=20, progress=False)
            full = depth == len(channels) - 1
            found += rows(args.data, seed, "in full" if full else "alone", scores if full else scores[-1:])
            for row in found[-len(scores if full else scores[-1:]) :]:
                sys.stdout.write("  ".join(str(value) for value in list(row.values())[:-1]) + "\n")
                sys.stdout.flush()
            if full:
                sys.stdout.write(f"seed {seed}: L{select_level(scores, TOLERANCE)} is within {TOLERANCE}\n")
        write_csv(args.out.with_suffix(".csv"), found)  # after every seed: what is measured is kept
        report(args.out)


def report(out: Path) -> None:
    """Write table and figure from the CSV file."""
    with out.with_suffix(".csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    levels = sorted({int(row["level"]) for row in found})

    def column(name: str, level: int, way: str) -> list[float]:
        return [float(r[name]) for r in found if int(r["level"]) == level and r["trained"] == way]

    deepest = levels[-1]
    lines = [
        "| | Dice, pruned | Dice, trained alone | pruned less alone | parameters | multiply-adds | time |"
    ]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for k in levels:
        pruned, alone = column("dice", k, "in full"), column("dice", k, "alone")
        gain = [a - b for a, b in zip(pruned, alone, strict=False)]
        ratios = [
            statistics.median(
                a / b
                for a, b in zip(column(name, k, "in full"), column(name, deepest, "in full"), strict=True)
            )
            for name in ("multiply-adds", "seconds")
        ]
        parameters = column("parameters", k, "in full")[0]
        lines.append(
            f"| L{k} | {_spread(pruned)} | {_spread(alone)} | {_spread(gain, '+')} | {parameters:,.0f} | "
            f"{ratios[0]:.2f} | {ratios[1]:.2f} |"
        )
    out.with_suffix(".md").write_text("\n".join(lines) + "\n")
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for way, colour, shift in (("in full", "#d1495b", -0.06), ("alone", "#4a7fb0", 0.06)):
        chosen = [k for k in levels if column("dice", k, way)]
        mean = [statistics.mean(column("dice", k, way)) for k in chosen]
        label = {"in full": "pruned from the full training", "alone": "trained alone"}[way]
        axes.plot([k + shift for k in chosen], mean, "o-", color=colour, label=label)
        for k in chosen:
            values = column("dice", k, way)
            axes.scatter([k + shift] * len(values), values, s=14, color=colour, alpha=0.45, linewidth=0)
    axes.set_xticks(levels, [f"L{k}" for k in levels])
    axes.set_ylabel("Dice, cases held back")
    axes.set_title(
        f"{found[0]['data']}: small points are seeds, large ones their mean", loc="left", fontsize="medium"
    )
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out.with_suffix(".png"), dpi=130)


def _spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and standard deviation over seeds."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.3f}{spread}"


if __name__ == "__main__":
    main()
