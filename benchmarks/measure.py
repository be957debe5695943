# SPDX-License-Identifier: Apache-2.0
"""Tools that the benchmarks share, beside ``monai_unetpp.levels.cost``: tasks, ratios, peak memory.

Networks are timed in turn, round after round, so that a slow moment of the machine affects all of them;
ratios are medians over rounds of the ratio within a round.
"""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from monai_unetpp.levels.cost import interleaved

MIB = 2**20


def train_step(net: nn.Module, x: Tensor) -> None:
    """Forward on all heads, a loss of negligible cost, backward."""
    net.train()
    net.zero_grad(set_to_none=True)
    heads = net(x)
    sum(head.square().mean() for head in (heads if isinstance(heads, (list, tuple)) else [heads])).backward()


def inference(net: nn.Module, x: Tensor) -> None:
    """Forward in evaluation, without a graph."""
    net.eval()
    with torch.inference_mode():
        net(x)


def ratio(seconds: Mapping[Any, Sequence[float]], name: Any, reference: Any) -> float:
    """Return the median over rounds of the time of ``name`` over that of ``reference``."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[reference], strict=True))


def peak_memory(job: Callable[[], None], device: str) -> float:
    """Return the peak memory of ``job`` beyond that in use before, in MiB."""
    job()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        job()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        job()
    held = top = 0
    events = (e for e in record.profiler.kineto_results.events() if e.name() == "[memory]")
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        top = max(top, held)
    return top / MIB


def matmul_peak(device: str, size: int = 2048, dtype: torch.dtype = torch.float32) -> float:
    """Return the multiply-adds per second of a large matrix product, the best of five."""
    a = torch.rand(size, size, device=device, dtype=dtype)
    return size**3 / min(interleaved({"": lambda: a @ a}, 5, device)[""])


def machine() -> str:
    """Return a description of the machine and the versions that a figure depends on."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        bfloat16 = {"AMX": torch.cpu._is_amx_tile_supported, "BF16": torch.cpu._is_avx512_bf16_supported}
        has = [name for name, supported in bfloat16.items() if supported()]
        device = " ".join([torch.backends.cpu.get_cpu_capability(), *has])
    return f"{platform.machine()} {device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
