# SPDX-License-Identifier: Apache-2.0
"""python -m monai_unetpp segment: many scans, of which some are bad."""

import csv
import gzip
import json
import re

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  its own documentation's name
import torch
from dicom import write_series
from filelock import FileLock
from processes import python, torchrun

from bundles import AFFINES, BUNDLES, DEEP, TINY, run
from monai_unetpp import UNetPlusPlus
from monai_unetpp.__main__ import main
from monai_unetpp.files import result_path
from monai_unetpp.readers import SimpleITKReader
from monai_unetpp.segment import Outcome, Report, load_pipeline, segment, segment_distributed

SETTINGS = {**TINY, "channels": [4, 8]}
LIVER = BUNDLES / "liver"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def weights(trained):
    return str(trained / "models" / "model.pt")


def segment_here(source, out, weights, **more):
    return segment(source, out, LIVER, ckpt_path=weights, **{**SETTINGS, **more})


def names(folder):
    """What lies in a folder, without what says how the masks were made."""
    found = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if not hidden(p, folder))
    return sorted(name for name in found if not name.endswith("_seg.json"))


def hidden(path, folder):
    return path.is_dir() or any(part.startswith(".") for part in path.relative_to(folder).parts)


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


# What is written


def test_masks_are_those_of_the_bundle(balls, out, weights, tmp_path):
    outcomes = segment_here(balls / "imagesTr", out, weights)
    assert [outcome.state for outcome in outcomes] == ["done"] * 4
    run("liver", "inference", tmp_path / "bundle", input=str(balls / "imagesTr"), ckpt_path=weights)
    expected = tmp_path / "bundle" / "output"
    assert names(out) == names(expected) == sorted(f"{name}_seg.nii.gz" for name in AFFINES)
    assert sum(voxels(path).any() for path in expected.iterdir()) > 0
    for path in expected.iterdir():
        np.testing.assert_array_equal(voxels(out / path.name), voxels(path))


def test_masks_lie_on_the_grid_of_the_scan_for_nibabel_and_for_simpleitk(balls, out, weights):
    segment_here(balls / "imagesTr", out, weights)
    for path in (balls / "imagesTr").iterdir():
        scan, mask = nib.load(path), nib.load(result_path(path, out))
        assert mask.get_data_dtype() == np.uint8
        assert mask.shape == scan.shape
        np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-4)
        scan, mask = sitk.ReadImage(str(path)), sitk.ReadImage(str(result_path(path, out)))
        assert mask.GetSize() == scan.GetSize()
        for got, wanted in (
            (mask.GetSpacing(), scan.GetSpacing()),
            (mask.GetOrigin(), scan.GetOrigin()),
            (mask.GetDirection(), scan.GetDirection()),
        ):
            np.testing.assert_allclose(got, wanted, atol=1e-4)


@pytest.mark.parametrize("kind", ["nrrd", "mhd", "dicom", "4d"])
def test_every_kind_of_scan_gives_the_mask_of_the_same_nifti(balls, out, weights, tmp_path, kind):
    source = balls / "imagesTr" / "LPS.nii.gz"
    folder = tmp_path / "scans"
    folder.mkdir()
    name = "1.2.840.113" if kind == "dicom" else "scan"
    if kind == "dicom":
        scan = write_series(folder / name, planes(source), pixel=4.0)
        source = tmp_path / "LPS.nii.gz"
        sitk.WriteImage(SimpleITKReader().read(scan), str(source))
    elif kind == "4d":
        affine = nib.load(source).affine
        nib.save(nib.Nifti1Image(voxels(source)[..., None], affine), folder / "scan.nii.gz")
    else:
        sitk.WriteImage(sitk.ReadImage(str(source)), str(folder / f"scan.{kind}"))
    [outcome] = segment_here(folder, out, weights)
    assert outcome.reason == ""
    segment_here(source, out, weights)
    found, expected = (sitk.ReadImage(str(out / f"{n}_seg.nii.gz")) for n in (name, "LPS"))
    assert sitk.GetArrayFromImage(expected).any()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(expected))
    np.testing.assert_allclose(found.GetOrigin(), expected.GetOrigin(), atol=1e-3)
    np.testing.assert_allclose(found.GetDirection(), expected.GetDirection(), atol=1e-5)


def planes(path):
    """The slices of a scan with their heights, as :func:`write_series` takes them."""
    return [(4.0 * z, plane) for z, plane in enumerate(np.moveaxis(voxels(path), -1, 0))]


def test_more_is_written_on_request(balls, out, deep):
    source = balls / "imagesTr" / "oblique.nii.gz"
    [outcome] = segment_here(source, out, deep, probability=1, uncertainty=True, sheets=True, channels=DEEP)
    assert outcome.state == "done"
    assert names(out) == [
        *("oblique_probability.nii.gz", "oblique_seg.nii.gz", "oblique_sheet.png"),
        *("oblique_uncertainty.nii.gz", "uncertainty.csv"),
    ]
    assert (out / "uncertainty.csv").read_text().startswith("scan,uncertainty\n")
    uncertainty = voxels(out / "oblique_uncertainty.nii.gz")
    assert 0 <= uncertainty.min() < uncertainty.max() <= 1
    probability, mask = voxels(out / "oblique_probability.nii.gz"), voxels(out / "oblique_seg.nii.gz")
    assert probability.dtype == np.float32
    assert 0 <= probability.min() < probability.max() <= 1
    assert (probability[mask == 1] > 1 / 3).all()
    assert (mask[probability > 0.5] == 1).all()
    assert (out / "oblique_sheet.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("window", [None, [-160, 240]])
def test_sheet_is_told_the_classes_the_bundle_and_the_level(balls, out, deep, monkeypatch, window):
    told = []
    place = "monai_unetpp.segment.results.draw_volume"
    monkeypatch.setattr(place, lambda *given, **about: told.append((given[3], about)))
    source, settings = balls / "imagesTr" / "RAS.nii.gz", {"sheets": True, "channels": DEEP, "level": 1}
    [outcome] = segment_here(source, out, deep, **settings, **({"sheet_window": window} if window else {}))
    assert outcome.reason == ""
    [(given, about)] = told
    assert given == window
    assert about["names"][:2] == ("background", "liver")
    assert about["note"] == "bundle liver, L1"


def test_summary_states_where_masks_are_and_the_volume_of_each_class(balls, out, weights):
    [outcome] = segment_here(balls / "imagesTr" / "oblique.nii.gz", out, weights)
    mask = nib.load(outcome.mask)
    values, ml = np.asarray(mask.dataobj), np.prod(mask.header.get_zooms()) / 1000
    counted = {name: (values == c).sum() * ml for c, name in enumerate(["", "ball", "pip"])}
    assert dict(outcome.volumes) == pytest.approx({n: counted[n] for n, _ in outcome.volumes}, rel=1e-4)
    assert f"\n  {out}/oblique_seg.nii.gz: ball " in str(Report((outcome,)))
    many = str(Report((outcome,) * 12))
    assert many.count("oblique_seg") == 10
    assert many.endswith("and 2 more masks")


def test_cases_are_ranked_by_uncertainty_over_several_runs(balls, out, deep):
    sources = [balls / "imagesTr" / f"{name}.nii.gz" for name in ("RAS", "LPS", "RAS")]
    outcomes = [segment_here(s, out, deep, uncertainty=True, channels=DEEP)[0] for s in sources[:2]]
    [again] = segment_here(sources[2], out, deep, uncertainty=True, channels=DEEP, overwrite=True)
    assert again.uncertainty == outcomes[0].uncertainty
    with (out / "uncertainty.csv").open(newline="") as file:
        rows = [(row["scan"], float(row["uncertainty"])) for row in csv.DictReader(file)]
    assert {*rows} == {(o.image, round(o.uncertainty, 4)) for o in outcomes}
    assert [value for _, value in rows] == sorted((value for _, value in rows), reverse=True)


def test_folders_of_series_come_out_as_deep_as_they_went_in(balls, out, weights, tmp_path):
    for name in ("ward/a.1/ct", "ward/a.2/ct"):
        write_series(tmp_path / "scans" / name, planes(balls / "imagesTr" / "RAS.nii.gz"), pixel=4.0)
    segment_here(tmp_path / "scans", out, weights)
    assert names(out) == ["ward/a.1/ct_seg.nii.gz", "ward/a.2/ct_seg.nii.gz"]


# Again, and side by side


def test_what_is_done_is_not_done_again(balls, out, weights):
    source = balls / "imagesTr"
    segment_here(source / "RAS.nii.gz", out, weights)
    before = (out / "RAS_seg.nii.gz").stat().st_mtime_ns
    assert [o.state for o in segment_here(source, out, weights)] == ["done", "done", "skipped", "done"]
    assert (out / "RAS_seg.nii.gz").stat().st_mtime_ns == before
    [outcome] = segment_here(source / "RAS.nii.gz", out, weights, overwrite=True)
    assert outcome.state == "done"
    assert (out / "RAS_seg.nii.gz").stat().st_mtime_ns > before


def test_what_lacks_a_result_that_is_asked_for_is_done_again(balls, out, weights):
    source = balls / "imagesTr" / "RAS.nii.gz"
    segment_here(source, out, weights)
    assert [o.state for o in segment_here(source, out, weights, probability=1)] == ["done"]
    assert [o.state for o in segment_here(source, out, weights, probability=1)] == ["skipped"]


def test_what_another_process_is_at_is_left_to_it(balls, out, weights):
    (out / ".locks").mkdir(parents=True)
    with FileLock(out / ".locks" / "LPS_seg.nii.gz.lock"):
        states = [o.state for o in segment_here(balls / "imagesTr", out, weights)]
    assert states == ["locked", "done", "done", "done"]
    assert [o.state for o in segment_here(balls / "imagesTr", out, weights)] == ["done", *["skipped"] * 3]


def launch(source, out, weights):
    """Two processes."""
    sets = [text for key, value in SETTINGS.items() for text in ("--set", key, json.dumps(value))]
    words = ["-i", source, "-o", out, "--bundle", LIVER, "--checkpoint", weights, *sets]
    return torchrun("-m", "monai_unetpp", "segment", *words)


def test_two_processes_share_the_scans_and_one_that_died_is_made_up_for(balls, out, weights, tmp_path):
    (tmp_path / "scans").mkdir()
    for path in (balls / "imagesTr").iterdir():
        (tmp_path / "scans" / path.name).write_bytes(path.read_bytes())
    result = launch(tmp_path / "scans", out, weights)
    assert "4 segmented." in result.stdout, result.stderr
    written = {path: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}
    (out / "PSR_seg.nii.gz").unlink()  # as if the process that had it had died
    result = launch(tmp_path / "scans", out, weights)
    assert "1 segmented, 3 had been done before." in result.stdout
    assert {p.name for p in out.glob("*.nii.gz") if written[p] != p.stat().st_mtime_ns} == {"PSR_seg.nii.gz"}


# The report


def test_report_counts_scans_windows_and_reasons():
    outcomes = [
        Outcome("a", "done", exits=(3, 1)),
        Outcome("b", "failed", "b: it is damaged"),
        Outcome("c", "locked"),
        Outcome("d", "done", exits=(0, 2)),
        Outcome("e", "skipped"),
        Outcome("f", "failed", "f: no room"),
    ]
    report = Report(tuple(outcomes))
    assert report.counts == {"done": 2, "skipped": 1, "locked": 1, "failed": 2}
    assert report.exits == [3, 3]
    assert report.failed == [outcomes[1], outcomes[5]]
    assert str(report).splitlines() == [
        "2 segmented, 1 had been done before, 1 are locked by another process, 2 failed. "
        "Windows that stopped at L1: 3, L2: 3.",
        "  b: it is damaged",
        "  f: no room",
    ]


def test_scans_that_failed_are_in_the_report_and_raise_nothing(balls, out, weights, tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "good.nii.gz").write_bytes((balls / "imagesTr" / "RAS.nii.gz").read_bytes())
    (tmp_path / "scans" / "bad.nii.gz").touch()
    report = segment_distributed(tmp_path / "scans", out, LIVER, ckpt_path=weights, **SETTINGS)
    assert [outcome.state for outcome in report.outcomes] == ["failed", "done"]
    assert str(report).startswith("1 segmented, 1 failed.\n  ")
    assert not segment_distributed(balls / "imagesTr", out, LIVER, ckpt_path=weights, **SETTINGS).failed


def test_segmenting_does_not_import_what_paints_phantoms():
    code = "import sys, monai_unetpp.segment as _; print(*sys.modules, sep='\\n')"
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert "monai_unetpp.data.cases" in loaded
    assert [name for name in loaded if name.startswith("monai_unetpp.data.phantoms")] == []


# Early exit


def test_early_exit_stops_windows_and_says_where(balls, out, deep, tmp_path):
    weights = torch.load(deep)
    weights["heads.0.weight"] *= 100  # L1 is sure of itself
    torch.save(weights, tmp_path / "sure.pt")
    settings = {"channels": DEEP, "windows#threshold": 0.9}
    outcomes = segment_here(balls / "imagesTr", out, str(tmp_path / "sure.pt"), **settings)
    for outcome in outcomes:
        assert outcome.exits[0] > 0
        assert outcome.exits[1:] == (0,)


@pytest.mark.parametrize("threshold", [None, 0.9], ids=["L2", "early-exit"])
def test_a_network_of_two_dimensions_goes_slice_by_slice(balls, out, tmp_path, threshold):
    torch.manual_seed(0)
    net = UNetPlusPlus(2, 1, 3, channels=DEEP, strides=2).eval()
    net.heads["0"].weight.data *= 100  # L1 is sure of itself
    torch.save(net.state_dict(), tmp_path / "model.pt")
    settings = {"spatial_dims": 2, "channels": DEEP, "windows#threshold": threshold, "windows#overlap": 0}
    weights, source = str(tmp_path / "model.pt"), balls / "imagesTr" / "RAS.nii.gz"
    settings |= {"pixdim": [4.0, 4.0, 4.0], "roi_size": [32, 28, 99]}  # the file's own grid, whole slices
    [outcome] = segment_here(source, out, weights, **settings)
    assert outcome.reason == ""
    image = torch.as_tensor(voxels(source)).float().add(150).div(400).clamp(0, 1)
    net.level = 2 if threshold is None else 1
    with torch.no_grad():
        expected = torch.stack(
            [net(image[None, None, :, :, z])[0].argmax(0) for z in range(image.shape[2])], -1
        )
    found = voxels(out / "RAS_seg.nii.gz")
    assert len(np.unique(found)) > 1
    assert (found == expected.numpy()).mean() > 0.999


# Bad input


def bad_scans(folder, good):
    """One good scan among bad ones; name -> what the message says."""
    folder.mkdir()
    scan = nib.load(good)
    data = voxels(good).astype(np.float32)
    (folder / "good.nii.gz").write_bytes(good.read_bytes())
    (folder / "cut.nii.gz").write_bytes(good.read_bytes()[:3000])
    (folder / "zero.nii.gz").touch()
    (folder / "junk.nii.gz").write_bytes(gzip.compress(b"no volume" * 100))
    (folder / "lost.mhd").write_text("ObjectType = Image\nElementDataFile = lost.raw\n")
    broken = data.copy()
    broken[3, 4, 5] = np.nan
    nib.save(nib.Nifti1Image(broken, scan.affine), folder / "nan.nii.gz")
    rgb = np.zeros(data.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(rgb, scan.affine), folder / "rgb.nii.gz")
    nib.save(nib.Nifti1Image(data[..., 0], scan.affine), folder / "flat.nii.gz")
    nib.save(nib.Nifti1Image(np.stack([data] * 3, -1), scan.affine), folder / "many.nii.gz")
    return {
        "cut": "cannot be read, it may be damaged",
        "zero": "cannot be read, it may be damaged",
        "junk": "cannot be read, it may be damaged",
        "lost": "which is not beside it",
        "nan": "has 1 voxels that are NaN or infinite",
        "rgb": "rgb.nii.gz",
        "flat": "must be a volume of three axes, got 2",
        "many": "must have one channel, got 3",
    }


def test_bad_scans_do_not_stop_the_others_and_are_named(balls, out, weights, tmp_path, capsys):
    messages = bad_scans(tmp_path / "scans", balls / "imagesTr" / "RAS.nii.gz")
    sets = [text for key, value in SETTINGS.items() for text in ("--set", key, json.dumps(value))]
    arguments = ["-i", tmp_path / "scans", "-o", out, "--bundle", LIVER, "--checkpoint", weights, *sets]
    with pytest.raises(SystemExit) as end:
        main(["segment", *map(str, arguments)])
    assert end.value.code == 2
    assert names(out) == ["good_seg.nii.gz"]
    said = capsys.readouterr().err.split("error: ")[-1]
    assert said.startswith(f"1 segmented, {len(messages)} failed.")
    lines = said.splitlines()
    for name, message in messages.items():
        assert any(f"{tmp_path}/scans/{name}." in line and message in line for line in lines), (name, said)


@pytest.mark.parametrize("what", ["mr", "nowhere"])
def test_doubtful_scans_are_segmented_with_a_warning(balls, out, weights, tmp_path, caplog, what):
    scan = nib.load(balls / "imagesTr" / "RAS.nii.gz")
    data = voxels(balls / "imagesTr" / "RAS.nii.gz")
    if what == "mr":
        nib.save(nib.Nifti1Image(data + 2000, scan.affine), tmp_path / "mr.nii.gz")
        message = "mr.nii.gz has no voxel below 0, .* Is it MR, or stored with an offset"
    else:
        nib.save(nib.Nifti1Image(data, None), tmp_path / "nowhere.nii.gz")
        message = "nowhere.nii.gz does not say where it lies"
    [outcome] = segment_here(tmp_path / f"{what}.nii.gz", out, weights)
    assert outcome.state == "done"
    assert re.search(message, caplog.text)
    summary = str(Report((outcome,)))
    assert summary.startswith(f"1 segmented.\n  {out}/{what}_seg.nii.gz: ball ")
    assert "\n  warning: " in summary
    assert re.search(message, summary)


def test_a_scan_larger_than_memory_is_refused_before_it_is_read(balls, out, weights, monkeypatch):
    monkeypatch.setattr("monai_unetpp.readers.memory.available_memory", lambda: 1000)
    [outcome] = segment_here(balls / "imagesTr" / "RAS.nii.gz", out, weights)
    assert outcome.state == "failed"
    assert re.search(r"RAS\.nii\.gz has 0 million voxels, which take .* are available", outcome.reason)


def test_an_output_among_the_scans_is_refused(balls, weights):
    with pytest.raises(ValueError, match="output must be outside of the folder of the scans"):
        segment_here(balls / "imagesTr", balls / "imagesTr" / "masks", weights)
    assert not (balls / "imagesTr" / "masks").exists()


def test_an_output_that_cannot_be_written_to_is_an_error(balls, tmp_path, weights):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        segment_here(balls / "imagesTr", tmp_path / "file" / "out", weights)


def test_a_picture_and_an_empty_folder_are_no_scans(tmp_path, out, weights):
    (tmp_path / "a.png").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"a\.png is no volume: \.nii"):
        segment_here(tmp_path / "a.png", out, weights)
    with pytest.raises(FileNotFoundError, match="empty holds no volume"):
        segment_here(tmp_path / "empty", out, weights)
    assert not out.exists()


def test_a_folder_that_is_no_bundle_is_named(tmp_path, out):
    with pytest.raises(FileNotFoundError, match="bundle must be the folder of a bundle"):
        load_pipeline(tmp_path, "scans", out)


@pytest.mark.parametrize(
    ("level", "message"),
    [
        ("deep", "level must be a number, auto or early-exit, got deep"),
        ("7", "level must be one of those that"),
        ("early-exit", r"model\.pt was not calibrated"),
    ],
)
def test_a_level_that_is_none_is_refused(balls, out, weights, level, message, capsys):
    sets = [text for key, value in SETTINGS.items() for text in ("--set", key, json.dumps(value))]
    arguments = ["-i", balls / "imagesTr", "-o", out, "--bundle", LIVER, "--checkpoint", weights, *sets]
    with pytest.raises(SystemExit):
        main(["segment", *map(str, arguments), "--level", level])
    error = capsys.readouterr().err.split("error: ")[-1]
    assert re.search(message, error)
    assert error.count("\n") == 1
