# SPDX-License-Identifier: Apache-2.0
"""Peak memory and time of a whole CT, from file to file: the bundle's pipeline compared with MONAI's.

Each runs in its own process, with a network of negligible cost, so that the measurement covers everything
around the network. Memory is that of the process beyond the loaded libraries.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from monai_unetpp.files import write_csv

GIB = 2**30
PIPELINES = ("bundle", "monai")

# as bundles of the model zoo do
USUAL = {
    "inferer": "@windows",
    "postprocessing#transforms": [
        {"_target_": "Activationsd", "keys": "pred", "softmax": True},
        {
            "_target_": "Invertd",
            "keys": "pred",
            "transform": "@preprocessing",
            "orig_keys": "image",
            "nearest_interp": False,
        },
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        {
            "_target_": "SaveImaged",
            "keys": "pred",
            "output_dir": "@output_dir",
            "output_dtype": "$torch.uint8",
            "resample": False,
            "separate_folder": False,
        },
    ],
}


class Windows(nn.Module):
    """Logits of three classes by intensity alone."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, *window) to (B, 3, *window)."""
        return torch.cat([0.5 - x, x - 0.3, x - 0.6], dim=1) * 10


def write_volume(path: Path, size: list[int], spacing: list[float]) -> None:
    """A volume of int16 whose brightness varies from place to place."""
    axes = [np.sin(np.arange(n) / 20.0) for n in size]
    volume = axes[0][:, None, None] + axes[1][:, None] + axes[2]
    np.multiply(volume, 150, out=volume)
    nib.save(nib.Nifti1Image(volume.astype(np.int16), np.diag([*spacing, 1])), path)


def peak() -> int:
    """Peak memory of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run(pipeline: str, source: Path, out: Path, pixdim: list[float], roi: int) -> None:
    """Segment ``source`` by the evaluator of the liver bundle, and print peak memory and seconds."""
    parser = ConfigParser()
    parser.read_config(str(Path(__file__).parents[1] / "bundles" / "liver" / "inference.json"))
    usual = {
        **USUAL,
        "preprocessing_transforms#2#dtype": "$__import__('numpy').float64",  # Spacingd's default
    }
    parser.update(
        {
            **({} if pipeline == "bundle" else usual),
            "dataset_dir": str(source),
            "output_dir": str(out),
            "device": "$torch.device('cpu')",
            "pixdim": pixdim,
            "roi_size": [roi] * 3,
            "windows#overlap": 0.25,
            "handlers": [],
        }
    )
    parser["network"] = Windows().eval()
    evaluator = parser.get_parsed_content("evaluator")
    before, started = peak(), time.perf_counter()
    evaluator.run()
    print(f"RESULT {(peak() - before) / GIB:.3f} {time.perf_counter() - started:.1f}")  # noqa: T201


def main() -> None:
    """Parse arguments; measure, or act as one of the measured processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=3, default=[512, 512, 800])
    parser.add_argument("--spacing", type=float, nargs=3, default=[0.8, 0.8, 1.0], help="mm")
    parser.add_argument(
        "--pixdim", type=float, nargs=3, default=[1.5, 1.5, 1.5], help="spacing of the network, mm"
    )
    parser.add_argument("--roi", type=int, default=96)
    parser.add_argument("--pipelines", nargs="+", choices=PIPELINES, default=list(PIPELINES))
    parser.add_argument("--out", type=Path, required=True, help="CSV")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        pipeline, source, out = args.run
        run(pipeline, Path(source), Path(out), args.pixdim, args.roi)
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "ct.nii"
        write_volume(source, args.size, args.spacing)
        for pipeline in args.pipelines:
            command = [sys.executable, __file__, "--out", "unused", "--run", pipeline, str(source)]
            numbers = {"--pixdim": args.pixdim, "--roi": [args.roi]}
            command += [str(Path(folder) / pipeline)]
            command += [word for key, values in numbers.items() for word in (key, *map(str, values))]
            result = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, check=False)
            found = [line.split()[1:] for line in result.stdout.splitlines() if line.startswith("RESULT")]
            gib, seconds = found[0] if found else ("", f"ended with {result.returncode}")
            rows.append(
                {
                    "pipeline": pipeline,
                    "size": "x".join(map(str, args.size)),
                    "spacing": "x".join(map(str, args.spacing)),
                    "pixdim": "x".join(map(str, args.pixdim)),
                    "peak_gib": gib,
                    "seconds": seconds,
                }
            )
            print(rows[-1], result.stderr[-500:] if not found else "")  # noqa: T201
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
