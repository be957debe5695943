# SPDX-License-Identifier: Apache-2.0
"""How the equation is computed: in less time and memory than by torch's defaults, with the same result.

dispatch     when; what TorchScript, tracing and export get instead; :func:`plain` switches it off
convolution  over several maps that are not joined
recompute    what backward makes again instead of keeping it
precision    which formats of numbers a device computes fast; mixed precision
cpu/         norm, Winograd's convolution, private operators: for the CPU
gpu/         norm and activation by Triton: for GPUs since Ampere

The README beside this file says what must stay true, and how to find a wrong number.
"""

from monai_unetpp.network.kernels.convolution import Conv2d, Conv3d, Upsampling, convolve_norm_act
from monai_unetpp.network.kernels.dispatch import (
    Dispatched,
    call_in_python,
    crop,
    enter,
    fill_up,
    has_sizes,
    leave,
    plain,
    script_too,
    use,
)
from monai_unetpp.network.kernels.precision import (
    PRECISIONS,
    autocast,
    in_precision,
    is_fast_in,
    precision_of,
    precisions,
)
from monai_unetpp.network.kernels.recompute import Checkpointed, Repeated

__all__ = [
    "PRECISIONS",
    "Checkpointed",
    "Conv2d",
    "Conv3d",
    "Dispatched",
    "Repeated",
    "Upsampling",
    "autocast",
    "call_in_python",
    "convolve_norm_act",
    "crop",
    "enter",
    "fill_up",
    "has_sizes",
    "in_precision",
    "is_fast_in",
    "leave",
    "plain",
    "precision_of",
    "precisions",
    "script_too",
    "use",
]
