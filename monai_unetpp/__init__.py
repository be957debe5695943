# SPDX-License-Identifier: Apache-2.0
"""UNet++ for MONAI: 2D/3D, deep supervision over all heads, and pruning to any level."""

from monai_unetpp._version import __version__
from monai_unetpp.inferers import EarlyExitInferer, VolumeInferer
from monai_unetpp.levels import LevelScore, score_levels, select_level
from monai_unetpp.losses import DeepSupervisionDiceLoss
from monai_unetpp.network import UNetPlusPlus, from_basic_unet_plus_plus, prune, prune_state_dict
from monai_unetpp.weights import load_network

__all__ = [
    "DeepSupervisionDiceLoss",
    "EarlyExitInferer",
    "LevelScore",
    "UNetPlusPlus",
    "VolumeInferer",
    "__version__",
    "from_basic_unet_plus_plus",
    "load_network",
    "prune",
    "prune_state_dict",
    "score_levels",
    "select_level",
]
