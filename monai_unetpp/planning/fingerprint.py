# SPDX-License-Identifier: Apache-2.0
"""The fingerprint of a data set: what its cases are like, measured case by case, and what does not fit.

MONAI's ``DataAnalyzer`` gives the same figures for the cases that it reads (compared in the tests). It stops
at the first one that it cannot read, starts anew after an interruption, and knows neither pictures, DICOM
series and masks whose values are no classes, nor what does not fit between cases.
"""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from monai_unetpp.data.layouts import Layout, find_layout
from monai_unetpp.files import PathLike
from monai_unetpp.planning.measuring import CaseFacts, files_of, inside, measure_case
from monai_unetpp.planning.problems import find_problems
from monai_unetpp.planning.source import Source
from monai_unetpp.readers import read_geometry
from monai_unetpp.readers.memory import available_memory
from monai_unetpp.regions import region_values

__all__ = ["Fingerprint", "take_fingerprint"]

VOLUME_COPIES = 12  # of a volume in float32 that measuring it takes at most
MAX_CASES_IN_ONE_PROCESS = 16  # cases that are not worth further processes
FACTS = {each.name for each in dataclasses.fields(CaseFacts)}


@dataclass(frozen=True)
class Fingerprint:
    """What a data set is like.

    Args:
        data: Folder of the data set.
        cases: One per case that can be used.
        labels: Names of the classes, or of the regions, the background first.
        label_values: Values of the classes in the masks, where they are not 0, 1, 2, ...; see
            :func:`~monai_unetpp.transforms.classes.as_classes`.
        modality: Names of the channels.
        problems: Path -> why it is not used.
        places: What :func:`~monai_unetpp.data.read_dataset` has to be told, too, such as ``images``.
        regions: Values of the masks in each region, for classes that overlap.
        regions_class_order: Value that is written in each region, likewise.
        ignore_label: Value of voxels that nobody annotated.
    """

    data: str
    cases: list[CaseFacts]
    labels: list[str]
    label_values: list[int] | str | None
    modality: list[str]
    problems: dict[str, str] = field(default_factory=dict)
    places: dict[str, str | bool] = field(default_factory=dict)
    regions: list[list[int]] | None = None
    regions_class_order: list[int] | None = None
    ignore_label: int | None = None

    def table(self) -> list[tuple[str, str]]:
        """Return what a person reads first: name -> value, in rows."""
        cases = self.cases
        scans = len({case.scan or case.image for case in cases})
        rows = [("cases", f"{len(cases)}" + (f" of {scans} scans" if scans < len(cases) else ""))]
        rows.append(("size, voxels", _spread([case.size for case in cases])))
        if not all(case.picture for case in cases):
            rows.append(("spacing, mm", _spread([case.spacing for case in cases])))
        for n, name in enumerate(self.modality):
            shown = [c.quantiles[n if n < c.channels else 0] for c in cases if c.centre]
            low, mid, high = (f"{np.percentile(np.concatenate(shown), q):.4g}" for q in (0.5, 50, 99.5))
            rows.append((f"{name}, in the foreground", f"median {mid}, 99 % within {low} .. {high}"))
        for name, found in self.by_class().items():
            voxel = [math.prod(case.spacing) for case, _ in found]
            unit, scale = ("pixels", 1.0) if cases[0].picture else ("ml", 1e-3)
            volumes = [v * each[0] * scale for v, (_, each) in zip(voxel, found, strict=True)]
            count = statistics.median(each[1] for _, each in found) if found else 0
            volume = f"{statistics.median(volumes):.4g}" if volumes else "0"
            rows.append((name, f"in {len(found)} cases; median {volume} {unit} in {count:g} components"))
        return rows

    def by_class(self) -> dict[str, list[tuple[CaseFacts, tuple[int, int, float]]]]:
        """Return the cases that have each class, with its voxels, components and median component."""
        values = self.label_values
        listed = values if isinstance(values, list) else list(range(len(self.labels)))
        every = [[value] for value in listed[1:]] if self.regions is None else self.regions
        found: dict[str, list[tuple[CaseFacts, tuple[int, int, float]]]] = {
            name: [] for name in self.labels[1:]
        }
        for case in self.cases:
            for name, of_class in zip(self.labels[1:], every, strict=True):
                of = [
                    v
                    for k, v in case.values.items()
                    if k != "0" and (isinstance(values, str) or int(k) in of_class)
                ]
                if of:
                    total = sum(each[0] for each in of), sum(each[1] for each in of)
                    found[name].append((case, (*total, statistics.median(each[2] for each in of))))
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``fingerprint.json``."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Fingerprint:
        """Return a fingerprint from the content of ``fingerprint.json``."""
        cases = [_facts(case) for case in content["cases"]]
        return cls(**{**content, "cases": cases})


def take_fingerprint(
    source: Source,
    log: PathLike | None = None,
    processes: int | None = None,
    progress: bool = False,
) -> Fingerprint:
    """Measure every case of a data set, and find what does not fit.

    One case at a time is in the memory of a process.

    Args:
        source: The data set.
        log: File to which measured cases are appended; those that it has are not measured again.
        processes: Number of processes; default one per CPU.
        progress: Whether to show a progress bar.

    Raises:
        FileNotFoundError: if the folder holds no data set.
        ValueError: if the data set is damaged as a whole.
    """
    root = Path(os.path.normpath(source.data))  # as MONAI makes the paths of a dataset.json
    layout = find_layout(root, source.images, source.masks, source.scan, source.allow_outside)
    layout = _ignoring(layout, source.ignore_label)
    cases = _measured(root, layout, Path(log) if log is not None else None, processes, progress)
    labels, values, problems = find_problems(source, layout, cases)
    good = [case for case in cases if case.image not in problems and case.label not in problems]
    channels = max((case.channels for case in good), default=1)
    modality = (
        layout.modality if len(layout.modality) == channels else [f"channel {n}" for n in range(channels)]
    )
    regions, order = (None, None) if source.foreground or layout.regions is None else layout.regions
    values = values if regions is None else None
    places = source.places()
    return Fingerprint(
        str(root), good, labels, values, modality, problems, places, regions, order, layout.ignored
    )


def _ignoring(layout: Layout, ignored: int | None) -> Layout:
    """Return the layout with the value that was given, which must be none of a class."""
    if ignored is None:
        return layout
    classes = [0, *(region_values(layout.regions[0]) if layout.regions is not None else layout.labels)]
    if ignored in classes or layout.ignored not in (None, ignored):
        known = f"dataset.json has {layout.ignored}" if layout.ignored is not None else "use that of no class"
        raise ValueError(
            f"ignore_label must be none of the values of classes, {', '.join(map(str, sorted({*classes})))}, "
            f"got {ignored}: {known}."
        )
    return dataclasses.replace(layout, ignored=ignored)


def _measured(
    root: Path, layout: Layout, log: Path | None, processes: int | None, progress: bool
) -> list[CaseFacts]:
    """Return all cases in the order of the data set, those of the log without measuring them again."""
    known = _read_log(log)
    keys = [_key(root, case, layout) for case in layout.cases]  # an image may have several masks
    left = [(key, case) for key, case in zip(keys, layout.cases, strict=True) if key not in known]
    job = partial(measure_case, root=root, channels=layout.channels, ignored=layout.ignored)
    number = processes or _processes([Path(case["image"]) for _, case in left])
    bar = tqdm(left, desc="Cases", unit="case", disable=None if progress else True)
    with _mapped(job, [case for _, case in left], number) as results:
        for (key, _), facts in zip(bar, results, strict=True):
            _append(log, key, facts)
            known[key] = facts
    return [known[key] for key in keys]


def _processes(images: Sequence[Path]) -> int:
    """Return one process per CPU, or fewer where their largest cases would not fit in memory together."""
    cpus, memory = os.cpu_count() or 1, available_memory()
    files = [path for path in images if path.is_file()]
    if memory is None or not files:
        return cpus
    try:
        size, _ = read_geometry(max(files, key=lambda path: path.stat().st_size))
    except (OSError, ValueError):  # said with the others' problems, where it is measured
        return cpus
    return max(1, min(cpus, int(memory // (VOLUME_COPIES * 4 * math.prod(size)))))


@contextmanager
def _mapped(job: Any, cases: Sequence[Any], processes: int) -> Iterator[Iterator[CaseFacts]]:
    """Yield the results of a job in the order of the cases."""
    if processes == 1 or len(cases) <= MAX_CASES_IN_ONE_PROCESS:
        yield map(job, cases)
        return
    context = multiprocessing.get_context("spawn")  # a fork after torch has started its threads may hang
    with ProcessPoolExecutor(processes, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield pool.map(job, cases, chunksize=max(1, min(8, len(cases) // (4 * processes))))


def _spread(values: Sequence[Sequence[float]]) -> str:
    """Return median, smallest and largest by axis."""
    array = np.array(values, dtype=float)
    median, low, high = (
        " x ".join([f"{v:.4g}" for v in each]) for each in (np.median(array, 0), array.min(0), array.max(0))
    )
    return median if low == high else f"median {median}, from {low} to {high}"


# The log of measured cases, by which a run that was stopped goes on


def _key(root: Path, case: Mapping[str, str], layout: Layout) -> str:
    """Name a case with the state of its files: one that was changed is measured again."""
    parts = []
    for path in files_of(case, layout.channels):
        inner = sorted(path.iterdir()) if path.is_dir() else [path]
        states = [each.stat() for each in inner]
        newest = max((state.st_mtime_ns for state in states), default=0)
        parts.append(f"{inside(root, path)}:{sum(state.st_size for state in states)}:{newest}")
    return "|".join([*parts, case.get("scan", ""), str(layout.ignored)])


def _append(log: Path | None, key: str, facts: CaseFacts) -> None:
    if log is None or facts.problem:
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        line = json.dumps({"key": key, "facts": dataclasses.asdict(facts)})
        file.write(f"\n{line}")  # on a line of its own, even after one that was not finished


def _read_log(log: Path | None) -> dict[str, CaseFacts]:
    """Return the cases of a log by key; a last line that a killed process did not finish is left out."""
    found = {}
    for line in log.read_text(encoding="utf-8").splitlines() if log is not None and log.is_file() else []:
        with suppress(ValueError, KeyError, TypeError):
            entry = json.loads(line)
            if entry["facts"].keys() == FACTS:  # else of another version, and measured again
                found[entry["key"]] = _facts(entry["facts"])
    return found


def _facts(case: Mapping[str, Any]) -> CaseFacts:
    """Return facts from JSON, whose lists were tuples."""
    tuples = {key: _tuples(value) for key, value in case.items()}
    return CaseFacts(**tuples)


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(each) for each in value)
    if isinstance(value, dict):
        return {key: _tuples(each) for key, each in value.items()}
    return value
