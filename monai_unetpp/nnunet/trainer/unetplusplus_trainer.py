# SPDX-License-Identifier: Apache-2.0
"""A trainer of nnU-Net v2 with our network: ``-tr nnUNetTrainerUNetPlusPlus``.

nnU-Net finds it by ``export nnUNet_extTrainer=$(monai-unetpp nnunet path)``, in training and in prediction.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from monai_unetpp.network import unwrap
from monai_unetpp.nnunet.architecture import PlansUNetPlusPlus, build_network, differences

EPOCHS, ITERATIONS = "nnUNet_unetpp_epochs", "nnUNet_unetpp_iterations"  # environment variables
TRAINING_STEPS_PER_VALIDATION_STEP = 5  # as in nnU-Net: 250 and 50 in an epoch


class nnUNetTrainerUNetPlusPlus(nnUNetTrainer):  # noqa: N801  as nnU-Net names its trainers
    """nnU-Net's default trainer, with a UNet++ in place of its U-Net and a loss on the heads of all levels.

    The environment variables ``nnUNet_unetpp_epochs`` and ``nnUNet_unetpp_iterations`` (in an epoch) set the
    length of a training, 1000 and 250 by default; ``nnUNet_unetpp_level`` the level that predicts.

    Args:
        plans: Content of the plans file, with ``"continue_training"``.
        configuration: Name of the configuration.
        fold: Number of the fold, or ``"all"``.
        dataset_json: Content of ``dataset.json``.
        device: Device to train on.
    """

    # nnU-Net reads the values of these very names, so that they must be those of its own constructor
    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        epochs, iterations = _from_environment(EPOCHS), _from_environment(ITERATIONS)
        if epochs is not None:
            self.num_epochs = epochs
        if iterations is not None:
            self.num_iterations_per_epoch = iterations
            self.num_val_iterations_per_epoch = max(1, iterations // TRAINING_STEPS_PER_VALIDATION_STEP)

    def initialize(self) -> None:
        """Build network, optimizer and loss, and write into the log what our network is."""
        super().initialize()
        network: PlansUNetPlusPlus = unwrap(self.network)
        net, notes = network.net, differences(self.configuration_manager.configuration["architecture"])
        self.print_to_log_file(
            f"UNet++ with levels L1..L{net.depth}, all of which are trained; L{net.level} predicts.", *notes
        )

    @staticmethod
    def build_network_architecture(
        plans_manager: Any,  # noqa: ARG004  nnU-Net tells the new form by this name
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Return the network of a configuration; prediction calls this as well, without deep supervision."""
        return build_network(
            configuration_manager.configuration["architecture"],
            num_input_channels,
            num_output_channels,
            enable_deep_supervision,
        )

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        """Return 1 for each head: all of ours have the size of the input."""
        if not self.enable_deep_supervision:
            return None
        strides = self.configuration_manager.pool_op_kernel_sizes
        return [[1.0] * len(strides[0]) for _ in strides[1:]]

    def _build_loss(self) -> nn.Module:
        """Return their loss with equal weights: theirs would silence the last head, which is that of L1."""
        with np.errstate(invalid="ignore"):  # one head: their weights are 0 / 0
            loss = super()._build_loss()
        if not self.enable_deep_supervision:
            return loss
        heads = len(loss.weight_factors)
        return DeepSupervisionWrapper(loss.loss, [1 / heads] * heads)


def _from_environment(name: str) -> int | None:
    text = os.environ.get(name, "")
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(
            f"The environment variable {name} must be a whole number above 0, such as 250, got {text!r}."
        )
    return int(text)
