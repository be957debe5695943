# SPDX-License-Identifier: Apache-2.0
"""Inference of the deepest level compared with BasicUNetPlusPlus: eager, compiled, scripted, ONNX Runtime.

OpenVINO is measured as well, where it is installed.

python benchmarks/exported.py --dims 3 --size 48 --out benchmarks/results/exported_3d_48.csv
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import onnxruntime
import torch
from measure import inference, machine, ratio
from monai.networks.nets import BasicUNetPlusPlus
from versus import REFERENCE, WIDTHS

from monai_unetpp import from_basic_unet_plus_plus
from monai_unetpp.files import write_csv
from monai_unetpp.levels.cost import interleaved


def main() -> None:
    """Measure and write one row per form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dims", type=int, default=3)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()

    torch.manual_seed(0)
    theirs = BasicUNetPlusPlus(args.dims, 1, 2, (*WIDTHS, WIDTHS[0]), deep_supervision=True).eval()
    ours = from_basic_unet_plus_plus(theirs)
    x = torch.rand(1, 1, *[args.size] * args.dims)
    wanted = ours(x).detach()
    with TemporaryDirectory() as folder:
        jobs: dict[str, Callable[[], object]] = {
            REFERENCE: partial(inference, theirs, x),
            "eager": partial(inference, ours, x),
            "torch.jit.script": partial(inference, torch.jit.script(ours), x),
            "torch.compile": partial(inference, torch.compile(ours), x),
            "ONNX Runtime": _onnx(ours, x, Path(folder) / "net.onnx", wanted),
        }
        if importlib.util.find_spec("openvino"):
            jobs["OpenVINO"] = _openvino(x, Path(folder) / "net.onnx", wanted)
        seconds = interleaved(jobs, args.rounds)
    rows = [
        {
            "form": name,
            "dims": args.dims,
            "size": args.size,
            "seconds": round(statistics.median(times), 4),
            "time ratio": round(ratio(seconds, name, REFERENCE), 3),
            "machine": machine(),
        }
        for name, times in seconds.items()
    ]
    for row in rows:
        sys.stdout.write("  ".join(str(value) for value in list(row.values())[:-1]) + "\n")
    write_csv(args.out, rows)


def _onnx(net: torch.nn.Module, x: torch.Tensor, path: Path, wanted: torch.Tensor) -> Callable[[], object]:
    """Export, check against eager mode, and return a job that runs the exported network."""
    torch.onnx.export(net, (x,), path, dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options)
    feed = {session.get_inputs()[0].name: x.numpy()}
    torch.testing.assert_close(torch.from_numpy(session.run(None, feed)[0]), wanted, rtol=1e-3, atol=1e-4)
    return partial(session.run, None, feed)


def _openvino(x: torch.Tensor, path: Path, wanted: torch.Tensor) -> Callable[[], object]:
    """Check the ONNX file against eager mode, and return a job that runs it."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    model = openvino.Core().compile_model(path, "CPU", settings)
    torch.testing.assert_close(torch.from_numpy(model(x.numpy())[0]), wanted, rtol=1e-3, atol=1e-4)
    return partial(model, x.numpy())


if __name__ == "__main__":
    main()
