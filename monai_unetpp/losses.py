# SPDX-License-Identifier: Apache-2.0
"""A list of heads and one target -> one number.

loss = sum_k w_k (Dice + cross-entropy)(head k, target) / sum_k w_k
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn

__all__ = ["DeepSupervisionDiceLoss"]


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
        sigmoid: Whether to apply a sigmoid to the heads, as for one class.
        **dice_ce: Further arguments of ``monai.losses.DiceCELoss``, such as ``include_background``,
            ``lambda_dice``, ``lambda_ce``, ``batch``.
        ignore_index: Value of the label map at voxels that nobody annotated. The loss is that of the other
            voxels alone; a case without any other does not count, and a batch without any other scores 0.

    Raises:
        ValueError: If ``weights`` is an unknown word, or holds a negative number or only zeros; or if
            ``ignore_index`` is not a whole number, or the target is not a label map that could hold it.

    Example:
        >>> loss = DeepSupervisionDiceLoss(weights="halving", include_background=False)
        >>> heads = [torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)]
        >>> bool(loss(heads, torch.zeros(1, 1, 8, 8)) == loss(heads[0], torch.zeros(1, 1, 8, 8)))
        True

    Reference:
        Zhou et al., UNet++ (IEEE TMI 2020, arXiv:1912.05074), deep supervision.
    """

    def __init__(
        self,
        weights: str | Sequence[float] = "equal",
        to_onehot_y: bool | None = None,
        softmax: bool | None = None,
        sigmoid: bool = False,
        ignore_index: int | None = None,
        **dice_ce: Any,
    ) -> None:
        super().__init__()
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
            target: Label map (B, 1, *spatial), or (B, K, *spatial) without ``to_onehot_y``.

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
        return total

    def one_head(self, logits: Tensor, target: Tensor) -> Tensor:
        """Score one head on the voxels that are annotated."""
        ignored = self.ignore_index
        if ignored is None:
            return self.loss(logits, target)
        self.check_ignored(ignored, logits.shape[1], target.shape[1])
        if not torch.is_floating_point(target):
            target = target.long()  # uint8 would take -1 for 255
        annotated = target != ignored
        if bool(annotated.all()):
            return self.loss(logits, target)
        # Voxels are gathered, not multiplied by 0: what is ignored may be infinite or NaN.
        rest, answers = [], []
        for n in range(logits.shape[0]):
            if bool(annotated[n].any()):
                rest.append(torch.masked_select(logits[n], annotated[n]).reshape(1, logits.shape[1], -1))
                answers.append(torch.masked_select(target[n], annotated[n]).reshape(1, 1, -1))
        if not rest:
            return torch.masked_select(logits, annotated).sum()  # 0, and every gradient is 0
        voxels, answer = torch.cat(rest, 2), torch.cat(answers, 2)
        if self.loss.dice.batch or len(rest) == 1:
            return self.loss(voxels, answer)
        # Dice is one per case, which may differ in size; cross-entropy is one over the voxels of all.
        dice = torch.stack([self.loss.dice(rest[n], answers[n]) for n in range(len(rest))])
        dice = dice.sum() if self.loss.dice.reduction == "sum" else dice.mean()
        one_class = logits.shape[1] == 1
        cross_entropy = self.loss.bce(voxels, answer) if one_class else self.loss.ce(voxels, answer)
        return self.loss.lambda_dice * dice + self.loss.lambda_ce * cross_entropy

    def check_ignored(self, ignored: int, channels: int, target_channels: int) -> None:
        """Check what ``ignore_index`` requires of the heads and the target.

        Raises:
            ValueError: If it is the value of a class, or the target is not a label map.
        """
        classes = max(channels, 2)  # one channel is that of a class beside the background
        if 0 <= ignored < classes:
            raise ValueError(
                f"ignore_index must be none of the classes 0..{classes - 1}, got {ignored}: "
                "use a value of no class, such as 255 or -1."
            )
        if target_channels != 1 or (channels > 1 and not self.onehot):
            raise ValueError(
                f"ignore_index={ignored} requires a label map (B, 1, *spatial) as target and "
                f"to_onehot_y=True, got {target_channels} channels and to_onehot_y={self.onehot}."
            )
