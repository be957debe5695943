# SPDX-License-Identifier: Apache-2.0
"""What a training step takes, by formula from widths, strides and patch; and what this machine can do.

The factors are fitted to ``benchmarks/results/growth.csv``, with which ``tests/test_planning.py`` compares
them.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import torch

from monai_unetpp.levels.cost import multiply_adds
from monai_unetpp.losses import DeepSupervisionDiceLoss
from monai_unetpp.network import UNetPlusPlus
from monai_unetpp.network.kernels import autocast
from monai_unetpp.readers.memory import available_memory

__all__ = [
    "memory_of_machine",
    "relative_costs",
    "speed_of_machine",
    "step_memory",
    "step_multiply_adds",
    "total_memory",
]

BYTES = 4  # of a float32
MAPS_KEPT = 2.65  # maps per node that the backward pass needs
MAPS_TRANSIENT = 3.4  # full-size maps that live at the same time, beside them
LOGITS_KEPT = 2.5  # arrays of the size of the logits, in the loss
GRADIENT_COPIES = 2.25  # arrays of the size of the weights at the end of the backward pass
WEIGHT_COPIES = 4  # weights, gradients, and two of the optimizer
GPU_FACTOR = 1.15  # times as much on a GPU, in mixed precision but without the memory path of a CPU
STEP_FACTOR = 3.0  # multiply-adds of a training step, of those of a forward pass
REFERENCE = {3: (40, 48, 40), 2: (256, 256)}  # patch by which the speed of a machine is measured
BATCH_SIZE = 2
SHARE_OF_MEMORY = 0.6  # the rest is for the cases and for the process


def step_memory(net: UNetPlusPlus, patch: Sequence[int], batch: int, device: str = "cpu") -> float:
    """Return the peak memory of a training step beyond weights and optimizer, bytes; an estimate.

    Args:
        net: Network; it may be on the device ``meta``.
        patch: Size of the patch, voxels.
        batch: Patches per step.
        device: ``"cpu"``, in float32, or ``"cuda"``, in mixed precision, as bundles train there.
    """
    spec = net.spec
    voxels = [
        math.prod(math.ceil(n / d) for n, d in zip(patch, spec.divisors(i), strict=True))
        for i in range(spec.depth + 1)
    ]
    kept = sum(
        spec.width(i, j) * voxels[i] for i, j in [*((i, 0) for i in range(spec.depth + 1)), *spec.nodes]
    )
    maps = MAPS_KEPT * kept + MAPS_TRANSIENT * spec.channels[0] * voxels[0]
    logits = LOGITS_KEPT * len(spec.levels) * spec.out_channels * voxels[0]
    activations = batch * BYTES * (maps + logits) * (GPU_FACTOR if device == "cuda" else 1)
    return max(activations, GRADIENT_COPIES * BYTES * _parameters(net))


def total_memory(net: UNetPlusPlus, patch: Sequence[int], batch: int, device: str = "cpu") -> float:
    """Return the memory of a training step with weights, gradients and optimizer, bytes; an estimate."""
    return step_memory(net, patch, batch, device) + WEIGHT_COPIES * BYTES * _parameters(net)


def step_multiply_adds(net: UNetPlusPlus, patch: Sequence[int], batch: int) -> float:
    """Return the multiply-adds of a training step."""
    return STEP_FACTOR * batch * multiply_adds(net, (1, net.spec.in_channels, *patch), training=True)


def relative_costs(net: UNetPlusPlus, patch: Sequence[int]) -> list[float]:
    """Return the multiply-adds of training up to each level, from L1 on, of those of training them all."""
    counts = []
    for level in net.spec.levels:
        net.training_level = level
        counts.append(step_multiply_adds(net, patch, 1))
    return [count / counts[-1] for count in counts]


def memory_of_machine(device: torch.device) -> float:
    """Return the bytes that a training may take on a device."""
    if device.type == "cuda":
        return 0.9 * torch.cuda.mem_get_info(device)[0]
    return SHARE_OF_MEMORY * (available_memory() or 8 * 2**30)


def speed_of_machine(network: dict[str, Any], device: torch.device, processes: int = 1) -> float:
    """Return the multiply-adds per second of training steps on a device, measured in a few seconds.

    Args:
        network: Arguments of the network.
        device: Where to measure.
        processes: Number of trainings at once that share the threads and the memory of a CPU; the speed is
            that of one, beside the others. Two of one thread are faster together than one of two.
    """
    nets = [UNetPlusPlus(**network).to(device).train() for _ in range(processes)]
    threads, patch = torch.get_num_threads(), REFERENCE[nets[0].spec.spatial_dims]
    work = step_multiply_adds(nets[0], patch, BATCH_SIZE)
    if processes == 1:
        return work / min(_seconds_of_steps(nets[0], patch))  # other programs make it slower, none faster
    together = Barrier(processes)

    def share(net: UNetPlusPlus) -> float:
        torch.set_num_threads(max(1, threads // processes))
        together.wait()
        return statistics.median(_seconds_of_steps(net, patch))  # the last step may be alone

    try:
        with ThreadPoolExecutor(processes) as pool:
            return work / max(pool.map(share, nets))
    finally:
        torch.set_num_threads(threads)


def _seconds_of_steps(net: UNetPlusPlus, patch: Sequence[int]) -> list[float]:
    device = next(net.parameters()).device
    x = torch.rand(BATCH_SIZE, net.spec.in_channels, *patch, device=device)
    target = torch.zeros(BATCH_SIZE, 1, *patch, device=device)
    loss = DeepSupervisionDiceLoss(include_background=False, batch=True)
    seconds = []
    mixed = autocast(device, enabled=device.type == "cuda")  # as bundles train
    for _ in range(6):
        started = time.perf_counter()
        with mixed():
            heads = net(x)
        loss(heads, target).backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def _parameters(net: UNetPlusPlus) -> int:
    return sum(p.numel() for p in net.parameters())
