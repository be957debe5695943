# SPDX-License-Identifier: Apache-2.0
"""The record beside weights: what follows a training is built and preprocessed as the training was."""

import csv
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch

from bundles import BUNDLES, DEEP, LABELS, TINY, raises_within, run
from monai_unetpp import UNetPlusPlus, load_network
from monai_unetpp.__main__ import main
from monai_unetpp.bundle import copy_bundle, pack_bundle
from monai_unetpp.export import export_level
from monai_unetpp.levels import ExitScore, read_calibration, write_calibration
from monai_unetpp.segment import load_pipeline, segment
from monai_unetpp.weights import Record, make_record, plain, prune_weights, read_record, sha256, write_record

LIVER = BUNDLES / "liver"
CPU = {"device": "$torch.device('cpu')"}
OWN = {"pixdim": [3.0, 3.0, 3.0], "roi_size": [24, 24, 16], "hu_range": [-200, 300], "channels": [4, 6, 8]}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def overridden(balls, tmp_path_factory):
    """The folder of a liver bundle that was trained with other values on the command line."""
    root = tmp_path_factory.mktemp("overridden")
    run("liver", "train", root, dataset_dir=str(balls), **OWN)
    return root


@pytest.fixture
def model(overridden):
    return overridden / "models" / "model.pt"


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


# What a training writes


def test_training_records_what_the_weights_are(model, overridden):
    content = json.loads(model.with_suffix(".json").read_text())
    assert content["weights"] == sha256(model)
    wanted = UNetPlusPlus(3, 1, 3, channels=OWN["channels"], strides=2)
    assert content["network"] == plain(wanted.spec.arguments())
    assert {key: content[key] for key in OWN if key != "channels"} == {
        key: value for key, value in OWN.items() if key != "channels"
    }
    assert content["labels"] == list(LABELS.values())
    assert (content["data"], content["seed"], content["epoch"] in (1, 2)) == ("balls", 0, True)
    assert {"val_mean_dice", "val_dice_ball", "val_dice_pip"} <= content["scores"].keys()
    assert {"monai-unetpp", "torch", "monai", "python"} <= content["versions"].keys()
    assert "overlays" not in content
    assert read_record(model) == Record(**content)
    later = read_record(overridden / "models" / "checkpoint_epoch=2.pt")
    assert (later.pixdim, later.scores) == (OWN["pixdim"], {})


def test_overlays_of_a_training_are_recorded(balls, tmp_path):
    small = {"channels": [4, 6], "roi_size": [32, 32, 1], "out_channels": 3, "max_epochs": 1}
    run("liver", "train slices", tmp_path, dataset_dir=str(balls), spatial_dims=2, **small)
    record = read_record(tmp_path / "models" / "slices" / "model.pt")
    assert (record.overlays, record.network["spatial_dims"]) == (["slices"], 2)


@pytest.mark.parametrize("is_synthetic", [True, False])
def test_weights_of_synthetic_scans_say_so_when_they_segment(is_synthetic, balls, tmp_path, caplog):
    values = {"channels": [4, 6], "max_epochs": 1, "dataset_dir": str(balls)}
    values |= {"phantom_dir": str(balls)} if is_synthetic else {}  # where synthetic ones would be written
    run("liver", "train", tmp_path, **values)
    weights = tmp_path / "models" / "model.pt"
    caplog.clear()
    load_pipeline(LIVER, "scans", tmp_path / "out", ckpt_path=weights, **CPU)
    said = f"{weights} was trained on synthetic scans alone: its masks of patients mean nothing."
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warned == ([said] if is_synthetic else [])


# What follows it


def test_plain_segment_equals_the_one_with_all_values_given(balls, tmp_path, model):
    source = balls / "imagesTr" / "LPS.nii.gz"
    [outcome] = segment(source, tmp_path / "plain", LIVER, ckpt_path=model, **CPU)
    assert outcome.reason == ""
    alone = shutil.copy(model, tmp_path / "alone.pt")  # without a record
    segment(source, tmp_path / "given", LIVER, ckpt_path=alone, **CPU, **OWN)
    masks = [voxels(tmp_path / name / "LPS_seg.nii.gz") for name in ("plain", "given")]
    assert masks[0].any()
    np.testing.assert_array_equal(*masks)


@pytest.mark.parametrize("names", ["train evaluate", "inference"])
def test_other_configurations_follow_the_record(balls, tmp_path, model, names):
    source = {"input": str(balls / "imagesTr")} if names == "inference" else {"dataset_dir": str(balls)}
    defaults = {"pixdim": [5.0, 5.0, 5.0], "roi_size": [40, 40, 40], "channels": [16, 32, 64, 128]}
    flow = run("liver", names, tmp_path, ckpt_path=str(model), hu_range=[-200, 300], **source, **defaults)
    get = flow.parser.get_parsed_content
    assert {key: get(key) for key in OWN} == OWN
    assert get("network").depth == 2
    if names == "train evaluate":
        rows = list(csv.DictReader((tmp_path / "eval" / "val_mean_dice_raw.csv").read_text().splitlines()))
        assert len(rows) == 1


DISAGREE = {
    "pixdim": (
        [4.0, 4.0, 4.0],
        r"pixdim must be \[3\.0, 3\.0, 3\.0\], with which .*model\.pt was trained, got \[4",
    ),
    "roi_size": (
        [16, 16, 16],
        r"roi_size must be \[24, 24, 16\], .*, got \[16, 16, 16\]: leave it out, or pass",
    ),
    "hu_range": ([0, 255], r"hu_range must be \[-200, 300\], .*, got \[0, 255\]"),
    "channels": ([4, 8], r"channels must be \[4, 6, 8\], .*, got \[4, 8\]"),
    "out_channels": (2, r"out_channels must be 3, .*, got 2"),
    "network_def#norm": (None, r"network_def#norm must be \['instance', .*, got None"),
}


@pytest.mark.parametrize("key", DISAGREE)
def test_value_that_disagrees_is_an_error_that_names_both(tmp_path, model, key):
    value, message = DISAGREE[key]
    with pytest.raises(ValueError, match=message):
        load_pipeline(LIVER, "scans", tmp_path, ckpt_path=model, **CPU, **{key: value})


def test_values_that_agree_may_be_given(tmp_path, model):
    more = {"network_def#strides": 2, "network_def#kernel_size": 3}
    load_pipeline(LIVER, "scans", tmp_path, ckpt_path=model, **CPU, **OWN, **more)


def test_monais_command_refuses_what_disagrees_as_well(balls, tmp_path, model):
    settings = {"dataset_dir": str(balls), "ckpt_path": str(model), "pixdim": [4.5, 4.5, 4.5]}
    with raises_within(
        ValueError, r"pixdim must be \[3\.0, 3\.0, 3\.0\].*got \[4\.5, 4\.5, 4\.5\].*--override_record"
    ):
        run("liver", "train evaluate", tmp_path, **settings, **{k: OWN[k] for k in ("roi_size", "hu_range")})


def test_arguments_stay_as_the_configuration_spells_them(tmp_path, model):
    out = pack_bundle(LIVER, LIVER / "weights" / "slices.pt", tmp_path / "packed")
    assert json.loads((out / "configs" / "train.json").read_text())["network_def"]["strides"] == 2
    other = {"channels": [4, 6], "override_record": True, **CPU}
    with pytest.raises(ValueError, match="does not fit the network"):  # the network of the new channels
        load_pipeline(LIVER, "scans", tmp_path, ckpt_path=model, **other)


def test_record_is_overridden_on_request_only(balls, tmp_path, model):
    pipeline = load_pipeline(
        LIVER, "scans", tmp_path, ckpt_path=model, override_record=True, **CPU, pixdim=[4.0, 4.0, 4.0]
    )
    assert (pipeline.pixdim, pipeline.made_by["hu_range"]) == ((4.0, 4.0, 4.0), [-200, 300])
    arguments = ["-i", balls / "imagesTr" / "RAS.nii.gz", "-o", tmp_path / "out", "--bundle", LIVER]
    arguments += ["--checkpoint", model, "--device", "cpu", "--set", "pixdim", "[4, 4, 4]"]
    with pytest.raises(SystemExit) as end:
        main(["segment", *map(str, arguments)])
    assert end.value.code == 2
    main(["segment", *map(str, arguments), "--override-record"])


# Records and their files


def test_resumed_training_has_the_preprocessing_that_it_had(balls, tmp_path, overridden):
    root = shutil.copytree(overridden, tmp_path / "root")
    again = {"dataset_dir": str(balls), "resume": True, "max_epochs": 3}
    with raises_within(ValueError, r"^pixdim must be \[3\.0, .*, with which .* was trained, got \[4\.0, "):
        run("liver", "train", root, **{**again, **OWN, "pixdim": [4.0, 4.0, 4.0]})
    record = root / "models" / "model.json"  # as if killed between weights and record
    record.write_text(record.read_text().replace(sha256(root / "models" / "model.pt"), "0" * 64))
    own = json.loads((LIVER / "train.json").read_text())
    flow = run("liver", "train", root, **again, **{key: own[key] for key in OWN})  # as if not given
    assert {key: flow.parser.get_parsed_content(key) for key in OWN} == OWN
    assert (root / "models" / "checkpoint_epoch=3.pt").is_file()


def test_calibration_is_a_part_of_the_record(tmp_path, model):
    copy = shutil.copy(model, tmp_path / "model.pt")
    shutil.copy(model.with_suffix(".json"), tmp_path / "model.json")
    exit_score = ExitScore(0.02, 0.8, 0.81, (3, 4), 0.01)
    assert write_calibration(copy, 1, exit_score) == tmp_path / "model.json"
    assert (read_calibration(copy).level, read_calibration(copy).exit) == (1, exit_score)
    assert read_record(copy).pixdim == OWN["pixdim"]


def test_calibration_of_an_earlier_version_is_read(tmp_path):
    torch.save(UNetPlusPlus(3, 1, 3, channels=DEEP, strides=2).state_dict(), tmp_path / "model.pt")
    exit_score = {"threshold": 0.1, "dice": 0.5, "full_dice": 0.5, "exits": [1, 2], "tolerance": 0.005}
    old = {"weights": sha256(tmp_path / "model.pt"), "level": 2, "exit": exit_score}
    (tmp_path / "model.json").write_text(json.dumps(old))
    assert read_calibration(tmp_path / "model.pt").exit.exits == (1, 2)
    settings = {**TINY, "channels": DEEP, "ckpt_path": tmp_path / "model.pt"}
    assert load_pipeline(LIVER, "scans", tmp_path, **settings).network.depth == 2


def test_record_of_other_weights_and_a_damaged_one_are_errors(tmp_path, model, deep):
    copy = shutil.copy(deep, tmp_path / "model.pt")
    shutil.copy(model.with_suffix(".json"), tmp_path / "model.json")
    with pytest.raises(
        ValueError, match=r"model\.json is the record of other weights than those in .*model\.pt"
    ):
        load_pipeline(LIVER, "scans", tmp_path, ckpt_path=copy, **TINY)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(ValueError, match=r"model\.json is damaged"):
        load_pipeline(LIVER, "scans", tmp_path, ckpt_path=copy, **TINY)


def test_weights_without_a_record_have_none(deep):
    assert read_record(deep) is None


def test_key_that_a_record_does_not_have_is_refused(deep):
    with pytest.raises(ValueError, match=r"record must have keys among .*, got pixdm"):
        make_record(deep, torch.nn.Identity(), {"pixdm": 1})


@pytest.mark.parametrize("path", sorted(BUNDLES.glob("*/weights/*.pt")), ids=lambda p: p.stem)
def test_weights_that_ship_have_a_record_that_their_bundle_confirms(path, tmp_path):
    record = read_record(path)
    assert record.scores["val_mean_dice"] > 0.6
    assert record.labels[0] == "background"
    assert len(record.labels) == record.network["out_channels"]
    overlays = [path.stem] if path.stem != "model" else []  # weights are named after it
    load_pipeline(path.parents[1], "scans", tmp_path, overlays, ckpt_path=path, **CPU)  # given, and agrees


def test_record_goes_where_its_values_came_from(tmp_path, deep):
    weights = shutil.copy(deep, tmp_path / "w.pt")
    network = UNetPlusPlus(3, 1, 3, channels=DEEP, strides=2)
    record = make_record(weights, network, {"data": "/secret/place/Task03_Liver", "_desc_": "x"})
    assert write_record(weights, record) == tmp_path / "w.json"
    assert (read_record(weights).data, "secret" in (tmp_path / "w.json").read_text()) == (
        "Task03_Liver",
        False,
    )


# Export, prune, pack


def test_pruned_and_exported_weights_keep_the_record(tmp_path, model):
    prune_weights(model, 1, tmp_path / "L1.pt")
    network = load_network(UNetPlusPlus(3, 1, 3, channels=OWN["channels"], strides=2), model)
    formats = ("pt", "onnx")
    paths = export_level(network, 1, tmp_path / "out", torch.rand(1, 1, 24, 24, 16), formats, source=model)
    for path in (tmp_path / "L1.pt", *paths.values()):
        assert read_record(path).pixdim == OWN["pixdim"]
        pipeline = load_pipeline(LIVER, "scans", tmp_path, ckpt_path=path, **CPU)
        assert pipeline.pixdim == tuple(OWN["pixdim"])


@pytest.fixture
def own_bundle(tmp_path):
    """A bundle whose metadata name the classes of the balls."""
    root = copy_bundle("liver", tmp_path / "bundles")
    metadata = json.loads((root / "metadata.json").read_text())
    metadata["network_data_format"]["outputs"]["pred"]["channel_def"] = LABELS
    (root / "metadata.json").write_text(json.dumps(metadata))
    return root


def test_packed_configs_follow_the_record(tmp_path, own_bundle, model):
    out = pack_bundle(own_bundle, model, tmp_path / "packed")
    for name in ("train", "inference"):
        packed = json.loads((out / "configs" / f"{name}.json").read_text())
        assert {key: packed[key] for key in OWN} == OWN
    assert read_record(out / "models" / "model.pt").labels == list(LABELS.values())
    assert load_pipeline(out, "scans", tmp_path, **CPU).network.depth == 2


def test_pack_refuses_classes_that_the_weights_do_not_have(tmp_path, model, capsys):
    arguments = ["pack", str(LIVER), "--checkpoint", str(model), "--out", str(tmp_path / "packed")]
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert (
        "metadata.json must name the classes of the weights, background, ball, pip, got background, liver"
        in said
    )
    assert 'channel_def {"0": "background", "1": "ball", "2": "pip"}' in said
    assert not (tmp_path / "packed").exists()


def test_pack_finds_the_overlay_of_the_weights(tmp_path):
    out = pack_bundle(LIVER, LIVER / "weights" / "slices.pt", tmp_path / "packed")
    packed = json.loads((out / "configs" / "inference.json").read_text())
    assert (packed["spatial_dims"], packed["largest_component"]) == (2, True)
