# SPDX-License-Identifier: Apache-2.0
"""What trains best in a few minutes: several recipes on one fold of a planned bundle, for the same CPU time.

monai-unetpp plan Task04_Hippocampus --out hippocampus --hours 0.6
OMP_NUM_THREADS=1 python benchmarks/short_trainings.py --bundle hippocampus --minutes 8 \
    --recipes all grown --out benchmarks/results/short_trainings.csv

Each recipe takes the same patches, loss, optimizer and polynomial decay over its CPU time. The Dice is that
of the held-out cases of the fold, without postprocessing. Rows are appended.

--average_decay scores the moving average of the weights beside those of the last step, and --scored both
early in the training:

OMP_NUM_THREADS=1 python benchmarks/short_trainings.py --bundle hippocampus --minutes 22 \
    --recipes "U-Net^e, Muon, 0.01" --average_decay 0.998 --scored 0.3 0.5 0.7 0.85 1 \
    --out benchmarks/results/averaging.csv
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader
from monai.inferers import SlidingWindowInferer
from monai.metrics import DiceHelper
from monai.utils import set_determinism

from monai_unetpp import DeepSupervisionDiceLoss, Muon, UNetPlusPlus
from monai_unetpp.files import write_csv
from monai_unetpp.handlers import WeightAverage


@dataclass(frozen=True)
class Recipe:
    """A network and how its time is dealt out among levels.

    Args:
        grown: Shares of the time after which a level is added; empty for all levels from the start.
        narrowed: A level, and the share of the time after which deeper ones are no longer trained.
        drawn: Probability of each level to be the deepest one of a step, from L1 on.
        augmented: Whether patches are rotated, scaled and changed in contrast, as the bundle has it.
        network: Further arguments of the network.
        levels: Number of levels; default that of the bundle.
        muon: Whether kernels move by Muon instead of AdamW.
        rate: Learning rate of the first step.
        bfloat16: Whether steps are computed in mixed precision.
    """

    grown: tuple[float, ...] = ()
    narrowed: tuple[int, float] | None = None
    drawn: tuple[float, ...] = ()
    augmented: bool = True
    network: tuple[tuple[str, Any], ...] = ()
    levels: int | None = None
    muon: bool = False
    rate: float = 0.003
    bfloat16: bool = False


U_NET_E = (("skips", "long"),)
U_NET = (("skips", "long"), ("deep_supervision", False))
RECIPES = {
    "all": Recipe(),
    "all, not augmented": Recipe(augmented=False),
    "grown": Recipe(grown=(0.25, 0.6)),
    "grown late, not augmented": Recipe(grown=(0.3, 0.8), augmented=False),
    "two levels, grown": Recipe(grown=(0.35,), levels=2),
    "drawn": Recipe(drawn=(0.4, 0.4, 0.2)),
    "U-Net^e": Recipe(network=U_NET_E),
    "U-Net": Recipe(network=U_NET),
    "U-Net, not augmented": Recipe(network=U_NET, augmented=False),
    "U-Net, not augmented, Muon": Recipe(network=U_NET, augmented=False, muon=True),
    "grown, not augmented": Recipe(grown=(0.33, 0.67), augmented=False),
    "grown, not augmented, Muon": Recipe(grown=(0.33, 0.67), augmented=False, muon=True),
    "grown, Muon": Recipe(grown=(0.33, 0.67), muon=True),
    "grown, Muon, 0.01": Recipe(grown=(0.33, 0.67), muon=True, rate=0.01),
    "all, Muon, 0.01": Recipe(muon=True, rate=0.01),
    "U-Net^e, Muon, 0.01": Recipe(network=U_NET_E, muon=True, rate=0.01),
    "U-Net^e, Muon, 0.01, bfloat16": Recipe(network=U_NET_E, muon=True, rate=0.01, bfloat16=True),
    "U-Net^e, grown, Muon, 0.01": Recipe((0.33, 0.67), network=U_NET_E, muon=True, rate=0.01),
    "two levels, grown, Muon": Recipe(grown=(0.4,), levels=2, muon=True),
    "U-Net, Muon, 0.01": Recipe(network=U_NET, muon=True, rate=0.01),
    "U-Net of two levels, Muon, 0.01": Recipe(network=U_NET, levels=2, muon=True, rate=0.01),
    **{
        f"U-Net^e, narrowed to L{k}, Muon, 0.01": Recipe(
            narrowed=(k, 0.4), network=U_NET_E, muon=True, rate=0.01
        )
        for k in (1, 2)
    },
}


def train(
    net: UNetPlusPlus, recipe: Recipe, loader: Any, seconds: float, shares: Sequence[float], decay: float
) -> Iterator[tuple[float, int, UNetPlusPlus]]:
    """Train for the CPU time; yields at each share of it: the share, the number of steps, the average."""
    average, shares = WeightAverage(net, decay), sorted(shares)
    loss = DeepSupervisionDiceLoss(include_background=False, batch=True)
    kind: Any = Muon if recipe.muon else torch.optim.AdamW
    optimizer = kind(net.parameters(), lr=recipe.rate, weight_decay=1e-5)
    draw, begun, steps = np.random.default_rng(0), time.process_time(), 0
    net.train()
    while True:
        for batch in loader:
            share = (time.process_time() - begun) / seconds
            if share >= shares[0]:
                paused = time.process_time()
                yield shares.pop(0), steps, cast(UNetPlusPlus, average.network)
                if not shares:
                    return
                net.train()
                begun += time.process_time() - paused
            if recipe.grown:
                net.training_level = net.depth - sum(share < each for each in recipe.grown)
            if recipe.narrowed and share >= recipe.narrowed[1]:
                net.training_level = recipe.narrowed[0]
            if recipe.drawn:
                net.training_level = 1 + int(draw.choice(len(recipe.drawn), p=recipe.drawn))
            optimizer.param_groups[0]["lr"] = recipe.rate * (1 - share) ** 0.9
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
                heads = net(batch["image"].as_tensor())
                value = loss(heads, batch["label"].as_tensor())
            value.backward()
            optimizer.step()
            average.update()
            steps += 1


def score(net: UNetPlusPlus, cases: Any, roi_size: list[int]) -> dict[int, list[float]]:
    """Return level -> mean Dice by class over the held-out cases."""
    window, dice = (
        SlidingWindowInferer(roi_size, overlap=0.25),
        DiceHelper(include_background=False, softmax=True),
    )
    found: dict[int, list[list[float]]] = {level: [] for level in net.spec.levels}
    net.eval()
    for case in cases:
        for level in net.spec.levels:
            net.level = level
            with torch.inference_mode():
                logits = window(case["image"].as_tensor()[None], net)
            values, _ = dice(logits, case["label"].as_tensor()[None])
            found[level].append(values.flatten().tolist())
    return {level: np.nanmean(values, axis=0).tolist() for level, values in found.items()}


def main() -> None:
    """Train and score each recipe, and append a row per level."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True, help="bundle of monai-unetpp plan")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--minutes", type=float, default=8.0, help="CPU time of each training")
    parser.add_argument("--fold", type=int, default=0, help="of five")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--average_decay", type=float, help="of the average that is scored as well")
    parser.add_argument("--scored", type=float, nargs="+", default=[1.0], help="shares of the time, up to 1")
    parser.add_argument("--out", type=Path, required=True, help="CSV to append to")
    args = parser.parse_args()
    if not all(0 < share <= 1 for share in args.scored):
        parser.error(f"--scored must be shares above 0, up to 1, such as 0.5 1, got {args.scored}")
    for name in args.recipes:
        recipe = RECIPES[name]
        set_determinism(args.seed)
        config = ConfigParser()
        config.read_config(args.bundle / "train.json")
        config.update({"bundle_root": str(args.bundle), "folds": 5, "fold": args.fold})
        if not recipe.augmented:
            config["augmentation"] = []
        settings = dict(config["network_def"]) | dict(recipe.network)
        del settings["_target_"]
        for key in ("spatial_dims", "in_channels", "out_channels", "channels"):
            settings[key] = config[key]
        if recipe.levels is not None:
            settings["channels"] = settings["channels"][: recipe.levels + 1]
            for key, more in (("strides", 0), ("kernel_size", 1)):
                settings[key] = settings[key][: recipe.levels + more]
        net = UNetPlusPlus(**settings)
        cases = config.get_parsed_content("train#dataset")
        held_out = config.get_parsed_content("validate#dataset")
        loader, decay = DataLoader(cases, batch_size=1, shuffle=True), args.average_decay
        for share, steps, average in train(net, recipe, loader, 60 * args.minutes, args.scored, decay or 0):
            row = {
                "recipe": name,
                "patch": " ".join(map(str, config["roi_size"])),
                "learning rate": recipe.rate,
                "CPU minutes": args.minutes,
                "steps": steps,
                "fold": args.fold,
                "seed": args.seed,
            }
            scored = {"last step": net} if decay is None else {"last step": net, f"average {decay}": average}
            rows = []
            for weights, network in scored.items():
                kind = {} if decay is None else {"share": share, "weights": weights}
                for level, dice in score(network, held_out, config["roi_size"][: net.spatial_dims]).items():
                    values = {f"dice of class {n}": f"{value:.4f}" for n, value in enumerate(dice, start=1)}
                    rows.append({**row, **kind, "level": level, **values})
                    sys.stdout.write(f"{rows[-1]}\n")
            before = list(csv.DictReader(args.out.open(newline=""))) if args.out.is_file() else []
            write_csv(args.out, [*before, *rows])


if __name__ == "__main__":
    main()
