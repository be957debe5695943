# SPDX-License-Identifier: Apache-2.0
"""The weights of MONAI's BasicUNetPlusPlus, in our network."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from monai.networks.nets import BasicUNetPlusPlus
from torch import Tensor, nn

from monai_unetpp.network.pruning import assemble
from monai_unetpp.network.unetplusplus import UNetPlusPlus
from monai_unetpp.network.wrapping import unwrap

__all__ = ["from_basic_unet_plus_plus", "rename_basic_keys"]


def from_basic_unet_plus_plus(net: BasicUNetPlusPlus) -> UNetPlusPlus:
    """Return a UNetPlusPlus with the weights of MONAI's class and the same outputs.

    MONAI lists its heads shallowest first, this network deepest first. Where a size does not divide
    by 16, MONAI's pooling drops the rest and this network's keeps it: only there outputs differ.

    Args:
        net: a network, trained or not. Its ``deep_supervision`` is kept: without it only the last
            head, which MONAI then returns alone, was ever trained.

    Raises:
        TypeError: if ``net`` is not a ``BasicUNetPlusPlus``, or holds a norm that this function does
            not know.

    Example:
        >>> from monai.networks.nets import BasicUNetPlusPlus
        >>> theirs = BasicUNetPlusPlus(2, 1, 2, (4, 4, 8, 16, 32, 4), deep_supervision=True).eval()
        >>> ours, x = from_basic_unet_plus_plus(theirs), torch.rand(1, 1, 32, 32)
        >>> bool(torch.allclose(ours(x), theirs(x)[-1], atol=1e-5))
        True
    """
    net = unwrap(net)
    if not isinstance(net, BasicUNetPlusPlus):
        raise TypeError(f"net must be monai.networks.nets.BasicUNetPlusPlus, got {type(net).__name__}.")
    theirs: Any = net  # for mypy, to which every child of a module is Tensor | Module
    first = theirs.conv_0_0.conv_0.conv
    adn = theirs.conv_0_0.conv_0.adn
    ups = [getattr(theirs, f"upcat_{i}_1") for i in range(4)]
    skip = theirs.upcat_0_4.convs.conv_0.conv.in_channels - 4 * first.out_channels
    channels = [first.out_channels] + [
        getattr(theirs, f"conv_{i}_0").convs.conv_0.conv.out_channels for i in range(1, 5)
    ]
    up_channels = [skip] + [
        up.convs.conv_0.conv.in_channels - width for up, width in zip(ups[1:], channels[1:4], strict=True)
    ]
    arguments: dict[str, Any] = {
        "spatial_dims": first.weight.dim() - 2,
        "in_channels": first.in_channels,
        "out_channels": theirs.final_conv_0_4.out_channels,
        "channels": channels,
        "strides": 2,
        "deep_supervision": theirs.deep_supervision,
        "act": _as_argument(getattr(adn, "A", None)),
        "norm": _as_argument(getattr(adn, "N", None)),
        "dropout": adn.D.p if hasattr(adn, "D") else 0.0,
        "bias": first.bias is not None,
        "upsample": _upsample_mode(ups[0].upsample),
        "up_channels": up_channels,
        "last_channels": theirs.final_conv_0_4.in_channels,
    }
    state = {key: value.detach().clone() for key, value in rename_basic_keys(net.state_dict()).items()}
    if not net.deep_supervision:
        state = {key: value for key, value in state.items() if key[:7] not in _SHALLOW_HEADS}
    return assemble(arguments, state).train(net.training)


def rename_basic_keys(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of a BasicUNetPlusPlus by the names that they have in a UNetPlusPlus."""
    return {_renamed(key): value for key, value in weights.items()}


_SHALLOW_HEADS = ("heads.0", "heads.1", "heads.2")

_NORM_WORDS = {
    "InstanceNorm": "instance",
    "BatchNorm": "batch",
    "GroupNorm": "group",
    "LocalResponseNorm": "localresponse",
    "SyncBatchNorm": "syncbatch",
}


def _renamed(key: str) -> str:
    """Translate a key of BasicUNetPlusPlus, e.g. ``upcat_1_2.upsample.deconv.weight``."""
    key = re.sub(r"^conv_0_0\.", "encoder.0.convs.", key)
    key = re.sub(r"^conv_(\d)_0\.", r"encoder.\1.", key)
    key = re.sub(r"^upcat_(\d)_(\d)\.upsample\.", r"nodes.x_\1_\2.up.", key)
    key = re.sub(r"^upcat_(\d)_(\d)\.", r"nodes.x_\1_\2.", key)
    return re.sub(r"^final_conv_0_(\d)\.", lambda m: f"heads.{int(m[1]) - 1}.", key)


def _as_argument(module: nn.Module | None) -> tuple[str, dict[str, Any]] | None:
    """Read from a norm or an activation the argument of MONAI's factories that makes one like it."""
    if module is None:
        return None
    kind = type(module).__name__
    if "Norm" in kind:
        word = re.sub(r"\dd$", "", kind)
        if word not in _NORM_WORDS:
            raise TypeError(f"net has norm layers of type {kind}, which cannot be taken over.")
        kind = _NORM_WORDS[word]
    settings = {name: getattr(module, name, Tensor) for name in inspect.signature(type(module)).parameters}
    plain = (bool, int, float, str, type(None))  # a parameter, such as a norm's bias, is no setting
    for name, value in list(settings.items()):
        if not isinstance(value, plain) or name in ("num_features", "num_channels"):
            del settings[name]
    return kind, settings


def _upsample_mode(upsample: nn.Module) -> str:
    if hasattr(upsample, "deconv"):
        return "deconv"
    return "pixelshuffle" if hasattr(upsample, "pixelshuffle") else "nontrainable"
