# SPDX-License-Identifier: Apache-2.0
"""Slices of volumes as pictures, with outlines."""

from monai_unetpp.pictures.marks import Mark
from monai_unetpp.pictures.sheet import check_sheets, draw_volume, volume_figure, volume_text
from monai_unetpp.pictures.view import COLOURS, Array, View, class_colour, draw_plane, largest_slices
from monai_unetpp.pictures.window import DisplayWindow, display_window

__all__ = [
    "COLOURS",
    "Array",
    "DisplayWindow",
    "Mark",
    "View",
    "check_sheets",
    "class_colour",
    "display_window",
    "draw_plane",
    "draw_volume",
    "largest_slices",
    "volume_figure",
    "volume_text",
]
