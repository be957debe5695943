# SPDX-License-Identifier: Apache-2.0
"""A path is data: what the language of MONAI's configurations gives a meaning to has none in a path."""

import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bundles import BUNDLES, DEEP, TINY
from monai_unetpp.bundle import copy_bundle, pack_bundle
from monai_unetpp.segment import load_pipeline, segment

SETTINGS = {**TINY, "channels": DEEP}
NAMES = pytest.mark.parametrize("name", ["masks #3", "@x", "%y", "$z", "a::b", "@#1", "%a.json#b", "'\"{}\\"])

pytestmark = pytest.mark.slow


def files(folder):
    """What lies in a folder, locks not."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in found if ".locks" not in path.parts)


def masks(folder):
    return [name for name in files(folder) if name.endswith("_seg.nii.gz")]


@NAMES
def test_masks_go_to_the_folder_that_is_named_and_are_found_there_again(balls, tmp_path, deep, name):
    source, bundle = balls / "imagesTr" / "RAS.nii.gz", BUNDLES / "liver"
    for state in ("done", "skipped"):
        [outcome] = segment(source, tmp_path / name, bundle, ckpt_path=deep, **SETTINGS)
        assert (outcome.state, outcome.reason) == (state, "")
    assert masks(tmp_path) == [f"{name}/RAS_seg.nii.gz"]


@pytest.mark.skipif(os.sep != "/", reason="Windows has no such names")
@NAMES
def test_masks_of_two_patients_are_two_files_wherever_the_scans_lie(balls, tmp_path, deep, name):
    for patient, scan in (("a", "RAS"), ("b", "LPS")):
        (tmp_path / name / patient).mkdir(parents=True)
        shutil.copy(balls / "imagesTr" / f"{scan}.nii.gz", tmp_path / name / patient / "ct.nii.gz")
    outcomes = segment(tmp_path / name, tmp_path / "out", BUNDLES / "liver", ckpt_path=deep, **SETTINGS)
    assert [outcome.reason for outcome in outcomes] == ["", ""]
    assert masks(tmp_path / "out") == ["a/ct_seg.nii.gz", "b/ct_seg.nii.gz"]
    for patient, scan in (("a", "RAS"), ("b", "LPS")):
        mask, of = tmp_path / "out" / patient / "ct_seg.nii.gz", balls / "imagesTr" / f"{scan}.nii.gz"
        np.testing.assert_allclose(nib.load(mask).affine, nib.load(of).affine, atol=1e-4)


@NAMES
def test_bundle_and_weights_are_read_where_they_lie(tmp_path, deep, name):
    root = copy_bundle("liver", tmp_path / name)
    (root / "models").mkdir()
    shutil.copy(deep, root / "models" / "model.pt")
    assert load_pipeline(root, "scans", tmp_path, **SETTINGS).network.depth == 2
    other = shutil.copy(deep, tmp_path / name / "other.pt")
    for path in (str(other), Path(other)):
        assert load_pipeline(BUNDLES / "liver", "scans", tmp_path, ckpt_path=path, **SETTINGS).network.depth


def test_bundle_is_packed_into_a_folder_of_any_name(tmp_path):
    shipped = BUNDLES / "liver" / "weights" / "slices.pt"
    out = pack_bundle(BUNDLES / "liver", shipped, tmp_path / "pack #1" / "$x", overlays=["slices"])
    assert (out / "models" / "model.ts").is_file()
    assert load_pipeline(out, "scans", tmp_path).network.depth == 4
    assert [path.name for path in tmp_path.iterdir()] == ["pack #1"]


def test_relative_paths_are_those_of_the_process(balls, tmp_path, deep, monkeypatch):
    shutil.copytree(balls / "imagesTr", tmp_path / "$scans")
    shutil.copy(deep, tmp_path / "@w.pt")
    monkeypatch.chdir(tmp_path)
    outcomes = segment("$scans", "#out", BUNDLES / "liver", ckpt_path="@w.pt", **SETTINGS)
    assert {outcome.reason for outcome in outcomes} == {""}
    assert len(masks(tmp_path / "#out")) == 4
