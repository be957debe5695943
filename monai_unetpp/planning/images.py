# SPDX-License-Identifier: Apache-2.0
"""What the network sees of an image: dimensions, spacing, normalisation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from monai_unetpp.planning.choices import Choices
from monai_unetpp.planning.fingerprint import Fingerprint
from monai_unetpp.planning.measuring import CaseFacts

__all__ = ["MIN_AXIS_VOXELS", "choose_images", "median_size", "target_diameter"]

MIN_AXIS_VOXELS = 4  # voxels of the last row (Isensee)
MIN_ANISOTROPY = 3.0  # spacing of an axis over that of the others, from which slices are thick (Isensee)
THICK_QUANTILE = 0.1  # of the spacings of a thick axis: the thin ones of the data set (Isensee)
MIN_ZERO_SHARE = (
    0.25  # share of voxels that are 0 in all channels, as around a skull that was stripped (Isensee)
)
MAX_BRIGHTNESS_RATIO = (
    2.0  # ratio of the brightness of what is segmented, from which each picture is normalised by itself
)
IN_HU = ("ct", "ct_", "computed tomography")


def choose_images(choose: Choices, fingerprint: Fingerprint) -> None:
    """Choose dimensions, channels, classes, spacing and normalisation."""
    cases = fingerprint.cases
    choose.make("spatial_dims", lambda: _spatial_dims(cases))
    choose.make("in_channels", lambda: (max(c.channels for c in cases), ", ".join(fingerprint.modality)))
    regions = fingerprint.regions
    names = fingerprint.labels[regions is not None :]  # the background is no region
    choose.make("out_channels", lambda: (len(names), ", ".join(names)))
    if regions is not None:
        choose.make("regions", lambda: (regions, "values of each in the masks, of dataset.json"))
        last = "the value that a mask gets in each, later ones over earlier ones"
        choose.make("regions_class_order", lambda: (fingerprint.regions_class_order, last))
    if fingerprint.label_values is not None:
        choose.make("label_values", lambda: (fingerprint.label_values, _reason_of_values(fingerprint)))
    if fingerprint.ignore_label is not None:
        nobody = "voxels that nobody annotated, in no loss and no score"
        choose.make("ignore_label", lambda: (fingerprint.ignore_label, nobody))
    choose.make("pixdim", lambda: _pixdim(cases, choose["spatial_dims"]))
    _normalisation(choose, fingerprint)


def _spatial_dims(cases: Sequence[CaseFacts]) -> tuple[int, str]:
    if all(case.picture for case in cases):
        return 2, "the images are pictures"
    flat = statistics.median(case.size[2] for case in cases)
    if flat < MIN_AXIS_VOXELS:
        return 2, f"the volumes have {flat:g} slices, fewer than {MIN_AXIS_VOXELS}"
    return 3, "the images are volumes"


def _pixdim(cases: Sequence[CaseFacts], dims: int) -> tuple[list[float], str]:
    """Median spacing by axis; along thick slices a thin one of the data set, so that little is lost."""
    if all(case.picture for case in cases):
        return [1.0, 1.0, 1.0], "pictures keep their pixels"
    spacings = np.array([case.spacing for case in cases])
    median = np.median(spacings, axis=0)
    reason = f"median of {len(cases)} spacings"
    if dims == 2:
        return [*_figures(median[:2]), -1], f"{reason}; slices are not resampled across"
    thick, others = int(median.argmax()), [a for a in range(3) if a != int(median.argmax())]
    sizes = np.median([case.size for case in cases], axis=0)
    few = sizes[thick] * MIN_ANISOTROPY < sizes[others].min()
    if median[thick] / median[others].max() >= MIN_ANISOTROPY and few:
        median[thick] = np.quantile(spacings[:, thick], THICK_QUANTILE)
        median[thick] = max(median[thick], median[others].max())
        reason += f"; slices are thick, and along them it is the {THICK_QUANTILE:.0%} quantile (Isensee)"
    return _figures(median), reason


def _normalisation(choose: Choices, fingerprint: Fingerprint) -> None:
    """CT: a window of HU; MR and others: mean 0 and standard deviation 1 by case; pictures: their range."""
    cases, names = fingerprint.cases, [name.lower() for name in fingerprint.modality]
    unnamed = names == ["channel 0"]
    hu = all(name in IN_HU for name in names) or (unnamed and _looks_like_hu(cases))
    choose.make("hounsfield", lambda: (hu, "modality CT" if hu and not unnamed else _of_values(hu)))
    pictures = all(case.picture for case in cases)
    choose.make("hu_range", lambda: _window(cases) if choose["hounsfield"] else _range(cases, pictures))
    if choose["hu_range"] is not None:
        return
    zero = statistics.median(case.zero for case in cases)
    nonzero = not pictures and zero > MIN_ZERO_SHARE
    what = f", of what is not 0: {zero:.0%} of the voxels are" if nonzero else ""
    why = f"mean 0, standard deviation 1 by case and channel{what} (Isensee)"
    choose.make("normalize_nonzero", lambda: (nonzero, why))


def _range(cases: Sequence[CaseFacts], pictures: bool) -> tuple[list[int] | None, str]:
    """Range of pictures that are alike; of other images there is none that fits all."""
    if not pictures:
        return None, "no unit that is the same in all images"
    low, high = min(min(case.low) for case in cases), max(max(case.high) for case in cases)
    if low < 0 or not all(case.whole for case in cases):
        return None, "pictures of values below 0, or of fractions"
    medians = [np.mean([each[len(each) // 2] for each in case.quantiles]) for case in cases if case.centre]
    dark, bright = np.quantile(medians, [0.1, 0.9])
    if bright > MAX_BRIGHTNESS_RATIO * dark:
        times = bright / max(dark, 1e-6)
        return None, f"what is segmented differs in brightness by a factor of {times:.1f} among the pictures"
    bits = max(8, math.ceil(math.log2(high + 1)))  # 12 of a camera are stored in 16
    return [0, 2**bits - 1], f"pictures of {bits} bits, equally bright"


def _looks_like_hu(cases: Sequence[CaseFacts]) -> bool:
    """Whether images of unknown modality are CT: whole numbers from air, -1000, on."""
    lows = [case.low[0] for case in cases]
    return all(case.whole and case.channels == 1 for case in cases) and statistics.median(lows) < -500


def _of_values(hu: bool) -> str:
    return "values are those of HU, from air on" if hu else "not CT"


def _window(cases: Sequence[CaseFacts]) -> tuple[list[int], str]:
    """0.5 and 99.5 percentile of the foreground over all cases."""
    pooled = np.concatenate([case.quantiles[0] for case in cases if case.centre])
    low, high = np.percentile(pooled, [0.5, 99.5])
    return [math.floor(low), math.ceil(high)], "0.5 and 99.5 percentile of the foreground, HU (Isensee)"


def _reason_of_values(fingerprint: Fingerprint) -> str:
    values = fingerprint.label_values
    if values == "nonzero":
        return "all that is not 0 is the class"
    return f"values of {', '.join(fingerprint.labels)} in the masks"


def median_size(cases: Sequence[CaseFacts], pixdim: Sequence[float]) -> list[int]:
    """Median size at the spacing of the network, voxels."""
    sizes = [
        [n * a / (b if b > 0 else a) for n, a, b in zip(case.size, case.spacing, pixdim, strict=True)]
        for case in cases
    ]
    return [max(1, round(float(n))) for n in np.median(sizes, axis=0)]


def target_diameter(fingerprint: Fingerprint, pixdim: Sequence[float], dims: int) -> float:
    """Return the median over cases of the diameter of the smallest class's median component, voxels.

    In two dimensions a volume's component counts as if it were in all of its slices.
    """
    found: list[float] = []
    for case in fingerprint.cases:
        zooms = [b if b > 0 else a for a, b in zip(case.spacing, pixdim, strict=True)]
        scale = math.prod(a / b for a, b in zip(case.spacing[:dims], zooms[:dims], strict=True))
        smallest = [voxels for value, (_, _, voxels) in case.values.items() if value != "0"]
        if smallest:
            voxels = statistics.median(smallest) if fingerprint.label_values == "nonzero" else min(smallest)
            ball = voxels * scale / math.pi / (case.size[2] if dims == 2 else 1)
            found.append(2 * math.sqrt(ball) if dims == 2 else (6 * ball) ** (1 / 3))
    return statistics.median(found) if found else 0.0


def _figures(values: Any) -> list[float]:
    return [float(f"{value:.4g}") for value in values]
