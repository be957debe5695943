# SPDX-License-Identifier: Apache-2.0
"""Weights in files: read as tensors only, checked against the network, of whatever level they are."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_unetpp.export import OnnxNetwork
from monai_unetpp.files import PathLike, atomic_write, refuse_existing, save_by_memory
from monai_unetpp.network import UNetPlusPlus, levels_in, prune, prune_state_dict

__all__ = ["check_fit", "load_network", "prune_checkpoint", "read_checkpoint"]


def load_network(
    network: UNetPlusPlus,
    path: PathLike,
    level: int | None = None,
    device: torch.device | str = "cpu",
    runtime: str | None = None,
) -> nn.Module:
    """Return ``network`` with trained weights, in evaluation, at a level; or an exported one in its place.

    Args:
        network: as it was trained, whatever its weights are now. Where the weights have one head only, those
            of a pruned network, it is pruned to their level.
        path: of weights alone, of a checkpoint with ``"model"`` in it, or of an ``.onnx`` file.
        level: that evaluation computes; default the deepest that the weights have.
        device: to move the network to.
        runtime: for an ``.onnx`` file, as :class:`~monai_unetpp.export.OnnxNetwork` takes it.

    Raises:
        FileNotFoundError: if there is no file at ``path``.
        ValueError: if the file is no checkpoint of this network, or has no head at ``level``.
    """
    path = Path(path)
    if path.suffix == ".onnx":
        _need_file(path)
        if level is not None:
            raise ValueError(f"level must be left out with {path}: an exported network has one level.")
        exported = OnnxNetwork(path, runtime)
        _check_shapes(path, exported, network)
        return exported
    if runtime is not None:
        raise ValueError(f"runtime must be left out with {path}: {runtime} runs .onnx files.")
    weights = _weights(path)
    heads = levels_in(weights)
    if len(heads) == 1 and network.deep_supervision and heads[0] <= network.depth:
        network = prune(network, heads[0])
    check_fit(path, weights, network)
    if level is not None and level not in heads:
        raise ValueError(
            f"level must be one of those that {path} has, {', '.join(map(str, heads))}, got {level!r}."
        )
    network.load_state_dict(dict(weights))
    network.level = max(heads) if level is None else level
    return network.to(device).eval()


def prune_checkpoint(
    path: PathLike, level: int, out: PathLike, skips: str = "dense", overwrite: bool = False
) -> tuple[int, int]:
    """Write the weights of L^level, taken from a checkpoint of the whole network.

    Args:
        path: of weights alone, or of a checkpoint with ``"model"`` in it.
        level: ``k`` of L^k.
        out: the file to write, weights alone.
        skips: of the network that the weights come from.
        overwrite: whether ``out`` may be replaced.

    Returns:
        How many parameters (and norm statistics) were kept, of how many.

    Raises:
        FileNotFoundError: if there is no file at ``path``.
        FileExistsError: if ``out`` exists and ``overwrite`` is false.
        ValueError: if the file is no checkpoint of a UNetPlusPlus, or has no head at ``level``.
    """
    if not overwrite:
        refuse_existing(out)
    weights = _weights(Path(path))
    try:
        kept = prune_state_dict(weights, level, skips)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    with atomic_write(out) as part:
        save_by_memory(part, partial(torch.save, kept))
    return sum(w.numel() for w in kept.values()), sum(w.numel() for w in weights.values())


def read_checkpoint(path: PathLike) -> Mapping[str, Any]:
    """Return what a file holds, tensors and plain types by name, on the CPU; no code of it is run.

    Raises:
        FileNotFoundError: if there is no file at ``path``.
        ValueError: if it holds anything but tensors and plain types, is damaged, or is no dictionary.
    """
    path = Path(path)
    _need_file(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is refused: a checkpoint may hold tensors and plain types only, no code. "
            "This one holds something else, or is damaged."
        ) from error
    except Exception as error:  # a damaged pickle raises anything
        raise ValueError(f"{path} cannot be read as a checkpoint, it may be damaged: {error!r}.") from error
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{path} holds no weights by name, but a {type(checkpoint).__name__}.")
    return checkpoint


def check_fit(path: PathLike, weights: Mapping[str, Tensor], network: nn.Module) -> None:
    """Raise a ValueError that names file, keys and channels if the weights are not of this network."""
    wanted = network.state_dict()
    wrong = [
        f"{key} is {list(weights[key].shape)} in the file and {list(wanted[key].shape)} in the network"
        for key in wanted
        if key in weights and weights[key].shape != wanted[key].shape
    ]
    wrong += [f"{key} is missing in the file" for key in wanted if key not in weights]
    wrong += [f"{key} is not in the network" for key in weights if key not in wanted]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"{path} does not fit the network{_channels(weights, wanted)}: {'; '.join(wrong[:3])}{more}."
        )


def _check_shapes(path: Path, exported: OnnxNetwork, network: UNetPlusPlus) -> None:
    """Raise a ValueError if an exported network takes or gives other channels or axes than this one."""
    axes, wanted = network.spatial_dims + 2, (network.in_channels, network.arguments["out_channels"])
    got = (exported.takes[1], exported.gives[1])
    if len(exported.takes) != axes or any(g not in (w, None) for g, w in zip(got, wanted, strict=True)):
        raise ValueError(
            f"{path} does not fit the network: it has {got[0]} in_channels, {got[1]} out_channels and "
            f"{len(exported.takes) - 2} spatial_dims, the network {wanted[0]}, {wanted[1]} and {axes - 2}."
        )


def _need_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path.absolute()}: train first, or name another file.")


def _weights(path: Path) -> Mapping[str, Tensor]:
    """The weights in a file, alone or as ``"model"`` beside other things."""
    checkpoint = read_checkpoint(path)
    weights = checkpoint.get("model", checkpoint)
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(
            f"{path} must hold weights, alone or as 'model', got {', '.join(map(repr, checkpoint))}."
        )
    return weights


def _channels(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Name in_channels and out_channels of both, where they differ."""
    differ = []
    for name, key, axis in (
        ("in_channels", "encoder.0.convs.conv_0.conv.weight", 1),
        ("out_channels", next((key for key in wanted if key.startswith("heads.")), ""), 0),
    ):
        if key in weights and key in wanted and weights[key].shape[axis] != wanted[key].shape[axis]:
            differ.append(
                f"{name} {weights[key].shape[axis]} in the file, {wanted[key].shape[axis]} in the network"
            )
    return f" ({'; '.join(differ)})" if differ else ""
