# SPDX-License-Identifier: Apache-2.0
"""Segmenting scans in one process: claimed by a lock, loaded, segmented, written.

A scan that fails does not stop the others, finished scans are skipped, and several processes, on one machine
or on several, can share one folder.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from filelock import FileLock, Timeout
from monai.data import MetaTensor, ThreadBuffer, partition_dataset
from tqdm import tqdm  # type: ignore[import-untyped]

from monai_unetpp.files import PathLike, result_path, short_name, stale_parts
from monai_unetpp.inferers import EarlyExitInferer, Segmentation
from monai_unetpp.pictures import check_sheets, draw_volume
from monai_unetpp.readers.memory import check_volume
from monai_unetpp.segment.dicom import DICOM_FORMATS, DicomResults, check_formats, without_saving
from monai_unetpp.segment.pipeline import Pipeline, load_pipeline
from monai_unetpp.segment.provenance import check_provenance, describe, side_file, write_provenance
from monai_unetpp.segment.results import RANKING, add_to_ranking, volumes_of
from monai_unetpp.transforms.saving import DESCRIPTION, RESULT_PATH, write_nifti

__all__ = ["Outcome", "segment"]

RESULTS = {  # kind -> end of the name of the file, without and with the suffix
    **{kind: (kind, ".nii.gz") for kind in ("seg", "probability", "uncertainty")},
    **{"sheet": ("sheet", ".png"), "dicom-seg": ("seg", ".dcm"), "dicom-rtstruct": ("rtstruct", ".dcm")},
}
SERIES = "dicom_series"  # key of a loaded scan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of one scan.

    Args:
        image: Path of the scan.
        state: ``"done"``; ``"skipped"``, because its results exist; ``"locked"``, because another process is
            segmenting it; or ``"failed"``.
        reason: Reason of the failure.
        seconds: Time from the loaded volume to the written mask, s.
        exits: Number of windows that stopped at each level by early exit, shallowest first.
        uncertainty: Expected error of the case, in [0, 1], if it was asked for; see
            :class:`~monai_unetpp.inferers.Segmentation`.
        warnings: What looked odd about the scan when it was loaded, such as voxels that are not HU.
        mask: Path of the mask, if this run wrote it.
        volumes: Name and volume, ml, of each class of the mask, or of each region.
    """

    image: str
    state: str
    reason: str = ""
    seconds: float = 0.0
    exits: tuple[int, ...] = ()
    uncertainty: float | None = None
    warnings: tuple[str, ...] = ()
    mask: str = ""
    volumes: tuple[tuple[str, float], ...] = ()


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
    optional = {"probability": probability is not None, "uncertainty": uncertainty, "sheet": sheets}
    kinds = [kind for kind, wanted in optional.items() if wanted] + check_formats(formats, seg_type)
    kinds += ["seg"] if "nifti" in formats else []
    if uncertainty and (settings.get("ensemble") or settings.get("mirror")):
        raise ValueError(
            "uncertainty must be left out with several checkpoints or mirroring: it is the disagreement of "
            "the heads of one network."
        )
    pipeline = load_pipeline(bundle, input_dir, output_dir, overlays, override_record, **settings)
    pipeline.inferer.progress = progress
    rank, number = share
    cases = pipeline.list_scans(input_dir, series, quiet=rank > 0)
    if number > 1:
        cases = partition_dataset(cases, num_partitions=number, even_divisible=False)[rank]
    asked = any(kind in DICOM_FORMATS for kind in kinds)
    dicom = DicomResults.of(pipeline, seg_type, empty_frames) if asked else None
    locks = _make_locks(Path(output_dir))
    stale = stale_parts(output_dir)
    places = (Path(input_dir), Path(output_dir))
    run = _Run(pipeline, *places, kinds, probability, overwrite, locks, stale, dicom)
    return list(tqdm(run.outcomes(cases), desc="Scans", total=len(cases), disable=None if progress else True))


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

    pipeline: Pipeline
    input_dir: Path
    output_dir: Path
    kinds: Sequence[str]
    probability: int | None
    overwrite: bool
    locks: Path
    stale: Mapping[Path, Sequence[Path]]
    dicom: DicomResults | None = None

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

    def paths(self, image: str) -> dict[str, Path]:
        """Return the paths of a scan's results by kind; that of its mask names lock and side file."""
        ends = RESULTS | ({"seg": ("seg", ".png")} if self.pipeline.pictures else {})
        kinds = dict.fromkeys((*self.kinds, "seg"))
        return {kind: result_path(image, self.output_dir, self.input_dir, *ends[kind]) for kind in kinds}

    def _loaded(self, cases: Sequence[Mapping[str, str]]) -> Iterator[tuple[Outcome, Any, Any]]:
        """Lock and load the scans that are not done."""
        for case in cases:
            image = case["image"]
            lock = FileLock(self._lock_of(image), thread_local=False)  # released by another thread
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

    def _lock_of(self, image: str) -> Path:
        name = self.paths(image)["seg"].relative_to(self.output_dir).as_posix().replace("/", "%")
        return self.locks / f"{short_name(name)}.lock"

    def _load(self, case: Mapping[str, str]) -> tuple[Outcome, Any]:
        """Load a scan, unless its results exist; its lock must be held."""
        image, paths = case["image"], self.paths(case["image"])
        side = side_file(paths["seg"])
        for path in (*paths.values(), side):
            self._clear(path)
        if not self.overwrite:
            if paths["seg"].exists():
                check_provenance(paths["seg"], self.pipeline.made_by)
            if self.dicom is not None:
                self.dicom.check_existing(paths, side)
            if all(paths[kind].exists() for kind in self.kinds):
                return Outcome(image, "skipped"), None
        if self.dicom is not None:
            self.dicom.check_input(image)
        check_volume(image, self.pipeline.pixdim)
        scan = self.pipeline.preprocessing(dict(case))
        warnings = tuple(scan["image"].meta.get("warnings", ()))
        if self.dicom is not None:
            scan[SERIES] = self.dicom.read_series(image, scan["image"])
            warnings += scan[SERIES].warnings
        return Outcome(image, "done", warnings=warnings), scan

    def _attempt(self, outcome: Outcome, scan: Mapping[str, Any]) -> Outcome:
        """Segment a loaded scan and write the results, the mask last: if it exists, all results do."""
        started = time.perf_counter()
        windows = self.pipeline.inferer.inferer
        if isinstance(windows, EarlyExitInferer):
            windows.reset()
        try:
            found = self._write(outcome.image, scan)
            volumes = volumes_of(found.labels[0, 0], self.pipeline.names, self.pipeline.regions)
        except Exception as error:  # a scan that fails does not stop the others
            return replace(outcome, state="failed", reason=_failure(outcome.image, error))
        exits = tuple(windows.exits) if isinstance(windows, EarlyExitInferer) else ()
        seconds = time.perf_counter() - started
        kind = next(kind for kind in ("seg", *DICOM_FORMATS) if kind in self.kinds)
        outcome = replace(outcome, mask=str(self.paths(outcome.image)[kind]), volumes=volumes)
        return replace(outcome, seconds=seconds, exits=exits, uncertainty=found.case_uncertainty)

    def _write(self, image: str, scan: Mapping[str, Any]) -> Segmentation:
        pipeline, paths = self.pipeline, self.paths(image)
        volume = scan["image"][None].to(pipeline.device)
        with torch.inference_mode(), pipeline.autocast():
            found = pipeline.inferer.segment(
                volume, pipeline.network, self.probability, "uncertainty" in self.kinds
            )
        for kind in ("probability", "uncertainty"):
            values: MetaTensor | None = getattr(found, kind)
            if values is not None:
                write_nifti(paths[kind], values[0, 0], values.affine, "float32")
        if "sheet" in self.kinds:
            labels, names, note = found.labels[0, 0], pipeline.names, pipeline.note
            draw_volume(paths["sheet"], image, labels, pipeline.window, names=names, note=note)
        if found.case_uncertainty is not None:
            with FileLock(self.locks / f"{RANKING}.lock"):
                self._clear(self.output_dir / RANKING)
                add_to_ranking(self.output_dir / RANKING, image, found.case_uncertainty)
        write_provenance(paths["seg"], pipeline.made_by, image)
        named = {RESULT_PATH: paths["seg"], DESCRIPTION: describe(pipeline.made_by)}
        labels = MetaTensor(found.labels[0], meta={**found.labels.meta, **named})
        if self.dicom is not None:
            changed = without_saving(pipeline.postprocessing)({**scan, "pred": labels})["pred"]
            self.dicom.write(paths, changed[0], scan[SERIES])
        if "seg" not in self.kinds:
            return found
        pipeline.postprocessing({**scan, "pred": labels})
        if not paths["seg"].exists():
            raise FileNotFoundError(
                f"{paths['seg']} was not written: the postprocessing of inference.json must end in "
                "monai_unetpp.transforms.SaveImageAtomicd."
            )
        return found

    def _clear(self, path: Path) -> None:
        """Remove stale parts of ``path``, of a process that was killed; its lock must be held."""
        for part in self.stale.get(path.with_name(short_name(path.name)), ()):
            shutil.rmtree(part, ignore_errors=True)


def _failure(image: str, error: BaseException) -> str:
    """Return the message of an error with the path of the scan; ``Compose`` wraps what a transform raises."""
    while error.__cause__ is not None and str(error).startswith("applying transform"):
        error = error.__cause__
    text = str(error) or type(error).__name__
    return text if image in text else f"{image}: {text}"
