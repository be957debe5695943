# SPDX-License-Identifier: Apache-2.0
"""Weights that a training starts from: of a file, what fits the network, layer by layer.

Other classes make new heads; other input channels are spread over the convolutions that see the image; of a
network of another depth the rows and nodes are taken that both have.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from monai_unetpp.files import PathLike
from monai_unetpp.network import UNetPlusPlus, rename_basic_keys, unwrap_unetplusplus, without_prefixes
from monai_unetpp.weights.loading import read_weights
from monai_unetpp.weights.record import sha256

__all__ = ["Taken", "load_initial_weights", "start_from"]

FIRST = "encoder.0.convs.conv_0.conv.weight"
MISSING = "not in the file"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Taken:
    """What a network took from a file of weights; ``str`` says it in one line.

    Args:
        taken: Names of the network's tensors that are from the file, the adapted ones among them.
        adapted: Names of convolutions whose input channels were adapted.
        new: Names of the tensors that are not from the file, with the reason of each.
        unused: Names of the tensors of the file that the network does not have.
        in_channels: Number of input channels in the file and in the network.
    """

    taken: tuple[str, ...]
    adapted: tuple[str, ...]
    new: Mapping[str, str]
    unused: tuple[str, ...]
    in_channels: tuple[int, int]

    def __str__(self) -> str:
        """Return the counts, and groups of names."""
        parts = [f"taken: {len(self.taken)} of {len(self.taken) + len(self.new)} tensors"]
        if self.adapted:
            old, new = self.in_channels
            how = "averaged" if new < old else "repeated"
            parts.append(
                f"{_listed(self.adapted)} first convolution {how} over channels "
                f"(in_channels {new}, {old} in the file)"
            )
        if self.new:
            reasons = dict.fromkeys(self.new.values())
            of_heads = {why for key, why in self.new.items() if key.startswith("heads.")}
            by_reason = {why: [key for key in self.new if self.new[key] == why] for why in reasons}
            named = (
                f"{_listed(keys, self.taken, len(of_heads) == 1)} ({why})" for why, keys in by_reason.items()
            )
            parts.append(f"new: {', '.join(named)}")
        if self.unused:
            parts.append(f"not used: {_listed(self.unused, self.taken)}")
        return "; ".join(parts)


def start_from(network: nn.Module, file: PathLike) -> Taken:
    """Give a network every tensor of a file that fits; the others stay as they are.

    A bias or a norm is taken only together with the convolution before it. Where the numbers of input
    channels differ, the weights over the image are adapted so that equal channels have the same response as
    before: the mean of all channels, scaled, for fewer; each channel shared among its repetitions for more.

    Shapes decide, not meaning: a head for as many other classes fits, and so do the weights of a network
    with other ``strides``, ``act`` or norm.

    Args:
        network: UNetPlusPlus to train; compiled, parallel or averaged ones are unwrapped.
        file: Path of weights or of a training checkpoint, with any of the prefixes that
            :func:`~monai_unetpp.load_network` takes off. Those of MONAI's ``BasicUNetPlusPlus`` are renamed.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If ``network`` is no UNetPlusPlus.
        ValueError: If the file holds no weights, is damaged, or no convolution in it fits.
    """
    inner = unwrap_unetplusplus(network)
    wanted = inner.state_dict()
    found = _as_ours(read_weights(file), wanted)
    old = found[FIRST].shape[1] if FIRST in found and found[FIRST].dim() > 1 else inner.in_channels
    adapted = _adapted(found, wanted, _over_the_image(inner), (old, inner.in_channels))
    given = {**found, **adapted}
    reasons = {key: why for key in wanted if (why := _misfit(key, given.get(key), wanted[key]))}
    kernels = {_layer(key): why for key, why in reasons.items() if wanted[key].dim() > 1}
    new = {key: why for key in wanted if (why := reasons.get(key) or kernels.get(_layer(key)))}
    if not any(wanted[key].dim() > 1 for key in wanted.keys() - new.keys()):
        raise ValueError(_refusal(file, found, inner))
    inner.load_state_dict({key: wanted[key] if key in new else given[key] for key in wanted})
    return Taken(
        taken=tuple(key for key in wanted if key not in new),
        adapted=tuple(adapted),
        new=new,
        unused=tuple(key for key in found if key not in wanted),
        in_channels=(old, inner.in_channels),
    )


def load_initial_weights(
    network: nn.Module, file: PathLike, resume: bool = False, rank: int = 0
) -> dict[str, str] | None:
    """Begin a training with the weights of a file by :func:`start_from`, and log what was taken.

    Args:
        network: Network to train.
        file: Path of the weights.
        resume: Whether the training is resumed: then its checkpoint has the weights, and nothing is loaded.
        rank: Rank of this process; only the first logs.

    Returns:
        Name and SHA-256 of the file, for :class:`~monai_unetpp.weights.Record`; None if ``resume``.
    """
    if resume:
        if rank == 0:
            logger.warning(
                f"finetune {file} is not read: a resumed training has the weights of its checkpoint."
            )
        return None
    taken = start_from(network, file)
    if rank == 0:
        logger.info(f"The training starts from {file}: {taken}.")
    return {"file": Path(file).name, "sha256": sha256(file)}


def _as_ours(weights: Mapping[str, Tensor], wanted: Iterable[str]) -> Mapping[str, Tensor]:
    """Return the weights without their prefix and by our names, if the network knows any of them then."""
    for _, plain in without_prefixes(weights):
        for named in (plain, rename_basic_keys(plain)):
            if not named.keys().isdisjoint(wanted):
                return named
    return weights


def _over_the_image(network: UNetPlusPlus) -> list[str]:
    """Return the names of the weights whose first input channels are those of the image."""
    names = [FIRST]
    if network.spec.block != "conv":  # both have a second convolution that sees what enters the node
        second = {"residual": "residual", "dense": "conv_1"}[network.spec.block]
        names.append(f"encoder.0.convs.{second}.conv.weight")
    if network.spec.encoder is not None:  # the image also enters row 1
        names.append(
            next(f"encoder.1.{k}" for k, w in network.encoder[1].state_dict().items() if w.dim() > 2)
        )
    return names


def _adapted(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], names: Iterable[str], channels: tuple[int, int]
) -> dict[str, Tensor]:
    """Return those of ``names`` that fit but for the channels of the image, with these adapted."""
    (old, new), adapted = channels, {}
    for key in names:
        if old == new or key not in found or found[key].dim() != wanted[key].dim():
            continue
        made = _spread(found[key], old, new)
        if made.shape == wanted[key].shape:
            adapted[key] = made
    return adapted


def _spread(weight: Tensor, old: int, new: int) -> Tensor:
    """Return a weight (out, old + rest, *kernel) as (out, new + rest, *kernel) of the same sum."""
    image, rest = weight[:, :old].float(), weight[:, old:].float()
    if new < old:
        image = image.mean(1, keepdim=True).repeat_interleave(new, 1) * (old / new)
    else:
        source = torch.arange(new) % old
        shares = torch.bincount(source)[source].view(-1, *[1] * (weight.dim() - 2))
        image = image[:, source] / shares
    return torch.cat([image, rest], 1)


def _layer(key: str) -> str:
    """Return the layer of a tensor: a convolution with its bias, and the norm and activation behind it."""
    return re.sub(r"\.(conv|adn)\..*|\.[^.]*$", "", key)


def _misfit(key: str, found: Tensor | None, wanted: Tensor) -> str | None:
    """Return why a tensor does not fit, or None if it does."""
    if found is None:
        return MISSING
    if found.shape == wanted.shape:
        return None
    if found.dim() != wanted.dim():
        return "other number of axes"
    if key.startswith("heads.") and found.shape[0] != wanted.shape[0]:
        return f"out_channels {wanted.shape[0]}, {found.shape[0]} in the file"
    return "other widths" if found.shape[:2] != wanted.shape[:2] else "other kernel_size or strides"


def _listed(keys: Iterable[str], taken: Iterable[str] = (), heads_as_one: bool = False) -> str:
    """Return the rows, nodes and heads that tensors belong to, marked if others of them were taken."""
    kept = {_group(key) for key in taken}
    names = dict.fromkeys(_group(key) for key in keys)
    if heads_as_one and not any(name.startswith("heads.") for name in kept):
        names = dict.fromkeys("heads" if name.startswith("heads.") else name for name in names)
    return ", ".join(f"part of {name}" if name in kept else name for name in names)


def _group(key: str) -> str:
    return ".".join(key.split(".")[:2])


def _refusal(file: PathLike, found: Mapping[str, Tensor], network: UNetPlusPlus) -> str:
    """Say why nothing of a file fits."""
    if found.keys().isdisjoint(network.state_dict()):
        keys = f"its keys are {', '.join(map(repr, list(found)[:3]))}, ..." if found else "it is empty"
        return f"file must hold weights of a UNetPlusPlus, {file} has none: {keys}."
    spec, has, widths = network.spec, [], list[int]()
    while (key := f"encoder.{len(widths)}.convs.conv_1.conv.weight") in found:
        widths.append(found[key].shape[0])
    if FIRST in found:
        has.append(f"spatial_dims {found[FIRST].dim() - 2}")
    if widths:
        has.append(f"channels {widths}")
    return (
        "file must hold weights of a UNetPlusPlus of which a layer fits "
        f"spatial_dims {spec.spatial_dims} and channels {list(spec.channels)}, "
        f"{file} has {' and '.join(has) or 'none'}: "
        "build the network with the channels, kernel_size and block of the file."
    )
