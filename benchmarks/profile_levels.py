# SPDX-License-Identifier: Apache-2.0
"""Where the time of a level goes, by row of the triangle: why a shallow level takes more than its share.

python benchmarks/profile_levels.py --dims 2 --size 128 --out benchmarks/results/profile_levels_2d.csv
"""

from __future__ import annotations

import argparse
import copy
import re
import sys
import time
from collections import defaultdict
from functools import partial
from typing import Any

import torch
from measure import machine
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from monai_unetpp import UNetPlusPlus
from monai_unetpp.files import write_csv


class Clock:
    """Adds up the time between the entry and the exit of modules."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.work: dict[str, int] = {}

    def watch(self, name: str, module: nn.Module) -> None:
        """Time a module from now on."""
        started: list[float] = []
        module.register_forward_pre_hook(lambda _, __: started.append(time.perf_counter()))

        def stop(_: nn.Module, __: Any, ___: Any) -> None:
            self.seconds[name] += time.perf_counter() - started.pop()

        module.register_forward_hook(stop)


def main() -> None:
    """Write one row per row of the triangle: its share of the multiply-adds and of the time of L4."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dims", type=int, default=2)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--width", type=int, default=8, help="width of row 0; each row below has twice that")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()

    net = UNetPlusPlus(args.dims, 1, 2, [args.width * 2**i for i in range(5)], strides=2).eval()
    x = torch.rand(1, 1, *[args.size] * args.dims)
    work = _work(net, x)
    clock = Clock()
    for i, encoder in enumerate(net.encoder):
        clock.watch(str(i), encoder)
    for name, node in net.nodes.items():
        clock.watch(name.split("_")[1], node)
    forward = partial(net, x)
    with torch.inference_mode():
        for _ in range(5):
            forward()
        clock.seconds.clear()
        for _ in range(args.rounds):
            forward()
    total, everything = sum(clock.seconds.values()), sum(work.values())
    rows = [
        {
            "dims": args.dims,
            "row": i,
            "width": args.width * 2**i,
            "milliseconds": round(1e3 * clock.seconds[str(i)] / args.rounds, 3),
            "share of time": round(clock.seconds[str(i)] / total, 3),
            "share of multiply-adds": round(work[i] / everything, 3),
            "Gmultiply-adds per second": round(work[i] * args.rounds / clock.seconds[str(i)] / 1e9, 1),
            "machine": machine(),
        }
        for i in range(5)
    ]
    for row in rows:
        sys.stdout.write("  ".join(str(value) for value in list(row.values())[:-1]) + "\n")
    write_csv(args.out, rows)


def _work(net: UNetPlusPlus, x: Tensor) -> dict[int, int]:
    """Multiply-adds of the encoder and the nodes of each row, counted on the meta device."""
    twin = copy.deepcopy(net).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        twin(x.to("meta"))
    work: dict[int, int] = defaultdict(int)
    for name, counts in counter.get_flop_counts().items():
        found = re.fullmatch(r"UNetPlusPlus\.(?:encoder\.|nodes\.x_)(\d)(?:_\d)?", name)
        if found:
            work[int(found[1])] += sum(counts.values()) // 2
    return work


if __name__ == "__main__":
    main()
