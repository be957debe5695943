# SPDX-License-Identifier: Apache-2.0
"""Whether the liver bundle's input pipeline keeps up with its training step.

python benchmarks/loader.py --out benchmarks/results/loader.csv
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch
from measure import machine
from monai.bundle import ConfigParser

from monai_unetpp.files import write_csv


def main() -> None:
    """Time the cache, the loader alone, the training step alone, and the wait for a batch between steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="bundles/liver/train.json")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()

    config = ConfigParser()
    config.read_config(args.config)
    start = time.perf_counter()
    dataset = config.get_parsed_content("train#dataset")
    cache = time.perf_counter() - start
    case_mib = sum(
        value.nbytes for case in dataset._cache for value in case.values() if torch.is_tensor(value)
    ) / (2**20 * len(dataset))
    loader = config.get_parsed_content("train#dataloader")
    network, loss = config.get_parsed_content("network").train(), config.get_parsed_content("loss")
    optimizer = config.get_parsed_content("optimizer")
    waits, steps = [], []
    for _ in range(args.epochs):
        ready = time.perf_counter()
        for batch in loader:
            got = time.perf_counter()
            waits.append(got - ready)
            optimizer.zero_grad()
            loss(network(batch["image"]), batch["label"]).backward()
            optimizer.step()
            ready = time.perf_counter()
            steps.append(ready - got)
    wait, step = statistics.median(waits), statistics.median(steps)
    row = {
        "cases": len(dataset),
        "seconds to cache a case": round(cache / len(dataset), 3),
        "MiB cached per case": round(case_mib, 2),
        "wait for a batch, s": round(wait, 4),
        "training step, s": round(step, 4),
        "share of time spent waiting": round(sum(waits) / (sum(waits) + sum(steps)), 3),
        "machine": machine(),
    }
    sys.stdout.write("\n".join(f"{key}: {value}" for key, value in row.items()) + "\n")
    write_csv(args.out, [row])


if __name__ == "__main__":
    main()
