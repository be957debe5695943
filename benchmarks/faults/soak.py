# SPDX-License-Identifier: Apache-2.0
"""Many scans through one process: does its memory grow, are files left open, does it slow down?

OMP_NUM_THREADS=1 python benchmarks/faults/soak.py --out benchmarks/results/soak.csv
OMP_NUM_THREADS=1 python benchmarks/faults/soak.py --calls 100 --out benchmarks/results/soak_calls.csv
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
import tempfile
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
from small import BUNDLE, SETTINGS, is_bad, write_scans, write_weights

from monai_unetpp.files import write_csv
from monai_unetpp.segment import segment

EVERY = 20
TIMES = ("seconds", "CPU seconds")  # the machine may have other work


class Sampler(logging.Handler):
    """Take a sample whenever another :data:`EVERY` scans were written, or were said to be bad."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.count = 0
        self.start()
        self.rows: list[dict[str, float]] = []

    def start(self) -> None:
        """Begin to count time."""
        self.started, self.started_cpu = time.perf_counter(), time.process_time()

    def emit(self, record: logging.LogRecord) -> None:
        """Count what segmenting says at the end of each scan."""
        if not (record.getMessage().startswith("Wrote ") or record.levelno == logging.ERROR):
            return
        self.count += 1
        if self.count % EVERY == 0:
            self.rows.append(
                {
                    "volumes": self.count,
                    "seconds": round(time.perf_counter() - self.started, 2),
                    "CPU seconds": round(time.process_time() - self.started_cpu, 2),
                    "resident KiB": resident_kib(),
                    "open files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208  names are enough
                    "threads": threading.active_count(),
                    "objects": len(gc.get_objects()),
                }
            )


def resident_kib() -> int:
    """Return the memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def slope(rows: list[dict[str, float]], key: str) -> float:
    """Return by how much a quantity grows per scan over the second half, by least squares."""
    half = rows[len(rows) // 2 :]
    return float(np.polyfit([row["volumes"] for row in half], [row[key] for row in half], 1)[0])


def per_scan(rows: list[dict[str, float]], key: str) -> float:
    """Return the time of a scan over some samples."""
    first, last = rows[0], rows[-1]
    return (last[key] - first[key]) / (last["volumes"] - first["volumes"])


def summary(rows: list[dict[str, float]]) -> str:
    """Say what grew."""
    quarter = max(len(rows) // 4, 2)
    times = {key: [per_scan(part, key) for part in (rows[:quarter], rows[-quarter:])] for key in TIMES}
    begin, middle, end = (rows[n]["resident KiB"] / 1024 for n in (0, len(rows) // 2, -1))
    lines = [
        f"resident memory: {begin:.0f} MiB after {EVERY}, {middle:.0f} half way, {end:.0f} at the end; "
        f"{slope(rows, 'resident KiB'):+.2f} KiB per scan over the second half",
        f"objects: {slope(rows, 'objects'):+.2f} per scan over the second half",
        f"open files: {min(r['open files'] for r in rows):.0f}..{max(r['open files'] for r in rows):.0f}; "
        f"threads: {min(r['threads'] for r in rows):.0f}..{max(r['threads'] for r in rows):.0f}",
        *(
            f"{key} per scan: {a:.4f} in the first quarter, {b:.4f} in the last"
            for key, (a, b) in times.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Segment, and write a row per sample."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volumes", type=int, default=2000)
    parser.add_argument("--calls", type=int, default=1, help="of segment, which share the volumes")
    parser.add_argument("--bad-every", type=int, default=25, help="one of so many is cut off")
    parser.add_argument("--trace", action="store_true", help="say which lines hold more at the end")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()

    sampler = Sampler()
    log = logging.getLogger("monai_unetpp")
    log.setLevel(logging.INFO)
    log.addHandler(sampler)
    log.propagate = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = write_weights(folder / "model.pt")
        for call in range(args.calls):
            write_scans(folder / f"scans_{call}", args.volumes // args.calls, args.bad_every)
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        if args.trace:
            tracemalloc.start(12)
        sampler.start()
        states: dict[str, int] = {}
        traced = None
        for call in range(args.calls):
            outcomes = segment(
                folder / f"scans_{call}", folder / f"masks_{call}", BUNDLE, ckpt_path=str(weights), **SETTINGS
            )
            for outcome in outcomes:
                states[outcome.state] = states.get(outcome.state, 0) + 1
                if (outcome.state == "failed") != is_bad(outcome.image, args.bad_every):
                    sys.stdout.write(f"not as it should be: {outcome}\n")
            if args.trace and call == args.calls // 2:
                traced = tracemalloc.take_snapshot()
        after = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        sys.stdout.write(f"{states}; open files before {before}, after {after}\n{summary(sampler.rows)}")
        if traced is not None:
            for line in tracemalloc.take_snapshot().compare_to(traced, "lineno")[:15]:
                sys.stdout.write(f"{line}\n")
        write_csv(args.out, sampler.rows)


if __name__ == "__main__":
    main()
