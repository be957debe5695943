# SPDX-License-Identifier: Apache-2.0
"""The inference script of 3D Slicer's extension MONAIAuto3DSeg on a packed model, beside ``segment``.

    python benchmarks/hosts/slicer.py --extension CLONE --environment SLICER --work WORK

runs the script of CLONE, a clone of github.com/lassoan/SlicerMONAIAuto3DSeg, in a virtual environment that
has this package and what the extension installs in Slicer. Prints how many voxels of each scan differ from
those of ``monai-unetpp segment``: as it is, and with the windows of the extension and without what it leaves
out; on the grid of the scan, and on that of the network, where neither program resamples. Raises where that
last difference is more than rounding.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813  its usual name
from host import ROOT, argument_parser, make_environment, parse, run, say, segment, variables
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImage, Orientation, Spacing
from numpy.typing import NDArray

from monai_unetpp.bundle import copy_bundle
from monai_unetpp.data.phantoms import write_phantoms

# what the extension installs, its dependency_handler.py of 2025-12-09
PACKAGES = ("monai[fire,pyyaml,nibabel,pynrrd,psutil,tensorboard,skimage,itk,tqdm]>=1.3",)
SCRIPT = "MONAIAuto3DSeg/Scripts/auto3dseg_segresnet_inference.py"
AS_THE_EXTENSION = ("--set", "windows#overlap", "0.625", "--set", "largest_component", "false")
ROUNDING = 1e-4  # share of voxels that may differ on the grid of the network


def main() -> None:
    """Make what is missing, run both programs on every scan, compare."""
    parser = argument_parser(__doc__)
    parser.add_argument("--extension", type=Path, required=True, help="clone of the extension")
    parser.add_argument("--scan", type=Path, nargs="+", default=[], help="volumes; default synthetic CT")
    parser.add_argument("--bundle", type=Path, help="bundle; default the liver's, trained on synthetic CT")
    parser.add_argument("--checkpoint", type=Path, help="its weights")
    arguments = parse(parser)
    make_environment(arguments.environment, *PACKAGES)
    work = arguments.work
    bundle, weights, scans = arguments.bundle, arguments.checkpoint, arguments.scan
    if bundle is None:
        bundle, weights = train(work)
    if not scans:
        write_phantoms(work / "scans", "liver", 2, seed=9)
        scans = sorted((work / "scans" / "imagesTr").iterdir())
    model = work / "model-v1.0.0"
    words = ["pack", bundle, "--checkpoint", weights, "--out", model, "--slicer"]
    run(arguments.environment, "python", "-m", "monai_unetpp", *words)
    for scan in scans:
        for kind, path in prepare(scan, work / "volumes", bundle).items():
            compare(arguments, path, kind, model, bundle, weights)


def train(work: Path) -> tuple[Path, Path]:
    """Train the liver bundle with a small network on synthetic CT; return its folder and the weights."""
    write_phantoms(work / "phantoms", "liver", 8, seed=1)
    bundle = copy_bundle("liver", work / "bundles")
    words = ["--dataset_dir", work / "phantoms", "--channels", "[8,16,32]", "--max_epochs", "30"]
    run(ROOT, "python", "-m", "monai_unetpp", "train", bundle, *words)
    return bundle, bundle / "models" / "model.pt"


def prepare(scan: Path, folder: Path, bundle: Path) -> dict[str, Path]:
    """Write a scan as Slicer does, NRRD, and once more on the grid of the network."""
    folder.mkdir(exist_ok=True)
    name = scan.name.partition(".")[0]
    pixdim = ConfigParser.load_config_file(bundle / "inference.json")["pixdim"]
    image: MetaTensor = Compose(
        [LoadImage(ensure_channel_first=True), Orientation("RAS", labels=None), Spacing(pixdim)]
    )(scan)
    there = sitk.GetImageFromArray(image[0].numpy().transpose(2, 1, 0))
    affine = np.diag([-1, -1, 1, 1]) @ image.affine.numpy()  # ITK's axes are LPS
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    there.SetSpacing(spacing.tolist())
    there.SetDirection((affine[:3, :3] / spacing).flatten().tolist())
    there.SetOrigin(affine[:3, 3].tolist())
    paths = {"its own grid": folder / f"{name}.nrrd", "the network's grid": folder / f"{name}_network.nrrd"}
    for path, volume in zip(paths.values(), [sitk.ReadImage(str(scan)), there], strict=True):
        sitk.WriteImage(volume, str(path))
    return paths


def compare(
    arguments: argparse.Namespace, path: Path, kind: str, model: Path, bundle: Path, weights: Path
) -> None:
    """Segment a volume by both programs and print how they differ."""
    start, found = time.perf_counter(), path.with_name(f"{path.stem}_slicer.nrrd")
    command = ["python", arguments.extension / SCRIPT, "--model-file", model / "model.pt"]
    command += ["--image-file", path, "--result-file", found]
    subprocess.run(
        [str(word) for word in command],
        env=variables(arguments.environment),
        check=True,
        capture_output=True,
    )
    theirs = read(found)
    say(
        f"{path.stem}, on {kind}: {theirs.shape} voxels, {time.perf_counter() - start:.0f} s by the extension"
    )
    options = ["--checkpoint", str(weights)]
    if "lungs_only" in ConfigParser.load_config_file(bundle / "inference.json"):
        like = (*AS_THE_EXTENSION, "--set", "lungs_only", "false")
    else:
        like = AS_THE_EXTENSION
    for name, more in {"segment": (), "segment with the extension's windows": like}.items():
        masks = path.with_name(f"{path.stem}_{len(more)}")
        ours = read(segment(path, masks, bundle, *options, *more))
        different = int((ours != theirs).sum())
        say(f"  {name}: {different} voxels differ ({different / ours.size:.3%}); Dice {dice(ours, theirs)}")
    if kind == "the network's grid":
        assert different <= ROUNDING * ours.size


def read(path: Path) -> NDArray[np.uint8]:
    """Return the voxels of a mask."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def dice(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> str:
    """Return the Dice by class of two masks, with the voxels of both."""
    values: Sequence[int] = range(1, 1 + max(one.max(), other.max()))
    pairs = [(one == value, other == value) for value in values]
    return ", ".join(f"{2 * (a & b).sum() / (a.sum() + b.sum()):.4f} ({a.sum()}/{b.sum()})" for a, b in pairs)


if __name__ == "__main__":
    main()
