# SPDX-License-Identifier: Apache-2.0
"""A sheet of slices of one scan: outlines, a legend with volumes, orientation, scale and window."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import ArrayLike

from monai_unetpp.extras import require
from monai_unetpp.files import PathLike, atomic_write
from monai_unetpp.pictures.marks import Mark, place_marks
from monai_unetpp.pictures.page import Page
from monai_unetpp.pictures.panels import Panels
from monai_unetpp.pictures.view import Array, View, choose_slices, class_colour
from monai_unetpp.pictures.window import display_window
from monai_unetpp.readers import is_picture, volume_loader

__all__ = ["check_sheets", "draw_volume", "volume_figure", "volume_text"]


def check_sheets() -> None:
    """Raise a ModuleNotFoundError at the beginning of a long run if sheets cannot be drawn."""
    require("figures", "matplotlib")


def draw_volume(path: PathLike, image_path: PathLike, labels: ArrayLike, *args: Any, **settings: Any) -> None:
    """Draw slices of a volume with outlines, and a legend with the volume of each class, as a PNG.

    Args:
        path: Path of the PNG to write.
        image_path: Path of the volume.
        labels: Label map of the volume (*spatial).
        *args: Further arguments of :func:`volume_figure`.
        **settings: The same, by name.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
        ValueError: if ``labels`` is not on the grid of the volume.
    """
    require("figures", "matplotlib")
    figure = volume_figure(image_path, labels, *args, **settings)
    with atomic_write(path) as part:
        figure.savefig(part, dpi="figure")


def volume_figure(
    image_path: PathLike,
    labels: ArrayLike,
    window: Sequence[float] | None = None,
    count: int = 12,
    names: Sequence[str] = (),
    note: str = "",
    marks: Sequence[Mark] = (),
    volume: MetaTensor | None = None,
) -> Any:
    """Return slices of a volume with outlines and a legend as a figure of matplotlib.

    Slices lie evenly through the labelled ones, or through all if nothing is labelled. Of each class the
    slice of the largest area is among them. Edges without tissue are cut off, and small findings are
    magnified in a corner.

    Args:
        image_path: Path of the volume.
        labels: Label map of the volume (*spatial).
        window: Intensities drawn black and white, such as HU; by default those that suit the volume, see
            :func:`display_window`.
        count: Maximum number of slices; it is exceeded if there are more classes, or more marks.
        names: Names of the classes, with the background's; "" for a value that is no class.
        note: Text below the name of the volume, such as the name of the bundle.
        marks: What is numbered, the most important first, each in its slice; up to 24 slices are drawn for
            them.
        volume: The volume, (C, *spatial), if it was read already.

    Raises:
        ValueError: if ``labels`` is not on the grid of the volume.
    """
    # checked where it was segmented
    image = volume_loader(modality=None)(image_path) if volume is None else volume
    if np.shape(labels) != tuple(image.shape[1:]):
        raise ValueError(
            f"labels must be on the grid of {image_path}, {tuple(image.shape[1:])}, got {np.shape(labels)}."
        )
    view = View(image.affine, image.pixdim.tolist())
    turned, label_map = view.turn(image[0]), view.turn(labels)
    areas = view.areas(label_map)
    placed = place_marks(marks, label_map, view, tuple(image.shape[1:]))
    chosen = choose_slices(areas, count, {each.plane for each in placed})
    pairs = [(view.plane(turned, n), view.plane(label_map, n)) for n in chosen]
    shown = display_window(torch.as_tensor(image[0]), pairs, view.pixel, window)
    picture = is_picture(image_path)
    numbers = [view.number_in_file(n, len(areas)) for n in chosen]
    captions = [f"{n} / {len(areas)}" if not picture else "" for n in numbers]
    here = [[each for each in placed if each.plane == n] for n in chosen]
    panels = Panels(pairs, captions, shown, view, picture, marks=here)
    size = " x ".join(f"{mm:.3g}" for mm in view.spacing)
    grid = " x ".join(str(n) for n in image.shape[1:3])
    shape = f"{grid} pixels" if picture else f"{view.plane_name}, voxels of {size} mm"
    lines = [note, shape, f"window: {shown.text}"]
    if len(placed) < len(marks):
        lines.append(f"numbered: findings {marks[0].text} to {placed[-1].text} of {len(marks)}")
    millilitres = areas.sum(0) * abs(float(np.linalg.det(image.affine[:3, :3]))) / 1000
    page = Page(*panels.size, Path(image_path).name, lines, _legend(millilitres, names, picture))
    panels.draw(page)
    return page.figure


def _legend(millilitres: Array, names: Sequence[str], picture: bool) -> list[tuple[str, str]]:
    """Return colour and text of each class that was found or has a name."""
    found = millilitres[1:]
    known = {c: str(name) for c, name in enumerate(names) if name}
    if not found.any():
        looked_for = ", ".join(known[c] for c in sorted(known) if c)
        return [("", f"nothing found ({looked_for})" if looked_for else "nothing found")]
    classes = range(1, max(len(millilitres), len(names)))
    volumes = {c: float(millilitres[c]) if c < len(millilitres) else 0.0 for c in classes}
    return [
        (class_colour(c), f"{known.get(c, f'class {c}')}: {volume_text(volumes[c], picture)}")
        for c in classes
        if volumes[c] or c in known
    ]


def volume_text(millilitres: float, picture: bool = False) -> str:
    """Return a volume as text, of a small one two digits; of a picture its pixels, which are 1 mm wide."""
    if millilitres == 0:
        return "not found"
    if picture:
        return f"{round(1000 * millilitres):,} pixels"
    if millilitres < 0.001:
        return "< 0.001 ml"
    if millilitres < 1:
        return f"{millilitres:.2g} ml"
    return f"{millilitres:.{0 if millilitres >= 100 else 1}f} ml"
