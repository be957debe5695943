# SPDX-License-Identifier: Apache-2.0
"""From a folder of data to weights, level and report, stage by stage.

Each stage leaves files by which a run that was stopped knows how far it had come; the stage that was stopped
goes on, or is done again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from monai_unetpp.data.folds import check_folds
from monai_unetpp.devices import find_device
from monai_unetpp.export import writable_formats
from monai_unetpp.extras import require
from monai_unetpp.files import PathLike
from monai_unetpp.fitting.outcome import Outcome, choose, report_path, tolerances
from monai_unetpp.fitting.pictures import draw_cases
from monai_unetpp.fitting.sharing import share_folds
from monai_unetpp.fitting.stages import Training
from monai_unetpp.planning import Source, plan_bundle, write_second_part
from monai_unetpp.report import write_report
from monai_unetpp.weights import plain

__all__ = ["fit_bundle"]

TRAINING_SHARE = 0.9  # of the time; levels and report take the rest
REQUEST = "fit.json"  # in the bundle: what was asked for
ALL_LEVELS = "_all_levels"  # ends the name of the bundle from which one is narrowed


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
    narrow: bool = False,
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
        narrow: Whether to train all levels for 40 % of the time, in a bundle beside ``out`` whose name ends
            in ``_all_levels``, and then in ``out`` a network of the level that was chosen.
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
    asked = plain(
        {
            **asdict(source),
            "data": Path(source.data).absolute(),
            **{"folds": folds, "hours": hours, "skip_bad": skip_bad, "memory": memory, "device": device},
            **{"given": dict(given or {}), "processes": len(devices) or 1, "narrow": narrow},
        }
    )
    use: list[str | None] = [*devices] or [device]
    trainings = [Training(out, folds, fold, use[fold % len(use)]) for fold in range(folds or 1)]
    with _one_at_a_time(out):
        if narrow:
            every = out.with_name(f"{out.name}{ALL_LEVELS}")
            first = [replace(each, bundle=every) for each in trainings]
            if not out.exists():
                _plan_second_part(_planned_and_fitted(source, first, asked, say), out, asked, say)
            trainings = [
                replace(each, finetune=of.weights) for each, of in zip(trainings, first, strict=True)
            ]
        return _planned_and_fitted(source, trainings, asked, say)


def _planned_and_fitted(
    source: Source, trainings: Sequence[Training], asked: Mapping[str, Any], say: Callable[[str], None]
) -> Outcome:
    """Plan one bundle, if it does not exist yet, and bring it to its end."""
    bundle = trainings[0].bundle
    if not bundle.exists():
        _plan(source, bundle, asked, say)
    _check_request(bundle, asked)
    return _fit(trainings, asked["processes"], say)


def _fit(trainings: Sequence[Training], processes: int, say: Callable[[str], None]) -> Outcome:
    """Train, score, choose and report one bundle, what is left of it."""
    bundle = trainings[0].bundle
    left = [training for training in trainings if not (training.is_trained() and training.is_scored())]
    if left:
        report_path(bundle).unlink(missing_ok=True)  # that of other weights
    if processes > 1:
        devices = [training.device for training in trainings[:processes]]
        groups = [
            [replace(each, device=device) for each in left[n::processes]] for n, device in enumerate(devices)
        ]
        share_folds(_run_aloud, [group for group in groups if group])
    else:
        for training in left:
            _run(training, say)
    outcome = choose(trainings)
    if not report_path(bundle).is_file():
        say("Writing the report.")
        tolerance = tolerances(bundle)[0]
        write_report(bundle, draw_cases(trainings, outcome), outcome.level, outcome.precision, tolerance)
    return outcome


@contextmanager
def _one_at_a_time(out: Path) -> Iterator[None]:
    """Hold the lock of a bundle, which does not exist yet; a process that ends lets go of it."""
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
        yield
    finally:
        lock.release()


def _plan(source: Source, out: Path, asked: Mapping[str, Any], say: Callable[[str], None]) -> None:
    folds, hours, given = asked["folds"], asked["hours"], asked["given"]
    rounds = math.ceil((folds or 1) / asked["processes"])  # of trainings, one after another
    each = None if hours is None else TRAINING_SHARE * hours / rounds
    options = {key: asked[key] for key in ("skip_bad", "memory", "device", "folds", "processes", "narrow")}
    say(f"Planning {out} for {source.data}.")
    _, plan = plan_bundle(
        source, out, hours=each, given=given, progress=True, extra={REQUEST: asked}, **options
    )
    size, channels = plan["roi_size"], plan["channels"]
    why = f"{out / 'README.md'} says why."
    say(f"Planned: patch {size}, channels {channels}, {plan['max_epochs']} epochs; {why}")


def _plan_second_part(
    first: Outcome, out: Path, asked: Mapping[str, Any], say: Callable[[str], None]
) -> None:
    for line in first.table():
        say(line)
    plan = write_second_part(first.bundle, out, first.level, {REQUEST: asked})
    say(f"Planned: {out}, a network of L{first.level} alone, {plan['max_epochs']} epochs.")


def _check_request(out: Path, asked: Mapping[str, Any]) -> None:
    """Raise unless the bundle was made with these arguments."""
    path = out / REQUEST
    if not path.is_file():
        raise FileExistsError(
            f"out must be a folder that does not exist, or one of an earlier fit, {out} has no {REQUEST}: "
            f"give another --out, or train what is there: monai-unetpp train {out}"
        )
    before = {"narrow": False, **json.loads(path.read_text(encoding="utf-8"))}
    differs = [key for key, value in asked.items() if before.get(key) != value]
    if differs:
        key = differs[0]
        raise ValueError(
            f"{out} was fitted with {key} {before.get(key)!r}, got {asked[key]!r}: the same arguments resume "
            "it; for others, give another --out."
        )


def _run(training: Training, say: Callable[[str], None]) -> None:
    """Run the stages of a fold that are not complete."""
    # A process that lost its parent saves first, and holds this lock until then.
    with FileLock(training.bundle / f".fold_{training.fold}.lock"):
        if not training.is_trained():
            say(f"{training.name}training, {training.epochs} epochs.")
            training.train()
        if not training.is_scored():
            say(f"{training.name}scoring the levels.")
            training.score(writable_formats() if training.folds is None else [])  # theirs is chosen together


def _run_aloud(training: Training) -> None:
    """Run a fold in a process of its own, whose lines go to the console."""
    _run(training, partial(print, flush=True))


def _check_devices(devices: Sequence[str], device: str | None, folds: int | None) -> None:
    if devices and folds is None:
        raise ValueError(f"devices share folds: give folds, such as --folds 5, or one --device {devices[0]}.")
    if devices and device is not None:
        raise ValueError(f"device must be left out with devices {' '.join(devices)}, got {device}.")
    names = ["cuda:0" if each == "cuda" else each for each in devices]
    if doubled := [each for each in names if each != "cpu" and names.count(each) > 1]:
        raise ValueError(f"devices must be different, got {doubled[0]} more than once.")
    if len(kinds := sorted({each.partition(":")[0] for each in names})) > 1:
        raise ValueError(
            f"devices must be of one kind, for which the plan is made, got {' and '.join(kinds)}."
        )
    for each in devices:
        find_device(each)
