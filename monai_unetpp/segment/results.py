# SPDX-License-Identifier: Apache-2.0
"""The results of a scan: where each goes, in which order they are written, what the mask amounts to."""

from __future__ import annotations

import csv
import errno
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from monai.data import MetaTensor
from monai.transforms import Compose

from monai_unetpp.files import result_path, short_name, write_csv
from monai_unetpp.findings import TABLE, AxialSlices, Finding, gather, read_findings
from monai_unetpp.inferers import Segmentation
from monai_unetpp.pictures import Mark, draw_volume
from monai_unetpp.readers import volume_loader
from monai_unetpp.segment.dicom import DicomResults, split_at_saving
from monai_unetpp.segment.findings import FINDING_KINDS, FindingResults
from monai_unetpp.segment.pipeline import Pipeline
from monai_unetpp.segment.provenance import (
    check_provenance,
    describe,
    is_made_by,
    side_file,
    write_provenance,
)
from monai_unetpp.transforms import LoadImageAndLabeld
from monai_unetpp.transforms.saving import DESCRIPTION, RESULT_PATH, write_nifti

__all__ = ["RANKING", "Results", "add_to_ranking", "read_ranking", "volumes_of"]

ENDS = {  # kind -> end of the name of the file, without and with the suffix
    **{kind: (kind, ".nii.gz") for kind in ("seg", "probability", "uncertainty")},
    **{"sheet": ("sheet", ".png"), "dicom-seg": ("seg", ".dcm"), "dicom-rtstruct": ("rtstruct", ".dcm")},
    **{"findings_csv": ("findings", ".csv"), "findings_json": ("findings", ".json")},
}
BESIDE = ("probability", "uncertainty", "sheet")  # kinds that show the mask, or what it was made of
SERIES = "dicom_series"  # key of a loaded scan
RANKING = "uncertainty.csv"


@dataclass(frozen=True)
class Results:
    """The results of a run.

    Args:
        pipeline: What segments the scans.
        input_dir: Scan or folder of scans.
        output_dir: Folder of the results.
        kinds: Results that are asked for, keys of :data:`ENDS`.
        locks: Folder of locks.
        stale: Stale parts in ``output_dir``, see :func:`~monai_unetpp.files.stale_parts`.
        dicom: The DICOM results, if any is asked for.
        findings: Findings, if they are asked for or some are dropped.
        probability: Class, or number of the region, whose probability is asked for.
    """

    pipeline: Pipeline
    input_dir: Path
    output_dir: Path
    kinds: Sequence[str]
    locks: Path
    stale: Mapping[Path, Sequence[Path]] = field(default_factory=dict)
    dicom: DicomResults | None = None
    findings: FindingResults | None = None
    probability: int | None = None

    def paths(self, image: str, *more: str) -> dict[str, Path]:
        """Return the paths of a scan's results by kind; that of its mask names lock and side file."""
        ends = ENDS | ({"seg": ("seg", ".png")} if self.pipeline.pictures else {})
        kinds = dict.fromkeys((*self.kinds, "seg", *more))
        return {kind: result_path(image, self.output_dir, self.input_dir, *ends[kind]) for kind in kinds}

    def lock(self, image: str) -> FileLock:
        """Return the lock of a scan, which may be released by another thread."""
        name = self.paths(image)["seg"].relative_to(self.output_dir).as_posix().replace("/", "%")
        return FileLock(self.locks / f"{short_name(name)}.lock", thread_local=False)

    def complete(self, image: str) -> bool:
        """Whether all results of a scan exist; its lock must be held.

        Raises:
            FileExistsError: if one of them was made by something else.
            ValueError: if one is damaged.
        """
        paths = self.paths(image)
        if paths["seg"].exists():
            check_provenance(paths["seg"], self.pipeline.made_by)
        if self.dicom is not None:
            self.dicom.check_existing(paths, side_file(paths["seg"]))
        if "probability" in self.kinds and paths["probability"].exists():
            side, wanted = side_file(paths["seg"]), self._describe("probability")
            check_provenance(paths["probability"], self.pipeline.made_by, side, wanted=wanted)
        found = all(paths[kind].exists() for kind in self.kinds)
        if found and "findings_json" in self.kinds:
            read_findings(paths["findings_json"])
        return found

    def clear_stale(self, image: str) -> None:
        """Remove stale parts of a scan's results, of a process that was killed; its lock must be held."""
        paths = self.paths(image, *FINDING_KINDS)
        for path in (*paths.values(), side_file(paths["seg"])):
            self.clear(path)

    def clear(self, path: Path) -> None:
        """Remove stale parts of a file; its lock must be held."""
        for part in self.stale.get(path.with_name(short_name(path.name)), ()):
            shutil.rmtree(part, ignore_errors=True)

    def write(
        self, image: str, scan: Mapping[str, Any], found: Segmentation
    ) -> tuple[MetaTensor, list[Finding]]:
        """Write the results of a scan, the mask last: if it exists, all results do.

        Args:
            image: Path of the scan.
            scan: The loaded scan.
            found: Its segmentation.

        Returns:
            The mask (X, Y, Z) and its findings.
        """
        paths, made_by = self.paths(image), self.pipeline.made_by
        change, save = split_at_saving(self.pipeline.postprocessing)
        meta = {**found.labels.meta, RESULT_PATH: paths["seg"], DESCRIPTION: describe(made_by)}
        changed = change({**scan, "pred": MetaTensor(found.labels[0], meta=meta)})
        labels: MetaTensor = changed["pred"][0]
        volume = self._read_again(image) if self.findings is not None or "sheet" in self.kinds else None
        findings: list[Finding] = []
        if self.findings is not None:
            assert volume is not None
            assert found.confidence is not None
            labels, findings = self.findings.find(labels, found.confidence, volume, scan)
            changed["pred"] = MetaTensor(labels.as_tensor()[None], meta=changed["pred"].meta)
        for kind in ("probability", "uncertainty"):
            values: MetaTensor | None = getattr(found, kind)
            if values is not None:
                write_nifti(paths[kind], values[0, 0], values.affine, "float32", self._describe(kind))
        if self.findings is not None and "findings_csv" in self.kinds:
            self.findings.write(paths, image, labels, findings)
        if "sheet" in self.kinds:
            self._draw(paths["sheet"], image, labels, findings, volume)
        earlier = () if is_made_by(side_file(paths["seg"]), made_by) else BESIDE
        self._rank(image, found.case_uncertainty, bool(earlier))
        for kind, path in self.paths(image, *FINDING_KINDS, *BESIDE).items():
            if kind in (*FINDING_KINDS, *earlier) and kind not in self.kinds:  # of an earlier mask
                _remove(path)
        write_provenance(paths["seg"], made_by, image)
        if self.dicom is not None:
            self.dicom.write(paths, labels, scan[SERIES])
        if "seg" in self.kinds:
            save(changed)
            if not paths["seg"].exists():
                raise FileNotFoundError(
                    f"{paths['seg']} was not written: the postprocessing of inference.json must end in "
                    "monai_unetpp.transforms.SaveImageAtomicd."
                )
        return labels, findings

    def gather(self) -> None:
        """Write the table of the findings of all scans in the folder, if there are any or are asked for."""
        table = self.output_dir / TABLE
        if table.exists() or "findings_csv" in self.kinds:
            with FileLock(self.locks / f"{TABLE}.lock"):
                self.clear(table)
                gather(self.output_dir)

    def _describe(self, kind: str) -> str:
        """Return the text for the header of a map; of a probability it says of which class."""
        text = describe(self.pipeline.made_by)
        return f"{text} p={self.probability}" if kind == "probability" else text

    def _rank(self, image: str, uncertainty: float | None, anew: bool) -> None:
        """Put a scan into the table of expected errors; without one, a mask made anew takes it out."""
        table = self.output_dir / RANKING
        if uncertainty is not None or (anew and table.exists()):
            with FileLock(self.locks / f"{RANKING}.lock"):
                self.clear(table)
                add_to_ranking(table, image, uncertainty)

    def _read_again(self, image: str) -> MetaTensor:
        """Return a scan as it is in its file, by what the preprocessing reads it with."""
        transforms = self.pipeline.preprocessing
        steps = transforms.transforms if isinstance(transforms, Compose) else [transforms]
        load: Any = next((each.load for each in steps if isinstance(each, LoadImageAndLabeld)), None)
        volume: MetaTensor = (load or volume_loader(modality=None))(image)
        return volume

    def _draw(
        self, path: Path, image: str, labels: MetaTensor, findings: Sequence[Finding], volume: Any
    ) -> None:
        pipeline = self.pipeline
        axis = AxialSlices(labels.affine.cpu().numpy()).axis
        marks = [
            Mark(str(each.finding), each.box, each.values, (axis, each.slice - 1))
            for each in findings
            if each.box is not None
        ]
        about = {"names": pipeline.names, "note": pipeline.note, "marks": marks, "volume": volume}
        draw_volume(path, image, labels, pipeline.window, **about)


def _remove(path: Path) -> None:
    """Remove a file, if there is one; none has a name that the file system does not take."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise


def read_ranking(path: Path) -> dict[str, float]:
    """Return the table of expected errors, scan -> value; empty if it does not exist.

    Raises:
        ValueError: if it is no longer such a table.
    """
    if not path.exists():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {row["scan"]: float(row["uncertainty"]) for row in csv.DictReader(file)}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} was changed: restore it or move it away: {error!r}.") from error


def add_to_ranking(path: Path, image: str, uncertainty: float | None) -> None:
    """Add a scan to the table, or replace its row, or remove it; the most uncertain scan comes first."""
    table = read_ranking(path)
    table.pop(image, None)
    if uncertainty is not None:
        table[image] = round(uncertainty, 4)
    ranked = sorted(table.items(), key=lambda row: row[1], reverse=True)
    rows = [{"scan": scan, "uncertainty": value} for scan, value in ranked]
    write_csv(path, rows, columns=("scan", "uncertainty"))


def volumes_of(
    labels: Any, names: Sequence[str], regions: Mapping[str, Sequence[int]]
) -> tuple[tuple[str, float], ...]:
    """Return name and volume, ml, of each class of a mask, (*spatial), or of regions, which overlap."""
    planes = [torch.bincount(plane.flatten(), minlength=len(names)) for plane in labels.as_tensor()]
    voxels = torch.nn.utils.rnn.pad_sequence(planes).sum(1).tolist()
    millilitres = abs(torch.linalg.det(labels.affine[:3, :3]).item()) / 1000
    if regions:
        sums = {name: sum(voxels[v] for v in values) for name, values in regions.items()}
        return tuple((name, n * millilitres) for name, n in sums.items() if n)
    known = [*names, *(f"class {c}" for c in range(len(names), len(voxels)))]
    return tuple((known[c], n * millilitres) for c, n in enumerate(voxels) if c)
