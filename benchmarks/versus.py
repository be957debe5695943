# SPDX-License-Identifier: Apache-2.0
"""Time and memory compared with alternatives: same widths, same input, same number of classes.

python benchmarks/versus.py --dims 3 --size 48 --batch 1 --out benchmarks/results/versus_3d_48.csv
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import statistics
import sys
from collections.abc import Callable
from functools import partial

import torch
from measure import inference, machine, matmul_peak, peak_memory, ratio, train_step
from monai.networks.nets import BasicUNet, BasicUNetPlusPlus, DynUNet
from torch import Tensor, nn

from monai_unetpp import UNetPlusPlus, from_basic_unet_plus_plus
from monai_unetpp.files import write_csv
from monai_unetpp.levels.cost import interleaved, multiply_adds
from monai_unetpp.network import kernels

WIDTHS = (32, 32, 64, 128, 256)  # the defaults of MONAI's BasicUNetPlusPlus
REFERENCE = "BasicUNetPlusPlus"
KERNELS = {"UNetPlusPlus, memory": "memory", "UNetPlusPlus, plain": "plain"}  # network -> its kernels


def networks(dims: int, classes: int) -> dict[str, Callable[[], nn.Module]]:
    """Return functions that build the networks to compare; ours has the weights of the reference."""
    reference = BasicUNetPlusPlus(dims, 1, classes, (*WIDTHS, WIDTHS[0]), deep_supervision=True)

    def checkpointed() -> UNetPlusPlus:
        arguments = from_basic_unet_plus_plus(reference).arguments
        return UNetPlusPlus(**{**arguments, "use_checkpoint": True})

    makers: dict[str, Callable[[], nn.Module]] = {
        REFERENCE: lambda: copy.deepcopy(reference),
        "UNetPlusPlus": lambda: from_basic_unet_plus_plus(reference),
        **{name: partial(from_basic_unet_plus_plus, reference) for name in KERNELS},
        "UNetPlusPlus, use_checkpoint": checkpointed,
        "BasicUNet": lambda: BasicUNet(dims, 1, classes, (*WIDTHS, WIDTHS[0])),
        "DynUNet": lambda: DynUNet(
            dims, 1, classes, [3] * 5, [1, 2, 2, 2, 2], [2] * 4, list(WIDTHS), deep_supervision=False
        ),
    }
    if dims == 2 and importlib.util.find_spec("segmentation_models_pytorch"):
        import segmentation_models_pytorch as smp

        makers["smp UnetPlusPlus (resnet18)"] = lambda: smp.UnetPlusPlus(
            "resnet18", encoder_weights=None, in_channels=1, classes=classes, decoder_channels=WIDTHS[::-1]
        )
    return makers


def run(task: Callable[[nn.Module, Tensor], None], name: str, net: nn.Module, x: Tensor) -> None:
    """Do a task with the kernels that a network's name says, else with those of the device."""
    with kernels.use(KERNELS.get(name, "auto")):
        task(net, x)


def main() -> None:
    """Measure and write one row per network and task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dims", type=int, default=3)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()

    torch.manual_seed(0)
    makers = networks(args.dims, args.classes)
    shape = (args.batch, 1, *[args.size] * args.dims)
    x = torch.rand(shape, device=args.device)
    peak = matmul_peak(args.device)
    nets = {name: make().to(args.device) for name, make in makers.items()}
    work = {name: multiply_adds(make(), shape) for name, make in makers.items()}
    rows = []
    for task, passes in ((inference, 1), (train_step, 3)):  # backward: twice the forward
        chosen = {n: net for n, net in nets.items() if task is train_step or "checkpoint" not in n}
        seconds = interleaved(
            {name: partial(run, task, name, net, x) for name, net in chosen.items()}, args.rounds, args.device
        )
        memory = {
            name: peak_memory(partial(run, task, name, net, x), args.device) for name, net in chosen.items()
        }
        for name in chosen:
            median = statistics.median(seconds[name])
            rows.append(
                {
                    "task": task.__name__,
                    "network": name,
                    "dims": args.dims,
                    "size": args.size,
                    "batch": args.batch,
                    "seconds": round(median, 4),
                    "time ratio": round(ratio(seconds, name, REFERENCE), 3),
                    "peak MiB": round(memory[name], 1),
                    "memory ratio": round(memory[name] / memory[REFERENCE], 3),
                    "Gmultiply-adds": round(passes * work[name] / 1e9, 2),
                    "share of matmul peak": round(passes * work[name] / median / peak, 2),
                    "machine": machine(),
                }
            )
            sys.stdout.write("  ".join(str(value) for value in list(rows[-1].values())[:-1]) + "\n")
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
