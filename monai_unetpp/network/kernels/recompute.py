# SPDX-License-Identifier: Apache-2.0
"""What backward makes again instead of keeping it.

For backward, a convolution keeps its input, and norm and activation keep theirs: two maps for each
convolution. Here one is kept, its raw output; what norm, activation, pooling and upsampling make
of it takes little time and is made again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.autograd import Function

from monai_unetpp.network.kernels import mode
from monai_unetpp.network.kernels.norm import InstanceNorm, norm_act, norm_act_, statistics

__all__ = ["Checkpointed", "Recipe", "activate", "apply", "autocast", "is_recorded", "recipe"]


class Recipe(NamedTuple):
    """How to make a map again in backward: ``make(raw)``."""

    raw: Tensor
    make: Callable[[Tensor], Tensor]


def recipe(x: Tensor) -> Recipe:
    """Return how ``x`` is made again; what has no recipe is kept itself."""
    return getattr(x, "recipe", None) or Recipe(x.detach(), _same)


def activate(adn: Any, z: Tensor) -> Tensor:
    """Return ``adn(z)``, norm and activation; ``z`` is kept for backward, the result is not."""
    if _is_norm_act(adn) and mode.is_fast(z):
        given = statistics(z, adn.N.eps)  # once, however often it is made again
        act = getattr(adn, "A", None)
        if not torch.is_grad_enabled():
            return norm_act_(z, adn.N, act, given)
        y: Any = norm_act(z, adn.N, act, given)
        y.recipe = Recipe(z.detach(), lambda raw: norm_act(raw, adn.N, act, given))
        return y
    if not is_recorded(z, *adn.parameters()) or not _can_repeat(adn):
        return adn(z)
    return _apply(adn, list(adn.parameters()), z, Recipe(z.detach(), _same))


def apply(module: nn.Module, x: Tensor, keep: bool = False) -> Tensor:
    """Return ``module(x)``, for a module that takes little time: backward makes ``x`` again.

    It makes the result again, too, unless ``keep`` says that it is small enough to be kept.
    """
    if not is_recorded(x):
        return module(x)
    y = _apply(module, list(module.parameters()), x, recipe(x))
    return _forget(y) if keep else y


class Checkpointed(nn.Module):
    """A module that may keep only its inputs and result for backward, and compute the rest a second time."""

    use_checkpoint = False

    def __call__(self, *inputs: Any) -> Any:
        """Call ``forward``; TorchScript does so directly."""
        if not self.use_checkpoint or not mode.is_eager() or not torch.is_grad_enabled():
            return super().__call__(*inputs)
        kept = [list(x) if isinstance(x, list) else x for x in inputs]  # rows grow, and are cleared
        y = torch.utils.checkpoint.checkpoint(super().__call__, *kept, use_reentrant=False)
        return _forget(y)


def is_recorded(*tensors: Tensor) -> bool:
    """Whether torch records for backward what is done with ``tensors``, line by line."""
    return mode.is_eager() and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def autocast(x: Tensor) -> Callable[[], torch.autocast]:
    """Remember whether autocast is on: what is made again must be made in the same dtype."""
    device = x.device.type
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype, enabled)


def _is_norm_act(adn: Any) -> bool:
    return [name for name, _ in adn.named_children()] in (["N"], ["N", "A"]) and isinstance(
        adn.N, InstanceNorm
    )


def _can_repeat(adn: nn.Module) -> bool:
    """Whether norm and activation give the same again: nothing random or running, nothing done in place."""
    norm = getattr(adn, "N", None)
    return isinstance(norm, (InstanceNorm, nn.GroupNorm, nn.LayerNorm)) and not hasattr(adn, "D")


def _apply(make: Callable[[Tensor], Tensor], parameters: list[Tensor], x: Tensor, of: Recipe) -> Tensor:
    raw, remake = of
    y: Any = _Apply.apply(x, raw, remake, make, *parameters)  # type: ignore[no-untyped-call]
    y.recipe = Recipe(raw, lambda raw: make(remake(raw)))
    return y


def _forget(y: Tensor) -> Tensor:
    """Let backward keep ``y`` itself, and not what it was made from."""
    y.__dict__.pop("recipe", None)
    return y


def _same(x: Tensor) -> Tensor:
    return x


class _Apply(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, raw: Tensor, remake: Any, make: Any, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(raw)
        ctx.remake, ctx.make, ctx.parameters, ctx.autocast = remake, make, parameters, autocast(x)
        return make(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mode.refuse_second_derivative()
        with ctx.autocast():
            x = ctx.remake(*ctx.saved_tensors).detach().requires_grad_()
            with torch.enable_grad():
                y = ctx.make(x)
        inputs = [x, *ctx.parameters]
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        grads = iter(torch.autograd.grad(y, wanted, grad))
        gx, *gp = (next(grads) if tensor.requires_grad else None for tensor in inputs)
        return gx, None, None, None, *gp
