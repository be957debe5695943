# SPDX-License-Identifier: Apache-2.0
"""The two letters of the equation ``X^{i,j} = H([skips, U(X^{i+1,j-1})])``.

``H`` is two convolutions, each with norm and activation (:data:`BLOCKS`); ``U`` brings the map of
the row below to this row's resolution (MONAI's ``UpSample``). The brackets stand for a
concatenation that is never made: a convolution over joined maps is the sum of convolutions over
each of them (:class:`JointConv`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.networks.blocks import ADN, UpSample
from monai.networks.layers.factories import Conv, Pool
from torch import Tensor, nn
from torch.nn import functional as F

from monai_unetpp.network import kernels
from monai_unetpp.network.kernels import mode

__all__ = ["BLOCKS", "DenseConv", "EncoderRow", "JointConv", "Node", "ResidualConv", "TwoConv"]


class JointConv(nn.Module):
    """Convolution, norm, dropout and activation over several maps as if they were one.

    The weight is that of one convolution over the concatenated maps, so checkpoints and
    initialisation know nothing of how it is applied.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of each map, in the order in which they would be concatenated.
        out_channels: channels of the result.
        kernel_size: odd, one per axis; the size of the maps is kept.
        act: activation, as MONAI's ``Act`` factory takes it.
        norm: normalisation, as MONAI's ``Norm`` factory takes it; ``None`` for none.
        bias: whether the convolution has a bias.
        dropout: probability, between norm and activation; 0 for none.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: Sequence[int],
        out_channels: int,
        kernel_size: Sequence[int],
        act: tuple[Any, ...] | str | None,
        norm: tuple[Any, ...] | str | None,
        bias: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.pieces = list(in_channels)
        self.conv = Conv["conv", spatial_dims](
            sum(in_channels),
            out_channels,
            tuple(kernel_size),
            padding=tuple(k // 2 for k in kernel_size),
            bias=bias,
        )
        self.adn = ADN("NDA", out_channels, act, norm, spatial_dims, dropout or None, 1)
        instance = getattr(self.adn, "N", None)
        if isinstance(instance, (nn.InstanceNorm2d, nn.InstanceNorm3d)) and not instance.track_running_stats:
            self.adn.N = kernels.InstanceNorm(out_channels, eps=instance.eps, affine=instance.affine)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Map ``len(in_channels)`` tensors (B, C_n, *spatial) to one (B, out_channels, *spatial)."""
        if torch.jit.is_scripting():
            weights = self.conv.weight.split(self.pieces, dim=1)
            y = self.conv._conv_forward(maps[0], weights[0], self.conv.bias)
            for n in range(1, len(maps)):
                y += self.conv._conv_forward(maps[n], weights[n], None)
            y = self.adn(y)
        else:
            y = kernels.activate(self.adn, kernels.convolve(self.conv, maps, self.pieces))
        return y


class TwoConv(nn.Module):
    """``H``: two convolutions with norm, dropout and activation; the first takes joined maps.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of each map that enters.
        out_channels: channels of the result.
        **settings: ``kernel_size``, ``act``, ``norm``, ``bias``, ``dropout`` of :class:`JointConv`.
    """

    def __init__(
        self, spatial_dims: int, in_channels: Sequence[int], out_channels: int, **settings: Any
    ) -> None:
        super().__init__()
        self.conv_0 = JointConv(spatial_dims, in_channels, out_channels, **settings)
        self.conv_1 = JointConv(spatial_dims, [out_channels], out_channels, **settings)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Map tensors (B, C_n, *spatial) to one (B, out_channels, *spatial)."""
        return self.conv_1([self.conv_0(maps)])


class ResidualConv(TwoConv):
    """``H`` with a way past it: to the two convolutions a 1x1 convolution of the joined maps is added.

    It is the sum of MONAI's ``ResidualUnit``. Arguments are those of :class:`TwoConv`.

    Reference:
        He et al., Deep Residual Learning for Image Recognition (CVPR 2016, arXiv:1512.03385).
    """

    def __init__(
        self, spatial_dims: int, in_channels: Sequence[int], out_channels: int, **settings: Any
    ) -> None:
        super().__init__(spatial_dims, in_channels, out_channels, **settings)
        one = (1,) * spatial_dims
        self.residual = JointConv(
            spatial_dims, in_channels, out_channels, one, act=None, norm=None, bias=False, dropout=0.0
        )

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Map tensors (B, C_n, *spatial) to one (B, out_channels, *spatial)."""
        return self.conv_1([self.conv_0(maps)]) + self.residual(maps)


class DenseConv(nn.Module):
    """``H`` whose second convolution sees what the first one saw, too.

    Arguments are those of :class:`TwoConv`.

    Reference:
        Huang et al., Densely Connected Convolutional Networks (CVPR 2017, arXiv:1608.06993).
    """

    def __init__(
        self, spatial_dims: int, in_channels: Sequence[int], out_channels: int, **settings: Any
    ) -> None:
        super().__init__()
        self.conv_0 = JointConv(spatial_dims, in_channels, out_channels, **settings)
        self.conv_1 = JointConv(spatial_dims, [*in_channels, out_channels], out_channels, **settings)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Map tensors (B, C_n, *spatial) to one (B, out_channels, *spatial)."""
        return self.conv_1(maps + [self.conv_0(maps)])


BLOCKS: dict[str, Callable[..., nn.Module]] = {"conv": TwoConv, "residual": ResidualConv, "dense": DenseConv}


class EncoderRow(kernels.Checkpointed):
    """``X^{i,0}``: max pooling by the stride between rows ``i - 1`` and ``i``, then ``H``.

    Where the stride does not divide the size, the last window is the smaller one (``ceil_mode``), and
    what :class:`Node` upsamples from it is cut to size: no level depends on how deep the network is.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of ``X^{i-1,0}``, or of the input for row 0.
        out_channels: channels of row ``i``.
        stride: one per axis, or ``None`` for row 0, which does not pool.
        block: ``H``, a key of :data:`BLOCKS`.
        **settings: of :class:`JointConv`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        stride: Sequence[int] | None,
        block: str,
        **settings: Any,
    ) -> None:
        super().__init__()
        pool = Pool["max", spatial_dims]
        self.pool = nn.Identity() if stride is None else pool(tuple(stride), ceil_mode=True)
        self.convs = BLOCKS[block](spatial_dims, [in_channels], out_channels, **settings)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``X^{i-1,0}`` (B, C, *spatial) to ``X^{i,0}`` (B, C', *ceil(spatial / stride))."""
        x = self.pool(x) if torch.jit.is_scripting() else kernels.apply(self.pool, x, keep=True)
        return self.convs([x])


class Node(kernels.Checkpointed):
    """``X^{i,j}`` for ``j > 0``: ``H`` over skips of row ``i`` and ``U`` of the node below.

    Args:
        skips: which columns of row ``i`` enter, as a range: first and one past the last.
        spatial_dims: 2 or 3.
        below_channels: channels of ``X^{i+1,j-1}``.
        up_channels: channels of ``U``.
        skip_channels: channels of each skip.
        out_channels: channels of the node.
        stride: one per axis, between rows ``i`` and ``i + 1``.
        upsample: mode of MONAI's ``UpSample``.
        block: ``H``, a key of :data:`BLOCKS`.
        **settings: of :class:`JointConv`.
    """

    def __init__(
        self,
        skips: tuple[int, int],
        spatial_dims: int,
        below_channels: int,
        up_channels: int,
        skip_channels: Sequence[int],
        out_channels: int,
        stride: Sequence[int],
        upsample: str,
        block: str,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.start, self.stop = skips
        pieces = [*skip_channels, up_channels]
        self.up = UpSample(spatial_dims, below_channels, up_channels, tuple(stride), mode=upsample)
        if upsample == "deconv" and spatial_dims == 3:
            self.up.deconv.__class__ = kernels.Deconv3d  # same weights, faster
        self.convs = BLOCKS[block](spatial_dims, pieces, out_channels, **settings)

    def forward(self, row: list[Tensor], below: Tensor) -> Tensor:
        """Map row ``i`` so far, (B, C, *spatial) each, and ``X^{i+1,j-1}`` to ``X^{i,j}``."""
        up = self.up(below) if torch.jit.is_scripting() else kernels.apply(self.up, below)
        up = _crop(up, row[0])
        return self.convs(row[self.start : self.stop] + [up])


def _crop(x: Tensor, like: Tensor) -> Tensor:
    """Cut from the end of ``x`` what it has more than ``like`` on the spatial axes."""
    if (torch.jit.is_scripting() or mode.is_eager()) and x.shape[2:] == like.shape[2:]:
        return x
    crop: list[int] = []
    for axis in range(x.dim() - 1, 1, -1):
        crop += [0, like.shape[axis] - x.shape[axis]]
    return F.pad(x, crop)  # negative: cuts; without a branch, so that it holds for every size
