# SPDX-License-Identifier: Apache-2.0
"""How it is trained: which patches, how they are varied, how long."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from itertools import pairwise

from monai_unetpp.data import split_cases
from monai_unetpp.network import UNetPlusPlus
from monai_unetpp.planning.budget import relative_costs, step_multiply_adds
from monai_unetpp.planning.choices import Choices, Machine
from monai_unetpp.planning.fingerprint import Fingerprint
from monai_unetpp.planning.images import median_size, target_diameter
from monai_unetpp.planning.measuring import CaseFacts
from monai_unetpp.planning.patches import network_of

__all__ = ["choose_sampling", "choose_schedule", "mean_cost"]

MAX_SHIFTED_SHARE = 0.2  # diameter of a target over the patch, from which patches are shifted
MAX_SHIFT_VOXELS = 16  # voxels
VALIDATIONS = 20
VALIDATION_SHARE = 0.1  # of the time, for validation
VALIDATION_OVERLAP = 0.25  # of windows in validation
FORWARD_SHARE = 1 / 3  # of the time of a step
EPOCH_SECONDS = 2.0  # for checkpoints and metrics
LOADING_FACTOR = 1.25  # time of a step with the loading of its patches, of that without
AUGMENTED_VIEWS = 15  # of each case, from which patches are rotated, scaled, and changed in contrast
OPTIMIZERS = {
    "cpu": ("monai_unetpp.Muon", "learns faster than AdamW in equally many steps (measured)"),
    "cuda": ("torch.optim.AdamW", "as the bundles that ship; Muon was not measured on a GPU"),
}
DECAYS = {
    "cpu": (0.998, "the average of the weights has the Dice of the end in half of the time (measured)"),
    "cuda": (0.0, "the weights of the last step; their average was not measured on a GPU"),
}
MUON_RATE = 0.01  # as in benchmarks/study.py
RATE = 0.003  # of the bundles that ship
GROWN_VIEWS = 15  # of each image by all levels, from which shallow levels are trained first
MIRRORED_VIEWS = 50  # of each case, from which patches are mirrored
MIN_LARGEST_SHARE = 0.995  # of the foreground in its largest component, from which others are left out
SIDES = (  # words in names of classes that mirroring along each axis makes wrong
    ("left", "right", "l", "r", "lh", "rh", "links", "rechts", "gauche", "droite", "droit"),
    ("anterior", "posterior", "ventral", "dorsal", "front", "back"),
    ("superior", "inferior", "upper", "lower", "cranial", "caudal", "top", "bottom"),
)
WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")  # of kidney_left, Left-Hippocampus, LeftKidney


def choose_schedule(choose: Choices, fingerprint: Fingerprint, machine: Machine) -> None:
    """Choose epochs for the stated time, of which validation takes a tenth; and how cases are loaded."""
    cases, dims = fingerprint.cases, choose["spatial_dims"]
    size = median_size(cases, choose["pixdim"])
    around = "cut around each class equally often; of a class that a case lacks, around the others"
    choose.make("patches_per_case", lambda: (1, around))
    choose.make("val_fraction", lambda: (0.2, "a fifth, by scan"))
    pairs = [{"image": case.image, **({"scan": case.scan} if case.scan else {})} for case in cases]
    train, held_out = split_cases(pairs, choose["val_fraction"], seed=0)
    batch, roi, seconds = choose["batch_size"], choose["roi_size"], machine.hours * 3600
    net = network_of(choose, choose["channels"], choose["strides"], choose["kernel_size"])
    patch = LOADING_FACTOR * step_multiply_adds(net, roi[:dims], 1) / machine.speed  # s
    patches = len(train) * choose["patches_per_case"]  # of an epoch
    longest = choose.given.get(
        "max_epochs", seconds / (EPOCH_SECONDS + patch * patches)
    )  # all levels, always
    views = longest * choose["patches_per_case"] / _slices(choose, fingerprint)
    diameter = target_diameter(fingerprint, choose["pixdim"], dims)
    growth = choose.make("growth", lambda: _growth(net, diameter, views))
    trained = patch * mean_cost(relative_costs(net, roi[:dims]), growth or [])  # s, mean over the epochs
    epoch = EPOCH_SECONDS + trained * patches
    windows = math.prod(
        max(1, math.ceil((n / p - VALIDATION_OVERLAP) / (1 - VALIDATION_OVERLAP)))
        for n, p in zip(size, roi, strict=True)
    )
    validation = patch * FORWARD_SHARE * windows * len(held_out)
    most = choose.given.get("max_epochs", max(1, math.floor(seconds / epoch)))
    interval = max(math.ceil(most / VALIDATIONS), math.ceil(most * validation / (VALIDATION_SHARE * seconds)))
    epochs = max(1, math.floor(seconds / (epoch + validation / interval)))
    steps = math.ceil(len(train) / batch)
    step = f"a step of {batch} patches takes about {trained * batch:.2f} s, an epoch has {steps}"
    choose.make("max_epochs", lambda: (epochs, f"{machine.hours:g} h; {step}"))
    held = f"the {len(held_out)} held-out cases take about {validation:.0f} s"
    choose.make("val_interval", lambda: (min(interval, choose["max_epochs"]), held))
    choose.make("optimizer", lambda: OPTIMIZERS[machine.device])
    muon = choose["optimizer"] == OPTIMIZERS["cpu"][0]
    rate, why = (MUON_RATE, "with Muon (measured)") if muon else (RATE, "as the bundles that ship")
    choose.make("learning_rate", lambda: (rate, f"polynomial decay, {why}"))
    choose.make("average_decay", lambda: DECAYS[machine.device])
    cached = sum(_bytes(case, choose["pixdim"]) for case in cases)
    share = 1.0 if cached <= machine.cache else math.floor(100 * machine.cache / cached) / 100
    choose.make("cache_rate", lambda: (share, f"all cases take {cached / 2**30:.2f} GiB in memory"))
    choose.make("num_workers", lambda: (machine.workers, "processes that load beside the training"))


def choose_sampling(choose: Choices, fingerprint: Fingerprint) -> None:
    """Patches shifted or not; flips and rotations; whether a mask has one component."""
    dims = choose["spatial_dims"]
    patch = choose["roi_size"][:dims]
    diameter = target_diameter(fingerprint, choose["pixdim"], dims)
    tiny = diameter < MAX_SHIFTED_SHARE * max(patch)
    wide = f"the median target is {diameter:.0f} voxels wide"
    shift = [min(MAX_SHIFT_VOXELS, n // 2) for n in patch] if tiny else None
    why = "it must not be learnt that it is in the middle" if tiny else "not small beside the patch"
    choose.make("shift", lambda: (shift, f"{wide}: {why}"))
    views = round(choose["max_epochs"] * choose["patches_per_case"] / _slices(choose, fingerprint))
    choose.make("flip_axes", lambda: _flip_axes(dims, fingerprint.labels, views))
    thick = [axis for axis in range(dims) if choose["kernel_size"][0][axis] == 1]
    rotate = [0.3] if dims == 2 else [0.26 if thick in ([], [axis]) else 0.0 for axis in range(3)]
    within = ", within thick slices alone" if thick and dims == 3 else ""
    choose.make("rotate_range", lambda: (rotate, f"radians{within}"))
    choose.make("augmentation_prob", lambda: _augmentation_prob(views))
    choose.make("largest_component", lambda: _largest_component(fingerprint, tiny))


def _slices(choose: Choices, fingerprint: Fingerprint) -> int:
    """Return how many images a case has, of which a patch shows one: its slices, in two dimensions."""
    return median_size(fingerprint.cases, choose["pixdim"])[2] if choose["spatial_dims"] == 2 else 1


def _growth(net: UNetPlusPlus, diameter: float, views: float) -> tuple[list[float] | None, str]:
    """Return the shares of the epochs after which a level is added, as many epochs for each.

    ``views`` is how often each image would be seen by all levels.
    """
    levels, sees = net.depth, min(net.spec.receptive_field(1))
    if net.skips == "long":
        return None, "all levels from the first epoch on: a decoder that begins later begins from nothing"
    both = f"a voxel of L1 sees {sees} voxels, the median target is {diameter:.0f} wide"
    if levels == 1 or sees < diameter:
        return None, f"{both}: all levels from the first epoch on"
    if views < GROWN_VIEWS:
        return None, f"each image is seen {views:.0f} times, too few for the deepest level to begin later"
    return [
        round(n / levels, 2) for n in range(1, levels)
    ], f"{both}: L1 first, then one level more each time"


def mean_cost(costs: Sequence[float], growth: Sequence[float]) -> float:
    """Return the mean cost of an epoch, of that of one with all levels."""
    shares = [b - a for a, b in pairwise([0.0, *growth, 1.0])]
    if min(shares) <= 0 or len(shares) > len(costs):
        raise ValueError(
            f"growth must be at most {len(costs) - 1} shares of the epochs, which increase between 0 and 1, "
            f"such as {[round(n / len(costs), 2) for n in range(1, len(costs))]}, got {list(growth)}."
        )
    return sum(share * cost for share, cost in zip(shares, costs[-len(shares) :], strict=True))


def _augmentation_prob(views: int) -> tuple[float, str]:
    """Return the share of patches that are rotated, scaled, and changed in contrast."""
    seen = f"a training sees each image {views} times"
    if views < AUGMENTED_VIEWS:
        return 0.0, f"{seen}, too few to learn it by heart: fewer than {AUGMENTED_VIEWS}"
    return 0.3, f"rotated and scaled, and as many changed in contrast; {seen}"


def _flip_axes(dims: int, labels: Sequence[str], views: int) -> tuple[list[int], str]:
    """Return the axes along which a class does not become another when it is mirrored."""
    if views < MIRRORED_VIEWS:
        return [], f"a training sees each image {views} times, too few to learn its mirror images as well"
    words = {word.lower() for name in labels for word in WORDS.findall(name)}
    sided = {min(axis, dims - 1) for axis, names in enumerate(SIDES) if not words.isdisjoint(names)}
    axes = [axis for axis in range(dims) if axis not in sided]
    return axes, "names of classes have a side" if sided else "mirrored along each axis, p = 0.5 (Isensee)"


def _largest_component(fingerprint: Fingerprint, tiny: bool) -> tuple[bool, str]:
    share = statistics.fmean(case.largest for case in fingerprint.cases)
    one = f"on average {share:.1%} of what is segmented is one component"
    if share < MIN_LARGEST_SHARE:
        return False, one
    return not tiny, f"{one}" + ("; but so small that there may be more in a whole image" if tiny else "")


def _bytes(case: CaseFacts, pixdim: Sequence[float]) -> float:
    """Bytes of an image and its mask in float32, at the spacing of the network."""
    widths = [b if b > 0 else a for a, b in zip(case.spacing, pixdim, strict=True)]
    voxels = math.prod(n * a / b for n, a, b in zip(case.size, case.spacing, widths, strict=True))
    return 4 * (case.channels + 1) * voxels
