# SPDX-License-Identifier: Apache-2.0
"""monai-unetpp train, evaluate, levels: the configurations of a bundle, errors in one line."""

import json
import shutil
import sys

import pytest
from processes import python

from bundles import BUNDLES, TINY_TRAINING
from monai_unetpp.__main__ import main
from monai_unetpp.bundle.workflows import next_arguments, settings_of
from monai_unetpp.errors import find_cause

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _path_as_before(monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path[:])  # a workflow adds its folder


@pytest.fixture
def kidney(tmp_path):
    """A copy of the bundle, as a user makes one."""
    return shutil.copytree(BUNDLES / "liver", tmp_path / "kidney")


def words(**settings):
    pairs = {**TINY_TRAINING, **settings}
    return [word for key, value in pairs.items() for word in (f"--{key}", str(value))]


def fails(capsys, *arguments):
    """The one line on stderr of a command that ends with status 2."""
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in arguments])
    assert end.value.code == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_bundle_is_trained_evaluated_and_its_levels_are_scored(kidney, balls):
    settings = words(dataset_dir=balls, channels=[4, 6, 8], max_epochs=1)
    main(["train", str(kidney), *settings])
    main(["evaluate", str(kidney), *settings])
    main(["levels", str(kidney), *settings, "--formats", '["pt"]'])
    assert (kidney / "models" / "model.pt").is_file()
    assert (kidney / "eval" / "val_mean_dice_raw.csv").is_file()
    assert (kidney / "levels" / "levels.csv").is_file()


def test_overlay_is_merged_and_named_in_the_next_command(kidney, balls, capfd):
    settings = words(dataset_dir=balls, out_channels=3, channels=[4, 6], max_epochs=1)
    flat = ["--roi_size", "[16, 16, 1]", "--pixdim", "[4, 4, -1]"]
    main(["train", str(kidney), "--overlay", "slices", *settings, *flat])
    assert (kidney / "models" / "slices" / "model.pt").is_file()
    out = capfd.readouterr().out
    assert f"monai-unetpp evaluate {kidney} --overlay slices --dataset_dir {balls} --device" in out
    assert out.rstrip().endswith(f"monai-unetpp segment -i SCANS -o MASKS --bundle {kidney} --overlay slices")


@pytest.mark.parametrize(
    ("name", "key", "message"),
    [
        ("train", "max_epoch", "train.json has no key 'max_epoch': did you mean max_epochs?"),
        ("evaluate", "eval_case", "evaluate.json has no key 'eval_case': did you mean eval_cases?"),
        ("train", "train#random_transform", "no key 'random_transform': did you mean random_transforms?"),
        ("levels", "xyzzy", "levels.json has no key 'xyzzy'; it has amp, "),
    ],
)
def test_unknown_key_is_refused_with_the_nearest_ones(kidney, capsys, name, key, message):
    assert message in fails(capsys, name, kidney, f"--{key}", "1")
    assert not (kidney / "models").exists()


def test_argument_of_a_component_is_a_key(kidney, balls):
    main(["train", str(kidney), *words(dataset_dir=balls, max_epochs=1), "--network_def#dropout", "0.1"])
    assert (kidney / "models" / "model.pt").is_file()


def test_a_mistake_is_one_line_with_its_cause(kidney, tmp_path, balls, capsys):
    none = fails(capsys, "train", kidney, "--dataset_dir", tmp_path / "none")
    assert none.startswith("error: dataset_dir holds no data set: ")
    many = fails(capsys, "train", kidney, *words(dataset_dir=balls, out_channels=7))
    assert many.startswith("error: out_channels must be 3 for the labels background, ball, pip of ")
    overlay = fails(capsys, "train", kidney, "--overlay", "msb")
    assert "has no msb.json; it has early_exit, evaluate, " in overlay


@pytest.mark.parametrize("workers", [0, 1])
def test_cause_within_a_transform_is_found(kidney, tmp_path, balls, capsys, workers):
    data = shutil.copytree(balls, tmp_path / "data")
    for path in (data / "imagesTr").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    line = fails(capsys, "train", kidney, *words(dataset_dir=data, num_workers=workers, cache_rate=0.0))
    assert "nii.gz" in line
    assert "applying transform" not in line


def test_mistake_that_a_handler_finds_has_no_traceback(kidney, balls, capsys):
    main(["train", str(kidney), *words(dataset_dir=balls, max_epochs=1)])
    capsys.readouterr()
    settings = words(dataset_dir=balls, max_epochs=2, resume=True, learning_rate=1e-7)
    with pytest.raises(SystemExit):
        main(["train", str(kidney), *settings])
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    assert said.err.splitlines()[-1].startswith("error: learning_rate is 1e-07 now and ")


def test_monais_command_ends_in_the_cause(kidney, tmp_path):
    command = ["-m", "monai.bundle", "run", "--config_file", kidney / "train.json"]
    done = python(*command, "--bundle_root", kidney, "--dataset_dir", tmp_path / "none")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: dataset_dir holds no data set: ")


def test_bug_keeps_its_traceback():
    assert find_cause(RuntimeError("a shape")) is None
    wrapped = RuntimeError("applying transform")
    wrapped.__cause__ = ValueError("two\nlines")
    assert find_cause(wrapped) == "two lines"


def test_words_are_settings():
    typed = [
        "--a",
        "1",
        "--b=x=y",
        "--resume",
        "--c",
        "[1, 2]",
        "--d",
        "1,2",
        "--max-epochs",
        "3",
        "--e",
        "None",
    ]
    assert settings_of(typed) == {
        "a": 1, "b": "x=y", "resume": True, "c": [1, 2], "d": [1, 2], "max_epochs": 3, "e": None,
    }  # fmt: skip
    with pytest.raises(ValueError, match="'kidney' is no --KEY VALUE: the bundle comes first"):
        settings_of(["kidney", "--a", "1"])


def test_next_command_has_the_settings_of_this_one():
    settings = {"dataset_dir": "my data", "channels": [4, 8], "resume": True, "seed": 1}
    text = next_arguments(["slices"], settings)
    assert text == "--overlay slices --dataset_dir 'my data' --seed 1"


def test_console_of_a_training_has_no_message_of_another_library(kidney, balls):
    done = python("-m", "monai_unetpp", "train", kidney, *words(dataset_dir=balls, max_epochs=1))
    assert done.returncode == 0, done.stderr
    assert "nvImageCodec" not in done.stdout + done.stderr
    assert "Warning" not in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].split(" - INFO - ")[1].startswith("Segment: monai-unetpp segment")
    assert json.loads((BUNDLES / "liver" / "train.json").read_text())["arguments"]
