# SPDX-License-Identifier: Apache-2.0
"""What the tests of the bundles share: spheres in the layout of the Decathlon, and workflows made small.

Every workflow gets a ``bundle_root`` of its own, so that nothing is written into the repository.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from torch import Tensor, nn

from monai_unetpp.data.decathlon import Case, write_decathlon

BUNDLES = Path(__file__).parents[1] / "bundles"
SIZE = (32, 28, 24)
LABELS = {"0": "background", "1": "ball", "2": "pip"}
OUTSIDE, BALL, PIP = -100, 220, 120  # HU

# small, quick and on the CPU, whatever the defaults of the bundle are
TINY = {
    "device": "$torch.device('cpu')",
    "channels": [4, 8],
    "pixdim": [4.0, 4.0, 4.0],
    "hu_range": [-150, 250],
    "roi_size": [16, 16, 16],
}
DEEP = [4, 6, 8]  # channels of a network of two levels
TINY_PLAN = {  # settings that are given to a plan, of a network that trains in seconds
    "roi_size": [16, 16, 16],
    "channels": [4, 6, 8],
    "batch_size": 2,
    "max_epochs": 2,
    "learning_rate": 0.02,
}
TINY_TRAINING = {
    **TINY,
    "max_epochs": 2,
    "learning_rate": 0.02,
    "val_interval": 1,
    "batch_size": 2,
    "patches_per_case": 2,
    "val_fraction": 0.25,
    "num_workers": 0,
    "cache_rate": 1.0,
}


def config(bundle: str, name: str) -> dict[str, Any]:
    """A JSON of a bundle, as it stands."""
    return json.loads((BUNDLES / bundle / f"{name}.json").read_text())


def workflow(bundle: str, names: str, root: Path, **override: Any) -> ConfigWorkflow:
    """The JSONs ``names``, merged in this order, with ``root`` as the folder to write into."""
    return ConfigWorkflow(
        [str(BUNDLES / bundle / f"{name}.json") for name in names.split()],
        logging_file=False,
        workflow_type="infer" if names.startswith("inference") else "train",
        **{"bundle_root": str(root), **override},
    )


def run(bundle: str, names: str, root: Path, **override: Any) -> ConfigWorkflow:
    """Run a small workflow to its end."""
    defaults = TINY if names.startswith("inference") else TINY_TRAINING
    flow = workflow(bundle, names, root, **{**defaults, **override})
    flow.initialize()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", sys.path[:])  # the workflow adds its folder
        flow.run()
    return flow


def schema():
    """The mandatory keys of the MONAI Bundle Specification, and those of its schema of 2024-07-25."""
    text, words = (
        {"type": "string", "minLength": 1},
        {"type": "object", "additionalProperties": {"type": "string"}},
    )
    size = {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string"}]}
    tensor = {
        "type": {"enum": ["image", "series", "tuples", "probabilities"]},
        "format": text,
        "num_channels": {"type": "integer", "minimum": 1},
        "spatial_shape": {"type": "array", "items": size, "minItems": 1, "maxItems": 3},
        "dtype": text,
        "value_range": {"type": "array", "items": {"type": "number"}, "maxItems": 2},
        "is_patch_data": {"type": "boolean"},
        "channel_def": words,
    }
    tensors = {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": {
            "type": "object",
            "properties": {**tensor, "modality": text},
            "required": list(tensor),
        },
    }
    data_format = {"inputs": tensors, "outputs": tensors}
    version = {"type": "string", "pattern": r"^\d+\.\d+\.\d+"}
    top = {
        **dict.fromkeys(["name", "schema", "task", "description", "authors", "copyright"], text),
        **dict.fromkeys(["version", "monai_version", "pytorch_version", "numpy_version"], version),
        **dict.fromkeys(["changelog", "required_packages_version"], words),
        "network_data_format": {"type": "object", "properties": data_format, "required": list(data_format)},
    }
    return {"type": "object", "properties": top, "required": list(top)}


# Errors


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception, and those that it was raised from: MONAI wraps what a transform or a handler raises."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def raises_within(kind: type[Exception], match: str) -> Iterator[None]:
    """Like ``pytest.raises``, but the exception may be the cause of the one that arrives."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  the kind is looked at below
        yield
    found = [error for error in causes(caught.value) if isinstance(error, kind)]
    messages = "\n".join(f"{type(error).__name__}: {error}" for error in causes(caught.value))
    assert any(re.search(match, str(error)) for error in found), (
        f"no {kind.__name__} {match!r} in\n{messages}"
    )


# Data


def rotation(degrees: float, axis: int) -> np.ndarray:
    """(3, 3), about one axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.eye(3)
    i, j = [k for k in range(3) if k != axis]
    turn[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
    return turn


def affine(axcodes: str = "RAS", spacing: Iterable[float] = (4, 4, 4), turn: float = 0.0) -> np.ndarray:
    """Voxel index to world mm, turned about two axes by ``turn`` degrees, away from the origin."""
    matrix = np.eye(4)
    axes = nib.orientations.axcodes2ornt(axcodes)
    signed = np.zeros((3, 3))
    for column, (axis, sign) in enumerate(axes):
        signed[int(axis), column] = sign
    matrix[:3, :3] = rotation(turn, 2) @ rotation(turn / 2, 0) @ signed @ np.diag(tuple(spacing))
    matrix[:3, 3] = 30, -50, -400
    return matrix


AFFINES = {
    "RAS": affine(),
    "LPS": affine("LPS"),
    "PSR": affine("PSR"),
    "oblique": affine("LPS", turn=20),
}


def ball(
    name: str,
    matrix: np.ndarray,
    size: tuple[int, int, int] = SIZE,
    radius: float = 36.0,
    centre: tuple[float, float, float] = (0.5, 0.5, 0.5),
    noise: float = 15.0,
) -> Case:
    """A bright ball, ``radius`` mm, with a darker one in it; centre as a fraction of the volume."""
    rng = np.random.default_rng(sum(name.encode()))
    grid = np.moveaxis(np.indices(size), 0, -1)
    world = nib.affines.apply_affine(matrix, grid)
    middle = nib.affines.apply_affine(matrix, np.array(centre) * (np.array(size) - 1))
    label = (np.linalg.norm(world - middle, axis=-1) < radius).astype(np.uint8)
    label[np.linalg.norm(world - middle - radius / 3, axis=-1) < radius / 3] = 2
    image = np.array([OUTSIDE, BALL, PIP])[label] + rng.normal(0, noise, size)
    return Case(name, image.round().astype(np.int16), label, matrix)


def write_cases(directory: Path, cases: Iterable[Case], labels: dict[str, str] = LABELS) -> Path:
    """Write a data set; returns ``directory``."""
    cases = list(cases)
    write_decathlon(
        directory, cases, total=len(cases), name="Balls", description="A ball in each.", labels=labels
    )
    return directory


def write_balls(directory: Path) -> Path:
    """Write four cases, stored differently; returns ``directory``."""
    return write_cases(directory, (ball(name, matrix) for name, matrix in AFFINES.items()))


class Threshold(nn.Module):
    """A network that needs no training: class 1 where the input, in [0, 1], is above one half.

    Made by the bundle in place of its own network, so that all that happens before and after is tested.
    """

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, *spatial) to logits (B, out_channels, *spatial)."""
        logits = torch.full((len(x), self.out_channels, *x.shape[2:]), -1000.0)
        logits[:, 0], logits[:, 1] = 0, 100 * (x[:, 0] - 0.5)
        return logits


class Payload:
    """Code in a pickle: whoever loads it leaves a file behind."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        """What ``pickle.load`` calls."""
        return Path.touch, (self.marker,)
