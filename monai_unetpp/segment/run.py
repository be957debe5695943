# SPDX-License-Identifier: Apache-2.0
"""From a folder of scans to a folder of masks, by a bundle's own inference configuration.

A bad scan stops no other; what is done is not done again; several processes, of this machine or of others,
share one folder.
"""

from __future__ import annotations

import csv
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from monai.bundle import ConfigParser
from monai.data import MetaTensor, ThreadBuffer, partition_dataset
from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]

from monai_unetpp.bundle import config_files
from monai_unetpp.data import list_volumes
from monai_unetpp.extras import require
from monai_unetpp.files import PathLike, result_path, short_name, stale_parts, write_csv
from monai_unetpp.inferers import EarlyExitInferer, Segmentation, VolumeInferer
from monai_unetpp.levels import read_calibration
from monai_unetpp.pictures import draw_volume
from monai_unetpp.readers.memory import check_volume
from monai_unetpp.transforms.saving import write_nifti
from monai_unetpp.weights import load_network

__all__ = ["Outcome", "Pipeline", "load_pipeline", "segment", "segment_distributed"]


RANKING = "uncertainty.csv"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of one scan.

    Args:
        image: its path.
        state: ``"done"``; ``"kept"``, it had been done before; ``"elsewhere"``, another process is at it; or
            ``"failed"``.
        reason: why it failed.
        seconds: from the loaded volume to the written mask.
        exits: of early exit: how many windows stopped at each level, shallowest first.
        uncertainty: of the case, if it was asked for; see :class:`~monai_unetpp.inferers.Segmentation`.
    """

    image: str
    state: str
    reason: str = ""
    seconds: float = 0.0
    exits: tuple[int, ...] = ()
    uncertainty: float | None = None


@dataclass(frozen=True)
class Pipeline:
    """What a bundle's inference configuration does with one scan, its parts made and its weights loaded."""

    preprocessing: Any
    network: nn.Module
    inferer: VolumeInferer
    postprocessing: Any
    device: torch.device
    autocast: Any
    window: tuple[float, float]
    pixdim: tuple[float, ...]


def load_pipeline(
    bundle: PathLike,
    source: PathLike,
    output_dir: PathLike,
    overlays: Sequence[str] = (),
    **settings: Any,
) -> Pipeline:
    """Make the parts of a bundle's ``inference.json``.

    Args:
        bundle: its folder.
        source: what is segmented.
        output_dir: where masks go.
        overlays: names of further JSONs of the bundle that lie over it.
        **settings: keys of the configuration that take other values, such as ``ckpt_path``; ``level`` may be
            ``"auto"``, the calibrated one, or the deepest if none was.

    Raises:
        FileNotFoundError: if the folder has no ``inference.json``, or the bundle no weights; or if those were
            not calibrated and ``early_exit`` is asked for.
        ValueError: if the weights do not fit; see :func:`~monai_unetpp.load_network`.
    """
    parser = ConfigParser()
    parser.read_config(config_files(bundle, "inference", *overlays))
    places = {"bundle_root": bundle, "dataset_dir": source, "output_dir": output_dir}
    parser.update({**{key: as_text(path) for key, path in places.items()}, **settings})
    get = parser.get_parsed_content
    get("imports")
    device, weights, level = get("device"), get("ckpt_path"), get("level")
    if level == "auto":
        level = _calibrated_level(weights)
    if "early_exit" in overlays:
        read_calibration(weights)  # says what is wrong with it; the parser would bury that
    network = load_network(get("network"), weights, level, device, get("runtime"))
    inferer = get("inferer")
    inferer.level = None  # the network is at its level
    return Pipeline(
        preprocessing=get("preprocessing"),
        network=network,
        inferer=inferer,
        postprocessing=get("postprocessing"),
        device=device,
        autocast=partial(torch.autocast, device.type, enabled=get("amp"), **get("amp_kwargs")),
        window=tuple(get("hu_range")),
        pixdim=tuple(get("pixdim")),
    )


def as_text(path: PathLike) -> str:
    """Return a path as a value of a configuration, which would run one that begins with ``$`` as code."""
    return str(path) if Path(path).is_absolute() else os.path.join(os.curdir, path)  # noqa: PTH118  keeps ./


def _calibrated_level(weights: PathLike) -> int | None:
    try:
        level = read_calibration(weights).level
    except FileNotFoundError:
        logger.info(f"{weights} was not calibrated: the deepest level is taken.")
        return None
    logger.info(f"{weights} was calibrated: L{level} is deep enough.")
    return level


def segment(
    source: PathLike,
    output_dir: PathLike,
    bundle: PathLike,
    probability: int | None = None,
    uncertainty: bool = False,
    sheets: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    share: tuple[int, int] = (0, 1),
    overlays: Sequence[str] = (),
    **settings: Any,
) -> list[Outcome]:
    """Segment scans, each into ``<name>_seg.nii.gz`` on its own grid.

    Args:
        source: a scan or a folder of scans, see :func:`~monai_unetpp.data.list_volumes`.
        output_dir: folder of the masks, another than ``source``.
        bundle: folder of a bundle.
        probability: a class whose probability is written, too, as ``<name>_probability.nii.gz``.
        uncertainty: whether to write how far the heads disagree, as ``<name>_uncertainty.nii.gz``, and to
            list the cases, that with the greatest error to be expected first, in ``uncertainty.csv``.
        sheets: whether to draw slices with the outlines of what was found, as ``<name>_sheet.png``.
        overwrite: whether scans are segmented again whose results are there.
        progress: whether to show progress over scans and over windows.
        share: rank and number of the processes that share the scans out; those of one folder that were not
            begun together share it as well: a scan is done by whoever is first.
        overlays: as :func:`load_pipeline` takes them.
        **settings: as :func:`load_pipeline` takes them.

    Returns:
        What became of each scan of this process.

    Raises:
        FileNotFoundError: if there is no scan, no bundle, or there are no weights.
        OSError: if ``output_dir`` cannot be written to.
        ModuleNotFoundError: if sheets are asked for and matplotlib is not installed.
        ValueError: if ``output_dir`` is the folder of the scans, or an argument does not fit the network.
    """
    cases = list_volumes(source)
    if Path(source).resolve() in (Path(output_dir).resolve(), *Path(output_dir).resolve().parents):
        raise ValueError(f"output must be outside of the folder of the scans, {source}, got {output_dir}.")
    rank, number = share
    mine = (
        partition_dataset(cases, num_partitions=number, even_divisible=False)[rank] if number > 1 else cases
    )
    kinds = {
        "probability": probability is not None,
        "uncertainty": uncertainty,
        "sheet": sheets,
        "seg": True,
    }
    wanted = [kind for kind, on in kinds.items() if on]
    if sheets:
        require("figures", "matplotlib")
    pipeline = load_pipeline(bundle, source, output_dir, overlays, **settings)
    pipeline.inferer.progress = progress
    locks = _make_locks(Path(output_dir))
    left = stale_parts(output_dir)
    run = _Run(pipeline, Path(source), Path(output_dir), wanted, probability, overwrite, locks, left)
    return list(tqdm(run.outcomes(mine), desc="Scans", total=len(mine), disable=not progress))


def segment_distributed(
    source: PathLike,
    output_dir: PathLike,
    bundle: PathLike,
    level: int | str = "auto",
    overlays: Sequence[str] = (),
    **settings: Any,
) -> str:
    """Segment scans in one process, or in each of those that ``torchrun`` began, and sum up.

    Args:
        source: see :func:`segment`, as for the next two.
        output_dir: of the masks.
        bundle: folder of a bundle.
        level: ``k`` of L^k; ``"auto"``, as it was calibrated, else the deepest; ``"early-exit"``.
        overlays: as :func:`load_pipeline` takes them.
        **settings: as :func:`segment` takes them.

    Returns:
        How many scans were segmented, kept, left to others.

    Raises:
        ValueError: if scans failed, with the reason of each; or see :func:`segment`.
    """
    settings |= _level_settings(level, overlays)
    number = int(os.environ.get("WORLD_SIZE", "1"))
    if number == 1:
        return _summary(segment(source, output_dir, bundle, **settings))
    dist.init_process_group("gloo")
    try:
        rank = dist.get_rank()
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        settings["progress"] = settings.get("progress", False) and rank == 0
        mine = segment(source, output_dir, bundle, share=(rank, number), **settings)
        shares: list[list[Outcome]] = [[] for _ in range(number)]
        dist.all_gather_object(shares, mine)
        return _summary([outcome for share in shares for outcome in share])
    finally:
        dist.destroy_process_group()


def _make_locks(output_dir: Path) -> Path:
    """Make the folder of locks, before hours of computing end in a folder that takes no files."""
    locks = output_dir / ".locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=locks):
            return locks
    except OSError as error:
        hint = f"{error.strerror}: output must be a folder that can be written to, name another"
        raise OSError(error.errno, hint, str(output_dir)) from error


def _add_to_ranking(path: Path, image: str, uncertainty: float) -> None:
    """Add a scan to a table, the least certain first; what it says of others stays."""
    table = {}
    if path.exists():
        try:
            with path.open(newline="") as file:
                table = {row["scan"]: float(row["uncertainty"]) for row in csv.DictReader(file)}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} must be as it was written, or be moved away: {error!r}.") from error
    table[image] = round(uncertainty, 4)
    ranked = sorted(table.items(), key=lambda row: row[1], reverse=True)
    write_csv(path, [{"scan": scan, "uncertainty": value} for scan, value in ranked])


def _level_settings(level: int | str, overlays: Sequence[str]) -> dict[str, Any]:
    """The settings of a level, over other overlays."""
    if level == "early-exit":
        return {"overlays": (*overlays, "early_exit")}
    if isinstance(level, int) or level == "auto":
        return {"level": level, "overlays": overlays}
    raise ValueError(f"level must be a number, auto or early-exit, got {level}.")


def _summary(outcomes: Sequence[Outcome]) -> str:
    counts = {
        state: sum(o.state == state for o in outcomes) for state in ("done", "kept", "elsewhere", "failed")
    }
    words = {
        "done": "segmented",
        "kept": "had been done before",
        "elsewhere": "are another process's",
        "failed": "failed",
    }
    line = ", ".join(f"{counts[state]} {word}" for state, word in words.items() if counts[state]) + "."
    exits = [o.exits for o in outcomes if o.exits]
    if exits:
        stopped = [sum(level) for level in zip(*exits, strict=True)]
        line += " Windows that stopped at " + ", ".join(f"L{k}: {n}" for k, n in enumerate(stopped, 1)) + "."
    if counts["failed"]:
        reasons = "".join(f"\n  {o.reason}" for o in outcomes if o.state == "failed")
        raise ValueError(f"{line}{reasons}")
    return line


@dataclass(frozen=True)
class _Run:
    """One call of :func:`segment`."""

    pipeline: Pipeline
    source: Path
    output_dir: Path
    wanted: Sequence[str]
    probability: int | None
    overwrite: bool
    locks: Path
    left: Mapping[Path, Sequence[Path]]

    def outcomes(self, cases: Sequence[Mapping[str, str]]) -> Iterator[Outcome]:
        """Segment scans one by one; the next is read while one is computed."""
        for outcome, scan, lock in ThreadBuffer(self._loaded(cases), buffer_size=1):
            if scan is not None:
                outcome = self._attempt(outcome, scan)
            if lock is not None:
                lock.release()
            if outcome.state == "failed":
                logger.error(outcome.reason)
            yield outcome

    def paths(self, image: str) -> dict[str, Path]:
        """Where the results of a scan go, by kind."""
        suffixes = {"sheet": ".png"}
        return {
            kind: result_path(image, self.output_dir, self.source, kind, suffixes.get(kind, ".nii.gz"))
            for kind in self.wanted
        }

    def _loaded(self, cases: Sequence[Mapping[str, str]]) -> Iterator[tuple[Outcome, Any, Any]]:
        """Claim and load the scans that are still to do."""
        for case in cases:
            image = case["image"]
            lock = FileLock(self._lock_of(image), thread_local=False)  # released by another thread
            try:
                lock.acquire(timeout=0)
            except Timeout:
                yield Outcome(image, "elsewhere"), None, None
                continue
            try:
                outcome, scan = self._load(case)
            except Exception as error:  # one bad scan stops no other
                outcome, scan = Outcome(image, "failed", _reason(image, error)), None
            yield outcome, scan, lock

    def _lock_of(self, image: str) -> Path:
        name = self.paths(image)["seg"].relative_to(self.output_dir).as_posix().replace("/", "%")
        return self.locks / f"{short_name(name)}.lock"

    def _load(self, case: Mapping[str, str]) -> tuple[Outcome, Any]:
        """Load a scan whose lock is held, if there is still something to do."""
        image, paths = case["image"], self.paths(case["image"]).values()
        for path in paths:
            self._clear(path)
        if not self.overwrite and all(path.exists() for path in paths):
            return Outcome(image, "kept"), None
        check_volume(image, self.pipeline.pixdim)
        return Outcome(image, "done"), self.pipeline.preprocessing(dict(case))

    def _attempt(self, outcome: Outcome, scan: Mapping[str, Any]) -> Outcome:
        """Segment a loaded scan and write the results, the mask last: where it is, all are."""
        started = time.perf_counter()
        windows = self.pipeline.inferer.inferer
        if isinstance(windows, EarlyExitInferer):
            windows.reset()
        try:
            found = self._write(outcome.image, scan)
        except Exception as error:  # one bad scan stops no other
            return replace(outcome, state="failed", reason=_reason(outcome.image, error))
        exits = tuple(windows.exits) if isinstance(windows, EarlyExitInferer) else ()
        seconds = time.perf_counter() - started
        return replace(outcome, seconds=seconds, exits=exits, uncertainty=found.case_uncertainty)

    def _write(self, image: str, scan: Mapping[str, Any]) -> Segmentation:
        pipeline, paths = self.pipeline, self.paths(image)
        volume = scan["image"][None].to(pipeline.device)
        with torch.inference_mode(), pipeline.autocast():
            found = pipeline.inferer.segment(
                volume, pipeline.network, self.probability, "uncertainty" in self.wanted
            )
        for kind in ("probability", "uncertainty"):
            values: MetaTensor | None = getattr(found, kind)
            if values is not None:
                write_nifti(paths[kind], values[0, 0], values.affine, "float32")
        if "sheet" in self.wanted:
            draw_volume(paths["sheet"], image, found.labels[0, 0], pipeline.window)
        if found.case_uncertainty is not None:
            with FileLock(self.locks / f"{RANKING}.lock"):
                self._clear(self.output_dir / RANKING)
                _add_to_ranking(self.output_dir / RANKING, image, found.case_uncertainty)
        pipeline.postprocessing({**scan, "pred": found.labels[0]})
        return found

    def _clear(self, path: Path) -> None:
        """Remove what a process that was killed while writing ``path`` left behind; its lock must be held."""
        for part in self.left.get(path.with_name(short_name(path.name)), ()):
            shutil.rmtree(part, ignore_errors=True)


def _reason(image: str, error: BaseException) -> str:
    """What went wrong, with the name of the file; MONAI's ``Compose`` wraps what a transform raises."""
    while error.__cause__ is not None and str(error).startswith("applying transform"):
        error = error.__cause__
    text = str(error) or type(error).__name__
    return text if image in text else f"{image}: {text}"
