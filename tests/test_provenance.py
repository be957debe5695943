# SPDX-License-Identifier: Apache-2.0
"""A mask says what made it, and is not taken for one that something else would make."""

import json
import re
import shutil

import nibabel as nib
import pytest
import torch

from bundles import BUNDLES, DEEP, TINY
from monai_unetpp import UNetPlusPlus, __version__
from monai_unetpp.segment import segment
from monai_unetpp.weights import sha256

LIVER = BUNDLES / "liver"
SETTINGS = {**TINY, "channels": DEEP}

pytestmark = pytest.mark.slow


@pytest.fixture
def scan(balls):
    return balls / "imagesTr" / "RAS.nii.gz"


def segment_one(scan, out, weights, bundle=LIVER, **more):
    [outcome] = segment(scan, out, bundle, ckpt_path=weights, **{**SETTINGS, **more})
    return outcome


def test_mask_says_what_made_it_in_its_header_and_beside_it(scan, out, deep):
    assert segment_one(scan, out, deep, level=1).state == "done"
    said = json.loads((out / "RAS_seg.json").read_text())
    assert said["weights"] == sha256(deep)
    assert (said["level"], said["precision"], said["monai_unetpp"]) == ("L1", "float32", __version__)
    assert (said["pixdim"], said["image"]) == (TINY["pixdim"], "RAS.nii.gz")
    header = nib.load(out / "RAS_seg.nii.gz").header["descrip"].item().decode()
    assert header.startswith(f"monai-unetpp {__version__[:14]} w={sha256(deep)[:12]} L1 float32 s=")
    assert len(header) < 80


def other_weights(folder):
    torch.manual_seed(1)
    torch.save(UNetPlusPlus(3, 1, 3, channels=DEEP, strides=2).state_dict(), folder / "other.pt")
    return folder / "other.pt"


OTHERS = {
    "level": (
        {"level": 1},
        r"RAS_seg\.nii\.gz exists and was made with level 'L2', now 'L1': name another output",
    ),
    "early exit": ({"windows#threshold": 0.5}, r"level 'L2', now 'exit 0\.5'"),
    "pixdim": ({"pixdim": [3.0, 3.0, 3.0]}, r"pixdim \[4\.0, 4\.0, 4\.0\], now \[3\.0, 3\.0, 3\.0\]"),
    "overlap": ({"windows#overlap": 0.25}, r"configuration '\w+', now '\w+'"),
    "precision": (
        {"precision": "bfloat16"},
        "precision 'float32', now 'bfloat16'",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_mask_of_other_settings_is_named_and_not_taken(scan, out, deep, name, monkeypatch):
    settings, message = OTHERS[name]
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    segment_one(scan, out, deep)
    before = (out / "RAS_seg.nii.gz").read_bytes()
    outcome = segment_one(scan, out, deep, **settings)
    assert outcome.state == "failed"
    assert re.search(message, outcome.reason), outcome.reason
    assert (out / "RAS_seg.nii.gz").read_bytes() == before
    assert segment_one(scan, out, deep).state == "skipped"
    assert segment_one(scan, out, deep, overwrite=True, **settings).state == "done"
    assert segment_one(scan, out, deep, **settings).state == "skipped"


def test_mask_of_other_weights_or_another_bundle_is_named(scan, out, deep, tmp_path):
    segment_one(scan, out, deep)
    other = segment_one(scan, out, other_weights(tmp_path))
    assert f"weights '{sha256(deep)}', now" in other.reason
    other = segment_one(scan, out, deep, bundle=BUNDLES / "lung_nodule", out_channels=3)
    assert "configuration" in other.reason


def test_same_weights_in_another_folder_are_the_same(scan, out, deep, tmp_path):
    segment_one(scan, out, deep)
    assert segment_one(scan, out, shutil.copy(deep, tmp_path)).state == "skipped"


def test_mask_that_does_not_say_what_made_it_is_kept(scan, out, deep):
    segment_one(scan, out, deep)
    (out / "RAS_seg.json").unlink()
    outcome = segment_one(scan, out, deep)
    assert outcome.state == "failed"
    assert "RAS_seg.nii.gz exists and does not say what made it" in outcome.reason


def test_mask_that_was_edited_by_hand_is_kept(scan, out, deep):
    segment_one(scan, out, deep)
    mask = nib.load(out / "RAS_seg.nii.gz")
    nib.save(nib.Nifti1Image(mask.dataobj[:], mask.affine), out / "RAS_seg.nii.gz")
    assert "the header '', now" in segment_one(scan, out, deep).reason


# What is written beside a mask


def test_probability_of_another_class_is_named_and_not_taken(scan, out, deep):
    segment_one(scan, out, deep, probability=1)
    before = (out / "RAS_probability.nii.gz").read_bytes()
    outcome = segment_one(scan, out, deep, probability=2)
    assert outcome.state == "failed"
    assert re.search(r"RAS_probability\.nii\.gz exists .* p=1', now '.* p=2'", outcome.reason)
    assert (out / "RAS_probability.nii.gz").read_bytes() == before
    assert segment_one(scan, out, deep, probability=1).state == "skipped"
    assert segment_one(scan, out, deep, probability=2, overwrite=True).state == "done"
    assert (out / "RAS_probability.nii.gz").read_bytes() != before


def test_what_was_made_with_an_earlier_mask_does_not_lie_beside_another(scan, out, deep, tmp_path):
    maps = {"probability": 1, "uncertainty": True, "sheets": True}
    segment_one(scan, out, deep, **maps)
    there = ["RAS_probability.nii.gz", "RAS_sheet.png", "RAS_uncertainty.nii.gz"]
    assert [(out / name).exists() for name in there] == [True] * 3
    other = other_weights(tmp_path)
    assert segment_one(scan, out, other, overwrite=True).state == "done"
    assert [(out / name).exists() for name in there] == [False] * 3
    assert (out / "uncertainty.csv").read_text() == "scan,uncertainty\n"
    assert segment_one(scan, out, other, **maps).state == "done"


def test_what_was_made_with_the_same_mask_stays(scan, out, deep):
    segment_one(scan, out, deep, probability=1)
    before = (out / "RAS_probability.nii.gz").read_bytes()
    assert segment_one(scan, out, deep, sheets=True).state == "done"
    assert segment_one(scan, out, deep, overwrite=True).state == "done"
    assert (out / "RAS_probability.nii.gz").read_bytes() == before
    assert (out / "RAS_sheet.png").exists()
