# SPDX-License-Identifier: Apache-2.0
"""Thousands of damaged volumes through the bundles' own reading path: a clear error, or the right volume.

Each case is drawn from the seed and its number, read in a process that may crash, hang or run out of memory
without an end to the rest, and compared with what :mod:`stated` finds in its bytes. Some go through
``monai_unetpp.segment`` as a whole.

python benchmarks/faults/fuzz_files.py --cases 10000 --segment 400 --out benchmarks/results/fuzz.csv
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing as mp
import os
import resource
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mutations import FORMATS, mutate, write_sample
from stated import Volume, stated

from monai_unetpp import UNetPlusPlus
from monai_unetpp.data import list_volumes
from monai_unetpp.files import write_csv
from monai_unetpp.readers.memory import check_volume
from monai_unetpp.segment import load_pipeline, segment

BUNDLE = Path(__file__).parents[2] / "bundles" / "liver"
CHANNELS = [4, 8]
PIXDIM = [4.0, 4.0, 4.0]
TINY = {"device": "$torch.device('cpu')", "channels": CHANNELS, "pixdim": PIXDIM, "roi_size": [16, 16, 16]}
SECONDS = 20  # after which a case is said to hang
MIB = 2**20
MEMORY = 200 * MIB  # that reading a file of some kB may take
ADDRESS_SPACE = 2048 * MIB  # beyond what the libraries take; a larger claim fails here, not the machine
OUTCOMES = ("right volume", "refused", "bad")


def main() -> None:
    """Run the cases, and write one row per format and outcome."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--segment", type=int, default=400, help="how many of them are segmented, too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the one case to run, and to keep in the folder scan")
    parser.add_argument("--out")
    args = parser.parse_args()
    if args.only is not None:
        Path("scan").mkdir()
        path, change, _ = make_case(Path("scan"), args.seed, args.only)
        sys.stdout.write(f"{path}: {change}\n")
        sys.stdout.write(f"{read_case(load(Path('scan')), args.seed, args.only)}\n")
        return

    counts: Counter[tuple[str, str, str]] = Counter()
    for case, (kind, change, outcome, why) in enumerate(run_cases(args.cases, args.seed)):
        counts[kind, "read", outcome] += 1
        if outcome == "bad":
            sys.stdout.write(f"case {case}, {kind}, {change}: {why}\n")
            sys.stdout.flush()
    for kind, outcome, why in segment_cases(args.segment, args.seed + 1):
        counts[kind, "segmented", outcome] += 1
        if outcome == "bad":
            sys.stdout.write(f"segmented, {kind}: {why}\n")
    rows = [
        {"format": kind, "way": way, **{outcome: counts[kind, way, outcome] for outcome in OUTCOMES}}
        for way in ("read", "segmented")
        for kind in FORMATS
    ]
    for row in rows:
        sys.stdout.write("  ".join(str(value) for value in row.values()) + "\n")
    if args.out:
        write_csv(args.out, rows)


def make_case(folder: Path, seed: int, case: int) -> tuple[Path, str, Volume]:
    """Write a case; returns its path, what was done to it, and what it was before."""
    rng = np.random.default_rng([seed, case])
    path = write_sample(folder, FORMATS[case % len(FORMATS)], rng)
    before = stated(path)[0]
    return path, mutate(path, rng), before


# Reading


def run_cases(cases: int, seed: int) -> Iterator[tuple[str, str, str, str]]:
    """Yield format, change, outcome and reason of cases, read in a process that is replaced if it dies."""
    context = mp.get_context("spawn")
    case, worker, pipe = 0, None, None
    while case < cases:
        if worker is None:
            pipe, other = context.Pipe()
            worker = context.Process(target=work, args=(other, seed), daemon=True)
            worker.start()
            other.close()
            pipe.recv()  # it is up
        pipe.send(case)
        try:
            found = pipe.recv() if pipe.poll(SECONDS) else ("", "bad", f"hangs: no answer in {SECONDS} s")
        except EOFError:
            worker.join()
            found = ("", "bad", f"crash: the process ended with {worker.exitcode}")
        yield FORMATS[case % len(FORMATS)], *found
        if found[1] == "bad" and found[2].startswith(("hangs", "crash", "memory")):
            worker.kill()
            worker = None
        case += 1
    if worker is not None:
        worker.kill()


def work(pipe: Connection, seed: int) -> None:
    """Read cases as their numbers come."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)  # what the libraries say of each
    with tempfile.TemporaryDirectory() as folder:
        pipeline = load(Path(folder))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE, resource.RLIM_INFINITY))
    pipe.send("up")
    while True:
        case = pipe.recv()
        pipe.send(read_case(pipeline, seed, case))


def load(folder: Path) -> Any:
    """The preprocessing of the bundle, as ``segment`` takes it."""
    torch.save(UNetPlusPlus(3, 1, 3, channels=CHANNELS, strides=2).state_dict(), folder / "model.pt")
    return load_pipeline(BUNDLE, folder, folder, ckpt_path=str(folder / "model.pt"), **TINY).preprocessing


def read_case(preprocessing: Any, seed: int, case: int) -> tuple[str, str, str]:
    """Return what was done to a file, what became of it, and why."""
    with tempfile.TemporaryDirectory() as folder:
        path, change, before = make_case(Path(folder), seed, case)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        outcome, why = judge(path, preprocessing, before)
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
        if more > MEMORY:
            outcome, why = "bad", f"memory: {more // MIB} MiB, {outcome}: {why}"
        return change, outcome, why


def judge(path: Path, preprocessing: Any, before: Volume) -> tuple[str, str]:
    """Read a file as ``segment`` does; say how that is to be taken."""
    try:
        case, *others = list_volumes(path)
        if others:  # several scans, each with a name: as good as the question which one is meant
            raise ValueError(f"{path} holds {1 + len(others)} scans.")
        check_volume(case["image"], PIXDIM)
        loaded = preprocessing.transforms[0](case)
        volume = loaded["image"]
        found = Volume(volume.numpy()[0].astype(np.float64), volume.affine.numpy().copy())
        for transform in preprocessing.transforms[1:]:
            loaded = transform(loaded)
        result = loaded["image"]
    except Exception as error:
        return judge_error(path, error)
    if not bool(torch.isfinite(result.as_tensor()).all()) or min(result.shape) < 1:
        return "bad", "voxels that are no numbers after preprocessing"
    spacing = np.linalg.norm(found.affine[:3, :3], axis=0)
    if not np.isfinite(found.affine).all() or spacing.min() <= 0:
        return "bad", f"accepted an affine {found.affine.tolist()}"
    if abs(np.linalg.det(found.affine[:3, :3] / spacing)) < 1e-3:
        return "bad", f"accepted a singular affine {found.affine.tolist()}"
    try:
        wanted, doubt = stated(path), ""
    except Exception as error:
        wanted, doubt = [before], f"accepted, though {error!r}: "
    why = [differences(found, volume) for volume in wanted]
    return ("bad", doubt + why[0]) if all(why) else ("right volume", "")


def judge_error(path: Path, error: BaseException) -> tuple[str, str]:
    """A refusal is of a kind that says so, names the file, fits a few lines, and asked for no memory."""
    while error.__cause__ is not None and str(error).startswith("applying transform"):
        error = error.__cause__
    text = str(error)
    if (
        "MemoryError" in text
        or "bad_alloc" in text
        or "allocate memory" in text
        or isinstance(error, MemoryError)
    ):
        return "bad", f"memory: {error!r}"[:300]
    if not isinstance(error, (ValueError, OSError)) or str(path) not in text:
        return "bad", f"unclear: {error!r}"[:300]
    if len(text) > 800 or "Traceback" in text:
        return "bad", f"unclear: {len(text)} characters"
    return "refused", text


def differences(found: Volume, wanted: Volume) -> str:
    """Where a volume is not as it is stated."""
    if found.voxels.shape != wanted.voxels.shape:
        return f"shape {found.voxels.shape}, stated {wanted.voxels.shape}"
    if not np.allclose(found.voxels, wanted.voxels, rtol=1e-4, atol=1e-3, equal_nan=True):
        return f"{(found.voxels != wanted.voxels).sum()} voxels differ"
    if not np.allclose(found.affine, wanted.affine, rtol=1e-3, atol=2e-3):
        return f"affine {np.round(found.affine, 4).tolist()}, stated {np.round(wanted.affine, 4).tolist()}"
    return ""


# Segmenting


def segment_cases(cases: int, seed: int) -> Iterator[tuple[str, str, str]]:
    """Yield format, outcome and reason of cases that are segmented, all formats in one folder of scans."""
    if not cases:
        return
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "scans").mkdir()
        kinds: dict[str, str] = {}
        for case in range(cases):
            folder = root / "scans" / f"{case:05d}"
            folder.mkdir()
            path, _, _ = make_case(folder, seed, case)
            kinds[str(path)] = FORMATS[case % len(FORMATS)]
        for path, kind in kinds.items():
            yield kind, *segment_case(Path(path), root)


def segment_case(path: Path, root: Path) -> tuple[str, str]:
    """Segment one of the scans; a mask exists if and only if it is said to, and lies on the scan's grid."""
    import nibabel as nib

    out = root / "out" / path.parent.name
    weights = root / "model.pt"
    if not weights.exists():
        torch.save(UNetPlusPlus(3, 1, 3, channels=CHANNELS, strides=2).state_dict(), weights)
    context = mp.get_context("fork")  # it may crash
    pipe, other = context.Pipe()
    process = context.Process(target=_segment_into, args=(other, path, out, weights), daemon=True)
    process.start()
    other.close()
    try:
        answer = pipe.recv() if pipe.poll(SECONDS) else None
    except EOFError:
        answer = None
    if answer is None:
        process.kill()
    process.join()
    written = sorted(p.name for p in out.rglob("*") if p.is_file() and ".locks" not in p.parts)
    if answer is None:
        return "bad", f"crash or hang: {process.exitcode}, written {written}"
    state, reason = answer
    if state != "done":
        clear = state == "failed" and str(path.parent) in reason and not written
        return ("refused", reason) if clear else ("bad", f"{state}: {reason}, written {written}")
    if written != ["scan_seg.nii.gz"]:
        return "bad", f"done, but written {written}"
    mask = nib.load(out / written[0])
    with contextlib.suppress(Exception):
        wanted = stated(path)
        if mask.shape != wanted.voxels.shape or not np.allclose(
            mask.affine, wanted.affine, rtol=1e-3, atol=2e-3
        ):
            return "bad", "the mask lies elsewhere"
    return "right volume", ""


def _segment_into(pipe: Connection, path: Path, out: Path, weights: Path) -> None:
    """As the command does; a folder or file that is no volume at all is an error of the whole call."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    warnings.simplefilter("ignore")
    settings: Mapping[str, Any] = {**TINY, "ckpt_path": str(weights)}
    try:
        [outcome] = segment(path, out, BUNDLE, **settings)
        pipe.send((outcome.state, outcome.reason))
    except (ValueError, OSError) as error:
        pipe.send(("failed", str(error)))


if __name__ == "__main__":
    main()
