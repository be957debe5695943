# SPDX-License-Identifier: Apache-2.0
"""Several processes on one folder, some killed at random: is every scan done, once, whole?

export OMP_NUM_THREADS=1
python benchmarks/faults/load.py --processes 2 --kills 3 --uncertainty --out benchmarks/results/load_2.csv
python benchmarks/faults/load.py --processes 4 --kills 6 --uncertainty --out benchmarks/results/load_4.csv
"""

from __future__ import annotations

import argparse
import collections
import json
import logging
import os
import random
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from small import BUNDLE, SETTINGS, write_scans, write_weights, wrong_grid

from monai_unetpp.data import list_volumes
from monai_unetpp.files import result_path, stale_parts, write_csv

WROTE, FAILED = "INFO Wrote ", "ERROR "


def work(log: str, arguments: list[str]) -> None:
    """Be ``python -m monai_unetpp segment`` with a log; this process may be killed at any moment."""
    logging.basicConfig(filename=log, level=logging.INFO, format="%(levelname)s %(message)s")
    sys.argv[1:] = ["segment", *arguments]
    runpy.run_module("monai_unetpp", run_name="__main__", alter_sys=True)


class Trial:
    """One folder of scans, and the processes that share it.

    Args:
        folder: to work in; ``scans`` and ``model.pt`` are in it.
        processes: how many are kept running.
        more: arguments of ``segment``.
    """

    def __init__(self, folder: Path, processes: int, more: list[str]) -> None:
        self.folder = folder
        self.masks = folder / "masks"
        self.logs = folder / "logs"
        self.logs.mkdir()
        self.running: list[subprocess.Popen[bytes]] = []
        self.processes = processes
        self.begun = 0
        self.more = more
        self.seen: dict[Path, set[tuple[int, int]]] = collections.defaultdict(set)

    def begin(self) -> None:
        """Start one process."""
        sets = [text for key, value in SETTINGS.items() for text in ("--set", key, json.dumps(value))]
        places = ["-i", str(self.folder / "scans"), "-o", str(self.masks), "--bundle", str(BUNDLE)]
        command = [sys.executable, __file__, "--work", str(self.logs / f"{self.begun}.log"), *places]
        with (self.logs / f"{self.begun}.txt").open("wb") as said:
            self.running.append(
                subprocess.Popen(
                    [*command, "--checkpoint", str(self.folder / "model.pt"), *sets, *self.more],
                    stdout=said,
                    stderr=subprocess.STDOUT,
                )
            )
        self.begun += 1

    def look(self) -> None:
        """Note which file lies under each name: another one later would have been written twice."""
        for path in self.masks.glob("*_seg.nii.gz"):
            found = path.stat()
            self.seen[path].add((found.st_ino, found.st_mtime_ns))

    def run(self, kills: int, chance: random.Random) -> int:
        """Keep the processes going, kill some, and wait for the rest; return how many were killed."""
        for _ in range(self.processes):
            self.begin()
        killed, done = 0, len(list((self.folder / "scans").iterdir()))
        at = sorted(chance.sample(range(1, done - 1), kills))  # how many masks there are when one is killed
        while self.running:
            time.sleep(0.01)
            self.look()
            if at and len(self.seen) >= at[0]:
                time.sleep(chance.uniform(0, 0.2))  # at any moment of a scan
                victim = chance.choice(self.running)
                victim.kill()
                victim.wait()
                self.running.remove(victim)
                at.pop(0)
                killed += 1
                self.begin()
            self.running = [process for process in self.running if process.poll() is None]
        return killed

    def said(self, start: str) -> collections.Counter[str]:
        """How often the processes said what begins so, such as that a mask was written."""
        lines = [line for log in self.logs.glob("*.log") for line in log.read_text().splitlines()]
        return collections.Counter(line for line in lines if line.startswith(start))


def trial(number: int, args: argparse.Namespace, more: list[str]) -> dict[str, object]:
    """Run one trial and return what was found."""
    chance, started = random.Random(number), time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_weights(folder / "model.pt")
        write_scans(folder / "scans", args.volumes)
        this = Trial(folder, args.processes, more)
        killed = this.run(args.kills, chance)
        left = sum(map(len, stale_parts(this.masks).values()))
        this.begin()  # alone, as a user who looks whether all is done
        status = this.running[0].wait()
        this.look()
        cases = [Path(case["image"]) for case in list_volumes(folder / "scans")]
        masks = {path: result_path(path, this.masks, folder / "scans") for path in cases}
        wrong = [text for scan, mask in masks.items() if (text := wrong_grid(scan, mask))]
        ranked = this.masks / "uncertainty.csv"
        row: dict[str, object] = {
            "trial": number,
            "processes": args.processes,
            "killed": killed,
            "scans": len(cases),
            "masks": len(this.seen),
            "wrong": len(wrong),
            "written twice": sum(len(files) > 1 for files in this.seen.values())
            + sum(count > 1 for count in this.said(WROTE).values()),
            "failed": this.said(FAILED).total(),
            "hidden folders after kills": left,
            "hidden folders at the end": sum(map(len, stale_parts(this.masks).values())),
            "ranked": len(ranked.read_text().splitlines()) - 1 if ranked.exists() else "",
            "last exit status": status,
            "seconds": round(time.perf_counter() - started, 1),
        }
        for text in [*wrong[:3], *this.said(FAILED)][:6]:
            sys.stdout.write(f"{text}\n")
        if wrong or status:
            shutil.copytree(this.logs, f"{args.out}.logs.{number}")
    sys.stdout.write("  ".join(f"{key}: {value}" for key, value in row.items()) + "\n")
    sys.stdout.flush()
    return row


def main() -> None:
    """Run the trials and write a row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--kills", type=int, default=3, help="of each trial")
    parser.add_argument("--volumes", type=int, default=300)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="number of the first trial, a seed")
    parser.add_argument("--out", required=True)
    args, more = parser.parse_known_args()
    write_csv(args.out, [trial(n, args, more) for n in range(args.first, args.first + args.trials)])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        os.nice(5)
        work(sys.argv[2], sys.argv[3:])
    else:
        main()
