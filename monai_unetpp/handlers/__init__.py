# SPDX-License-Identifier: Apache-2.0
"""Handlers for Ignite's engines, beyond those of MONAI.

- checkpoints: writing training checkpoints
- averaging: a moving average of the weights is validated and kept
- classes: classes that are absent, or of which nothing was found
- console: progress, and how a training ended
- epochs: loss and Dice of every epoch as CSV
- folders: one training per folder
- growth: shallow levels are trained first
- loading: resuming from them, loading weights at a level
- splits: held-out scans stay held out
- validation: when a training validates
- resuming: seeds of epochs, stopping on a signal, early stopping
- mixed_precision: amp on a CPU
- finite: no NaN reaches the weights
- tables: CSV files by case and class, by lesion
- scores: mean Dice and IoU, NaN where no case has a score
- surfaces: distances of surfaces, mm
- figures: the best, the median and the worst cases; cases at every validation
- tracking: losses of heads, scores of levels and parameters, for TensorBoard and MLflow
"""

from monai_unetpp.handlers.averaging import WeightAverage
from monai_unetpp.handlers.checkpoints import CheckpointSaver
from monai_unetpp.handlers.classes import AbsentClasses, ZeroDice
from monai_unetpp.handlers.console import EpochLog, ProgressBar, TrainingReport
from monai_unetpp.handlers.epochs import EpochTable
from monai_unetpp.handlers.figures import ContactSheetSaver, OutlineImages
from monai_unetpp.handlers.finite import FiniteSteps
from monai_unetpp.handlers.folders import check_training_folder
from monai_unetpp.handlers.growth import Growth
from monai_unetpp.handlers.loading import CheckpointLoader, NetworkLoader
from monai_unetpp.handlers.mixed_precision import CPUMixedPrecision
from monai_unetpp.handlers.resuming import EarlyStop, EpochSeeds, StopOnSignal
from monai_unetpp.handlers.scores import MeanDice, MeanIoU
from monai_unetpp.handlers.splits import SplitRecord, held_out_cases
from monai_unetpp.handlers.surfaces import HausdorffDistance95, SurfaceDice
from monai_unetpp.handlers.tables import LesionSaver, MetricsSaver
from monai_unetpp.handlers.tracking import HeadLosses, sqlite_store, track_levels, track_training
from monai_unetpp.handlers.validation import ValidationHandler

__all__ = [
    "AbsentClasses",
    "CPUMixedPrecision",
    "CheckpointLoader",
    "CheckpointSaver",
    "ContactSheetSaver",
    "EarlyStop",
    "EpochLog",
    "EpochSeeds",
    "EpochTable",
    "FiniteSteps",
    "Growth",
    "HausdorffDistance95",
    "HeadLosses",
    "LesionSaver",
    "MeanDice",
    "MeanIoU",
    "MetricsSaver",
    "NetworkLoader",
    "OutlineImages",
    "ProgressBar",
    "SplitRecord",
    "StopOnSignal",
    "SurfaceDice",
    "TrainingReport",
    "ValidationHandler",
    "WeightAverage",
    "ZeroDice",
    "check_training_folder",
    "held_out_cases",
    "sqlite_store",
    "track_levels",
    "track_training",
]
