# SPDX-License-Identifier: Apache-2.0
"""An exported network in place of a network with its weights: ONNX, by OpenVINO or ONNX Runtime."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from monai_unetpp.extras import require
from monai_unetpp.files import PathLike
from monai_unetpp.network import kernels

__all__ = ["RUNTIMES", "OnnxNetwork"]

Sizes = tuple[int | None, ...]  # None for a size that is left open
Run = Callable[[Any], Any]

RUNTIMES = ("openvino", "onnxruntime")
HINTS = {"float32": "f32", "bfloat16": "bf16"}  # precisions of OpenVINO on a CPU


class OnnxNetwork(nn.Module):
    """An exported network on the CPU, in place of a ``UNetPlusPlus`` in evaluation mode.

    Inside ``torch.autocast("cpu")`` OpenVINO computes in bfloat16, as torch does; ONNX Runtime has none.

    Args:
        path: Path of an ``.onnx`` file.
        runtime: ``"openvino"`` or ``"onnxruntime"``; default the first of them that is installed.

    Attributes:
        takes: Shape of the input, ``None`` for each size that is left open.
        gives: Shape of the output, likewise.

    Raises:
        ValueError: If ``runtime`` is unknown, or the file cannot be read.
        ModuleNotFoundError: If the runtime is not installed.
    """

    def __init__(self, path: PathLike, runtime: str | None = None) -> None:
        super().__init__()
        installed = [name for name in RUNTIMES if importlib.util.find_spec(name)]
        runtime = runtime or next(iter(installed), "onnxruntime")
        if runtime not in RUNTIMES:
            raise ValueError(f"runtime must be one of {', '.join(RUNTIMES)}, got {runtime!r}.")
        require("openvino" if runtime == "openvino" else "export", runtime)
        self.runtime = runtime
        try:
            run, self.takes, self.gives = _START[runtime](str(path), "float32")
        except Exception as error:  # each runtime has exceptions of its own
            raise ValueError(f"{path} cannot be read by {runtime}: {error}") from error
        self._path, self._runs = path, {"float32": run}

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, *spatial) to logits (B, out_channels, *spatial), on the device of ``x``.

        Raises:
            ValueError: If autocast is on and the runtime or the processor does not compute in its precision.
        """
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        precision = str(dtype).removeprefix("torch.")
        if precision not in self._runs:
            if precision not in (HINTS if self.runtime == "openvino" else ("float32",)):
                raise ValueError(
                    f"precision must be float32 for {self._path} in {self.runtime}, got {precision}: "
                    "OpenVINO computes in bfloat16, torch in both."
                )
            kernels.in_precision(precision, "cpu")
            self._runs[precision] = _START[self.runtime](str(self._path), precision)[0]
        y = self._runs[precision](x.detach().as_subclass(Tensor).float().cpu().contiguous().numpy())
        return torch.from_numpy(y).to(x.device)


def _start_onnxruntime(path: str, _: str) -> tuple[Run, Sizes, Sizes]:
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    entry, end = session.get_inputs()[0], session.get_outputs()[0]
    takes, gives = (tuple(n if isinstance(n, int) else None for n in e.shape) for e in (entry, end))
    return lambda x: session.run(None, {entry.name: x})[0], takes, gives


@functools.cache
def _openvino_core() -> Any:
    """OpenVINO, once per process.

    Each ``Core`` gives its thread a stack for signals and takes it back when it goes. Of two that go in the
    order in which they came, the thread keeps the first one's, which is freed: the next signal is a crash.
    """
    import openvino  # type: ignore[import-untyped]

    return openvino.Core()


def _start_openvino(path: str, precision: str) -> tuple[Run, Sizes, Sizes]:
    settings = {
        "INFERENCE_PRECISION_HINT": HINTS[precision],  # its default is bfloat16 where the CPU has it
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    model = _openvino_core().compile_model(path, "CPU", settings)
    takes, gives = (
        tuple(n.get_length() if n.is_static else None for n in e.get_partial_shape())
        for e in (model.input(0), model.output(0))
    )
    return lambda x: model(x)[0].copy(), takes, gives  # the next window overwrites the buffer


_START: dict[str, Callable[[str, str], tuple[Run, Sizes, Sizes]]] = {
    "onnxruntime": _start_onnxruntime,
    "openvino": _start_openvino,
}
