# SPDX-License-Identifier: Apache-2.0
"""From a folder of scans and masks to the smallest network that is good enough.

- command: plan, train, score, choose, report: one stage after another, each resumed where it was stopped
- stages: training and scoring of one fold, and how far they have come
- sharing: folds on several devices at once
- outcome: the scores of all folds, the level and the precision that they choose
- pictures: held-out cases, segmented by the network that was not trained on them
"""

from monai_unetpp.fitting.command import fit_bundle
from monai_unetpp.fitting.outcome import Outcome

__all__ = ["Outcome", "fit_bundle"]
