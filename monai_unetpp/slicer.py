# SPDX-License-Identifier: Apache-2.0
"""A bundle as a model of MONAIAuto3DSeg, the extension of 3D Slicer: ``model.pt`` and ``labels.csv``.

The extension builds the network from ``config``, normalises, turns, resamples and slides windows itself, and
takes the largest logit. What it cannot be told to do is refused, or listed in :attr:`SlicerModel.left_out`.
Its own normalisation passes CT through a sigmoid before it resamples and pads windows with 0;
:class:`ScaledNetwork` undoes that, so that the network sees what it saw in training.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from monai_unetpp._version import __version__
from monai_unetpp.bundle.packing import class_names, gather
from monai_unetpp.dicom_out import Code, Segment, find_segments
from monai_unetpp.files import PathLike, atomic_directory, save_by_memory, write_csv
from monai_unetpp.weights import plain, read_record, sha256

__all__ = ["ScaledNetwork", "SlicerModel", "pack_for_slicer"]

Json = dict[str, Any]

MAX_CHANNELS = 4  # volumes that the extension passes
OTHER_MODES = ("brats", "whole-head")  # words in the path of a model by which the extension changes its mode
SIGMOID_RANGE = 128  # scale of the sigmoid over the largest intensity: so wide, it is linear for resampling
STEPS = ("LoadImageAndLabeld", "EnsureChannelFirstd", "Orientationd", "Spacingd")
LEFT_OUT = {"FocusOnLungsd": "the search is not limited to the lungs (lungs_only)"}
SEQUENCES = {  # columns of labels.csv: attribute of a segment, None for those that it does not have
    "SegmentedPropertyCategoryCodeSequence": "category",
    "SegmentedPropertyTypeCodeSequence": "type",
    "SegmentedPropertyTypeModifierCodeSequence": None,
    "AnatomicRegionSequence": "region",
    "AnatomicRegionModifierSequence": None,
}
# Slicer's terminologies have anatomical structures under the code of earlier editions of DICOM; under the
# present one it finds neither their colours nor their names
SLICERS_CODES = {"91723000": Code("123037004", "SCT", "Anatomical Structure")}


class SlicerModel(NamedTuple):
    """Model that was written.

    Args:
        folder: Folder of ``model.pt`` and ``labels.csv``.
        level: Level of the network.
        left_out: What ``segment`` does with this bundle and the extension does not, as clauses.
    """

    folder: Path
    level: int
    left_out: list[str]


class ScaledNetwork(nn.Module):
    """Network that undoes the normalisation of the extension, sigmoid(x / scale) of intensities x.

    Where the extension pads, with 0, the network sees the lowest intensity, as with ``segment``.

    Args:
        network: Network of intensities in [0, 1].
        intensities: Intensities that become 0 and 1; what is beyond is clipped.
        scale: Scale of the sigmoid.
    """

    def __init__(self, network: nn.Module, intensities: Sequence[float], scale: float) -> None:
        super().__init__()
        self.network = network
        self.intensities = (float(intensities[0]), float(intensities[1]))
        self.scale = float(scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, K, *spatial) of what the extension passes, (B, C, *spatial) in [0, 1]."""
        low, high = self.intensities
        scaled = (torch.logit(x.float()) * self.scale - low) / (high - low)
        return self.network(scaled.clamp(0, 1))


def pack_for_slicer(
    bundle: PathLike,
    checkpoint: PathLike,
    out: PathLike,
    level: int | None = None,
    overlays: Sequence[str] = (),
    overwrite: bool = False,
    override_record: bool = False,
) -> SlicerModel:
    """Write a bundle with weights as a model of 3D Slicer's extension MONAIAuto3DSeg, atomically.

    Slicer's Python has to have this package installed, from which the extension builds the network.

    Args:
        bundle: Folder with train.json, inference.json and metadata.json.
        checkpoint: Path of weights or of a training checkpoint.
        out: Folder to make; its name is the model's.
        level: Level to keep, L^level alone; by default the calibrated one, or the deepest without.
        overlays: Names of JSONs of the bundle that are merged over train.json and inference.json.
        overwrite: Whether ``out``, a model for Slicer, may be replaced.
        override_record: Whether ``overlays`` and the names of the classes in metadata.json win where the
            record of the weights disagrees.

    Raises:
        FileNotFoundError: if a file of the bundle or the checkpoint does not exist.
        FileExistsError: if ``out`` exists and ``overwrite`` is false, or it is no model for Slicer.
        ValueError: if the extension cannot run the bundle, or the weights do not fit it.
    """
    source, out = Path(bundle), Path(out)
    if overwrite and out.exists() and not (out / "labels.csv").is_file():
        raise FileExistsError(f"out must be a model for 3D Slicer to be replaced, {out} is not.")
    for word in OTHER_MODES:
        if word in out.name:
            raise ValueError(
                f"out must not be called {out.name}: at {word!r} the extension changes its mode."
            )
    record = read_record(checkpoint)
    level = record.level if level is None and record is not None else level
    configs, network, record, _ = gather(source, checkpoint, level, overlays, override_record)
    inference, metadata = configs["inference"], configs["metadata"]
    config, left_out = _config(inference)
    definition = {"_target_": "monai_unetpp.UNetPlusPlus", **plain(network.spec.arguments())}
    state = network.state_dict()
    low, high = config["intensity_bounds"]
    if config["normalize_mode"] == "ct":
        scale = float(SIGMOID_RANGE * max(abs(low), abs(high)))
        scaled = {"intensities": [low, high], "scale": scale}
        definition = {"_target_": f"{__name__}.{ScaledNetwork.__name__}", "network": definition, **scaled}
        state = {f"network.{key}": value for key, value in state.items()}
        config["intensity_bounds"] = [-scale, scale]
    ConfigParser(definition).get_parsed_content().load_state_dict(state)  # as the extension does
    model = {
        "config": {**config, "network": definition},
        "state_dict": state,
        "epoch": (record.epoch if record is not None else None) or 0,
        "best_metric": (record.scores.get("val_mean_dice") if record is not None else None) or 0,
        "made_by": {"monai-unetpp": __version__, "weights": sha256(checkpoint), "level": network.depth},
    }
    names = class_names(metadata)[: inference["out_channels"]]
    with atomic_directory(out, overwrite) as part:
        save_by_memory(part / "model.pt", partial(torch.save, model))
        _write_labels(part / "labels.csv", find_segments(names, codes=metadata.get("segment_codes")))
        shutil.copy(source / "LICENSE", part)
    return SlicerModel(out, network.depth, left_out)


def _config(inference: Json) -> tuple[Json, list[str]]:
    """Return the settings of the extension, without the network, and what it leaves out."""
    parser = ConfigParser(inference)
    get = parser.get_parsed_content
    get("imports")
    _refuse("spatial_dims", get("spatial_dims"), get("spatial_dims") == 3, "3: it slides windows in volumes")
    overlapping = "null: it writes the first region alone"
    _refuse("regions", get("regions"), get("regions") is None, overlapping)
    _refuse("out_channels", get("out_channels"), get("out_channels") > 1, "2 or more, with the background")
    channels = get("in_channels")
    _refuse("in_channels", channels, channels <= MAX_CHANNELS, f"at most {MAX_CHANNELS}, a volume for each")
    *steps, scaling = (
        step for step in get("preprocessing").transforms if type(step).__name__ not in LEFT_OUT
    )
    kinds = [type(step).__name__ for step in steps]
    known = ", ".join(STEPS)
    _refuse("preprocessing_transforms", ", ".join(kinds), kinds == [*STEPS], f"{known} and one that scales")
    axes = steps[2].ornt_transform.axcodes
    _refuse("axcodes of Orientationd", axes, axes == "RAS", "RAS")
    mode, bounds = _normalisation(scaling)
    config = {
        "normalize_mode": mode,
        "intensity_bounds": bounds,
        "extra_modalities": {f"channel {n}": mode for n in range(1, channels)},
        "orientation_ras": True,
        "crop_foreground": False,
        "resample_resolution": [float(mm) for mm in get("pixdim")],
        "roi_size": [int(n) for n in get("roi_size")],
        "sigmoid": False,
    }
    present = {type(step).__name__ for step in get("preprocessing").transforms}
    left_out = [text for name, text in LEFT_OUT.items() if name in present]
    if get("largest_component"):
        left_out.append("not only the largest component is kept (largest_component)")
    return config, left_out


def _normalisation(scaling: Any) -> tuple[str, list[float]]:
    """Return the mode of the extension that stands for a transform, and the intensities of 0 and 1."""
    kind = type(scaling).__name__
    if kind == "ScaleIntensityRanged":
        of = scaling.scaler
        to = [of.b_min, of.b_max, of.clip]
        _refuse("ScaleIntensityRanged", f"b_min, b_max, clip {to}", to == [0, 1, True], "0, 1, True")
        return "ct", [float(of.a_min), float(of.a_max)]
    _refuse("scaling", kind, kind == "NormalizeIntensityd", "ScaleIntensityRanged or NormalizeIntensityd")
    of = scaling.normalizer
    plainly = of.subtrahend is None and of.divisor is None and of.channel_wise
    right = "channel_wise with nonzero true: it normalises by the voxels that are not 0"
    nonzero = "plan with --set normalize_nonzero true"
    _refuse("NormalizeIntensityd", f"nonzero {of.nonzero}", of.nonzero and plainly, f"{right}; {nonzero}")
    return "meanstd", [0.0, 1.0]


def _refuse(key: str, got: Any, fits: bool, wanted: str) -> None:
    if not fits:
        raise ValueError(f"{key} of inference.json must be, for 3D Slicer's extension, {wanted}; got {got}.")


def _write_labels(path: Path, segments: Sequence[Segment]) -> None:
    """Write the value, name and codes of each segment, in the columns of the extension."""
    fields = {"CodingSchemeDesignator": "scheme", "CodeValue": "value", "CodeMeaning": "meaning"}
    rows: list[Mapping[str, Any]] = []
    for each in segments:
        row: Json = {"LabelValue": each.values[0], "Name": each.name}
        for sequence, attribute in SEQUENCES.items():
            code: Code | None = getattr(each, attribute) if attribute is not None else None
            code = SLICERS_CODES.get(code.value, code) if code is not None else None
            row |= {f"{sequence}.{of}": getattr(code, name, "") for of, name in fields.items()}
        rows.append(row)
    write_csv(path, rows)
