# SPDX-License-Identifier: Apache-2.0
"""Data to try things on: synthetic CT in the layout of the Medical Segmentation Decathlon."""

from monai_unetpp.data.phantom import Phantom, liver_phantom, write_liver_phantoms

__all__ = ["Phantom", "liver_phantom", "write_liver_phantoms"]
