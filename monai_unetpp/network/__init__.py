# SPDX-License-Identifier: Apache-2.0
"""The network: everything that a reader of the papers needs."""

from monai_unetpp.network.pruning import from_basic_unet_plus_plus, levels_in, prune, prune_state_dict
from monai_unetpp.network.unetplusplus import SKIPS, UNetPlusPlus

__all__ = [
    "SKIPS",
    "UNetPlusPlus",
    "from_basic_unet_plus_plus",
    "levels_in",
    "prune",
    "prune_state_dict",
]
