# SPDX-License-Identifier: Apache-2.0
"""From logits and a label map to masks by class, where no other postprocessing is given."""

from __future__ import annotations

from monai.transforms import AsDiscreted, Compose, Lambdad
from torch import Tensor

from monai_unetpp.regions import to_regions, with_background

__all__ = ["default_postprocessing"]


def default_postprocessing(out_channels: int, regions: list[list[int]] | None = None) -> Compose:
    """Return argmax, or a threshold for one channel or for regions, on the grid of the data.

    Args:
        out_channels: Channels of ``"pred"``, logits (K, *spatial).
        regions: Values of ``"label"`` in each channel, where classes overlap.
    """
    keys = ["pred", "label"]
    if regions is not None:
        return Compose(
            [
                Lambdad("pred", _above_half),
                Lambdad("label", lambda label: to_regions(label, regions)),
                Lambdad(keys, with_background),
            ]
        )
    if out_channels == 1:
        return Compose([AsDiscreted("pred", threshold=0.0)])  # of a logit: a probability of one half
    return Compose([AsDiscreted(keys, argmax=[True, False], to_onehot=out_channels)])


def _above_half(logits: Tensor) -> Tensor:
    return (logits > 0).to(logits.dtype)
