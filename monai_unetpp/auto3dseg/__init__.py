# SPDX-License-Identifier: Apache-2.0
"""UNet++ as an algorithm of MONAI's Auto3DSeg: planned, trained and ensembled by its ``AutoRunner``.

- algo: a bundle for each fold of the data list, its training and its score
- predictor: probabilities of all classes on the grid of the file
- templates: the folder for ``templates_path_or_url``
"""

from monai_unetpp.auto3dseg.algo import UnetplusplusAlgo, split_listed, templates_folder
from monai_unetpp.auto3dseg.predictor import BundlePredictor

__all__ = ["BundlePredictor", "UnetplusplusAlgo", "split_listed", "templates_folder"]
