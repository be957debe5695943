# SPDX-License-Identifier: Apache-2.0
"""What to put outside of a tight box, tried on cubes, of which it is known what is there.

python benchmarks/box_padding.py --configs bundles/lung_nodule/train.json bundles/lung_nodule/lidc.json \
    --dataset_dir lidc_nodules --set resampled '["image", "label"]' \
    --checkpoint bundles/lung_nodule/weights/model.pt --held_out NAMES \
    --out benchmarks/results/box_padding.csv

From the middle of each cube a window as large as a patch is cut, and in it a box as those of LIDC's nodules
are: 30 mm wide and, along z, as long as the nodule. All outside of the box is replaced, and the network,
which was trained on whole cubes, sees both. The best filling changes least of what it finds inside of the
box. Some windows are drawn beside the CSV, as a PNG, in a coronal section. A box alone is scored where it is
at least 9 voxels long.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from held_out import held_out
from nodule_boxes import Fill, filled
from numpy.typing import NDArray

from monai_unetpp import load_network
from monai_unetpp.files import write_csv

WIDTH = 30  # voxels of 1 mm
TRUE = "true surroundings"
FILLS: dict[str, Fill] = {"edge": "edge", "reflect": "reflect", "lung, -850 HU": -850, "air, -1000 HU": -1000}
DRAWN = 5
SHORTEST = 9  # voxels of an axis of which the deepest row has two


ALONE = "nothing, the box alone"


def probabilities(net: Any, volume: NDArray[np.int16], low: float, high: float) -> NDArray[np.float32]:
    """Return the probability of a nodule in each voxel of a window in HU."""
    x = torch.as_tensor((volume.astype(np.float32) - low) / (high - low))[None, None].clip(0, 1)
    with torch.inference_mode():
        return net(x).softmax(1)[0, 1].numpy()


def window_and_box(label: NDArray[np.bool_], size: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the window in a cube, and the box in the window."""
    where = np.argwhere(label)
    low, high = where.min(0), where.max(0) + 1
    start = np.clip((low + high - size) // 2, 0, np.array(label.shape) - size)
    low, high = np.maximum(low - start, 0), np.minimum(high - start, size)
    for axis in (0, 1):
        middle = (low[axis] + high[axis]) // 2
        low[axis] = max(0, min(low[axis], middle - WIDTH // 2))
        high[axis] = min(size, max(high[axis], middle + WIDTH // 2))
    window = tuple(slice(int(n), int(n) + size) for n in start)
    return window, tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Return the Dice of two masks; 1 if both are empty."""
    total = int(a.sum() + b.sum())
    return 1.0 if not total else 2 * int((a & b).sum()) / total


def measured(found: NDArray[Any], true: NDArray[Any], label: NDArray[np.bool_]) -> dict[str, float]:
    """Return how far probabilities in a box are from those in its true surroundings, and from the label."""
    ends = np.zeros_like(label)
    ends[:, :, [0, -1]] = True
    return {
        "Dice with the label": dice(found > 0.5, label),
        "Dice, first and last slice": dice((found > 0.5) & ends, label & ends),
        "change of probability": float(np.abs(found - true).mean()),
        "changed, first and last slice": float(np.abs(found - true)[ends].mean()),
    }


def draw(pictures: list[dict[str, NDArray[Any]]], path: Path) -> None:
    """Draw the middle coronal section of windows: image, outline of what is found, edge of the box."""
    import matplotlib.pyplot as plt

    names = list(pictures[0])
    figure, axes = plt.subplots(len(pictures), len(names), figsize=(2 * len(names), 2 * len(pictures)))
    for row, windows in zip(axes, pictures, strict=True):
        for axis, name in zip(row, names, strict=True):
            image, found, label, low, high = windows[name]
            axis.imshow(image.T, cmap="gray", vmin=-1000, vmax=400, origin="lower")
            axis.contour(found.T, [0.5], colors="red", linewidths=0.8)
            axis.contour(label.T, [0.5], colors="lime", linewidths=0.8)
            for z in (low, high):
                axis.axhline(z - 0.5, color="yellow", linewidth=0.5)
            axis.set_title(name, fontsize=7)
            axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Parse arguments, measure, print, write and draw."""
    args, get = held_out(__doc__)
    net = load_network(get("network"), args.checkpoint, device="cpu").eval()
    low, high = get("hu_range")
    (size, *_) = get("roi_size")
    rows: dict[str, list[dict[str, float]]] = {}
    pictures = []
    for batch in get("validate#dataloader"):
        label = batch["label"][0, 0].numpy() > 0
        window, box = window_and_box(label, size)
        image = (batch["image"][0, 0].numpy()[window] * (high - low) + low).round().astype(np.int16)
        label = label[window]
        margins = [(b.start, size - b.stop) for b in box]
        images = {TRUE: image, **{name: filled(image[box], margins, fill) for name, fill in FILLS.items()}}
        probability = {name: probabilities(net, volume, low, high) for name, volume in images.items()}
        if min(image[box].shape) >= SHORTEST:
            images[ALONE] = np.full_like(image, low)
            images[ALONE][box] = image[box]
            probability[ALONE] = np.zeros_like(probability[TRUE])
            probability[ALONE][box] = probabilities(net, image[box], low, high)
        for name, volume in images.items():
            row = measured(probability[name][box], probability[TRUE][box], label[box])
            seen = volume[box] if name == ALONE else volume
            rows.setdefault(name, []).append({**row, "mean HU": seen.mean(), "SD of HU": seen.std()})
        if len(pictures) < DRAWN and ALONE in images:
            y = (box[1].start + box[1].stop) // 2
            section = {n: (v[:, y], probability[n][:, y], label[:, y]) for n, v in images.items()}
            pictures.append({n: (*parts, box[2].start, box[2].stop) for n, parts in section.items()})
    table = [
        {
            "outside of the box": name,
            "cubes": len(of),
            **{k: f"{np.mean([r[k] for r in of]):.4f}" for k in of[0]},
        }
        for name, of in rows.items()
    ]
    for row in table:
        sys.stdout.write(f"{row}\n")
    write_csv(args.out, table)
    draw(pictures, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
