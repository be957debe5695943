# SPDX-License-Identifier: Apache-2.0
"""The findings of a scan as CSV and JSON, and one table of all scans of a folder.

``findings.csv`` is made of the JSON files anew each time: it holds what they hold, whichever process wrote
them, and however often a scan was done again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_unetpp.files import PathLike, atomic_write, write_csv
from monai_unetpp.findings.axial import AxialSlices
from monai_unetpp.findings.limits import Limits
from monai_unetpp.findings.measuring import Classes, Finding, totals

__all__ = ["ENDS", "TABLE", "gather", "read_findings", "write_findings"]

TABLE = "findings.csv"
ENDS = ("_findings.csv", "_findings.json")
COLUMNS = [
    *("scan", "finding", "class", "confidence", "mean_probability", "peak_probability", "volume_ml"),
    *("long_axis_mm", "short_axis_mm", "equivalent_diameter_mm", "elongation"),
    *("centre_x_mm", "centre_y_mm", "centre_z_mm", "slice"),
    *("instance_uid", "mean_intensity", "sd_intensity", "touches_border", "class_volume_ml"),
]

logger = logging.getLogger(__name__)


def write_findings(
    csv_path: PathLike,
    json_path: PathLike,
    scan: str,
    findings: Sequence[Finding],
    classes: Classes,
    slices: AxialSlices,
    shape: Sequence[int],
    limits: Limits,
    made_by: str = "",
) -> None:
    """Write the findings of a scan, atomically, a header alone if there are none.

    Args:
        csv_path: Path of the CSV file.
        json_path: Path of the JSON file, which also has the volume of each class and how was measured.
        scan: Path of the scan.
        findings: Findings, in the order to list them.
        classes: Name of each class, or region -> values of the label map in it.
        slices: Axial slices of the grid of the scan.
        shape: Size of the scan, voxels.
        limits: Limits below which findings were dropped.
        made_by: What made the mask, in one line.
    """
    by_class = totals(findings, classes)
    rows = [each.row() for each in findings]
    document = {
        "scan": scan,
        "made_by": made_by,
        "limits": limits.given(),
        "slice_axis": slices.axis,
        "slices": shape[slices.axis],
        "tilt_degrees": round(slices.tilt, 2),
        "classes": by_class,
        "findings": rows,
    }
    with atomic_write(json_path) as part:
        part.write_text(json.dumps(document, indent=4) + "\n", encoding="utf-8")
    write_csv(csv_path, _rows(document), columns=COLUMNS)


def read_findings(path: PathLike) -> dict[str, Any]:
    """Return what the JSON file of a scan holds.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is damaged.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        _rows(document)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}): restore it, or delete it and segment the scan again "
            "(overwrite=True, --overwrite)."
        ) from error
    return dict(document)


def gather(folder: PathLike) -> Path:
    """Write ``findings.csv``, the findings of all scans below a folder, scan by scan, atomically.

    A file that is damaged is left out with a warning.

    Args:
        folder: Folder of the results. No other process must write its table meanwhile.
    """
    folder, rows = Path(folder), []
    found = [path for path in folder.rglob(f"*{ENDS[1]}") if not _hidden(path.relative_to(folder))]
    for path in sorted(found):
        try:
            rows += _rows(read_findings(path))
        except FileNotFoundError:  # another process does its scan again
            continue
        except ValueError as error:
            logger.warning(f"{folder / TABLE} lacks a scan: {error}")
    write_csv(folder / TABLE, rows, columns=COLUMNS)
    return folder / TABLE


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") and part.endswith(".part") for part in path.parts)


def _rows(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a table from the JSON of a scan."""
    volumes = {each["class"]: each["volume_ml"] for each in document["classes"]}
    every = {"scan": document["scan"]}
    return [
        {name: {**every, **row, "class_volume_ml": volumes[row["class"]]}[name] for name in COLUMNS}
        for row in document["findings"]
    ]
