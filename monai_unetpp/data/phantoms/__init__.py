# SPDX-License-Identifier: Apache-2.0
"""Synthetic CT: an abdomen with liver tumours, a chest with nodules."""

from monai_unetpp.data.phantoms.phantom import (
    Phantom,
    chest_phantom,
    ensure_phantoms,
    liver_phantom,
    write_liver_phantoms,
    write_phantoms,
)

__all__ = [
    "Phantom",
    "chest_phantom",
    "ensure_phantoms",
    "liver_phantom",
    "write_liver_phantoms",
    "write_phantoms",
]
