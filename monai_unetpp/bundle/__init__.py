# SPDX-License-Identifier: Apache-2.0
"""Bundles: where they lie, what their configurations are given, and the layout of MONAI's model zoo.

- places: files of a bundle, bundles that come with this package
- settings: paths and other values that a configuration is given
- chosen: which weights run, and what follows from their record
- running: what a bundle that ``monai.bundle`` runs checks first
- workflows: training, evaluation and levels, for the command line
- packing: the layout of the model zoo
"""

from monai_unetpp.bundle.chosen import Chosen, configure
from monai_unetpp.bundle.packing import pack_bundle
from monai_unetpp.bundle.places import PARTS, config_files, copy_bundle, find_bundle
from monai_unetpp.bundle.running import check_run, use_record
from monai_unetpp.bundle.settings import check_keys, parse_value, set_values
from monai_unetpp.bundle.workflows import run_workflow

__all__ = [
    "PARTS",
    "Chosen",
    "check_keys",
    "check_run",
    "config_files",
    "configure",
    "copy_bundle",
    "find_bundle",
    "pack_bundle",
    "parse_value",
    "run_workflow",
    "set_values",
    "use_record",
]
