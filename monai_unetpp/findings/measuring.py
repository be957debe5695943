# SPDX-License-Identifier: Apache-2.0
"""From a label map to findings: the connected components of every class, or region, in numbers.

Each component is looked at within its bounding box, so that time and memory do not grow with the number of
components times the size of the volume.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]

from monai_unetpp.findings.axial import AxialSlices, Diameters, axial_diameters
from monai_unetpp.findings.confidence import Confidence
from monai_unetpp.findings.limits import Limits
from monai_unetpp.lesions import equivalent_diameter, label_components

__all__ = ["Box", "Classes", "Finding", "find", "totals"]

Box = tuple[slice, slice, slice]
Classes = Mapping[str, Sequence[int]]  # name of a class or region -> values of the label map in it
LPS_OF_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
DIGITS = {  # that a table shows; volumes of a few voxels are thousandths of a millilitre
    "_ml": 5,
    "_mm": 2,
    "_intensity": 2,
    "_probability": 4,
    "confidence": 4,
    "elongation": 3,
}


@dataclass(frozen=True)
class Finding:
    """A connected component (26 neighbours) of a class, or of a region.

    Args:
        finding: Number, from 1 on by falling confidence, or mean probability where there is none.
        label: Name of the class or region.
        confidence: Calibrated probability that it is a true lesion, in [0, 1]; None if its class has none.
        mean_probability: Mean over its voxels of the probability of its class, in [0, 1].
        peak_probability: The greatest one.
        volume_ml: Volume, ml.
        long_axis_mm: Longest diameter in an axial slice, mm; see
            :func:`~monai_unetpp.findings.axial_diameters`.
        short_axis_mm: Longest diameter perpendicular to it in the same slice, mm.
        equivalent_diameter_mm: Diameter of the ball of equal volume, mm.
        elongation: Root mean square distance from its centre, over that of the ball of equal volume: 1 for a
            ball, more for what is long, flat or branched.
        centre_x_mm: Centre of mass in patient coordinates of DICOM, LPS+: towards the left, mm.
        centre_y_mm: Towards the back, mm.
        centre_z_mm: Towards the head, mm.
        slice: Axial slice of the long axis, from 1 on in the order of the file.
        instance_uid: SOP instance UID of that slice, if the scan is a DICOM series.
        mean_intensity: Mean of the voxels of the scan, such as HU.
        sd_intensity: Their standard deviation.
        touches_border: Whether it reaches the first or last voxel of the scan along an axis.
        values: Values of the label map in it.
        box: Its bounding box.
        voxel: Index of one of its voxels.
    """

    finding: int
    label: str
    confidence: float | None
    mean_probability: float
    peak_probability: float
    volume_ml: float
    long_axis_mm: float
    short_axis_mm: float
    equivalent_diameter_mm: float
    elongation: float
    centre_x_mm: float
    centre_y_mm: float
    centre_z_mm: float
    slice: int
    instance_uid: str
    mean_intensity: float
    sd_intensity: float
    touches_border: bool
    values: tuple[int, ...] = ()
    box: Box | None = None
    voxel: tuple[int, ...] = ()

    @property
    def rank(self) -> float:
        """What findings are ordered by and compared with ``min_confidence``, in [0, 1]."""
        return self.mean_probability if self.confidence is None else self.confidence

    def row(self) -> dict[str, Any]:
        """Return a row of a table; the label is called ``class``."""
        row = {each.name: getattr(self, each.name) for each in fields(self)[:-3]}
        for name, value in row.items():
            if isinstance(value, float):
                digits = next(digits for end, digits in DIGITS.items() if name.endswith(end))
                row[name] = round(value, digits)
        return {"class" if name == "label" else name: value for name, value in row.items()}


class _Grid:
    """Lengths on the grid of a label map, whose affine is (4, 4), RAS+."""

    def __init__(self, affine: NDArray[np.float64]) -> None:
        self.affine = affine
        self.slices = AxialSlices(affine)
        self.steps = affine[:3, :3]
        self.voxel_mm3 = abs(float(np.linalg.det(self.steps)))

    def elongation(self, mask: NDArray[np.bool_]) -> float:
        """Return that of a component, whose voxels are boxes, not points."""
        places = np.argwhere(mask)
        moments = self.steps @ (np.cov(places.T, bias=True) + np.eye(3) / 12) @ self.steps.T
        radius = equivalent_diameter(len(places) * self.voxel_mm3) / 2
        return float(np.sqrt(np.trace(moments) / (3 / 5 * radius**2)))


@dataclass(frozen=True)
class _Component:
    """A component with what limits look at."""

    label: str
    values: tuple[int, ...]
    box: Box
    mask: NDArray[np.bool_]
    voxels: int
    features: Mapping[str, float]
    confidence: float | None
    diameters: Diameters


def find(
    labels: NDArray[np.uint8],
    affine: NDArray[np.float64],
    classes: Classes,
    image: NDArray[Any],
    probability: NDArray[Any],
    limits: Limits | None = None,
    confidence: Mapping[str, Confidence] | None = None,
) -> list[Finding]:
    """Return the findings of a label map, the most confident first; remove those below the limits from it.

    What is removed becomes background; of regions that overlap, what is left of its other regions. Where a
    region is removed, those inside of it are removed with it.

    Args:
        labels: Label map (*spatial), which is changed.
        affine: Voxel index to world mm (RAS+), (4, 4).
        classes: Name of each class, or region -> values of the label map in it.
        image: The scan (*spatial), whose intensities are measured.
        probability: Probability of the label of each voxel, (1, *spatial); of regions that of each one, in
            the order of ``classes``, (R, *spatial).
        limits: What is dropped; by default nothing.
        confidence: Name of a class, or region -> confidence of its findings, if it was calibrated. The mean
            probability takes the place of a confidence where there is none.

    Raises:
        ValueError: if the shapes differ.
    """
    limits, confidence = limits or Limits(), confidence or {}
    if image.shape != labels.shape or probability.shape[1:] != labels.shape:
        raise ValueError(
            f"image and probability must have the shape of labels, {labels.shape}, got {image.shape} and "
            f"{probability.shape[1:]}."
        )
    kept: list[_Component] = []
    grid, dropping = _Grid(affine), True
    while dropping:  # what is dropped of a region may divide another: they are looked at once more
        dropping, kept = False, []
        for n, (name, values) in enumerate(classes.items()):
            of_class = probability[n if len(probability) > 1 else 0]
            model = confidence.get(name)
            for each in _components(labels, name, tuple(values), of_class, grid, limits, model):
                if isinstance(each, _Component):
                    kept.append(each)
                else:
                    _remove(labels, each, name, classes)
                    dropping = _overlap(classes)
    measured = [_measure(each, grid, image) for each in kept]
    order = {name: n for n, name in enumerate(classes)}
    measured.sort(key=lambda f: (-f.rank, order[f.label], -f.volume_ml, f.centre_z_mm))
    return [replace(each, finding=n) for n, each in enumerate(measured, 1)]


def totals(findings: Sequence[Finding], classes: Classes) -> list[dict[str, Any]]:
    """Return number and volume of the findings of each class, also of those without any."""
    of = {name: [each.volume_ml for each in findings if each.label == name] for name in classes}
    return [
        {"class": name, "findings": len(volumes), "volume_ml": round(sum(volumes), DIGITS["_ml"])}
        for name, volumes in of.items()
    ]


def _components(
    labels: NDArray[np.uint8],
    name: str,
    values: tuple[int, ...],
    probability: NDArray[Any],
    grid: _Grid,
    limits: Limits,
    confidence: Confidence | None,
) -> Iterator[_Component | tuple[Box, NDArray[np.bool_]]]:
    """Yield each component of a class; of one below the limits, box and mask alone."""
    inside = labels == values[0]
    for value in values[1:]:
        inside |= labels == value
    whole = ndimage.find_objects(inside.view(np.uint8))
    if not whole:
        return
    labelled, _ = label_components(inside[whole[0]])
    for n, part in enumerate(ndimage.find_objects(labelled), 1):
        x, y, z = (
            slice(of.start + whole.start, of.stop + whole.start)
            for of, whole in zip(part, whole[0], strict=True)
        )
        box, mask = (x, y, z), labelled[part] == n
        p = probability[box][mask].astype(np.float64)
        volume = len(p) * grid.voxel_mm3
        features = {
            "mean_probability": float(p.mean()),
            "peak_probability": float(p.max()),
            "equivalent_diameter_mm": equivalent_diameter(volume),
            "elongation": grid.elongation(mask),
        }
        confident = None if confidence is None else confidence(features)
        rank = features["mean_probability"] if confident is None else confident
        if limits.keep(volume, confidence=rank, label=name):
            diameters = axial_diameters(mask, grid.slices)
            if limits.keep(diameter_mm=diameters.long_mm):
                yield _Component(name, values, box, mask, len(p), features, confident, diameters)
                continue
        yield box, mask


def _overlap(classes: Classes) -> bool:
    values = [value for of in classes.values() for value in of]
    return len({*values}) < len(values)


def _remove(
    labels: NDArray[np.uint8], component: tuple[Box, NDArray[np.bool_]], name: str, classes: Classes
) -> None:
    """Give each voxel of a component the value of the other classes that it is in, or 0."""
    box, mask = component
    table = np.arange(256, dtype=np.uint8)
    members = {
        value: {other for other, values in classes.items() if value in values}
        for value in sorted({value for values in classes.values() for value in values})
    }
    for value in classes[name]:
        inside = [v for v, of in members.items() if of < members[value] and name not in of]
        table[value] = max(inside, key=lambda v: len(members[v]), default=0)
    here = labels[box]
    here[mask] = table[here[mask]]


def _measure(component: _Component, grid: _Grid, image: NDArray[Any]) -> Finding:
    box, mask = component.box, component.mask
    first = np.array([side.start for side in box])
    places = np.nonzero(mask)
    middle = first + [float(np.mean(each)) for each in places]
    centre = (LPS_OF_RAS @ grid.affine @ [*middle, 1])[:3]
    intensities = image[box][mask].astype(np.float64)
    ends = zip(box, image.shape, strict=True)
    return Finding(
        finding=0,
        label=component.label,
        confidence=component.confidence,
        **component.features,
        volume_ml=component.voxels * grid.voxel_mm3 / 1000,
        long_axis_mm=component.diameters.long_mm,
        short_axis_mm=component.diameters.short_mm,
        centre_x_mm=float(centre[0]),
        centre_y_mm=float(centre[1]),
        centre_z_mm=float(centre[2]),
        slice=int(first[grid.slices.axis]) + component.diameters.slice + 1,
        instance_uid="",
        mean_intensity=float(intensities.mean()),
        sd_intensity=float(intensities.std()),
        touches_border=any(side.start == 0 or side.stop == size for side, size in ends),
        values=component.values,
        box=box,
        voxel=tuple(int(start + each[0]) for start, each in zip(first, places, strict=True)),
    )
