# SPDX-License-Identifier: Apache-2.0
"""Kill a whole fit at random moments of any stage, call it again, and compare with one that was left alone.

The moments are spread over the time that the undisturbed one takes. At the end the weights of all folds, the
scores of all held-out cases and the lines of the outcome must be equal; times of a window may differ.

python benchmarks/faults/kill_fit.py --kills 20 --out benchmarks/results/kill_fit.csv
"""

from __future__ import annotations

import argparse
import csv
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from monai_unetpp.data.phantoms import write_phantoms
from monai_unetpp.files import write_csv
from monai_unetpp.weights import read_tensors

SETTINGS = {
    "pixdim": "[8.0,8.0,8.0]",
    "roi_size": "[24,24,24]",
    "channels": "[8,16,32]",
    "growth": "[0.5]",
    "max_epochs": "6",
}
MEASURED = ("seconds", "peak_mib")  # columns that differ from run to run


def start(data: Path, out: Path, log: Path) -> subprocess.Popen[bytes]:
    """Begin a fit, or go on with it."""
    settings = [word for key, value in SETTINGS.items() for word in ("--set", key, value)]
    command = [sys.executable, "-m", "monai_unetpp", "fit", str(data), "--out", str(out), "--device", "cpu"]
    with log.open("ab") as file:
        return subprocess.Popen([*command, "--folds", "2", *settings], stdout=file, stderr=subprocess.STDOUT)


def stage(text: str) -> str:
    """Return the stage whose line was the last one in the log of a call."""
    lines = re.findall(r"^(Planning|Fold \d of \d: \w+|Writing the report)", text, re.MULTILINE)
    return lines[-1] if lines else "before the first line"


def differences(one: Path, two: Path) -> list[str]:
    """Return what differs between two bundles that were fitted."""
    found = []
    for path in sorted(one.glob("models/fold_*/*.pt")):
        left, right = (read_tensors(root / path.relative_to(one)) for root in (one, two))
        left, right = (each.get("model", each) for each in (left, right))
        found += [f"{path.name} {name}" for name, tensor in left.items() if not tensor.equal(right[name])]
    for path in sorted(one.glob("levels/**/*.csv")):
        tables = [read(root / path.relative_to(one)) for root in (one, two)]
        found += [str(path.relative_to(one))] if tables[0] != tables[1] else []
    return found


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table without what is measured anew."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if not k.startswith(MEASURED)} for row in rows]


def main() -> None:
    """Kill, call again, compare, and write a line for each kill."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="CSV to write")
    args = parser.parse_args()
    rng, rows, left = random.Random(args.seed), [], []
    with TemporaryDirectory() as folder:
        root = Path(folder)
        data = write_phantoms(root / "data", "liver", cases=4).parent
        (root / "alone").mkdir()
        begun = time.monotonic()
        if start(data, root / "alone" / "organ", root / "alone.txt").wait():
            sys.exit((root / "alone.txt").read_text())
        whole = time.monotonic() - begun
        trial = 0
        while len(rows) < args.kills:
            trial += 1
            out, log, ended = root / str(trial) / "organ", root / f"{trial}.txt", False
            out.parent.mkdir()
            while not ended:
                before = log.stat().st_size if log.exists() else 0
                process = start(data, out, log)
                wait = rng.uniform(0, 0.7 * whole) if len(rows) < args.kills else 1e9
                try:
                    ended = process.wait(wait) == 0
                    if not ended:
                        sys.exit(log.read_text()[before:])
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    rows.append(
                        {"trial": trial, "after s": round(wait, 1), "in": stage(log.read_text()[before:])}
                    )
                    sys.stdout.write(f"{rows[-1]}\n")
                    sys.stdout.flush()
            left += differences(root / "alone" / "organ", out)
            beside = sorted(path.name for path in out.parent.iterdir())
            sys.stdout.write(f"Trial {trial}: {len(left)} differences {left[:3]}; beside it: {beside}\n")
    write_csv(args.out, rows)
    sys.stdout.write(
        f"{len(rows)} kills in {trial} trials; {len(left)} differences; {whole:.0f} s undisturbed\n"
    )
    sys.exit(bool(left))


if __name__ == "__main__":
    main()
