# SPDX-License-Identifier: Apache-2.0
"""Whole volumes: from windows on the network's grid to labels on the grid of the file, slab by slab."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SlidingWindowInferer
from monai.transforms import KeepLargestConnectedComponent, generate_spatial_bounding_box
from torch import Tensor

from monai_unetpp.inferers.file_grid import FileGrid, Planes
from monai_unetpp.inferers.slabs import slabs
from monai_unetpp.inferers.uncertainty import ExpectedError, disagreement, probabilities
from monai_unetpp.inferers.windows import EarlyExitInferer, FlatOnce
from monai_unetpp.network import UNetPlusPlus, unwrap
from monai_unetpp.regions import check_writable, write_regions

__all__ = [
    "Segmentation",
    "VolumeInferer",
    "checked_volume",
    "keep_largest_component",
    "on_file",
    "results_of",
]


class Segmentation(NamedTuple):
    """Segmentation of a volume; maps are (1, 1, *spatial) on the grid of the file.

    Args:
        labels: Most probable class, uint8; a mask for a network of one channel; of regions the value of the
            last one that a voxel is in.
        probability: Probability of the class that was asked for, float32.
        uncertainty: Disagreement of the heads, float32; see :func:`~monai_unetpp.inferers.disagreement`.
        case_uncertainty: Expected 1 - Dice if the deepest head's probabilities are correct, the mean over the
            labelled classes; without one, the largest foreground probability. Review first where it is high.
        confidence: Probability of the label of each voxel, float16, to three digits; of regions that of each
            one, (1, R, *spatial).
    """

    labels: MetaTensor
    probability: MetaTensor | None = None
    uncertainty: MetaTensor | None = None
    case_uncertainty: float | None = None
    confidence: MetaTensor | None = None


class VolumeInferer(Inferer):
    """Segment a whole volume by a window inferer, on the grid of its file.

    It replaces a sliding window, softmax, ``Invertd`` and argmax, each of which holds the whole volume at
    least once per class: here they run slab by slab, and only the labels are kept, one byte per voxel.
    Probabilities are interpolated, not classes, so that outlines are smooth.

    The level belongs to the network: ``network.level`` is the dial, and :func:`~monai_unetpp.load_network`
    sets it. ``level`` is for hosts such as MONAI Label, which load the network themselves and let a user
    choose an option of the inferer; it sets the same dial for the time of a call.

    Args:
        inferer: Inferer that blends windows: ``SlidingWindowInferer``, ``EarlyExitInferer``, or
            ``SliceInferer`` for a network of two dimensions.
        largest_component: Whether to keep only the largest connected component of the foreground.
        progress: Whether to show a progress bar over groups of rows of windows.
        level: Level ``k`` of L^k; by default that of the network.
        regions: Values of the label map in each region, for a network with one channel and a sigmoid per
            region; see :mod:`monai_unetpp.regions`.
        regions_class_order: Value that is written in each region where its probability is above 1/2; later
            regions overwrite earlier ones.

    Raises:
        ValueError: if ``regions`` and ``regions_class_order`` do not fit each other.
    """

    def __init__(
        self,
        inferer: SlidingWindowInferer,
        largest_component: bool = False,
        progress: bool = False,
        level: int | None = None,
        regions: Sequence[Sequence[int]] | None = None,
        regions_class_order: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_writable(regions, regions_class_order)
        self.regions = regions
        self.order = regions_class_order
        self.inferer = inferer
        self.largest_component = largest_component
        self.progress = progress
        self.level = level

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> MetaTensor:
        """Return the labels of :meth:`segment`; further arguments follow the windows to the network."""
        if not args and not kwargs:
            return self.segment(inputs, network).labels
        return self.segment(inputs, lambda windows: network(windows, *args, **kwargs)).labels

    @torch.no_grad()
    def segment(
        self,
        image: Tensor,
        network: Callable[..., Any],
        probability: int | None = None,
        uncertainty: bool = False,
        confidence: bool = False,
    ) -> Segmentation:
        """Segment a volume.

        Args:
            image: Preprocessed volume, ``MetaTensor`` (1, C, X, Y, Z), with ``original_affine`` and
                ``spatial_shape`` of the file in its ``meta``, as ``LoadImage`` writes them.
            network: Function from windows (B, C, *window) to logits (B, K, *window).
            probability: Class whose probability is returned as well; a region by its number, from 1 on.
            uncertainty: Whether the disagreement of the heads is returned as well, for a network with
                several heads.
            confidence: Whether the probability of the labels is returned as well; it takes two bytes per
                voxel, and per region.

        Raises:
            ValueError: if there are several volumes, ``meta`` lacks the grid of the file, the network has no
                such class or another number of regions, or uncertainty is asked for and the network has one
                head.
        """
        with _at_level(network, self.level):
            return self._segment(image, network, probability, uncertainty, confidence)

    def _segment(
        self,
        image: Tensor,
        network: Callable[..., Any],
        probability: int | None,
        uncertainty: bool,
        confidence: bool,
    ) -> Segmentation:
        classes: int | None = None
        if uncertainty:
            network = unwrap(network)  # all heads are computed in eager mode
            if not isinstance(network, UNetPlusPlus) or len(network.heads) < 2 or network.level < 2:
                raise ValueError(
                    "uncertainty must be left out: the network has only one head, which cannot disagree."
                )
            classes = int(network.arguments["out_channels"])
            network = partial(_all_heads, network)
        image = checked_volume(image)
        affine = torch.as_tensor(image.meta["original_affine"]).reshape(4, 4)
        size = torch.as_tensor(image.meta["spatial_shape"]).flatten().tolist()
        grid = FileGrid(image.affine.reshape(4, 4), image.shape[2:], affine, size)
        if not isinstance(self.inferer, EarlyExitInferer):  # which does so itself
            network = FlatOnce(partial(_deepest_head, network))
        logits = slabs(self.inferer, image.as_subclass(Tensor), network, _bar if self.progress else None)
        results: dict[str, Tensor] = {}
        sigmoid = self.order is not None
        error = ExpectedError(classes, sigmoid) if classes is not None else None
        for part in grid.resample(_maps(slab, classes, error, sigmoid)[0] for slab in logits):
            for name, values in results_of(part, classes, probability, self.order, confidence).items():
                if name not in results:
                    results[name] = torch.zeros(*values.shape[:-3], *size, dtype=values.dtype)
                results[name].index_copy_(part.axis - 3, part.numbers, values.cpu())
        if self.largest_component:
            keep_largest_component(results["labels"])
        return Segmentation(
            **{name: on_file(values, image, affine) for name, values in results.items()},
            case_uncertainty=error.value() if error is not None else None,
        )


@contextmanager
def _at_level(network: Callable[..., Any], level: int | None) -> Iterator[None]:
    """Set a network to another level for the time of a block; ``None`` leaves it unchanged."""
    if level is None:
        yield
        return
    network = unwrap(network)
    if not isinstance(network, UNetPlusPlus):
        raise ValueError(f"level must be left out, got {level}: the network is not a UNetPlusPlus.")
    before, network.level = network.level, level
    try:
        yield
    finally:
        network.level = before


def _bar(groups: Sequence[list[int]]) -> Sequence[list[int]]:
    from tqdm import tqdm  # type: ignore[import-untyped]

    return tqdm(groups, desc="Windows", leave=False, disable=None)


def _deepest_head(network: Callable[..., Any], windows: Tensor) -> Tensor:
    """Return the deepest head's logits; MONAI Label scores with dropout, in training mode, with all heads."""
    logits = network(windows)
    return logits[0] if isinstance(logits, (list, tuple)) else logits


def _all_heads(network: UNetPlusPlus, windows: Tensor) -> Tensor:
    """Return the logits of all heads up to the network's level, deepest first, concatenated as channels."""
    return torch.cat(network.all_heads(windows)[network.depth - network.level :], dim=1)


def _maps(logits: Tensor, classes: int | None, error: ExpectedError | None, sigmoid: bool) -> Tensor:
    """Return the deepest head's probabilities, and of several heads their disagreement as a last channel."""
    if classes is None or error is None:
        return probabilities(logits, sigmoid)
    heads = torch.split(logits, classes, dim=1)
    error.add(heads[0])
    return torch.cat([probabilities(heads[0], sigmoid), disagreement(heads, sigmoid)], dim=1)


def results_of(
    part: Planes,
    classes: int | None,
    probability: int | None,
    order: Sequence[int] | None,
    confidence: bool = False,
) -> dict[str, Tensor]:
    """Return labels, and other maps if asked for, of some planes; unseen voxels are background."""
    p = part.maps[:classes]
    unseen = part.unseen.to(p.device)
    if order is None:
        labels = (p[0] > 0.5 if len(p) == 1 else p.argmax(dim=0)).to(torch.uint8)
    else:
        labels = write_regions(p, order)
    results = {"labels": labels.masked_fill_(unseen, 0)}
    if confidence:
        of_label = p if order is not None else p.amax(dim=0)
        results["confidence"] = of_label.masked_fill(unseen, 0.0).half()
    if probability is not None and order is not None:
        if not 1 <= probability <= len(p):
            raise ValueError(
                f"probability must be a region of the network, 1..{len(p)}, got {probability}: regions "
                "overlap, and the background has no probability of its own."
            )
        results["probability"] = p[probability - 1].masked_fill(unseen, 0.0)
    elif probability is not None:
        last = max(len(p) - 1, 1)
        if not 0 <= probability <= last:
            raise ValueError(f"probability must be a class of the network, 0..{last}, got {probability}.")
        values = p[probability] if len(p) > 1 else (p[0] if probability else 1 - p[0])
        results["probability"] = values.masked_fill(unseen, float(probability == 0))
    if classes is not None:
        results["uncertainty"] = part.maps[-1]
    return results


def keep_largest_component(labels: Tensor) -> None:
    """Clear all other foreground, inside the bounding box of the foreground, to save memory."""
    first, last = generate_spatial_bounding_box(labels[None])
    box = labels[tuple(map(slice, first, last))]
    box.copy_(KeepLargestConnectedComponent(independent=False)(box[None].clone())[0])


def checked_volume(image: Tensor) -> MetaTensor:
    """Return the image, if it is one volume with the grid of its file."""
    if image.dim() != 5 or image.shape[0] != 1:
        raise ValueError(f"inputs must be one volume (1, C, X, Y, Z), of any size, got {list(image.shape)}.")
    lacking = {"original_affine", "spatial_shape"} - set(getattr(image, "meta", {}))
    if not isinstance(image, MetaTensor) or lacking:
        raise ValueError(f"inputs must have the grid of their file: meta lack {', '.join(sorted(lacking))}.")
    return image


def on_file(values: Tensor, image: MetaTensor, affine: Tensor) -> MetaTensor:
    """Return a result as (1, C, *spatial) with the meta of the image, on the grid of its file."""
    meta = {**image.meta, "affine": affine.expand_as(image.affine)}
    result = MetaTensor(values.reshape(1, -1, *values.shape[-3:]), meta=meta)
    result.is_batch = image.is_batch
    return result
