# SPDX-License-Identifier: Apache-2.0
"""Where the lungs are, and what is done elsewhere."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_unetpp.data.phantoms import chest_phantom
from monai_unetpp.transforms import FocusOnLungsd
from monai_unetpp.transforms.lungs import lung_region

SPACING = (2.0, 2.0, 3.0)


def distances(centre, shape, spacing=SPACING):
    """Of voxels from a point, mm."""
    axes = [np.arange(n) * width - c for n, width, c in zip(shape, spacing, centre, strict=True)]
    return torch.from_numpy(np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij"))))


@pytest.fixture(scope="module")
def chest():
    """A body in air with two balls of lung, 45 mm in radius, a table of foam, bowel gas; and the lungs."""
    shape = (150, 100, 70)
    ct = -1000 + 15 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ct[10:140, 10:85] = 40
    ct[10:140, 92:98] = -970
    lungs = torch.minimum(distances((90, 95, 105), shape), distances((210, 95, 105), shape))
    ct[lungs < 45] = -850
    ct[distances((150, 40, 30), shape) < 15] = -930
    return ct, lungs


@pytest.mark.parametrize("margin", [0.0, 15.0])
def test_the_region_is_the_lungs_and_a_margin(chest, margin):
    ct, lungs = chest
    region = lung_region(ct, SPACING, margin, closing=0)
    assert region[lungs < 45 + margin - 6].all()
    assert not region[lungs > 45 + margin + 6].any()


def test_a_vessel_and_a_nodule_at_the_wall_belong_to_the_lungs(chest):
    ct, lungs = chest
    ct = ct.clone()
    ct[distances((90, 95, 105), ct.shape) < 8] = 40
    at_wall = distances((90, 95 + 35, 105), ct.shape) < 12
    ct[at_wall] = 40
    assert lung_region(ct, SPACING)[(lungs < 45) | at_wall].all()


def test_air_bowel_and_a_body_alone_are_no_lungs(chest):
    ct, lungs = chest
    without = torch.where(lungs < 46, torch.tensor(40.0), ct)
    assert not lung_region(without, SPACING).any()


def test_a_lung_that_the_volume_cuts_is_one(chest):
    ct, lungs = chest
    cut = slice(45, None), slice(20, 75), slice(35, None)
    region = lung_region(ct[cut], SPACING, margin=0)
    assert region[lungs[cut] < 39].all()


@pytest.mark.parametrize("spacing", [(0.7, 0.7, 5.0), (4.0, 4.0, 1.0)])
def test_spacing_does_not_matter(spacing):
    shape = [round(size / width) for size, width in zip((200, 200, 150), spacing, strict=True)]
    lungs = distances((100, 100, 75), shape, spacing)
    region = lung_region(torch.where(lungs < 45, -850.0, 40.0), spacing, margin=0)
    assert region[lungs < 38].all()
    assert not region[lungs > 52].any()


def test_nodules_of_a_phantom_are_kept_and_the_rest_is_filled():
    phantom = chest_phantom(np.random.default_rng(0))
    image = MetaTensor(torch.as_tensor(phantom.image)[None].float(), affine=phantom.affine)
    scaled = (image.clamp(-1000, 400) + 1000) / 1400
    found = FocusOnLungsd("image", hu_range=(-1000, 400))({"image": scaled})["image"]
    kept = found == scaled
    assert kept[0][torch.as_tensor(phantom.label) > 0].all()
    assert torch.allclose(found[~kept], torch.tensor(1040 / 1400))
    assert 0.2 < float((~kept).float().mean()) < 0.9
    assert torch.equal(found.affine, scaled.affine)


def test_a_scan_without_lungs_is_searched_as_a_whole(caplog):
    image = MetaTensor(torch.rand(1, 20, 20, 20), meta={"filename_or_obj": "head.nii.gz"})
    found = FocusOnLungsd("image", hu_range=(-200, 200))({"image": image})["image"]
    assert torch.equal(found, image)
    assert "head.nii.gz shows no lungs" in caplog.text
