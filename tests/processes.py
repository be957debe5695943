# SPDX-License-Identifier: Apache-2.0
"""Commands of Python in processes of their own that need not import torch and MONAI, which takes seconds.

They are forked from a server that has imported these and nothing of this package: what a command imports of
it, what it reads from its environment and how it ends is as in a process that was started. Without forks, as
on Windows, processes are started. ``test_multi_gpu.py`` and ``test_cli.py`` start some as a user does.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of all that are started: several threads are slower, as here

METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
CONTEXT: Any = multiprocessing.get_context(METHOD)
if METHOD == "forkserver":
    CONTEXT.set_forkserver_preload(["monai.bundle", "torch._dynamo", "torch.utils.tensorboard", "SimpleITK"])


def python(*words: Any, cwd: Path | None = None, timeout: float = 240, **environment: str) -> Any:
    """What ``subprocess.run([sys.executable, *words])`` gives, with its output as text."""
    return _finished(words, cwd, timeout, [environment])


def torchrun(*words: Any, cwd: Path | None = None, timeout: float = 240) -> Any:
    """The same in two processes, which find each other by what ``torchrun`` sets in the environment."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    common |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": ""}
    ranks = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in (0, 1)]
    return _finished(words, cwd, timeout, ranks)


def apart(function: Callable[..., object], *arguments: Any) -> None:
    """Call a function of a test module in a process of its own, with arguments that ``repr`` spells out.

    For what opens a group of gloo: when torch 2.13 destroys one it may abort or wait for ever, about once
    in a hundred times. The functions leave theirs open, and so it is when the process ends.
    """
    call = f"from {function.__module__} import {function.__name__} as f; f(*{arguments!r})"
    done = python("-c", call)
    assert done.returncode == 0, done.stderr


@contextmanager
def running(*words: Any, cwd: Path | None = None, log: Path, **environment: str) -> Iterator[BaseProcess]:
    """A process that writes what it prints to a file, and is killed at the end."""
    process = _start(words, cwd, environment, log, log)
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _finished(
    words: Sequence[Any], cwd: Path | None, timeout: float, environments: Sequence[Mapping[str, str]]
) -> subprocess.CompletedProcess[str]:
    """Run one process for each environment until all have ended, or one has failed."""
    until = time.monotonic() + timeout
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "stdout"), Path(folder, "stderr")
        processes = [_start(words, cwd, each, out, err) for each in environments]
        try:
            while (waiting := [p for p in processes if p.exitcode is None]) and not any(
                p.exitcode for p in processes
            ):
                if not wait([p.sentinel for p in waiting], max(0, until - time.monotonic())):
                    for process in waiting:
                        os.kill(process.pid, signal.SIGABRT)  # it prints where it stands, if it still can
                        process.join(timeout=10)
                    said = err.read_text().partition("Extension modules:")[0]
                    pytest.fail(f"{words} has not ended after {timeout} s:\n{said[-5000:]}")
            code = next((p.exitcode for p in processes if p.exitcode), 0)
        finally:
            for process in processes:
                process.kill()
                process.join()
        return subprocess.CompletedProcess(words, code, out.read_text(), err.read_text())


def _start(
    words: Sequence[Any], cwd: Path | None, environment: Mapping[str, str], out: Path, err: Path
) -> BaseProcess:
    for path in (out, err):
        path.touch()
    whole = {**os.environ, **environment}
    process = CONTEXT.Process(target=_run, args=([*map(str, words)], str(cwd or Path.cwd()), whole, out, err))
    process.start()
    return process


def _run(words: list[str], cwd: str, environment: dict[str, str], out: Path, err: Path) -> None:
    """Be ``python *words``: in the new process."""
    for descriptor, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    faulthandler.enable(2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path.insert(0, cwd)
    kind, what, *rest = words
    try:
        if kind == "-m":
            sys.argv = [what, *rest]
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            sys.argv = ["-c", *rest]
            sys.modules["__main__"] = main = ModuleType("__main__")
            exec(compile(what, "<string>", "exec"), vars(main))
    except Exception:
        sys.excepthook(*sys.exc_info())  # multiprocessing prints a traceback in any case
        raise SystemExit(1) from None
