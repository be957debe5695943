# SPDX-License-Identifier: Apache-2.0
"""How the equation is computed: in less time and memory than by torch's defaults, with the same result.

mode         when all this applies: eager mode, and on the CPU in channels last
winograd     3D convolution with half the multiplications
convolution  over several maps, with gradients; transposed convolution as a matrix product
norm         instance norm in channels last
recompute    what backward makes again instead of keeping it
compiled     the convolutions as operators for torch.compile

Scripted, traced and exported networks use torch's operators as they are, and so does compiled training.
"""

from monai_unetpp.network.kernels import compiled
from monai_unetpp.network.kernels.convolution import Deconv3d, convolve, convolve_one
from monai_unetpp.network.kernels.mode import enter, leave
from monai_unetpp.network.kernels.norm import InstanceNorm
from monai_unetpp.network.kernels.recompute import Checkpointed, activate, apply

__all__ = [
    "Checkpointed",
    "Deconv3d",
    "InstanceNorm",
    "activate",
    "apply",
    "compiled",
    "convolve",
    "convolve_one",
    "enter",
    "leave",
]
