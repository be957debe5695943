# SPDX-License-Identifier: Apache-2.0
"""What backward makes again instead of keeping it; on any device.

For backward, a convolution keeps its input, and norm and activation keep theirs: two maps for each
convolution. Here one is kept, its raw output; what norm, activation, pooling and upsampling make of it takes
little time and is made again. How, the autograd graph itself tells: see :func:`recipe`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.utils.checkpoint
from monai.networks.blocks import ADN, MemoryEfficientSwish, Mish, SubpixelUpsample, Swish
from torch import Tensor, nn
from torch.autograd import Function

from monai_unetpp.network.kernels import dispatch
from monai_unetpp.network.kernels.cpu import norm as cpu
from monai_unetpp.network.kernels.cpu import onednn

__all__ = ["Checkpointed", "Recipe", "Repeated", "activate", "autocast", "is_recorded", "recipe"]

ELEMENTWISE = frozenset(
    getattr(nn, name)
    for name in (
        *("CELU", "ELU", "GELU", "Hardswish", "Identity", "LeakyReLU", "Mish", "PReLU", "ReLU", "ReLU6"),
        *("SELU", "SiLU", "Sigmoid", "Softplus", "Tanh"),
    )
) | {MemoryEfficientSwish, Mish, Swish}
INSTANCE_NORMS = frozenset((nn.InstanceNorm2d, nn.InstanceNorm3d))
BATCH_NORMS = frozenset((nn.BatchNorm2d, nn.BatchNorm3d))
REPEATABLE_NORMS = INSTANCE_NORMS | {nn.GroupNorm, nn.LayerNorm}
RESIZING = frozenset(
    (
        *(nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool2d, nn.AvgPool3d, nn.Upsample, nn.PixelShuffle),
        *(nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.ConstantPad2d, nn.ConstantPad3d),
        *(nn.Sequential, SubpixelUpsample),
    )
)


class Recipe(NamedTuple):
    """How to make a map again in backward: ``make(raw)``, without a graph of its own."""

    raw: Tensor
    make: Callable[[Tensor], Tensor]


def recipe(x: Tensor) -> Recipe:
    """Return how ``x`` is made again; what our kernels did not make is kept itself.

    The node of the graph that made ``x`` has kept what it was made from. An operation on ``x``, in place or
    not, is another node, so that a recipe never speaks of another map. Under activation checkpointing the
    graph has kept nothing: to look would be to compute all of it again, at every step.
    """
    node: Any = x.grad_fn
    ours = type(node) in (_Repeat._backward_cls, cpu.NormAct._backward_cls)
    if ours and not _is_checkpointed():
        return Recipe(node.saved_tensors[0].detach(), node.make_again)
    return Recipe(x.detach(), _same)


def _is_checkpointed() -> bool:
    """Whether torch's checkpointing, ours or somebody else's, takes what autograd saves."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None and getattr(hooks[0], "__module__", "") == torch.utils.checkpoint.__name__


class Repeated(dispatch.Dispatched):
    """A module that takes little time, such as pooling: backward makes its input and its result again.

    Attributes:
        keeps_result: whether the result is kept, because it is small.
    """

    keeps_result = False

    def kernel(self, x: Tensor) -> Tensor:
        """Compute ``forward(x)``."""
        forward = self._steps
        if (
            not is_recorded(x)
            or dispatch.prefers_gpu(x)
            or not all(dispatch.is_untouched(m, RESIZING) for m in self.children())
        ):
            return forward(x)
        y = _repeated(forward, list(self.parameters()), x, recipe(x))
        return y.view_as(y) if self.keeps_result else y

    def _steps(self, x: Tensor) -> Tensor:
        """What ``forward`` does, for a subclass to do by faster kernels."""
        return self.forward(x)


class Checkpointed(nn.Module):
    """A module that may keep only its inputs and result for backward, and compute the rest a second time.

    Where somebody has hooked on to it or to one of its parts, it computes once: hooks see every step once.
    """

    use_checkpoint = False

    def __call__(self, *inputs: Any) -> Any:
        """Call ``forward``; TorchScript does so directly."""
        if (
            not self.use_checkpoint
            or not dispatch.is_eager()
            or not torch.is_grad_enabled()
            or any(map(dispatch.has_hooks, self.modules()))
        ):
            return super().__call__(*inputs)
        kept = [list(x) if isinstance(x, list) else x for x in inputs]  # rows grow, and are cleared
        y = torch.utils.checkpoint.checkpoint(super().__call__, *kept, use_reentrant=False)
        return y.view_as(y)  # a node of its own: what made it has kept nothing


def activate(adn: nn.Module, z: Tensor, may_overwrite: bool) -> Tensor:
    """Return ``adn(z)``, norm and activation; ``z`` is kept for backward, the result is not.

    Args:
        adn: MONAI's ``ADN``.
        z: (B, C, *spatial).
        may_overwrite: whether ``z`` is nobody else's, so that inference can do it in place.
    """
    parts = [part for part in adn._modules.values() if part is not None]
    if type(adn) is not ADN or any(map(dispatch.has_hooks, (adn, *parts))):
        return adn(dispatch.out_of_order(z))
    norm: Any = adn._modules.get("N")
    if type(norm) in BATCH_NORMS or not parts:
        return adn(z)
    if type(norm) not in REPEATABLE_NORMS or getattr(norm, "track_running_stats", False):
        return adn(dispatch.out_of_order(z))
    elementwise = all(type(part) in ELEMENTWISE for part in parts[1:])  # and no dropout
    if type(norm) in INSTANCE_NORMS and elementwise and onednn.is_fast(z):
        return cpu.norm_act(z, norm, adn._modules.get("A"), may_overwrite)
    if not elementwise or not is_recorded(z, *adn.parameters()):
        return _norm_first(adn, z)
    return _repeated(lambda x: _norm_first(adn, x), list(adn.parameters()), z, Recipe(z.detach(), _same))


def is_recorded(*tensors: Tensor) -> bool:
    """Whether torch records for backward what is done with ``tensors``."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def autocast(x: Tensor) -> Callable[[], torch.autocast]:
    """Remember whether autocast is on: what is made again must be made in the same dtype."""
    device = x.device.type
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype, enabled)


def _norm_first(adn: Any, z: Tensor) -> Tensor:
    """``adn(z)``, with the instance norm by the operator that is fastest on a CPU."""
    first, *rest = adn.children()
    y = cpu.instance_norm(z, first) if type(first) in INSTANCE_NORMS else first(z)
    for step in rest:
        y = step(y)
    return y


def _repeated(
    make: Callable[[Tensor], Tensor], parameters: Sequence[Tensor], x: Tensor, of: Recipe
) -> Tensor:
    return _Repeat.apply(x, *of, make, *parameters)  # type: ignore[no-untyped-call]


def _same(x: Tensor) -> Tensor:
    return x


class _Repeat(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, raw: Tensor, remake: Any, make: Any, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(raw)
        ctx.remake, ctx.make, ctx.parameters, ctx.autocast = remake, make, parameters, autocast(x)
        ctx.make_again = lambda raw: make(remake(raw))
        return make(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dispatch.refuse_second_derivative()
        with ctx.autocast():
            x = ctx.remake(*ctx.saved_tensors).detach().requires_grad_()
            with torch.enable_grad():
                y = ctx.make(x)
        inputs = [x, *ctx.parameters]
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        grads = iter(torch.autograd.grad(y, wanted, grad))
        gx, *gp = (next(grads) if tensor.requires_grad else None for tensor in inputs)
        return gx, None, None, None, *gp
