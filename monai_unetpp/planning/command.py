# SPDX-License-Identifier: Apache-2.0
"""From a folder of data to a bundle: fingerprint, plan, files; nothing is written before all of it fits."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from monai_unetpp.data.splits import split_cases
from monai_unetpp.devices import find_device
from monai_unetpp.files import PathLike
from monai_unetpp.planning.budget import memory_of_machine, speed_of_machine
from monai_unetpp.planning.choices import Machine, Plan
from monai_unetpp.planning.fingerprint import Fingerprint, take_fingerprint
from monai_unetpp.planning.given import check_given
from monai_unetpp.planning.narrowing import first_part
from monai_unetpp.planning.patches import FIRST_WIDTH
from monai_unetpp.planning.rules import make_plan
from monai_unetpp.planning.source import Source
from monai_unetpp.planning.writing import write_bundle
from monai_unetpp.readers.memory import available_memory

__all__ = ["parse_memory", "plan_bundle"]

MAX_LISTED = 100  # problems
HOURS = {"cpu": 1.0, "cuda": 8.0}
UNITS = {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def plan_bundle(
    source: Source,
    out: PathLike,
    skip_bad: bool = False,
    memory: float | None = None,
    hours: float | None = None,
    device: str | None = None,
    given: Mapping[str, Any] | None = None,
    progress: bool = False,
    extra: Mapping[str, Any] | None = None,
    folds: int | None = None,
    processes: int = 1,
    narrow: bool = False,
) -> tuple[Fingerprint, Plan]:
    """Write a bundle for a data set of one's own.

    What does not fit is listed by file, all at once. Measured cases are kept in ``.NAME.measured.jsonl``
    beside ``out`` until the bundle is written, so that a run that was stopped goes on.

    Args:
        source: The data set.
        out: Folder to make; its name is the bundle's.
        skip_bad: Whether to go on without the cases that do not fit.
        memory: Bytes that a training step may take; default what the machine has.
        hours: Time of the training, h; default 1 on a CPU, 8 on a GPU.
        device: Such as ``"cpu"``; default a GPU if there is one.
        given: Settings that are not chosen but taken, see :func:`~monai_unetpp.planning.rules.make_plan`.
        progress: Whether to show a progress bar.
        extra: Contents of further JSON files of the bundle, by name.
        folds: Number of folds of a cross-validation, each of which holds out its share of the scans.
        processes: Number of trainings at once, which share what cases and loading take, and a CPU.
        narrow: Whether the training is the first part of two, see :mod:`monai_unetpp.planning.narrowing`.

    Raises:
        FileExistsError: if ``out`` exists.
        FileNotFoundError: if there is no data set.
        ValueError: if cases do not fit and ``skip_bad`` is false, more memory or another device is wanted
            than there is, no held-out case has a foreground, or no plan is possible.
    """
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"out must be a folder that does not exist, {out} does: give another.")
    where = find_device(device)
    if where.type not in HOURS:
        raise ValueError(f"device must be cpu or cuda, for which there are rules, got {device}.")
    check_given(given or {})
    if hours is not None and not 0 < hours < math.inf:
        raise ValueError(f"hours must be above 0, got {hours}.")
    limit = _memory(where, memory)
    log = out.parent / f".{out.name}.measured.jsonl"
    fingerprint = take_fingerprint(source, log, progress=progress)
    if fingerprint.problems and not skip_bad:
        raise ValueError(_listed(Path(source.data), fingerprint.problems))
    scans = len({case.scan or case.image for case in fingerprint.cases})
    if folds is not None and folds > scans:
        raise ValueError(f"folds must be at most {scans}, the number of scans, got {folds}.")
    given = {**({} if folds is None else {"val_fraction": round(1 / folds, 4)}), **(given or {})}
    kind = where.type
    sharers = processes if kind == "cpu" else 1  # each GPU has one process
    dims = 2 if all(case.picture or case.size[2] == 1 for case in fingerprint.cases) else 3
    widths = [FIRST_WIDTH[kind] * 2**i for i in range(4)]
    network = {"spatial_dims": dims, "in_channels": 1, "out_channels": 2, "channels": widths, "strides": 2}
    machine = Machine(
        kind,
        limit / sharers if memory is None else limit,
        speed_of_machine(network, where, sharers),
        HOURS[kind] if hours is None else hours,
        0.25 * (available_memory() or 2**34) / processes,
        0 if kind == "cpu" else max(1, 8 // processes),
    )
    plan = make_plan(fingerprint, machine, given)
    _check_held_out(fingerprint, folds, plan["val_fraction"])
    plan = first_part(plan) if narrow else plan
    write_bundle(plan, fingerprint, out, extra)
    log.unlink(missing_ok=True)
    return fingerprint, plan


def parse_memory(text: str) -> float:
    """Return bytes from text such as ``8GB``, ``500 MB`` or ``8``, which are GB.

    Raises:
        ValueError: if it is none.
    """
    found = re.fullmatch(r"\s*([\d.]+)\s*([kmgt]?)(i?b)?\s*", text.lower())
    try:
        number = float(found[1]) if found else 0.0
    except ValueError:
        number = 0.0
    if found is None or number <= 0:
        raise ValueError(f"memory must be such as 8GB or 500MB, got {text!r}.")
    return number * UNITS[found[2] or ("b" if found[3] else "g")]


def _check_held_out(fingerprint: Fingerprint, folds: int | None, val_fraction: float) -> None:
    """Raise unless each validation has a case with a foreground: without one no epoch is the best."""
    empty = {f"{fingerprint.data}/{c.image}" for c in fingerprint.cases if {*c.values} <= {"0"}}
    if not empty:
        return
    cases = [
        {"image": f"{fingerprint.data}/{c.image}", **({"scan": c.scan} if c.scan else {})}
        for c in fingerprint.cases
    ]
    for fold in range(folds or 1):
        _, held_out = split_cases(cases, val_fraction, 0, folds, fold)
        images = [case["image"] for case in held_out]
        if empty.issuperset(images):
            which, fewer = (
                ("the validation", f"a larger --set val_fraction, now {val_fraction:g}")
                if folds is None
                else (f"fold {fold} of {folds}", "fewer --folds")
            )
            raise ValueError(
                f"{which} would hold out only cases without a foreground, such as {images[0]}: give {fewer}, "
                "or leave empty cases out, without --allow-empty."
            )


def _memory(device: torch.device, wanted: float | None) -> float:
    there = memory_of_machine(device)
    if wanted is not None and wanted > there:
        raise ValueError(
            f"memory must be at most {there / 2**30:.1f}GB, which this {device.type} can spare, got "
            f"{wanted / 2**30:.1f}GB; to plan for another machine, run it there."
        )
    return there if wanted is None else wanted


def _listed(data: Path, problems: Mapping[str, str]) -> str:
    lines = [f"  {path} {why}" for path, why in list(problems.items())[:MAX_LISTED]]
    if len(problems) > MAX_LISTED:
        lines.append(f"  and {len(problems) - MAX_LISTED} more")
    return "\n".join(
        [f"{len(problems)} files of {data} do not fit; --skip-bad goes on without them:", *lines]
    )
