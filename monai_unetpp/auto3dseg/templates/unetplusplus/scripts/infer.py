# SPDX-License-Identifier: Apache-2.0
"""Where Auto3DSeg looks for what predicts; it is copied into the folder of each fold."""

from pathlib import Path
from typing import Any

from monai_unetpp.auto3dseg import BundlePredictor

__all__ = ["InferClass"]


class InferClass(BundlePredictor):
    """Predictor of the fold that this file lies in.

    Args:
        config_file: Files that Auto3DSeg lists; the bundle has its own.
        override: Parameters of the prediction.
    """

    def __init__(self, config_file: Any = None, **override: Any) -> None:
        del config_file
        super().__init__(Path(__file__).parents[1], **override)
