# SPDX-License-Identifier: Apache-2.0
"""Kill a training at random moments, resume it each time, and compare its end with one that was left alone.

A third of the kills wait until a checkpoint is being written, a third come at any moment from the start of
the process on, a third while it trains. After each, every checkpoint on disk is read. At the end all of the
last checkpoint (weights, optimizer, scheduler, counts, random state) is compared bit for bit.

python benchmarks/faults/kill_resume.py --kills 20 --out benchmarks/results/kill_resume.csv
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from monai_unetpp.data.phantoms import write_phantoms
from monai_unetpp.files import write_csv
from monai_unetpp.weights import read_tensors

ROOT = Path(__file__).parents[2]
SMALL = {
    "channels": "[16,32,64,128]",
    "pixdim": "[8.0,8.0,8.0]",
    "roi_size": "[24,24,24]",
    "val_interval": "2",
    "network_def#dropout": "0.1",
    "num_workers": "0",
}


def start(root: Path, data: Path, epochs: int, log: Path, resume: bool) -> subprocess.Popen[bytes]:
    """Begin a training, or go on with it."""
    options = SMALL | {
        "bundle_root": str(root),
        "dataset_dir": str(data),
        "max_epochs": str(epochs),
        "resume": str(resume),
    }
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "bundles/liver/train.json"]
    arguments = [part for key, value in options.items() for part in (f"--{key}", value)]
    with log.open("wb") as file:
        return subprocess.Popen([*command, *arguments], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)


def kill(process: subprocess.Popen[bytes], how: str, models: Path, log: Path, rng: random.Random) -> bool:
    """Wait for a moment and kill; false if the training ended before."""
    begun, wait = time.monotonic(), rng.uniform(0, 12 if how == "any moment" else 4)
    saves = rng.randint(1, 6)
    seen: set[str] = set()
    ready = how == "any moment"
    while process.poll() is None:
        if not ready:
            ready, begun = b": train_loss" in log.read_bytes(), time.monotonic()
        elif how == "while it saves":
            seen |= {path.name for path in models.glob(".*.part")}
            if len(seen) >= saves and any(models.glob(".*.part")):
                break
        elif time.monotonic() - begun > wait:
            break
        time.sleep(0.0005 if ready and how == "while it saves" else 0.02)
    alive = process.poll() is None
    process.kill()
    process.wait()
    return alive


def readable(models: Path) -> list[int]:
    """The epochs whose checkpoints are on disk; raises if one of the files there cannot be read."""
    for path in models.glob("*.pt"):
        read_tensors(path)
    return sorted(int(path.stem.split("=")[1]) for path in models.glob("checkpoint_epoch=*.pt"))


def differing(a: Any, b: Any, name: str = "") -> Iterator[str]:
    """Where two states are not equal bit for bit."""
    if isinstance(a, torch.Tensor):
        if not torch.equal(a, b):
            yield name
    elif isinstance(a, dict):
        for key in a.keys() | b.keys():
            yield from differing(a.get(key), b.get(key), f"{name}/{key}")
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for n, pair in enumerate(zip(a, b, strict=True)):
            yield from differing(*pair, f"{name}/{n}")
    elif a != b:
        yield name


def main() -> None:
    """Kill, resume, compare, and write a line for each kill."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="CSV to write")
    args = parser.parse_args()
    rng, rows = random.Random(args.seed), []
    with TemporaryDirectory() as folder:
        data = write_phantoms(Path(folder) / "data", "liver", cases=4).parent
        alone, killed, log = Path(folder) / "alone", Path(folder) / "killed", Path(folder) / "log.txt"
        if start(alone, data, args.epochs, log, resume=False).wait():
            sys.exit(log.read_text())
        models = killed / "models"
        models.mkdir(parents=True)
        for number in range(1, args.kills + 1):
            how = ("while it saves", "any moment", "while it trains")[number % 3]
            before = readable(models)
            process = start(killed, data, args.epochs, log, resume=bool(before))
            if not kill(process, how, models, log, rng):
                sys.exit(f"The training ended before it was killed: more --epochs.\n{log.read_text()}")
            after = readable(models)
            reached = [int(n) for n in re.findall(r"Epoch (\d+) of", log.read_text())]
            rows.append(
                {
                    "kill": number,
                    "how": how,
                    "resumed from epoch": max(before, default=0),
                    "in epoch": max(reached, default=max(before, default=0)),
                    "last whole epoch": max(after, default=0),
                    "checkpoints, all readable": len(after),
                    "partial files left aside": len(list(models.glob(".*.part/*"))),
                }
            )
            sys.stdout.write(f"{rows[-1]}\n")
        if start(killed, data, args.epochs, log, resume=True).wait():
            sys.exit(log.read_text())
        name = f"models/checkpoint_epoch={args.epochs}.pt"
        different = list(differing(read_tensors(alone / name), read_tensors(killed / name)))
        left = [path.name for path in models.iterdir()]
    write_csv(args.out, rows)
    repeated = max(row["in epoch"] - row["last whole epoch"] for row in rows)
    sys.stdout.write(
        f"{len(rows)} kills; at most {repeated} epoch repeated; {len(different)} values of the last "
        f"checkpoint differ from those of the training that was left alone {different[:3]}; "
        f"in the folder: {sorted(left)}\n"
    )
    sys.exit(bool(different) or repeated > 1)


if __name__ == "__main__":
    main()
