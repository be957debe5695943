# SPDX-License-Identifier: Apache-2.0
import argparse
import filecmp
import json
import pickle
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from pydoc import locate

import pytest

import monai_unetpp
from monai_unetpp import __version__
from monai_unetpp.__main__ import main
from monai_unetpp.commands import COMMANDS
from monai_unetpp.commands.shared import SHARED
from monai_unetpp.data.phantoms import write_liver_phantoms

pytestmark = pytest.mark.slow


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def test_phantom_writes_a_data_set_and_says_where(tmp_path):
    done = python(
        "-m", "monai_unetpp", "phantom", "--out", str(tmp_path / "ct"), "--cases", "1", "--seed", "4"
    )
    assert done.returncode == 0, done.stderr
    index = (tmp_path / "ct" / "dataset.json").resolve()
    assert done.stdout == f"1 cases, listed in {index}\n"
    assert "1/1" not in done.stderr  # bars are for terminals
    assert len(json.loads(index.read_text())["training"]) == 1


def test_phantom_passes_its_arguments_on(tmp_path, capsys):
    arguments = ["phantom", "--out", str(tmp_path / "a"), "--cases", "1", "--seed", "5"]
    main(arguments)
    main([*arguments, "--overwrite"])
    write_liver_phantoms(tmp_path / "b", cases=1, seed=5)
    for name in ("dataset.json", "imagesTr/liver_000.nii.gz", "labelsTr/liver_000.nii.gz"):
        assert filecmp.cmp(tmp_path / "a" / name, tmp_path / "b" / name, shallow=False)
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("argument", ["--version", "--help"])
def test_version_and_help_load_neither_torch_nor_monai(argument):
    code = f"""
import sys
sys.modules |= dict.fromkeys(["torch", "monai", "numpy"])  # None: importing one fails
sys.argv = ["monai-unetpp", {argument!r}]
from monai_unetpp.__main__ import main
main()
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert "monai-unetpp" in done.stdout


def test_public_names_are_there_on_first_use_and_stay_the_same():
    assert {*monai_unetpp.__all__} <= {*dir(monai_unetpp)}
    for name in monai_unetpp.__all__:
        assert getattr(monai_unetpp, name) is getattr(monai_unetpp, name)
    assert locate("monai_unetpp.UNetPlusPlus") is monai_unetpp.network.UNetPlusPlus
    assert pickle.loads(pickle.dumps(monai_unetpp.UNetPlusPlus)) is monai_unetpp.UNetPlusPlus
    with pytest.raises(AttributeError, match="has no attribute 'UNetPlusPlusPlus'"):
        monai_unetpp.UNetPlusPlusPlus  # noqa: B018


def test_importing_the_package_needs_no_more_than_torch_and_monai():
    code = """
import sys
sys.modules |= dict.fromkeys(["nibabel", "SimpleITK", "tqdm", "ignite"])  # None: importing one fails
import monai_unetpp
[getattr(monai_unetpp, name) for name in monai_unetpp.__all__]
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("argument", ["--version", "--help"], ids=["version", "help"])
def test_version_and_help_end_well(capsys, argument):
    with pytest.raises(SystemExit) as end:
        main([argument])
    assert end.value.code == 0
    expected = {"--version": f"monai-unetpp {__version__}\n", "--help": "phantom"}[argument]
    assert expected in capsys.readouterr().out


def test_console_script_is_the_same_program_under_its_own_name(monkeypatch, capsys):
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((Path(monai_unetpp.__file__).parents[1] / "pyproject.toml").read_text())
    script = EntryPoint("", project["project"]["scripts"]["monai-unetpp"], "console_scripts")
    monkeypatch.setattr(sys, "argv", ["/usr/bin/monai-unetpp", "segment", "--help"])
    with pytest.raises(SystemExit) as end:
        script.load()()
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("usage: monai-unetpp segment [-h] -i INPUT")
    done = python("-m", "monai_unetpp", "prune", "--help")
    assert done.stdout.startswith("usage: python -m monai_unetpp prune [-h] --checkpoint")


def test_options_that_several_commands_share_are_declared_once():
    declared = {}
    for name, declare in COMMANDS.items():
        declare(parser := argparse.ArgumentParser())
        for action in parser._actions:
            for flag in {*action.option_strings} & {*SHARED}:
                declared.setdefault(flag, []).append((name, type(action), action.type, action.metavar))
    assert {*declared} == {*SHARED}
    for flag, uses in declared.items():
        assert len(uses) > 1, f"{flag} is an option of {uses[0][0]} alone"
        assert len({use[1:] for use in uses}) == 1, f"{flag} differs: {uses}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["trane"], "invalid choice: 'trane'"),
        (["train"], "required: BUNDLE"),
        (
            ["prune", "--checkpoint", "x", "--level", "1", "--out", "y", "--levl", "2"],
            "unrecognized arguments",
        ),
        (["phantom"], "required: --out"),
        (["phantom", "--out", "x", "--cases", "many"], "invalid int value: 'many'"),
    ],
    ids=["no-command", "unknown-command", "no-bundle", "unknown-option", "no-directory", "not-a-number"],
)
def test_wrong_arguments_exit_with_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "arguments", "message"),
    [
        ("new", ["--cases", "0"], "cases must be at least 1, got 0."),
        ("new", ["--seed", "-1"], "seed must not be negative, got -1."),
        ("full", [], "already holds a data set"),
        ("file", [], "Not a directory"),
    ],
    ids=["cases", "seed", "existing-data-set", "directory-is-a-file"],
)
def test_a_users_mistake_is_one_line_and_exits_with_2(tmp_path, capsys, place, arguments, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "dataset.json").write_text("{}")
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as end:
        main(["phantom", "--out", str(tmp_path / place), *arguments])
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
