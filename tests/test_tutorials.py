# SPDX-License-Identifier: Apache-2.0
"""Every tutorial runs from top to bottom, and its own assertions hold."""

import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
from monai.utils import set_determinism

TUTORIALS = sorted((Path(__file__).parent.parent / "tutorials").glob("*.py"))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, figures without a screen, and torch's settings put back at the end."""
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("Agg")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    plt.close("all")
    set_determinism(None)


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_keeps_its_promises(tutorial: Path, elsewhere: Path) -> None:
    runpy.run_path(str(tutorial))
    assert [path.name for path in elsewhere.iterdir()] == ["output"]
