# SPDX-License-Identifier: Apache-2.0
"""Folds on several devices at once: a process for each device, which runs its folds one after another."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import torch

__all__ = ["share_folds"]

POLL_SECONDS = 1.0


def share_folds(job: Callable[[Any], object], groups: Sequence[Sequence[Any]]) -> None:
    """Run a job for every item, each group in a process of its own.

    The CPUs are divided among the processes. When this process ends, whatever ended it, they save and stop.

    Args:
        job: Function of an item; both can be pickled.
        groups: Items of each process; without any there is nothing to do.

    Raises:
        Exception: the first that a job raises, once the other processes have come to their end.
    """
    if not groups:
        return
    threads = max(1, (os.cpu_count() or 1) // len(groups))
    context = multiprocessing.get_context("spawn")  # a fork has no CUDA, and may hang
    start = (os.getpid(), threads)
    with ProcessPoolExecutor(len(groups), context, initializer=_start, initargs=start) as pool:
        waiting = [pool.submit(_all, job, list(group), os.getpid()) for group in groups]
        for future in as_completed(waiting):
            future.result()


def _all(job: Callable[[Any], object], items: Sequence[Any], parent: int) -> None:
    try:
        for item in items:
            job(item)
    except SystemExit as stopped:  # saved: the pool would wait for a parent that is gone
        if os.getppid() != parent:
            os._exit(int(stopped.code or 0))
        raise


def _start(parent: int, threads: int) -> None:
    torch.set_num_threads(threads)
    threading.Thread(target=_stop_with, args=(parent,), daemon=True).start()


def _stop_with(parent: int) -> None:
    """Send this process the signal on which a training saves and stops, once its parent is gone."""
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
