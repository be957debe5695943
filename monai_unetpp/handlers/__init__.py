# SPDX-License-Identifier: Apache-2.0
"""Ignite glue: MONAI's handlers, with what a resumed training and a person reading need; tables and pictures.

checkpoints  saving, resuming, loading a level
tables       CSV files by case and class, by lesion
sheets       the best, the median and the worst cases as pictures
"""

from monai_unetpp.handlers.checkpoints import CheckpointLoader, CheckpointSaver, NetworkLoader
from monai_unetpp.handlers.sheets import ContactSheetSaver
from monai_unetpp.handlers.tables import LesionSaver, MetricsSaver

__all__ = [
    "CheckpointLoader",
    "CheckpointSaver",
    "ContactSheetSaver",
    "LesionSaver",
    "MetricsSaver",
    "NetworkLoader",
]
