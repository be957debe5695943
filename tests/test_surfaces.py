# SPDX-License-Identifier: Apache-2.0
"""Scores by case and class, and their means: Dice, IoU, distances of surfaces in mm."""

import csv

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.handlers import MeanDice as MonaiMeanDice
from monai.handlers import MeanIoUHandler

from bundles import run
from monai_unetpp.handlers import HausdorffDistance95, MeanDice, MeanIoU, SurfaceDice
from monai_unetpp.lesions import lesion_labels

pytestmark = pytest.mark.slow


def cube(start, end, spacing=(1.0, 2.0, 4.0)):
    """A cube of class 1 from start to end, one-hot with two foreground classes, of which one is absent."""
    label = torch.zeros(3, 16, 16, 16)
    label[1, start:end, 4:12, 4:12] = 1
    label[0] = 1 - label[1]
    return MetaTensor(label, affine=torch.diag(torch.tensor([*spacing, 1.0])))


def scores(metric, *pairs):
    """By case and class, and their mean."""
    engine = Engine(lambda _, batch: batch)
    metric.attach(engine, "score")
    engine.run([([pred], [label]) for pred, label in pairs])
    return engine.state.metric_details["score"].numpy(), engine.state.metrics["score"]


def both(output):
    return output


def test_distance_is_in_mm_along_each_axis():
    table, mean = scores(HausdorffDistance95(both), (cube(4, 12), cube(4, 12)), (cube(7, 12), cube(4, 12)))
    np.testing.assert_array_equal(table, [[0, np.nan], [3, np.nan]])
    assert mean == 1.5
    wide, _ = scores(HausdorffDistance95(both), (cube(7, 12, (5, 1, 1)), cube(4, 12, (5, 1, 1))))
    assert wide[0, 0] == 15


def test_nothing_found_is_infinitely_far():
    table, _ = scores(HausdorffDistance95(both), (cube(4, 4), cube(4, 12)))
    assert table[0, 0] == np.inf
    table, _ = scores(SurfaceDice(2.0, 2, both), (cube(4, 4), cube(4, 12)))
    assert table[0, 0] == 0


OURS = (MeanDice, MeanIoU)
THEIRS = (MonaiMeanDice, MeanIoUHandler)
PLAIN = {"include_background": False, "output_transform": both}


def test_class_that_the_label_lacks_has_no_score():
    for metric in (HausdorffDistance95(both), SurfaceDice(2.0, 2, both), *(each(**PLAIN) for each in OURS)):
        table, mean = scores(metric, (cube(4, 12), cube(4, 4)))
        assert np.isnan(table).all()
        assert np.isnan(mean)  # MONAI's is 0, as if all were wrong, or no surface were away


def test_class_that_no_label_has_has_no_mean():
    names = {"reduction": "mean_batch", "return_with_label": ["here", "absent"]}
    engine = Engine(lambda _, batch: batch)
    MeanDice(**PLAIN, **names).attach(engine, "score")
    engine.run([([cube(4, 12)], [cube(4, 12)]), ([cube(4, 12)], [cube(4, 4)])])
    assert engine.state.metrics["here"] == 1
    assert np.isnan(engine.state.metrics["absent"])


@pytest.mark.parametrize(("ours", "theirs"), [*zip(OURS, THEIRS, strict=True)])
def test_mean_of_what_has_a_score_is_that_of_monai(ours, theirs):
    pairs = [(cube(4, 12), cube(4, 12)), (cube(7, 12), cube(4, 12)), (cube(7, 12), cube(4, 4))]
    table, mean = scores(ours(**PLAIN), *pairs)
    their_table, their_mean = scores(theirs(**PLAIN), *pairs)
    np.testing.assert_array_equal(table, their_table)
    assert mean == their_mean
    assert 0 < mean < 1


@pytest.mark.parametrize(("tolerance", "least", "most"), [(3.0, 1, 1), (0.5, 0.3, 0.99)])
def test_surfaces_within_the_tolerance_agree(tolerance, least, most):
    table, _ = scores(SurfaceDice(tolerance, 2, both), (cube(7, 12), cube(4, 12)))
    assert least <= table[0, 0] <= most


def test_lesions_are_known_by_their_names():
    assert lesion_labels(["background", "left kidney", "Renal Tumor", "cyst"]) == ["Renal Tumor", "cyst"]
    assert lesion_labels(["nodule", "liver"]) == []


@pytest.mark.parametrize("lesions", [[], ["ball"]], ids=["no-lesions", "a-class-that-is-not-the-last"])
def test_evaluation_writes_surfaces_and_lesions_of_lesions_only(trained, balls, tmp_path, lesions):
    weights = {"ckpt_path": str(trained / "models" / "model.pt")}
    given = {"lesion_labels": lesions} if lesions else {}
    run("liver", "train evaluate", tmp_path, dataset_dir=str(balls), **weights, **given)
    for name in ("hausdorff95", "surface_dice"):
        text = (tmp_path / "eval" / f"val_{name}_raw.csv").read_text()
        [row] = csv.DictReader(text.splitlines())
        assert list(row) == ["filename", "ball", "pip", "mean"]
        assert float(row["ball"]) >= 0
    assert (tmp_path / "eval" / "lesions.csv").exists() == bool(lesions)
    assert (tmp_path / "eval" / "froc.csv").exists() == bool(lesions)
