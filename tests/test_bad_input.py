# SPDX-License-Identifier: Apache-2.0
"""What a user can do wrong with the liver bundle, from its JSONs on: the message names the file or the key.

And what looks wrong but is not: small volumes, cases without foreground.
"""

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bundles import (
    AFFINES,
    SIZE,
    Payload,
    affine,
    ball,
    config,
    raises_within,
    run,
    write_balls,
    write_cases,
)
from monai_unetpp.data import split_cases
from monai_unetpp.data.phantoms import phantom


def train(root, data, **override):
    return run("liver", "train", root, dataset_dir=str(data), **override)


def segment(root, source, model, **override):
    return run("liver", "inference", root, input=source, ckpt_path=str(model), **override)


def files(folder):
    """What is in a folder, but for the curves, which are opened before the first volume is."""
    return sorted(
        str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "runs" not in p.parts
    )


@pytest.fixture
def data(tmp_path) -> Path:
    """A data set of its own, to be spoilt."""
    return write_balls(tmp_path / "data")


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def model(trained) -> Path:
    return trained / "models" / "model.pt"


# The data set as a whole


def test_data_set_must_be_named_for_the_recipe_for_real_data(root):
    with raises_within(ValueError, "^dataset_dir must be given: --dataset_dir FOLDER"):
        run("liver", "train msd", root)
    assert files(root) == []


@pytest.mark.parametrize("names", ["train", "train msd", "train evaluate"])
def test_folder_without_an_index_is_named_and_left_alone(tmp_path, root, names, monkeypatch):
    monkeypatch.setattr(phantom, "write_phantoms", lambda *_, **__: pytest.fail("phantoms"))
    folder = tmp_path / "my-data"
    folder.mkdir()
    message = (
        rf"^dataset_dir holds no data set: {re.escape(str(folder))}\..*medicaldecathlon"
        ".*phantom --kind liver --out"
    )
    with raises_within(FileNotFoundError, message):
        run("liver", names, root, dataset_dir=str(folder))
    assert files(folder) == files(root) == []


def test_damaged_index_is_named(data, root):
    index = data / "dataset.json"
    index.write_text(index.read_text()[:-20])
    with raises_within(ValueError, rf"^{re.escape(str(index))} is not a data set of the Decathlon"):
        train(root, data)
    assert files(root) == []


def test_missing_file_is_named_before_the_first_is_read(data, root):
    (data / "labelsTr" / "LPS.nii.gz").unlink()
    with raises_within(FileNotFoundError, r"dataset\.json names 1 files .* first .*labelsTr/LPS\.nii\.gz"):
        train(root, data)
    assert files(root) == []


@pytest.mark.parametrize("wrong", [2, 4], ids=["too-few", "too-many"])
def test_number_of_classes_is_given_as_one_types_it(data, root, wrong):
    with raises_within(ValueError, rf"background, ball, pip .* got {wrong}: --out_channels 3\."):
        train(root, data, out_channels=wrong)
    assert files(root) == []


# One of its volumes


def spoil(path, change):
    """Replace a volume; ``change`` takes and returns its voxels and its affine."""
    file = nib.load(path)
    array, matrix = change(np.asarray(file.dataobj), file.affine)
    nib.save(nib.Nifti1Image(array, matrix), path)


def voxel(value, dtype):
    """A change that puts ``value`` into one voxel."""

    def change(array, matrix):
        array = array.astype(dtype)
        array[3, 4, 5] = value
        return array, matrix

    return change


SPOILT = {
    "label-of-another-shape": ("label", lambda a, m: (a[:-1], m), r"the shape of the image, \[.*\], got \["),
    "label-elsewhere": (
        "label",
        lambda a, m: (a, m + np.eye(4, k=3) * 9),
        r"must lie where the image lies; .* mm",
    ),
    "label-of-no-class": (
        "label",
        voxel(7, np.uint8),
        r"must have values 0\.\.2 \(out_channels = 3\), got 7\.",
    ),
    "label-between-classes": ("label", voxel(0.5, np.float32), r"must have values 0\.\.2 .*, got 0\.5\."),
    "image-with-nan": ("image", voxel(np.nan, np.float32), "has 1 voxels that are NaN or infinite"),
    "image-with-inf": ("image", voxel(np.inf, np.float32), "has 1 voxels that are NaN or infinite"),
    "image-of-two-channels": (
        "image",
        lambda a, m: (np.stack([a, a], -1), m),
        "must have one channel, got 2",
    ),
}


@pytest.mark.parametrize(("key", "change", "message"), SPOILT.values(), ids=SPOILT)
@pytest.mark.parametrize("names", ["train", "train evaluate"], ids=["train", "evaluate"])
def test_volume_that_no_network_should_see_stops_the_work(data, root, model, names, key, change, message):
    path = data / f"{key}sTr" / "oblique.nii.gz"
    spoil(path, change)
    override = {"eval_cases": "$@dataset.cases", "ckpt_path": str(model)} if "evaluate" in names else {}
    with raises_within(ValueError, f"{re.escape(str(path))} .*{message}"):
        run("liver", names, root, dataset_dir=str(data), **override)
    assert files(root) == []


@pytest.mark.parametrize("kept", [0, 0.7], ids=["empty", "cut-off"])
@pytest.mark.parametrize("key", ["image", "label"])
def test_file_that_ends_early_stops_training(data, root, key, kept):
    path = data / f"{key}sTr" / "PSR.nii.gz"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with raises_within(ValueError, rf"^{re.escape(str(path))} cannot be read, it may be damaged"):
        train(root, data)
    assert files(root) == []


def damaged(path):
    path.write_bytes(path.read_bytes()[:500])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damaged, "cannot be read, it may be damaged"),
        (lambda path: path.write_bytes(b""), "cannot be read, it may be damaged"),
        (lambda path: spoil(path, voxel(np.nan, np.float32)), "has 1 voxels that are NaN"),
    ],
    ids=["cut-off", "empty", "nan"],
)
def test_damaged_volume_is_not_segmented(data, root, model, change, message):
    path = data / "imagesTr" / "RAS.nii.gz"
    change(path)
    with raises_within(ValueError, rf"^{re.escape(str(path))} {message}"):
        segment(root, str(data / "imagesTr"), model)
    assert files(root) == ["output/LPS_seg.nii.gz", "output/PSR_seg.nii.gz"]  # those before it, whole
    for name in ("LPS", "PSR"):
        assert nib.load(root / "output" / f"{name}_seg.nii.gz").get_fdata().shape == SIZE


def test_nothing_to_segment_is_named(tmp_path, root, model):
    with raises_within(FileNotFoundError, rf"^{re.escape(str(tmp_path))}/ct\.nii\.gz does not exist"):
        segment(root, str(tmp_path / "ct.nii.gz"), model)
    (tmp_path / "empty").mkdir()
    with raises_within(FileNotFoundError, rf"^{re.escape(str(tmp_path))}/empty holds no volume"):
        segment(root, str(tmp_path / "empty"), model)
    assert files(root) == []


def test_two_volumes_of_one_name_are_not_written_as_one(data, root, model):
    shutil.copy(data / "imagesTr" / "RAS.nii.gz", data / "RAS.nii.gz")
    source = [str(data / "RAS.nii.gz"), str(data / "imagesTr" / "RAS.nii.gz")]
    with raises_within(ValueError, "would both be written as RAS"):
        segment(root, source, model)
    assert files(root) == []


# Checkpoints

USES = pytest.mark.parametrize("use", ["inference", "train evaluate"], ids=["inference", "evaluate"])


def apply(use, root, data, path, **override):
    """Use the weights at ``path``."""
    source = {"input": str(data / "imagesTr")} if use == "inference" else {"dataset_dir": str(data)}
    run("liver", use, root, ckpt_path=str(path), **source, **override)


@USES
def test_missing_checkpoint_is_named(balls, tmp_path, root, use):
    with raises_within(
        FileNotFoundError, rf"^no checkpoint at {re.escape(str(tmp_path))}/model\.pt: train first"
    ):
        apply(use, root, balls, tmp_path / "model.pt")
    assert files(root) == []


@USES
def test_truncated_checkpoint_is_named(balls, tmp_path, root, model, use):
    (tmp_path / "model.pt").write_bytes(model.read_bytes()[:-3000])
    with raises_within(ValueError, rf"^{re.escape(str(tmp_path))}/model\.pt cannot be read as a checkpoint"):
        apply(use, root, balls, tmp_path / "model.pt")
    assert files(root) == []


@USES
def test_checkpoint_of_code_is_refused_and_not_run(balls, tmp_path, root, use):
    torch.save({"model": Payload(tmp_path / "marker")}, tmp_path / "model.pt")
    with raises_within(ValueError, r"model\.pt is refused: .*no code"):
        apply(use, root, balls, tmp_path / "model.pt")
    assert not (tmp_path / "marker").exists()
    assert files(root) == []


@pytest.mark.parametrize("key", ["in_channels", "out_channels"])
def test_checkpoint_of_other_channels_is_refused_and_both_numbers_are_named(balls, root, model, key):
    there = {"in_channels": 1, "out_channels": 3}[key]
    with raises_within(
        ValueError, rf"^{key} must be {there}, with which {re.escape(str(model))} was trained"
    ):
        apply("inference", root, balls, model, **{key: 2})
    message = rf"^{re.escape(str(model))} does not fit .*{key} {there} in the file, 2 in the network"
    with raises_within(ValueError, message):
        apply("inference", root, balls, model, override_record=True, **{key: 2})
    assert files(root) == []


def test_checkpoint_of_other_widths_is_refused(balls, root, model):
    with raises_within(ValueError, rf"^channels must be \[4, 8\], with which {re.escape(str(model))} was"):
        apply("train evaluate", root, balls, model, channels=[4, 6])
    with raises_within(ValueError, rf"^{re.escape(str(model))} does not fit .* is \[.*\] in the file and \["):
        apply("train evaluate", root, balls, model, channels=[4, 6], override_record=True)
    assert files(root) == []


def test_nothing_to_resume_is_named(balls, root):
    with raises_within(
        FileNotFoundError, rf"nothing to resume: {re.escape(str(root))}/models holds no checkpoint"
    ):
        train(root, balls, resume=True)
    assert files(root) == []


def test_resumed_training_refuses_a_network_of_another_shape(trained, balls, tmp_path):
    shutil.copytree(trained, tmp_path / "root")
    before = files(tmp_path / "root")
    with raises_within(ValueError, r"^channels must be \[4, 8\], with which .* was trained, got \[4, 6\]"):
        train(tmp_path / "root", balls, resume=True, max_epochs=3, channels=[4, 6])
    with raises_within(ValueError, r"checkpoint_epoch=2\.pt does not fit the network"):
        train(tmp_path / "root", balls, resume=True, max_epochs=3, channels=[4, 6], override_record=True)
    assert files(tmp_path / "root") == before


def test_resumed_training_refuses_fewer_epochs_than_it_has_behind_it(trained, balls, tmp_path):
    shutil.copytree(trained, tmp_path / "root")
    with raises_within(ValueError, r"Epoch count \(2\) in checkpoint is larger than .*max_epochs. \(1\)"):
        train(tmp_path / "root", balls, resume=True, max_epochs=1)


# Unusual, but right


@pytest.mark.parametrize("size", [(9, 10, 11), (40, 6, 7), (5, 30, 2)], ids=["small", "rod", "two-slices"])
def test_volume_smaller_than_the_patch_trains_and_is_segmented(root, size):
    balls = [ball(name, matrix, size, radius=9) for name, matrix in AFFINES.items()]
    data = write_cases(root / "cases", balls)
    train(root, data, max_epochs=1)
    segment(root, str(data / "imagesTr"), root / "models" / "model.pt")
    for name in AFFINES:
        found = nib.load(root / "output" / f"{name}_seg.nii.gz")
        assert found.shape == size
        assert np.array_equal(found.affine, nib.load(data / "imagesTr" / f"{name}.nii.gz").affine)


def without_foreground(root, held_out):
    """Cases of which those for the validation, or one of the others, have no foreground."""
    balls = [ball(name, matrix) for name, matrix in AFFINES.items()]
    pairs = [{"image": f"imagesTr/{name}.nii.gz"} for name in AFFINES]
    sides = split_cases(pairs, config("liver", "train")["val_fraction"], 0)
    names = {Path(case["image"]).name.split(".")[0] for case in (sides[1] if held_out else sides[0][:1])}
    for case, name in zip(balls, AFFINES, strict=True):
        if name in names:
            case.label[:] = 0
    return write_cases(root / "cases", balls)


def test_validation_without_foreground_is_refused_before_training(root):
    message = "none of the . validation labels has a class, .*larger --val_fraction"
    with raises_within(ValueError, match=message):
        train(root, without_foreground(root, held_out=True), max_epochs=1)
    assert not list((root / "models").glob("*.pt"))


def test_case_without_foreground_trains(root):
    flow = train(root, without_foreground(root, held_out=False), max_epochs=1)
    assert np.isfinite(flow.trainer.state.metrics["train_loss"])
    weights = torch.load(root / "models" / "model.pt", weights_only=True)
    assert all(torch.isfinite(weight).all() for weight in weights.values())


def test_constant_volume_trains(root):
    balls = [ball(name, affine()) for name in AFFINES]
    balls[0].image[:] = -1000
    flow = train(root, write_cases(root / "cases", balls), max_epochs=1)
    assert np.isfinite(flow.trainer.state.metrics["train_loss"])


def test_overrides_of_these_tests_name_keys_that_exist():
    """A key that is not in a JSON is added by MONAI and has no effect, so that a test would test nothing."""
    train, evaluate, inference = (config("liver", name) for name in ("train", "evaluate", "inference"))
    assert {"dataset_dir", "out_channels", "channels", "resume", "max_epochs"} <= train.keys()
    assert {"eval_cases", "ckpt_path"} <= evaluate.keys()
    assert {"input", "ckpt_path", "in_channels", "out_channels"} <= inference.keys()
    assert json.dumps(inference).count("@in_channels") > 0
