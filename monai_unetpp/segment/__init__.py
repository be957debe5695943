# SPDX-License-Identifier: Apache-2.0
"""From a folder of scans to a folder of masks, by a bundle's own inference configuration.

- pipeline: a bundle's ``inference.json`` -> the parts that segment a scan
- run: scans, locks and outcomes of one process
- results: what is written of a scan; findings and dicom: parts of it; report: what became of all scans
- distributed: one process or several, and one report
"""

from monai_unetpp.segment.distributed import Report, segment_distributed
from monai_unetpp.segment.outcome import Outcome
from monai_unetpp.segment.pipeline import Pipeline, load_pipeline
from monai_unetpp.segment.run import segment

__all__ = ["Outcome", "Pipeline", "Report", "load_pipeline", "segment", "segment_distributed"]
