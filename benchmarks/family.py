# SPDX-License-Identifier: Apache-2.0
"""The networks that ``study.py`` compares: U-Nets of every depth, UNet++ and its relatives, MONAI's own.

All have the widths of a task. In training each returns its logits, or a list of them at full resolution, the
deepest head first; in evaluation its result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from monai.networks.nets import DynUNet, SegResNetDS
from torch import Tensor, nn

from monai_unetpp import DeepSupervisionDiceLoss, UNetPlusPlus

NARROWED_AFTER = 0.25  # of the steps: nearly half of the time of the training, if the level is shallow

Make = Callable[[int, int, Sequence[int]], nn.Module]


class LearnedWeights(DeepSupervisionDiceLoss):
    """The mean over heads of exp(-s) loss + s, each with an s that is learned; + s keeps weights from 0.

    Reference:
        Kendall et al., Multi-Task Learning Using Uncertainty to Weigh Losses (CVPR 2018, arXiv:1705.07115).
    """

    def __init__(self, heads: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.s = nn.Parameter(torch.zeros(heads))

    def forward(self, heads: Tensor | list[Tensor], target: Tensor) -> Tensor:
        """Return the mean over the heads, which are a list."""
        losses = torch.stack([self.one_head(head, target) for head in heads])
        return (losses * torch.exp(-self.s) + self.s).mean()


@dataclass(frozen=True)
class Member:
    """A network of the family.

    Args:
        make: Function from the number of axes, of classes, and the widths to a network.
        loss: Additional arguments of the loss.
        grown: Shares of the steps after which a level is added.
        narrowed: A level, and the share of the steps after which deeper ones are no longer trained.
        annealed: Weights of the heads at the end, deepest first; they begin as 1 and change by equal steps.
        learned: Whether the weights of the heads are learned.
    """

    make: Make
    loss: Mapping[str, Any] = field(default_factory=dict)
    grown: tuple[float, ...] = ()
    narrowed: tuple[int, float] | None = None
    annealed: tuple[float, ...] | None = None
    learned: bool = False

    def make_loss(self, heads: int, **settings: Any) -> DeepSupervisionDiceLoss:
        """Return the loss of a training."""
        settings |= self.loss
        return LearnedWeights(heads, **settings) if self.learned else DeepSupervisionDiceLoss(**settings)


class Upsampled(nn.Module):
    """A network whose heads are upsampled to full resolution, so that the same loss scores them."""

    def __init__(self, net: nn.Module, dims: int) -> None:
        super().__init__()
        self.net = net
        self.mode = "bilinear" if dims == 2 else "trilinear"

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return all heads in training, finest first; the finest in evaluation."""
        heads = self.net(x)
        if isinstance(heads, Tensor):  # DynUNet stacks its heads along an axis more
            heads = list(heads.unbind(1)) if heads.ndim > x.ndim else [heads]
        if not self.training:
            return heads[0]
        return [heads[0], *(nn.functional.interpolate(h, x.shape[2:], mode=self.mode) for h in heads[1:])]


def plus(**settings: Any) -> Make:
    """A UNetPlusPlus."""
    return lambda dims, classes, widths: UNetPlusPlus(dims, 1, classes, widths, strides=2, **settings)


class Stopped(UNetPlusPlus):
    """U-Net^e whose row k of the encoder learns from head k alone, and row 0 from L1."""

    def _add_to_encoder(self, X: list[list[Tensor]], image: Tensor, k: int) -> None:  # noqa: N803
        shown = _detached(X, k)
        super()._add_to_encoder(shown, image, k)
        X.append(shown[-1])

    def _add_diagonal(self, X: list[list[Tensor]], k: int, is_last: bool) -> None:  # noqa: N803, ARG002
        shown = _detached(X, k)
        super()._add_diagonal(shown, k, is_last=False)
        for row, of_level in zip(X, shown, strict=True):
            row += of_level[len(row) :]


def _detached(maps: list[list[Tensor]], k: int) -> list[list[Tensor]]:
    """Return the maps of the rows, those above row k without gradients, except for L1."""
    return [[each.detach() for each in row] if i < k and k > 1 else list(row) for i, row in enumerate(maps)]


def stopped(dims: int, classes: int, widths: Sequence[int]) -> nn.Module:
    """U-Net^e without gradients between levels."""
    return Stopped(dims, 1, classes, widths, strides=2, skips="long")


def unet(depth: int | None = None) -> Make:
    """U-Net of so many levels, the deepest by default."""
    make = plus(skips="long", deep_supervision=False)
    return lambda dims, classes, widths: make(dims, classes, widths[: (depth or len(widths) - 1) + 1])


def wide_unet(dims: int, classes: int, widths: Sequence[int]) -> nn.Module:
    """The U-Net that has as many parameters as the UNet++ of these widths."""

    def size(make: Make, by: float) -> int:
        with torch.device("meta"):
            net = make(dims, classes, [round(width * by) for width in widths])
        return sum(parameter.numel() for parameter in net.parameters())

    wanted, low, high = size(plus(), 1.0), 1.0, 2.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if size(unet(), middle) < wanted else (low, middle)
    return unet()(dims, classes, [round(width * low) for width in widths])


def dynunet(dims: int, classes: int, widths: Sequence[int]) -> nn.Module:
    """MONAI's DynUNet with deep supervision, as nnU-Net has it."""
    halves = [2] * (len(widths) - 1)
    net = DynUNet(
        dims,
        1,
        classes,
        kernel_size=[3] * len(widths),
        strides=[1, *halves],
        upsample_kernel_size=halves,
        filters=widths,
        deep_supervision=True,
        deep_supr_num=len(widths) - 2,
    )
    return Upsampled(net, dims)


def segresnet(dims: int, classes: int, widths: Sequence[int]) -> nn.Module:
    """MONAI's SegResNetDS with instance norm, which a batch of one requires."""
    blocks, heads = [1, 2, 2, 4, 4][: len(widths)], len(widths) - 1
    net = SegResNetDS(dims, widths[0], 1, classes, norm="instance", blocks_down=tuple(blocks), dsdepth=heads)
    return Upsampled(net, dims)


def family(depth: int) -> dict[str, Member]:
    """Return the networks for a task of so many levels, by name."""
    last = len(range(1, depth)) or 1
    growth = tuple(round(n / depth, 2) for n in range(1, last + 1))
    return {
        **{f"U-Net L{k}": Member(unet(k)) for k in range(1, depth)},
        f"U-Net L{depth}": Member(unet()),
        "wide U-Net": Member(wide_unet),
        "U-Net^e": Member(plus(skips="long")),
        "UNet++, one head": Member(plus(deep_supervision=False)),
        "UNet++": Member(plus()),
        "UNet++ residual": Member(plus(block="residual")),
        "U-Net^e, grown": Member(plus(skips="long"), grown=growth),
        "UNet++, grown": Member(plus(), grown=growth),
        "UNet++, distilled": Member(plus(), {"distillation": 0.5}),
        "U-Net^e, shallow heads first": Member(
            plus(skips="long"), {"weights": [2.0**n for n in range(depth)]}
        ),
        "U-Net^e, annealed to shallow heads": Member(
            plus(skips="long"), annealed=tuple(2.0**n for n in range(depth))
        ),
        "U-Net^e, learned weights": Member(plus(skips="long"), learned=True),
        "U-Net^e, stopped gradients": Member(stopped),
        **{
            f"{name}, narrowed to L{k}": Member(make, narrowed=(k, NARROWED_AFTER))
            for name, make in (("U-Net^e", plus(skips="long")), ("UNet++", plus()))
            for k in range(1, depth)
        },
        "DynUNet": Member(dynunet, {"weights": "halving"}),
        "SegResNetDS": Member(segresnet, {"weights": "halving"}),
    }
