# SPDX-License-Identifier: Apache-2.0
"""How cost grows: time and memory of a level, and with voxels, depth, width and classes.

python benchmarks/growth.py --out benchmarks/results/growth.csv
"""

from __future__ import annotations

import argparse
import statistics
import sys
from functools import partial
from typing import Any

import torch
from measure import inference, machine, peak_memory, train_step

from monai_unetpp import UNetPlusPlus
from monai_unetpp.files import write_csv
from monai_unetpp.levels.cost import interleaved, multiply_adds

WIDTHS = (32, 64, 128, 256, 512)
SERIES: dict[str, list[dict[str, Any]]] = {
    "level": [{"level": k} for k in (1, 2, 3, 4)],
    "voxels": [{"size": size} for size in (32, 48, 64, 80)],
    "depth": [{"channels": WIDTHS[: depth + 1]} for depth in (1, 2, 3, 4)],
    "width": [{"channels": tuple(w * n for w in (8, 16, 32, 64, 128))} for n in (1, 2, 4)],
    "classes": [{"out_channels": classes} for classes in (1, 2, 4, 16)],
}


def build(
    size: int = 48, level: int | None = None, channels: tuple[int, ...] = WIDTHS, out_channels: int = 2
) -> tuple[UNetPlusPlus, torch.Tensor]:
    """Return a 3D network and an input for it."""
    net = UNetPlusPlus(3, 1, out_channels, channels, strides=2)
    net.level = net.depth if level is None else level
    return net, torch.rand(1, 1, size, size, size)


def main() -> None:
    """Measure every series and write one row per network, size and task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", nargs="*", default=list(SERIES), choices=SERIES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()

    rows = []
    for series in args.series:
        built = {str(setting): build(**setting) for setting in SERIES[series]}
        for task in (inference,) if series == "level" else (inference, train_step):
            jobs = {name: partial(task, net, x) for name, (net, x) in built.items()}
            seconds = interleaved(jobs, args.rounds)
            for name, (net, x) in built.items():
                rows.append(
                    {
                        "series": series,
                        "task": task.__name__,
                        "setting": name,
                        "parameters": sum(p.numel() for p in net.parameters()),
                        "Gmultiply-adds": round(multiply_adds(net, x.shape) / 1e9, 2),
                        "seconds": round(statistics.median(seconds[name]), 4),
                        "peak MiB": round(peak_memory(jobs[name], "cpu"), 1),
                        "machine": machine(),
                    }
                )
                sys.stdout.write("  ".join(str(value) for value in list(rows[-1].values())[:-1]) + "\n")
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
