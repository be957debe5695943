# SPDX-License-Identifier: Apache-2.0
"""A configuration for nnU-Net's plans whose training step takes no more memory than that of their U-Net.

A UNet++ keeps ``L + 1`` maps at full resolution where a U-Net keeps two. Both are estimated by the formula of
``monai-unetpp plan``; depth, batch and patch become smaller in this order, until the step fits.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from monai_unetpp.files import PathLike, atomic_write
from monai_unetpp.network import UNetPlusPlus
from monai_unetpp.nnunet.architecture import differences, network_arguments
from monai_unetpp.planning.budget import total_memory
from monai_unetpp.planning.images import MIN_AXIS_VOXELS
from monai_unetpp.planning.patches import MAX_LEVELS

__all__ = ["SUFFIX", "Added", "add_configuration"]

SUFFIX = "_unetpp"  # of the name of the new configuration
DEFAULTS = ("3d_fullres", "2d")
MIN_BATCH_SIZE = 2  # as in nnU-Net
PER_STAGE = ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage", "n_blocks_per_stage")
DEVICE = "cuda"  # whose mixed precision the formula counts with; the comparison is the same on a CPU

Json = dict[str, Any]


@dataclass(frozen=True)
class Added:
    """What was added to a plans file.

    Args:
        name: Name of the configuration to train with; the given one if it fits as it is.
        lines: What was done and why, line by line.
    """

    name: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class _Step:
    """A training step: the stages of the network, the patch, voxels, and the patches per step."""

    stages: int
    patch: tuple[int, ...]
    batch: int

    def __str__(self) -> str:
        return f"{self.stages} stages, patch {_by(self.patch)}, batch {self.batch}"


def add_configuration(
    path: PathLike,
    configuration: str | None = None,
    name: str | None = None,
    memory: float | None = None,
    stages: int | None = None,
    overwrite: bool = False,
) -> Added:
    """Add a configuration for a UNet++ to a plans file of nnU-Net; nothing else in the file changes.

    Args:
        path: Plans file in ``nnUNet_preprocessed/DATASET``, beside the ``dataset.json``.
        configuration: Configuration to inherit from; default ``"3d_fullres"``, or ``"2d"`` without it.
        name: Name of the new one; default ``configuration`` with ``_unetpp``.
        memory: Bytes for a training step; default what the U-Net of ``configuration`` takes.
        stages: Number of stages to keep, at least 2; default at most 5, which is the papers' L^4.
        overwrite: Whether a configuration of this name may be replaced.

    Raises:
        FileNotFoundError: if there is no such file, or no ``dataset.json`` beside it.
        FileExistsError: if the configuration exists and ``overwrite`` is false.
        ValueError: if the plans have no such configuration, it is one of a cascade, or not even the smallest
            patch fits.
    """
    path = Path(path)
    plans, heads = _read(path)
    configuration = configuration or next((c for c in DEFAULTS if c in plans["configurations"]), DEFAULTS[0])
    name = name or f"{configuration}{SUFFIX}"
    found = _resolve(plans, configuration, path)
    if found.get("previous_stage"):
        raise ValueError(
            f"configuration must be none that refines another one, {configuration} of {path} refines "
            f"{found['previous_stage']}: name 3d_fullres."
        )
    if name in plans["configurations"] and (not overwrite or name == configuration):
        raise FileExistsError(
            f"{path} has a configuration {name}, which is not overwritten: give another name or "
            "overwrite=True (--name, --overwrite)."
        )
    channels = len(plans["foreground_intensity_properties_per_channel"])
    budget = _Budget(found, channels, heads)
    step, reasons = budget.fit(memory, stages)
    lines = budget.table(configuration, step, name)
    if step == budget.theirs:
        return Added(configuration, (*lines, f"It fits as it is: {path} was not changed."))
    plans["configurations"][name] = {
        "inherits_from": configuration,
        "patch_size": list(step.patch),
        "batch_size": step.batch,
        "architecture": _architecture(found["architecture"], step.stages),
    }
    with atomic_write(path) as part:
        part.write_text(json.dumps(plans, indent=4) + "\n", encoding="utf-8")
    return Added(name, (*lines, *reasons, *differences(found["architecture"])))


class _Budget:
    """Memory of a training step, as their U-Net and as our UNet++, and what fits."""

    def __init__(self, configuration: Json, channels: int, heads: int) -> None:
        self.architecture, self.channels, self.heads = configuration["architecture"], channels, heads
        strides = self.architecture["arch_kwargs"]["strides"]
        patch = tuple(map(int, configuration["patch_size"]))
        self.theirs = _Step(len(strides), patch, int(configuration["batch_size"]))
        median = configuration.get("median_image_size_in_voxels", patch)
        self.median = [max(1.0, float(n)) for n in median][-len(patch) :]

    def memory(self, step: _Step, **kind: Any) -> float:
        """Return the bytes of a step; of their U-Net with ``skips="long"`` and without deep supervision."""
        architecture = _architecture(self.architecture, step.stages)
        arguments = network_arguments(architecture, self.channels, self.heads)
        with torch.device("meta"):
            net = UNetPlusPlus(**{**arguments, **kind})
        return total_memory(net, step.patch, step.batch, DEVICE)

    @property
    def of_theirs(self) -> float:
        return self.memory(self.theirs, skips="long", deep_supervision=False)

    def fit(self, memory: float | None, stages: int | None) -> tuple[_Step, list[str]]:
        """Return the largest step that fits, and what was made smaller, with the reasons."""
        limit, reasons, step = memory or self.of_theirs, [], self.theirs
        most = self.theirs.stages
        if stages is not None and not 2 <= stages <= most:
            raise ValueError(f"stages must be 2..{most}, those of the configuration, got {stages}.")
        kept = stages or (most if self.memory(step) <= limit else min(most, MAX_LEVELS + 1))
        if kept < most:
            why = (
                "given" if stages else f"levels beyond L{MAX_LEVELS}, the papers' depth, are the first to go"
            )
            reasons.append(f"stages {most} -> {kept}: {why}")
        step = replace(step, stages=kept)
        while self.memory(step) > limit and step.batch > MIN_BATCH_SIZE:
            step = replace(step, batch=step.batch - 1)
        if step.batch < self.theirs.batch:
            reasons.append(f"batch {self.theirs.batch} -> {step.batch}: memory")
        while self.memory(step) > limit:
            step = self._smaller(step, limit, fixed=stages is not None)
        if step.patch != self.theirs.patch:
            along = "shortened where it is longest in comparison with the median image"
            reasons.append(f"patch {_by(self.theirs.patch)} -> {_by(step.patch)}: memory; {along}")
        if step.stages < kept:
            reasons.append(f"stages {kept} -> {step.stages}: the patch leaves no room for more")
        return step, reasons

    def _smaller(self, step: _Step, limit: float, fixed: bool) -> _Step:
        """Return the step with a shorter patch, or with fewer stages where the patch cannot be shorter."""
        strides = self.architecture["arch_kwargs"]["strides"][: step.stages]
        factors = [math.prod(int(row[axis]) for row in strides) for axis in range(len(step.patch))]
        least = [MIN_AXIS_VOXELS * factor for factor in factors]
        able = [a for a, n in enumerate(step.patch) if n - factors[a] >= least[a] and factors[a] > 1]
        if able:
            axis = max(able, key=lambda a: (step.patch[a] / self.median[a], step.patch[a]))
            patch = list(step.patch)
            patch[axis] -= factors[axis]
            return replace(step, patch=tuple(patch))
        if fixed or step.stages == 2:
            raise ValueError(
                f"memory must be at least {self.memory(step) / 2**30:.2f}GB for {step}, got "
                f"{limit / 2**30:.2f}GB: give more, or fewer stages (--memory, --stages)."
            )
        return replace(step, stages=step.stages - 1)

    def table(self, configuration: str, step: _Step, name: str) -> list[str]:
        """Return the memory of their network, of ours in its place, and of what was chosen."""
        rows = [(configuration, self.theirs, "U-Net", self.of_theirs)]
        rows.append((configuration, self.theirs, "UNet++", self.memory(self.theirs)))
        if step != self.theirs:
            rows.append((name, step, "UNet++", self.memory(step)))
        width = max(len(row[0]) for row in rows)
        return [
            f"{title:{width}}  {kind:6}  {size / 2**30:6.2f} GiB  {which}"
            for title, which, kind, size in rows
        ]


def _read(path: Path) -> tuple[Json, int]:
    """Return the plans, and the number of heads that the labels in the dataset.json beside them require."""
    plans, dataset = _json(path), _json(path.with_name("dataset.json"))
    for key in ("configurations", "foreground_intensity_properties_per_channel"):
        if key not in plans:
            raise ValueError(f"{path} must be a plans file of nnU-Net v2, which has {key}.")
    labels = {name: value for name, value in dataset.get("labels", {}).items() if name != "ignore"}
    regions = any(isinstance(value, list) and len(value) > 1 for value in labels.values())
    heads = len(labels) - regions  # the background is no region
    if heads < 1:
        raise ValueError(f"{path.with_name('dataset.json')} must have labels, got {dataset.get('labels')}.")
    return plans, heads


def _json(path: Path) -> Json:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        where = "nnUNetv2_plan_and_preprocess writes it into nnUNet_preprocessed/DATASET"
        raise FileNotFoundError(f"there is no {path}: {where}.") from None
    except ValueError as error:
        raise ValueError(f"{path} must be JSON: {error}.") from error


def _resolve(plans: Json, name: str, path: Path) -> Json:
    """Return a configuration with what it inherits."""
    known = plans["configurations"]
    seen: list[str] = []
    merged: Json = {}
    while True:
        if name not in known or name in seen:
            wanted = ", ".join(known)
            raise ValueError(f"configuration must be one of {path}: {wanted}, got {name}.")
        seen.append(name)
        merged = {**known[name], **merged}
        if "inherits_from" not in known[name]:
            break
        name = known[name]["inherits_from"]
    if "arch_kwargs" not in merged.get("architecture", {}):
        raise ValueError(
            f"{path} must be of nnU-Net 2.4 or newer, with architecture: plan the data set again."
        )
    return merged


def _architecture(architecture: Mapping[str, Any], stages: int) -> Json:
    """Return the architecture with its first stages only."""
    made = copy.deepcopy(dict(architecture))
    kwargs = made["arch_kwargs"]
    kwargs["n_stages"] = stages
    for key in PER_STAGE:
        if isinstance(kwargs.get(key), list):
            kwargs[key] = kwargs[key][:stages]
    if isinstance(kwargs.get("n_conv_per_stage_decoder"), list):
        kwargs["n_conv_per_stage_decoder"] = kwargs["n_conv_per_stage_decoder"][: stages - 1]
    return made


def _by(patch: Sequence[int]) -> str:
    return " x ".join(map(str, patch))
