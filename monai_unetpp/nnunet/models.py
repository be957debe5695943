# SPDX-License-Identifier: Apache-2.0
"""Trained folds in the folders of nnU-Net, and its predictor with one of them at any level."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from monai_unetpp.extras import require
from monai_unetpp.network import unwrap
from monai_unetpp.nnunet.architecture import PlansUNetPlusPlus, network_arguments

__all__ = ["CHECKPOINT", "PLANS", "TRAINER", "Fold", "find_fold"]

TRAINER, PLANS, CHECKPOINT = "nnUNetTrainerUNetPlusPlus", "nnUNetPlans", "checkpoint_final.pth"
Json = dict[str, Any]


@dataclass(frozen=True)
class Fold:
    """A fold that nnU-Net trained with our trainer.

    Args:
        folder: ``nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION/fold_N``.
        configuration: Name of the configuration.
        checkpoint: Name of the training checkpoint in ``folder``.
    """

    folder: Path
    configuration: str
    checkpoint: str = CHECKPOINT

    @property
    def dataset(self) -> str:
        """Name of the data set, such as ``"Dataset004_Hippocampus"``."""
        return self.folder.parents[1].name

    @cached_property
    def plans(self) -> Any:
        """Plans that the fold was trained with, nnU-Net's ``PlansManager``."""
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        return PlansManager(_json(self.folder.parent / "plans.json"))

    @cached_property
    def dataset_json(self) -> Json:
        """``dataset.json`` that the fold was trained with."""
        return _json(self.folder.parent / "dataset.json")

    @cached_property
    def settings(self) -> Any:
        """Configuration, nnU-Net's ``ConfigurationManager``."""
        return self.plans.get_configuration(self.configuration)

    @cached_property
    def labels(self) -> Any:
        """Classes or regions, nnU-Net's ``LabelManager``."""
        return self.plans.get_label_manager(self.dataset_json)

    @cached_property
    def stored(self) -> Json:
        """Training checkpoint, on the CPU.

        nnU-Net pickles numpy scalars into it: it is read as nnU-Net reads it, code included. A checkpoint of
        unknown origin is not safe to open, here or there.
        """
        content: Json = torch.load(self.folder / self.checkpoint, map_location="cpu", weights_only=False)
        return content

    @property
    def class_names(self) -> list[str]:
        """Names of the classes without the background, or of the regions, in the order of the heads."""
        left_out = ("background", "ignore")
        return [name for name in self.dataset_json["labels"] if name not in left_out]

    @property
    def architecture(self) -> Mapping[str, Any]:
        """``"architecture"`` of the configuration."""
        found: Mapping[str, Any] = self.settings.configuration["architecture"]
        return found

    def network_arguments(self) -> Json:
        """Return the arguments of the :class:`~monai_unetpp.UNetPlusPlus` that was trained."""
        from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

        channels = determine_num_input_channels(self.plans, self.settings, self.dataset_json)
        return network_arguments(self.architecture, channels, self.labels.num_segmentation_heads)

    def network(self) -> PlansUNetPlusPlus:
        """Return the network with the weights of the training checkpoint, in evaluation, for prediction."""
        network = PlansUNetPlusPlus(self.network_arguments(), deep_supervision=False)
        network.load_state_dict(self.stored["network_weights"])
        return network.eval()

    def predictor(self, device: torch.device, mirror: bool = True) -> Any:
        """Return nnU-Net's predictor as ``nnUNetv2_predict`` sets it up, with the network of this fold.

        Args:
            device: Device to predict on.
            mirror: Whether to average over mirrored windows, nnU-Net's test-time augmentation.
        """
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        predictor = nnUNetPredictor(use_mirroring=mirror, device=device, allow_tqdm=False)
        predictor.manual_initialization(
            self.network().to(device),
            self.plans,
            self.settings,
            [self.stored["network_weights"]],
            self.dataset_json,
            TRAINER,
            self.stored.get("inference_allowed_mirroring_axes"),
        )
        return predictor


def set_level(network: Any, level: int) -> None:
    """Set the level at which the network of a predictor predicts, compiled or not."""
    unwrap(network).net.level = level


def find_fold(
    dataset: str,
    configuration: str,
    fold: str | int,
    plans: str = PLANS,
    trainer: str = TRAINER,
    checkpoint: str = CHECKPOINT,
) -> Fold:
    """Return a trained fold by the names that nnU-Net's commands take.

    Args:
        dataset: Name of the data set, or its number.
        configuration: Name of the configuration.
        fold: Number of the fold, or ``"all"``.
        plans: Name of the plans.
        trainer: Name of the trainer, a subclass of ours.
        checkpoint: Name of the training checkpoint.

    Raises:
        ModuleNotFoundError: if nnU-Net is not installed.
        FileNotFoundError: if a folder or file does not exist; the message says what makes it.
        ValueError: if an environment variable of nnU-Net is not set, or the checkpoint is of another trainer.
    """
    require("nnunet", "nnunetv2")
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    results = environment_folder("nnUNet_results")
    try:
        name = str(maybe_convert_to_dataset_name(int(dataset) if str(dataset).isdecimal() else dataset))
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    model = results / name / f"{trainer}__{plans}__{configuration}"
    folder = model / f"fold_{fold}"
    for path in (folder / checkpoint, model / "plans.json", model / "dataset.json"):
        if not path.is_file():
            train = f"nnUNetv2_train {dataset} {configuration} {fold} -tr {trainer} -p {plans}"
            raise FileNotFoundError(f"there is no {path}: {train} writes it.")
    found = Fold(folder, configuration, checkpoint)
    keys = found.stored["network_weights"]
    if not all(key.startswith("net.") for key in keys):
        raise ValueError(
            f"{folder / checkpoint} must be of {TRAINER}, whose weights begin with net., got "
            f"{next(iter(keys))} of {found.stored.get('trainer_name')}."
        )
    return found


def environment_folder(name: str) -> Path:
    """Return the folder that an environment variable of nnU-Net names.

    Raises:
        ValueError: if it is not set.
    """
    text = os.environ.get(name, "")
    if not text:
        raise ValueError(f"The environment variable {name} must name a folder of nnU-Net, it is not set.")
    return Path(text)


def _json(path: Path) -> Json:
    return dict(json.loads(path.read_text(encoding="utf-8")))
