# SPDX-License-Identifier: Apache-2.0
"""Every tutorial runs from top to bottom, and its own assertions hold; its notebook is the same tutorial."""

import json
import logging
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from monai.utils import set_determinism

HERE = Path(__file__).parents[1] / "tutorials"
TUTORIALS = sorted(HERE.glob("[0-9]*.py"))
NOTEBOOKS = sorted(HERE.glob("notebooks/*.ipynb"))
MAKER = runpy.run_path(str(HERE / "make_notebooks.py"))

pytestmark = pytest.mark.slow


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, figures without a screen, and all settings put back at the end."""
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("Agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])  # a bundle's workflow adds its folder
    for name in ("train", "validate"):
        monkeypatch.setattr(logging.getLogger(name), "disabled", False)
    yield tmp_path
    plt.close("all")
    set_determinism(None)


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_keeps_its_promises(tutorial: Path, elsewhere: Path) -> None:
    runpy.run_path(str(tutorial))
    assert [path.name for path in elsewhere.iterdir()] == ["output"]


def test_every_tutorial_has_a_notebook() -> None:
    assert [path.stem for path in NOTEBOOKS] == [path.stem for path in TUTORIALS]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_the_cells_of_its_tutorial(notebook: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    found = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    assert found == MAKER["cells"]((HERE / f"{notebook.stem}.py").read_text(encoding="utf-8")), (
        f"make it again: python tutorials/make_notebooks.py {notebook.name[:2]}"
    )


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_was_run_from_top_to_bottom(notebook: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell["outputs"])


def test_notebooks_are_small_enough_to_be_kept_in_the_repository() -> None:
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 3 * 2**20


def test_percent_format_is_split_into_cells() -> None:
    text = "# licence\n# %% [markdown]\n# # Title\n#\n# Words.\n\n# %%\nx = 1\n\n\n# %%\n# a comment\ny = 2\n"
    assert MAKER["cells"](text) == [
        ("markdown", "# Title\n\nWords."),
        ("code", "x = 1"),
        ("code", "# a comment\ny = 2"),
    ]
