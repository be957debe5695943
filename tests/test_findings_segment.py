# SPDX-License-Identifier: Apache-2.0
"""segment --findings: tables, masks and sheets say the same, however often one runs."""

import csv
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  its own documentation's name
import torch
from dicom import write_series
from scipy import ndimage

from bundles import BUNDLES, DEEP, TINY
from monai_unetpp import UNetPlusPlus
from monai_unetpp.__main__ import main
from monai_unetpp.readers import volume_loader
from monai_unetpp.segment import segment

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
