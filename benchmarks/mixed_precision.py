# SPDX-License-Identifier: Apache-2.0
"""What bfloat16 gains on a CPU: time and memory of inference and of a training step, by kernels.

On a processor with AVX512_BF16 or AMX; on others torch emulates bfloat16.

OMP_NUM_THREADS=1 python benchmarks/mixed_precision.py --out benchmarks/results/mixed_precision.csv
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial

import torch
from measure import inference, machine, peak_memory, ratio, train_step
from monai.networks.nets import DynUNet
from torch import nn

from monai_unetpp import UNetPlusPlus
from monai_unetpp.files import write_csv
from monai_unetpp.levels.cost import interleaved
from monai_unetpp.network import kernels

WIDTHS = (16, 32, 64, 128)
SIZES = {3: (1, 1, 40, 56, 40), 2: (2, 1, 256, 256)}
JOBS = {"inference": inference, "training step": train_step}


def networks(dims: int) -> dict[str, nn.Module]:
    """Networks of three levels, of equal widths."""
    halves = [2] * (len(WIDTHS) - 1)
    return {
        "U-Net^e": UNetPlusPlus(dims, 1, 2, WIDTHS, strides=2, skips="long"),
        "UNet++": UNetPlusPlus(dims, 1, 2, WIDTHS, strides=2),
        "DynUNet": DynUNet(dims, 1, 2, [3] * len(WIDTHS), [1, *halves], halves, filters=WIDTHS),
    }


def run(job: str, net: nn.Module, size: tuple[int, ...], precision: str, choice: str) -> None:
    """One pass over a patch."""
    enabled = precision == "bfloat16"
    with kernels.use(choice), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        JOBS[job](net, torch.rand(size))


def main() -> None:
    """Time everything in turn, and write a row for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    rows = []
    for dims, size in SIZES.items():
        for job in JOBS:
            jobs = {
                (name, precision, choice): partial(run, job, net, size, precision, choice)
                for name, net in networks(dims).items()
                for precision in ("float32", "bfloat16")
                for choice in (("plain",) if name == "DynUNet" else ("auto", "plain"))
            }
            seconds = interleaved(jobs, args.rounds)
            for key, each in jobs.items():
                name, precision, choice = key
                reference = (name, "float32", "plain" if name == "DynUNet" else "auto")
                rows.append(
                    {
                        "task": job,
                        "size": " ".join(map(str, size)),
                        "network": name,
                        "precision": precision,
                        "kernels": choice,
                        "seconds": round(statistics.median(seconds[key]), 4),
                        "share of float32": round(ratio(seconds, key, reference), 3),
                        "peak MiB": round(peak_memory(each, "cpu"), 1),
                        "machine": machine(),
                    }
                )
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
