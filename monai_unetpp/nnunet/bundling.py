# SPDX-License-Identifier: Apache-2.0
"""The JSONs and the README of an exported level: those of ``bundles/liver`` with nnU-Net's way to a mask."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_unetpp.bundle import config_files, find_bundle
from monai_unetpp.nnunet.models import Fold
from monai_unetpp.planning.configs import TEMPLATE

__all__ = ["write_files"]

THRESHOLD = 3.0  # ANISO_THRESHOLD of nnU-Net
SHARED = (
    "in_channels",
    "out_channels",
    "spatial_dims",
    "channels",
    "pixdim",
    "roi_size",
)  # as in the template
NEW = ("schemes", "masked", "intensities", "mirrored", "slice_axis")
REFERENCE = (
    "Isensee F., Jaeger P.F., Kohl S.A.A., Petersen J., Maier-Hein K.H. nnU-Net: a self-configuring method "
    "for deep learning-based biomedical image segmentation. Nature Methods 18, 2021."
)

Json = dict[str, Any]


def write_files(fold: Fold, level: int, values: Mapping[str, Any], part: Path, out: Path) -> None:
    """Write ``inference.json``, ``metadata.json`` and the texts of a bundle.

    Args:
        fold: Trained fold.
        level: Level that is exported.
        values: Settings by key, see :func:`~monai_unetpp.nnunet.export.export_level`.
        part: Folder to write to.
        out: Folder that ``part`` becomes.
    """
    source = find_bundle(TEMPLATE)
    _write(part / "inference.json", _inference(_read(source, "inference"), fold, values, out))
    _write(part / "metadata.json", _metadata(_read(source, "metadata"), fold, values, level))
    for name in ("logging.conf", "LICENSE"):
        shutil.copyfile(source / name, part / name)
    licence = f"The licence of the data set {fold.dataset} is not stated here.\n"
    (part / "data_license.txt").write_text(licence, encoding="utf-8")
    (part / "README.md").write_text(_readme(fold, level, values, out), encoding="utf-8")


def _inference(config: Json, fold: Fold, values: Mapping[str, Any], out: Path) -> Json:
    """Return the template's inference.json with nnU-Net's preprocessing, windows and way back."""
    load, channels_first, *_ = config["preprocessing_transforms"]
    load |= {"in_channels": "@in_channels", "modality": None, "hounsfield": "@hounsfield"}
    named = {key: f"@{key}" for key in ("pixdim", "schemes", "masked", "intensities")}
    preprocess = {"_target_": "monai_unetpp.nnunet.preprocessing.PlansPreprocessd", "keys": "image", **named}
    settings = fold.settings.configuration
    preprocess |= _resampling(settings["resampling_fn_data_kwargs"], 3)
    made: Json = {}
    for key, value in config.items():
        made[key] = values[key] if key in (*SHARED, "regions", "regions_class_order") else value
        if key == "roi_size":
            made |= {name: values[name] for name in NEW}
    made |= {
        "_desc_": f"Segments as {fold.configuration} of {fold.dataset} does in nnU-Net v2, at one level.",
        "bundle_root": out.as_posix(),
        "input": str(out / "input"),
        "ckpt_path": "$@bundle_root + '/models/model.pt'",
        "hu_range": None,
        "hounsfield": "CTNormalization" in values["schemes"],
        "amp_kwargs": {"dtype": "$torch.float16"},
        "preprocessing_transforms": [load, channels_first, preprocess],
        "windows": {
            "_desc_": "places, weights and mirroring are nnU-Net's; mirrored [] is quicker by 2 per axis",
            "_target_": "monai_unetpp.nnunet.windows.PlansWindows",
            "roi_size": "@roi_size",
            "mirrored": "@mirrored",
            "slice_axis": "@slice_axis",
        },
        "inferer": {
            "_desc_": "labels on the file's own grid; logits are resampled",
            "_target_": "monai_unetpp.nnunet.inferer.PlansInferer",
            "inferer": "@windows",
            "pixdim": "@pixdim",
            "largest_component": "@largest_component",
            "regions": "@regions",
            "regions_class_order": "@regions_class_order",
            **_resampling(settings["resampling_fn_probabilities_kwargs"], 3),
        },
    }
    made["imports"] = [line for line in made["imports"] if "find_weights" not in line]
    made["dataset"]["data"] = "$list_volumes(@dataset_dir, @in_channels)"
    rest = {key: value for key, value in values["network"].items() if key not in made["network_def"]}
    made["network_def"] |= {**rest, "strides": values["network"]["strides"]}
    return made


def _resampling(kwargs: Mapping[str, Any], order: int) -> Json:
    return {
        "order": kwargs.get("order", order),
        "order_z": kwargs.get("order_z", 0),
        "separate": kwargs.get("force_separate_z", False),
        "threshold": kwargs.get("separate_z_anisotropy_threshold", THRESHOLD),
    }


def _metadata(metadata: Json, fold: Fold, values: Mapping[str, Any], level: int) -> Json:
    channels = fold.dataset_json.get("channel_names") or fold.dataset_json["modality"]
    names = fold.class_names if values["regions"] else ["background", *fold.class_names]
    labels = ", ".join(f"{name} {value}" for name, value in fold.dataset_json["labels"].items())
    metadata |= {
        "name": f"{fold.dataset}: L{level} of a UNet++ trained in nnU-Net v2",
        "task": f"Segmentation of {', '.join(fold.class_names)}",
        "description": f"{fold.configuration}, {fold.folder.name}, with nnU-Net's preprocessing and windows.",
        "authors": "not stated",
        "copyright": "not stated",
        "data_source": fold.dataset,
        "image_classes": f"{', '.join(channels.values())}; {', '.join(values['schemes'])}",
        "label_classes": f"single channel data, {labels}",
        "pred_classes": f"{len(names)} channels: {', '.join(names)}",
        "segment_codes": {},  # the template's are of its own classes
        "references": [REFERENCE, *(each for each in metadata["references"] if "UNet++" in each)],
    }
    size = [n for axis, n in enumerate(values["roi_size"]) if axis != values["slice_axis"]]
    image = metadata["network_data_format"]["inputs"]["image"]
    image |= {
        "format": "magnitude",
        "modality": "n/a",
        "num_channels": values["in_channels"],
        "spatial_shape": size,
        "value_range": [],
        "channel_def": dict(channels),
    }
    pred = metadata["network_data_format"]["outputs"]["pred"]
    pred |= {
        "num_channels": values["out_channels"],
        "spatial_shape": size,
        "channel_def": {str(n): name for n, name in enumerate(names)},
    }
    return metadata


def _readme(fold: Fold, level: int, values: Mapping[str, Any], out: Path) -> str:
    mirrored = "the mean over mirrored windows" if values["mirrored"] else "without mirrored windows"
    lines = [
        f"# {out.name}",
        "",
        f"L{level} of the UNet++ that nnU-Net v2 trained as `{fold.configuration}`, `{fold.folder.name}`, on",
        f"`{fold.dataset}`. Preprocessing, windows and resampling are nnU-Net's ({mirrored}); nnU-Net itself",
        "is not required. The postprocessing that `nnUNetv2_find_best_configuration` finds is not applied.",
        "",
        "```bash",
        f"monai-unetpp segment -i SCANS -o MASKS --bundle {out.as_posix()}",
        f"python -m monai.bundle run --config_file {out.as_posix()}/inference.json --input SCANS",
        "```",
        "",
        "Files are named as in nnU-Net: `CASE_0000.nii.gz`, and `CASE_0001.nii.gz` for a second channel.",
        "",
    ]
    return "\n".join(lines)


def _read(source: Path, name: str) -> Json:
    return dict(json.loads(Path(*config_files(source, name)).read_text(encoding="utf-8")))


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
