# SPDX-License-Identifier: Apache-2.0
"""Confidence of findings, against other libraries, and candidates whose truth is drawn from one."""

import json
import math
from dataclasses import replace

import monai.metrics
import numpy as np
import pytest
import torch

from monai_unetpp import UNetPlusPlus
from monai_unetpp.confidence import (
    CaseFindings,
    calibrate_confidence,
    fit_confidence,
    froc_by_size,
    held_out_confidence,
    match_lesions,
    read_confidence,
    reliability,
    score_by_size,
    score_reliability,
    write_confidence,
)
from monai_unetpp.findings import FEATURES, Confidence, Finding, find
from monai_unetpp.lesions import Lesion, score_lesions, size_of
from monai_unetpp.weights import Record, prune_weights, read_record, sha256, write_record

BOTH = ("mean_probability", "elongation")
TRUTH = Confidence(-3.0, {"mean_probability": 2.0, "elongation": -4.0}, 0.0)


def finding(p=0.9, elongation=1.1, diameter=8.0):
    numbers = dict.fromkeys(("volume_ml", "long_axis_mm", "short_axis_mm", "mean_intensity"), 1.0)
    centre = dict.fromkeys(("centre_x_mm", "centre_y_mm", "centre_z_mm", "sd_intensity"), 0.0)
    shape = {"equivalent_diameter_mm": diameter, "elongation": elongation}
    known = {"finding": 1, "label": "nodule", "confidence": None, "slice": 1, "instance_uid": ""}
    probability = {"mean_probability": p, "peak_probability": (1 + p) / 2}
    return Finding(**known, **probability, **numbers, **centre, **shape, touches_border=False)


def lesion(number, diameter, found=True):
    return Lesion("a", number, diameter, size_of(diameter), found, 0.5, 0.3, 1.0)


def drawn(cases, seed=0, per_case=4, truth=TRUTH):
    """Cases whose findings are true as often as ``truth`` says; each true one has a lesion of its own."""
    rng = np.random.default_rng(seed)
    made = []
    for n in range(cases):
        findings = [
            finding(p, 1 + x, d)
            for p, x, d in zip(
                rng.uniform(0.55, 0.98, per_case),
                rng.exponential(0.15, per_case),
                rng.uniform(3, 15, per_case),
                strict=True,
            )
        ]
        true = [rng.random() < truth(vars(each)) for each in findings]
        numbers = np.cumsum(true)
        touched = tuple((int(k),) if t else () for k, t in zip(numbers, true, strict=True))
        lesions = [each.equivalent_diameter_mm for each, t in zip(findings, true, strict=True) if t]
        of = tuple(lesion(k, d) for k, d in enumerate(lesions, 1))
        made.append(CaseFindings(f"case_{n}.nii.gz", "nodule", of, tuple(findings), touched))
    return made


def every(cases, values):
    return [value for of_case in values for value in of_case], [bool(t) for c in cases for t in c.touched]


# The fit


def test_fit_is_that_of_scikit_learn_on_the_targets_of_platt():
    linear_model = pytest.importorskip("sklearn.linear_model", reason="a package of the extra nnunet")
    cases = drawn(60)
    fitted = fit_confidence(cases, BOTH)
    x = np.array([[FEATURES[n].scale(getattr(f, n)) for n in BOTH] for c in cases for f in c.findings])
    true = np.array([bool(t) for c in cases for t in c.touched])
    target = np.where(true, (true.sum() + 1) / (true.sum() + 2), 1 / ((~true).sum() + 2))
    model = linear_model.LogisticRegression(C=1e9, tol=1e-10, max_iter=10_000)
    twice = np.repeat([True, False], len(x))  # each finding is true by its target, and false by the rest
    model.fit(np.concatenate([x, x]), twice, sample_weight=np.r_[target, 1 - target])
    np.testing.assert_allclose(list(fitted.coefficients.values()), model.coef_[0], rtol=1e-3)
    assert fitted.intercept == pytest.approx(model.intercept_[0], rel=1e-3)
    assert all(value != 0 for value in fitted.coefficients.values())


def test_what_the_findings_were_drawn_from_is_found_again():
    fitted = fit_confidence(drawn(3000), BOTH)
    assert fitted.intercept == pytest.approx(TRUTH.intercept, abs=0.2)
    for name in BOTH:
        assert fitted.coefficients[name] == pytest.approx(TRUTH.coefficients[name], rel=0.1)


def test_coefficient_against_reason_is_zero_and_changes_nothing():
    absurd = Confidence(-3.0, {"mean_probability": 2.0, "elongation": 6.0}, 0.0)  # long ones are true
    cases = drawn(100, truth=absurd)
    fitted, alone = (fit_confidence(cases, names) for names in (BOTH, BOTH[:1]))
    assert fitted.coefficients["elongation"] == 0
    assert fitted.coefficients["mean_probability"] == pytest.approx(
        alone.coefficients["mean_probability"], rel=1e-4
    )


@pytest.mark.parametrize("seed", range(5))
def test_confidence_rises_with_the_probability_and_falls_with_elongation(seed):
    """Whatever the few findings that it was fitted on."""
    fitted = fit_confidence(drawn(8, seed), ("mean_probability", "equivalent_diameter_mm", "elongation"))
    for name, values, sign in (("p", (0.5, 0.7, 0.9, 0.99), 1), ("elongation", (1.0, 1.1, 2.0, 5.0), -1)):
        found = [fitted(vars(finding(**{name: value}))) for value in values]
        assert found == sorted(found, reverse=sign < 0)
        assert all(0 < each < 1 for each in found)


def test_few_findings_that_are_separable_give_no_certainty():
    cases = [
        CaseFindings("a", "nodule", (lesion(1, 9.0),), (finding(0.9), finding(0.6)), ((1,), ())),
        CaseFindings("b", "nodule", (lesion(1, 9.0),), (finding(0.91), finding(0.61)), ((1,), ())),
    ]
    fitted = fit_confidence(cases, BOTH)
    assert 0.7 < fitted(vars(finding(0.91))) < 0.8  # 3 / 4, the target of two true ones


def test_confidence_of_a_case_does_not_depend_on_what_is_true_in_it():
    cases = drawn(12, seed=3)
    before = held_out_confidence(cases, BOTH)
    other = tuple(() if touched else (1,) for touched in cases[5].touched)
    flipped = [*cases[:5], replace(cases[5], touched=other), *cases[6:]]
    after = held_out_confidence(flipped, BOTH)
    assert after[5] == before[5]
    assert after[4] != before[4]


@pytest.mark.parametrize(
    ("features", "cases", "message"),
    [
        (("volume",), drawn(4), r"features must be some of mean_probability, .*, as a list, got 'volume'"),
        ("elongation", drawn(4), "as a list, got 'elongation'"),
        ((), drawn(4), r"as a list, got \(\)"),
        (
            BOTH,
            [replace(case, touched=((1,),) * 4) for case in drawn(3)],
            "requires true and false findings in the held-out cases, got 12 true and 0 false ones: hold out",
        ),
        (BOTH, [], "got 0 true and 0 false ones"),
    ],
    ids=["unknown", "text", "none", "all true", "no case"],
)
def test_what_cannot_be_fitted_is_an_error(features, cases, message):
    with pytest.raises(ValueError, match=message):
        fit_confidence(cases, features)


# Scores


def test_calibration_error_is_that_of_monai():
    if not hasattr(monai.metrics, "CalibrationErrorMetric"):
        pytest.skip("MONAI before 1.6 has no calibration error")
    cases = drawn(50, seed=1)
    values = [[each.mean_probability for each in case.findings] for case in cases]
    p, true = every(cases, values)
    metric = monai.metrics.CalibrationErrorMetric(num_bins=10)
    metric(torch.tensor(p)[None, None], torch.tensor(true).float()[None, None])
    assert score_reliability(cases, values)["calibration_error"] == pytest.approx(
        metric.aggregate().item(), abs=1e-4
    )
    diagram = reliability(cases, values)
    assert sum(row["findings"] for row in diagram) == len(p)


def test_confidence_is_reliable_and_the_mean_probability_is_not():
    cases = drawn(400, seed=2)
    before = score_reliability(cases, [[f.mean_probability for f in c.findings] for c in cases])
    after = score_reliability(cases, held_out_confidence(cases, BOTH))
    assert after["calibration_error"] < 2 * after["by_chance"]
    assert before["calibration_error"] > 5 * before["by_chance"]
    assert after["brier"] < before["brier"]


def test_error_by_chance_is_what_right_confidences_have():
    found = []
    for seed in range(200):
        cases = drawn(10, seed)
        found.append(score_reliability(cases, [[TRUTH(vars(f)) for f in c.findings] for c in cases]))
    errors = [each["calibration_error"] for each in found]
    assert np.mean(errors) == pytest.approx(np.mean([each["by_chance"] for each in found]), rel=0.05)


CASES = [
    CaseFindings(
        "a",
        "nodule",
        (lesion(1, 5.0), lesion(2, 12.0), lesion(3, 8.0)),
        (finding(diameter=5), finding(diameter=12), finding(diameter=3), finding(diameter=7)),
        ((1,), (1, 2), (), ()),  # the second touches two, the third lesion is missed
    ),
    CaseFindings("b", "nodule", (), (finding(diameter=20),), ((),)),
]
VALUES = [[0.3, 0.8, 0.6, 0.2], [0.5]]


def test_scores_by_size_are_counted():
    small, middle, large, all_of_them = score_by_size(CASES, VALUES, 0.5)
    assert small == {
        "size": "< 6 mm",
        "lesions": 1,
        "found": 1,
        "kept": 1,  # by the larger finding, which touches it as well
        "false_positives_per_case": 0.5,
        "false_positives_per_case_kept": 0.5,
    }
    assert [(row["lesions"], row["found"], row["kept"]) for row in (middle, large)] == [(1, 0, 0), (1, 1, 1)]
    assert (middle["false_positives_per_case"], middle["false_positives_per_case_kept"]) == (0.5, 0)
    assert (all_of_them["kept"], all_of_them["false_positives_per_case_kept"]) == (2, 1)


def test_froc_by_size_is_counted():
    rows = {
        (row["size"], row["false positives per case"]): row["sensitivity"]
        for row in froc_by_size(CASES, VALUES)
    }
    # in the order of confidence: 0.8 touches two lesions, 0.6 and 0.5 are false
    assert [rows[size, 0.125] for size in ("< 6 mm", "6-10 mm", "> 10 mm")] == [1, 0, 1]
    assert rows["all", 0.125] == rows["all", 8] == pytest.approx(2 / 3, abs=1e-4)


# The operating point


def test_operating_point_keeps_the_share_of_lesions_that_was_asked_for():
    cases = drawn(100, seed=4)
    values = held_out_confidence(cases, BOTH)
    best = [h for case, of in zip(cases, values, strict=True) for h in case.heights(of)[0]]
    kept = []
    for sensitivity in (0.5, 0.9, 1.0):
        [found] = calibrate_confidence(cases, sensitivity=sensitivity).values()
        point = found.confidence.operating_point
        share = np.mean([value >= point for value in best])
        assert sensitivity <= share <= sensitivity + 1 / len(best) + 1e-9
        assert found.at_operating_point[-1]["kept"] == round(share * len(best))
        kept.append(found.at_operating_point[-1]["false_positives_per_case_kept"])
    assert kept == sorted(kept)


def test_enrichment_divides_the_odds_and_keeps_the_same_findings():
    cases = drawn(40, seed=5)
    [plain], [rare] = (calibrate_confidence(cases, enrichment=n).values() for n in (1, 38))
    assert rare.at_operating_point == plain.at_operating_point
    for case in cases:
        for each in case.findings:
            p, q = plain.confidence(vars(each)), rare.confidence(vars(each))
            assert q / (1 - q) == pytest.approx(p / (1 - p) / 38)
            assert (q >= rare.confidence.operating_point) == (p >= plain.confidence.operating_point)


def test_no_candidates_are_an_error():
    with pytest.raises(ValueError, match="candidates must be those of held-out cases, got none"):
        calibrate_confidence([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sensitivity": 95}, "sensitivity must be a share, above 0 and at most 1, got 95"),
        ({"sensitivity": 0}, "sensitivity must be a share"),
        ({"enrichment": 0}, "enrichment must be a positive number, 1 for whole scans, got 0"),
        ({"enrichment": math.inf}, "enrichment must be a positive number"),
        ({"features": ["size"]}, "nodule: features must be some of mean_probability"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_option_out_of_its_range_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        calibrate_confidence(drawn(10), **options)


# Candidates


def blobs(seed, size=(40, 36, 30), share=0.08):
    rng = np.random.default_rng(seed)
    smooth = rng.normal(size=size)
    for axis in range(3):
        smooth = sum(np.roll(smooth, n, axis) for n in (-1, 0, 1))
    return smooth > np.quantile(smooth, 1 - share)


@pytest.mark.parametrize("seed", range(3))
def test_findings_touch_the_lesions_that_the_scores_of_lesions_find(seed):
    mask, reference, grid = blobs(seed), blobs(seed + 10, share=0.03), np.diag([0.7, 0.9, 1.5, 1])
    found = find(
        mask.astype(np.uint8), grid, {"nodule": (1,)}, np.zeros(mask.shape), np.ones((1, *mask.shape))
    )
    case = match_lesions("a", "nodule", found, mask, reference, grid)
    wanted = score_lesions(torch.from_numpy(mask), torch.from_numpy(reference), (0.7, 0.9, 1.5))
    true, false = case.heights([1.0] * len(found))
    assert [height > 0 for height in true] == [each.found for each in wanted.lesions]
    assert len(false) == wanted.false_positives > 0
    unknown = np.ones(mask.shape, bool)
    known = match_lesions("a", "nodule", found, mask, reference, grid, unknown)
    assert all(known.touched)  # of the others nobody knows
    assert len(known.findings) == len(found) - len(false)


# The record


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "model.pt"
    torch.save(UNetPlusPlus(3, 1, 2, channels=(4, 6, 8), strides=2).state_dict(), path)
    return path


def test_record_has_the_confidence_and_how_good_it_is(weights, tmp_path):
    write_record(weights, Record(sha256(weights), labels=["background", "nodule"], level=2, epoch=7))
    assert read_confidence(weights) is None
    calibrated = calibrate_confidence(drawn(30), enrichment=2)
    assert write_confidence(weights, 2, calibrated, tmp_path / "tables") == weights.with_suffix(".json")
    assert read_confidence(weights) == (2, {"nodule": calibrated["nodule"].confidence})
    record = read_record(weights)
    assert (record.epoch, record.level) == (7, 2)
    content = record.confidence["classes"]["nodule"]
    assert (content["cases"], content["true"] + content["false"], content["enrichment"]) == (30, 120, 2)
    assert set(content["reliability"]) == {"mean_probability", "confidence"}
    assert [row["size"] for row in content["at_operating_point"]] == ["< 6 mm", "6-10 mm", "> 10 mm", "all"]
    lines = {p.name: len(p.read_text().splitlines()) for p in (tmp_path / "tables").iterdir()}
    assert lines["candidates.csv"] == 121
    assert lines.keys() == {"candidates.csv", "reliability.csv", "froc.csv"}


def test_weights_of_the_calibrated_level_alone_keep_it(weights, tmp_path):
    write_confidence(weights, 2, calibrate_confidence(drawn(30)), tmp_path)
    for level in (1, 2):
        prune_weights(weights, level, tmp_path / f"L{level}.pt")
    assert read_confidence(tmp_path / "L2.pt") == read_confidence(weights)
    assert read_confidence(tmp_path / "L1.pt") is None


def test_other_classes_than_those_of_the_weights_are_an_error(weights, tmp_path):
    write_record(weights, Record(sha256(weights), labels=["background", "lesion"]))
    with pytest.raises(
        ValueError, match="labels must be those of the weights, background, lesion, got nodule"
    ):
        write_confidence(weights, 2, calibrate_confidence(drawn(30)), tmp_path / "tables")
    assert not (tmp_path / "tables").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"intercept": None},
        {"coefficients": {"colour": 1.0}},
        {"operating_point": 7},
    ],
    ids=lambda change: next(iter(change)),
)
def test_damaged_confidence_is_an_error_that_says_what_to_do(weights, tmp_path, change):
    path = write_confidence(weights, 2, calibrate_confidence(drawn(30)), tmp_path)
    content = json.loads(path.read_text())
    nodule = content["confidence"]["classes"]["nodule"]
    nodule |= change
    path.write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"model\.json is damaged: .*, or calibrate again: run findings\.json"
    ):
        read_confidence(weights)
