# SPDX-License-Identifier: Apache-2.0
"""One level of a trained fold as a bundle of MONAI, which runs without nnU-Net.

nnU-Net computes on arrays (Z, Y, X), turned by ``transpose_forward``; MONAI on (X, Y, Z). The axes of
kernels, strides, patch and spacing are exchanged once, at export, so that no volume has to be turned.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_unetpp.files import PathLike, atomic_directory, save_by_memory
from monai_unetpp.levels import read_levels, select_level
from monai_unetpp.network import UNetPlusPlus, prune
from monai_unetpp.nnunet.bundling import write_files
from monai_unetpp.nnunet.levels import FOLDER
from monai_unetpp.nnunet.models import Fold
from monai_unetpp.nnunet.preprocessing import OF_CT, SCHEMES
from monai_unetpp.weights import Record, write_record
from monai_unetpp.weights.record import make_record, plain

__all__ = ["chosen_level", "export_level"]

READERS = ("SimpleITKIO", "NibabelIO")  # which leave the axes as they are in the file
RESAMPLING = "resample_data_or_seg_to_shape"
PREPROCESSOR = "DefaultPreprocessor"
SIGNS = set("#$@%")  # which MONAI's parser reads

Json = dict[str, Any]


def chosen_level(fold: Fold, tolerance: float = 0.01, scores: PathLike | None = None) -> int:
    """Return the level that is deep enough by the scores of ``monai-unetpp nnunet levels``.

    Args:
        fold: Trained fold.
        tolerance: Loss of Dice to accept.
        scores: Folder of the scores; default ``levels`` in the folder of the fold.

    Raises:
        FileNotFoundError: if the levels were not scored.
    """
    folder = fold.folder / FOLDER if scores is None else Path(scores)
    if not (folder / "levels.csv").is_file():
        raise FileNotFoundError(
            f"there is no {folder / 'levels.csv'}: give --level, or run monai-unetpp nnunet levels before."
        )
    return select_level(read_levels(folder), tolerance)


def export_level(fold: Fold, level: int, out: PathLike, mirror: bool = True, overwrite: bool = False) -> Path:
    """Write a bundle whose masks are those of ``nnUNet_unetpp_level=LEVEL nnUNetv2_predict`` up to rounding.

    It has ``inference.json``, ``metadata.json`` and ``models/model.pt``, with a record, and is run by
    ``monai-unetpp segment`` or ``python -m monai.bundle run``.

    Args:
        fold: Trained fold; masks are of this fold alone, not of an ensemble of folds.
        level: ``k`` of L^k.
        out: Folder to write; its name is the bundle's.
        mirror: Whether to average over mirrored windows, as nnU-Net does by default.
        overwrite: Whether an existing folder may be replaced.

    Raises:
        FileExistsError: if ``out`` exists and ``overwrite`` is false.
        ValueError: if the network has no such level, or the plans ask for what the transforms of this package
            do not do; the message names the key.
    """
    out = Path(out)
    _check(fold, out)
    net = fold.network().net
    net.check_level(level)
    axes = _axes(fold)
    network = _turned(prune(net, level), axes)
    values = _values(fold, network, axes, mirror)
    with atomic_directory(out, overwrite) as part:
        write_files(fold, level, values, part, out)
        (part / "models").mkdir()
        weights = part / "models" / "model.pt"
        save_by_memory(weights, partial(torch.save, network.state_dict()))
        write_record(weights, _record(weights, fold, network, values))
    return out


def _check(fold: Fold, out: Path) -> None:
    """Raise if the plans ask for what the exported transforms would do otherwise."""
    settings, config = fold.settings, fold.settings.configuration
    wanted: list[tuple[str, Any, Sequence[Any]]] = [
        ("image_reader_writer", fold.plans.plans["image_reader_writer"], READERS),
        ("label_manager", fold.plans.plans.get("label_manager", "LabelManager"), ["LabelManager"]),
        ("preprocessor_name", settings.preprocessor_name, [PREPROCESSOR]),
        ("previous_stage", settings.previous_stage_name, [None]),
        *(("normalization_schemes", scheme, SCHEMES) for scheme in settings.normalization_schemes),
    ]
    for what in ("data", "probabilities"):
        kwargs = config[f"resampling_fn_{what}_kwargs"]
        wanted.append((f"resampling_fn_{what}", config[f"resampling_fn_{what}"], [RESAMPLING]))
        wanted.append((f"is_seg of resampling_fn_{what}_kwargs", kwargs.get("is_seg", False), [False]))
    for key, value, known in wanted:
        if value not in known:
            raise ValueError(
                f"{key} of the plans must be {' or '.join(map(str, known))} for a bundle, got {value}: its "
                f"masks would differ from those of nnU-Net. Use nnUNetv2_predict for {fold.configuration}."
            )
    if SIGNS & set(out.as_posix()):
        raise ValueError(f"out must have none of {' '.join(sorted(SIGNS))}, which MONAI reads, got {out}.")


def _axes(fold: Fold) -> list[int]:
    """Return for each axis of nnU-Net's arrays that of the file, (X, Y, Z)."""
    return [2 - axis for axis in fold.plans.transpose_forward]


def _turned(net: UNetPlusPlus, axes: Sequence[int]) -> UNetPlusPlus:
    """Return the network for the order of axes in the file; of two dimensions for its plane."""
    kept = list(axes)[len(axes) - net.spatial_dims :]
    order = [kept.index(axis) for axis in sorted(kept)]  # axis of ours -> axis of theirs
    arguments = net.spec.arguments()
    for key in ("strides", "kernel_size"):
        arguments[key] = [[row[axis] for axis in order] for row in arguments[key]]
    turned = UNetPlusPlus(**arguments)
    turned.load_state_dict({key: _permuted(w, order) for key, w in net.state_dict().items()})
    return turned.eval()


def _permuted(weight: Tensor, order: Sequence[int]) -> Tensor:
    """Return the weight of a convolution (O, I, *kernel) with its spatial axes in another order."""
    if weight.dim() != 2 + len(order):
        return weight
    return weight.permute(0, 1, *(2 + axis for axis in order)).contiguous()


def _values(fold: Fold, network: UNetPlusPlus, axes: Sequence[int], mirror: bool) -> Json:
    """Return the settings of the bundle by key, per axis of the file."""
    settings, labels, dims = fold.settings, fold.labels, network.spatial_dims
    lead = 3 - dims  # slices: the first axis of nnU-Net's arrays is not resampled
    spacing = [-1.0] * lead + [float(value) for value in settings.spacing]
    patch = [1] * lead + [int(n) for n in settings.patch_size]
    mirrored = [axis + lead for axis in fold.stored.get("inference_allowed_mirroring_axes") or ()]
    known = fold.plans.foreground_intensity_properties_per_channel
    return {
        "spatial_dims": dims,
        "in_channels": network.in_channels,
        "out_channels": network.arguments["out_channels"],
        "channels": list(network.spec.channels),
        "network": plain(network.spec.arguments()),
        "pixdim": _by_file(spacing, axes),
        "roi_size": _by_file(patch, axes),
        "mirrored": sorted(axes[axis] for axis in mirrored) if mirror else [],
        "slice_axis": axes[0] if lead else None,
        "schemes": list(settings.normalization_schemes),
        "masked": list(settings.use_mask_for_norm),
        "intensities": [{name: known[key][name] for name in OF_CT} for key in sorted(known, key=int)],
        "regions": [_numbers(region) for region in labels.foreground_regions] if labels.has_regions else None,
        "regions_class_order": list(labels.regions_class_order) if labels.has_regions else None,
    }


def _by_file(values: Sequence[Any], axes: Sequence[int]) -> list[Any]:
    found = dict(zip(axes, values, strict=True))
    return [found[axis] for axis in range(3)]


def _numbers(region: int | Sequence[int]) -> list[int]:
    return [int(region)] if isinstance(region, int) else [int(value) for value in region]


def _record(weights: Path, fold: Fold, network: UNetPlusPlus, values: Json) -> Record:
    number = fold.folder.name.removeprefix("fold_")
    settings = {key: values[key] for key in ("pixdim", "roi_size", "regions", "regions_class_order")}
    labels = ["background", *fold.class_names]
    data = {"data": fold.dataset, "fold": int(number) if number.isdecimal() else None}
    epoch = fold.stored["current_epoch"]
    return make_record(weights, network, {**settings, **data, "labels": labels}, epoch)
