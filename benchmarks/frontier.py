# SPDX-License-Identifier: Apache-2.0
"""The frontier of a study: Dice against the time of a window, every network and every level a point.

Reads OUT.csv and OUT_curves.csv of study.py. Times are measured here once, all networks in turn in one
process, which requires an idle machine, and kept in OUT_times.csv. OUT.md and OUT.png are written. A point is
dominated if another, of as many seeds, is at least as good in no more time. Compared are means over the seeds
that both have, case by case, with those of the best U-Net of any depth: the difference, its 95 % interval by
bootstrap over cases, and p of the hypothesis that it is worse by 0.005 or more. Whether a training was at its
end is told by its curve: how far the best Dice of its last fifth lies above the best before.

OMP_NUM_THREADS=1 python benchmarks/frontier.py hippocampus --out benchmarks/results/study_hippocampus
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from family import family
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from measure import inference, machine, ratio
from scipy.stats import bootstrap, wilcoxon
from study import read
from tasks import TASKS, Task

from monai_unetpp import UNetPlusPlus, prune
from monai_unetpp.files import write_csv
from monai_unetpp.levels.cost import interleaved, multiply_adds

MARGIN = 0.005  # of Dice within which a point is as good as the best U-Net
LATE = 0.8  # share of a training after which its Dice should no longer rise
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Point = tuple[str, str]  # a network, and a head or ""
Size = tuple[int, int]  # parameters, and multiply-adds of a window
BySeed = Mapping[str, Any]  # mean Dice over classes of each case, by seed


def measure(task: Task, names: Sequence[str], before: Sequence[Mapping[str, Any]], rounds: int) -> list[Any]:
    """Rows of OUT_times.csv: time of a window of every network and level; networks of one size share it.

    All are timed in turn, as they are compared by ratios, unless the rows ``before`` have each of the sizes.
    """
    members = family(len(task.channels) - 1)
    window = torch.rand(1, 1, *task.window)
    nets: dict[Point, torch.nn.Module] = {}
    for name in names:
        net = members[name].make(len(task.window), task.classes, task.channels)
        if isinstance(net, UNetPlusPlus) and net.deep_supervision:
            nets |= {(name, f"L{level}"): prune(net, level) for level in net.spec.levels}
        else:
            nets[name, ""] = net
    sizes = {
        point: (sum(p.numel() for p in net.parameters()), multiply_adds(net, window.shape))
        for point, net in nets.items()
    }
    known = {(int(row["parameters"]), int(row["multiply-adds"])): row for row in before}
    if not set(sizes.values()) <= set(known):
        known = _timed({sizes[point]: net for point, net in nets.items()}, window, rounds)
    return [{**known[size], "network": name, "head": head} for (name, head), size in sizes.items()]


def _timed(nets: Mapping[Size, torch.nn.Module], window: torch.Tensor, rounds: int) -> dict[Size, Any]:
    jobs = {
        (size, precision): partial(_cast, kind, net, window)
        for size, net in nets.items()
        for precision, kind in PRECISIONS.items()
    }
    seconds = interleaved(jobs, rounds)
    reference = next(iter(jobs))
    return {
        size: {
            "network": "",
            "head": "",
            "parameters": size[0],
            "multiply-adds": size[1],
            **{f"s, {each}": round(statistics.median(seconds[size, each]), 5) for each in PRECISIONS},
            **{f"share, {each}": round(ratio(seconds, (size, each), reference), 3) for each in PRECISIONS},
            "machine": machine(),
        }
        for size in nets
    }


def _cast(kind: torch.dtype, net: torch.nn.Module, window: torch.Tensor) -> None:
    with torch.autocast("cpu", kind, enabled=kind != torch.float32):
        inference(net, window)


def dice_by_case(rows: Sequence[Mapping[str, str]]) -> dict[Point, BySeed]:
    """Dice of each point."""
    classes = [key for key in rows[0] if key.startswith("dice of class")]
    found: dict[Point, dict[str, list[float]]] = {}
    for row in rows:
        values = [float(row[key]) for key in classes]
        by_seed = found.setdefault((row["network"], row["head"]), {})
        by_seed.setdefault(row["seed"], []).append(float(np.nanmean(values)))
    return {point: {n: np.array(each) for n, each in by_seed.items()} for point, by_seed in found.items()}


def means(dice: BySeed) -> list[float]:
    """Dice of each seed."""
    return [float(each.mean()) for each in dice.values()]


def difference(one: BySeed, other: BySeed) -> Any:
    """How much better one is, case by case, the mean over the seeds that both have."""
    both = sorted(one.keys() & other.keys())
    return np.mean([one[seed] - other[seed] for seed in both], axis=0)


def compare(dice: BySeed, best: BySeed) -> tuple[float, float, float, float]:
    """Mean of the difference, its interval, and p of being worse by the margin or more."""
    found = difference(dice, best)
    if not found.any():
        return 0.0, 0.0, 0.0, 0.0
    low, high = bootstrap((found,), np.mean, rng=0, method="percentile").confidence_interval
    p = wilcoxon(found + MARGIN, alternative="greater").pvalue
    return float(found.mean()), float(low), float(high), float(p)


def training_time(curves: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """CPU time of the steps of each network, s, the median over seeds."""
    found: dict[str, dict[str, float]] = {}
    for row in curves:
        found.setdefault(row["network"], {})[row["seed"]] = float(row["CPU s"])
    return {name: statistics.median(by_seed.values()) for name, by_seed in found.items()}


def late_rise(curves: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """How far the best Dice of the last fifth lies above the best before, the mean over seeds."""
    found: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for row in curves:
        parts = found.setdefault(row["network"], {}).setdefault(row["seed"], ([], []))
        parts[float(row["share"]) > LATE + 0.01].append(float(row["dice"]))  # an epoch may end a little later
    return {
        name: statistics.mean(max(late) - max(early) for early, late in by_seed.values())
        for name, by_seed in found.items()
    }


def report(title: str, out: Path, times: Sequence[Mapping[str, Any]]) -> None:
    """Write the table and the figure."""
    dice, curves = dice_by_case(read(out.with_suffix(".csv"))), read(_beside(out, "curves"))
    trained, rise = training_time(curves), late_rise(curves)
    cost = {(row["network"], row["head"]): row for row in times}
    points = [point for point in cost if point in dice]
    u_nets = [point for point in points if point[0].startswith("U-Net L")]
    best = max(u_nets, key=lambda point: statistics.mean(means(dice[point])))
    took = {point: float(cost[point]["share, float32"]) for point in points}
    lines = [
        "| | seeds | Dice | less the best U-Net | worse by 0.005: p | in the last fifth | parameters "
        "| training | window | in bfloat16 | dominated by |",
        f"|{' --- |' * 11}",
    ]
    for point in points:
        by_seed = means(dice[point])
        mean = f"{statistics.mean(by_seed):.4f}"
        if len(by_seed) > 1:
            mean += f" ± {statistics.stdev(by_seed):.4f}"
        gain, low, high, p = compare(dice[point], dice[best])
        better = [each for each in points if _dominates(each, point, dice, took)]
        by = max(better, key=lambda each: difference(dice[each], dice[point]).mean()) if better else ("", "")
        row = cost[point]
        cells = [
            _label(point),
            str(len(by_seed)),
            mean,
            "the best" if point == best else f"{gain:+.4f} ({low:+.4f} to {high:+.4f})",
            "" if point == best else f"{p:.2g}",
            f"{rise[point[0]]:+.4f}",
            f"{int(row['parameters']):,}",
            f"{trained[point[0]] / trained[best[0]]:.2f}",
            f"{took[point] / took[best]:.2f}",
            f"{float(row['share, bfloat16']) / took[best]:.2f}",
            _label(by),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    cases = len(next(iter(dice[best].values())))
    machines = ", ".join(sorted({row["machine"] for row in times}))
    lines += [
        "",
        f"± standard deviation over seeds; held-out cases: {cases}; {machines}.",
        "Differences are of the seeds that both have. In the last fifth of the training: how far the best",
        "Dice of the deepest head on some of the cases lies above the best before.",
        f"Times of training and window are shares of those of {_label(best)} ({trained[best[0]]:.0f} CPU s).",
    ]
    out.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _draw(title, points, dice, {point: took[point] / took[best] for point in points}, out.with_suffix(".png"))


def _beside(out: Path, kind: str) -> Path:
    return out.with_name(f"{out.name}_{kind}.csv")


def _dominates(one: Point, other: Point, dice: Mapping[Point, Any], took: Mapping[Point, float]) -> bool:
    if not dice[other].keys() <= dice[one].keys():  # fewer seeds do not dominate more
        return False
    better, faster = difference(dice[one], dice[other]).mean(), took[other] - took[one]
    return bool(min(better, faster) >= 0 and max(better, faster) > 0)


def _label(point: Point) -> str:
    return ": ".join(each for each in point if each)


def _draw(title: str, points: Sequence[Point], dice: Any, took: Mapping[Point, float], path: Path) -> None:
    figure = Figure(figsize=(7.6, 4.6), layout="constrained")
    axes = figure.add_subplot()
    series: dict[str, list[Point]] = {}
    labelled: set[tuple[str, float]] = set()
    for point in points:
        series.setdefault("U-Net" if point[0].startswith("U-Net L") else point[0], []).append(point)
    for n, (name, of_series) in enumerate(series.items()):
        of_series = sorted(of_series, key=lambda point: took[point])
        by_seed, at = [means(dice[point]) for point in of_series], [took[point] for point in of_series]
        middle = [statistics.mean(each) for each in by_seed]
        ends = np.abs(np.array([[min(each), max(each)] for each in by_seed]).T - middle)
        style: dict[str, Any] = {"color": f"C{n % 10}", "marker": "os^Dv"[n // 10 + n % 3], "markersize": 5}
        axes.errorbar(at, middle, yerr=ends, label=name, linewidth=1.2, elinewidth=0.6, **style)
        for point, x, y in zip(of_series, at, middle, strict=True):
            level = point[1] or (point[0][-2:] if point[0].startswith("U-Net L") else "")
            if (level, x) in labelled:  # by the level of another network that takes as long
                continue
            labelled.add((level, x))
            axes.annotate(level, (x, y), xytext=(4, -9), textcoords="offset points", fontsize=7)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xticks([each for each in (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6) if low < each < high])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("time of a window, share of the best U-Net's, float32")
    axes.set_ylabel(
        "Dice of held-out cases" + ("; bars: seeds" if any(len(each) > 1 for each in dice.values()) else "")
    )
    axes.set_title(title, loc="left", fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure what has no time yet, and write table and figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", choices=TASKS)
    parser.add_argument("--out", type=Path, required=True, help="that of study.py")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    rows = read(args.out.with_suffix(".csv"))
    path = _beside(args.out, "times")
    trained = {row["network"] for row in rows}
    names = [name for name in family(len(TASKS[args.data].channels) - 1) if name in trained]
    times: list[Any] = read(path)
    if {row["network"] for row in times} != trained:
        times = measure(TASKS[args.data], names, times, args.rounds)
        write_csv(path, times)
    report(args.data.replace("_", " "), args.out, times)
    sys.stdout.write(args.out.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
