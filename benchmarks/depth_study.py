# SPDX-License-Identifier: Apache-2.0
"""How deep? The whole family of U-Net and UNet++ on one data set: same cases, epochs, seeds and loss.

Is deeper better? Can one network use all depths? Are parameters better spent on width or on skips? Where
should supervision go? How much can be pruned? Every network is trained with every seed, and scored on the
same held-out cases with its last weights; nothing is selected on them.

The command may be killed and restarted, and started several times at once, one process per core: each process
trains networks that no other has locked. Trained weights are stored in --work. The last process to end writes
<out>.csv, one line per network, head, seed and held-out case, <out>.md and <out>.png.

python benchmarks/depth_study.py nuclei --dir dsb2018_nuclei --work WORK --out benchmarks/results/depth_nuclei
"""

from __future__ import annotations

import csv
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from matplotlib.figure import Figure
from measure import machine
from monai.inferers import SlidingWindowInferer
from monai.metrics import compute_dice, compute_iou
from monai.utils import set_determinism
from scipy.stats import wilcoxon
from tasks import HELD_OUT, PAPER, TASKS, Cases, Task, study_arguments, train
from torch import Tensor, nn

from monai_unetpp import UNetPlusPlus, prune
from monai_unetpp.data import split_cases
from monai_unetpp.files import write_csv
from monai_unetpp.levels.cost import multiply_adds

Make = Callable[[int, Sequence[int]], nn.Module]


@dataclass(frozen=True)
class Member:
    """A network of the family.

    Args:
        make: Function from the number of axes and the widths to a network.
        loss: Additional arguments of the loss.
    """

    make: Make
    loss: Mapping[str, Any] = field(default_factory=dict)


def unet(depth: int | None = None) -> Make:
    """U-Net L^depth, the deepest by default."""
    return lambda dims, widths: _network(
        dims, widths[: (depth or len(widths) - 1) + 1], skips="long", deep_supervision=False
    )


def wide_unet(dims: int, widths: Sequence[int]) -> nn.Module:
    """The U-Net that has as many parameters as the UNet++ of these widths."""
    wanted, low, high = _size(_network, dims, widths), 1.0, 2.0
    for _ in range(20):
        middle = (low + high) / 2
        if _size(unet(), dims, _scaled(widths, middle)) < wanted:
            low = middle
        else:
            high = middle
    return unet()(dims, _scaled(widths, low))


def plus(**settings: Any) -> Make:
    """A network with other skips, blocks or supervision than the UNet++."""
    return lambda dims, widths: _network(dims, widths, **settings)


class DecoderSupervised(nn.Module):
    """A U-Net with a head on every node of its decoder, as nnU-Net trains it, each at its own resolution.

    The heads' logits are upsampled, so that the same loss scores them.
    """

    def __init__(self, dims: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.net = unet()(dims, widths)
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        self.coarse = nn.ModuleList(conv(width, 2, 1) for width in widths[1:-1])
        self.mode = "bilinear" if dims == 2 else "trilinear"
        self.maps: dict[int, Tensor] = {}
        depth = len(widths) - 1
        for i in range(1, depth):
            node = self.net.nodes[f"x_{i}_{depth - i}"]
            node.register_forward_hook(lambda _node, _inputs, y, i=i: self.maps.update({i: y}))

    def forward(self, x: Tensor) -> Any:
        """The logits of all heads in training, finest first; those of the finest in evaluation."""
        logits = self.net(x)
        coarse = [
            nn.functional.interpolate(head(self.maps[i]), x.shape[2:], mode=self.mode)
            for i, head in enumerate(self.coarse, start=1)
        ]
        return [logits, *coarse] if self.training else logits


FAMILY = {
    **{f"U-Net L{k}": Member(unet(k)) for k in (1, 2, 3)},
    "U-Net": Member(unet()),
    "wide U-Net": Member(wide_unet),
    "U-Net, heads on the decoder": Member(DecoderSupervised, {"weights": "halving"}),
    "U-Net^e": Member(plus(skips="long")),
    "UNet+": Member(plus(skips="short", deep_supervision=False)),
    "UNet+, deep supervision": Member(plus(skips="short")),
    "UNet++": Member(plus(deep_supervision=False)),
    "UNet++, deep supervision": Member(plus()),
    "UNet++, deep supervision, halving": Member(plus(), {"weights": "halving"}),
    "UNet++ residual, deep supervision": Member(plus(block="residual")),
    "UNet++ dense, deep supervision": Member(plus(block="dense")),
}
KEPT = (
    "network",
    "head",
    "seed",
    "case",
    "dice",
    "iou",
)  # the columns that identify a row; many rows share the others
BASE = "U-Net"  # the network that the others are compared with, case by case


def _network(dims: int, widths: Sequence[int], **settings: Any) -> UNetPlusPlus:
    return UNetPlusPlus(dims, 1, 2, widths, strides=2, **settings)


def _scaled(widths: Sequence[int], by: float) -> list[int]:
    return [round(width * by) for width in widths]


def _size(make: Make, dims: int, widths: Sequence[int]) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in make(dims, widths).parameters())


def score(net: nn.Module, task: Task, cases: Cases) -> dict[str, list[tuple[float, float]]]:
    """Dice and IoU of each case, by the name of the head: "" is the result of evaluation, "L1" a level."""
    inferer = SlidingWindowInferer(task.window, sw_batch_size=4, overlap=0.5, mode="gaussian")
    levels = isinstance(net, UNetPlusPlus) and net.deep_supervision
    found: dict[str, list[tuple[float, float]]] = {}
    net.eval()
    with torch.no_grad():
        for case in cases:
            heads = inferer(case["image"][None], net.all_heads if levels else net)
            heads = list(heads) if isinstance(heads, tuple | list) else [heads]
            names = ["", *(f"L{k}" for k in range(len(heads), 0, -1))] if levels else [""]
            for name, logits in zip(names, heads[:1] + heads if levels else heads, strict=True):
                pred, label = logits.argmax(1, keepdim=True), case["label"][None] > 0
                pair = compute_dice(pred, label), compute_iou(pred, label)
                found.setdefault(name, []).append(tuple(float(value) for value in pair))
    return found


def run(name: str, task: Task, widths: Sequence[int], epochs: int, seed: int, data: Any, path: Path) -> None:
    """Train and score one network with one seed; store the scores beside its weights."""
    learn, held_out = data
    member = FAMILY[name]
    set_determinism(seed)
    net = member.make(len(task.window), widths)
    train(net, task, learn, epochs, seed, path.with_suffix(".pt"), **member.loss)
    plain = net.net if isinstance(net, DecoderSupervised) else net

    def costs(head: str) -> dict[str, int]:
        kept = prune(plain, int(head[1:]) if head else plain.depth)
        return {
            "parameters": sum(parameter.numel() for parameter in kept.parameters()),
            "multiply-adds": multiply_adds(kept, (1, 1, *task.window)),
        }

    rows = [
        {
            "network": name,
            "head": head,
            "seed": seed,
            "case": n,
            "scan": case["scan"],
            "dice": round(dice, 4),
            "iou": round(iou, 4),
            **costs(head),
            "epochs": epochs,
            "machine": machine(),
        }
        for head, scores in score(plain, task, held_out).items()
        for n, (case, (dice, iou)) in enumerate(zip(held_out, scores, strict=True))
    ]
    write_csv(path, rows)


def main() -> None:
    """Train the missing networks; when all are trained, write CSV, table and figure."""
    parser = study_arguments(__doc__)
    parser.add_argument("--family", nargs="+", default=list(FAMILY), choices=FAMILY, metavar="NETWORK")
    args = parser.parse_args()
    task = TASKS[args.data]
    widths, epochs = PAPER if args.paper else task.channels, args.epochs or task.epochs
    data = split_cases(task.read(args.dir), HELD_OUT, seed=0)
    jobs = {
        (seed, name): args.work / f"{args.data}_{widths[0]}_{epochs}_{_slug(name)}_{seed}.csv"
        for seed in range(args.seeds)
        for name in args.family
    }
    args.work.mkdir(parents=True, exist_ok=True)
    for (seed, name), path in jobs.items():
        try:
            with FileLock(path.with_suffix(".lock"), timeout=0):
                if not path.exists():
                    run(name, task, widths, epochs, seed, data, path)
        except Timeout:
            continue  # another process has locked it
    missing = [path.stem for path in jobs.values() if not path.exists()]
    if missing:
        sys.stdout.write(f"Another process is still at {', '.join(missing)}.\n")
        return
    rows = []
    for path in jobs.values():
        with path.open(newline="") as file:
            rows += list(csv.DictReader(file))
    write_csv(args.out.with_suffix(".csv"), [{key: row[key] for key in KEPT} for row in rows])
    report(args.data, rows, args.out)


def report(data: str, rows: Sequence[Mapping[str, str]], out: Path) -> None:
    """Write a table and a figure: IoU, mean and spread over seeds, and a paired test against the U-Net."""
    names = list(dict.fromkeys((row["network"], row["head"]) for row in rows))
    table = {name: _by_seed(rows, *name) for name in names}  # (seeds, cases)
    base = table.get((BASE, ""))
    lines = [
        "| | IoU | Dice | IoU less that of U-Net | p | parameters | multiply-adds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (network, head), iou in table.items():
        [first, *_] = [row for row in rows if (row["network"], row["head"]) == (network, head)]
        per_seed = iou.mean(axis=1)
        dice = _by_seed(rows, network, head, "dice").mean()
        gain, p = "", ""
        if base is not None and (network, head) != (BASE, ""):
            difference = iou.mean(axis=0) - base.mean(axis=0)
            gain = f"{100 * difference.mean():+.1f}"
            p = f"{wilcoxon(difference).pvalue:.2g}" if difference.any() else ""
        label = f"{network}: {head}" if head else f"**{network}**"
        lines.append(
            f"| {label} | {100 * per_seed.mean():.1f}{_spread(100 * per_seed)} | {dice:.3f} | {gain} | {p} | "
            f"{int(first['parameters']):,} | {int(first['multiply-adds']) / 1e9:.2f} G |"
        )
    seeds, cases = base.shape if base is not None else next(iter(table.values())).shape
    machines = ", ".join(sorted({row["machine"] for row in rows}))
    lines += ["", f"{rows[0]['epochs']} epochs, {seeds} seeds, {cases} held-out cases; {machines}."]
    out.with_suffix(".md").write_text("\n".join(lines) + "\n")
    chosen = [name for name in names if not name[1]]
    figure = Figure(figsize=(7.2, 0.36 * len(chosen) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    for n, name in enumerate(reversed(chosen)):
        values = 100 * table[name].mean(axis=1)
        axes.scatter(values, [n] * len(values), s=16, color="#4a7fb0", alpha=0.5, linewidth=0)
        axes.scatter([values.mean()], [n], s=44, color="#d1495b", zorder=3)
    axes.set_yticks(range(len(chosen)), [name for name, _ in reversed(chosen)])
    axes.set_xlabel("IoU on held-out cases, %: seeds, and their mean")
    axes.set_title(data, loc="left", fontsize="medium")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out.with_suffix(".png"), dpi=130)


def _by_seed(rows: Sequence[Mapping[str, str]], network: str, head: str, metric: str = "iou") -> Any:
    """Scores as (seeds, cases)."""
    chosen = [row for row in rows if (row["network"], row["head"]) == (network, head)]
    seeds = len({row["seed"] for row in chosen})
    return np.array([float(row[metric]) for row in chosen]).reshape(seeds, -1)


def _spread(values: Sequence[float]) -> str:
    return f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""


def _slug(name: str) -> str:
    return name.replace("+", "p").replace("^", "").replace(",", "").replace(" ", "_").lower()


if __name__ == "__main__":
    main()
