# SPDX-License-Identifier: Apache-2.0
"""What trains the lung nodule bundle best in a few minutes: one recipe, scored on held-out cubes.

OMP_NUM_THREADS=1 python benchmarks/nodule_recipes.py --name "cubes, Muon" --configs \
    bundles/lung_nodule/train.json bundles/lung_nodule/lidc.json --dataset_dir CUBES --cubes CUBES \
    --set channels "[8, 16, 32, 64]" --set optimizer#_target_ monai_unetpp.Muon \
    --out benchmarks/results/nodule_recipes.csv

The held-out cubes are those of the bundle's split with seed 0, whatever the data set is trained on: it goes
by the names of scans, so that boxes of other patients move none. The learning rate decays over the CPU time.
Rows are appended, one per level: the mean Dice by cube, false positives included.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.inferers import SlidingWindowInferer
from monai.metrics import DiceHelper
from monai.utils import set_determinism

from monai_unetpp.bundle import parse_value
from monai_unetpp.files import write_csv


def configured(configs: list[str], settings: dict[str, Any]) -> ConfigParser:
    """Return the merged JSONs of a bundle, with ``settings`` in place of theirs."""
    config = ConfigParser()
    config.read_config(configs)
    for key, value in settings.items():
        config[key] = value
    config.get_parsed_content("imports")
    return config


def train(config: ConfigParser, seconds: float, growth: list[float]) -> tuple[int, float]:
    """Train for the CPU time; returns the number of steps and the share of voxels that are annotated."""
    get = config.get_parsed_content
    net, loss, optimizer, loader = (get(key) for key in ("network", "loss", "optimizer", "train#dataloader"))
    ignored, begun, annotated = config["ignore_label"], time.process_time(), []
    net.train()
    while True:
        for batch in loader:
            share = (time.process_time() - begun) / seconds
            if share >= 1:
                return len(annotated), float(np.mean(annotated))
            net.training_level = net.depth - sum(share < each for each in growth)
            optimizer.param_groups[0]["lr"] = config["learning_rate"] * (1 - share) ** 0.9
            optimizer.zero_grad()
            label = batch["label"].as_tensor()
            loss(net(batch["image"].as_tensor()), label).backward()
            optimizer.step()
            annotated.append(1.0 if ignored is None else float((label != ignored).float().mean()))


def score(net: Any, cases: Any, roi_size: list[int]) -> dict[int, list[float]]:
    """Return level -> Dice by cube."""
    window = SlidingWindowInferer(roi_size, sw_batch_size=4, overlap=0.25, mode="gaussian")
    dice = DiceHelper(include_background=False, softmax=True)
    found: dict[int, list[float]] = {}
    net.eval()
    for level in net.spec.levels:
        net.level, found[level] = level, []
        for case in cases:
            with torch.inference_mode():
                logits = window(case["image"].as_tensor()[None], net)
            found[level].append(float(dice(logits, case["label"].as_tensor()[None])[0]))
    return found


def main() -> None:
    """Train and score one recipe, and append a row per level."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", required=True, help="of the recipe, for the table")
    parser.add_argument("--configs", nargs="+", required=True, help="train.json and its overlays")
    parser.add_argument("--dataset_dir", required=True, help="data set to train on")
    parser.add_argument("--cubes", required=True, help="data set with the cubes to score")
    parser.add_argument("--set", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"))
    parser.add_argument("--growth", nargs="+", type=float, default=[], help="shares of the time, see Growth")
    parser.add_argument("--minutes", type=float, default=8.0, help="CPU time of the training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path, help="file to write the trained weights to")
    parser.add_argument("--out", type=Path, required=True, help="CSV to append to")
    args = parser.parse_args()
    given = {key: parse_value(value) for key, value in args.set}
    common = {"split#seed": 0, "device": torch.device("cpu"), **given}
    config = configured(args.configs, {**common, "dataset_dir": args.dataset_dir, "seed": args.seed})
    scored = configured(args.configs[:1], {**common, "dataset_dir": args.cubes, "phantom_dir": None})
    cases = scored.get_parsed_content("validate#dataset")
    trained_on = {case["image"] for case in config.get_parsed_content("split")[0]}
    names = {Path(image).name for image in trained_on}
    if leaked := [
        case["image"] for case in scored.get_parsed_content("split")[1] if Path(case["image"]).name in names
    ]:
        raise ValueError(f"{len(leaked)} of the cubes to score are trained on, first {leaked[0]}.")
    config.get_parsed_content("train#dataset")  # cached before the clock starts
    set_determinism(args.seed)
    steps, annotated = train(config, 60 * args.minutes, args.growth)
    net = config.get_parsed_content("network")
    if args.weights is not None:
        torch.save(net.state_dict(), args.weights)
    rows = []
    for level, dice in score(net, cases, config["roi_size"]).items():
        row = {
            "recipe": args.name,
            "seed": args.seed,
            "CPU minutes": args.minutes,
            "steps": steps,
            "annotated": f"{annotated:.3f}",
            "level": level,
            "cubes": len(dice),
            "Dice by cube": f"{np.mean(dice):.4f}",
            "median": f"{np.median(dice):.4f}",
            "below 0.5": sum(value < 0.5 for value in dice),
        }
        rows.append(row)
        sys.stdout.write(f"{row}\n")
    before = list(csv.DictReader(args.out.open(newline=""))) if args.out.is_file() else []
    write_csv(args.out, [*before, *rows])


if __name__ == "__main__":
    main()
