# SPDX-License-Identifier: Apache-2.0
"""A list of heads and one target -> one number.

loss = sum_k w_k (Dice + cross-entropy)(head k, target) / sum_k w_k
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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

    Raises:
        ValueError: If ``weights`` is an unknown word, or holds a negative number or only zeros.

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
                explicit ``weights``.
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
            return self.loss(heads, target)
        weights = self.head_weights(len(every))
        total = weights[0] * self.loss(every[0], target)
        for n in range(1, len(every)):
            total = total + weights[n] * self.loss(every[n], target)
        return total
