# SPDX-License-Identifier: Apache-2.0
"""What these trials work on: a network of two levels, and small scans of every kind that is read."""

from __future__ import annotations

import locale
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813  its own documentation's name
import torch

from monai_unetpp import UNetPlusPlus

BUNDLE = Path(__file__).parents[2] / "bundles" / "liver"
SIZE = (20, 18, 16)
# of the bundle's inference.json, so that a scan takes a fraction of a second
SETTINGS: dict[str, Any] = {
    "device": "$torch.device('cpu')",
    "channels": [4, 6, 8],
    "pixdim": [4.0, 4.0, 4.0],
    "roi_size": [16, 16, 16],
}


def write_weights(path: Path) -> Path:
    """Write the weights of the small network, not trained."""
    torch.manual_seed(0)
    torch.save(UNetPlusPlus(3, 1, 3, channels=SETTINGS["channels"], strides=2).state_dict(), path)
    return path


def write_scans(folder: Path, count: int, bad_every: int = 0) -> None:
    """Write scans, the kinds in turn; of ``bad_every`` one is cut off, if that is not 0."""
    folder.mkdir(parents=True)
    kinds, series = list(KINDS), None
    for n in range(count):
        name, kind = folder / f"scan_{n:05d}", kinds[n % len(kinds)]
        if is_bad(name, bad_every):
            _cut(name)
        elif kind == "DICOM" and series is not None:
            shutil.copytree(series, name)  # in a tenth of the time that writing it takes
        else:
            KINDS[kind](name, _image(n % len(kinds)))
            series = name if kind == "DICOM" else series


def is_bad(scan: str | Path, bad_every: int) -> bool:
    """Whether this is one of those that are cut off."""
    number = int(Path(scan).name.split(".")[0].split("_")[1])
    return bool(bad_every) and number % bad_every == bad_every - 1


def _image(seed: int) -> sitk.Image:
    """Noise in HU with a bright block in it, axes as of LPS."""
    voxels = np.random.default_rng(seed).normal(-100, 20, SIZE[::-1])
    voxels[4:10, 5:12, 6:14] += 300
    image = sitk.GetImageFromArray(voxels.round().astype(np.int16))
    image.SetSpacing((4.0, 4.0, 4.0))
    image.SetOrigin((-40.0, -36.0, 100.0))
    return image


def _by_suffix(suffix: str) -> Callable[[Path, sitk.Image], None]:
    return lambda name, image: sitk.WriteImage(image, f"{name}{suffix}")


def _series(name: Path, image: sitk.Image) -> None:
    """A folder with a DICOM series."""
    name.mkdir()
    before = locale.setlocale(locale.LC_ALL)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    x, y, z = image.GetOrigin()
    for n in range(image.GetSize()[2]):
        plane = image[:, :, n]
        tags = {
            **{"0008|0060": "CT", "0008|0018": f"1.2.3.{n + 1}", "0020|000d": "1.2", "0020|000e": "1.2.3"},
            **{"0020|0013": str(n + 1), "0020|0032": f"{x}\\{y}\\{z + 4 * n}"},
            **{"0020|0037": "1\\0\\0\\0\\1\\0", "0028|1052": "-1024", "0028|1053": "1"},
        }
        for tag, value in tags.items():
            plane.SetMetaData(tag, value)
        writer.SetFileName(str(name / f"{n:03d}.dcm"))
        writer.Execute(plane)
    locale.setlocale(locale.LC_ALL, before)  # writing DICOM leaves that of C behind


def _cut(name: Path) -> None:
    """A NIfTI file of which the end is lost."""
    path = name.with_name(f"{name.name}.nii.gz")
    _by_suffix(".nii.gz")(name, _image(0))
    path.write_bytes(path.read_bytes()[:1000])


KINDS: dict[str, Callable[[Path, sitk.Image], None]] = {
    **{suffix: _by_suffix(suffix) for suffix in (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")},
    "DICOM": _series,
}


def wrong_grid(scan: Path, mask: Path) -> str:
    """Say what is wrong with a mask: that it cannot be read, or lies on another grid; "" if nothing is."""
    try:
        found: Any = nib.load(mask)
        voxels = np.asarray(found.dataobj)
    except Exception as error:  # a file that was cut off raises anything
        return f"{mask} cannot be read: {error!r}"
    affine = np.diag([-4.0, -4.0, 4.0, 1.0])
    affine[:3, 3] = 40, 36, 100
    if voxels.shape != SIZE or not np.allclose(found.affine, affine, atol=1e-3):
        return f"{mask} is not on the grid of {scan}"
    return ""
