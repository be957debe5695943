# SPDX-License-Identifier: Apache-2.0
"""What all tests share: small networks and data; one thread, since several are ten times slower on them."""

import ctypes
import gc
import locale
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import torch
from hypothesis import Phase, settings
from monai.bundle import ComponentLocator
from torch import nn

from bundles import DEEP, run, write_balls
from monai_unetpp import UNetPlusPlus

torch.set_num_threads(1)
# what fails is shown as it was drawn: to make it smaller may take five minutes, which the campaign spends
AS_DRAWN = (Phase.explicit, Phase.generate)
settings.register_profile(
    "tests", derandomize=True, deadline=None, database=None, max_examples=25, phases=AS_DRAWN
)
settings.register_profile("campaign", deadline=None, database=None, max_examples=1000, print_blob=True)
settings.load_profile("tests")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> None:
    """A failure at an instruction without a line gets one: pytest would end without naming the test.

    A timeout may strike there, and generated code has no others.
    """
    entry = call.excinfo.tb if call.excinfo else None
    last = None
    while entry:
        if entry.tb_lineno is None:
            line = entry.tb_frame.f_code.co_firstlineno
            entry = TracebackType(entry.tb_next, entry.tb_frame, entry.tb_lasti, line)
            if last:
                last.tb_next = entry
        last, entry = entry, entry.tb_next


def pytest_collection_finish() -> None:
    """The garbage collector need not go through a million objects of imported modules again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _threads_and_memory_are_given_back() -> Iterator[None]:
    """After each file: a thread of TensorBoard for each training, and what glibc keeps, gigabytes in all.

    faulthandler shows a hundred threads: of more it would leave out the main one, which runs the tests.
    """
    yield
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("tensorboard."):
            thread.stop()
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


@pytest.fixture(scope="module", autouse=True)
def _locale_as_before() -> Iterator[None]:
    """Libraries that write images may leave the locale of C behind, in which text is ASCII."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.fixture(scope="module", autouse=True)
def _style_as_before() -> Iterator[None]:
    """nnU-Net draws its curves by seaborn, which makes the text of every later figure larger."""
    yield
    if matplotlib := sys.modules.get("matplotlib"):
        matplotlib.rcdefaults()


@pytest.fixture(scope="module")
def _path_as_before() -> Iterator[None]:
    """For files whose workflows add their folders to the path: it is as before afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", sys.path[:])
        yield


@pytest.fixture(scope="session", autouse=True)
def _components_are_listed_once() -> Iterator[None]:
    """MONAI lists the classes and functions of all its modules for each configuration anew."""
    find = ComponentLocator._find_classes_or_functions

    @cache
    def listed(names: tuple[str, ...]) -> dict[str, list[str]]:
        return find(ComponentLocator(), names)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ComponentLocator, "_find_classes_or_functions", lambda _, names: listed(tuple(names)))
        yield


@pytest.fixture(scope="session")
def tiny() -> Callable[..., UNetPlusPlus]:
    """A function that builds a small network, three levels deep, with the same weights every time.

    Norms start as the identity, with which a forgotten weight would go unseen: here they are random too.
    """

    def build(spatial_dims: int = 2, **arguments: Any) -> UNetPlusPlus:
        torch.manual_seed(0)
        defaults = {"in_channels": 1, "out_channels": 2, "channels": (4, 6, 8, 10), "strides": 2}
        net = UNetPlusPlus(spatial_dims, **{**defaults, **arguments})
        for tensor in [*net.parameters(), *net.buffers()]:
            if tensor.dim() == 1 and tensor.is_floating_point():
                nn.init.uniform_(tensor, 0.5, 1.5)
        return net

    return build


@pytest.fixture(scope="session")
def balls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of four small volumes, to be left as it is."""
    return write_balls(tmp_path_factory.mktemp("data") / "balls")


@pytest.fixture(scope="session")
def trained(balls: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a liver bundle after two epochs on the balls, to be left as it is."""
    root = tmp_path_factory.mktemp("liver")
    run("liver", "train", root, dataset_dir=str(balls))
    return root


@pytest.fixture(scope="session")
def deep(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights of two levels for the liver bundle, not trained."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("deep") / "model.pt"
    torch.save(UNetPlusPlus(3, 1, 3, channels=DEEP, strides=2).state_dict(), path)
    return str(path)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder that is not there yet."""
    return tmp_path / "out"
