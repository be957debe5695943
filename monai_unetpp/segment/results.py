# SPDX-License-Identifier: Apache-2.0
"""What a mask amounts to: the volumes of its classes, and the table that ranks scans."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from monai_unetpp.files import write_csv

__all__ = ["RANKING", "add_to_ranking", "volumes_of"]

RANKING = "uncertainty.csv"


def add_to_ranking(path: Path, image: str, uncertainty: float) -> None:
    """Add a scan to the table, or replace its row; the most uncertain scan comes first."""
    table = {}
    if path.exists():
        try:
            with path.open(newline="") as file:
                table = {row["scan"]: float(row["uncertainty"]) for row in csv.DictReader(file)}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} was changed: restore it or move it away: {error!r}.") from error
    table[image] = round(uncertainty, 4)
    ranked = sorted(table.items(), key=lambda row: row[1], reverse=True)
    write_csv(path, [{"scan": scan, "uncertainty": value} for scan, value in ranked])


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
