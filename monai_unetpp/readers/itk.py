# SPDX-License-Identifier: Apache-2.0
"""Voxels in the rare ways to store them that are left to ITK, such as text, or one file per slice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import SimpleITK as sitk  # noqa: N813  its own documentation's name
from numpy.typing import NDArray

__all__ = ["last_line", "read_by_itk"]


def read_by_itk(path: Path) -> NDArray[Any]:
    """Return the voxels of a file whose header was proven, (X, Y, Z), channels last.

    Raises:
        ValueError: if it cannot be read; it names the file.
    """
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise ValueError(f"{path} cannot be read, it may be damaged: {last_line(error)}") from error
    array = sitk.GetArrayFromImage(image)  # (Z, Y, X), channels last
    axes = list(range(image.GetDimension()))[::-1]
    return array.transpose(axes if image.GetNumberOfComponentsPerPixel() == 1 else [*axes, array.ndim - 1])


def last_line(error: Exception) -> str:
    """Return the last line of what ITK says, which holds the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("Reason:")]  # of something before, as a rule
    return lines[-1] if lines else repr(error)
