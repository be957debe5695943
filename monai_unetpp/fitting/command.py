# SPDX-License-Identifier: Apache-2.0
"""From a folder of data to weights, level and report, stage by stage.

Each stage leaves files by which a run that was stopped knows how far it had come; the stage that was stopped
goes on, or is done again.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from monai_unetpp.data.folds import check_folds
from monai_unetpp.extras import require
from monai_unetpp.files import PathLike
from monai_unetpp.fitting.outcome import TOLERANCE, Outcome, choose
from monai_unetpp.fitting.pictures import draw_cases
from monai_unetpp.fitting.sharing import share_folds
from monai_unetpp.fitting.stages import Part
from monai_unetpp.planning import Source, plan_bundle
from monai_unetpp.report import write_report

__all__ = ["fit_bundle"]

TRAINING_SHARE = 0.9  # of the time; levels and report take the rest
REQUEST = "fit.json"  # in the bundle: what was asked for
REPORT = "report.html"


def fit_bundle(
    source: Source,
    out: PathLike,
    folds: int | None = None,
    hours: float | None = None,
    skip_bad: bool = False,
    memory: float | None = None,
    device: str | None = None,
    given: Mapping[str, Any] | None = None,
    devices: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> Outcome:
    """Plan a bundle, train it, score its levels, choose depth and precision, and write a report.

    The same call resumes a run that was stopped.

    Args:
        source: The data set.
        out: Folder of the bundle, made if it does not exist.
        folds: Number of folds of a cross-validation, one training each; by default one training.
        hours: Time of all trainings and scores together, h; by default that of ``plan`` for each training.
        skip_bad: Whether to go on without the cases that do not fit.
        memory: Bytes that a training step may take; default what the machine has.
        device: Such as ``"cpu"``; default a GPU if there is one.
        given: Settings that are not chosen but taken, see :func:`~monai_unetpp.planning.rules.make_plan`.
        devices: Devices that share the folds, a process each, such as ``["cuda:0", "cuda:1"]``, or
            ``["cpu", "cpu"]`` for two processes; the plan is made for the first one.
        say: Takes the lines that tell how far it has come; processes of several devices print theirs.

    Raises:
        FileExistsError: if ``out`` exists and is no bundle of a fit, or another process fits it.
        ValueError: if ``out`` was made with other arguments; or on an error of a stage.
        ModuleNotFoundError: if matplotlib is not installed.
    """
    require("figures", "matplotlib")
    check_folds(folds)
    _check_devices(devices, device, folds)
    out, device = Path(out), devices[0] if devices else device
    asked = {
        **{key: _plain(value) for key, value in dataclasses.asdict(source).items()},
        "data": str(Path(source.data).absolute()),
        **{"folds": folds, "hours": hours, "skip_bad": skip_bad, "memory": memory, "device": device},
        **{"given": _plain(dict(given or {})), "processes": len(devices) or 1},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out.parent / f".{out.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FileExistsError(
            f"{out} is being fitted by another process, which holds {lock.lock_file}: wait for it, or give "
            "another --out."
        ) from None
    try:
        if not out.exists():
            _plan(source, out, asked, say)
        _check(out, asked)
        use: list[str | None] = [*devices] or [device]
        parts = [Part(out, folds, fold, use[fold % len(use)]) for fold in range(folds or 1)]
        left = [part for part in parts if not (part.is_trained() and part.is_scored())]
        if left:
            (out / REPORT).unlink(missing_ok=True)  # that of other weights
        if len(use) > 1:
            groups = [left[n :: len(use)] for n in range(min(len(use), len(left)))]
            share_folds(_run_aloud, groups)
        else:
            for part in left:
                _run(part, say)
        outcome = choose(parts)
        if not (out / REPORT).is_file():
            say("Writing the report.")
            write_report(out, draw_cases(parts, outcome), outcome.level, outcome.precision, TOLERANCE)
        return outcome
    finally:
        lock.release()


def _plan(source: Source, out: Path, asked: Mapping[str, Any], say: Callable[[str], None]) -> None:
    folds, hours, given = asked["folds"], asked["hours"], dict(asked["given"])
    rounds = math.ceil((folds or 1) / max(1, asked["processes"]))  # of trainings, one after another
    each = None if hours is None else TRAINING_SHARE * hours / rounds
    options = {key: asked[key] for key in ("skip_bad", "memory", "device", "folds", "processes")}
    say(f"Planning {out} for {source.data}.")
    _, plan = plan_bundle(
        source, out, hours=each, given=given, progress=True, extra={REQUEST: dict(asked)}, **options
    )
    size, channels = plan["roi_size"], plan["channels"]
    why = f"{out / 'README.md'} says why."
    say(f"Planned: patch {size}, channels {channels}, {plan['max_epochs']} epochs; {why}")


def _check(out: Path, asked: Mapping[str, Any]) -> None:
    """Raise unless the bundle was made with these arguments."""
    path = out / REQUEST
    if not path.is_file():
        raise FileExistsError(
            f"out must be a folder that does not exist, or one of an earlier fit, {out} has no {REQUEST}: "
            f"give another --out, or train what is there: monai-unetpp train {out}"
        )
    before = json.loads(path.read_text(encoding="utf-8"))
    differs = [key for key, value in asked.items() if before.get(key) != value]
    if differs:
        key = differs[0]
        raise ValueError(
            f"{out} was fitted with {key} {before.get(key)!r}, got {asked[key]!r}: the same arguments resume "
            "it; for others, give another --out."
        )


def _run(part: Part, say: Callable[[str], None]) -> None:
    """Run the stages of a fold that are not complete."""
    with FileLock(part.bundle / f".fold_{part.fold}.lock"):  # a process that lost its parent saves first
        if not part.is_trained():
            say(f"{part.name}training, {part.epochs} epochs.")
            part.train()
        if not part.is_scored():
            say(f"{part.name}scoring the levels.")
            part.score(_formats() if part.folds is None else ["pt"])


def _run_aloud(part: Part) -> None:
    """Run a fold in a process of its own, whose lines go to the console."""
    _run(part, partial(print, flush=True))


def _check_devices(devices: Sequence[str], device: str | None, folds: int | None) -> None:
    if devices and folds is None:
        raise ValueError(f"devices share folds: give folds, such as --folds 5, or one --device {devices[0]}.")
    if devices and device is not None:
        raise ValueError(f"device must be left out with devices {' '.join(devices)}, got {device}.")
    if doubled := [each for each in devices if each != "cpu" and list(devices).count(each) > 1]:
        raise ValueError(f"devices must be different, got {doubled[0]} more than once.")


def _formats() -> list[str]:
    """Return the formats that the installed packages can write."""
    onnx = all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
    return ["pt", "ts", "pt2", *(["onnx"] if onnx else [])]


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))
