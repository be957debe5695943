# SPDX-License-Identifier: Apache-2.0
"""Training throughput of one process and of two, each with one thread, by DistributedDataParallel on gloo.

python benchmarks/processes.py --out benchmarks/results/processes.csv
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from measure import machine, train_step
from torch.nn.parallel import DistributedDataParallel

from monai_unetpp import UNetPlusPlus
from monai_unetpp.files import write_csv
from monai_unetpp.levels.cost import interleaved


def work(rank: int, processes: int, folder: str, size: int, rounds: int) -> None:
    """Train on volumes of this process, and write the median seconds of a step to ``folder``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet{processes}", rank=rank, world_size=processes)
    torch.manual_seed(rank)
    net = DistributedDataParallel(UNetPlusPlus(3, 1, 2, (32, 64, 128, 256), strides=2))
    x = torch.rand(1, 1, size, size, size)
    seconds = interleaved({"step": lambda: train_step(net, x)}, rounds)["step"]
    (Path(folder) / f"{processes}_{rank}").write_text(str(statistics.median(seconds)))
    dist.destroy_process_group()


def main() -> None:
    """Measure and write one row per number of processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for processes in (1, 2):
            mp.spawn(work, (processes, folder, args.size, args.rounds), nprocs=processes)
            slowest = max(float((Path(folder) / f"{processes}_{r}").read_text()) for r in range(processes))
            rows.append(
                {
                    "processes": processes,
                    "size": args.size,
                    "seconds per step": round(slowest, 3),
                    "volumes per second": round(processes / slowest, 3),
                    "machine": machine(),
                }
            )
            sys.stdout.write("  ".join(str(value) for value in list(rows[-1].values())[:-1]) + "\n")
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
