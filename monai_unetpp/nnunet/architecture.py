# SPDX-License-Identifier: Apache-2.0
"""From a configuration of nnU-Net's plans to our network, with the conventions that nnU-Net expects.

nnU-Net switches ``network.decoder.deep_supervision`` and never asks for the mode: validation during training
runs in evaluation and wants a list, prediction builds the network with the switch off and loads the same
weights. The weights are those of the ``UNetPlusPlus`` inside, with the prefix ``net.``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from monai.networks.layers.factories import Act
from torch import Tensor, nn

from monai_unetpp.network import UNetPlusPlus

__all__ = ["LEVEL", "PlansUNetPlusPlus", "build_network", "differences", "initialize", "network_arguments"]

LEVEL = "nnUNet_unetpp_level"  # environment variable, named as those of nnU-Net
SLOPE = 0.01  # of LeakyReLU, as nnU-Net initialises for it
NODES = "PlainConvUNet"  # whose stages are two convolutions each, as our nodes are


class PlansUNetPlusPlus(nn.Module):
    """UNet++ with the switch of nnU-Net: a list of heads, deepest first, or one tensor, in any mode.

    Args:
        arguments: Arguments of :class:`~monai_unetpp.UNetPlusPlus`.
        deep_supervision: Whether ``forward`` returns the logits of all heads.
        level: Level that is computed when the switch is off; default the deepest one.

    Attributes:
        net: The :class:`~monai_unetpp.UNetPlusPlus`.
        decoder: Holds the switch ``deep_supervision``, where nnU-Net looks for it.

    Raises:
        ValueError: if the arguments do not make a network, or it has no such level.
    """

    def __init__(
        self, arguments: Mapping[str, Any], deep_supervision: bool = True, level: int | None = None
    ) -> None:
        super().__init__()
        self.net = UNetPlusPlus(**arguments)
        self.net.level = self.net.depth if level is None else level
        self.decoder = _Decoder(deep_supervision)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return logits (B, K, *spatial) of every head, or of the level, for images (B, C, *spatial)."""
        if self.decoder.deep_supervision:
            return self.net.all_heads(x)
        logits = self.net(x)
        return logits[0] if isinstance(logits, list) else logits  # a list in training


class _Decoder(nn.Module):
    def __init__(self, deep_supervision: bool) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision


def build_network(
    architecture: Mapping[str, Any], in_channels: int, out_channels: int, deep_supervision: bool
) -> PlansUNetPlusPlus:
    """Return the network of a configuration, initialised as nnU-Net initialises its own.

    Args:
        architecture: ``"architecture"`` of a configuration of the plans.
        in_channels: Number of channels of the images.
        out_channels: Number of classes or regions.
        deep_supervision: Whether ``forward`` returns the logits of all heads.

    Raises:
        ValueError: if the plans describe what our network cannot be, or the environment variable
            ``nnUNet_unetpp_level`` names no level of it.
    """
    arguments = network_arguments(architecture, in_channels, out_channels)
    network = PlansUNetPlusPlus(arguments, deep_supervision, _chosen_level(len(arguments["strides"])))
    initialize(network)
    return network


def network_arguments(architecture: Mapping[str, Any], in_channels: int, out_channels: int) -> dict[str, Any]:
    """Return the arguments of :class:`~monai_unetpp.UNetPlusPlus` for the network of a configuration.

    Stage ``i`` of the plans is row ``i``: widths, kernels, strides (without the first, which is 1), norm,
    activation and dropout are theirs.

    Args:
        architecture: ``"architecture"`` of a configuration of the plans.
        in_channels: Number of channels of the images.
        out_channels: Number of classes or regions.

    Raises:
        ValueError: if the plans describe what our network cannot be; the message names the key.

    Example:
        >>> kwargs = {"conv_op": "torch.nn.modules.conv.Conv2d", "strides": [[1, 1], [2, 2]], "n_stages": 2}
        >>> kwargs |= {"features_per_stage": [32, 64], "kernel_sizes": [[3, 3], [3, 3]]}
        >>> network_arguments({"arch_kwargs": kwargs}, 1, 2)["strides"]
        [[2, 2]]
    """
    kwargs = architecture["arch_kwargs"]
    strides = [list(stride) for stride in kwargs["strides"]]
    if any(step != 1 for step in strides[0]):
        raise ValueError(
            f"strides must begin with 1 on every axis: row 0 is as large as the input, got {strides[0]}."
        )
    if kwargs.get("nonlin_first"):
        raise ValueError("nonlin_first must be false: the norm comes before the activation in our nodes.")
    dims = _matched("conv_op", kwargs["conv_op"], r"Conv([23])d", "Conv2d or Conv3d")
    features = kwargs["features_per_stage"]
    return {
        "spatial_dims": int(dims[1]),
        "in_channels": in_channels,
        "out_channels": out_channels,
        "channels": [features] * len(strides) if isinstance(features, int) else list(features),
        "strides": strides[1:],
        "kernel_size": [list(kernel) for kernel in kwargs["kernel_sizes"]],
        "norm": _norm(kwargs),
        "act": _act(kwargs),
        "dropout": _dropout(kwargs),
        "bias": bool(kwargs.get("conv_bias", False)),
    }


def differences(architecture: Mapping[str, Any]) -> list[str]:
    """Return in what our network differs from that of the configuration, beside the grid of nodes."""
    kwargs, found = architecture["arch_kwargs"], ["Rows are pooled by maximum, where nnU-Net uses strides."]
    name = str(architecture.get("network_class_name", NODES)).rpartition(".")[2]
    if name != NODES:
        found.append(f"Nodes are two convolutions each, in place of the blocks of {name}.")
    counts = {
        *_counts(kwargs.get("n_conv_per_stage", 2)),
        *_counts(kwargs.get("n_conv_per_stage_decoder", 2)),
    }
    if name == NODES and counts != {2}:
        found.append(f"Nodes are two convolutions each, in place of {', '.join(map(str, sorted(counts)))}.")
    return found


def initialize(network: nn.Module) -> None:
    """Draw the weights of all convolutions as nnU-Net does: He's normal distribution, biases 0.

    Reference:
        He et al., Delving Deep into Rectifiers (ICCV 2015, arXiv:1502.01852).
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            nn.init.kaiming_normal_(module.weight, a=SLOPE)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _chosen_level(depth: int) -> int | None:
    text = os.environ.get(LEVEL, "")
    if not text:
        return None
    if not text.isdecimal() or not 1 <= int(text) <= depth:
        raise ValueError(
            f"The environment variable {LEVEL} must be a level of the network, 1..{depth}, got {text!r}; "
            f"without it, L{depth} predicts."
        )
    return int(text)


def _norm(kwargs: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    if kwargs.get("norm_op") is None:
        return None
    found = _matched("norm_op", kwargs["norm_op"], r"(Instance|Batch)Norm[23]d", "InstanceNorm or BatchNorm")
    return found[1].lower(), dict(kwargs.get("norm_op_kwargs") or {})


def _act(kwargs: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    if kwargs.get("nonlin") is None:
        return None
    name = _name(kwargs["nonlin"])
    if name.upper() not in Act.names:
        raise ValueError(f"nonlin must be one of MONAI's activations, {', '.join(Act.names)}, got {name}.")
    return name, dict(kwargs.get("nonlin_kwargs") or {})


def _dropout(kwargs: Mapping[str, Any]) -> float:
    if kwargs.get("dropout_op") is None:
        return 0.0
    _matched("dropout_op", kwargs["dropout_op"], r"Dropout[23]?d?", "Dropout or null")
    return float((kwargs.get("dropout_op_kwargs") or {}).get("p", 0.5))


def _name(operator: Any) -> str:
    """Return the last part of a dotted path; nnU-Net replaces some of them by the class."""
    return getattr(operator, "__name__", str(operator)).rpartition(".")[2]


def _matched(key: str, operator: Any, pattern: str, wanted: str) -> re.Match[str]:
    found = re.fullmatch(pattern, _name(operator))
    if found is None:
        raise ValueError(f"{key} of the plans must be {wanted}, which our nodes can have, got {operator}.")
    return found


def _counts(value: int | Sequence[int]) -> list[int]:
    return [value] if isinstance(value, int) else list(value)
