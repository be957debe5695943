# SPDX-License-Identifier: Apache-2.0
"""Accuracy and cost of every level of a trained network."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from monai.data import decollate_batch
from torch import Tensor, nn

from monai_unetpp.levels.cases import case_name, check_scored, mean_scores, score_case
from monai_unetpp.levels.cost import interleaved, multiply_adds, peak_memory
from monai_unetpp.levels.postprocessing import default_postprocessing
from monai_unetpp.network import UNetPlusPlus, kernels, prune, unwrap_unetplusplus

__all__ = ["LevelScore", "evaluating", "level_costs", "score_levels"]


@dataclass(frozen=True)
class LevelScore:
    """Accuracy of L^level on a validation set, and its cost.

    Args:
        level: Level ``k`` of L^k.
        dice: Mean Dice over cases and classes, as MONAI's ``MeanDice``, in [0, 1].
        iou: Mean intersection over union, in [0, 1].
        surface_dice: Mean normalised surface Dice, in [0, 1].
        dice_per_class: Name of a class -> mean Dice over cases; NaN if no case has the class.
        iou_per_class: Name of a class -> mean intersection over union.
        surface_dice_per_class: Name of a class -> mean surface Dice.
        dice_per_case: Mean Dice over classes of each case, in the order of the data; NaN for a case of
            background only.
        parameters: Number of parameters of the network pruned to this level.
        multiply_adds: Multiply-adds of a forward pass over one window.
        seconds: Time of a forward pass over one window, the median of interleaved rounds, s.
        peak_mib: Peak memory of the activations of a forward pass over one window, MiB.
        precision: Type of the numbers in convolutions, such as ``"bfloat16"``.
        cases: Paths of the images in the order of the data, as the data name them.
        dice_per_case_and_class: Name of a class -> Dice of each case; NaN for a case without the class.
    """

    level: int
    dice: float
    iou: float
    surface_dice: float
    dice_per_class: Mapping[str, float]
    iou_per_class: Mapping[str, float]
    surface_dice_per_class: Mapping[str, float]
    dice_per_case: tuple[float, ...]
    parameters: int
    multiply_adds: int
    seconds: float
    peak_mib: float
    precision: str = "float32"
    cases: tuple[str, ...] = ()
    dice_per_case_and_class: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


def score_levels(
    network: nn.Module,
    data: Iterable[Mapping[str, Any]],
    inferer: Callable[..., Any],
    postprocessing: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None,
    class_labels: Sequence[str] | None = None,
    surface_tolerance: float = 2.0,
    window: Sequence[int] | None = None,
    rounds: int = 7,
    amp: bool = False,
    amp_kwargs: Mapping[str, Any] | None = None,
    progress: bool = True,
    precisions: Sequence[str] | None = None,
    regions: list[list[int]] | None = None,
) -> list[LevelScore]:
    """Score every level of a trained network in one pass over a validation set, and measure its cost.

    One sliding window blends the volumes of all levels, so that the network computes no more than for the
    deepest one, once in each precision.

    Args:
        network: UNetPlusPlus with deep supervision, on the device to compute on; compiled, parallel or
            averaged ones are unwrapped, and eager mode computes.
        data: Batches with ``"image"`` (B, C, *spatial) and ``"label"`` (B, 1, *spatial), class numbers.
        inferer: Inferer of MONAI, called with an image and the network's ``all_heads``.
        postprocessing: Transform of an item with ``"image"``, ``"label"`` and the logits ``"pred"`` to
            ``"pred"`` and ``"label"`` one-hot on one grid, on which levels are scored; by default argmax, or
            a threshold for one channel, on the grid of the data.
        class_labels: Names of the classes without the background; by default ``class_1``, ...
        surface_tolerance: Distance up to which surfaces agree, mm (pixels if ``label`` has no spacing).
        window: Spatial size of the window to measure costs on; by default the inferer's ``roi_size``.
        rounds: Number of rounds of the timing.
        amp: Whether to compute in mixed precision, as MONAI's engines do.
        amp_kwargs: Arguments of ``torch.autocast``.
        progress: Whether to show a progress bar.
        precisions: Precisions to score, such as those of ``monai_unetpp.network.kernels.precisions(device)``;
            by default the one that ``amp`` and ``amp_kwargs`` give.
        regions: Values of the label in each of the network's channels, where classes overlap; what is in none
            of them is then the first channel of ``postprocessing``.

    Returns:
        One score per precision and level: all levels of the first precision, shallowest first, then the next.

    Raises:
        TypeError: if ``network`` is no UNetPlusPlus.
        ValueError: if ``deep_supervision`` is off, the validation set is empty or background only, a label
            does not have the size of the prediction, the window is unknown, or the device is not fast in one
            of ``precisions``.

    Reference:
        Zhou et al., UNet++ (IEEE TMI 2020, arXiv:1912.05074), model pruning.
    """
    network = unwrap_unetplusplus(network)
    names = _class_names(network, class_labels, regions is not None)
    out_channels = network.arguments["out_channels"]
    shape = _window_shape(network, inferer, window)
    device = next(network.parameters()).device
    if precisions is None:
        precisions = [kernels.precision_of(device, amp, amp_kwargs)]
    autocasts = {name: kernels.in_precision(name, device) for name in precisions}
    postprocessing = postprocessing or default_postprocessing(out_channels, regions)
    levels = range(1, network.depth + 1)
    keys = [(name, k) for name in autocasts for k in levels]
    cases: dict[tuple[str, int], list[Tensor]] = {key: [] for key in keys}  # (metrics, classes) each
    paths: list[str] = []
    with evaluating(network), torch.no_grad():
        for batch in _with_progress(data, progress):
            for name, autocast in autocasts.items():
                with autocast():
                    heads = inferer(batch["image"].to(device), network.all_heads)
                heads = [heads] if isinstance(heads, Tensor) else heads  # MONAI unpacks a list of one head
                for k, head in zip(levels, reversed(heads), strict=True):
                    for item in decollate_batch({**batch, "pred": head.float()}):
                        first = (name, k) == keys[0]
                        cases[name, k].append(score_case(postprocessing(item), surface_tolerance, first))
                        paths += [case_name(item, f"case {len(paths) + 1}")] if first else []
        check_scored(cases[keys[0]])
        costs = level_costs(network, shape, autocasts, rounds)
    return [
        LevelScore(
            level=k,
            precision=name,
            cases=tuple(paths),
            **mean_scores(cases[name, k], names),
            **costs[name, k],
        )
        for name, k in keys
    ]


def _class_names(network: UNetPlusPlus, class_labels: Sequence[str] | None, overlap: bool) -> list[str]:
    """Return the names of the classes without the background, for a network that has levels to compare."""
    if not network.deep_supervision:
        raise ValueError(
            f"network has deep_supervision off: no head but that of L{network.depth} was ever trained, so "
            "there are no levels to compare. Train with deep_supervision=True."
        )
    out_channels = network.arguments["out_channels"]
    classes = out_channels if overlap else max(out_channels - 1, 1)
    names = list(class_labels or (f"class_{n}" for n in range(1, classes + 1)))
    if len(names) != classes:
        raise ValueError(
            f"class_labels must name the {classes} classes of out_channels = {out_channels}, without the "
            f"background, got {names}."
        )
    return names


def level_costs(
    network: UNetPlusPlus, shape: tuple[int, ...], autocasts: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the cost of a :class:`LevelScore` for each precision and level, on a window of ``shape``."""
    device = next(network.parameters()).device
    x = torch.rand(shape, device=device)
    levels = range(1, network.depth + 1)
    jobs = {
        (name, k): partial(_forward, network, k, x, autocast)
        for name, autocast in autocasts.items()
        for k in levels
    }
    seconds = interleaved(jobs, rounds, device)
    pruned = {k: prune(network, k) for k in levels}
    parameters = {k: sum(p.numel() for p in net.parameters()) for k, net in pruned.items()}
    work = {k: multiply_adds(net, shape) for k, net in pruned.items()}
    return {
        (name, k): {
            "parameters": parameters[k],
            "multiply_adds": work[k],
            "seconds": statistics.median(seconds[name, k]),
            "peak_mib": peak_memory(job, device),
        }
        for (name, k), job in jobs.items()
    }


def _window_shape(
    network: UNetPlusPlus, inferer: Callable[..., Any], window: Sequence[int] | None
) -> tuple[int, ...]:
    """Return the shape (1, C, *spatial) of the window to measure costs on."""
    size = getattr(inferer, "roi_size", None) if window is None else window
    size = [size] * network.spatial_dims if isinstance(size, int) else list(size or [])
    if len(size) != network.spatial_dims or any(not isinstance(n, int) or n < 1 for n in size):
        raise ValueError(
            f"window must be given, {network.spatial_dims} positive ints: the size of the network's windows, "
            f"which the inferer's roi_size does not tell, got {size}."
        )
    return (1, network.in_channels, *size)


@contextmanager
def evaluating(network: UNetPlusPlus) -> Iterator[None]:
    """Set evaluation mode for the time of a block; mode and level are restored."""
    training, level = network.training, network.level
    network.eval()
    try:
        yield
    finally:
        network.level = level
        network.train(training)


def _with_progress(data: Iterable[Mapping[str, Any]], progress: bool) -> Iterable[Mapping[str, Any]]:
    if not progress:
        return data
    from tqdm import tqdm  # type: ignore[import-untyped]

    total = len(data) if isinstance(data, Sized) else None
    return tqdm(data, desc="Scoring levels", total=total, disable=None)  # none in a log file


def _forward(network: UNetPlusPlus, level: int, x: Tensor, autocast: Callable[[], Any]) -> None:
    network.level = level
    with torch.inference_mode(), autocast():
        network(x)
