# SPDX-License-Identifier: Apache-2.0
"""From the name of a device to one that this machine has."""

from __future__ import annotations

import torch

__all__ = ["find_device"]


def find_device(name: str | None = None) -> torch.device:
    """Return a device.

    Args:
        name: Such as ``"cpu"`` or ``"cuda:1"``; by default a GPU if there is one.

    Raises:
        ValueError: if this machine has no such device.
    """
    gpus = torch.cuda.device_count()
    if name is None:
        return torch.device("cuda" if gpus else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # of no such kind, of no such number
        there = ", ".join(["cpu", *(f"cuda:{n}" for n in range(gpus))])
        raise ValueError(
            f"device must be one that this machine has, such as {there}, got {name}: {error}"
        ) from error
    return device
