# SPDX-License-Identifier: Apache-2.0
"""The parts of a bundle's ``inference.json``, with trained weights at one level."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import nn

from monai_unetpp.bundle import Chosen, config_files, configure
from monai_unetpp.data import list_volumes
from monai_unetpp.files import PathLike
from monai_unetpp.inferers import AveragedNetwork, EarlyExitInferer, VolumeInferer
from monai_unetpp.levels import calibrated_level, read_calibration
from monai_unetpp.network import UNetPlusPlus, kernels
from monai_unetpp.segment.provenance import provenance
from monai_unetpp.transforms import LoadImageAndLabeld
from monai_unetpp.weights import Record, load_network, read_record, sha256
from monai_unetpp.weights.record import SETTINGS

__all__ = ["Pipeline", "load_pipeline"]

MODALITIES = ("CT", "MR", "PT")  # that metadata.json names as DICOM does

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
        made_by: What makes the masks: weights, level, precision, settings; see ``<name>_seg.json``.
        weights: Path of the weights; of several the first.
        window: Intensities drawn black and white in sheets, HU; ``None`` for those that suit the scan.
        names: Names of the values of a mask, with the background's; empty if they are unknown.
        regions: Name of a region -> values of a mask in it; empty if classes do not overlap.
        note: Names of the bundle and of its overlays, and the level, for sheets.
        channels: Channels of the network.
        pictures: Whether it segments pictures instead of volumes.
        bundle: Name of the bundle.
        classes: Number of values of a mask, with the background.
        codes: ``segment_codes`` of its ``metadata.json``, see :mod:`monai_unetpp.dicom_out.segments`.
        modality: Modality of the DICOM series that it segments, ``None`` for any: that of its loader, or else
            of its ``metadata.json``.
    """

    preprocessing: Any
    network: nn.Module
    inferer: VolumeInferer
    postprocessing: Any
    device: torch.device
    autocast: Any
    pixdim: tuple[float, ...]
    made_by: dict[str, Any]
    weights: Path
    window: Sequence[float] | None = None
    names: tuple[str, ...] = ()
    regions: Mapping[str, Sequence[int]] = field(default_factory=dict)
    note: str = ""
    channels: int = 1
    pictures: bool = False
    bundle: str = ""
    classes: int = 2
    codes: Any = None
    modality: str | None = None

    def list_scans(self, source: PathLike, series: Sequence[str], quiet: bool) -> list[dict[str, str]]:
        """List the scans to segment; arguments as of :func:`~monai_unetpp.data.list_volumes`."""
        loader = _loader(self.preprocessing)
        if loader is not None and loader.series is not None:
            series = series or (loader.series,)
        divided = loader is None or loader.phase is None
        kind = (self.channels, self.pictures, self.modality)
        return list_volumes(source, *kind, series=series, divided=divided, quiet=quiet)


def load_pipeline(
    bundle: PathLike,
    input_dir: PathLike,
    output_dir: PathLike,
    overlays: Sequence[str] = (),
    override_record: bool = False,
    precision: str = "auto",
    ensemble: Sequence[PathLike] = (),
    mirror: bool = False,
    **settings: Any,
) -> Pipeline:
    """Build the parts of a bundle's ``inference.json``.

    Args:
        bundle: Folder of the bundle, or the name of one that comes with this package.
        input_dir: Scan or folder of scans, see :func:`~monai_unetpp.data.list_volumes`.
        output_dir: Folder of the masks.
        overlays: Names of further JSONs of the bundle that are merged over it.
        override_record: Whether ``settings`` and ``overlays`` win where the record of the weights disagrees.
        precision: ``"float32"``, ``"bfloat16"`` or ``"float16"``; ``"auto"`` is the calibrated one where the
            device is fast in it, or that of the configuration's ``amp`` if none was calibrated.
        ensemble: Further weights: the masks are those of the mean of all networks' probabilities.
        mirror: Whether to average over mirrored windows as well, along the ``mirror_axes`` of the
            configuration, those that its training mirrored.
        **settings: Keys of the configuration with other values, such as ``ckpt_path``. A ``level`` of
            ``"auto"`` is the calibrated one, or the deepest if the weights were not calibrated.

    Raises:
        FileNotFoundError: if the folder has no ``inference.json``, or the bundle has no weights; or if they
            were not calibrated and ``early_exit`` is one of the overlays.
        ValueError: if a key is unknown, a value disagrees with the record of the weights, the device is not
            fast in ``precision``, or the weights do not fit; see :func:`~monai_unetpp.load_network`. If
            weights of ``ensemble`` were made with other settings, there are no axes to mirror, or either is
            asked for with early exit.
    """
    paths = {"dataset_dir": input_dir, "output_dir": output_dir}
    chosen = configure(bundle, paths, overlays, override_record, settings)
    parser, weights = chosen.parser, chosen.weights
    get = parser.get_parsed_content
    get("imports")
    every = _ensemble(chosen, ensemble)
    if get("level") == "auto":
        levels = [calibrated_level(path) for path in every]
        parser["level"] = None if None in levels else max(level for level in levels if level)
    if "early_exit" in overlays:
        read_calibration(weights)  # raises a clear error, which the parser would wrap
    device, inferer = torch.device("cpu" if weights.suffix == ".onnx" else get("device")), get("inferer")
    blank = get("network")
    networks = [
        load_network(copy.deepcopy(blank), path, get("level"), device, get("runtime")) for path in every
    ]
    network, axes = networks[0], _mirror_axes(parser, mirror)
    root, level = Path(get("bundle_root")), _level_name(network, inferer)
    if precision == "auto":
        precision = _precision(chosen, device, level, "amp" in settings)
    made_by = provenance(chosen, level, precision)
    if len(networks) > 1 or axes:
        if isinstance(inferer.inferer, EarlyExitInferer):
            raise ValueError(
                "early exit must be left out with several checkpoints or mirroring: name a level."
            )
        network, inferer.level = AveragedNetwork(networks, axes, inferer.order is not None), None
        made_by |= {"ensemble": [sha256(path) for path in every[1:]], "mirrored": list(axes)}
    names = made_by["labels"] or _class_names(root, get("out_channels"))
    regions: dict[str, Sequence[int]] = {}
    if inferer.regions is not None:
        numbers = [f"region {n}" for n, _ in enumerate(inferer.regions, 1)]
        regions = dict(zip(made_by["labels"][1:] or names or numbers, inferer.regions, strict=True))
        names = _value_names(regions)
    return Pipeline(
        preprocessing=get("preprocessing"),
        network=network,
        inferer=inferer,
        postprocessing=get("postprocessing"),
        device=device,
        autocast=kernels.in_precision(precision, device),
        pixdim=tuple(get("pixdim")),
        made_by=made_by,
        weights=weights,
        window=get("sheet_window", default=None),
        names=tuple(names),
        regions=regions,
        note=", ".join([f"bundle {root.resolve().name}", *chosen.overlays, level]),
        channels=int(get("in_channels", default=1)),
        pictures=bool(get("pictures", default=False)),
        bundle=root.resolve().name,
        classes=max(2, int(get("out_channels"))),
        codes=_metadata(root).get("segment_codes"),
        modality=_modality(get("preprocessing"), root),
    )


def _ensemble(chosen: Chosen, others: Sequence[PathLike]) -> list[Path]:
    """Return all weights; those of another plan cannot be averaged with these."""
    every = [chosen.weights, *map(Path, others)]
    for n, path in enumerate(every):
        if path.resolve() in [before.resolve() for before in every[:n]]:
            raise ValueError(f"checkpoint must name each file once, got {path} twice.")
    for path in every[1:]:
        record = read_record(path)
        if record is None or chosen.record is None:
            continue
        for name in (*SETTINGS, "labels", "overlays"):
            ours, theirs = getattr(chosen.record, name), getattr(record, name)
            if ours != theirs:
                raise ValueError(
                    f"checkpoint must name weights of one plan: {chosen.weights} was made with {name} "
                    f"{ours}, {path} with {theirs}. Leave one of them out."
                )
    return every


def _mirror_axes(parser: ConfigParser, mirror: bool) -> list[int]:
    """Return the axes along which windows are mirrored."""
    if not mirror:
        return []
    axes = parser.get_parsed_content("mirror_axes", default=[])
    if not axes:
        raise ValueError(
            "mirror must be left out: mirror_axes of inference.json is empty, since the network was not "
            "trained on mirrored images; --set mirror_axes [0] mirrors along the first axis nevertheless."
        )
    return [int(axis) for axis in axes]


def _level_name(network: nn.Module, inferer: VolumeInferer) -> str:
    windows = inferer.inferer
    if isinstance(windows, EarlyExitInferer):
        return f"exit {windows.threshold:g}"
    level = inferer.level or (network.level if isinstance(network, UNetPlusPlus) else None)
    return f"L{level}" if level else "exported"


def _precision(chosen: Chosen, device: torch.device, level: str, amp_is_given: bool) -> str:
    """Return the precision that was calibrated for a level where the device is fast in it, else ``amp``'s."""
    calibrated = None if amp_is_given else _calibrated_precision(chosen.record, level)
    if calibrated is not None:
        if kernels.is_fast_in(calibrated, device):
            return calibrated
        slower = f"on this {device.type} float32 is faster."
        logger.info(f"{chosen.weights} was calibrated in {calibrated}: {slower}")
        return "float32"
    if chosen.weights.suffix == ".onnx" and not amp_is_given:  # amp is that of a GPU
        return "float32"
    get = chosen.parser.get_parsed_content
    return kernels.precision_of(device, get("amp"), get("amp_kwargs"))


def _calibrated_precision(record: Record | None, level: str) -> str | None:
    """Return the precision that was measured for a level; pruned weights have one, without its number."""
    if record is None:
        return None
    early_exit = level.startswith("exit")  # it was calibrated in that precision
    return record.precision if early_exit or level == f"L{record.level}" or record.level is None else None


def _class_names(bundle: PathLike, number: int) -> list[str]:
    """Return the names of the first classes in a bundle's metadata, with the background's, if it has them."""
    try:
        channels = _metadata(bundle)["network_data_format"]["outputs"]["pred"]["channel_def"]
        return [str(channels[str(n)]) for n in range(number)]
    except (KeyError, TypeError):
        return []


def _loader(preprocessing: Any) -> LoadImageAndLabeld | None:
    """Return what loads a scan in a bundle of this package; other bundles have other transforms."""
    transforms = getattr(preprocessing, "transforms", ())
    return next((each for each in transforms if isinstance(each, LoadImageAndLabeld)), None)


def _modality(preprocessing: Any, bundle: PathLike) -> str | None:
    loader = _loader(preprocessing)
    if loader is not None and loader.modality is not None:
        return loader.modality
    try:
        stated = str(_metadata(bundle)["network_data_format"]["inputs"]["image"]["modality"]).upper()
    except (KeyError, TypeError):
        return None
    return stated if stated in MODALITIES else None


def _metadata(bundle: PathLike) -> dict[str, Any]:
    """Return a bundle's metadata; a bundle of one's own works without."""
    try:
        found = json.loads(Path(*config_files(bundle, "metadata")).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _value_names(regions: Mapping[str, Sequence[int]]) -> list[str]:
    """Return what each value of a mask stands for, from 0 on: the regions that it is in, "" if in none."""
    names = [
        ", ".join(name for name, values in regions.items() if value in values)
        for value in range(1, 1 + max(max(values) for values in regions.values()))
    ]
    return ["background", *(f"value {n} ({each})" if each else "" for n, each in enumerate(names, 1))]
