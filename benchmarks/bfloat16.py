# SPDX-License-Identifier: Apache-2.0
"""What bfloat16 costs in Dice, level by level, measured on any processor.

Torch computes bfloat16 on processors without instructions for it, a hundred times slower than float32. Here
float32 computes, and what each operator of the network takes and returns is rounded to bfloat16, the weights
too; sums inside of an operator are of float32, as they are in hardware. One window is computed by torch's own
bfloat16 as well: it should be as far from float32.
"""

from __future__ import annotations

from typing import Any

import torch
from held_out import held_out
from monai.data import decollate_batch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from monai_unetpp import UNetPlusPlus, load_network
from monai_unetpp.files import write_csv
from monai_unetpp.levels.calibration import case_dice


def rounded(x: Any) -> Any:
    """Return a tensor of float32 with the numbers that bfloat16 has; anything else as it is."""
    return x.bfloat16().float() if isinstance(x, Tensor) and x.dtype is torch.float32 else x


class Rounding(TorchDispatchMode):
    """Round what every operator takes and returns."""

    def __torch_dispatch__(  # noqa: D105
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if "norm" in func.name():  # statistics and their arithmetic are of float32
            args = (rounded(args[0]), *args[1:])
        elif "conv" in func.name():
            args = tree_map(rounded, args)
        return tree_map(rounded, func(*args, **(kwargs or {})))


def all_heads(net: UNetPlusPlus, x: Tensor) -> list[Tensor]:
    """Return the heads as bfloat16 would have them."""
    with Rounding():
        return net.all_heads(x)


def main() -> None:
    """Parse arguments, measure, print and write."""
    args, get = held_out(__doc__)
    net = load_network(get("network"), args.checkpoint, device="cpu")
    inferer, post, batches = (
        get("validate#inferer"),
        get("validate#postprocessing"),
        get("validate#dataloader"),
    )
    levels = range(1, net.depth + 1)
    found: dict[str, dict[int, list[Tensor]]] = {
        name: {k: [] for k in levels} for name in ("float32", "bfloat16")
    }
    with torch.no_grad():
        for n, batch in enumerate(batches):
            for name, scores in found.items():
                compute = net.all_heads if name == "float32" else lambda x: all_heads(net, x)
                heads = inferer(batch["image"], compute)
                for k, head in zip(levels, reversed(heads), strict=True):
                    scores[k] += [case_dice(post(i)) for i in decollate_batch({**batch, "pred": head})]
            if n == 0:
                compare(net, batch["image"], get("spatial_dims"))
    rows = []
    for k in levels:
        exact, short = (torch.stack(found[name][k]) for name in ("float32", "bfloat16"))
        rows.append(
            {
                "level": k,
                "cases": len(exact),
                "float32": round(float(exact.nanmean()), 4),
                "bfloat16": round(float(short.nanmean()), 4),
                "loss": round(float(exact.nanmean() - short.nanmean()), 4),
                "largest loss of a case": round(float((exact - short).nan_to_num().max()), 4),
            }
        )
        print(rows[-1])  # noqa: T201
    write_csv(args.out, rows)


def compare(net: UNetPlusPlus, image: Tensor, spatial_dims: int) -> None:
    """Print how far from float32 both are, this rounding and torch's own, on the middle of an image."""
    middle = tuple(slice(max(0, n // 2 - 16), n // 2 + 16) for n in image.shape[2 : 2 + spatial_dims])
    x = image[(..., *middle, *[image.shape[-1] // 2] * (image.dim() - 2 - spatial_dims))].as_subclass(Tensor)
    exact, ours = net.all_heads(x)[0], all_heads(net, x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        torchs = net.all_heads(x)[0].float()
    apart = [float((a - exact).square().mean().sqrt() / exact.std()) for a in (ours, torchs)]
    print(f"apart from float32: {apart[0]:.4f} of its deviation, torch's own {apart[1]:.4f}")  # noqa: T201


if __name__ == "__main__":
    main()
