# SPDX-License-Identifier: Apache-2.0
"""The parts of a bundle's ``inference.json``, with trained weights at one level."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import nn

from monai_unetpp.bundle import config_files
from monai_unetpp.files import PathLike
from monai_unetpp.inferers import VolumeInferer
from monai_unetpp.levels import read_calibration
from monai_unetpp.network import UNetPlusPlus
from monai_unetpp.weights import load_network

__all__ = ["Pipeline", "as_text", "load_pipeline"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pipeline:
    """What segments a scan.

    Args:
        preprocessing: Transform from a dictionary with the path of ``"image"`` to the loaded volume.
        network: Network with trained weights, in evaluation, at its level.
        inferer: Inferer for a whole volume.
        postprocessing: Transform of a dictionary with the labels as ``"pred"``, which writes them.
        device: Device of the network.
        autocast: Function that returns a ``torch.autocast`` context.
        pixdim: Spacing that scans are resampled to, mm.
        window: Intensities drawn black and white in sheets, HU; ``None`` for those that suit the scan.
        names: Names of the classes, with the background's; empty if they are unknown.
        note: Names of the bundle and of its overlays, and the level, for sheets.
    """

    preprocessing: Any
    network: nn.Module
    inferer: VolumeInferer
    postprocessing: Any
    device: torch.device
    autocast: Any
    pixdim: tuple[float, ...]
    window: Sequence[float] | None = None
    names: tuple[str, ...] = ()
    note: str = ""


def load_pipeline(
    bundle: PathLike, input_dir: PathLike, output_dir: PathLike, overlays: Sequence[str] = (), **settings: Any
) -> Pipeline:
    """Build the parts of a bundle's ``inference.json``.

    Args:
        bundle: Folder of the bundle.
        input_dir: Scan or folder of scans, see :func:`~monai_unetpp.data.list_volumes`.
        output_dir: Folder of the masks.
        overlays: Names of further JSONs of the bundle that are merged over it.
        **settings: Keys of the configuration with other values, such as ``ckpt_path``. A ``level`` of
            ``"auto"`` is the calibrated one, or the deepest if the weights were not calibrated.

    Raises:
        FileNotFoundError: if the folder has no ``inference.json``, or the bundle has no weights; or if they
            were not calibrated and ``early_exit`` is one of the overlays.
        ValueError: if the weights do not fit; see :func:`~monai_unetpp.load_network`.
    """
    parser = ConfigParser()
    parser.read_config(config_files(bundle, "inference", *overlays))
    places = {"bundle_root": bundle, "dataset_dir": input_dir, "output_dir": output_dir}
    paths = {key: as_text(path) for key, path in places.items()}
    # one dial: in a packed bundle the inferer may name an option of MONAI Label instead
    parser.update({**paths, "inferer#level": "@level", **settings})
    get = parser.get_parsed_content
    get("imports")
    weights = get("ckpt_path")
    if get("level") == "auto":
        parser["level"] = _calibrated_level(weights)
    if "early_exit" in overlays:
        read_calibration(weights)  # raises a clear error, which the parser would wrap
    device = get("device")
    network = load_network(get("network"), weights, get("level"), device, get("runtime"))
    return Pipeline(
        preprocessing=get("preprocessing"),
        network=network,
        inferer=get("inferer"),
        postprocessing=get("postprocessing"),
        device=device,
        autocast=partial(torch.autocast, device.type, enabled=get("amp"), **get("amp_kwargs")),
        pixdim=tuple(get("pixdim")),
        window=get("sheet_window", default=None),
        names=tuple(get("labels", default=None) or _class_names(bundle, get("out_channels"))),
        note=_note(bundle, overlays, network),
    )


def as_text(path: PathLike) -> str:
    """Return a path as a configuration's value; one that begins with ``$`` would be run as code."""
    return str(path) if Path(path).is_absolute() else os.path.join(os.curdir, path)  # noqa: PTH118  keeps ./


def _class_names(bundle: PathLike, number: int) -> list[str]:
    """Return the names of the first classes in a bundle's metadata, with the background's, if it has them."""
    try:
        metadata = json.loads(Path(*config_files(bundle, "metadata")).read_text(encoding="utf-8"))
        channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
        return [str(channels[str(n)]) for n in range(number)]
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return []  # a bundle of one's own works without metadata


def _note(bundle: PathLike, overlays: Sequence[str], network: nn.Module) -> str:
    """Return the names of a bundle and of its overlays, and the level that is computed."""
    parts = [f"bundle {Path(bundle).resolve().name}", *overlays]
    if isinstance(network, UNetPlusPlus) and "early_exit" not in overlays:
        parts.append(f"L{network.level}")
    return ", ".join(parts)


def _calibrated_level(weights: PathLike) -> int | None:
    try:
        level = read_calibration(weights).level
    except FileNotFoundError:
        logger.info(f"{weights} was not calibrated: the deepest level is used.")
        return None
    logger.info(f"{weights} was calibrated: L{level} is deep enough.")
    return level
