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
from monai.networks.nets import BasicUNet, BasicUNetPlusPlus, DynUNet, SegResNet
from torch import Tensor, nn

from monai_unetpp import UNetPlusPlus, from_basic_unet_plus_plus, prune
from monai_unetpp.files import write_csv
from monai_unetpp.levels.cost import interleaved, multiply_adds
from monai_unetpp.network import kernels

WIDTHS = (32, 32, 64, 128, 256)  # the defaults of MONAI's BasicUNetPlusPlus
REFERENCE = "BasicUNetPlusPlus"
KERNELS = {"UNetPlusPlus, memory": "memory", "UNetPlusPlus, plain": "plain"}  # network -> its kernels


def networks(dims: int, classes: int, widths: tuple[int, ...] = WIDTHS) -> dict[str, Callable[[], nn.Module]]:
    """Return functions that build the networks to compare; ours has the weights of the reference."""
    reference = BasicUNetPlusPlus(dims, 1, classes, (*widths, widths[0]), deep_supervision=True)

    def checkpointed() -> UNetPlusPlus:
        arguments = from_basic_unet_plus_plus(reference).arguments
        return UNetPlusPlus(**{**arguments, "use_checkpoint": True})

    makers: dict[str, Callable[[], nn.Module]] = {
        REFERENCE: lambda: copy.deepcopy(reference),
        "UNetPlusPlus": lambda: from_basic_unet_plus_plus(reference),
        **{name: partial(from_basic_unet_plus_plus, reference) for name in KERNELS},
        "UNetPlusPlus, use_checkpoint": checkpointed,
        "BasicUNet": lambda: BasicUNet(dims, 1, classes, (*widths, widths[0])),
        "DynUNet": lambda: DynUNet(
            dims, 1, classes, [3] * 5, [1, 2, 2, 2, 2], [2] * 4, list(widths), deep_supervision=False
        ),
    }
    makers["SegResNet"] = lambda: SegResNet(dims, init_filters=widths[0], in_channels=1, out_channels=classes)
    for level in range(1, len(widths) - 1):
        makers[f"UNetPlusPlus, L{level}"] = partial(at_level, reference, level)
    if dims == 2 and importlib.util.find_spec("segmentation_models_pytorch"):
        import segmentation_models_pytorch as smp

        makers["smp UnetPlusPlus (resnet18)"] = lambda: smp.UnetPlusPlus(
            "resnet18", encoder_weights=None, in_channels=1, classes=classes, decoder_channels=widths[::-1]
        )
    return makers


def at_level(reference: BasicUNetPlusPlus, level: int) -> nn.Module:
    """Return our network with the weights of the reference, pruned to a level."""
    return prune(from_basic_unet_plus_plus(reference), level)


def run(task: Callable[[nn.Module, Tensor], None], name: str, net: nn.Module, x: Tensor, amp: bool) -> None:
    """Do a task with the kernels that a network's name says, else with those of the device."""
    with kernels.use(KERNELS.get(name, "auto")), torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
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
    parser.add_argument("--precision", nargs="+", choices=["float32", "bfloat16"], default=["float32"])
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
        chosen = {name: net for name, net in nets.items() if (task is train_step) or "checkpoint" not in name}
        jobs = {
            (name, precision): partial(run, task, name, net, x, precision == "bfloat16")
            for name, net in chosen.items()
            for precision in args.precision
        }
        seconds = interleaved(jobs, args.rounds, args.device)
        memory = {key: peak_memory(job, args.device) for key, job in jobs.items()}
        reference = (REFERENCE, args.precision[0])
        for key in jobs:
            name, precision = key
            median = statistics.median(seconds[key])
            rows.append(
                {
                    "task": task.__name__,
                    "network": name,
                    "precision": precision,
                    "dims": args.dims,
                    "size": args.size,
                    "batch": args.batch,
                    "seconds": round(median, 4),
                    "time ratio": round(ratio(seconds, key, reference), 3),
                    "peak MiB": round(memory[key], 1),
                    "memory ratio": round(memory[key] / memory[reference], 3),
                    "Gmultiply-adds": round(passes * work[name] / 1e9, 2),
                    "share of matmul peak": round(passes * work[name] / median / peak, 2),
                    "machine": machine(),
                }
            )
            sys.stdout.write("  ".join(str(value) for value in list(rows[-1].values())[:-1]) + "\n")
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
