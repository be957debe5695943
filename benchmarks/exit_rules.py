# SPDX-License-Identifier: Apache-2.0
"""When is a window certain enough? Rules for early exit: how much Dice each loses at which speed.

All heads of all windows of the held-out cases of a bundle are computed once. Every rule then gives each
window a number per level, and windows stop at the first level whose number is at most a threshold; thresholds
are percentiles of the numbers. Speed is by multiply-adds, relative to the deepest level everywhere.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from held_out import held_out
from monai.data import decollate_batch
from monai.inferers import sliding_window_inference
from torch import Tensor

from monai_unetpp import load_network, prune
from monai_unetpp.files import write_csv
from monai_unetpp.inferers.windows import CHANGED, FIRST
from monai_unetpp.levels.calibration import case_dice
from monai_unetpp.levels.cost import multiply_adds

PERCENTILES = range(5, 100, 5)


def uncertain(heads: Tensor) -> Tensor:
    """Uncertainty of the likeliest class of each voxel: (levels, K, *window) to (levels, voxels)."""
    return 1 - heads.softmax(dim=1).amax(dim=1).flatten(start_dim=1)


def changed(heads: Tensor) -> Tensor:
    """Share of voxels whose class differs from that of the previous level; L1 has none and never stops."""
    labels = heads.argmax(dim=1).flatten(start_dim=1)
    return torch.cat([torch.tensor([torch.inf]), (labels[1:] != labels[:-1]).float().mean(dim=1)])


def confident(heads: Tensor) -> Tensor:
    """Return the least threshold at which ``EarlyExitInferer`` stops at each level."""
    uncertainty = uncertain(heads).mean(dim=1)
    least = torch.maximum(uncertainty, changed(heads) / CHANGED)
    least[0] = uncertainty[0] / FIRST
    return least


RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "EarlyExitInferer": confident,
    "mean uncertainty": lambda heads: uncertain(heads).mean(dim=1),
    "uncertainty of the least certain voxel": lambda heads: uncertain(heads).amax(dim=1),
    "share of voxels with an uncertainty over 0.1": lambda heads: (
        (uncertain(heads) > 0.1).float().mean(dim=1)
    ),
    "voxels expected wrong over found": lambda heads: (
        uncertain(heads).sum(dim=1) / ((1 - heads.softmax(dim=1)[:, 0]).flatten(start_dim=1).sum(dim=1) + 100)
    ),
    "share of voxels that changed": changed,
}


def main() -> None:
    """Parse arguments, measure and write."""
    args, get = held_out(__doc__)
    network = load_network(get("network"), args.checkpoint, device=get("device"))
    inferer, post = get("validate#inferer"), get("validate#postprocessing")
    depth, window = network.depth, tuple(get("roi_size"))
    work = np.array([multiply_adds(prune(network, k), (1, 1, *window)) for k in range(1, depth + 1)])
    numbers: list[dict[str, Tensor]] = []
    kept: list[Tensor] = []  # logits of all levels, window by window
    batches = list(get("validate#dataloader"))
    settings = {
        "roi_size": window,
        "sw_batch_size": 1,
        "overlap": inferer.overlap,
        "mode": inferer.mode,
    }

    def look(x: Tensor) -> Tensor:
        heads = torch.cat(network.all_heads(x)[::-1])
        kept.append(heads.half())
        numbers.append({rule: number(heads) for rule, number in RULES.items()})
        return heads[-1:]

    def dice(exits: list[int]) -> float:
        """Mean Dice if the windows stop at these levels; 0 is the shallowest."""
        left, scores = iter([heads[k][None].float() for heads, k in zip(kept, exits, strict=True)]), []
        for batch in batches:
            logits = sliding_window_inference(batch["image"], predictor=lambda _: next(left), **settings)
            scores += [case_dice(post(item)) for item in decollate_batch({**batch, "pred": logits})]
        return float(torch.stack(scores).nanmean())

    with torch.no_grad():
        for batch in batches:
            sliding_window_inference(batch["image"], predictor=look, **settings)
    full = dice([depth - 1] * len(numbers))
    rows = []
    for rule in RULES:
        found = torch.stack([n[rule] for n in numbers])[:, :-1]  # (windows, levels to stop at)
        seen = set()
        for percentile in PERCENTILES:
            threshold = float(np.percentile(found[found.isfinite()], percentile))
            stops = torch.cat([found <= threshold, torch.ones(len(found), 1, dtype=torch.bool)], dim=1)
            exits = stops.int().argmax(dim=1).tolist()
            speed = round(float(work[-1] / work[exits].mean()), 2)
            if speed in seen:
                continue
            seen.add(speed)
            stops = np.bincount(exits, minlength=depth)
            rows.append(
                {
                    "rule": rule,
                    "threshold": f"{threshold:.5f}",
                    "speed": speed,
                    "loss": round(full - dice(exits), 4),
                    "dice": round(full, 4),
                    "exits": " ".join(map(str, stops)),
                }
            )
            print(rows[-1])  # noqa: T201
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
