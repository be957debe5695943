# SPDX-License-Identifier: Apache-2.0
"""One level in every form that it is shipped in, each checked against the full network.

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
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from monai.transforms import CenterSpatialCrop, SpatialPad
from torch import Tensor, nn
from torch.export import ExportedProgram

from monai_unetpp.extras import require
from monai_unetpp.files import PathLike, atomic_write, refuse_existing, save_by_memory
from monai_unetpp.network import UNetPlusPlus, prune, unwrap_unetplusplus
from monai_unetpp.weights import RUNTIMES, OnnxNetwork, read_record, sha256, without_levels, write_record

__all__ = [
    "FORMATS",
    "RUNTIMES",
    "OnnxNetwork",
    "check_formats",
    "example_window",
    "export_level",
    "writable_formats",
]

logger = logging.getLogger(__name__)

FORMATS = ("pt", "ts", "pt2", "onnx")
OF_ONNX = ("onnx", "onnxscript", "onnxruntime")  # packages that it requires
Program = Callable[[], ExportedProgram]
TOLERANCE = 1e-4  # of the largest logit: other kernels round otherwise, and norms magnify it


def export_level(
    network: nn.Module,
    level: int,
    directory: PathLike,
    example: Tensor,
    formats: Sequence[str] = FORMATS,
    overwrite: bool = False,
    source: PathLike | None = None,
    precision: str | None = None,
) -> dict[str, Path]:
    """Write L^level as ``model.pt``, ``model.ts``, ``model.pt2``, ``model.onnx``: all of them, or none.

    Each file is read again and run on ``example`` and on a smaller part of it before it is kept: the weights
    must give the full network's head bit for bit, the other formats within 1e-4 of its largest logit.

    Args:
        network: Trained UNetPlusPlus with a head at ``level``; it is not changed. Compiled, parallel or
            averaged ones are unwrapped.
        level: ``k`` of L^k.
        directory: Folder for this level alone, created if it does not exist. Beside the full network's
            ``model.pt`` MONAI Label would offer the pruned weights for the full network.
        example: Window of a real case after preprocessing, (B, C, *spatial); see :func:`example_window`.
        formats: Formats to write, some of ``"pt"``, ``"ts"``, ``"pt2"``, ``"onnx"``; of none nothing is.
        overwrite: Whether existing files may be replaced.
        source: Path of the weights of ``network``; their record, if they have one, is written as
            ``model.json``.
        precision: Precision that is good enough for this level, for that record.

    Returns:
        The path of each format.

    Raises:
        TypeError: If ``network`` is no UNetPlusPlus.
        ValueError: If a format is unknown, or the network has no head at ``level``.
        FileExistsError: If one of the files exists and ``overwrite`` is false.
        ModuleNotFoundError: If a format requires a package that is not installed.
        RuntimeError: If a written file does not give the same output.
    """
    check_formats(formats)
    network = unwrap_unetplusplus(network)
    network.check_level(level)
    if not formats:
        return {}
    paths = {suffix: Path(directory) / f"model.{suffix}" for suffix in formats}
    if not overwrite:
        refuse_existing(*paths.values())
    network = copy.deepcopy(network).cpu().eval()
    network.level = level
    pruned = prune(network, level)
    example = example.detach().as_subclass(Tensor).cpu()
    smaller = CenterSpatialCrop([n - n // 4 for n in example.shape[2:]])(example[0])[None].as_subclass(Tensor)
    program = cache(partial(_program, pruned, example))  # several formats start from it, and it takes seconds
    with ExitStack() as stack, torch.no_grad():
        for suffix, path in paths.items():
            part = stack.enter_context(atomic_write(path))  # all take their names when the stack ends well
            _WRITE[suffix](pruned, program, part)
            reread = _READ[suffix](pruned, part)
            for x in (example, smaller):
                _check(suffix, reread(x), network(x))
    _write_record(paths, source, level, precision)
    sizes = ", ".join(f"{path.name} ({path.stat().st_size / 1024:.0f} KiB)" for path in paths.values())
    logger.info(f"Wrote L{level} to {directory}, each gives the full network's head: {sizes}.")
    return paths


def _write_record(
    paths: Mapping[str, Path], source: PathLike | None, level: int, precision: str | None
) -> None:
    """Write the record of the weights that were exported, with the checksum of each form."""
    record = read_record(source) if source is not None else None
    if record is not None:
        files = {path.name: sha256(path) for path in paths.values()}
        record = replace(without_levels(record, level), files=files, precision=precision)
        write_record(next(iter(paths.values())), record)


def check_formats(formats: Iterable[str]) -> None:
    """Raise a ValueError for an unknown format, a ModuleNotFoundError if a package it requires is missing."""
    for suffix in formats:
        if suffix not in FORMATS:
            raise ValueError(f"formats must be some of {', '.join(FORMATS)}, got {suffix!r}.")
    if "onnx" in formats:
        require("export", *OF_ONNX)


def writable_formats() -> list[str]:
    """Return the formats that the installed packages can write."""
    return [suffix for suffix in FORMATS if suffix != "onnx" or all(find_spec(name) for name in OF_ONNX)]


def example_window(data: Iterable[Mapping[str, Any]], size: Sequence[int]) -> Tensor:
    """Return the centre of the first ``"image"`` of ``data``, (1, C, *size), padded with zeros.

    For a 2D network, a window one voxel thick is a slice, and its last axis is removed.
    """
    image = next(iter(data))["image"][0]
    window = SpatialPad(size)(CenterSpatialCrop(size)(image))[None].as_subclass(Tensor)
    return window.squeeze(-1) if size[-1] == 1 else window


def _program(net: UNetPlusPlus, example: Tensor) -> ExportedProgram:
    """The ``torch.export`` program of a network, batch and sizes left open."""
    example = torch.cat([example[:1], example[:1]])  # a batch of one would be taken for a constant
    sizes = dict.fromkeys([0, *range(2, example.dim())], torch.export.Dim.DYNAMIC)
    return torch.export.export(net, (example,), dynamic_shapes=(sizes,))


@contextmanager
def _quiet(*loggers: str) -> Iterator[None]:
    """Silence warnings of torch about itself, such as that TorchScript is deprecated."""
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


def _write_script(net: UNetPlusPlus, _: Program, path: Path) -> None:
    with _quiet():
        save_by_memory(path, partial(torch.jit.save, torch.jit.script(net)))


def _write_program(_: UNetPlusPlus, program: Program, path: Path) -> None:
    save_by_memory(path, partial(torch.export.save, program()))


def _write_onnx(_: UNetPlusPlus, program: Program, path: Path) -> None:
    with _quiet("torch.onnx", "onnxscript", "onnx_ir"):  # they tell a page about every step
        torch.onnx.export(
            program(),
            f=path,
            input_names=["image"],
            output_names=["pred"],
            dynamo=True,
            external_data=False,  # one file
            verbose=False,
        )


_WRITE: dict[str, Callable[[UNetPlusPlus, Program, Path], None]] = {
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
    """Raise a RuntimeError if an exported network differs from the head of the full network."""
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
