# SPDX-License-Identifier: Apache-2.0
"""Weights in files.

- loading: tensors only, checked against the network, of whatever level they are
- finding: those of a bundle, and those of the folds of a cross-validation
- finetune: what of them fits another network, to start a training from
- exported: an ONNX file in place of a network
- record: a JSON beside the weights that says how they were made
"""

from monai_unetpp.weights.exported import RUNTIMES, OnnxNetwork
from monai_unetpp.weights.finding import find_weights
from monai_unetpp.weights.finetune import Taken, load_initial_weights, start_from
from monai_unetpp.weights.loading import check_fit, load_network, prune_weights, read_tensors
from monai_unetpp.weights.record import (
    Record,
    make_record,
    plain,
    read_record,
    record_path,
    sha256,
    without_levels,
    write_record,
)

__all__ = [
    "RUNTIMES",
    "OnnxNetwork",
    "Record",
    "Taken",
    "check_fit",
    "find_weights",
    "load_initial_weights",
    "load_network",
    "make_record",
    "plain",
    "prune_weights",
    "read_record",
    "read_tensors",
    "record_path",
    "sha256",
    "start_from",
    "without_levels",
    "write_record",
]
