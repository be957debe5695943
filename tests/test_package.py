# SPDX-License-Identifier: Apache-2.0
"""What lies where, and what may import what: docs/architecture.md says it, and the code is held to it."""

import ast
import doctest
import importlib
import pkgutil
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

import monai_unetpp
from monai_unetpp.bundle import PARTS

HOUSE = Path(monai_unetpp.__file__).parent
MODULES = sorted(module.name for module in pkgutil.walk_packages([str(HOUSE)], "monai_unetpp."))
PAGE = (HOUSE.parent / "docs/architecture.md").read_text(encoding="utf-8")


def section(title):
    """The text of the page below a heading."""
    return re.split(rf"^## {re.escape(title)}$", PAGE, flags=re.MULTILINE)[1].split("\n## ")[0]


def quoted(text):
    return re.findall(r"`([^`]+)`", text)


def tree():
    """Path -> description of each file and folder in the page's tree; folders end in a slash."""
    found, above = {}, []
    for line in section("The rooms").split("```")[1].splitlines()[2:]:  # without the package itself
        indent, name, text = re.fullmatch(r"( +)(\S+) *(.*)", line).groups()
        above = [*above[: len(indent) // 2 - 1], name]
        found["".join(above)] = text
    return found


def arrows():
    """Room -> rooms that it imports, in the order of the page's table: what is imported stands above."""
    rows = re.findall(r"^\| (`[\w.]+`) \| (.*?) \|$", section("Imports point one way"), flags=re.MULTILINE)
    return {quoted(room)[0]: set(quoted(others)) for room, others in rows}


TREE, ARROWS = tree(), arrows()


def source(name):
    path = HOUSE.parent.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports(name, *, when_loaded=False):
    """Dotted names that a module imports: anywhere, or only those at its top level."""
    tree = ast.parse(source(name).read_text(encoding="utf-8"))
    for node in tree.body if when_loaded else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from {dotted if dotted in MODULES else node.module for dotted in inside}


def room(name):
    """The row of the page's table that a module belongs to: the longest name that it begins with."""
    inside = name.removeprefix("monai_unetpp").removeprefix(".") or "__init__"
    found = [room for room in ARROWS if f"{inside}.".startswith(f"{room}.")]
    return max(found, key=len, default=None)


def loaded_with_the_package(*names):
    """Modules that ``import monai_unetpp`` and those of ``names`` load, others by their top name."""
    loaded, waiting = set(), ["monai_unetpp", *names]
    while waiting:
        name = waiting.pop()
        loaded.add(name)
        if name.startswith("monai_unetpp"):
            above = [name.rsplit(".", n)[0] for n in range(1, name.count(".") + 1)]
            waiting += {*imports(name, when_loaded=True), *above} - loaded
    return loaded


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_are_true(name):
    if name.endswith("gpu.passes"):
        pytest.importorskip("triton")
    if name.startswith("monai_unetpp.nnunet.trainer."):
        pytest.importorskip("nnunetv2", reason='pip install -e ".[nnunet]"')
    known = {"torch": torch, **{name: getattr(monai_unetpp, name) for name in monai_unetpp.__all__}}
    assert doctest.testmod(importlib.import_module(name), extraglobs=known).failed == 0


# The wheel and the source distribution


def test_source_distribution_has_every_file_of_the_repository(tmp_path):
    """setuptools packs what MANIFEST.in names; the tests read bundles, pages and tutorials."""
    setuptools = pytest.importorskip("setuptools.build_meta")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=HOUSE.parent, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("this is no clone: git does not list its files")
    files = [name for name in listed.stdout.split("\0") if name]
    for name in files:
        (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(HOUSE.parent / name, tmp_path / "clone" / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "clone")
        patch.setattr(sys, "argv", ["setup.py"])
        archive = tmp_path / setuptools.build_sdist(str(tmp_path))
    with tarfile.open(archive) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    assert {*files} - packed == set()


def test_every_folder_of_modules_is_in_the_wheel():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    listed = tomllib.loads((HOUSE.parent / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "setuptools"
    ]["packages"]
    folders = {path.parent.relative_to(HOUSE.parent) for path in HOUSE.rglob("__init__.py")}
    assert {*listed} == {".".join(folder.parts) for folder in folders} | {"monai_unetpp.bundles"}


def test_every_file_of_the_bundles_is_in_the_wheel():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    setup = tomllib.loads((HOUSE.parent / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert {*setup["package-data"]["monai_unetpp.bundles"]} == {f"*/{pattern}" for pattern in PARTS}


# The page on the architecture


def as_tree(paths):
    """The tree that would be right: descriptions as on the page, else from the docstrings."""

    def key(path):  # as on the page, and new ones at the end of their folder
        parts = re.findall(r"[^/]+/?", path)
        above = ["".join(parts[: n + 1]) for n in range(len(parts))]
        return [(order.get(part, len(order)), part) for part in above]

    order = {path: n for n, path in enumerate(TREE)}
    lines = ["monai_unetpp/"]
    for path in sorted(paths, key=key):
        *folders, name = re.findall(r"[^/]+/?", path)
        file = HOUSE / path / "__init__.py" if path.endswith("/") else HOUSE / path
        docstring = ast.get_docstring(ast.parse(file.read_text("utf-8"))) if file.suffix == ".py" else ""
        text = TREE.get(path) or (docstring or "").split("\n")[0].rstrip(".")
        lines.append(f"{'  ' * (len(folders) + 1) + name:24} {text}".rstrip())
    return "\n".join(lines)


def test_tree_on_the_page_is_that_of_the_package():
    there = {
        path.relative_to(HOUSE).as_posix() + "/" * path.is_dir()
        for path in HOUSE.rglob("*")
        if "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    there -= {path for path in there if path.endswith("/__init__.py")}  # the line of their folder
    assert {*TREE} == there, f"docs/architecture.md must say:\n\n{as_tree(there)}"


def test_every_module_has_a_room_on_the_page():
    assert [name for name in MODULES if room(name) is None] == []
    assert "__init__" in ARROWS


def test_table_on_the_page_has_the_imports_of_the_code():
    found = {name: set() for name in ARROWS}
    for name in ["monai_unetpp", *MODULES]:
        found[room(name)] |= {room(other) for other in imports(name) if other.startswith("monai_unetpp")}
    found = {name: others - {name} for name, others in found.items()}
    rows = [
        f"| `{name}` | {', '.join(f'`{other}`' for other in ARROWS if other in others) or '-'} |"
        for name, others in found.items()
    ]
    assert found == ARROWS, "docs/architecture.md must say:\n\n" + "\n".join(rows)


@pytest.mark.parametrize("name", ARROWS)
def test_a_room_imports_only_what_stands_above_it(name):
    above = [*ARROWS][: [*ARROWS].index(name)]
    assert ARROWS[name] <= {*above}


def test_phantoms_are_imported_by_those_that_the_page_names():
    (named,) = re.findall(r"^- Only (.*?) imports? `data\.phantoms`", PAGE, flags=re.MULTILINE)
    assert {name for name, others in ARROWS.items() if "data.phantoms" in others} == {*quoted(named)}


def test_importing_the_package_loads_the_rooms_that_the_page_names():
    (named,) = re.findall(
        r"^- `import monai_unetpp` loads (.*?) and no", PAGE, flags=re.MULTILINE | re.DOTALL
    )
    loaded = {room(name) for name in loaded_with_the_package() if name.startswith("monai_unetpp")}
    loaded -= {"__init__"}
    right = ", ".join(f"`{name}`" for name in ARROWS if name in loaded)
    assert loaded == {*quoted(named)}, f"docs/architecture.md must say: loads {right} and no other"


def test_importing_the_package_requires_torch_and_monai_only():
    assert {name.split(".")[0] for name in loaded_with_the_package()} == {
        "monai_unetpp",
        "importlib",
        "typing",
    }
    public = {getattr(monai_unetpp, name).__module__ for name in monai_unetpp.__all__ if name[0] != "_"}
    loaded = {name.split(".")[0] for name in loaded_with_the_package(*public)}
    assert {"torch", "monai"} < loaded
    assert not loaded & {"ignite", "nibabel", "SimpleITK", "matplotlib", "onnxruntime", "openvino"}


@pytest.mark.parametrize("name", [name for name in MODULES if room(name) != "handlers"])
def test_ignite_is_imported_in_handlers_alone(name):
    assert not any(other.split(".")[0] == "ignite" for other in imports(name))


def test_functions_that_the_page_names_exist():
    flows = section("A scan, from folder to mask") + section("A batch, from dataset.json to checkpoint")
    named = [name for name in quoted(flows) if re.fullmatch(r"[a-z_]+(\.\w+)+", name)]
    named = [name for name in named if room(name) and not name.endswith((".py", ".json", ".pt", ".csv"))]
    assert len(named) > 20
    for dotted in named:
        module, name = f"monai_unetpp.{dotted}".rsplit(".", 1)
        assert hasattr(importlib.import_module(module), name), dotted
