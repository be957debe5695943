# SPDX-License-Identifier: Apache-2.0
"""Networks inside wrappers, and the prefixes that wrappers leave on the keys of weights.

``torch.compile``, ``DataParallel``, ``DistributedDataParallel`` and ``AveragedModel`` compute the same
network and name its weights ``_orig_mod.*`` and ``module.*``; training scripts add ``model.*`` and ``net.*``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from monai_unetpp.network.unetplusplus import UNetPlusPlus

__all__ = [
    "PREFIXES",
    "AnyPrefix",
    "match_weights",
    "unprefixed",
    "unwrap",
    "unwrap_unetplusplus",
    "without_prefixes",
]

PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
COUNT = "n_averaged"  # what AveragedModel stores beside "module.*"

Weights = Mapping[str, Tensor]


def unwrap(network: Any, keep_average: bool = False) -> Any:
    """Return the network inside of its wrappers, or ``network`` itself if it has none.

    Args:
        network: A network; another object is returned as it is.
        keep_average: Whether to stop at an ``AveragedModel``, which has a count of its own.
    """
    for wrapper in _layers(network):
        network = wrapper
        if keep_average and isinstance(wrapper, AveragedModel):
            break
    return network


def unwrap_unetplusplus(network: Any, name: str = "network") -> UNetPlusPlus:
    """Return the UNetPlusPlus inside of its wrappers.

    Args:
        network: A UNetPlusPlus, compiled, parallel, averaged or plain.
        name: Name of the caller's argument, for the error.

    Raises:
        TypeError: If ``network`` is of another kind; the message names a UNetPlusPlus that it contains.
    """
    inner = unwrap(network)
    if isinstance(inner, UNetPlusPlus):
        return inner
    within = network.named_modules() if isinstance(network, nn.Module) else ()
    hint = next((f": pass {name}.{path}" for path, part in within if isinstance(part, UNetPlusPlus)), "")
    raise TypeError(f"{name} must be a UNetPlusPlus, got {type(network).__name__}{hint}.")


def unprefixed(weights: Weights) -> Weights:
    """Return the weights of a UNetPlusPlus without the prefix of all keys; those of others as they are."""
    return next(
        (plain for _, plain in without_prefixes(weights) if any(k.startswith("heads.") for k in plain)),
        weights,
    )


def match_weights(weights: Weights, network: nn.Module) -> tuple[nn.Module, str, Weights]:
    """Return the layer of ``network`` that the weights fit, their prefix, and the weights without it.

    If they fit none, the layer is the innermost one, and a prefix is taken off if the layer has some of the
    keys without it.
    """
    candidates = list(without_prefixes(weights))
    for module in _layers(network):
        wanted = module.state_dict().keys()
        for prefix, plain in candidates:
            if plain.keys() == wanted:
                return module, prefix, plain
    prefix, plain = next((found for found in candidates if found[1].keys() & wanted), ("", weights))
    return module, prefix, plain


def without_prefixes(weights: Weights) -> Iterator[tuple[str, Weights]]:
    """Yield the weights as they are, and without each prefix that all keys share, with what was taken off."""
    off = ""
    while True:
        yield off, weights
        keys = [key for key in weights if key != COUNT]
        shared = [p for p in PREFIXES if keys and all(key.startswith(p) for key in keys)]
        if not shared or (COUNT in weights and shared != ["module."]):
            return
        off += shared[0]
        weights = {key.removeprefix(shared[0]): weights[key] for key in keys}


class AnyPrefix:
    """A network for a loader of checkpoints: ``load_state_dict`` accepts keys with another prefix."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def load_state_dict(self, weights: Weights) -> None:
        """Load the weights; they must fit apart from the prefix of all keys."""
        module, _, plain = match_weights(weights, self.network)
        module.load_state_dict(dict(plain))


def _layers(network: Any) -> Iterator[Any]:
    """Yield a network and what it wraps, the outermost first."""
    inner = network
    while inner is not None:
        yield inner
        if isinstance(inner, (DataParallel, DistributedDataParallel, AveragedModel)):
            inner = inner.module
        else:  # torch.compile; torch names its class in a private module only
            inner = inner._modules.get("_orig_mod") if isinstance(inner, nn.Module) else None
