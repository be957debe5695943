# SPDX-License-Identifier: Apache-2.0
"""A list of heads and one target -> one number.

loss = sum_k w_k (Dice + cross-entropy)(head k, target) / sum_k w_k

and, if shallow heads are to learn from the deepest one as well,

       + distillation * mean_{k < L} T^2 KL(head L at temperature T || head k at temperature T)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn
from torch.nn.functional import kl_div, logsigmoid

from monai_unetpp.regions import check_regions, region_values, to_regions

__all__ = ["DeepSupervisionDiceLoss"]

TEMPERATURE = 2.0  # softens what the deepest head is sure of


class DeepSupervisionDiceLoss(nn.Module):
    """Weighted mean over heads of MONAI's ``DiceCELoss``.

    It takes what the network returns: the list of training, deepest head first, or the one tensor of
    evaluation, which scores like a list of one.

    Args:
        weights: Weights of the heads: ``"equal"`` (the paper), ``"halving"`` (1, 1/2, 1/4, ... from the
            deepest head, as in nnU-Net), or one number per head, deepest first. Only their ratios matter.
        to_onehot_y: Whether the target is a label map (B, 1, *spatial), to be one-hot encoded; by default
            it is, unless ``sigmoid`` is true.
        softmax: Whether to apply a softmax to the heads; by default it is, unless ``sigmoid`` is true.
        sigmoid: Whether to apply a sigmoid to the heads, as for one class, or for classes that overlap: of a
            target that is not one-hot encoded each channel has a Dice and a binary cross-entropy.
        **dice_ce: Further arguments of ``monai.losses.DiceCELoss``, such as ``include_background``,
            ``lambda_dice``, ``lambda_ce``, ``batch``.
        ignore_index: Value of the label map at voxels that nobody annotated. The loss is that of the other
            voxels alone; a case without any other does not count, and a batch without any other scores 0.
        regions: Values of the label map in each of K regions, which may overlap, such as
            ``[[1, 2, 3], [2, 3], [3]]``; the heads have one channel and a sigmoid per region.
        distillation: Weight of the mean over shallow heads of their divergence from the deepest head, which
            receives no gradient from it; 0 for none.

    Raises:
        ValueError: If ``weights`` is an unknown word, or holds a negative number or only zeros; if
            ``distillation`` is negative; or if
            ``ignore_index`` is not a whole number, or the target is not a label map that could hold it; or if
            an argument does not fit ``regions``, or classes that overlap.

    Example:
        >>> loss = DeepSupervisionDiceLoss(weights="halving", include_background=False)
        >>> heads = [torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)]
        >>> bool(loss(heads, torch.zeros(1, 1, 8, 8)) == loss(heads[0], torch.zeros(1, 1, 8, 8)))
        True

    Reference:
        Zhou et al., UNet++ (IEEE TMI 2020, arXiv:1912.05074), deep supervision. Hinton et al., Distilling the
        Knowledge in a Neural Network (2015, arXiv:1503.02531).
    """

    def __init__(
        self,
        weights: str | Sequence[float] = "equal",
        to_onehot_y: bool | None = None,
        softmax: bool | None = None,
        sigmoid: bool = False,
        ignore_index: int | None = None,
        regions: Sequence[Sequence[int]] | None = None,
        distillation: float = 0.0,
        **dice_ce: Any,
    ) -> None:
        super().__init__()
        if not distillation >= 0:
            raise ValueError(f"distillation must be 0 or more, such as 0.5, got {distillation}.")
        self.distillation, self.temperature = distillation, TEMPERATURE
        if isinstance(weights, str):
            if weights not in ("equal", "halving"):
                raise ValueError(
                    f"weights must be 'equal', 'halving' or one number per head, got {weights!r}."
                )
        elif any(weight < 0 for weight in weights) or not any(weights):
            raise ValueError(f"weights must not be negative and not all zero, got {list(weights)}.")
        self.weights = weights
        self.given = None if isinstance(weights, str) else [float(weight) for weight in weights]
        self.ratio = 0.5 if weights == "halving" else 1.0  # of one head's weight to that of the deeper one
        sigmoid = sigmoid or regions is not None
        self.softmax = not sigmoid if softmax is None else softmax
        onehot = not sigmoid if to_onehot_y is None else to_onehot_y
        if ignore_index is not None:
            if not isinstance(ignore_index, int) or isinstance(ignore_index, bool):
                raise ValueError(f"ignore_index must be a whole number or None, got {ignore_index!r}.")
            if not onehot and not sigmoid:
                raise ValueError(
                    f"ignore_index={ignore_index} requires a label map as target, which to_onehot_y=True "
                    "encodes, got to_onehot_y=False."
                )
        self.ignore_index = ignore_index
        self.onehot = onehot
        self.overlapping = sigmoid and not onehot
        self.regions = _regions(regions, onehot, ignore_index, dice_ce)
        if self.overlapping:
            _check_overlapping(dice_ce)
        self.loss = DiceCELoss(to_onehot_y=onehot, softmax=self.softmax, sigmoid=sigmoid, **dice_ce)

    def head_weights(self, heads: int) -> list[float]:
        """Return the weight of each of ``heads`` heads, deepest first; they sum to one.

        Raises:
            ValueError: If there is another number of explicit weights.
        """
        weights = [self.ratio**n for n in range(heads)] if self.given is None else self.given
        if len(weights) != heads:
            raise ValueError(
                f"weights has {len(weights)} entries, but the network returned {heads} heads; "
                "give one number per head, deepest first."
            )
        return [weight / sum(weights) for weight in weights]

    def forward(self, heads: Tensor | list[Tensor], target: Tensor) -> Tensor:
        """Score the heads.

        Args:
            heads: Logits (B, K, *spatial), one tensor or a list, deepest first.
            target: Label map (B, 1, *spatial), or masks (B, K, *spatial) with ``sigmoid`` or without
                ``to_onehot_y``.

        Returns:
            The loss, a scalar.

        Raises:
            ValueError: If ``heads`` is empty, has one class and gets a softmax, or there is another number of
                explicit ``weights``; or if ``ignore_index`` is a class, or the target is not a label map.
        """
        every = [heads] if isinstance(heads, Tensor) else heads
        if not every:
            raise ValueError("heads must hold at least one tensor, got an empty list.")
        if self.softmax and every[0].shape[1] == 1:
            raise ValueError(
                "softmax requires two classes or more, got heads of one, whose softmax is 1 everywhere: "
                "sigmoid=True for one class, or out_channels 2 for background and class."
            )
        if isinstance(heads, Tensor):
            return self.one_head(heads, target)
        weights = self.head_weights(len(every))
        total = weights[0] * self.one_head(every[0], target)
        for n in range(1, len(every)):
            total = total + weights[n] * self.one_head(every[n], target)
        if self.distillation and len(every) > 1:
            deepest = every[0].detach()
            divergences = [self.divergence(deepest, each, target) for each in every[1:]]
            total = total + self.distillation * torch.stack(divergences).mean()
        return total

    def divergence(self, teacher: Tensor, logits: Tensor, target: Tensor) -> Tensor:
        """Return the divergence of a head from a deeper one, mean over the voxels that are annotated."""
        every = [each.movedim(1, -1) / self.temperature for each in [teacher, logits]]  # (B, *spatial, K)
        ignored = self.ignore_index
        if ignored is not None:  # gathered: what is ignored may be infinite or NaN
            annotated = (target != ignored)[:, 0]
            every = [each[annotated] for each in every]
        if self.overlapping or logits.shape[1] == 1:  # each channel is a class against all others
            every = [torch.stack([logsigmoid(each), logsigmoid(-each)], -1) for each in every]
        else:
            every = [torch.log_softmax(each, -1) for each in every]
        apart = kl_div(every[1], every[0], reduction="none", log_target=True).sum(-1)
        return self.temperature**2 * (apart.mean() if apart.numel() else apart.sum())

    def one_head(self, logits: Tensor, target: Tensor) -> Tensor:
        """Score one head on the voxels that are annotated."""
        ignored = self.ignore_index
        if ignored is None:
            return self.both(logits, self.encoded(target))
        self.check_ignored(ignored, logits.shape[1], target.shape[1])
        if not torch.is_floating_point(target):
            target = target.long()  # uint8 would take -1 for 255
        annotated = target != ignored
        if bool(annotated.all()):
            return self.both(logits, self.encoded(target))
        # Voxels are gathered, not multiplied by 0: what is ignored may be infinite or NaN.
        rest, answers = [], []
        for n in range(logits.shape[0]):
            if bool(annotated[n].any()):
                rest.append(torch.masked_select(logits[n], annotated[n]).reshape(1, logits.shape[1], -1))
                answer = torch.masked_select(target[n], annotated[n]).reshape(1, 1, -1)
                answers.append(self.encoded(answer))
        if not rest:
            return torch.masked_select(logits, annotated).sum()  # 0, and every gradient is 0
        voxels, answer = torch.cat(rest, 2), torch.cat(answers, 2)
        if self.loss.dice.batch or len(rest) == 1:
            return self.both(voxels, answer)
        # Dice is one per case, which may differ in size; cross-entropy is one over the voxels of all.
        dice = torch.stack([self.loss.dice(rest[n], answers[n]) for n in range(len(rest))])
        dice = dice.sum() if self.loss.dice.reduction == "sum" else dice.mean()
        return self.loss.lambda_dice * dice + self.loss.lambda_ce * self.cross_entropy(voxels, answer)

    def encoded(self, target: Tensor) -> Tensor:
        """Return the masks of regions, or the target itself if there are none."""
        return target if self.regions is None else to_regions(target, self.regions, 1)

    def both(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return Dice and cross-entropy: MONAI's loss, but of classes that overlap a binary cross-entropy."""
        if not self.overlapping:
            return self.loss(logits, target)
        dice = self.loss.dice(logits, target)
        return self.loss.lambda_dice * dice + self.loss.lambda_ce * self.cross_entropy(logits, target)

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy, a binary one if there is one class or classes overlap."""
        binary = self.overlapping or logits.shape[1] == 1
        return self.loss.bce(logits, target) if binary else self.loss.ce(logits, target)

    def check_ignored(self, ignored: int, channels: int, target_channels: int) -> None:
        """Check what ``ignore_index`` requires of the heads and the target.

        Raises:
            ValueError: If it is the value of a class, or the target is not a label map.
        """
        classes = max(channels, 2)  # one channel is that of a class beside the background
        if self.regions is None and 0 <= ignored < classes:
            raise ValueError(
                f"ignore_index must be none of the classes 0..{classes - 1}, got {ignored}: "
                "use a value of no class, such as 255 or -1."
            )
        label_map = self.onehot or self.regions is not None
        if target_channels != 1 or (channels > 1 and not label_map):
            raise ValueError(
                f"ignore_index={ignored} requires a label map (B, 1, *spatial) as target and "
                f"to_onehot_y=True, got {target_channels} channels and to_onehot_y={self.onehot}."
            )


def _regions(
    regions: Sequence[Sequence[int]] | None, onehot: bool, ignored: int | None, dice_ce: Mapping[str, Any]
) -> list[list[int]] | None:
    """Return regions as lists, once the arguments beside them fit."""
    if regions is None:
        return None
    check_regions(regions)
    if onehot or not dice_ce.get("include_background", True):
        raise ValueError(
            "regions require to_onehot_y=False and include_background=True: each has a channel, and the "
            f"background has none; got to_onehot_y={onehot}, "
            f"include_background={dice_ce.get('include_background', True)}."
        )
    if ignored in region_values(regions):
        raise ValueError(f"ignore_index must be in no region of {regions} and not 0, got {ignored}.")
    return [list(values) for values in regions]


def _check_overlapping(dice_ce: Mapping[str, Any]) -> None:
    """Refuse what a cross-entropy of classes that exclude each other has, and a binary one has not."""
    weight = dice_ce.get("weight")
    if (weight is not None and len(torch.as_tensor(weight).flatten()) > 1) or dice_ce.get("label_smoothing"):
        raise ValueError(
            "weight and label_smoothing must be left out for classes that overlap (sigmoid without "
            f"to_onehot_y, or regions), got weight={weight}, "
            f"label_smoothing={dice_ce.get('label_smoothing', 0.0)}."
        )
