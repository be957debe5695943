# SPDX-License-Identifier: Apache-2.0
"""segment --report: what became of each scan, in one JSON and on one page, whichever process did it."""

import json
import shutil
import subprocess

import nibabel as nib
import numpy as np
import pytest
from filelock import FileLock
from test_report import CHROMIUM, check_page, has_colour, read_png

from bundles import BUNDLES, DEEP, TINY
from monai_unetpp import __version__
from monai_unetpp.pictures import class_colour
from monai_unetpp.segment import segment
from monai_unetpp.weights import sha256

LIVER = BUNDLES / "liver"
SETTINGS = {**TINY, "channels": DEEP}

pytestmark = pytest.mark.slow


@pytest.fixture
def scans(balls, tmp_path):
    """Two scans, and one that cannot be read, whose name is no HTML."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("LPS", "RAS"):
        shutil.copy(balls / "imagesTr" / f"{name}.nii.gz", folder)
    (folder / "<b>bad.nii.gz").write_bytes(b"no NIfTI")
    return folder


def segment_here(source, out, weights, **more):
    return segment(source, out, LIVER, ckpt_path=weights, **{"report": True, **SETTINGS, **more})


def read(out):
    document = json.loads((out / "report.json").read_text())
    return document, {entry["scan"].rsplit("/", 1)[1]: entry for entry in document["scans"].values()}


def test_report_states_what_became_of_each_scan_and_what_made_it(scans, out, deep):
    segment_here(scans, out, deep, findings=True, sheets=True, uncertainty=True, min_volume="100mm3")
    document, found = read(out)
    run = document["run"]
    assert (run["monai_unetpp"], run["weights"], run["device"]) == (__version__, sha256(deep), "cpu")
    assert (run["level"], run["precision"], run["min_volume_mm3"]) == ("L2", "float32", 100)
    assert document["counts"] == {"done": 2, "failed": 1}
    bad, good = found["<b>bad.nii.gz"], found["RAS.nii.gz"]
    assert "bad.nii.gz" in bad["reason"]
    assert bad["files"] == {}
    assert good["seconds"] > 0
    assert 0 < good["expected_error"] < 1
    assert good["findings"] == json.loads((out / "RAS_findings.json").read_text())["findings"]
    mask = np.asarray(nib.load(out / good["files"]["seg"]).dataobj)
    assert sum(ml for name, ml in good["volumes_ml"].items() if name != "background") == pytest.approx(
        np.count_nonzero(mask) * 0.064
    )
    page = check_page(out / "report.html")
    assert page.tags.count("img") == 2
    assert page.text.index("bad.nii.gz") < page.text.index("RAS.nii.gz")
    assert "&lt;b&gt;bad" in page.source
    assert "<b>bad" not in page.source
    for text in ("2 segmented", "1 failed", bad["reason"], sha256(deep), "Where to look first"):
        assert " ".join(text.split()) in page.text
    assert f"{good['expected_error']:.3f}" in page.text
    assert all(f"{each['long_axis_mm']:.1f}" in page.text for each in good["findings"])
    ranked = sorted(("LPS.nii.gz", "RAS.nii.gz"), key=lambda name: -found[name]["expected_error"])
    section = page.text.split("Where to look first")[2]
    assert section.index(ranked[0]) < section.index(ranked[1])


def test_report_counts_windows_by_level_of_early_exit(scans, out, deep):
    [outcome] = segment_here(scans / "RAS.nii.gz", out, deep, **{"windows#threshold": 0.3})
    [entry] = read(out)[1].values()
    assert entry["windows_by_level"] == {f"L{k}": n for k, n in enumerate(outcome.exits, 1)}
    assert "windows at L1" in check_page(out / "report.html").text


def test_report_of_a_folder_keeps_what_other_runs_did(scans, out, deep):
    segment_here(scans / "RAS.nii.gz", out, deep)
    before = read(out)[1]["RAS.nii.gz"]
    (out / ".locks").mkdir(exist_ok=True)
    with FileLock(out / ".locks" / "LPS_seg.nii.gz.lock"):
        segment_here(scans, out, deep)
    _, found = read(out)
    assert found["RAS.nii.gz"] == {**before, "state": "skipped"}
    assert found["LPS.nii.gz"]["state"] == "locked"
    assert "locked by another process" in check_page(out / "report.html").text
    segment_here(scans, out, deep)
    document, found = read(out)
    assert document["counts"] == {"failed": 1, "done": 1, "skipped": 1}
    assert found["LPS.nii.gz"]["seconds"] > 0


def test_scans_that_no_process_has_reached_are_missing(scans, out, deep):
    segment_here(scans, out, deep, share=(1, 3))
    assert read(out)[0]["counts"]["missing"] == 2
    text = check_page(out / "report.html").text
    assert "2 not reached by any process" in text
    assert text.count("No process has reached it: start the same command again.") == 2
    for rank in (0, 2):
        segment_here(scans, out, deep, share=(rank, 3))
    assert read(out)[0]["counts"] == {"failed": 1, "done": 2}


def test_run_that_is_interrupted_reports_what_it_did(scans, out, deep, monkeypatch):
    from monai_unetpp.segment import run

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "volumes_of", stop)
    with pytest.raises(KeyboardInterrupt):
        segment_here(scans, out, deep)
    assert read(out)[0]["counts"] == {"failed": 1, "missing": 2}


def test_results_of_a_run_without_report_are_read_from_their_files(scans, out, deep):
    more = {"findings": True, "sheets": True}
    segment_here(scans / "RAS.nii.gz", out, deep, report=False, **more)
    assert not (out / "report.json").exists()
    segment_here(scans / "RAS.nii.gz", out, deep, **more)
    [entry] = read(out)[1].values()
    document = json.loads((out / "RAS_findings.json").read_text())
    assert (entry["state"], entry["findings"]) == ("skipped", document["findings"])
    assert entry["volumes_ml"] == {c["class"]: c["volume_ml"] for c in document["classes"] if c["findings"]}
    assert check_page(out / "report.html").tags.count("img") == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"scans": {"a": {"scan": "a"}}}', '{"scans": 3}'])
def test_damaged_report_is_written_anew_with_a_warning(scans, out, deep, caplog, text):
    out.mkdir()
    (out / "report.json").write_text(text)
    segment_here(scans / "RAS.nii.gz", out, deep)
    assert read(out)[0]["counts"] == {"done": 1}
    assert "report.json is damaged, what it said of earlier runs is lost" in caplog.text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: chromium, chromium-browser or google-chrome")
@pytest.mark.parametrize("width", [500, 1200])
def test_browser_draws_the_report(scans, out, deep, tmp_path, width):
    segment_here(scans, out, deep, findings=True, sheets=True, uncertainty=True)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'p'}"]
    shot = tmp_path / "page.png"
    page = (out / "report.html").as_uri()
    command = [CHROMIUM, *flags, "--hide-scrollbars", f"--window-size={width},3000", f"--screenshot={shot}"]
    subprocess.run([*command, page], check=True, capture_output=True, timeout=120)
    image = read_png(shot.read_bytes())
    assert image.shape[:2] == (3000, width)
    assert has_colour(image, class_colour(1))  # an outline of a sheet
