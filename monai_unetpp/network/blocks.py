# SPDX-License-Identifier: Apache-2.0
"""The two letters of the equation ``X^{i,j} = H([skips, U(X^{i+1,j-1})])``.

``H`` is two convolutions, each with norm and activation (:data:`BLOCKS`); ``U`` brings the map of
the row below to this row's resolution (MONAI's ``UpSample``). ``forward`` says in plain torch what a module
computes; :mod:`monai_unetpp.network.kernels` decides where a kernel computes it in less time or memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.networks.blocks import ADN, UpSample
from monai.networks.layers.factories import Conv, Pool
from torch import Tensor, nn

from monai_unetpp.network import kernels

__all__ = ["BLOCKS", "HEAD", "DenseConv", "EncoderRow", "JointConv", "Node", "ResidualConv", "TwoConv"]

HEAD: dict[int, Callable[..., nn.Module]] = {2: kernels.Conv2d, 3: kernels.Conv3d}  # by spatial_dims


class JointConv(kernels.Dispatched):
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
        self.conv = Conv["conv", spatial_dims](
            sum(in_channels),
            out_channels,
            tuple(kernel_size),
            padding=tuple(k // 2 for k in kernel_size),
            bias=bias,
        )
        self.adn = ADN("NDA", out_channels, act, norm, spatial_dims, dropout or None, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Map ``len(in_channels)`` tensors (B, C_n, *spatial) to one (B, out_channels, *spatial)."""
        return self.adn(self.conv(torch.cat(maps, dim=1)))

    kernel = kernels.convolve_norm_act


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


class Down(kernels.Repeated, nn.Sequential):
    """Max pooling; where the stride does not divide the size, the last window is a smaller one.

    Args:
        spatial_dims: 2 or 3.
        stride: one per axis.
    """

    keeps_result = True

    def __init__(self, spatial_dims: int, stride: Sequence[int]) -> None:
        super().__init__(Pool["max", spatial_dims](tuple(stride), ceil_mode=True))
        self.stride = list(stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, *spatial) to (B, C, *ceil(spatial / stride))."""
        return self[0](kernels.fill_up(x, self.stride))


class Up(kernels.Upsampling, UpSample):
    """``U``: MONAI's ``UpSample``, whose arguments it takes."""


class EncoderRow(kernels.Checkpointed):
    """``X^{i,0}``: max pooling by the stride between rows ``i - 1`` and ``i``, then ``H``.

    Where the stride does not divide the size, pooling rounds up, and what :class:`Node` upsamples from it is
    cropped to its row: no level depends on how deep the network is.

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
        self.pool = nn.Identity() if stride is None else Down(spatial_dims, stride)
        self.convs = BLOCKS[block](spatial_dims, [in_channels], out_channels, **settings)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``X^{i-1,0}`` (B, C, *spatial) to ``X^{i,0}`` (B, C', *ceil(spatial / stride))."""
        return self.convs([self.pool(x)])


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
        self.up = Up(spatial_dims, below_channels, up_channels, tuple(stride), mode=upsample)
        self.convs = BLOCKS[block](spatial_dims, pieces, out_channels, **settings)

    def forward(self, row: list[Tensor], below: Tensor) -> Tensor:
        """Map row ``i`` so far, (B, C, *spatial) each, and ``X^{i+1,j-1}`` to ``X^{i,j}``."""
        up = kernels.crop(self.up(below), row[0])
        return self.convs(row[self.start : self.stop] + [up])
