# SPDX-License-Identifier: Apache-2.0
"""What the site, the community files and CI say of the package is so; the site itself is built by .ci/run."""

import argparse
import importlib.util
import json
import re
import runpy
import shlex
from pathlib import Path

import pytest

import monai_unetpp
from monai_unetpp.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
WRITTEN = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "README.md"]
EVERY_PAGE = pytest.mark.parametrize("page", WRITTEN, ids=lambda path: path.relative_to(ROOT).as_posix())
WORKFLOW = (ROOT / ".github/workflows/ci.yml").read_text()


def fenced(page):
    """The blocks of code of a page, each with its language."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def commands(start):
    """Words of the commands on all pages that have ``start`` in them, and what follows it."""
    for page in WRITTEN:
        for _, block in fenced(page):
            for line in block.replace("\\\n", " ").splitlines():
                if start in line and not line.startswith("#"):
                    yield shlex.split(line.split(start, 1)[1].split("&&")[0], comments=True)


# Pages


def test_every_public_name_is_in_the_api_reference():
    shown = []
    for dotted in re.findall(r"^::: (\S+)", "".join(p.read_text() for p in PAGES), flags=re.MULTILINE):
        room, name = dotted.rsplit(".", 1)
        if importlib.util.find_spec(dotted) is None:
            shown.append(getattr(importlib.import_module(room), name))
        else:
            module = importlib.import_module(dotted)
            shown += [getattr(module, name) for name in module.__all__]
    public = {name: getattr(monai_unetpp, name) for name in monai_unetpp.__all__}
    assert [name for name, thing in public.items() if not any(thing is other for other in shown)] == []


def test_every_page_in_the_navigation_exists():
    nav = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1].split("\n\n")[0]
    named = re.findall(r"(\S+\.md)", nav)
    assert len(named) > 20
    sources = {"overview.md": "README.md"}  # the site has an index of its own
    missing = [n for n in named if not (DOCS / n).is_file() and not (ROOT / sources.get(n, n)).is_file()]
    assert missing == []


@EVERY_PAGE
def test_files_that_a_page_links_to_exist(page):
    for link in re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", page.read_text()):
        assert (page.parent / link).exists(), f"{page} names {link}"


@EVERY_PAGE
def test_files_of_the_repository_that_a_page_names_exist(page):
    folders = "|".join(("docs", "tests", "tutorials", "benchmarks", "monai_unetpp", r"\.ci", r"\.github"))
    for name in re.findall(rf"`((?:{folders})/[\w./-]+)`", page.read_text()):
        assert (ROOT / name).exists(), f"{page} names {name}"


def test_python_of_the_page_on_the_network_runs_in_order():
    scope = {}
    for language, block in fenced(DOCS / "how-to/network.md"):
        assert language == "python"
        exec(compile(block, "network.md", "exec"), scope)
    assert tuple(scope["logits"].shape) == (1, 2, 48, 40, 33)  # as its comment says
    assert len(scope["every_level"]) == 3
    assert tuple(scope["item"]["pred"].shape) == (2, 32, 32, 32)


def test_data_set_of_the_page_on_training_is_one(tmp_path):
    (index,) = (
        json.loads(block) for language, block in fenced(DOCS / "how-to/train.md") if language == "json"
    )
    for case in index["training"]:
        for path in case.values():
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).touch()
    (tmp_path / "dataset.json").write_text(json.dumps(index))
    data = importlib.import_module("monai_unetpp.data").read_dataset(tmp_path, out_channels=2)
    assert (len(data.cases), data.labels) == (2, ["background", "kidney"])


# Commands


def test_commands_of_this_package_have_the_options_that_pages_give_them():
    lines = [words for words in commands("-m monai_unetpp ") if words[1:] != ["--help"]]
    assert {words[0] for words in lines} >= {"phantom", "segment", "prune", "pack"}
    for name, *words in lines:
        parser = argparse.ArgumentParser()
        COMMANDS[name](parser)
        parser.parse_args(words)  # exits on an option that is not there


def test_configurations_have_the_keys_that_pages_override():
    lines = [words for words in commands("-m monai.bundle run ") if "--config_file" in words]
    assert len(lines) > 8
    for words in lines:
        files = re.findall(r"[\w/]+\.json", words[words.index("--config_file") + 1])
        files = [
            name.replace("kidney/", "bundles/liver/") for name in files
        ]  # copied on the page on training
        keys = set().union(*(json.loads((ROOT / name).read_text()) for name in files))
        given = {word[2:].split("#")[0] for word in words if word.startswith("--")} - {"config_file"}
        assert given <= keys | {"dataset_dir"}, f"{files} have no {given - keys}"


# Beside the site


def test_citation_has_the_version_of_the_package():
    text = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^version: (\S+)$", text, flags=re.MULTILINE) == [monai_unetpp.__version__]


def test_figure_is_what_its_script_draws():
    for script in sorted((DOCS / "figures").glob("*.py")):
        assert script.with_suffix(".svg").read_text() == runpy.run_path(str(script))["draw"]()


def test_workflow_takes_the_command_that_ci_takes():
    pattern = r"grep -m 1 -E '(.*?)' README\.md"
    assert re.findall(pattern, WORKFLOW) == re.findall(pattern, (ROOT / ".ci/run").read_text())


def test_workflow_tries_the_lowest_versions_that_are_supported():
    project = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[0]
    for name in ("torch", "monai"):
        (tried,) = re.findall(rf'{name}: "([\d.]+)"', WORKFLOW)
        (lowest,) = re.findall(rf'"{name}>=([\d.]+)"', project)
        assert tried.removesuffix(".0") == lowest.removesuffix(".0")


def test_tests_that_the_workflow_leaves_out_exist():
    names = re.findall(r"--ignore (\S+)", WORKFLOW)
    assert names
    assert [name for name in names if not (ROOT / name).is_file()] == []
