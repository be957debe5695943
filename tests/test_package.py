# SPDX-License-Identifier: Apache-2.0
import ast
import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest
import torch

import monai_unetpp
from monai_unetpp.bundle import PARTS

HOUSE = Path(monai_unetpp.__file__).parent
MODULES = sorted(module.name for module in pkgutil.walk_packages([str(HOUSE)], "monai_unetpp."))
ONE_WAY = (
    *("extras", "files", "readers", "pictures", "lesions"),
    *("network", "inferers", "levels", "export", "weights", "handlers"),
    *("losses", "transforms", "data", "bundle", "segment"),
)
ALONE = ("losses", "transforms", "data")  # but for files, extras, readers


def imports(name, *, when_loaded=False):
    """Dotted names that a module imports: anywhere, or only those at its top level."""
    path = HOUSE.parent.joinpath(*name.split("."))
    tree = ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())
    for node in tree.body if when_loaded else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def room(name):
    return name.split(".")[1] if name.startswith("monai_unetpp.") else None


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_are_true(name):
    known = {"torch": torch, **vars(monai_unetpp)}
    assert doctest.testmod(importlib.import_module(name), extraglobs=known).failed == 0


def test_every_folder_of_modules_is_in_the_wheel():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    listed = tomllib.loads((HOUSE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(HOUSE.parent) for path in HOUSE.rglob("__init__.py")}
    assert {*listed} == {".".join(folder.parts) for folder in folders} | {"monai_unetpp.bundles"}


def test_every_file_of_the_bundles_is_in_the_wheel():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    setup = tomllib.loads((HOUSE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert {*setup["package-data"]["monai_unetpp.bundles"]} == {f"*/{pattern}" for pattern in PARTS}


@pytest.mark.parametrize("name", [name for name in MODULES if room(name) in ONE_WAY])
def test_imports_point_one_way(name):
    so_far = ONE_WAY[: ONE_WAY.index(room(name)) + 1]  # its own included, where a room is a folder
    assert {room(other) for other in imports(name) if room(other)} <= {*so_far}


@pytest.mark.parametrize("name", [name for name in MODULES if room(name) in ALONE])
def test_rooms_that_stand_alone_import_no_other_room(name):
    assert {room(other) for other in imports(name) if room(other)} <= {
        room(name),
        "files",
        "extras",
        "readers",
    }


@pytest.mark.parametrize("name", [name for name in MODULES if room(name) != "handlers"])
def test_ignite_is_imported_in_handlers_alone(name):
    assert not any(other.split(".")[0] == "ignite" for other in imports(name))


def test_importing_the_package_needs_torch_and_monai_only():
    loaded, waiting = set(), ["monai_unetpp"]
    while waiting:
        name = waiting.pop()
        loaded.add(name)
        if name.startswith("monai_unetpp"):
            waiting += set(imports(name, when_loaded=True)) - loaded
    assert not {name.split(".")[0] for name in loaded} & {"ignite", "nibabel", "SimpleITK", "matplotlib"}
