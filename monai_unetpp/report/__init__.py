# SPDX-License-Identifier: Apache-2.0
"""One HTML page on a bundle: the data, the choices, the training, the levels, some held-out cases.

- results: what lies in the folder of a bundle
- cases: which held-out cases are shown, and their pictures
- curves: figures as SVG
- page: elements of HTML, whose text is escaped
- tables: tables of scores and settings
- writing: the page
"""

from monai_unetpp.report.cases import CasePicture, CaseScore, draw_case, representative_cases
from monai_unetpp.report.results import Results, read_results
from monai_unetpp.report.writing import write_report

__all__ = [
    "CasePicture",
    "CaseScore",
    "Results",
    "draw_case",
    "read_results",
    "representative_cases",
    "write_report",
]
