# SPDX-License-Identifier: Apache-2.0
"""Findings of a run: those of a scan are measured, dropped below the limits, and written."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from monai_unetpp.findings import (
    AxialSlices,
    Confidence,
    Finding,
    Limits,
    find,
    parse_confidence,
    write_findings,
)
from monai_unetpp.readers.dicom import folder_of
from monai_unetpp.readers.dicom.headers import read_slices
from monai_unetpp.segment.dicom import SECTIONS
from monai_unetpp.segment.pipeline import Pipeline
from monai_unetpp.segment.provenance import describe
from monai_unetpp.weights import plain, read_record, record_path

__all__ = ["FINDING_KINDS", "FindingResults"]

FINDING_KINDS = ("findings_csv", "findings_json")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FindingResults:
    """The findings of a run.

    Args:
        pipeline: What segments the scans.
        limits: What is dropped from mask and table.
        confidence: Name of a class or region -> confidence of its findings, if it was calibrated.
    """

    pipeline: Pipeline
    limits: Limits
    confidence: Mapping[str, Confidence] = field(default_factory=dict)

    @classmethod
    def of(cls, pipeline: Pipeline, limits: Limits, at_operating_point: bool) -> FindingResults:
        """Return those of a pipeline, whose ``made_by`` then says what its masks lack.

        Args:
            pipeline: What segments the scans.
            limits: Limits that were asked for.
            at_operating_point: Whether what is less confident than the calibrated operating point is dropped
                as well, if there is one.

        Raises:
            ValueError: if it segments pictures, whose pixels have no size, or the record of the weights is
                damaged.
        """
        if pipeline.pictures:
            raise ValueError(
                "findings and limits (--findings, --min-volume, --min-diameter, --min-confidence) must be "
                "left out for pictures, whose pixels have no size in mm: convert them to NIfTI with their "
                "spacing."
            )
        confidence, why_none = _calibrated(pipeline)
        made_by = {name: asdict(of) for name, of in confidence.items()}
        points = {name: of.pop("operating_point") for name, of in made_by.items()}
        if at_operating_point and points:
            limits = replace(limits, min_confidence=points)
            shown = ", ".join(f"{point:g} ({name})" for name, point in points.items())
            logger.info(
                "Findings are ranked by calibrated confidence. Those below the operating point, "
                f"{shown}, are dropped: --min-confidence 0 keeps them."
            )
        elif why_none and (at_operating_point or limits.min_confidence):
            logger.info(f"Findings are ranked by mean probability: {why_none}.")
        made_by = {**limits.given(), **({"confidence": made_by} if made_by else {})}
        return cls(replace(pipeline, made_by={**pipeline.made_by, **plain(made_by)}), limits, confidence)

    @property
    def classes(self) -> dict[str, tuple[int, ...]]:
        """Name of each class but the background, or of each region -> values of a mask in it."""
        if self.pipeline.regions:
            return {name: tuple(map(int, values)) for name, values in self.pipeline.regions.items()}
        names = self.pipeline.names
        found = {
            value: names[value] if value < len(names) and names[value] else f"class {value}"
            for value in range(1, self.pipeline.classes)
        }
        if len({*found.values()}) < len(found):
            found = {value: f"{name} {value}" for value, name in found.items()}  # names that are not unique
        return {name: (value,) for value, name in found.items()}

    def find(
        self, labels: MetaTensor, probability: MetaTensor, volume: MetaTensor, scan: Mapping[str, Any]
    ) -> tuple[MetaTensor, list[Finding]]:
        """Return the labels of a scan without what is below the limits, and the findings.

        Args:
            labels: Label map (X, Y, Z) on the grid of the scan.
            probability: Probability of the labels, (1, C, X, Y, Z); see
                :class:`~monai_unetpp.inferers.Segmentation`.
            volume: The scan as it was read, (C, X, Y, Z), of which the first channel is measured.
            scan: The loaded scan, whose meta names the slices of a series.
        """
        values = labels.as_tensor().cpu().numpy().astype(np.uint8)  # a copy, which is changed
        affine = labels.affine.cpu().double().numpy()
        found = find(
            values,
            affine,
            self.classes,
            volume.as_tensor()[0].cpu().numpy(),
            probability.as_tensor()[0].cpu().numpy(),
            self.limits,
            self.confidence,
        )
        labels = MetaTensor(torch.from_numpy(values), meta=labels.meta)
        sections = scan["image"].meta.get(SECTIONS)
        folder = folder_of(scan["image"].meta["filename_or_obj"])
        if sections is not None:
            found = self._with_instances(found, folder, json.loads(sections), affine)
        return labels, found

    def write(
        self, paths: Mapping[str, Path], image: str, labels: MetaTensor, findings: Sequence[Finding]
    ) -> None:
        """Write the two tables of a scan."""
        slices = AxialSlices(labels.affine.cpu().numpy())
        table, document = (paths[kind] for kind in FINDING_KINDS)
        made_by, shape = describe(self.pipeline.made_by), labels.shape
        write_findings(table, document, image, findings, self.classes, slices, shape, self.limits, made_by)

    def _with_instances(
        self, findings: Sequence[Finding], folder: Path, sections: Sequence[Sequence[Any]], affine: Any
    ) -> list[Finding]:
        """Return findings with the UID of the image of their slice; if it is not axial, of their centre."""
        axial = AxialSlices(affine).axis == 2
        read = cache(lambda name: read_slices(folder / name)[1])
        named = []
        for each in findings:
            assert each.box is not None
            n = each.slice - 1 if axial else (each.box[2].start + each.box[2].stop - 1) // 2
            name, frame = sections[n]
            named.append(replace(each, instance_uid=read(name)[frame].instance))
        return named


def _calibrated(pipeline: Pipeline) -> tuple[dict[str, Confidence], str]:
    """Return the confidence of findings that holds for what a pipeline computes, or why there is none."""
    record = read_record(pipeline.weights)
    if record is None or record.confidence is None:
        return {}, f"{pipeline.weights} has no calibrated confidence, see monai-unetpp findings"
    level, found = parse_confidence(record.confidence, record_path(pipeline.weights))
    here = pipeline.made_by["level"]
    if "ensemble" in pipeline.made_by:
        return {}, "the confidence was calibrated for one network without mirroring"
    if here not in (f"L{level}", "exported"):  # what was exported is of one level
        return {}, f"the confidence was calibrated for L{level}, and this is {here}"
    return found, ""
