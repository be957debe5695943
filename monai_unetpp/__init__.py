# SPDX-License-Identifier: Apache-2.0
"""UNet++ for MONAI: 2D/3D, deep supervision over all heads, and pruning to any level.

The public names are imported on first use, so that the command line answers before torch is loaded.
"""

import importlib
from typing import TYPE_CHECKING, Any

from monai_unetpp._version import __version__

if TYPE_CHECKING:
    from monai_unetpp.inferers import EarlyExitInferer, VolumeInferer
    from monai_unetpp.levels import LevelScore, score_levels, select_level
    from monai_unetpp.losses import DeepSupervisionDiceLoss
    from monai_unetpp.network import UNetPlusPlus, from_basic_unet_plus_plus, prune, prune_state_dict
    from monai_unetpp.optimizers import Muon
    from monai_unetpp.weights import load_network

__all__ = [
    "DeepSupervisionDiceLoss",
    "EarlyExitInferer",
    "LevelScore",
    "Muon",
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

_MODULES = {  # where the public names are defined
    "inferers": ("EarlyExitInferer", "VolumeInferer"),
    "levels": ("LevelScore", "score_levels", "select_level"),
    "losses": ("DeepSupervisionDiceLoss",),
    "network": ("UNetPlusPlus", "from_basic_unet_plus_plus", "prune", "prune_state_dict"),
    "optimizers": ("Muon",),
    "weights": ("load_network",),
}


def __getattr__(name: str) -> Any:
    """Import a public name, or the module of one, on first use."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    for module, names in _MODULES.items():
        if name in names:
            value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
