# SPDX-License-Identifier: Apache-2.0
"""The JSONs of a planned bundle: those of ``bundles/liver``, the template, with the settings of a plan."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_unetpp.bundle import config_files, find_bundle
from monai_unetpp.planning.choices import FAMILY, Plan
from monai_unetpp.planning.fingerprint import Fingerprint

__all__ = ["SYNTHETIC", "TEMPLATE", "planned_configs"]

Json = dict[str, Any]

TEMPLATE = "liver"
SHARED = (
    "in_channels",
    "out_channels",
    "spatial_dims",
    "channels",
    "pixdim",
    "hu_range",
    "hounsfield",
    "roi_size",
)
FROM_DATA = ("regions", "regions_class_order", "ignore_label")  # that few data sets have
OF_TRAINING = (
    "val_fraction",
    "cache_rate",
    "num_workers",
    "max_epochs",
    "val_interval",
    "growth",
    "learning_rate",
    "average_decay",
    "batch_size",
    "patches_per_case",
)
SYNTHETIC = ("phantom_dir", "phantoms")  # keys of what the template trains on by default
MR = ("mr", "t1", "t2", "flair")  # names of channels begin so


def planned_configs(plan: Plan, fingerprint: Fingerprint, out: Path) -> dict[str, Json]:
    """Return ``train``, ``inference`` and ``metadata`` of a planned bundle."""
    template = {
        name: json.loads(Path(*config_files(find_bundle(TEMPLATE), name)).read_text(encoding="utf-8"))
        for name in ("train", "inference", "metadata")
    }
    name, settings = out.name, {choice.key: choice.value for choice in plan.choices}
    pictures = all(case.picture for case in fingerprint.cases)
    for config in (template["train"], template["inference"]):
        _set_shared(config, settings, out)
        _set_preprocessing(config, settings)
    train, inference = template["train"], template["inference"]
    train["_desc_"] = (
        f"Made by monai-unetpp plan for {Path(fingerprint.data).name}; README.md says why it is as it is."
    )
    inference["_desc_"] = (
        f"Segments as {name}/train.json trains. Each mask is on the grid of its image, uint8."
    )
    for key in SYNTHETIC:
        del train[key]
    del train["record"]["synthetic"]
    train |= {key: settings[key] for key in OF_TRAINING}
    train["dataset_dir"] = str(Path(fingerprint.data).absolute())
    train["arguments"] = "$'' if @folds is None else '--folds ' + str(@folds) + ' --fold ' + str(@fold)"
    train["optimizer"]["_target_"] = settings["optimizer"]
    train["dataset"] = _dataset(train["dataset"], fingerprint)
    train["train"]["random_transforms"] = _random_transforms(train["train"]["random_transforms"], settings)
    train["augmentation"] = _augmentation(settings)
    inference["input"] = str((Path(fingerprint.data).absolute() / fingerprint.cases[0].image).parent)
    inference = _after(inference, "hounsfield", {"pictures": pictures})
    kind = "@in_channels, @pictures, 'CT' if @hounsfield else None"
    inference["dataset"]["data"] = f"$list_volumes(@dataset_dir, {kind})"
    inference["largest_component"] = settings["largest_component"]
    inference["mirror_axes"] = settings["flip_axes"]
    return {
        "train": train,
        "inference": inference,
        "metadata": _metadata(template["metadata"], settings, fingerprint, name),
    }


def _set_shared(config: Json, settings: Mapping[str, Any], out: Path) -> None:
    config |= {key: settings[key] for key in SHARED}
    config |= {key: settings[key] for key in FROM_DATA if key in settings}
    config["bundle_root"] = out.as_posix()
    config["network_def"] |= {key: settings[key] for key in ("strides", "kernel_size", "skips")}


def _set_preprocessing(config: Json, settings: Mapping[str, Any]) -> None:
    load, *_ = transforms = config["preprocessing_transforms"]
    load["in_channels"] = "@in_channels"
    if settings.get("label_values") is not None:
        load["label_values"] = settings["label_values"]
    if not settings["hounsfield"]:
        load["modality"] = None
    if settings["hu_range"] is None:
        transforms[-1] = {
            "_target_": "NormalizeIntensityd",
            "keys": "image",
            "nonzero": settings["normalize_nonzero"],
            "channel_wise": True,
        }


def _dataset(dataset: Json, fingerprint: Fingerprint) -> Json:
    skip = {"skip": sorted(fingerprint.problems)} if fingerprint.problems else {}
    return {
        **dataset,
        "dataset_dir": "@dataset_dir",
        "labels": fingerprint.labels,
        **fingerprint.places,
        **skip,
    }


def _random_transforms(template: Json, settings: Mapping[str, Any]) -> Json:
    """Return the patches and the small changes of intensity, those of the template scaled where needed."""
    made = copy.deepcopy(template)
    if settings["shift"] is not None:
        larger = [n + s for n, s in zip(settings["roi_size"], [*settings["shift"], 0], strict=False)]
        made["pad"]["spatial_size"] = made["crop"]["spatial_size"] = larger
        shift = {
            "_desc_": "anywhere in the crop, or the network would learn that a target is in the middle",
            "_target_": "RandSpatialCropd",
            "keys": ["image", "label"],
            "roi_size": "@roi_size",
            "random_size": False,
        }
        made = _after(made, "crop", {"shift": shift})
    if settings["hu_range"] is None:  # the standard deviation is 1, not a quarter
        made["shift_intensity"]["offsets"] = 0.2
        made["noise"]["std"] = 0.1
    return made


def _augmentation(settings: Mapping[str, Any]) -> list[Json]:
    prob = settings["augmentation_prob"]
    flips: list[Json] = [
        {"_target_": "RandFlipd", "keys": ["image", "label"], "spatial_axis": axis, "prob": 0.5}
        for axis in settings["flip_axes"]
    ]
    affine = {
        "_target_": "RandAffined",
        "keys": ["image", "label"],
        "prob": prob,
        "rotate_range": settings["rotate_range"],
        "scale_range": [0.2] * len(settings["rotate_range"] if settings["spatial_dims"] == 3 else (0, 0)),
        "mode": ["bilinear", "nearest"],
        "padding_mode": "border",
    }
    contrast = {"_target_": "RandAdjustContrastd", "keys": "image", "gamma": [0.7, 1.5], "prob": prob}
    return [*flips, *([affine, contrast] if prob else [])]


def _metadata(metadata: Json, settings: Mapping[str, Any], fingerprint: Fingerprint, name: str) -> Json:
    labels, regions, data = fingerprint.labels, settings.get("regions"), Path(fingerprint.data).name
    what = ", ".join(labels[1:])
    names = labels if regions is None else labels[1:]  # of the network's channels
    values = [f"{n} is {each}" for n, each in enumerate(labels)]
    if regions is not None:
        inside = [" or ".join(map(str, each)) for each in regions]
        values = ["0 is background", *(f"{a} is {b}" for a, b in zip(inside, names, strict=True))]
    pictures = all(case.picture for case in fingerprint.cases)
    network, scaling = FAMILY[settings["skips"]], "mean 0 and standard deviation 1 by case and channel"
    if settings["hu_range"] is not None:
        low, high = settings["hu_range"]
        scaling = f"window {low}..{high}{' HU' if settings['hounsfield'] else ''} scaled to [0, 1]"
    metadata |= {
        "name": f"{name}: segmentation with {network}",
        "task": f"Segmentation of {what}",
        "description": f"{network} with deep supervision, planned for {data}; its depth is chosen later.",
        "authors": "not stated",
        "copyright": "not stated",
        "data_source": data,
        "data_type": "picture" if pictures else "nibabel",
        "image_classes": f"{settings['in_channels']} channels ({', '.join(fingerprint.modality)}), {scaling}",
        "label_classes": f"single channel data, {', '.join(values)}",
        "pred_classes": f"{len(names)} channels: {', '.join(names)}",
        "segment_codes": {},  # the template's are of its own classes
        "references": [each for each in metadata["references"] if "UNet++" in each],
    }
    size = settings["roi_size"][: settings["spatial_dims"]]
    is_mr = all(each.lower().startswith(MR) for each in fingerprint.modality)
    modality = "CT" if settings["hounsfield"] else "MR" if is_mr else "n/a"
    image = metadata["network_data_format"]["inputs"]["image"]
    image |= {
        "format": "hounsfield" if settings["hounsfield"] else "magnitude",
        "modality": modality,
        "num_channels": settings["in_channels"],
        "spatial_shape": size,
        "value_range": [0, 1] if settings["hu_range"] is not None else [],
        "channel_def": {str(n): each for n, each in enumerate(fingerprint.modality)},
    }
    pred = metadata["network_data_format"]["outputs"]["pred"]
    pred |= {
        "num_channels": len(names),
        "spatial_shape": size,
        "channel_def": {str(n): each for n, each in enumerate(names)},
    }
    return metadata


def _after(config: Json, key: str, more: Mapping[str, Any]) -> Json:
    """Return a dictionary with further keys behind one of its own."""
    made: Json = {}
    for each, value in config.items():
        made[each] = value
        if each == key:
            made |= more
    return made
