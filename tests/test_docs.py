# SPDX-License-Identifier: Apache-2.0
"""What pages, tutorials and workflows say of the package is true; .ci/run builds the site itself."""

import argparse
import importlib.util
import json
import os
import re
import runpy
import shlex
from pathlib import Path

import pytest

import monai_unetpp
from monai_unetpp.commands import COMMANDS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FOLDERS = ("benchmarks", "bundles/*", "bundles/*/weights", "tutorials", "monai_unetpp/**", ".github")
WRITTEN = sorted(
    {*PAGES, *ROOT.glob("*.md")}
    | {path for folder in FOLDERS for path in ROOT.glob(f"{folder}/*.md")}
    | {*(ROOT / "benchmarks/faults").glob("*.md"), *(ROOT / "benchmarks/results").glob("*.md")}
)
TUTORIALS = sorted(ROOT.glob("tutorials/[0-9]*.py"))
EVERY_PAGE = pytest.mark.parametrize("page", WRITTEN, ids=lambda path: path.relative_to(ROOT).as_posix())
WORKFLOW = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
WIDTH, ROW = 120, 200  # a row of a table cannot be broken


def fenced(page):
    """The blocks of code of a page, each with its language; of a tutorial, those in its Markdown cells."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".py":
        text = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
    return re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE)


def commands(start, pages=WRITTEN):
    """Words of the commands on pages that match ``start``, and what follows it."""
    for page in pages:
        for _, block in fenced(page):
            for line in block.replace("\\\n", " ").splitlines():
                found = re.search(start, line)
                if found and not line.startswith("#"):
                    end = ")" if line[: found.start()].endswith("$(") else "&&"
                    yield shlex.split(line[found.end() :].split(end)[0], comments=True)


# Pages


def test_every_public_name_is_in_the_api_reference():
    shown = []
    for dotted in re.findall(
        r"^::: (\S+)", "".join(p.read_text(encoding="utf-8") for p in PAGES), flags=re.MULTILINE
    ):
        room, name = dotted.rsplit(".", 1)
        if importlib.util.find_spec(dotted) is None:
            shown.append(getattr(importlib.import_module(room), name))
        else:
            module = importlib.import_module(dotted)
            shown += [getattr(module, name) for name in module.__all__]
    public = {name: getattr(monai_unetpp, name) for name in monai_unetpp.__all__}
    assert [name for name, thing in public.items() if not any(thing is other for other in shown)] == []


def test_every_page_in_the_navigation_exists():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1].split("\n\n")[0]
    named = re.findall(r"(\S+\.md)", nav)
    assert len(named) > 20
    sources = {"overview.md": "README.md"}  # the site has an index of its own
    missing = [n for n in named if not (DOCS / n).is_file() and not (ROOT / sources.get(n, n)).is_file()]
    assert missing == []


@EVERY_PAGE
def test_files_that_a_page_links_to_exist(page):
    for link in re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), f"{page} names {link}"


@EVERY_PAGE
def test_files_of_the_repository_that_a_page_names_exist(page):
    folders = "|".join(("docs", "tests", "tutorials", "benchmarks", "monai_unetpp", r"\.ci", r"\.github"))
    for name in re.findall(rf"`((?:{folders})/[\w./-]+)`", page.read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), f"{page} names {name}"


def test_python_of_the_page_on_the_network_runs_in_order():
    scope = {}
    for language, block in fenced(DOCS / "how-to/network.md"):
        assert language == "python"
        exec(compile(block, "network.md", "exec"), scope)
    assert tuple(scope["logits"].shape) == (1, 2, 48, 40, 33)  # as its comment says
    assert len(scope["every_level"]) == 3
    assert tuple(scope["item"]["pred"].shape) == (2, 32, 32, 32)


def test_python_of_the_page_on_findings_runs():
    (block,) = (block for language, block in fenced(DOCS / "how-to/findings.md") if language == "python")
    scope = {}
    exec(compile(block, "findings.md", "exec"), scope)
    assert scope["nodule"].volume_ml == pytest.approx(192 * 1.28e-3)


def test_data_set_of_the_page_on_training_is_one(tmp_path):
    index, regions = (
        json.loads(block) for language, block in fenced(DOCS / "how-to/train.md") if language == "json"
    )
    for case in index["training"]:
        for path in case.values():
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).touch()
    (tmp_path / "dataset.json").write_text(json.dumps(index), encoding="utf-8")
    read = importlib.import_module("monai_unetpp.data").read_dataset
    data = read(tmp_path, out_channels=2)
    assert (len(data.cases), data.labels) == (2, ["background", "kidney"])
    (tmp_path / "dataset.json").write_text(json.dumps(index | regions), encoding="utf-8")
    values, order = [[1, 2, 3], [2, 3], [3]], regions["regions_class_order"]
    data = read(tmp_path, out_channels=3, regions=values, regions_class_order=order)
    assert data.labels == ["background", "whole_tumor", "tumor_core", "enhancing"]


@EVERY_PAGE
def test_lines_are_short(page):
    lines = enumerate(page.read_text(encoding="utf-8").splitlines(), start=1)
    most = {n: (ROW if line.startswith("|") else WIDTH, line.strip()) for n, line in lines}
    long = [n for n, (width, line) in most.items() if len(line) > width and " " in line]
    assert long == [], f"{page.relative_to(ROOT)}: lines {long} have more than {WIDTH} characters"


@EVERY_PAGE
def test_no_page_has_the_marks_of_a_merge(page):
    assert not re.search(r"^[<>]{7} ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)


DIALECT = (  # and the words of the field
    ("held[- ]back", "held-out, held out"),
    (r"l(?:ies|ie|ay|ying) over", "is merged over, overrides"),
    (r"doubts?\b|unsure", "uncertainty, uncertain"),
    ("mended", "fixed"),
    ("line by line", "eager mode"),
    ("hangs? together", "largest connected component"),
    ("left[- ]over", "stale"),
    ("whole or (?:not|absent)", "atomic"),
)


NOT_HISTORY = [page for page in [*WRITTEN, *TUTORIALS] if page.name != "CHANGELOG.md"]  # old names are there


@pytest.mark.parametrize("page", NOT_HISTORY, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_pages_use_the_words_of_the_field(page):
    text = re.sub(r"\s+(?:# )?", " ", page.read_text(encoding="utf-8"))
    for dialect, better in DIALECT:
        assert not re.search(rf"\b(?:{dialect})", text, flags=re.IGNORECASE), f"{page.name}: {better}"


# Commands


def test_commands_of_this_package_have_the_options_that_pages_give_them():
    found = list(commands(r"(?:-m monai_unetpp|(?<![\w./-])monai-unetpp) ", [*WRITTEN, *TUTORIALS]))
    lines = [words for words in found if words[0] in COMMANDS and words[1:] != ["--help"]]
    assert [words[0] for words in found if words[0] not in {*COMMANDS, "COMMAND", "--version"}] == []
    assert {words[0] for words in lines} == {*COMMANDS}
    for name, *words in lines:
        parser = argparse.ArgumentParser()
        COMMANDS[name](parser)
        parser.parse_args(words)  # exits on an option that does not exist


def test_short_form_of_the_command_is_on_the_pages():
    for page in (ROOT / "README.md", DOCS / "how-to/segment.md"):
        assert re.search(r"^monai-unetpp segment ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_configurations_have_the_keys_that_pages_override():
    lines = [words for words in commands(r"-m monai\.bundle run ") if "--config_file" in words]
    checked = 0
    for words in lines:
        files = re.findall(r"[\w/]+\.json", words[words.index("--config_file") + 1])
        files = [name.replace("kidney/", "bundles/liver/") for name in files]  # copied on that page
        if files:  # and no variable of the shell
            keys = set().union(*(json.loads((ROOT / name).read_text(encoding="utf-8")) for name in files))
            given = {word[2:].split("#")[0] for word in words if word.startswith("--")}
            given -= {"config_file", "tracking"}  # arguments of MONAI's own
            assert given <= keys | {"dataset_dir"}, f"{files} have no {given - keys}"
            checked += 1
    assert checked > 30


def test_tests_that_the_page_for_contributors_runs_exist():
    named = re.findall(r"(tests/\w+\.py)(?:::(\w+))?", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert any(test for _, test in named)
    for path, test in named:
        assert f"def {test}" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{test}"


# Beside the site


def test_citation_has_the_version_of_the_package():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (\S+)$", text, flags=re.MULTILINE) == [monai_unetpp.__version__]


def test_figure_is_what_its_script_draws():
    for figure in sorted((DOCS / "figures").glob("*.svg")):
        script = figure.with_suffix(".py")
        assert figure.read_text(encoding="utf-8") == runpy.run_path(str(script))["draw"]()


def test_workflow_takes_the_command_that_ci_takes():
    pattern = r"grep -m 1 -E '(.*?)' README\.md"
    assert re.findall(pattern, WORKFLOW) == re.findall(
        pattern, (ROOT / ".ci/run").read_text(encoding="utf-8")
    )


def test_workflow_tries_the_lowest_versions_that_are_supported():
    project = (
        (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[project.optional-dependencies]")[0]
    )
    for name in ("torch", "monai"):
        (tried,) = re.findall(rf'{name}: "([\d.]+)"', WORKFLOW)
        (lowest,) = re.findall(rf'"{name}>=([\d.]+)"', project)
        assert tried.removesuffix(".0") == lowest.removesuffix(".0")


def test_spelling_is_checked_wherever_style_is():
    for name in (".ci/run", ".github/workflows/ci.yml", ".pre-commit-config.yaml"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "codespell" in text, name
        assert "ruff check" in text, name


def test_workflows_use_scripts_that_exist_and_can_run():
    workflows = sorted((ROOT / ".github/workflows").glob("*.yml"))
    assert [path.name for path in workflows] == ["ci.yml", "publish.yml"]
    for path in workflows:
        for script in re.findall(r"run: (\.ci/\w+)", path.read_text(encoding="utf-8")):
            assert os.access(ROOT / script, os.X_OK), script


def test_files_of_github_are_yaml():
    yaml = pytest.importorskip("yaml")
    files = sorted((ROOT / ".github").rglob("*.yml"))
    assert len(files) >= 6
    for path in files:
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict), path


def test_tests_that_the_workflow_leaves_out_exist():
    names = re.findall(r"--ignore (\S+)", WORKFLOW)
    assert names
    assert [name for name in names if not (ROOT / name).is_file()] == []
