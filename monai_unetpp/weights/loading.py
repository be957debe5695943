# SPDX-License-Identifier: Apache-2.0
"""Weights in files: read as tensors only, checked against the network, of whatever level they are."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_unetpp.files import PathLike, atomic_write, refuse_existing, save_by_memory
from monai_unetpp.network import (
    UNetPlusPlus,
    levels_in,
    match_weights,
    prune,
    prune_state_dict,
    unprefixed,
    unwrap_unetplusplus,
)
from monai_unetpp.weights.exported import OnnxNetwork
from monai_unetpp.weights.finding import other_folds
from monai_unetpp.weights.record import read_record, without_levels, write_record

__all__ = ["check_fit", "load_network", "prune_weights", "read_tensors", "read_weights"]


def load_network(
    network: nn.Module,
    path: PathLike,
    level: int | None = None,
    device: torch.device | str = "cpu",
    runtime: str | None = None,
) -> nn.Module:
    """Return ``network`` with trained weights, in evaluation mode, at a level; or an exported network.

    This is where a level is set from a file: whoever runs the network afterwards leaves ``network.level`` as
    it is.

    Args:
        network: UNetPlusPlus as it was trained, with any weights; compiled, parallel or averaged ones are
            loaded inside of their wrapper. If the file has one head only, because it is of a pruned network,
            the network is pruned to that level.
        path: Path of weights, of a training checkpoint (:func:`read_weights`), or of an ``.onnx`` file.
            A prefix of all keys is taken off: ``module.``, ``_orig_mod.``, ``model.``, ``net.``, also nested.
        level: Level that evaluation computes; default the deepest one in the file.
        device: Device that the network is moved to.
        runtime: Runtime of an ``.onnx`` file, as in :class:`OnnxNetwork`.

    Raises:
        FileNotFoundError: If there is no file at ``path``.
        TypeError: If ``network`` is no UNetPlusPlus.
        ValueError: If the file has no weights of this network, or no head at ``level``.
    """
    path, inner = Path(path), unwrap_unetplusplus(network)
    if path.suffix == ".onnx":
        _need_file(path)
        if level is not None:
            raise ValueError(f"level must be left out with {path}: an exported network has one level.")
        exported = OnnxNetwork(path, runtime)
        _check_shapes(path, exported, inner)
        return exported
    if runtime is not None:
        raise ValueError(f"runtime must be left out with {path}: {runtime} runs .onnx files.")
    weights = read_weights(path)
    heads = levels_in(unprefixed(weights))
    levels = list(inner.spec.levels)
    if len(heads) == 1 and heads != levels and heads[0] in levels:
        network = inner = prune(inner, heads[0])
    check_fit(path, weights, inner)
    if level is not None and level not in heads:
        raise ValueError(
            f"level must be one of those that {path} has, {', '.join(map(str, heads))}, got {level!r}."
        )
    inner.load_state_dict(dict(unprefixed(weights)))
    inner.level = max(heads) if level is None else level
    return network.to(device).eval()


def prune_weights(
    path: PathLike, level: int, out: PathLike, skips: str = "dense", overwrite: bool = False
) -> tuple[int, int]:
    """Write the weights of L^level, taken from those of the whole network; their record follows them.

    Args:
        path: Path of weights, or of a training checkpoint (:func:`read_weights`).
        level: ``k`` of L^k.
        out: Path of the file of weights to write.
        skips: ``skips`` of the network that the weights come from.
        overwrite: Whether ``out`` may be replaced.

    Returns:
        The number of parameters and norm statistics that were kept, and that of the whole network.

    Raises:
        FileNotFoundError: If there is no file at ``path``.
        FileExistsError: If ``out`` exists and ``overwrite`` is false.
        ValueError: If the file has no weights of a UNetPlusPlus, or no head at ``level``.
    """
    if not overwrite:
        refuse_existing(out)
    weights = read_weights(path)
    try:
        kept = prune_state_dict(weights, level, skips)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    with atomic_write(out) as part:
        save_by_memory(part, partial(torch.save, kept))
    record = read_record(path)
    if record is not None:
        write_record(out, without_levels(record, level))
    return sum(w.numel() for w in kept.values()), sum(w.numel() for w in weights.values())


def read_tensors(path: PathLike) -> Mapping[str, Any]:
    """Return the contents of a file of weights or a training checkpoint, on the CPU, without running code.

    Returns:
        Tensors and plain types by name.

    Raises:
        FileNotFoundError: If there is no file at ``path``.
        ValueError: If it holds anything but tensors and plain types, is damaged, or is no dictionary.
    """
    path = Path(path)
    _need_file(path)
    if (form := _exported_form(path)) is not None:
        raise ValueError(f"{path} is {form}, not weights: name the file that it was exported from.")
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


def read_weights(path: PathLike) -> Mapping[str, Tensor]:
    """Return the weights in a file, with their prefix.

    A training checkpoint has those of its last step as ``"model"``, and their moving average, if it keeps
    one, as ``"average"``: that is what was validated, and what is returned.

    Raises:
        FileNotFoundError: If there is no file at ``path``.
        ValueError: If it cannot be read, as in :func:`read_tensors`, or holds anything but weights.
    """
    checkpoint = read_tensors(path)
    kept = (checkpoint.get(key) for key in ("average", "model"))
    weights = next((each for each in kept if isinstance(each, Mapping)), checkpoint)
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(
            f"{path} must hold weights, alone or as 'model', got {', '.join(map(repr, checkpoint))}."
        )
    return weights


def check_fit(path: PathLike, weights: Mapping[str, Tensor], network: nn.Module) -> None:
    """Raise a ValueError that names file, keys and channels if the weights do not fit the network.

    A prefix of all keys and wrappers of the network are left out of account.
    """
    module, prefix, weights = match_weights(weights, network)
    wanted = module.state_dict()
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
            f"{path} does not fit the network{_found(weights, wanted, prefix)}{_channels(weights, wanted)}: "
            f"{'; '.join(wrong[:3])}{more}."
        )


def _check_shapes(path: Path, exported: OnnxNetwork, network: UNetPlusPlus) -> None:
    """Raise a ValueError if an exported network has other channels or axes than this one."""
    axes, wanted = network.spatial_dims + 2, (network.in_channels, network.arguments["out_channels"])
    got = (exported.takes[1], exported.gives[1])
    if len(exported.takes) != axes or any(g not in (w, None) for g, w in zip(got, wanted, strict=True)):
        raise ValueError(
            f"{path} does not fit the network: it has {got[0]} in_channels, {got[1]} out_channels and "
            f"{len(exported.takes) - 2} spatial_dims, the network {wanted[0]}, {wanted[1]} and {axes - 2}."
        )


def _need_file(path: Path) -> None:
    if not path.is_file():
        there = other_folds(path)
        what = f"there are {', '.join(map(str, there))}" if there else "train first, or name another file"
        raise FileNotFoundError(f"no checkpoint at {path.absolute()}: {what}.")


def _exported_form(path: Path) -> str | None:
    """Return what an exported network is, by its suffix and by the members of its archive."""
    if path.suffix == ".onnx":
        return "an ONNX network"
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.partition("/")[2] for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile):
        return None
    forms = {"constants.pkl": "TorchScript", "archive_format": "a torch.export program"}
    return next((form for member, form in forms.items() if member in members), None)


def _found(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], prefix: str) -> str:
    """Say which prefix was taken off, or what the keys look like if the network knows none of them."""
    if prefix:
        return f" without the prefix {prefix!r} of its keys"
    if not weights or weights.keys() & wanted.keys():
        return ""
    start = next(iter(weights)).partition(".")[0] + "."
    shared = all(key.startswith(start) for key in weights)
    return (
        f": all its keys begin with {start!r}" if shared else f": its keys are {next(iter(weights))!r}, ..."
    )


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
