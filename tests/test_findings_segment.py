# SPDX-License-Identifier: Apache-2.0
"""segment --findings: tables, masks and sheets say the same, however often one runs."""

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  its own documentation's name
import torch
from dicom import write_series
from scipy import ndimage

from bundles import BUNDLES, DEEP, TINY, run
from monai_unetpp import UNetPlusPlus
from monai_unetpp.__main__ import main
from monai_unetpp.confidence import read_confidence
from monai_unetpp.readers import volume_loader
from monai_unetpp.segment import segment
from monai_unetpp.weights import Record, read_record, sha256, write_record

LIVER = BUNDLES / "liver"
SETTINGS = {**TINY, "channels": DEEP}
SETS = [text for key, value in SETTINGS.items() for text in ("--set", key, json.dumps(value))]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights that were not trained and find components of every class, large and small."""
    torch.manual_seed(2)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(UNetPlusPlus(3, 1, 3, channels=DEEP, strides=2).state_dict(), path)
    return str(path)


@pytest.fixture
def scan(balls):
    return balls / "imagesTr" / "PSR.nii.gz"


def segment_here(source, out, weights, **more):
    return segment(source, out, LIVER, ckpt_path=weights, **{"findings": True, **SETTINGS, **more})


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def components(mask, values=(1, 2)):
    """Class -> volumes of its components, in voxels."""
    found = {}
    for value in values:
        numbered, _ = ndimage.label(mask == value, np.ones((3, 3, 3)))
        found[value] = sorted(np.bincount(numbered.ravel())[1:].tolist())
    return found


# What is written


@pytest.mark.parametrize("value", [1, 2])
def test_findings_are_the_components_of_the_mask_with_their_probability(scan, out, weights, value):
    [outcome] = segment_here(scan, out, weights, probability=value)
    assert outcome.reason == ""
    mask, p = (voxels(out / f"PSR_{kind}.nii.gz") for kind in ("seg", "probability"))
    image = voxels(scan)
    name = ("liver", "tumour")[value - 1]
    found = [row for row in rows(out / "PSR_findings.csv") if row["class"] == name]
    assert len(found) == len(components(mask)[value]) > 0
    numbered, count = ndimage.label(mask == value, np.ones((3, 3, 3)))
    wanted = sorted(
        ((numbered == n).sum(), image[numbered == n].mean(), p[numbered == n].mean(), p[numbered == n].max())
        for n in range(1, count + 1)
    )
    keys = ("volume_ml", "mean_intensity", "mean_probability", "peak_probability")
    got = [[float(row[key]) for key in keys] for row in found]
    got = sorted((round(ml * 1000 / 64), *others) for ml, *others in got)  # voxels of 4 mm
    np.testing.assert_allclose(got, wanted, atol=0.01)
    assert rows(out / "findings.csv") == rows(out / "PSR_findings.csv")
    assert [each.row()["class"] for each in outcome.findings] == [
        row["class"] for row in rows(out / "PSR_findings.csv")
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {"level": 1},
        {"precision": "bfloat16"},
        {"windows#threshold": 0.3},
        {"ensemble": True},
        {"largest_component": True},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_findings_go_with_every_way_to_segment(scan, out, weights, settings, tmp_path):
    if settings.get("ensemble"):
        torch.save(UNetPlusPlus(3, 1, 3, channels=DEEP, strides=2).state_dict(), tmp_path / "other.pt")
        settings = {"ensemble": [str(tmp_path / "other.pt")]}
    if settings.get("precision") and not torch.backends.mkldnn.is_available():
        pytest.skip("this machine has no bfloat16")
    [outcome] = segment_here(scan, out, weights, **settings)
    if "is not fast" in outcome.reason:
        pytest.skip(outcome.reason)
    assert outcome.reason == ""
    sizes = components(voxels(out / "PSR_seg.nii.gz"))
    assert len(rows(out / "PSR_findings.csv")) == sum(map(len, sizes.values()))
    assert all(0.3 <= float(row["mean_probability"]) <= 1 for row in rows(out / "PSR_findings.csv"))


def test_small_findings_are_in_no_result(scan, out, weights, tmp_path):
    segment_here(scan, out, weights)
    before = voxels(out / "PSR_seg.nii.gz")
    limit = (
        sorted(n for sizes in components(before).values() for n in sizes)[-2] * 64
    )  # two at least are as large
    kept = tmp_path / "kept"
    [outcome] = segment_here(scan, kept, weights, min_volume=f"{limit}mm3", sheets=True)
    assert outcome.reason == ""
    after = voxels(kept / "PSR_seg.nii.gz")
    wanted = {value: [n for n in sizes if 64 * n >= limit] for value, sizes in components(before).items()}
    assert components(after) == wanted
    assert 2 <= len(rows(kept / "findings.csv")) < len(rows(out / "findings.csv"))
    assert all(float(row["volume_ml"]) >= limit / 1000 for row in rows(kept / "findings.csv"))
    assert ((after == before) | (after == 0)).all()
    volumes = dict(outcome.volumes)
    assert sum(ml for name, ml in volumes.items() if name != "background") == pytest.approx(
        np.count_nonzero(after) * 0.064
    )
    assert json.loads((kept / "PSR_seg.json").read_text())["min_volume_mm3"] == limit


def test_limits_need_no_table(scan, out, weights):
    [outcome] = segment_here(scan, out, weights, findings=False, min_confidence=1.0)
    assert outcome.reason == ""
    assert not voxels(out / "PSR_seg.nii.gz").any()
    assert sorted(path.name for path in out.iterdir() if path.is_file()) == ["PSR_seg.json", "PSR_seg.nii.gz"]


def test_every_finding_is_numbered_on_the_sheet(scan, out, weights, monkeypatch):
    drawn = []

    def draw(path, *args, **settings):
        from monai_unetpp.pictures import volume_figure

        drawn.append(volume_figure(*args, **settings))
        path.touch()

    monkeypatch.setattr("monai_unetpp.segment.results.draw_volume", draw)
    [outcome] = segment_here(scan, out, weights, sheets=True, min_volume="2000mm3")
    texts = [text.get_text() for axes in drawn[0].axes for text in axes.texts]
    numbers = {str(each.finding) for each in outcome.findings}
    assert len(numbers) > 1
    assert numbers <= {text.strip() for text in texts}
    shown = [{text.get_text().strip() for text in axes.texts} for axes in drawn[0].axes]
    for each in outcome.findings:  # in the slice that the table names
        assert any({str(each.finding), f"{each.slice} / 28"} <= texts_of for texts_of in shown)
    slices = {int(text.split(" / ")[0]) for text in texts if " / " in text}
    assert {text.split(" / ")[1] for text in texts if " / " in text} == {
        "28"
    }  # from feet to head, along the second axis of the file
    assert slices <= {*range(1, 29)}


# Again, otherwise, side by side


def test_masks_of_other_limits_are_not_taken(scan, out, weights):
    segment_here(scan, out, weights, min_volume="100mm3")
    assert [o.state for o in segment_here(scan, out, weights, min_volume="0.1ml")] == ["skipped"]
    for limits, message in (
        ({}, "min_volume_mm3 100.0, now none"),
        ({"min_volume": "50mm3"}, "min_volume_mm3 100.0, now 50.0"),
        ({"min_volume": "100mm3", "min_diameter": "4mm"}, "min_diameter_mm None, now 4.0"),
    ):
        [outcome] = segment_here(scan, out, weights, **limits)
        assert outcome.state == "failed"
        assert message in outcome.reason


# Calibrated confidence


@pytest.fixture(scope="module")
def calibrated(weights, tmp_path_factory):
    """The same weights, whose record has a confidence of tumours at the deepest level."""
    path = tmp_path_factory.mktemp("calibrated") / "model.pt"
    shutil.copy(weights, path)
    of = {"intercept": 0.5, "coefficients": {"elongation": -3.0}, "operating_point": 0.45}
    record = Record(sha256(path), labels=["background", "liver", "tumour"])
    write_record(path, replace(record, confidence={"level": 2, "classes": {"tumour": of}}))
    return str(path)


def confidence_of(row):
    return 1 / (1 + math.exp(-0.5 + 3 * math.log(float(row["elongation"]))))


def test_findings_below_the_operating_point_are_dropped_by_default(scan, out, calibrated, tmp_path):
    [outcome] = segment_here(scan, out, calibrated, report=True)
    assert outcome.reason == ""
    [every] = segment_here(scan, tmp_path / "every", calibrated, min_confidence=0)
    found, more = rows(out / "findings.csv"), rows(tmp_path / "every" / "findings.csv")
    for row in more:
        wanted = confidence_of(row) if row["class"] == "tumour" else None
        assert row["confidence"] == "" if wanted is None else abs(float(row["confidence"]) - wanted) < 2e-3
    kept = [row for row in more if row["confidence"] == "" or float(row["confidence"]) >= 0.45]
    assert 0 < len(kept) < len(more)
    names = ("class", "confidence", "volume_ml")  # their numbers are others
    assert [[row[name] for name in names] for row in found] == [[row[name] for name in names] for row in kept]
    ranks = [float(row["confidence"] or row["mean_probability"]) for row in more]
    assert ranks == sorted(ranks, reverse=True)
    masks = [voxels(folder / "PSR_seg.nii.gz") for folder in (out, tmp_path / "every")]
    assert ((masks[0] == masks[1]) | (masks[0] == 0)).all()
    assert sum(map(len, components(masks[0]).values())) == len(kept)
    side = json.loads((out / "PSR_seg.json").read_text())
    assert side["min_confidence"] == {"tumour": 0.45}
    assert side["confidence"] == {"tumour": {"intercept": 0.5, "coefficients": {"elongation": -3.0}}}
    assert json.loads((out / "PSR_findings.json").read_text())["limits"] == {
        "min_confidence": {"tumour": 0.45}
    }
    assert ">confidence</th>" in (out / "report.html").read_text()
    plain = tmp_path / "plain"
    segment_here(scan, plain, calibrated, findings=False)  # the mask of the network itself
    np.testing.assert_array_equal(voxels(plain / "PSR_seg.nii.gz"), masks[1])
    assert len(every.findings) == len(more)


def test_mask_of_another_operating_point_is_not_taken(scan, out, calibrated, tmp_path):
    segment_here(scan, out, calibrated)
    assert [o.state for o in segment_here(scan, out, calibrated)] == ["skipped"]
    for given, message in (
        ({"min_confidence": 0}, "min_confidence {'tumour': 0.45}, now none"),
        ({"min_confidence": 0.3}, "min_confidence {'tumour': 0.45}, now 0.3"),
        ({"findings": False}, "now none"),
    ):
        [outcome] = segment_here(scan, out, calibrated, **given)
        assert outcome.state == "failed"
        assert message in outcome.reason
    other = tmp_path / "model.pt"
    shutil.copy(calibrated, other)
    content = json.loads(read_text(calibrated))
    content["confidence"]["classes"]["tumour"]["operating_point"] = 0.5
    other.with_suffix(".json").write_text(json.dumps(content))
    [outcome] = segment_here(scan, out, str(other))
    assert "min_confidence {'tumour': 0.45}, now {'tumour': 0.5}" in outcome.reason


def read_text(weights):
    return Path(weights).with_suffix(".json").read_text()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"level": 1}, "the confidence was calibrated for L2, and this is L1"),
        ({"ensemble": True}, "the confidence was calibrated for one network without mirroring"),
        ({"min_confidence": 0.2, "level": 1}, "the confidence was calibrated for L2, and this is L1"),
    ],
    ids=["level", "ensemble", "limit"],
)
def test_confidence_holds_for_what_it_was_calibrated_for(
    scan, out, calibrated, tmp_path, caplog, settings, why
):
    if settings.get("ensemble"):
        torch.save(UNetPlusPlus(3, 1, 3, channels=DEEP, strides=2).state_dict(), tmp_path / "other.pt")
        settings = {"ensemble": [str(tmp_path / "other.pt")]}
    with caplog.at_level("INFO", logger="monai_unetpp.segment.findings"):
        [outcome] = segment_here(scan, out, calibrated, **settings)
    assert outcome.reason == ""
    assert f"Findings are ranked by mean probability: {why}." in caplog.text
    assert {row["confidence"] for row in rows(out / "findings.csv")} == {""}
    assert "confidence" not in json.loads((out / "PSR_seg.json").read_text())


def test_command_says_what_findings_are_ranked_by(scan, out, calibrated, weights, tmp_path, capsys):
    def said(path, folder, *more):
        places = ["-i", scan, "-o", folder, "--bundle", LIVER, "--checkpoint", path, "--findings", *more]
        main(["segment", *map(str, places), *SETS])
        return capsys.readouterr().err

    assert (
        "Findings are ranked by calibrated confidence. Those below the operating point, 0.45 (tumour), are "
        "dropped: --min-confidence 0 keeps them."
    ) in said(calibrated, out)
    text = said(weights, tmp_path / "other")
    assert "ranked by mean probability: " in text
    assert "has no calibrated confidence, see monai-unetpp findings" in text
    assert "ranked by" not in said(calibrated, tmp_path / "all", "--min-confidence", "0")


def test_bundle_calibrates_the_confidence_that_segment_takes(balls, weights, tmp_path):
    root, path = tmp_path / "liver", tmp_path / "model.pt"
    shutil.copy(weights, path)
    cases = {"eval_cases": "$@dataset.cases", "ckpt_path": str(path), "lesion_labels": ["pip"]}
    run("liver", "train findings", root, dataset_dir=str(balls), channels=DEEP, **cases)
    level, confidence = read_confidence(path)
    assert (level, list(confidence)) == (2, ["pip"])
    of = read_record(path).confidence["classes"]["pip"]
    assert of["cases"] == 4
    assert min(of["true"], of["false"]) > 0
    candidates = rows(root / "findings" / "candidates.csv")
    assert len(candidates) == of["true"] + of["false"]
    assert len({row["case"] for row in candidates}) > 1
    # the findings of a scan are the candidates: the same numbers from both ways to segment
    record = replace(read_record(path), labels=["background", "ball", "pip"])
    write_record(path, record)
    segment_here(balls / "imagesTr", tmp_path / "out", str(path), min_confidence=0)
    found = [row for row in rows(tmp_path / "out" / "findings.csv") if row["class"] == "pip"]
    measures = [
        sorted((round(float(r["mean_probability"]), 3), round(float(r["elongation"]), 2)) for r in table)
        for table in (found, candidates)
    ]
    assert measures[0] == measures[1]


def test_table_follows_what_is_done_again_and_what_is_not(balls, out, weights):
    source = balls / "imagesTr"
    segment_here(source / "RAS.nii.gz", out, weights)
    states = [o.state for o in segment_here(source, out, weights)]
    assert states == ["done", "done", "skipped", "done"]
    every = {f"{n}.nii.gz" for n in ("LPS", "PSR", "RAS", "oblique")}

    def scans():
        return {row["scan"].rsplit("/", 1)[1] for row in rows(out / "findings.csv")}

    assert scans() == every
    before = (out / "findings.csv").read_text()
    (out / "findings.csv").unlink()
    assert [o.state for o in segment_here(source, out, weights)] == ["skipped"] * 4
    assert (out / "findings.csv").read_text() == before
    segment_here(source / "RAS.nii.gz", out, weights, overwrite=True, min_confidence=1)  # nothing is left
    assert scans() == every - {"RAS.nii.gz"}
    segment_here(source / "LPS.nii.gz", out, weights, overwrite=True, findings=False)
    assert scans() == every - {"RAS.nii.gz", "LPS.nii.gz"}
    assert not (out / "LPS_findings.json").exists()
    (out / "PSR_findings.json").write_text("{")
    [outcome] = segment_here(source / "PSR.nii.gz", out, weights)
    assert outcome.state == "failed"
    assert "PSR_findings.json is damaged" in outcome.reason


def test_findings_of_a_series_name_their_images(balls, out, weights, tmp_path):
    values = voxels(balls / "imagesTr" / "LPS.nii.gz")
    planes = [(4.0 * z, plane) for z, plane in enumerate(np.moveaxis(values, -1, 0))]
    series = write_series(tmp_path / "scans" / "ct#1", planes[::-1], pixel=4.0)
    [outcome] = segment_here(series, out, weights)
    assert outcome.reason == ""
    volume, reader = volume_loader()(series), sitk.ImageFileReader()
    height = {}
    for path in series.iterdir():
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        height[reader.GetMetaData("0008|0018")] = reader.GetOrigin()[2]
    found = rows(out / "ct#1_findings.csv")
    assert found
    for row in found:
        z = float(volume.affine[2, 2] * (int(row["slice"]) - 1) + volume.affine[2, 3])
        assert height[row["instance_uid"]] == pytest.approx(z)


def test_regions_have_findings_of_their_own(scan, out, tmp_path):
    regions = {"regions": [[1, 2], [2]], "regions_class_order": [1, 2], "out_channels": 2}
    torch.manual_seed(0)
    path = tmp_path / "model.pt"
    torch.save(UNetPlusPlus(3, 1, 2, channels=DEEP, strides=2).state_dict(), path)
    [outcome] = segment_here(scan, out, str(path), **regions, min_volume="200mm3")
    assert outcome.reason == ""
    mask, found = voxels(out / "PSR_seg.nii.gz"), rows(out / "PSR_findings.csv")
    for values in ([1, 2], [2]):
        sizes = components(np.isin(mask, values), (True,))[True]
        names = {row["class"] for row in found}
        assert any(
            sorted(round(float(row["volume_ml"]) / 0.064) for row in found if row["class"] == name) == sizes
            for name in names
        )
    assert all(float(row["mean_probability"]) > 0.5 for row in found)


# The command


def test_command_counts_findings_and_says_what_is_wrong_with_limits(scan, out, weights, capsys):
    places = ["-i", scan, "-o", out, "--bundle", LIVER, "--checkpoint", weights]
    arguments = ["segment", *map(str, places), *SETS, "--findings"]
    main([*arguments, "--min-volume", "30mm3", "--min-diameter", "4mm", "--min-confidence", "0.2"])
    assert f"; {len(rows(out / 'findings.csv'))} findings\n" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*arguments, "--min-volume", "30"])
    assert "error: min_volume (--min-volume) must be a volume with its unit" in capsys.readouterr().err


def test_pictures_have_no_findings(scan, out, weights, tmp_path):
    own = shutil.copytree(LIVER, tmp_path / "own", ignore=shutil.ignore_patterns("weights"))
    inference = json.loads((own / "inference.json").read_text())
    (own / "inference.json").write_text(json.dumps({**inference, "pictures": True}))
    with pytest.raises(ValueError, match="must be left out for pictures, whose pixels have no size in mm"):
        segment(scan, out, own, ckpt_path=weights, findings=True, **SETTINGS)


def test_series_of_one_folder_are_measured_each_with_its_own_images(tmp_path, balls, weights):
    values = voxels(balls / "imagesTr" / "LPS.nii.gz")
    planes = [(4.0 * z, plane) for z, plane in enumerate(np.moveaxis(values, -1, 0))]
    folder = tmp_path / "cd" / "DICOM"
    folder.mkdir(parents=True)
    for uid in ("1.2.3.1", "1.2.3.2"):
        for path in write_series(tmp_path / uid, planes, uid=uid, pixel=4.0).iterdir():
            path.rename(folder / f"{uid}-{path.name}")
    outcomes = segment_here(tmp_path / "cd", tmp_path / "out", weights, report=True)
    assert [each.reason for each in outcomes] == ["", ""]
    found = {each.image: set() for each in outcomes}
    for row in rows(tmp_path / "out" / "findings.csv"):
        found[row["scan"]].add(row["instance_uid"].rpartition(".")[0])
    assert list(found.values()) == [{"1.2.3.1"}, {"1.2.3.2"}]
