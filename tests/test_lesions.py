# SPDX-License-Identifier: Apache-2.0
"""Lesions one by one, against drawings whose scores are known."""

import csv
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_unetpp.handlers import LesionSaver
from monai_unetpp.lesions import CaseLesions, Lesion, froc, score_lesions, summarise_lesions

SPACING = (1.0, 2.0, 0.5)


def boxes(*corners, shape=(40, 30, 20)):
    """A mask of boxes, each ``(x, y, z, edge)``."""
    mask = torch.zeros(shape)
    for x, y, z, edge in corners:
        mask[x : x + edge, y : y + edge, z : z + edge] = 1
    return mask


def test_scores_of_a_lesion_are_those_of_its_voxels():
    label, pred = boxes((2, 2, 2, 4)), boxes((3, 2, 2, 4))
    (lesion,) = score_lesions(pred, label, SPACING, "a").lesions
    assert (lesion.case, lesion.number, lesion.found) == ("a", 1, True)
    assert lesion.dice == pytest.approx(2 * 48 / 128)
    assert lesion.iou == pytest.approx(48 / 80)
    assert lesion.diameter == pytest.approx(2 * (3 * 64 / (4 * math.pi)) ** (1 / 3))  # 1 mm^3 per voxel
    assert 0 < lesion.surface_distance < 1


def test_perfect_prediction_is_perfect():
    label = boxes((2, 2, 2, 4), (20, 10, 5, 8))
    case = score_lesions(label, label, SPACING)
    assert [(lesion.dice, lesion.iou, lesion.surface_distance) for lesion in case.lesions] == [(1, 1, 0)] * 2
    assert case.false_positives == 0


def test_lesions_are_matched_by_touch():
    label = boxes((2, 2, 2, 4), (20, 10, 5, 6), (32, 20, 12, 5))
    pred = boxes((2, 2, 2, 2), (5, 5, 5, 1), (20, 10, 5, 6), (12, 20, 12, 3))  # two pieces of one; one apart
    case = score_lesions(pred, label, SPACING)
    assert [lesion.found for lesion in case.lesions] == [True, True, False]
    assert case.lesions[0].dice == pytest.approx(2 * 9 / (64 + 9))
    assert (case.lesions[2].dice, case.lesions[2].iou) == (0, 0)
    assert math.isnan(case.lesions[2].surface_distance)
    assert case.false_positives == 1


def test_corners_connect():
    label = boxes((2, 2, 2, 2), (4, 4, 4, 2))
    assert len(score_lesions(label, label, SPACING).lesions) == 1


@pytest.mark.parametrize(("edge", "size"), [(4, "< 6 mm"), (6, "6-10 mm"), (10, "> 10 mm")])
def test_size_is_that_of_the_ball_of_equal_volume(edge, size):
    label = boxes((2, 2, 2, edge))
    (lesion,) = score_lesions(label, label, (1, 1, 1)).lesions
    assert lesion.size == size


@pytest.mark.parametrize("empty", ["pred", "label", "both"])
def test_empty_masks_have_no_lesions(empty):
    masks = {"pred": boxes((2, 2, 2, 4)), "label": boxes((2, 2, 2, 4))}
    for name in ("pred", "label"):
        if empty in (name, "both"):
            masks[name] = torch.zeros(40, 30, 20)
    case = score_lesions(**masks, spacing=SPACING, probability=masks["pred"])
    assert len(case.lesions) == (empty == "pred")
    assert case.false_positives == (empty == "label")


def test_masks_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match=r"shape of label, \[40, 30, 20\], got \[4, 4, 4\]"):
        score_lesions(torch.zeros(4, 4, 4), boxes(), SPACING)


def lesion(size, dice, found=True):
    distance = 1.0 if found else math.nan
    return Lesion("a", 1, 5.0, size, found, dice, dice / 2, distance)


def test_summary_counts_and_means_by_size():
    cases = [
        CaseLesions([lesion("< 6 mm", 0.8), lesion("< 6 mm", 0.0, found=False)], 3),
        CaseLesions([lesion("> 10 mm", 0.9)], 0),
    ]
    small, middle, large, everything = summarise_lesions(cases)
    assert (small["lesions"], small["found"], small["dice"], small["surface_distance"]) == (2, 1, 0.4, 1)
    assert (middle["lesions"], middle["found"]) == (0, 0)
    assert math.isnan(middle["dice"])
    assert large["dice"] == 0.9
    assert everything["dice"] == pytest.approx(1.7 / 3, abs=1e-4)
    assert everything["false positives per case"] == 1.5


def test_tables_of_several_classes_are_those_of_each(tmp_path):
    label, pred = (
        torch.stack([torch.zeros(40, 30, 20), boxes(*one), boxes(*two)])
        for one, two in (
            ([(2, 2, 2, 4), (20, 10, 5, 4)], [(30, 20, 12, 6)]),
            ([(2, 2, 3, 4)], [(30, 20, 12, 5), (5, 25, 1, 3)]),
        )
    )
    items = {"label": MetaTensor(label), "pred": pred, "image": MetaTensor(label), "probability": 0.8 * pred}
    engine = SimpleNamespace(state=SimpleNamespace(output=[items]))
    tables = {}
    for name, labels, channels in (("a", "a", 1), ("b", ["b"], [2]), ("both", ["a", "b"], [1, 2])):
        saver = LesionSaver(str(tmp_path / name), labels, channel=channels)
        saver(engine)
        saver.write()
        for file in (tmp_path / name).iterdir():
            tables[name, file.name] = list(csv.DictReader(file.read_text().splitlines()))
    for file in ("lesions.csv", "lesions_summary.csv", "froc.csv"):
        wanted = [{"class": name, **row} for name in ("a", "b") for row in tables[name, file]]
        assert tables["both", file] == wanted
    assert [row["found"] for row in tables["both", "lesions.csv"]] == ["True", "False", "True"]
    with pytest.raises(ValueError, match=r"channel must have a value for each of \['a', 'b'\], got \[-1\]"):
        LesionSaver(str(tmp_path), ["a", "b"])


def test_froc_is_what_counting_gives():
    """Two cases, three lesions, peaks of 0.9, 0.6 and none; other candidates at 0.8, 0.5 and 0.3."""
    label = [boxes((2, 2, 2, 4), (20, 10, 5, 4)), boxes((5, 5, 5, 4))]
    peaks = [[(3, 3, 3, 0.9), (21, 11, 6, 0.6), (30, 25, 15, 0.8)], [(20, 20, 10, 0.5), (30, 5, 2, 0.3)]]
    cases = []
    for mask, points in zip(label, peaks, strict=True):
        probability = torch.zeros(mask.shape)
        for x, y, z, p in points:
            probability[x, y, z] = p
        cases.append(score_lesions(probability > 0.5, mask, (1, 1, 1), probability=probability))
    curve = {row["false positives per case"]: row["sensitivity"] for row in froc(cases)}
    # down to 0.9: 1 of 3, none false. Down to 0.6: 2 of 3, one false in two cases
    assert [curve[x] for x in (0.125, 0.25)] == [pytest.approx(1 / 3, abs=1e-4)] * 2
    assert [curve[x] for x in (0.5, 1, 8)] == [pytest.approx(2 / 3, abs=1e-4)] * 3
    values = [value for x, value in curve.items() if not math.isnan(x)]
    assert next(v for x, v in curve.items() if math.isnan(x)) == pytest.approx(np.mean(values), abs=1e-3)


@pytest.mark.parametrize("heights", [(0.99,), (1.0, 1.0), (1.0, 0.98)])
def test_froc_of_perfect_detection_is_perfect(heights):
    corners = [(2 + 12 * n, 2, 2, 4) for n in range(len(heights))]
    label, probability = boxes(*corners), torch.zeros(40, 30, 20)
    for (x, *_), height in zip(corners, heights, strict=True):
        probability[x - 1 : x + 5, 1:7, 1:7] = height  # its peak may lie outside the lesion
    case = score_lesions(probability > 0.5, label, (1, 1, 1), probability=probability)
    assert case.probabilities == (pytest.approx(list(heights)), [])
    assert {row["sensitivity"] for row in froc([case])} == {1.0}


def test_froc_wants_probabilities():
    label = boxes((2, 2, 2, 4))
    assert froc([score_lesions(label, label, SPACING)]) == []
