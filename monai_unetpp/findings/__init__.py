# SPDX-License-Identifier: Apache-2.0
"""What was found in a mask: every connected component, measured as radiologists do, in a table.

- limits: the smallest and least certain findings that are kept
- axial: the axial slices of a grid, and the two diameters in a slice
- confidence: the probability that a finding is a true lesion, as it was calibrated
- measuring: from a label map to findings; those below the limits are removed from it
- tables: the files of a scan, and one table over all of them
"""

from monai_unetpp.findings.axial import AxialSlices, axial_diameters
from monai_unetpp.findings.confidence import FEATURES, Confidence, parse_confidence
from monai_unetpp.findings.limits import Limits, parse_limits
from monai_unetpp.findings.measuring import Finding, find, totals
from monai_unetpp.findings.tables import TABLE, gather, read_findings, write_findings

__all__ = [
    "FEATURES",
    "TABLE",
    "AxialSlices",
    "Confidence",
    "Finding",
    "Limits",
    "axial_diameters",
    "find",
    "gather",
    "parse_confidence",
    "parse_limits",
    "read_findings",
    "totals",
    "write_findings",
]
