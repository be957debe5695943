# SPDX-License-Identifier: Apache-2.0
"""Cost of a forward pass: multiply-adds, seconds, memory."""

from __future__ import annotations

import copy
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["interleaved", "multiply_adds", "peak_memory"]

MIB = 2**20


def multiply_adds(net: nn.Module, shape: Sequence[int], training: bool = False) -> int:
    """Return the multiply-adds of convolutions and matrix products in a forward pass.

    Args:
        net: Network, which is copied and not changed.
        shape: Shape (B, C, *spatial) of the input.
        training: Whether the pass is one of training, which computes all heads, or of evaluation.
    """
    net = copy.deepcopy(net).to("meta").train(training)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.empty(*shape, device="meta"))
    return counter.get_total_flops() // 2


def interleaved(
    jobs: Mapping[Any, Callable[[], object]], rounds: int, device: torch.device | str = "cpu"
) -> dict[Any, list[float]]:
    """Return the time of each job on ``device``, one per round after a warm-up, s.

    The jobs take turns, so that a slow moment of the machine affects all of them.
    """
    seconds: dict[Any, list[float]] = {name: [] for name in jobs}
    for n in range(rounds + 1):
        for name, job in jobs.items():
            _wait(device)
            start = time.perf_counter()
            job()
            _wait(device)
            if n:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_memory(job: Callable[[], object], device: torch.device | str) -> float:
    """Return the peak memory of ``job`` beyond what was allocated before, MiB.

    On a GPU it is torch's own count; elsewhere the tensors that are alive, without an operator's workspace.
    """
    job()
    if torch.device(device).type == "cuda":
        _wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        job()
        _wait(device)
        return (torch.cuda.max_memory_allocated(device) - before) / MIB
    with _Alive() as alive:
        job()
    return alive.peak / MIB


def _wait(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums the bytes of all storages that operators return, while they are alive."""

    takes_any_operator = True  # so that the network computes with its kernels while it is measured

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        before = {storage._cdata for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage._cdata not in self.known | before:
                self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        size, key = storage.nbytes(), storage._cdata
        self.known.add(key)
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.held -= size


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor) and not leaf.is_mkldnn:  # oneDNN's own layout hides its storage
            yield leaf.untyped_storage()
