# SPDX-License-Identifier: Apache-2.0
"""benchmarks/gpu.py at toy size on the CPU, so that it works when there is a GPU."""

import sys
from dataclasses import replace
from functools import partial

import pytest

from bundles import BUNDLES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.torch.cuda.amp.GradScaler:FutureWarning"),  # MONAI's mixed precision
    pytest.mark.filterwarnings("ignore:torch.cuda.amp.GradScaler is enabled, but CUDA is not available"),
    pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda', but CUDA is not available"),
    pytest.mark.filterwarnings("ignore:CUDA is not available or torch_xla is imported"),
]


@pytest.fixture(scope="module")
def gpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BUNDLES.parent / "benchmarks"))
        import gpu
    yield gpu
    for name in ("gpu", "measure", "versus"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def rows(gpu, tmp_path_factory):
    """Every part but the one that starts processes, in 2D where there is a choice."""
    work = tmp_path_factory.mktemp("gpu")
    sizes = replace(gpu.TOY, shapes=gpu.TOY.shapes[:1], checked=gpu.TOY.checked[:1])
    parts = [part for part in gpu.PARTS if part != "nccl"]
    return [row for part in parts for row in gpu.measured(part, partial(gpu.PARTS[part], "cpu", sizes, work))]


def test_every_part_measures(gpu, rows):
    assert not [row for row in rows if row["figure"] == "failed"]
    assert {row["part"] for row in rows} == set(gpu.PARTS) - {"nccl"}


def test_heads_are_those_of_float32_within_the_bounds_of_each_precision(rows):
    errors = [row for row in rows if row["figure"].startswith("error")]
    assert len(errors) == 16
    assert not [row for row in errors if "BEYOND" in row["figure"]]


def test_figures_are_possible(rows):
    ratios = {row["case"]: float(row["value"]) for row in rows if row["figure"] == "time ratio"}
    assert ratios["2D float32 inference, BasicUNetPlusPlus"] == 1
    shares = [float(row["value"]) for row in rows if row["figure"].startswith("share of the copy")]
    assert shares
    assert all(share > 0 for share in shares)
    assert [float(row["value"]) for row in rows if row["figure"] == "Dice"]


def test_part_that_fails_says_why_and_tables_show_all(gpu, rows, tmp_path):
    def broken():
        yield "a", "time", 1.0, "ms"
        raise ValueError("no\nmemory")

    failed = gpu.measured("nccl", broken)
    assert [row["value"] for row in failed if row["figure"] == "failed"] == ["no memory"]
    gpu.write_tables(tmp_path / "gpu_cpu.md", [*rows, *failed])
    text = (tmp_path / "gpu_cpu.md").read_text()
    assert all(f"## {part}\n" in text for part in gpu.PARTS)
    assert "no memory" in text
