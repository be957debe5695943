# SPDX-License-Identifier: Apache-2.0
"""Keep L^k, throw the rest away.

The nodes with ``i + j > k`` never feed head ``k``, so L^k alone computes that head to the last bit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from monai_unetpp.network.spec import SKIPS
from monai_unetpp.network.unetplusplus import UNetPlusPlus
from monai_unetpp.network.wrapping import unprefixed, unwrap_unetplusplus

__all__ = ["assemble", "levels_in", "prune", "prune_state_dict"]


def prune(net: nn.Module, level: int) -> UNetPlusPlus:
    """Return L^level as a network of its own: copied weights, one head, the same output bit by bit.

    The result is an ordinary network of depth ``level`` with deep supervision off, in the mode, on
    the device and in the dtype of ``net``; it can be trained on.

    Args:
        net: a UNetPlusPlus with a head at ``level``; compiled, parallel or averaged ones are unwrapped.
        level: ``1 <= level <= net.depth``.

    Raises:
        TypeError: if ``net`` is another network; the message names a UNetPlusPlus that it contains.
        ValueError: if the network has no head at ``level``; the message says which it has.

    Example:
        >>> net = UNetPlusPlus(2, 1, 2, channels=(4, 8, 16), strides=2).eval()
        >>> x = torch.rand(1, 1, 16, 16)
        >>> bool(torch.equal(prune(net, 1)(x), net.all_heads(x)[-1]))
        True

    Reference:
        Zhou et al., UNet++ (IEEE TMI 2020, arXiv:1912.05074), model pruning.
    """
    net = unwrap_unetplusplus(net, "net")
    net.check_level(level)
    state = prune_state_dict(net.state_dict(), level, skips=net.skips)
    return assemble(net.spec.at(level).arguments(), state).train(net.training)


def prune_state_dict(state_dict: Mapping[str, Tensor], level: int, skips: str = "dense") -> dict[str, Tensor]:
    """Return the weights of L^level, copied from those of the whole network.

    Args:
        state_dict: of a :class:`~monai_unetpp.UNetPlusPlus`, with a head at ``level``; a prefix of
            all keys such as ``module.`` is taken off.
        level: ``k`` of L^k.
        skips: of the network that the weights come from; the weights alone cannot tell
            ``"short"`` from ``"long"``.

    Raises:
        ValueError: if ``state_dict`` is not of a UNetPlusPlus, has no head at ``level``, or was not
            made with these ``skips``.
    """
    if skips not in SKIPS:
        raise ValueError(f"skips must be one of {', '.join(SKIPS)}, got {skips!r}.")
    state_dict = unprefixed(state_dict)
    heads = levels_in(state_dict)
    if not heads:
        raise ValueError("state_dict has no 'heads.*' keys: it is not of a UNetPlusPlus.")
    if level not in heads:
        raise ValueError(
            f"level must be one of the heads in state_dict, {', '.join(map(str, heads))}, got {level}."
        )
    _check_skips(state_dict, skips)
    return {
        key: value.detach().clone()
        for key, value in state_dict.items()
        if _belongs_to_level(key, level, skips)
    }


def levels_in(state_dict: Mapping[str, Tensor]) -> list[int]:
    """Return the levels that have a head in ``state_dict``, shallowest first; none if of another network."""
    return sorted({int(m[1]) + 1 for m in map(re.compile(r"heads\.(\d+)\.").match, state_dict) if m})


def assemble(arguments: Mapping[str, Any], state: dict[str, Tensor]) -> UNetPlusPlus:
    """Build the network around these very tensors, drawing no random numbers."""
    with torch.device("meta"):
        net = UNetPlusPlus(**arguments)
    net.load_state_dict(state, assign=True)
    return net


def _belongs_to_level(key: str, level: int, skips: str) -> bool:
    room, name = key.split(".")[:2]
    if room == "heads":
        return int(name) == level - 1
    if room == "encoder":
        return int(name) <= level
    _, i, j = name.split("_")
    diagonal = int(i) + int(j)
    return diagonal == level if skips == "long" else diagonal <= level


def _check_skips(state_dict: Mapping[str, Tensor], skips: str) -> None:
    """Raise if the first convolutions of row 0 do not take the channels that ``skips`` asks for."""
    widths = {}
    for key, value in state_dict.items():
        node = re.fullmatch(r"nodes\.x_0_(\d+)\.convs\.conv_0\.conv\.weight", key)
        if node:
            widths[int(node[1])] = value.shape[1]
    row = state_dict["encoder.0.convs.conv_0.conv.weight"].shape[0]
    if len(widths) > 1:
        j, k = min(widths), max(widths)
        grows = widths[k] - widths[j] == row * (k - j)
        if grows != (skips == "dense"):
            took = "'dense'" if grows else "'short' or 'long'"
            raise ValueError(f"skips must be {took} for these weights, got {skips!r}.")
