# SPDX-License-Identifier: Apache-2.0
"""How the equation is computed: in less time and memory than by torch's defaults, with the same result.

For backward, a convolution keeps its input, and norm and activation keep theirs: two maps for each
convolution. Here one is kept, its raw output; what norm, activation, pooling and upsampling make
of it takes little time and is made again (:class:`Recipe`). All this is for eager mode; scripted, traced,
exported and compiled networks use torch's operators as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.utils.checkpoint
from monai.utils import convert_to_dst_type
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

__all__ = [
    "Checkpointed",
    "Deconv3d",
    "InstanceNorm",
    "activate",
    "apply",
    "convolve",
    "enter",
    "is_eager",
    "leave",
]


def is_eager() -> bool:
    """Whether torch runs line by line: nothing is traced, exported or compiled."""
    return not torch.jit.is_tracing() and not torch.compiler.is_compiling()  # type: ignore[no-untyped-call]


def enter(x: Tensor) -> Tensor:
    """Return ``x`` as the network computes with it: plain, and in the memory order that convolves fastest.

    That is channels last for 3D on the CPU. MONAI's ``MetaTensor`` would cost time in every operation.
    """
    if not is_eager():
        return x
    return _channels_last(x.as_subclass(Tensor))


def leave(y: Tensor, x: Tensor) -> Tensor:
    """Return ``y`` as the type of tensor that came in, such as a ``MetaTensor`` with the meta of ``x``."""
    if not is_eager() or type(x) is Tensor:
        return y
    return convert_to_dst_type(y, x, dtype=y.dtype)[0]


def _channels_last(x: Tensor) -> Tensor:
    if x.dim() == 5 and x.device.type == "cpu":
        return x.contiguous(memory_format=torch.channels_last_3d)
    return x


class InstanceNorm(nn.modules.instancenorm._InstanceNorm):
    """Instance norm without running statistics, computed on the CPU as its device likes it.

    Group norm with one channel a group is the same and takes a third of the time. In channels last torch's
    sums are plain running ones there, wrong in the fourth digit: :class:`_Normalise` takes its place.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        """Take any number of axes."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, *spatial) over the spatial axes."""
        if torch.jit.is_scripting():
            y = F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)
        else:
            y = _instance_norm(x, self)
        return y


def _instance_norm(x: Tensor, norm: InstanceNorm) -> Tensor:
    if not is_eager() or x.device.type != "cpu":
        return F.instance_norm(x, weight=norm.weight, bias=norm.bias, eps=norm.eps)
    if _is_cpu_3d(x) and _is_channels_last(x):
        return _Normalise.apply(x, norm.weight, norm.bias, norm.eps)  # type: ignore[no-untyped-call]
    return F.group_norm(x, norm.num_features, norm.weight, norm.bias, norm.eps)


class _Normalise(Function):
    """Instance norm in channels last: centred first, then scaled, so that nothing cancels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        y = x - x.mean((2, 3, 4), keepdim=True)
        rstd = _mean_product(y, y).add_(eps).rsqrt_()
        ctx.save_for_backward(y, rstd, weight)
        scale = rstd if weight is None else rstd * weight.view(1, -1, 1, 1, 1)
        return y * scale if bias is None else torch.addcmul(bias.view(1, -1, 1, 1, 1), y, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        y, rstd, weight = ctx.saved_tensors
        g, gy = grad.mean((2, 3, 4), keepdim=True), _mean_product(grad, y)
        scale = rstd if weight is None else rstd * weight.view(1, -1, 1, 1, 1)
        gx = torch.addcmul(grad, y, -gy * rstd * rstd).sub_(g).mul_(scale)
        voxels = y[0, 0].numel()
        gw, gb = (voxels * total.sum((0, 2, 3, 4)) for total in (gy * rstd, g))
        return gx, None if weight is None else gw, None if weight is None else gb, None


def _normalise_(z: Tensor, norm: Any) -> Tensor:
    """Do in place what :class:`_Normalise` does."""
    z.sub_(z.mean((2, 3, 4), keepdim=True))
    scale = _mean_product(z, z).add_(norm.eps).rsqrt_()
    if norm.weight is None:
        return z.mul_(scale)
    return z.mul_(scale.mul_(norm.weight.view(1, -1, 1, 1, 1))).add_(norm.bias.view(1, -1, 1, 1, 1))


def _mean_product(a: Tensor, b: Tensor) -> Tensor:
    """Mean of ``a * b`` over the spatial axes, slab by slab: another whole map costs much time."""
    slabs = zip(a.chunk(16, 2), b.chunk(16, 2), strict=True)
    total = torch.stack([(x * y).sum((2, 3, 4), keepdim=True) for x, y in slabs]).sum(0)
    return total.div_(a[0, 0].numel())


class Deconv3d(nn.ConvTranspose3d):
    """Transposed convolution whose kernel is as large as its stride; on the CPU one matrix product.

    No two inputs meet in an output, so that is all there is to it. Torch's own takes ten times as long for
    a batch of one, and undoes channels last.
    """

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:  # noqa: ARG002
        """Map (B, C, X, Y, Z) to (B, C', *(size * stride))."""
        if x.device.type == "cpu" and not torch.jit.is_scripting() and is_eager():
            return self._product(x)
        return F.conv_transpose3d(x, self.weight, self.bias, self.stride)

    def _product(self, x: Tensor) -> Tensor:
        b, _, *size = x.shape
        kernel = list(self.stride)
        y = x.permute(0, 2, 3, 4, 1) @ self.weight.permute(0, 2, 3, 4, 1).flatten(1)  # (B, X, Y, Z, KKK C')
        y = y.view(b, *size, *kernel, self.out_channels).permute(0, 1, 4, 2, 5, 3, 6, 7)
        y = y.reshape(b, *(n * k for n, k in zip(size, kernel, strict=True)), self.out_channels)
        return (y if self.bias is None else y + self.bias).permute(0, 4, 1, 2, 3)


class Recipe(NamedTuple):
    """How to make a map again in backward: ``make(raw)``."""

    raw: Tensor
    make: Callable[[Tensor], Tensor]


def convolve(conv: Any, maps: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """Return the sum over ``maps`` of ``conv`` with the weight of each, plus the bias."""
    y = _add_convolved(conv, maps[0], weights[0], bias, None)
    for x, weight in zip(maps[1:], weights[1:], strict=True):
        y = _add_convolved(conv, x, weight, None, y)
    return y


def convolve_one(conv: Any, x: Tensor) -> Tensor:
    """Return ``conv(x)``."""
    return _add_convolved(conv, x, conv.weight, conv.bias, None)


def activate(adn: nn.Module, z: Tensor) -> Tensor:
    """Return ``adn(z)``, norm and activation; ``z`` is kept for backward, the result is not."""
    if is_eager() and not torch.is_grad_enabled():
        for module in adn.children():
            in_place = isinstance(module, InstanceNorm) and _is_cpu_3d(z) and _is_channels_last(z)
            z = _normalise_(z, module) if in_place else module(z)
        return z
    if not _is_recorded(z, z) or not _can_repeat(adn):
        return adn(z)
    return _apply(adn, z, Recipe(z.detach(), _same))


def apply(module: nn.Module, x: Tensor, keep: bool = False) -> Tensor:
    """Return ``module(x)``, for a module that takes little time: backward makes ``x`` again.

    It makes the result again, too, unless ``keep`` says that it is small enough to be kept.
    """
    if not _is_recorded(x, x):
        return module(x)
    y = _apply(module, x, _recipe(x))
    return _forget(y) if keep else y


class Checkpointed(nn.Module):
    """A module that may keep only its inputs and result for backward, and compute the rest a second time."""

    use_checkpoint = False

    def __call__(self, *inputs: Any) -> Any:
        """Call ``forward``; TorchScript does so directly."""
        if not self.use_checkpoint or not is_eager() or not torch.is_grad_enabled():
            return super().__call__(*inputs)
        kept = [list(x) if isinstance(x, list) else x for x in inputs]  # rows grow, and are cleared
        y = torch.utils.checkpoint.checkpoint(super().__call__, *kept, use_reentrant=False)
        return _forget(y)


def _apply(module: nn.Module, x: Tensor, recipe: Recipe) -> Tensor:
    raw, make = recipe
    y: Any = _Apply.apply(x, raw, make, module, *module.parameters())  # type: ignore[no-untyped-call]
    y.recipe = Recipe(raw, lambda raw: module(make(raw)))
    return y


def _add_convolved(conv: Any, x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor | None) -> Tensor:
    """Convolve ``x`` and add it to ``y``, in place, if there is one."""
    if _is_recorded(x, weight):
        return _Convolve.apply(x, weight, bias, y, *_recipe(x), conv)  # type: ignore[no-untyped-call]
    return _forward(conv, x, weight, bias, y)


def _forget(y: Tensor) -> Tensor:
    """Let backward keep ``y`` itself, and not what it was made from."""
    y.__dict__.pop("recipe", None)
    return y


def _recipe(x: Tensor) -> Recipe:
    return getattr(x, "recipe", None) or Recipe(x.detach(), _same)


def _same(x: Tensor) -> Tensor:
    return x


def _is_recorded(x: Tensor, weight: Tensor) -> bool:
    return is_eager() and torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)


def _can_repeat(adn: nn.Module) -> bool:
    """Whether norm and activation give the same again: nothing random or running, nothing done in place."""
    norm = getattr(adn, "N", None)
    return isinstance(norm, (InstanceNorm, nn.GroupNorm, nn.LayerNorm)) and not hasattr(adn, "D")


class _Apply(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, raw: Tensor, make: Any, module: nn.Module, *_: Tensor) -> Tensor:
        ctx.save_for_backward(raw)
        ctx.make, ctx.module, ctx.autocast = make, module, _autocast(x)
        return module(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        with ctx.autocast():
            x = ctx.make(*ctx.saved_tensors).detach().requires_grad_()
            with torch.enable_grad():
                y = ctx.module(x)
        inputs = [x, *ctx.module.parameters()]
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        grads = iter(torch.autograd.grad(y, wanted, grad))
        gx, *gp = (next(grads) if tensor.requires_grad else None for tensor in inputs)
        return gx, None, None, None, *gp


class _Convolve(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        y: Tensor | None,
        raw: Tensor,
        make: Any,
        conv: nn.Module,
    ) -> Tensor:
        ctx.save_for_backward(raw, weight)
        ctx.make, ctx.conv, ctx.autocast = make, conv, _autocast(x)
        if y is not None:
            ctx.mark_dirty(y)
            return _forward(conv, x, weight, bias, y)
        y = _forward(conv, x, weight, bias, None)
        return y.clone() if y._is_view() else y  # a view could not be added to in place

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        raw, weight = ctx.saved_tensors
        with ctx.autocast():
            x = ctx.make(raw)
        grads = _backward(ctx.conv, grad, x.to(grad.dtype), weight.to(grad.dtype), ctx.needs_input_grad[:3])
        return *grads, grad if ctx.needs_input_grad[3] else None, None, None, None


def _refuse_second_derivative() -> None:
    if torch.is_grad_enabled():  # only with create_graph
        raise RuntimeError("create_graph must be off: UNetPlusPlus has no second derivative.")


def _autocast(x: Tensor) -> Callable[[], torch.autocast]:
    """Remember whether autocast is on: what is made again must be made in the same dtype."""
    device = x.device.type
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype, enabled)


def _forward(conv: Any, x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor | None) -> Tensor:
    if not is_eager() or not _is_cpu_3d(x) or torch.is_autocast_enabled("cpu"):
        part = conv._conv_forward(x, weight, bias)
        return part if y is None else y.add_(part)
    if y is not None and _is_channels_last(x) and _is_channels_last(y):  # one map less to write and to read
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            y, x, weight, bias, conv.padding, conv.stride, conv.dilation, 1, "add", 1.0, None, [], None
        )
    # By name: torch would take its slow 3D convolution for a batch of one and few voxels. And of one channel
    # nobody can tell whether it is channels last: oneDNN takes it for the contrary.
    part = _channels_last(
        torch.ops.aten.mkldnn_convolution(x, weight, bias, conv.padding, conv.stride, conv.dilation, 1)
    )
    return part if y is None else y.add_(part)


def _backward(
    conv: Any, grad: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    slow = _is_slow(x)
    gx, gw, gb = torch.ops.aten.convolution_backward(
        grad.to_mkldnn() if slow else grad,
        x.to_mkldnn() if slow else x,
        weight,
        [len(weight)],
        conv.stride,
        conv.padding,
        conv.dilation,
        False,
        [0] * len(conv.stride),
        1,
        wanted,
    )
    if slow:
        gx = _channels_last(gx.to_dense()) if wanted[0] else None
        gw, gb = (g.to_dense() if g is not None and g.is_mkldnn else g for g in (gw, gb))
    return gx, gw, gb


def _is_cpu_3d(x: Tensor) -> bool:
    """Whether ``x`` is a float32 volume on a CPU for which torch has oneDNN."""
    return (
        x.dim() == 5
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last_3d)


def _is_slow(x: Tensor) -> bool:
    """Whether torch would take its slow 3D convolution in backward: a batch of one, and few voxels.

    The threshold is that of ``use_mkldnn`` in torch's ``Convolution.cpp``; beyond it oneDNN is used anyway.
    """
    return _is_cpu_3d(x) and x.shape[0] == 1 and x.shape[1] * x.shape[2] * x.shape[3] <= 20480
