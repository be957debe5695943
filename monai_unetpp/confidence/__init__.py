# SPDX-License-Identifier: Apache-2.0
"""Confidence of findings: fitted on held-out cases, and written beside the weights.

- candidates: the findings of held-out cases, and which lesions each of them touches
- fitting: from candidates to a confidence, and to one for each case that it was not fitted on
- scores: how reliable it is; what is found at the operating point; FROC by size
- calibration: all of it, into the record of the weights and into tables
"""

from monai_unetpp.confidence.calibration import (
    CalibratedConfidence,
    calibrate_confidence,
    read_confidence,
    write_confidence,
)
from monai_unetpp.confidence.candidates import CaseFindings, find_candidates, match_lesions
from monai_unetpp.confidence.fitting import fit_confidence, held_out_confidence
from monai_unetpp.confidence.scores import froc_by_size, reliability, score_by_size, score_reliability

__all__ = [
    "CalibratedConfidence",
    "CaseFindings",
    "calibrate_confidence",
    "find_candidates",
    "fit_confidence",
    "froc_by_size",
    "held_out_confidence",
    "match_lesions",
    "read_confidence",
    "reliability",
    "score_by_size",
    "score_reliability",
    "write_confidence",
]
