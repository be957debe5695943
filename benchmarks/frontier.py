# SPDX-License-Identifier: Apache-2.0
"""The frontier of a study: Dice against the time of a window, every network and every level a point.

Reads OUT.csv and OUT_curves.csv of study.py. Times are measured here once, all networks in turn in one
process, which requires an idle machine, and kept in OUT_times.csv. OUT.md and OUT.png are written. A point is
dominated if another is at least as good in no more time. Compared are means over seeds, case by case, with
those of the best U-Net of any depth: the difference, its 95 % interval by bootstrap over cases, and p of the
hypothesis that it is worse by 0.005 or more.

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
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Point = tuple[str, str]  # a network, and a head or ""
Size = tuple[int, int]  # parameters, and multiply-adds of a window


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


def dice_by_case(rows: Sequence[Mapping[str, str]]) -> dict[Point, Any]:
    """Mean Dice over classes of each point, (seeds, cases)."""
    classes = [key for key in rows[0] if key.startswith("dice of class")]
    found: dict[Point, dict[str, list[float]]] = {}
    for row in rows:
        values = [float(row[key]) for key in classes]
        by_seed = found.setdefault((row["network"], row["head"]), {})
        by_seed.setdefault(row["seed"], []).append(float(np.nanmean(values)))
    return {point: np.array([by_seed[seed] for seed in sorted(by_seed)]) for point, by_seed in found.items()}


def compare(dice: Any, best: Any) -> tuple[float, float, float, float]:
    """Difference of the means over seeds, its interval, and p of being worse by the margin or more."""
    difference = dice.mean(0) - best.mean(0)
    if not difference.any():
        return 0.0, 0.0, 0.0, 0.0
    low, high = bootstrap((difference,), np.mean, rng=0, method="percentile").confidence_interval
    p = wilcoxon(difference + MARGIN, alternative="greater").pvalue
    return float(difference.mean()), float(low), float(high), float(p)


def training_time(curves: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """CPU time of the steps of each network, s, the median over seeds."""
    found: dict[str, dict[str, float]] = {}
    for row in curves:
        found.setdefault(row["network"], {})[row["seed"]] = float(row["CPU s"])
    return {name: statistics.median(by_seed.values()) for name, by_seed in found.items()}


def report(title: str, out: Path, times: Sequence[Mapping[str, Any]]) -> None:
    """Write the table and the figure."""
    dice, trained = dice_by_case(read(out.with_suffix(".csv"))), training_time(read(_beside(out, "curves")))
    cost = {(row["network"], row["head"]): row for row in times}
    points = [point for point in cost if point in dice]
    u_nets = [point for point in points if point[0].startswith("U-Net L")]
    best = max(u_nets, key=lambda point: dice[point].mean())
    took = {point: float(cost[point]["share, float32"]) for point in points}
    lines = [
        "| | Dice | less the best U-Net | worse by 0.005: p | parameters | training "
        "| window | in bfloat16 | dominated by |",
        f"|{' --- |' * 9}",
    ]
    for point in points:
        mean = f"{dice[point].mean():.4f}"
        if len(dice[point]) > 1:
            mean += f" ± {dice[point].mean(1).std(ddof=1):.4f}"
        gain, low, high, p = compare(dice[point], dice[best])
        better = [each for each in points if _dominates(each, point, dice, took)]
        by = _label(max(better, key=lambda each: dice[each].mean())) if better else ""
        row = cost[point]
        cells = [
            _label(point),
            mean,
            "the best" if point == best else f"{gain:+.4f} ({low:+.4f} to {high:+.4f})",
            "" if point == best else f"{p:.2g}",
            f"{int(row['parameters']):,}",
            f"{trained[point[0]] / trained[best[0]]:.2f}",
            f"{took[point] / took[best]:.2f}",
            f"{float(row['share, bfloat16']) / took[best]:.2f}",
            by,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    seeds, cases = dice[best].shape
    machines = ", ".join(sorted({row["machine"] for row in times}))
    lines += [
        "",
        f"Seeds: {seeds} (± standard deviation); held-out cases: {cases}; {machines}.",
        f"Times of training and window are shares of those of {_label(best)} ({trained[best[0]]:.0f} CPU s).",
    ]
    out.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _draw(title, points, dice, {point: took[point] / took[best] for point in points}, out.with_suffix(".png"))


def _beside(out: Path, kind: str) -> Path:
    return out.with_name(f"{out.name}_{kind}.csv")


def _dominates(one: Point, other: Point, dice: Mapping[Point, Any], took: Mapping[Point, float]) -> bool:
    better, faster = dice[one].mean() - dice[other].mean(), took[other] - took[one]
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
        means, at = [dice[point].mean() for point in of_series], [took[point] for point in of_series]
        ends = np.abs(np.array([[dice[p].mean(1).min(), dice[p].mean(1).max()] for p in of_series]).T - means)
        style: dict[str, Any] = {"color": f"C{n % 10}", "marker": "os^Dv"[n // 10 + n % 3], "markersize": 5}
        axes.errorbar(at, means, yerr=ends, label=name, linewidth=1.2, elinewidth=0.6, **style)
        for point, x, y in zip(of_series, at, means, strict=True):
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
    axes.set_ylabel("Dice of held-out cases" + ("; bars: seeds" if len(dice[points[0]]) > 1 else ""))
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
