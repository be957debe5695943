# SPDX-License-Identifier: Apache-2.0
"""A bundle is where it lies: a copy is itself, a bare name finds what ships, weights know their overlay."""

import json
import shutil

import pytest

from bundles import BUNDLES, TINY_TRAINING, raises_within, run, workflow
from monai_unetpp.__main__ import main
from monai_unetpp.bundle import copy_bundle, find_bundle
from monai_unetpp.segment import load_pipeline

CPU = {"device": "$torch.device('cpu')"}

pytestmark = pytest.mark.slow


# The obvious command


def test_liver_is_segmented_without_training_by_its_bare_name(balls, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(
        [
            "segment",
            "-i",
            str(balls / "imagesTr/RAS.nii.gz"),
            "-o",
            "out",
            "--bundle",
            "liver",
            "--device",
            "cpu",
        ]
    )
    said = capsys.readouterr()
    assert said.out.startswith("1 segmented.")
    assert "weights/slices.pt was trained with slices.json, which is merged over inference.json." in said.err
    assert "slices.pt, because they come with the bundle, and no training wrote" in said.err
    assert json.loads((tmp_path / "out" / "RAS_seg.json").read_text())["overlays"] == ["slices"]


@pytest.mark.parametrize("overlays", [[], ["slices"]], ids=["plain", "overlay"])
def test_overlay_follows_from_the_weights(tmp_path, overlays):
    weights = BUNDLES / "liver" / "weights" / "slices.pt"
    pipeline = load_pipeline(BUNDLES / "liver", "scans", tmp_path, overlays, ckpt_path=weights, **CPU)
    assert (pipeline.network.spatial_dims, pipeline.inferer.largest_component) == (2, True)


def test_weights_of_a_training_come_before_those_that_ship(tmp_path):
    root = copy_bundle("liver", tmp_path)
    for place in ("models/slices", "models"):
        (root / place).mkdir(parents=True, exist_ok=True)
        for suffix in ("pt", "json"):
            shutil.copy(root / "weights" / f"slices.{suffix}", root / place / f"model.{suffix}")
        pipeline = load_pipeline(root, "scans", tmp_path / "out", **CPU)
        assert pipeline.made_by["weights_file"] == "model.pt"
        assert pipeline.network.spatial_dims == 2


def test_name_is_a_folder_first_then_a_copy_then_what_ships(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_bundle("liver") == BUNDLES / "liver"
    copy_bundle("liver")
    assert find_bundle("liver").as_posix() == "bundles/liver"
    copy_bundle("liver", ".")
    assert find_bundle("liver").as_posix() == "liver"
    with pytest.raises(FileNotFoundError, match=r"or one of hippocampus, liver, lung_nodule: no spleen"):
        find_bundle("spleen")


# Copies


def test_copied_bundle_names_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert json.loads((copy_bundle("liver") / "train.json").read_text())["bundle_root"] == "bundles/liver"
    root = copy_bundle("liver", "mine")
    for name in ("train", "inference"):
        assert json.loads((root / f"{name}.json").read_text())["bundle_root"] == "mine/liver"


def test_training_of_a_copy_that_names_another_folder_is_refused(balls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(copy_bundle("liver"), tmp_path / "kidney")
    monkeypatch.setattr("bundles.BUNDLES", tmp_path)
    flow = workflow("kidney", "train", "bundles/liver", **{**TINY_TRAINING, "dataset_dir": str(balls)})
    with raises_within(ValueError, r"bundle_root must be .*kidney, .*, got bundles/liver, to which this"):
        flow.initialize()
    assert not (tmp_path / "bundles/liver/models").exists()
    run("kidney", "train", "kidney", dataset_dir=str(balls), max_epochs=1)
    assert (tmp_path / "kidney" / "models" / "model.pt").is_file()
