# SPDX-License-Identifier: Apache-2.0
"""An application of MONAI Deploy on a DICOM series, with a packed bundle: its archive, then its folder.

    python benchmarks/hosts/deploy.py --environment DEPLOY --work WORK

makes a virtual environment in DEPLOY, if there is none, and everything else in WORK. Compares each mask with
that of ``monai-unetpp segment``, voxel by voxel, and raises where they differ.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from host import ROOT, argument_parser, make_environment, parse, run, say, segment, write_bundle

from monai_unetpp.data.phantoms import write_phantoms

sys.path.insert(0, str(ROOT / "tests"))
from dicom import write_series


def main() -> None:
    """Make what is missing, run the application, compare."""
    arguments = parse(argument_parser(__doc__))
    make_environment(arguments.environment, "monai-deploy-app-sdk==4.0.0", "pydicom", "highdicom")
    series = write_scan(arguments.work)
    bundle = write_bundle(arguments.work / "liver_ct_unetpp", arguments.work, arguments.planned)
    wanted = np.asarray(nib.load(segment(series, arguments.work / "masks", bundle)).dataobj)
    for name, path in {"archive": bundle / "models" / "model.ts", "folder": bundle}.items():
        out = arguments.work / f"{name}.npy"
        run(arguments.environment, "python", Path(__file__).with_name("deploy_app.py"), series, path, out)
        found = np.load(out).transpose(2, 1, 0)  # it has (Z, Y, X)
        different = int((found != wanted).sum())
        counts = ", ".join(map(str, np.bincount(wanted.ravel())))
        say(f"{name}: {found.shape} voxels, {different} differ from those of segment ({counts} by class)")
        assert different == 0


def write_scan(work: Path) -> Path:
    """Write a synthetic CT as a DICOM series; return its folder."""
    write_phantoms(work / "phantoms", "liver", 1, seed=1)
    [path] = (work / "phantoms" / "imagesTr").iterdir()
    voxels = np.asarray(nib.load(path).dataobj).astype(np.int16)
    planes = ((5.0 * n, voxels[..., n]) for n in range(voxels.shape[-1]))
    return write_series(
        work / "series", planes, pixel=3.0, more={"0020|0011": "1"}
    )  # a series number, which Deploy requires


if __name__ == "__main__":
    main()
