# SPDX-License-Identifier: Apache-2.0
"""CSV files of scores: by case and class, by lesion."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import monai.handlers
from ignite.engine import Engine, Events
from monai.utils import string_list_all_gather

from monai_unetpp.files import write_csv
from monai_unetpp.handlers.gathering import gather_cases
from monai_unetpp.lesions import CaseLesions, froc, score_lesions, summarise_lesions

__all__ = ["LesionSaver", "MetricsSaver"]

logger = logging.getLogger(__name__)


class MetricsSaver(monai.handlers.MetricsSaver):
    """MONAI's handler, with the names of the classes in the CSV files.

    Args:
        class_labels: Names of the classes, one per column.
        **settings: Further arguments of ``monai.handlers.MetricsSaver``.
    """

    def __init__(self, class_labels: Sequence[str], **settings: Any) -> None:
        super().__init__(**settings)
        self.class_labels = list(class_labels)

    def __call__(self, engine: Engine) -> None:
        """Write ``metrics.csv`` and, for each metric, one row per case and one column per class."""
        images = string_list_all_gather(self._filenames) if idist.get_world_size() > 1 else self._filenames
        if idist.get_rank() != self.save_rank:
            return
        with warnings.catch_warnings():
            # the mean of a class that no case has is NaN
            warnings.simplefilter("ignore", RuntimeWarning)
            monai.handlers.write_metrics_reports(
                save_dir=self.save_dir,
                images=images,
                metrics=_chosen(engine.state.metrics, self.metrics),
                metric_details=_chosen(getattr(engine.state, "metric_details", {}), self.metric_details),
                summary_ops=self.summary_ops,
                deli=self.deli,
                output_type=self.output_type,
                class_labels=self.class_labels,
            )
        logger.info(f"Wrote the scores of {len(images)} cases to {self.save_dir}.")


def _chosen(found: Mapping[str, Any], names: Sequence[str] | None) -> dict[str, Any]:
    """Return the metrics that are asked for by name, or all of them for ``"*"``."""
    return {key: value for key, value in found.items() if names and ("*" in names or key in names)}


class LesionSaver:
    """Score lesions one by one; write a row for each, a summary by size, and the FROC curve.

    ``lesions.csv`` has one row per lesion of the reference, ``lesions_summary.csv`` one per size class, and
    ``froc.csv`` the sensitivity at false positives per case, if there are probabilities; it is meaningful
    only for whole scans. With several classes each row begins with the name of its own.

    Args:
        save_dir: Folder to write to, made if it does not exist.
        label: Name of the class of the lesions, or of several.
        probability_key: Key of the probabilities (C, *spatial) on the grid of the label.
        channel: Value of the class of the lesions, by default the last one; of several classes one each.

    Raises:
        ValueError: if ``label`` and ``channel`` are not equally many.
    """

    def __init__(
        self,
        save_dir: str,
        label: str | Sequence[str] = "lesion",
        probability_key: str = "probability",
        channel: int | Sequence[int] = -1,
    ) -> None:
        self.save_dir = Path(save_dir)
        names = [label] if isinstance(label, str) else list(label)
        channels = [channel] if isinstance(channel, int) else list(channel)
        if len(names) != len(channels):
            raise ValueError(f"channel must have a value for each of {names}, got {channels}.")
        self.channels = dict(zip(names, channels, strict=True))
        self.probability_key = probability_key
        self.cases: list[dict[str, CaseLesions]] = []  # of each case, by class

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator whose ``pred`` and ``label`` are one-hot on one grid."""
        engine.add_event_handler(Events.STARTED, lambda: self.cases.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def __call__(self, engine: Engine) -> None:
        """Score the cases of an iteration."""
        for item in engine.state.output:  # type: ignore[union-attr]
            name = str(item["image"].meta.get("filename_or_obj", ""))
            probability, spacing = item.get(self.probability_key), item["label"].pixdim.tolist()
            self.cases.append(
                {
                    label: score_lesions(
                        item["pred"][channel],
                        item["label"][channel],
                        spacing,
                        name,
                        None if probability is None else probability[channel],
                    )
                    for label, channel in self.channels.items()
                }
            )

    def write(self) -> None:
        """Write the tables of all processes' cases, in the first process, and log one line for each class."""
        every = gather_cases(self.cases)
        if idist.get_rank() != 0:
            return
        tables: dict[str, list[dict[str, Any]]] = {"lesions": [], "lesions_summary": [], "froc": []}
        for label in self.channels:
            cases = [case[label] for case in every]
            lesions = [lesion for case in cases for lesion in case.lesions]
            of_class = {"class": label} if len(self.channels) > 1 else {}
            rows = [lesion.row() for lesion in lesions], summarise_lesions(cases), froc(cases)
            for table, found in zip(tables.values(), rows, strict=True):
                table += [{**of_class, **row} for row in found]
            hits = sum(lesion.found for lesion in lesions)
            false = sum(case.false_positives for case in cases) / max(len(cases), 1)
            logger.info(
                f"{label}: {hits} of {len(lesions)} found, {false:.2f} false positives per case; "
                f"by size in {self.save_dir / 'lesions_summary.csv'}."
            )
        for name, table in tables.items():
            self._write(f"{name}.csv", table)

    def _write(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        (self.save_dir / name).unlink(missing_ok=True)  # a previous run may have had rows
        if rows:
            write_csv(self.save_dir / name, rows)
