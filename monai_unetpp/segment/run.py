# SPDX-License-Identifier: Apache-2.0
"""Segmenting scans in one process: claimed by a lock, loaded, segmented, written.

A scan that fails does not stop the others, finished scans are skipped, and several processes, on one machine
or on several, can share one folder.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from filelock import Timeout
from monai.data import ThreadBuffer, partition_dataset
from tqdm import tqdm  # type: ignore[import-untyped]

from monai_unetpp.files import PathLike, stale_parts
from monai_unetpp.findings import parse_limits
from monai_unetpp.inferers import EarlyExitInferer
from monai_unetpp.pictures import check_sheets
from monai_unetpp.readers.memory import check_volume
from monai_unetpp.segment.dicom import DICOM_FORMATS, DicomResults, check_formats
from monai_unetpp.segment.findings import FINDING_KINDS, FindingResults
from monai_unetpp.segment.outcome import Outcome
from monai_unetpp.segment.pipeline import load_pipeline
from monai_unetpp.segment.report import write_run_report
from monai_unetpp.segment.results import SERIES, Results, volumes_of

__all__ = ["segment"]

GATHER_SECONDS = 30.0  # after which the table over all scans is brought up to date during a run

logger = logging.getLogger(__name__)


def segment(
    input_dir: PathLike,
    output_dir: PathLike,
    bundle: PathLike,
    probability: int | None = None,
    uncertainty: bool = False,
    sheets: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    share: tuple[int, int] = (0, 1),
    overlays: Sequence[str] = (),
    override_record: bool = False,
    formats: Sequence[str] = ("nifti",),
    seg_type: str = "binary",
    empty_frames: bool = False,
    series: Sequence[str] = (),
    findings: bool = False,
    min_volume: str | None = None,
    min_diameter: str | None = None,
    min_confidence: float | str | None = None,
    report: bool = False,
    **settings: Any,
) -> list[Outcome]:
    """Segment scans, each into ``<name>_seg.nii.gz`` on its own grid, or into DICOM beside its series.

    Args:
        input_dir: Scan or folder of scans, see :func:`~monai_unetpp.data.list_volumes`.
        output_dir: Folder of the masks, outside of ``input_dir``.
        bundle: Folder of the bundle, or the name of one that comes with this package.
        probability: Class, or number of the region from 1 on, whose probability is written as
            ``<name>_probability.nii.gz``.
        uncertainty: Whether to write the disagreement of the heads as ``<name>_uncertainty.nii.gz``, and to
            rank the cases by expected error in ``uncertainty.csv``, the most uncertain first.
        sheets: Whether to draw slices with outlines of the mask as ``<name>_sheet.png``.
        overwrite: Whether to segment scans again whose results exist.
        progress: Whether to show progress bars over scans and over windows.
        share: Rank of this process and number of processes that the scans are divided among. Processes that
            were not started together can share a folder as well: locks keep them apart.
        overlays: Names of further JSONs of the bundle that are merged over its ``inference.json``.
        override_record: Whether ``settings`` and ``overlays`` win where the record of the weights disagrees.
        formats: ``"nifti"``; ``"dicom-seg"`` for ``<name>_seg.dcm`` and ``"dicom-rtstruct"`` for
            ``<name>_rtstruct.dcm``, of scans that are DICOM series.
        seg_type: Type of a DICOM SEG, ``"binary"`` or ``"labelmap"``.
        empty_frames: Whether a DICOM SEG has frames in which nothing was found.
        series: UIDs of DICOM series, or patterns of their descriptions; default all that are volumes.
        findings: Whether to measure each connected component, in ``<name>_findings.csv`` and ``.json``, and
            in ``findings.csv`` those of all scans in ``output_dir``; see :mod:`monai_unetpp.findings`.
        min_volume: Volume with its unit, such as ``"30mm3"``: smaller components are dropped from the mask
            and from the tables.
        min_diameter: Long axis, such as ``"4mm"``, likewise.
        min_confidence: Confidence, in [0, 1], likewise; see :attr:`~monai_unetpp.findings.Finding.rank`. By
            default that of the operating point if ``findings`` are asked for and it was calibrated; 0 drops
            nothing.
        report: Whether to write ``report.json`` and ``report.html``, what became of each scan in
            ``output_dir``.
        **settings: Keys of the configuration with other values, see :func:`load_pipeline`.

    Returns:
        One outcome per scan of this process.

    Raises:
        FileNotFoundError: if there are no scans, no bundle or no weights.
        OSError: if ``output_dir`` cannot be written to.
        ModuleNotFoundError: if sheets are asked for and matplotlib is not installed, or DICOM and highdicom.
        ValueError: if ``output_dir`` is inside of ``input_dir``, or an argument is unknown or does not fit.
    """
    if Path(input_dir).resolve() in (Path(output_dir).resolve(), *Path(output_dir).resolve().parents):
        raise ValueError(f"output must be outside of the folder of the scans, {input_dir}, got {output_dir}.")
    if sheets:
        check_sheets()
    limits = parse_limits(min_volume, min_diameter, min_confidence)
    optional = {"probability": probability is not None, "uncertainty": uncertainty, "sheet": sheets}
    optional |= dict.fromkeys(FINDING_KINDS, findings)
    kinds = [kind for kind, wanted in optional.items() if wanted] + check_formats(formats, seg_type)
    kinds += ["seg"] if "nifti" in formats else []
    if uncertainty and (settings.get("ensemble") or settings.get("mirror")):
        raise ValueError(
            "uncertainty must be left out with several checkpoints or mirroring: it is the disagreement of "
            "the heads of one network."
        )
    pipeline = load_pipeline(bundle, input_dir, output_dir, overlays, override_record, **settings)
    pipeline.inferer.progress = progress
    measured = None
    if findings or limits.given():
        measured = FindingResults.of(pipeline, limits, findings and min_confidence is None)
        pipeline = measured.pipeline
    rank, number = share
    cases = every = pipeline.list_scans(input_dir, series, quiet=rank > 0)
    if number > 1:
        cases = partition_dataset(every, num_partitions=number, even_divisible=False)[rank]
    asked = any(kind in DICOM_FORMATS for kind in kinds)
    results = Results(
        pipeline,
        *(Path(input_dir), Path(output_dir)),
        kinds,
        _make_locks(Path(output_dir)),
        stale_parts(output_dir),
        DicomResults.of(pipeline, seg_type, empty_frames) if asked else None,
        measured,
        probability,
    )
    run = _Run(results, overwrite)
    outcomes: list[Outcome] = []
    gathered = time.monotonic()
    bar = tqdm(run.outcomes(cases), desc="Scans", total=len(cases), disable=None if progress else True)
    try:
        for outcome in bar:
            outcomes.append(outcome)
            if time.monotonic() - gathered > GATHER_SECONDS:
                results.gather()
                gathered = time.monotonic()
    finally:  # also of a run that is interrupted
        results.gather()
        if report:
            write_run_report(results, [case["image"] for case in every], outcomes)
    return outcomes


def _make_locks(output_dir: Path) -> Path:
    """Make the folder of locks; an output that cannot be written to is an error before the first scan."""
    locks = output_dir / ".locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=locks):
            return locks
    except OSError as error:
        hint = f"{error.strerror}: output must be a folder that can be written to, name another"
        raise OSError(error.errno, hint, str(output_dir)) from error


@dataclass(frozen=True)
class _Run:
    """One call of :func:`segment`."""

    results: Results
    overwrite: bool

    def outcomes(self, cases: Sequence[Mapping[str, str]]) -> Iterator[Outcome]:
        """Segment scans one by one; the next one is loaded in the meantime."""
        for outcome, scan, lock in ThreadBuffer(self._loaded(cases), buffer_size=1):
            if scan is not None:
                outcome = self._attempt(outcome, scan)
            if lock is not None:
                lock.release()
            if outcome.state == "failed":
                logger.error(outcome.reason)
            yield outcome

    def _loaded(self, cases: Sequence[Mapping[str, str]]) -> Iterator[tuple[Outcome, Any, Any]]:
        """Lock and load the scans that are not done."""
        for case in cases:
            image = case["image"]
            lock = self.results.lock(image)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                yield Outcome(image, "locked"), None, None
                continue
            try:
                outcome, scan = self._load(case)
            except Exception as error:  # a scan that fails does not stop the others
                outcome, scan = Outcome(image, "failed", _failure(image, error)), None
            yield outcome, scan, lock

    def _load(self, case: Mapping[str, str]) -> tuple[Outcome, Any]:
        """Load a scan, unless its results exist; its lock must be held."""
        image, results = case["image"], self.results
        results.clear_stale(image)
        if not self.overwrite and results.complete(image):
            return Outcome(image, "skipped"), None
        if results.dicom is not None:
            results.dicom.check_input(image)
        check_volume(image, results.pipeline.pixdim)
        scan = results.pipeline.preprocessing(dict(case))
        warnings = tuple(scan["image"].meta.get("warnings", ()))
        if results.dicom is not None:
            scan[SERIES] = results.dicom.read_series(image, scan["image"])
            warnings += scan[SERIES].warnings
        return Outcome(image, "done", warnings=warnings), scan

    def _attempt(self, outcome: Outcome, scan: Mapping[str, Any]) -> Outcome:
        """Segment a loaded scan and write its results."""
        started = time.perf_counter()
        image, results, pipeline = outcome.image, self.results, self.results.pipeline
        windows = pipeline.inferer.inferer
        if isinstance(windows, EarlyExitInferer):
            windows.reset()
        try:
            volume = scan["image"][None].to(pipeline.device)
            maps = (results.probability, "uncertainty" in results.kinds, results.findings is not None)
            with torch.inference_mode(), pipeline.autocast():
                found = pipeline.inferer.segment(volume, pipeline.network, *maps)
            labels, findings = results.write(image, scan, found)
            volumes = volumes_of(labels, pipeline.names, pipeline.regions)
        except Exception as error:  # a scan that fails does not stop the others
            return replace(outcome, state="failed", reason=_failure(image, error))
        kind = next(kind for kind in ("seg", *DICOM_FORMATS) if kind in results.kinds)
        return replace(
            outcome,
            seconds=time.perf_counter() - started,
            exits=tuple(windows.exits) if isinstance(windows, EarlyExitInferer) else (),
            uncertainty=found.case_uncertainty,
            mask=str(results.paths(image)[kind]),
            volumes=volumes,
            findings=None if results.findings is None else tuple(findings),
        )


def _failure(image: str, error: BaseException) -> str:
    """Return the message of an error with the path of the scan; ``Compose`` wraps what a transform raises."""
    while error.__cause__ is not None and str(error).startswith("applying transform"):
        error = error.__cause__
    text = str(error) or type(error).__name__
    return text if image in text else f"{image}: {text}"
