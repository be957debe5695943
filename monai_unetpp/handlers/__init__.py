# SPDX-License-Identifier: Apache-2.0
"""Handlers for Ignite's engines, beyond those of MONAI.

- checkpoints: training checkpoints, resuming, loading weights at a level
- resuming: seeds of epochs, stopping on a signal, early stopping
- finite: no NaN reaches the weights
- tables: CSV files by case and class, by lesion
- figures: the best, the median and the worst cases; cases at every validation
- tracking: losses of heads, scores of levels and parameters, for TensorBoard and MLflow
"""

from monai_unetpp.handlers.checkpoints import CheckpointLoader, CheckpointSaver, NetworkLoader
from monai_unetpp.handlers.figures import ContactSheetSaver, OutlineImages
from monai_unetpp.handlers.finite import FiniteSteps
from monai_unetpp.handlers.resuming import EarlyStop, EpochSeeds, StopOnSignal
from monai_unetpp.handlers.tables import LesionSaver, MetricsSaver
from monai_unetpp.handlers.tracking import HeadLosses, sqlite_store, track_levels, track_training

__all__ = [
    "CheckpointLoader",
    "CheckpointSaver",
    "ContactSheetSaver",
    "EarlyStop",
    "EpochSeeds",
    "FiniteSteps",
    "HeadLosses",
    "LesionSaver",
    "MetricsSaver",
    "NetworkLoader",
    "OutlineImages",
    "StopOnSignal",
    "sqlite_store",
    "track_levels",
    "track_training",
]
