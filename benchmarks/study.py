# SPDX-License-Identifier: Apache-2.0
"""Which level of UNet++ beats which U-Net? A family of networks, trained until they learn no more.

All networks of a task get the same cases, patches, loss, optimizer (Muon), polynomial decay and number of
steps. A quarter of the scans is held out by name; nothing is selected on them: the last weights are scored.
The Dice of the deepest head on some of them is noted ten times on the way, to see whether it still rises.

The command may be killed and started again, and started several times at once, a process per core: each
trains a network that no other has locked, and appends its rows to OUT.csv (a row per network, head, seed and
held-out case) and OUT_curves.csv. What these files hold is not trained again. frontier.py makes the tables.

OMP_NUM_THREADS=1 python benchmarks/study.py hippocampus --dir Task04_Hippocampus --work WORK \
    --out benchmarks/results/study_hippocampus
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from family import Member, family
from filelock import FileLock, Timeout
from measure import machine
from monai.inferers import SlidingWindowInferer
from monai.metrics import DiceHelper
from monai.utils import set_determinism
from tasks import HELD_OUT, TASKS, Cases, Task, windows
from torch import Tensor, nn

from monai_unetpp import Muon, UNetPlusPlus
from monai_unetpp.data import split_cases
from monai_unetpp.files import atomic_write, read_csv, write_csv

RATE = 0.01  # learning rate of the first step
POINTS = 10  # of a curve
WATCHED = 25  # held-out cases of a curve


def train(
    net: nn.Module,
    task: Task,
    member: Member,
    data: tuple[Cases, Cases],
    seed: int,
    begun: Path,
    rate: float = RATE,
) -> Any:
    """Train to the last step, from the last epoch that is in the file ``begun`` on; return its notes.

    The random numbers of an epoch depend only on the seed and its number: a training that was interrupted
    ends as if it had not been.

    Returns:
        The CPU time of the steps, s, and rows of the curve: share of the steps, mean Dice.
    """
    learn, held_out = data
    loss = member.make_loss(len(task.channels) - 1, include_background=False, batch=True, **task.loss)
    optimizer = Muon([*net.parameters(), *loss.parameters()], lr=rate, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, task.steps, power=0.9)
    parts: dict[str, Any] = {"net": net, "optimizer": optimizer, "schedule": schedule}
    if member.learned:
        parts["loss"] = loss
    notes: dict[str, Any] = {"epoch": 0, "step": 0, "seconds": 0.0, "curve": []}
    if begun.exists():
        state = torch.load(begun, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        notes = state["notes"]
    while notes["step"] < task.steps:
        start = time.process_time()
        net.train()
        set_determinism(1000 * seed + notes["epoch"])
        for batch in windows(task, learn, 1000 * seed + notes["epoch"]):
            if notes["step"] == task.steps:
                break
            _set_level(net, member, notes["step"] / task.steps)
            if member.annealed:
                loss.given = [1 + (last - 1) * notes["step"] / task.steps for last in member.annealed]
            optimizer.zero_grad()
            loss(net(batch["image"]), batch["label"]).backward()
            optimizer.step()
            schedule.step()
            notes["step"] += 1
        notes["epoch"] += 1
        notes["seconds"] += time.process_time() - start
        if notes["step"] >= (len(notes["curve"]) + 1) / POINTS * task.steps:
            [dice] = score(net, task, held_out[:WATCHED], deepest=True).values()
            notes["curve"].append([notes["step"] / task.steps, _mean(dice)])
        with atomic_write(begun) as file:
            torch.save({name: p.state_dict() for name, p in parts.items()} | {"notes": notes}, file)
    _set_level(net, member, 1.0)
    return notes


def _set_level(net: nn.Module, member: Member, share: float) -> None:
    """Set the deepest level that is trained after a share of the steps."""
    if isinstance(net, UNetPlusPlus) and member.grown:
        net.training_level = net.depth - sum(share < each for each in member.grown)
    if isinstance(net, UNetPlusPlus) and member.narrowed:
        level, begun = member.narrowed
        net.level = net.training_level = level if share >= begun else net.depth


def score(net: nn.Module, task: Task, cases: Cases, deepest: bool = False) -> dict[str, list[list[float]]]:
    """Dice of each case by class, by the name of the head: a level, or "" for a network without levels.

    Slices of one scan are one case. Levels below that at which the training ended are left out.
    """
    window = SlidingWindowInferer(task.window, sw_batch_size=4, overlap=0.5, mode="gaussian")
    dice = DiceHelper(include_background=False, apply_argmax=True)
    compute: Any = net
    names = [""]
    if isinstance(net, UNetPlusPlus) and net.deep_supervision and not deepest:
        last = net.training_level
        compute, names = lambda x: net.all_heads(x)[-last:], [f"L{k}" for k in range(last, 0, -1)]
    found: dict[str, list[list[float]]] = {name: [] for name in names}
    net.eval()
    with torch.no_grad():
        for parts in by_case(cases).values():
            heads = [window(part["image"][None], compute) for part in parts]
            label = torch.cat([part["label"][None] for part in parts], -1)
            for name, *logits in zip(
                names, *([h] if isinstance(h, Tensor) else h for h in heads), strict=True
            ):
                found[name].append(dice(torch.cat(logits, -1), label)[0].flatten().tolist())
    return found


def by_case(cases: Cases) -> dict[str, Cases]:
    """Return what is scored together, by the name of the case."""
    found: dict[str, list[dict[str, Any]]] = {}
    for part in cases:
        found.setdefault(part["case"], []).append(part)
    return found


def rows_of(name: str, seed: int, cases: Cases, scores: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of the table: one per head and held-out case."""
    for head, values in scores.items():
        for case, dice in zip(by_case(cases), values, strict=True):
            classes = {f"dice of class {n}": f"{value:.4f}" for n, value in enumerate(dice, start=1)}
            yield {"network": name, "head": head, "seed": seed, "case": case, **classes}


def append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append the rows of a training to a CSV file that other processes append to."""
    new = {(row["network"], str(row["seed"])) for row in rows}
    with FileLock(path.with_suffix(".lock")):
        kept = [row for row in read(path) if (row["network"], row["seed"]) not in new]
        write_csv(path, [*kept, *rows])


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a table; none if it does not exist yet."""
    return read_csv(path) if path.is_file() else []


def _mean(values: Any) -> float:
    return float(torch.tensor(values).nanmean())


def main() -> None:
    """Train and score what is missing in the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", choices=TASKS)
    parser.add_argument("--dir", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--work", type=Path, required=True, help="folder for weights and trainings under way")
    parser.add_argument("--out", type=Path, required=True, help="without suffix: .csv and _curves.csv")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--networks", nargs="+", help="default: all of the family")
    parser.add_argument("--steps", type=int, help="with other --work and --out; default those of the task")
    parser.add_argument("--rate", type=float, default=RATE, help="with other --work and --out (%(default)s)")
    args = parser.parse_args()
    task = TASKS[args.data]
    task = replace(task, steps=args.steps or task.steps)
    members = family(len(task.channels) - 1)
    table, curves = args.out.with_suffix(".csv"), args.out.with_name(f"{args.out.name}_curves.csv")
    args.work.mkdir(parents=True, exist_ok=True)
    learn, held_out = split_cases(task.read(args.dir), HELD_OUT, seed=0)
    data = learn, [case for case in held_out if case.get("scored", True)]
    for seed, name in itertools.product(args.seeds, args.networks or members):
        slug = name.replace("+", "p").replace("^", "").replace(",", "").replace(" ", "_").lower()
        path = args.work / f"{args.data}_{slug}_{seed}.pt"
        try:
            with FileLock(path.with_suffix(".lock"), timeout=0):
                if any((row["network"], row["seed"]) == (name, str(seed)) for row in read(table)):
                    continue
                set_determinism(seed)
                net = members[name].make(len(task.window), task.classes, task.channels)
                notes = train(net, task, members[name], data, seed, path.with_suffix(".part"), args.rate)
                common = {
                    "network": name,
                    "seed": seed,
                    "CPU s": round(notes["seconds"]),
                    "machine": machine(),
                }
                curve = [
                    {**common, "share": round(share, 3), "dice": round(dice, 4)}
                    for share, dice in notes["curve"]
                ]
                scores = score(net, task, data[1])
                with atomic_write(path) as file:
                    torch.save(net.state_dict(), file)
                append(curves, curve)
                append(table, list(rows_of(name, seed, data[1], scores)))
                found = ", ".join(f"{head} {_mean(dice):.4f}".strip() for head, dice in scores.items())
                sys.stdout.write(f"{name}, seed {seed}: {found}; {notes['seconds']:.0f} s of CPU time\n")
                sys.stdout.flush()
        except Timeout:
            continue  # another process is at it


if __name__ == "__main__":
    main()
