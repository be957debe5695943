# SPDX-License-Identifier: Apache-2.0
"""The claims of UNet++ about pruning, tried on real data: lung nodules in CT (3D), nuclei in microscopy (2D).

1. After one training with deep supervision, is a pruned level as good as the deepest, and at what share of
   the time?
2. Why not train the small network directly? L1, L2, ... trained alone, compared with the same levels of the
   full training: same cases, epochs and seeds.
3. Does the time of a level follow its multiply-adds?

A quarter of the cases is held out. Only the level is selected on it: the last weights are scored. Trained
weights are stored in --work and are not trained again.

python benchmarks/claims.py nodules --dir lidc_nodules --work WORK --out benchmarks/results/claims_nodules
python benchmarks/claims.py nuclei --dir dsb2018_nuclei --work WORK --out benchmarks/results/claims_nuclei
"""

from __future__ import annotations

import csv
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from measure import machine
from monai.data import DataLoader, Dataset
from monai.inferers import SlidingWindowInferer
from monai.utils import set_determinism
from tasks import HELD_OUT, PAPER, TASKS, study_arguments, train

from monai_unetpp import LevelScore, UNetPlusPlus, score_levels, select_level
from monai_unetpp.data import split_cases
from monai_unetpp.files import write_csv

TOLERANCE = 0.01


def rows(name: str, seed: int, way: str, scores: Sequence[LevelScore]) -> Iterator[dict[str, Any]]:
    """Lines of the CSV file, one per level."""
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
    """Train the missing networks, score all, and write CSV, table and figure."""
    args = study_arguments(__doc__).parse_args()

    task = TASKS[args.data]
    channels = PAPER if args.paper else task.channels
    epochs = args.epochs or task.epochs
    cases = task.read(args.dir)
    found: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        learn, held_out = split_cases(cases, HELD_OUT, seed)
        loader = DataLoader(Dataset(held_out), batch_size=1)
        for depth in range(len(channels) - 1, 0, -1):
            path = args.work / f"{args.data}_{channels[0]}_{epochs}_seed{seed}_L{depth}.pt"
            set_determinism(seed)
            net = UNetPlusPlus(len(task.window), 1, 2, channels[: depth + 1], strides=2)
            train(net, task, learn, epochs, seed, path)
            inferer = SlidingWindowInferer(task.window, sw_batch_size=4, overlap=0.5, mode="gaussian")
            scores = score_levels(net, loader, inferer, rounds=20, progress=False)
            full = depth == len(channels) - 1
            found += rows(args.data, seed, "in full" if full else "alone", scores if full else scores[-1:])
            for row in found[-len(scores if full else scores[-1:]) :]:
                sys.stdout.write("  ".join(str(value) for value in list(row.values())[:-1]) + "\n")
                sys.stdout.flush()
            if full:
                sys.stdout.write(f"seed {seed}: L{select_level(scores, TOLERANCE)} is within {TOLERANCE}\n")
        write_csv(
            args.out.with_suffix(".csv"), found
        )  # after every seed, so that an interruption loses nothing
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
    axes.set_ylabel("Dice, held-out cases")
    axes.set_title(
        f"{found[0]['data']}: small points are seeds, large ones their mean", loc="left", fontsize="medium"
    )
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out.with_suffix(".png"), dpi=130)


def _spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and standard deviation over the seeds."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.3f}{spread}"


if __name__ == "__main__":
    main()
