# SPDX-License-Identifier: Apache-2.0
"""Numbers of the body parts in a phantom."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Part"]


class Part(IntEnum):
    """Body parts, with their numbers in :attr:`monai_unetpp.data.phantoms.canvas.Volume.parts`."""

    AIR = 0
    TABLE = 1
    FAT = 2
    MUSCLE = 3
    BONE = 4
    LUNG = 5
    HEART = 6
    VESSEL = 7
    LIVER = 8
    TUMOUR = 9
    SPLEEN = 10
    KIDNEY = 11
    STOMACH = 12
    BOWEL = 13
    PANCREAS = 14
    GALLBLADDER = 15
    NODULE = 16
