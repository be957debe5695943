# SPDX-License-Identifier: Apache-2.0
"""Every level of a trained fold, scored on its validation cases through nnU-Net's own predictor.

Windows, mirroring, resampling and crop are those of ``nnUNetv2_predict``: level ``k`` has the Dice of the
masks that ``nnUNet_unetpp_level=k nnUNetv2_predict`` writes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_unetpp.files import PathLike
from monai_unetpp.levels import LevelScore, check_report, select_level, write_levels
from monai_unetpp.levels.cases import check_scored, mean_scores, score_case
from monai_unetpp.levels.score import level_costs
from monai_unetpp.network import kernels, unwrap
from monai_unetpp.nnunet.models import Fold, environment_folder, set_level

__all__ = ["FOLDER", "as_item", "choose_level", "score_fold"]

FOLDER = "levels"  # in the folder of the fold

logger = logging.getLogger(__name__)


def choose_level(
    fold: Fold,
    device: torch.device,
    tolerance: float = 0.01,
    mirror: bool = True,
    surface_tolerance: float = 2.0,
    out: PathLike | None = None,
    overwrite: bool = False,
    say: Callable[[str], object] = logger.info,
) -> tuple[int, Path]:
    """Score every level, write table and figure, and return the level that is deep enough, and their folder.

    Args:
        fold: Trained fold.
        device: Device to predict on.
        tolerance: Loss of Dice to accept, see :func:`~monai_unetpp.select_level`.
        mirror: Whether to average over mirrored windows, as nnU-Net does by default.
        surface_tolerance: Distance up to which surfaces agree, mm.
        out: Folder to write to; default ``levels`` in the folder of the fold.
        overwrite: Whether existing files may be replaced.
        say: Function that is told which case is predicted.

    Raises:
        FileExistsError: if there are scores and ``overwrite`` is false.
        FileNotFoundError: if the preprocessed data set or its split is not there.
        ModuleNotFoundError: if matplotlib is not installed.
        ValueError: if the configuration refines another one, or no validation case has a class.
    """
    directory = fold.folder / FOLDER if out is None else Path(out)
    check_report(directory, overwrite)
    scores = score_fold(fold, device, mirror, surface_tolerance, say)
    level = select_level(scores, tolerance)
    title = f"{fold.dataset}, {fold.configuration}, {fold.folder.name}"
    return level, write_levels(scores, directory, level, tolerance, title, overwrite)


def score_fold(
    fold: Fold,
    device: torch.device,
    mirror: bool = True,
    surface_tolerance: float = 2.0,
    say: Callable[[str], object] = logger.info,
    rounds: int = 7,
) -> list[LevelScore]:
    """Return the scores of all levels on the validation cases of a fold, shallowest first.

    Args:
        fold: Trained fold.
        device: Device to predict on.
        mirror: Whether to average over mirrored windows.
        surface_tolerance: Distance up to which surfaces agree, mm.
        say: Function that is told which case is predicted.
        rounds: Number of rounds of the timing of a window.

    Raises:
        FileNotFoundError: if the preprocessed data set or its split is not there.
        ValueError: if the configuration refines another one, or no validation case has a class.
    """
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    if fold.settings.previous_stage_name is not None:
        raise ValueError(
            f"configuration must be none that refines another one, {fold.configuration} refines "
            f"{fold.settings.previous_stage_name}: name 3d_fullres."
        )
    base = environment_folder("nnUNet_preprocessed") / fold.dataset
    names, folder = _validation_cases(fold, base), base / fold.settings.data_identifier
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no {folder}: nnUNetv2_preprocess writes it.")
    predictor = fold.predictor(device, mirror)
    net = unwrap(predictor.network).net
    levels = range(1, net.depth + 1)
    cases: dict[int, list[Tensor]] = {k: [] for k in levels}
    data = infer_dataset_class(str(folder))(str(folder), names)
    for name in names:
        say(f"{name}: {len(levels)} levels")
        image, _, _, properties = data.load_case(name)
        label = _read(fold, base / "gt_segmentations" / f"{name}{fold.dataset_json['file_ending']}")
        for k in levels:
            set_level(predictor.network, k)
            found = _predict(fold, predictor, torch.from_numpy(np.array(image[:])), properties)
            item = as_item(fold, found, label, properties["spacing"])
            cases[k].append(score_case(item, surface_tolerance, warn=k == 1))
    check_scored(cases[1])
    precision = "float32" if device.type == "cpu" else "float16"  # of nnU-Net's predictor
    shape = (1, net.in_channels, *fold.settings.patch_size)
    costs = level_costs(net, shape, {precision: kernels.in_precision(precision, device)}, rounds)
    return [
        LevelScore(
            level=k,
            precision=precision,
            cases=tuple(names),
            **mean_scores(cases[k], fold.class_names),
            **costs[precision, k],
        )
        for k in levels
    ]


def _validation_cases(fold: Fold, base: Path) -> list[str]:
    """Return the names of the cases that the fold was not trained on, from nnU-Net's file of splits."""
    path, number = base / "splits_final.json", fold.folder.name.removeprefix("fold_")
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: the training of a fold writes it.")
    splits: list[dict[str, list[str]]] = json.loads(path.read_text(encoding="utf-8"))
    if not number.isdecimal() or int(number) >= len(splits):
        raise ValueError(
            f"fold must be one of those in {path}, 0..{len(splits) - 1}, got {number}: "
            "others hold out no case."
        )
    return splits[int(number)]["val"]


def _predict(fold: Fold, predictor: Any, image: Tensor, properties: Any) -> np.ndarray[Any, Any]:
    """Return the labels of a preprocessed case on the grid of its file."""
    from nnunetv2.inference.export_prediction import (
        convert_predicted_logits_to_segmentation_with_correct_shape as to_file,
    )

    logits = predictor.predict_sliding_window_return_logits(image).cpu()
    threads = torch.get_num_threads()
    labels: np.ndarray[Any, Any] = to_file(
        logits, fold.plans, fold.settings, fold.labels, properties, num_threads_torch=threads
    )
    return labels


def _read(fold: Fold, path: Path) -> np.ndarray[Any, Any]:
    labels: np.ndarray[Any, Any] = fold.plans.image_reader_writer_class().read_seg(str(path))[0][0]
    return labels


def as_item(
    fold: Fold, found: np.ndarray[Any, Any], label: np.ndarray[Any, Any], spacing: Sequence[float]
) -> dict[str, Any]:
    """Return prediction and label, one-hot with the background first, without voxels nobody annotated.

    Args:
        fold: Trained fold, whose classes or regions are compared.
        found: Predicted label map (Z, Y, X).
        label: Label map of the case (Z, Y, X).
        spacing: Spacing per axis of the arrays, mm.
    """
    ignored = fold.labels.ignore_label
    annotated = np.ones(label.shape, bool) if ignored is None else label != ignored
    groups = fold.labels.foreground_regions if fold.labels.has_regions else fold.labels.foreground_labels
    affine = torch.diag(torch.tensor([*(float(s) for s in spacing), 1.0], dtype=torch.float64))

    def one_hot(values: np.ndarray[Any, Any]) -> MetaTensor:
        masks = np.stack([np.isin(values, group) & annotated for group in groups])
        stacked = np.concatenate([~masks.any(axis=0, keepdims=True), masks])
        return MetaTensor(torch.from_numpy(stacked.astype(np.float32)), affine=affine)

    return {"image": None, "pred": one_hot(found), "label": one_hot(label)}
