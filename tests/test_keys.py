# SPDX-License-Identifier: Apache-2.0
"""Keys that no configuration has are refused, with the nearest ones, wherever values are set."""

import re
import sys

import monai.bundle.__main__
import pytest
from processes import python

from bundles import BUNDLES, DEEP, TINY, TINY_TRAINING, raises_within, run
from monai_unetpp.__main__ import main
from monai_unetpp.bundle import parse_value
from monai_unetpp.segment import load_pipeline

LIVER = BUNDLES / "liver"

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "largest_componet",
            r"inference\.json has no key 'largest_componet': did you mean largest_component\?",
        ),
        ("chanels", r"has no key 'chanels': did you mean channels\b"),
        ("zzz", r"has no key 'zzz'; it has amp, .*windows\."),
        ("inferer#progres", r"inference\.json, inferer, has no key 'progres': did you mean progress\?"),
        ("network_def::strids", r"inference\.json, network_def, has no key 'strids': did you mean strides\?"),
        (
            "preprocessing_transforms#9#keys",
            r"preprocessing_transforms, has no key '9'; it has 0, 1, 2, 3, 4",
        ),
    ],
    ids=lambda text: text if re.fullmatch(r"[\w#:]+", text) else "",
)
def test_segment_refuses_a_key_that_inference_does_not_have(tmp_path, deep, key, message):
    with pytest.raises(ValueError, match=message):
        load_pipeline(LIVER, "scans", tmp_path, ckpt_path=deep, **{**TINY, key: 1})


@pytest.mark.parametrize(
    "key", ["windows#threshold", "windows#mode", "network_def#dropout", "amp_kwargs#dtype"]
)
def test_arguments_of_what_a_key_makes_are_keys_as_well(tmp_path, deep, key):
    value = {"windows#threshold": 0.5, "windows#mode": "constant", "network_def#dropout": 0.1}.get(key)
    settings = {**TINY, "channels": DEEP, key: value or "$torch.bfloat16"}
    load_pipeline(LIVER, "scans", tmp_path, ckpt_path=deep, **settings)


def test_command_says_so_in_one_line(balls, tmp_path, deep, capsys):
    arguments = ["-i", balls / "imagesTr", "-o", tmp_path, "--bundle", LIVER, "--checkpoint", deep]
    with pytest.raises(SystemExit) as end:
        main(["segment", *map(str, arguments), "--set", "largest_componet", "true"])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said == (
        "error: inference.json has no key 'largest_componet': did you mean largest_component?\n"
    ), said


@pytest.mark.parametrize("key", ["precision", "mirror", "series", "overwrite", "level", "output_dir"])
def test_command_sets_nothing_that_options_set(capsys, key):
    """Such a value would be replaced by that of the option, or its default."""
    with pytest.raises(SystemExit) as end:
        main(["segment", "-i", "scans", "-o", "masks", "--bundle", str(LIVER), "--set", key, "1"])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: --set must have keys of inference.json that no option sets, got {key}: ")


@pytest.mark.parametrize(("option", "key"), [("checkpoint", "ckpt_path"), ("device", "device")])
def test_command_sets_nothing_twice(capsys, option, key):
    segment = ["segment", "-i", "scans", "-o", "masks", "--bundle", str(LIVER)]
    with pytest.raises(SystemExit) as end:
        main([*segment, f"--{option}", "cpu", "--set", key, "cpu"])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said == f"error: --{option} and --set {key} are the same setting: give one of them.\n"


def test_training_refuses_a_key_before_anything_is_written(balls, tmp_path):
    with raises_within(ValueError, r"has no key 'max_epoch': did you mean max_epochs"):
        run("liver", "train", tmp_path / "root", dataset_dir=str(balls), max_epoch=1)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("names", ["train evaluate", "train levels", "inference"])
def test_what_follows_a_training_refuses_it_as_well(balls, tmp_path, deep, names):
    source = {"input": str(balls / "imagesTr")} if names == "inference" else {"dataset_dir": str(balls)}
    with raises_within(ValueError, r"has no key 'ckpt_pth': did you mean ckpt_path"):
        run("liver", names, tmp_path, ckpt_path=deep, **{**source, "channels": DEEP, "ckpt_pth": "x"})


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--max_epoch", r"train\.json has no key 'max_epoch': did you mean max_epochs"),
        ("--network_def#strids", r"train\.json, network_def, has no key 'strids': did you mean strides\?"),
        ("--tolerance", r"train\.json has no key 'tolerance'"),  # a key of levels.json
    ],
)
def test_monais_command_names_the_key_and_the_nearest(balls, tmp_path, flag, message):
    settings = {**TINY_TRAINING, "bundle_root": tmp_path, "dataset_dir": balls, "max_epochs": 1}
    command = ["-m", "monai.bundle", "run", "--config_file", str(LIVER / "train.json")]
    command += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    done = python(*command, flag, "1", cwd=tmp_path)
    assert done.returncode != 0
    assert re.search(message, done.stderr), done.stderr
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("words", [["--learning_rate", "None"], ["--learning_rate=None"]])
def test_none_is_not_ignored_without_a_word(balls, tmp_path, monkeypatch, words):
    """MONAI's command line leaves it out, and the value of the JSON would stay."""
    monkeypatch.setattr(sys, "argv", [monai.bundle.__main__.__file__, "run", "--config_file", "x", *words])
    said = r"--learning_rate None is left out by MONAI's.* would be 0\.01: write --learning_rate '\$None'"
    with raises_within(ValueError, said):
        run("liver", "train", tmp_path / "root", dataset_dir=str(balls), learning_rate=0.01)
    monkeypatch.setattr(sys, "argv", [*sys.argv[:4], "--patience", "None"])  # as it is in the JSON
    with raises_within(ValueError, "did you mean max_epochs"):
        run("liver", "train", tmp_path / "root", dataset_dir=str(balls), max_epoch=1)


@pytest.mark.parametrize(
    ("text", "value"),
    [("False", False), ("false", False), ("None", None), ("[1, 2]", [1, 2]), ("(1, 2)", [1, 2]), ("0.5", 0.5)]
    + [("ward 3", "ward 3"), ("3 mm", "3 mm")],
)
def test_values_are_read_as_one_types_them(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)
