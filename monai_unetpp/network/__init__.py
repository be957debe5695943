# SPDX-License-Identifier: Apache-2.0
"""The network: everything that a reader of the papers needs.

- spec: the arguments, checked once; what a level keeps of them
- blocks: ``H`` and ``U`` of the equation
- unetplusplus: the triangle
- backbones: MONAI's encoders as column 0
- wrapping: compiled, parallel and averaged networks, and prefixes of their weights
- pruning, convert: one level alone; weights of MONAI's class
- kernels: how it is computed
"""

from monai_unetpp.network.convert import from_basic_unet_plus_plus, rename_basic_keys
from monai_unetpp.network.pruning import levels_in, prune, prune_state_dict
from monai_unetpp.network.spec import SKIPS, Spec
from monai_unetpp.network.unetplusplus import UNetPlusPlus
from monai_unetpp.network.wrapping import (
    AnyPrefix,
    match_weights,
    unprefixed,
    unwrap,
    unwrap_unetplusplus,
    without_prefixes,
)

__all__ = [
    "SKIPS",
    "AnyPrefix",
    "Spec",
    "UNetPlusPlus",
    "from_basic_unet_plus_plus",
    "levels_in",
    "match_weights",
    "prune",
    "prune_state_dict",
    "rename_basic_keys",
    "unprefixed",
    "unwrap",
    "unwrap_unetplusplus",
    "without_prefixes",
]
