# SPDX-License-Identifier: Apache-2.0
"""Early exit compared with the deepest level everywhere: time, Dice, and where windows stopped, by volume.

"everywhere" computes all windows at the deepest level; "deepest" does the same, but computes windows of a
single value once, as ``VolumeInferer`` always does; "early exit" adds early exit. Speeds are relative to
"everywhere".

It also measures the cost where no window stops (``never``, a threshold next to 0), and whether the
uncertainty of a case predicts its error. Inferers take turns, round after round; times include the windows
and the way back to the file's grid, without reading and writing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from monai.metrics import compute_dice
from scipy.stats import spearmanr

from monai_unetpp import VolumeInferer
from monai_unetpp.files import write_csv
from monai_unetpp.inferers import EarlyExitInferer, early_exit_like, volume
from monai_unetpp.levels import read_calibration
from monai_unetpp.readers import volume_loader
from monai_unetpp.segment import load_pipeline

NEVER = 1e-9  # not 0, with which no window is looked at


def dice(found: Any, label: Any, classes: int) -> float:
    """Mean over the classes that the label has."""
    onehot = [
        torch.stack([torch.as_tensor(v) == c for c in range(1, classes)])[None].float()
        for v in (found, label)
    ]
    return float(compute_dice(*onehot, include_background=True).nanmean())


def main() -> None:
    """Parse arguments, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True, help="calibrated weights")
    parser.add_argument("--images", type=Path, nargs="+", required=True)
    parser.add_argument(
        "--labels", type=Path, nargs="*", default=[], help="labels of the images, in the same order"
    )
    parser.add_argument("--foreground", type=int, help="value of the labels that becomes class 1")
    parser.add_argument("--threshold", type=float, help="default: the calibrated one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--overlays", nargs="*", default=[], help="JSONs merged over inference.json")
    parser.add_argument("--out", type=Path, required=True, help="CSV")
    args = parser.parse_args()
    threshold = args.threshold
    if threshold is None:
        threshold = read_calibration(args.checkpoint).exit.threshold
    settings = {"ckpt_path": str(args.checkpoint), "windows#overlap": args.overlap}
    pipeline = load_pipeline(args.bundle, args.images[0], "unused", args.overlays, **settings)
    windows = pipeline.inferer.inferer
    classes = pipeline.network.arguments["out_channels"]
    inferers = {
        "everywhere": windows,
        "deepest": windows,
        "early exit": early_exit_like(windows, threshold),
        "never": early_exit_like(windows, NEVER),
    }
    rows, uncertainties = [], []
    for n, path in enumerate(args.images):
        image = pipeline.preprocessing({"image": str(path)})["image"][None].to(pipeline.device)
        seconds: dict[str, list[float]] = {name: [] for name in inferers}
        found = {}
        for _ in range(args.rounds):
            for name, inferer in inferers.items():
                if isinstance(inferer, EarlyExitInferer):
                    inferer.reset()
                every = mock.patch.object(volume, "FlatOnce", lambda network: network)
                with every if name == "everywhere" else nullcontext():
                    started = time.perf_counter()
                    found[name] = VolumeInferer(inferer)(image, pipeline.network)[0, 0].as_tensor()
                    seconds[name].append(time.perf_counter() - started)
        label = volume_loader()(args.labels[n])[0].as_tensor() if args.labels else found["deepest"]
        if args.foreground is not None:
            label = (label == args.foreground).byte()
        scores = {name: dice(labels, label, classes) for name, labels in found.items()}
        for name, inferer in inferers.items():
            ratios = [a / b for a, b in zip(seconds["everywhere"], seconds[name], strict=True)]
            rows.append(
                {
                    "image": path.name,
                    "inferer": name,
                    "threshold": threshold if name == "early exit" else 0,
                    "seconds": round(statistics.median(seconds[name]), 2),
                    "speed": round(statistics.median(ratios), 3),
                    "dice": round(scores[name], 4),
                    "loss": round(scores["everywhere"] - scores[name], 4),
                    "exits": " ".join(map(str, getattr(inferer, "exits", []))),
                }
            )
            print(rows[-1])  # noqa: T201
        if len(args.labels) > 3:
            result = VolumeInferer(windows).segment(image, pipeline.network, uncertainty=True)
            uncertainties.append(result.case_uncertainty)
    if uncertainties:
        wrong = [1 - row["dice"] for row in rows if row["inferer"] == "deepest"]
        rank = spearmanr(uncertainties, wrong, nan_policy="omit")
        print(f"uncertainty against 1 - Dice over {len(wrong)} cases: rank correlation {rank.statistic:.2f}")  # noqa: T201
        print(np.round(uncertainties, 4).tolist())  # noqa: T201
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
