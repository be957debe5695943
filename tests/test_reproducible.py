# SPDX-License-Identifier: Apache-2.0
"""Same seed, same bits, on the same machine: what no other room tests.

Training is in test_bundle_liver.py and test_resuming.py, phantoms in test_phantom.py, processes that share a
folder in test_segment.py.
"""

import nibabel as nib
import numpy as np
import pytest
import torch

from bundles import run
from monai_unetpp import UNetPlusPlus, prune

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("workers", [1, 2])
def test_masks_are_the_same_with_any_number_of_workers(trained, balls, tmp_path, workers):
    def masks(count):
        out = tmp_path / str(count)
        weights = str(trained / "models" / "model.pt")
        settings = {"input": str(balls / "imagesTr"), "output_dir": str(out), "ckpt_path": weights}
        run("liver", "inference", tmp_path / "root", num_workers=count, **settings)
        return {path.name: np.asarray(nib.load(path).dataobj) for path in sorted(out.glob("*.nii.gz"))}

    alone, together = masks(0), masks(workers)
    assert len(alone) == 4
    assert all(mask.any() for mask in alone.values())
    assert alone.keys() == together.keys()
    assert all(np.array_equal(alone[name], together[name]) for name in alone)


def test_level_that_is_kept_computes_the_same_bits_every_time():
    def outputs():
        torch.manual_seed(3)
        net = UNetPlusPlus(3, 1, 2, (8, 16, 32), strides=2).eval()
        with torch.no_grad():
            return prune(net, 1)(torch.randn(1, 1, 16, 16, 16))

    assert torch.equal(outputs(), outputs())
