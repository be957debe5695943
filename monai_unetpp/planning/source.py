# SPDX-License-Identifier: Apache-2.0
"""A data set of one's own, and how it is to be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from monai_unetpp.files import PathLike

__all__ = ["Source"]


@dataclass(frozen=True)
class Source:
    """A data set of one's own, and how it is to be read.

    Args:
        data: Folder of the data set, see :func:`~monai_unetpp.data.layouts.find_layout`.
        images: Folder of the images in it, where there is no ``dataset.json``.
        masks: Folder of the masks, likewise.
        scan: Regular expression with a group ``scan``, which finds the scan in the name of a case.
        foreground: Whether all that is not 0 in a mask is one class, as for maps of instances.
        classes: Names of the classes without the background, in the order of their values.
        ignore_label: Value of voxels that nobody annotated; default that of nnU-Net's label ``ignore``.
        allow_empty: Whether a mask may be empty.
        allow_outside: Whether ``dataset.json`` may name files outside of its folder, also through links.
    """

    data: PathLike
    images: PathLike | None = None
    masks: PathLike | None = None
    scan: str | None = None
    foreground: bool = False
    classes: Sequence[str] | None = None
    ignore_label: int | None = None
    allow_empty: bool = False
    allow_outside: bool = False

    def places(self) -> dict[str, str | bool]:
        """Return what ``read_dataset`` has to be told, too."""
        given = {"images": self.images, "masks": self.masks, "scan": self.scan}
        found: dict[str, str | bool] = {key: str(value) for key, value in given.items() if value is not None}
        return found | ({"allow_outside": True} if self.allow_outside else {})
