# SPDX-License-Identifier: Apache-2.0
"""One level in every form that it is shipped in, and running the form that needs no torch.

| suffix | what                         | read by                                      |
| ------ | ---------------------------- | -------------------------------------------- |
| .pt    | the pruned network's weights | :func:`monai_unetpp.load_network`            |
| .ts    | TorchScript                  | ``torch.jit.load``, MONAI Label and Deploy   |
| .pt2   | ``torch.export`` program     | ``torch.export.load``                        |
| .onnx  | ONNX, opset as torch chooses | ONNX Runtime, OpenVINO: :class:`OnnxNetwork` |

Batch and sizes are left open in all of them.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.transforms import CenterSpatialCrop, SpatialPad
from torch import Tensor, nn

from monai_unetpp.extras import require
from monai_unetpp.files import atomic_write, refuse_existing, save_by_memory
from monai_unetpp.network import UNetPlusPlus, prune

__all__ = ["FORMATS", "RUNTIMES", "OnnxNetwork", "check_formats", "example_window", "export_level"]

logger = logging.getLogger(__name__)

FORMATS = ("pt", "ts", "pt2", "onnx")
RUNTIMES = ("openvino", "onnxruntime")
TOLERANCE = 1e-4  # of the largest logit: other kernels round otherwise, and norms magnify it


def export_level(
    network: UNetPlusPlus,
    level: int,
    directory: str | os.PathLike[str],
    example: Tensor,
    formats: Sequence[str] = FORMATS,
    overwrite: bool = False,
) -> dict[str, Path]:
    """Write L^level as ``model.pt``, ``model.ts``, ``model.pt2``, ``model.onnx``: all of them, or none.

    Each file is read again and run on ``example`` and on a smaller piece of it before it is kept: the weights
    must give the full network's head to the last bit, the others to within 1e-4 of its largest logit.

    Args:
        network: trained, with a head at ``level``; left as it is.
        level: ``k`` of L^k.
        directory: a folder of the level's own, made if it does not exist. Beside the full network's
            ``model.pt`` MONAI Label would offer the pruned weights for the full network.
        example: (B, C, *spatial), a window of a real case after preprocessing: see :func:`example_window`.
        formats: some of ``"pt"``, ``"ts"``, ``"pt2"``, ``"onnx"``.
        overwrite: whether files that are there may be replaced.

    Returns:
        The path of each format.

    Raises:
        ValueError: if a format is not known, or the network has no head at ``level``.
        FileExistsError: if one of the files exists and ``overwrite`` is false.
        ModuleNotFoundError: if a format needs a package that is not installed.
        RuntimeError: if what was written does not give the same output.
    """
    check_formats(formats)
    network.check_level(level)
    paths = {suffix: Path(directory) / f"model.{suffix}" for suffix in formats}
    if not overwrite:
        refuse_existing(*paths.values())
    network = copy.deepcopy(network).cpu().eval()
    network.level = level
    pruned = prune(network, level)
    example = example.detach().as_subclass(Tensor).cpu()
    smaller = CenterSpatialCrop([n - n // 4 for n in example.shape[2:]])(example[0])[None].as_subclass(Tensor)
    with ExitStack() as stack, torch.no_grad():
        for suffix, path in paths.items():
            part = stack.enter_context(atomic_write(path))  # all become whole when the stack ends well
            _WRITE[suffix](pruned, example, part)
            reread = _READ[suffix](pruned, part)
            for x in (example, smaller):
                _check(suffix, reread(x), network(x))
    sizes = ", ".join(f"{path.name} ({path.stat().st_size / 1024:.0f} KiB)" for path in paths.values())
    logger.info(f"Wrote L{level} to {directory}, each gives the full network's head: {sizes}.")
    return paths


def check_formats(formats: Iterable[str]) -> None:
    """Raise a ValueError if a format is not known, a ModuleNotFoundError if it needs what is not there."""
    for suffix in formats:
        if suffix not in FORMATS:
            raise ValueError(f"formats must be some of {', '.join(FORMATS)}, got {suffix!r}.")
    if "onnx" in formats:
        require("export", "onnx", "onnxscript", "onnxruntime")


def example_window(data: Iterable[Mapping[str, Any]], size: Sequence[int]) -> Tensor:
    """Return the middle of the first ``"image"`` of ``data``, (1, C, *size), zeros where it is smaller.

    A window one voxel thick is a slice, for a network of two dimensions: its last axis goes.
    """
    image = next(iter(data))["image"][0]
    window = SpatialPad(size)(CenterSpatialCrop(size)(image))[None].as_subclass(Tensor)
    return window.squeeze(-1) if size[-1] == 1 else window


class OnnxNetwork(nn.Module):
    """An exported network on the CPU, in place of a ``UNetPlusPlus`` in evaluation.

    Its ``takes`` and ``gives`` are the shapes of input and output, ``None`` for sizes that are left open.

    Args:
        path: of an ``.onnx`` file.
        runtime: ``"openvino"`` or ``"onnxruntime"``; ``None`` for the first of them that is installed.

    Raises:
        ValueError: if ``runtime`` is not known, or the file cannot be read.
        ModuleNotFoundError: if the runtime is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], runtime: str | None = None) -> None:
        super().__init__()
        installed = [name for name in RUNTIMES if importlib.util.find_spec(name)]
        runtime = runtime or next(iter(installed), "onnxruntime")
        if runtime not in RUNTIMES:
            raise ValueError(f"runtime must be one of {', '.join(RUNTIMES)}, got {runtime!r}.")
        require("openvino" if runtime == "openvino" else "export", runtime)
        self.runtime = runtime
        try:
            self._run, self.takes, self.gives = _START[runtime](str(path))
        except Exception as error:  # each runtime has exceptions of its own
            raise ValueError(f"{path} cannot be read by {runtime}: {error}") from error

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, *spatial) to logits (B, out_channels, *spatial), on the device of ``x``."""
        y = self._run(x.detach().as_subclass(Tensor).float().cpu().contiguous().numpy())
        return torch.from_numpy(y).to(x.device)


Shape = tuple[int | None, ...]  # None for a size that is left open
Start = Callable[[str], tuple[Callable[[Any], Any], Shape, Shape]]


def _start_onnxruntime(path: str) -> tuple[Callable[[Any], Any], Shape, Shape]:
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    entry, end = session.get_inputs()[0], session.get_outputs()[0]
    takes, gives = (tuple(n if isinstance(n, int) else None for n in e.shape) for e in (entry, end))
    return lambda x: session.run(None, {entry.name: x})[0], takes, gives


def _start_openvino(path: str) -> tuple[Callable[[Any], Any], Shape, Shape]:
    import openvino  # type: ignore[import-untyped]

    settings = {
        "INFERENCE_PRECISION_HINT": "f32",  # its default is bfloat16 where the CPU has it
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    model = openvino.Core().compile_model(path, "CPU", settings)
    takes, gives = (
        tuple(n.get_length() if n.is_static else None for n in e.get_partial_shape())
        for e in (model.input(0), model.output(0))
    )
    return lambda x: model(x)[0].copy(), takes, gives  # of a buffer that the next window is written to


_START: dict[str, Start] = {"onnxruntime": _start_onnxruntime, "openvino": _start_openvino}


def _sizes_left_open(example: Tensor) -> tuple[dict[int, Any]]:
    axes = [0, *range(2, example.dim())]
    return (dict.fromkeys(axes, torch.export.Dim.DYNAMIC),)


def _two(example: Tensor) -> Tensor:
    """A batch of two: a batch of one would be taken for a constant."""
    return torch.cat([example[:1], example[:1]])


@contextmanager
def _quiet(*loggers: str) -> Iterator[None]:
    """Keep from the user what torch says of itself, such as that TorchScript is deprecated."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    try:
        for name in loggers:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _write_script(net: UNetPlusPlus, _: Tensor, path: Path) -> None:
    with _quiet():
        save_by_memory(path, partial(torch.jit.save, torch.jit.script(net)))


def _write_program(net: UNetPlusPlus, example: Tensor, path: Path) -> None:
    example = _two(example)
    program = torch.export.export(net, (example,), dynamic_shapes=_sizes_left_open(example))
    save_by_memory(path, partial(torch.export.save, program))


def _write_onnx(net: UNetPlusPlus, example: Tensor, path: Path) -> None:
    example = _two(example)
    with _quiet("torch.onnx", "onnxscript", "onnx_ir"):  # they tell a page about every step
        torch.onnx.export(
            net,
            (example,),
            path,
            input_names=["image"],
            output_names=["pred"],
            dynamic_shapes=_sizes_left_open(example),
            dynamo=True,
            external_data=False,  # one file
            verbose=False,
        )


_WRITE: dict[str, Callable[[UNetPlusPlus, Tensor, Path], None]] = {
    "pt": lambda net, _, path: save_by_memory(path, partial(torch.save, net.state_dict())),
    "ts": _write_script,
    "pt2": _write_program,
    "onnx": _write_onnx,
}


def _read_weights(net: UNetPlusPlus, path: Path) -> UNetPlusPlus:
    twin = UNetPlusPlus(**net.arguments)
    twin.load_state_dict(torch.load(path, weights_only=True))
    return twin.eval()


# only what was written a moment ago: loading .ts and .pt2 of others can run their code
_READ: dict[str, Callable[[UNetPlusPlus, Path], Callable[[Tensor], Tensor]]] = {
    "pt": _read_weights,
    "ts": lambda _, path: torch.jit.load(path),  # type: ignore[no-untyped-call]
    "pt2": lambda _, path: torch.export.load(path).module(),
    "onnx": lambda _, path: OnnxNetwork(path, "onnxruntime"),
}


def _check(suffix: str, got: Tensor, wanted: Tensor) -> None:
    """Raise a RuntimeError if an exported network does not give the head of the full network."""
    allowed = 0.0 if suffix == "pt" else TOLERANCE * max(1.0, float(wanted.abs().max()))
    if got.shape != wanted.shape:
        raise RuntimeError(
            f"model.{suffix} was not kept: it gives {list(got.shape)}, not {list(wanted.shape)}."
        )
    apart = float((got - wanted).abs().max())
    if not apart <= allowed:
        raise RuntimeError(
            f"model.{suffix} was not kept: its logits are up to {apart:.2g} away from the full network's, "
            f"{allowed:.2g} is allowed."
        )
