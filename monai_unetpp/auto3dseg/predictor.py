# SPDX-License-Identifier: Apache-2.0
"""Probabilities of all classes on the grid of the file, which the ensembles of Auto3DSeg average."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from monai_unetpp.files import PathLike
from monai_unetpp.inferers.file_grid import FileGrid
from monai_unetpp.inferers.slabs import slabs
from monai_unetpp.inferers.windows import FlatOnce
from monai_unetpp.segment import load_pipeline

__all__ = ["BundlePredictor"]

SETTINGS = ("level", "precision")  # of the pipeline, among the parameters of a prediction


class BundlePredictor:
    """Predict by a trained bundle of :class:`~monai_unetpp.auto3dseg.UnetplusplusAlgo`.

    Args:
        folder: Folder of the algorithm, with the bundle in ``bundle``.
        parameters: ``level`` and ``precision`` are those of :func:`~monai_unetpp.segment.load_pipeline`;
            Auto3DSeg also passes what is of its own, and ``rank``, the number of the process, which takes
            the GPU of that number.
    """

    def __init__(self, folder: PathLike, **parameters: Any) -> None:
        settings = {key: parameters[key] for key in SETTINGS if key in parameters}
        folder = Path(folder)
        if torch.cuda.is_available():
            gpu = int(parameters.get("rank", 0)) % torch.cuda.device_count()
            settings["device"] = f"$torch.device('cuda', {gpu})"
        self.pipeline = load_pipeline(folder / "bundle", folder, folder, **{"level": "auto", **settings})

    @torch.no_grad()
    def infer(self, image_file: Mapping[str, Any] | PathLike) -> MetaTensor:
        """Return the probabilities (K, *spatial) of all classes, float32, on the grid of the file.

        Args:
            image_file: Path of the image, alone or as ``"image"``.
        """
        path = image_file["image"] if isinstance(image_file, Mapping) else image_file
        run = self.pipeline
        image: MetaTensor = run.preprocessing({"image": str(path)})["image"]
        affine = torch.as_tensor(image.meta["original_affine"]).reshape(4, 4)
        size = torch.as_tensor(image.meta["spatial_shape"]).flatten().tolist()
        grid = FileGrid(image.affine.reshape(4, 4), image.shape[1:], affine, size)
        volume = image.as_tensor()[None].to(run.device)
        network = FlatOnce(partial(_in_precision, run.network, run.autocast))
        logits = slabs(run.inferer.inferer, volume, network)
        found = torch.zeros(run.classes, *size)
        for part in grid.resample(torch.softmax(slab[0].float(), 0) for slab in logits):
            maps = part.maps.float().cpu()
            maps.masked_fill_(part.unseen.cpu(), 0)[0].masked_fill_(part.unseen.cpu(), 1)  # background
            found.index_copy_(part.axis + 1, part.numbers, maps)
        # no channels in the file, as LoadImage writes it: MONAI's SaveImage counts the axes of space by it
        return MetaTensor(found, meta={**image.meta, "affine": affine, "original_channel_dim": float("nan")})


def _in_precision(network: nn.Module, autocast: Any, windows: Tensor) -> Tensor:
    with autocast():
        found: Tensor = network(windows)
    return found
