# SPDX-License-Identifier: Apache-2.0
"""The bundle for the hippocampus is what ``fit`` made of MSD Task04, and nothing else."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser

from bundles import BUNDLES
from monai_unetpp.planning import Machine, Source, make_plan, take_fingerprint
from monai_unetpp.planning.writing import write_bundle
from monai_unetpp.segment import segment

BUNDLE = BUNDLES / "hippocampus"
REAL = Path(__file__).parents[2] / "shared/data/hippocampus"
HOURS = 0.5  # that fit was given

pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="MSD Task04 is not here")


def test_jsons_are_those_of_the_plan(monkeypatch, tmp_path):
    """But for the place of the data."""
    monkeypatch.setattr(
        "monai_unetpp.planning.fingerprint._processes", lambda _: 1
    )  # others take long to start
    (tmp_path / "Task04_Hippocampus").symlink_to(REAL, target_is_directory=True)
    found = take_fingerprint(Source(tmp_path / "Task04_Hippocampus"))
    shipped = json.loads((BUNDLE / "train.json").read_text())
    given = {key: shipped[key] for key in ("max_epochs", "val_interval")}  # by the speed of the machine
    write_bundle(make_plan(found, Machine(hours=HOURS), given), found, tmp_path / "hippocampus")
    names = {path.name for path in BUNDLE.glob("*.json")}
    assert names == {path.name for path in (tmp_path / "hippocampus").glob("*.json")}
    for name in sorted(names):
        text = (tmp_path / "hippocampus" / name).read_text()
        text = text.replace(f"{tmp_path}/hippocampus", "bundles/hippocampus").replace(
            f"{tmp_path}/", "/data/"
        )
        assert json.loads((BUNDLE / name).read_text()) == json.loads(text), name


def test_weights_that_ship_segment_a_case_that_was_held_out(tmp_path):
    parser = ConfigParser(json.loads((BUNDLE / "train.json").read_text()))
    parser["dataset_dir"] = str(REAL)
    case = parser.get_parsed_content("split")[1][0]
    [outcome] = segment(case["image"], tmp_path, BUNDLE, ckpt_path=str(BUNDLE / "weights/model.pt"))
    found, wanted = (np.asarray(nib.load(path).dataobj) for path in (outcome.mask, case["label"]))
    for value in (1, 2):
        overlap = ((found == value) & (wanted == value)).sum()
        assert 2 * overlap / ((found == value).sum() + (wanted == value).sum()) > 0.8
