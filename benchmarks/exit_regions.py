# SPDX-License-Identifier: Apache-2.0
"""Early exit by region: after each level only the box of what is uncertain continues. Compared with windows.

A network of two dimensions, a volume slice by slice, each slice one window. After a level, tiles of 16 x 16
pixels whose mean uncertainty is over a threshold are uncertain; the maps of all nodes are cut to the box
around them, a halo wider, and the next diagonal is computed on what is left. Where the box ends inside of the
window the halo is thrown away. Instance norm takes the statistics of the box. The box would be exact if the
halo was as wide as the receptive field, which is wider than the window.

Speed is relative to the deepest level everywhere: by multiply-adds, proportional to the area, and by time.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from monai.transforms import (
    Compose,
    KeepLargestConnectedComponent,
    LoadImage,
    Orientation,
    Spacing,
    SpatialPad,
)
from torch import Tensor
from torch.nn import functional as F

from monai_unetpp import UNetPlusPlus, prune
from monai_unetpp.files import write_csv
from monai_unetpp.inferers import EarlyExitSliceInferer
from monai_unetpp.inferers.uncertainty import labels, probabilities
from monai_unetpp.levels.cost import multiply_adds
from monai_unetpp.network import kernels
from monai_unetpp.segment import load_pipeline

TILE = 16  # also the product of the strides of four levels
THRESHOLDS = (0.02, 0.05, 0.1, 0.2)
HALOS = (0, 16, 32)


def by_region(net: UNetPlusPlus, x: Tensor, threshold: float, halo: int) -> tuple[Tensor, list[float]]:
    """Return the logits of a slice (1, 1, H, W), and the share of it that was computed at each level."""
    image = kernels.enter(x)
    maps = [[net.encoder[0](image)]]
    top, left, height, width = 0, 0, x.shape[2], x.shape[3]  # of the box, in the window
    result, shares = None, []
    for k in range(1, net.depth + 1):
        net._add_to_encoder(maps, image, k)
        net._add_diagonal(maps, k, False)
        logits = net._head(maps[0][-1], k)
        shares.append(height * width / x[0, 0].numel())
        if result is None:
            result = logits.clone()
        else:
            a, b = halo * (top > 0), height - halo * (top + height < x.shape[2])
            c, d = halo * (left > 0), width - halo * (left + width < x.shape[3])
            result[:, :, top + a : top + b, left + c : left + d] = logits[:, :, a:b, c:d]
        p = probabilities(logits)
        uncertainty = 1 - (torch.maximum(p, 1 - p) if p.shape[1] == 1 else p.amax(1, keepdim=True))
        tiles = F.avg_pool2d(uncertainty, TILE)[0, 0] > threshold
        if k == net.depth or not tiles.any():
            break
        rows, columns = (_span(tiles.any(axis), halo) for axis in (1, 0))
        maps = [[y[:, :, _cut(rows, i), _cut(columns, i)] for y in row] for i, row in enumerate(maps)]
        top, left = top + rows.start, left + columns.start
        height, width = rows.stop - rows.start, columns.stop - columns.start
    return result, shares


def wanted(net: UNetPlusPlus, volume: Tensor, halo: int) -> list[float]:
    """Return the mean share of the slices that each level computes if the answer of the deepest is known."""
    shares = torch.zeros(net.depth)
    for z in range(volume.shape[-1]):
        found = [labels(head) for head in reversed(net.all_heads(volume[None, ..., z]))]
        shares[0] += 1
        for k, level in enumerate(found[:-1], 1):
            tiles = F.max_pool2d((level != found[-1]).float(), TILE)[0] > 0
            if not tiles.any():
                break
            rows, columns = (_span(tiles.any(axis), halo) for axis in (1, 0))
            shares[k] += (rows.stop - rows.start) * (columns.stop - columns.start) / level.numel()
    return (shares / volume.shape[-1]).tolist()


def _span(uncertain: Tensor, halo: int) -> slice:
    """Return the pixels from the first to the last uncertain tile, and a halo, in at least two tiles."""
    n, found = len(uncertain), uncertain.nonzero()[:, 0]
    start, stop = max(0, int(found[0]) - halo // TILE), min(n, int(found[-1]) + 1 + halo // TILE)
    if stop - start < 2:
        start, stop = (start, stop + 1) if stop < n else (start - 1, stop)
    return slice(start * TILE, stop * TILE)


def _cut(pixels: slice, row: int) -> slice:
    return slice(pixels.start >> row, pixels.stop >> row)


def main() -> None:
    """Parse arguments, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--overlays", nargs="*", default=[], help="JSONs merged over inference.json")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--label", type=Path, required=True, help="on the grid of the image")
    parser.add_argument("--foreground", type=int, default=1, help="value of the label that is class 1")
    parser.add_argument(
        "--windows", type=float, nargs="*", default=[0.007, 0.01], help="thresholds of early exit"
    )
    parser.add_argument("--out", type=Path, required=True, help="CSV")
    args = parser.parse_args()
    pipeline = load_pipeline(args.bundle, args.image, "unused", args.overlays, ckpt_path=str(args.checkpoint))
    net, size = pipeline.network, pipeline.inferer.inferer.roi_size
    volume = pipeline.preprocessing({"image": str(args.image)})["image"]
    place = Compose([Orientation("RAS", labels=None), Spacing(pipeline.pixdim, mode="nearest")])
    label = place(LoadImage(ensure_channel_first=True)(args.label))
    pad = SpatialPad((*size, -1))
    volume, label = pad(volume).as_tensor(), pad(label).as_tensor()
    truth = label[0] == args.foreground
    largest = KeepLargestConnectedComponent()
    window = (1, 1, *volume.shape[1:3])
    work = [multiply_adds(prune(net, k), window) for k in range(1, net.depth + 1)]
    steps = [b - a for a, b in zip([0, *work], work, strict=False)]

    def measure(name: str, threshold: float, halo: int | None) -> None:
        started, done, found = time.perf_counter(), 0.0, []
        early = EarlyExitSliceInferer(threshold, roi_size=size, spatial_dim=2)
        for z in range(volume.shape[-1]):
            if halo is None:
                logits = early(volume[None, ..., z : z + 1], net)[..., 0]
            else:
                logits, shares = by_region(net, volume[None, ..., z], threshold, halo)
                done += sum(step * share for step, share in zip(steps, shares, strict=False))
            found.append(labels(logits)[0] == 1)
        if halo is None:
            done = sum(n * w for n, w in zip(early.exits, work, strict=True))
        seconds = time.perf_counter() - started
        mask = largest(torch.stack(found, -1)[None].float())[0] > 0
        dice = float(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
        rows.append({"exit": name, "threshold": threshold, "halo": halo, "dice": round(dice, 4)})
        rows[-1]["loss"] = round(rows[0]["dice"] - dice, 4)
        rows[-1]["speed by multiply-adds"] = round(work[-1] * volume.shape[-1] / done, 2)
        rows[-1]["seconds"] = round(seconds, 1)
        rows[-1]["speed by time"] = round(rows[0]["seconds"] / seconds, 2)
        print(rows[-1])  # noqa: T201

    rows: list[dict[str, object]] = []
    with torch.inference_mode():
        for halo in HALOS:
            shares = wanted(net, volume, halo)
            speed = work[-1] / sum(step * share for step, share in zip(steps, shares, strict=True))
            share = " ".join(f"{s:.2f}" for s in shares)
            print(f"if L{net.depth} was known, halo {halo}: shares {share}, speed {speed:.2f}")  # noqa: T201
        measure("none", 0.0, None)
        for threshold in args.windows:
            measure("window", threshold, None)
        for halo in HALOS:
            for threshold in THRESHOLDS:
                measure("region", threshold, halo)
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
