# SPDX-License-Identifier: Apache-2.0
"""Where Auto3DSeg looks for the class of an algorithm."""

from monai_unetpp.auto3dseg import UnetplusplusAlgo

__all__ = ["UnetplusplusAlgo"]
