# SPDX-License-Identifier: Apache-2.0
"""The record of weights: a JSON beside the file that says how they were made, with its checksum.

What follows a training reads from it how to build the network and how to preprocess a scan. The calibration
of levels is a part of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import nn

from monai_unetpp._version import __version__
from monai_unetpp.files import PathLike, atomic_write
from monai_unetpp.network import UNetPlusPlus

__all__ = [
    "SETTINGS",
    "Record",
    "make_record",
    "plain",
    "read_record",
    "record_path",
    "sha256",
    "without_levels",
    "write_record",
]

Json = dict[str, Any]

# keys of a configuration, which follow the weights
SETTINGS = ("pixdim", "roi_size", "hu_range", "regions", "regions_class_order")
OF_TRAININGS = "checkpoint_epoch="  # name of a training checkpoint: the record is that of its model.pt
VERSIONED = ("torch", "monai", "numpy")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """How a file of weights was made; what is not known is empty or None.

    Args:
        weights: SHA-256 of the file.
        network: Arguments of the network as it was trained, also beside pruned weights.
        pixdim: Spacing that scans are resampled to, mm.
        roi_size: Size of the sliding window, voxels.
        hu_range: Intensities that become 0 and 1, HU.
        regions: Values of the label map in each region, for classes that overlap.
        regions_class_order: Value of a mask in each region, see :mod:`monai_unetpp.regions`.
        labels: Names of the classes in the order of their values, or of the regions; the background first.
        overlays: Names of the JSONs that were merged over train.json and belong over inference.json as well.
        data: Name of the data set.
        synthetic: Whether all of it is synthetic: such weights are not for patients.
        seed: Seed of the training and of the split.
        folds: Number of folds of the cross-validation, if the training was part of one.
        fold: Number of the fold whose scans were held out, from 0 on.
        initial_weights: Name and SHA-256 of the file of weights that the training started from.
        epoch: Epoch of the weights.
        scores: Scores of that epoch on the held-out cases by name, such as ``"val_dice_liver"``.
        versions: Versions of Python and packages by name.
        level: Level that is deep enough, see :func:`~monai_unetpp.select_level`.
        precision: Precision that is good enough, see :func:`~monai_unetpp.levels.select_precision`.
        exit: Score of early exit at the calibrated threshold.
        confidence: Confidence of findings by class, and the level that it was calibrated for; see
            :mod:`monai_unetpp.confidence`.
        files: Other forms of the same weights, such as ``model.onnx``: SHA-256 by name.
    """

    weights: str
    network: Json = field(default_factory=dict)
    pixdim: list[float] | None = None
    roi_size: list[int] | None = None
    hu_range: list[float] | None = None
    regions: list[list[int]] | None = None
    regions_class_order: list[int] | None = None
    labels: list[str] = field(default_factory=list)
    overlays: list[str] = field(default_factory=list)
    data: str | None = None
    synthetic: bool | None = None
    seed: int | None = None
    folds: int | None = None
    fold: int | None = None
    initial_weights: Json | None = None
    epoch: int | None = None
    scores: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    level: int | None = None
    precision: str | None = None
    exit: Json | None = None
    confidence: Json | None = None
    files: dict[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> Json:
        """Values of a configuration that follow the weights, by key."""
        values = {key: getattr(self, key) for key in SETTINGS}
        return {key: value for key, value in values.items() if value is not None}


def make_record(
    weights: PathLike,
    network: nn.Module,
    values: Mapping[str, Any],
    epoch: int | None = None,
    scores: Mapping[str, float] | None = None,
) -> Record:
    """Return the record of weights that were saved a moment ago.

    Args:
        weights: Path of the file.
        network: Network with these weights.
        values: Fields of :class:`Record`; of a path as ``data`` the last part is kept.
        epoch: Epoch of the weights.
        scores: Scores of that epoch by name.

    Raises:
        ValueError: if ``values`` has a key that a record does not have.
    """
    known = {each.name for each in dataclasses.fields(Record)}
    given = {key: plain(value) for key, value in values.items() if not key.startswith("_")}
    unknown = sorted(given.keys() - known)
    if unknown:
        raise ValueError(f"record must have keys among {', '.join(sorted(known))}, got {unknown[0]}.")
    if given.get("data") is not None:
        given["data"] = Path(str(given["data"])).name
    arguments = plain(network.spec.arguments()) if isinstance(network, UNetPlusPlus) else {}
    made = {"network": arguments, "epoch": epoch, "scores": dict(scores or {}), "versions": _versions()}
    return Record(**{**made, **given, "weights": sha256(weights)})


def record_path(weights: PathLike) -> Path:
    """Return the path of the record of a file of weights: its suffix replaced by ``.json``."""
    return Path(weights).with_suffix(".json")


def write_record(weights: PathLike, record: Record) -> Path:
    """Write the record of a file of weights, with the file's checksum, and return its path."""
    path = record_path(weights)
    content = dataclasses.asdict(dataclasses.replace(record, weights=sha256(weights)))
    content = {key: value for key, value in content.items() if value not in (None, [], {})}
    with atomic_write(path) as part:
        part.write_text(_text(content), encoding="utf-8")
    return path


def read_record(weights: PathLike) -> Record | None:
    """Read the record of a file of weights; None if it has none.

    A training checkpoint, or a folder of them, has that of the ``model.pt`` in the folder, without what
    belongs to an epoch and without comparing checksums: a process may die between the two files.

    Raises:
        ValueError: if the record is of other weights, or damaged.
    """
    weights, path = Path(weights), record_path(weights)
    of_training = weights.is_dir() or (not path.is_file() and weights.name.startswith(OF_TRAININGS))
    if of_training:
        path = (weights if weights.is_dir() else weights.parent) / "model.json"
    if not path.is_file() or not weights.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        known = {each.name for each in dataclasses.fields(Record)}
        record = Record(**{key: value for key, value in found.items() if key in known})
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged: {error!r}; restore it, or move it away and give the settings of the weights."
        ) from error
    if of_training:
        checksum = "" if weights.is_dir() else sha256(weights)
        return dataclasses.replace(without_levels(record), weights=checksum, epoch=None, scores={})
    if sha256(weights) not in (record.weights, *record.files.values()):
        raise ValueError(
            f"{path} is the record of other weights than those in {weights}: put back the record that was "
            "written with them, or move it away and give their settings."
        )
    return record


def without_levels(record: Record, level: int | None = None) -> Record:
    """Return a record for weights of one level: without the calibration, which is of all levels.

    Args:
        record: Record of all levels.
        level: Level that is kept: a confidence that was calibrated for it stays right.
    """
    confidence = record.confidence if record.confidence and record.confidence.get("level") == level else None
    return dataclasses.replace(record, level=None, precision=None, exit=None, confidence=confidence, files={})


def plain(value: Any) -> Any:
    """Return a value as JSON reads it again: tuples are lists, paths and names of types are strings."""
    return json.loads(json.dumps(value, default=str))


def sha256(path: PathLike) -> str:
    """Return the SHA-256 of a file."""
    path = Path(path)
    state = path.stat()
    return _sha256(path.absolute(), state.st_mtime_ns, state.st_size, state.st_ino)


@lru_cache(maxsize=16)
def _sha256(path: Path, *_: int) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def _versions() -> dict[str, str]:
    found = {"monai-unetpp": __version__, "python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # as in a nightly build of another name
            continue
    return found


def _text(content: Json) -> str:
    """Return JSON with one line per field, whose values are on one line."""
    lines = [f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"
