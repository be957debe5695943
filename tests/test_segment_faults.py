# SPDX-License-Identifier: Apache-2.0
"""python -m monai_unetpp segment: many scans, processes that are killed, disks that are full."""

import csv
import gc
import json
import os
import runpy
import shutil
import sys
import threading
from pathlib import Path

import nibabel as nib
import pytest
from dicom import write_series
from filelock import FileLock
from processes import python

from bundles import BUNDLES, DEEP, TINY
from monai_unetpp.__main__ import main
from monai_unetpp.files import atomic_write, short_name, stale_parts
from monai_unetpp.segment import segment

SETTINGS = {**TINY, "channels": DEEP}
SETS = [text for key, value in SETTINGS.items() for text in ("--set", key, json.dumps(value))]
LIVER = BUNDLES / "liver"
TRIALS = Path(__file__).parents[1] / "benchmarks" / "faults"

pytestmark = pytest.mark.slow


def segment_here(source, out, weights, **more):
    return segment(source, out, LIVER, ckpt_path=weights, **{**SETTINGS, **more})


def arguments(source, out, weights):
    places = ["-i", source, "-o", out, "--bundle", LIVER, "--checkpoint", weights]
    return ["segment", *map(str, places), *SETS]


def files(folder):
    """What lies in a folder, hidden files included, locks and what says how the masks were made not."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and ".locks" not in path.parts and not path.name.endswith("_seg.json")
    )


# Many


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files as Linux lists them")
def test_sixty_scans_of_all_kinds_leave_no_file_open_and_no_thread(tmp_path, out, deep):
    write_scans = runpy.run_path(str(TRIALS / "small.py"))["write_scans"]
    write_scans(tmp_path / "first", 12, bad_every=6)
    write_scans(tmp_path / "scans", 60, bad_every=20)

    def held():
        gc.collect()
        return len(os.listdir("/proc/self/fd")), threading.active_count()  # noqa: PTH208

    segment_here(tmp_path / "first", tmp_path / "warm", deep)
    before = held()
    states = [outcome.state for outcome in segment_here(tmp_path / "scans", out, deep)]
    assert held() == before
    assert states.count("done") == 57
    assert states.count("failed") == 3
    assert stale_parts(out) == {}


# Killed

KILLED = """
import os, signal, sys
import nibabel
from monai_unetpp.__main__ import main

def save(image, path, save=nibabel.save):
    if path.name == "PSR_seg.nii.gz":
        path.write_bytes(b"half of it")
        os.kill(os.getpid(), signal.SIGKILL)
    save(image, path)

nibabel.save = save
main(sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
def test_run_after_one_that_was_killed_cleans_up_and_lists_every_scan(balls, out, deep):
    done = python("-c", KILLED, *arguments(balls / "imagesTr", out, deep), "--uncertainty")
    assert done.returncode < 0, done.stderr
    assert len(stale_parts(out)) == 1
    assert not (out / "PSR_seg.nii.gz").exists()
    states = [o.state for o in segment_here(balls / "imagesTr", out, deep, uncertainty=True)]
    assert states == ["skipped", "done", "skipped", "done"] or states == ["skipped", "done", "done", "done"]
    names = ["LPS", "PSR", "RAS", "oblique"]
    assert files(out) == sorted(
        ["uncertainty.csv", *(f"{n}_{k}.nii.gz" for n in names for k in ("seg", "uncertainty"))]
    )
    with (out / "uncertainty.csv").open(newline="") as file:
        assert {Path(row["scan"]).name for row in csv.DictReader(file)} == {f"{n}.nii.gz" for n in names}


def test_ranking_that_was_changed_by_hand_is_named(balls, out, deep):
    out.mkdir()
    (out / "uncertainty.csv").write_text("scan;uncertainty\na;0,5\n")  # as a spreadsheet may save it
    [outcome] = segment_here(balls / "imagesTr" / "RAS.nii.gz", out, deep, uncertainty=True)
    assert outcome.state == "failed"
    assert f"{out}/uncertainty.csv was changed: restore it or move it away" in outcome.reason
    assert not (out / "RAS_seg.nii.gz").exists()


def test_only_what_no_process_is_writing_is_cleaned_up(balls, out, deep):
    folders = [out / f".{name}_seg.nii.gz.abcdefgh.part" for name in ("LPS", "RAS", "other")]
    for folder in folders:
        folder.mkdir(parents=True)
    (folders[1] / "RAS_seg.nii.gz").write_bytes(b"half of it")
    (out / ".locks").mkdir()
    with FileLock(out / ".locks" / "LPS_seg.nii.gz.lock"):
        segment_here(balls / "imagesTr", out, deep)
    assert [folder.exists() for folder in folders] == [True, False, True]
    segment_here(balls / "imagesTr", out, deep)
    assert [folder.exists() for folder in folders] == [False, False, True]


def test_hidden_folder_tells_what_was_written_in_it(tmp_path):
    for name in ("a.txt", "b" * 250):
        with atomic_write(tmp_path / name) as part:
            part.write_text("whole")
            assert stale_parts(tmp_path) == {tmp_path / short_name(name): [part.parent]}
    assert stale_parts(tmp_path) == {}
    assert files(tmp_path) == ["a.txt", "b" * 250]


# Full, read-only, too long


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of a file, which Windows cannot")
def test_full_disk_leaves_nothing_half_written_and_says_what_to_do(balls, out, deep, capsys):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))  # Python ignores the signal
    try:
        with pytest.raises(SystemExit) as end:
            main([*arguments(balls / "imagesTr", out, deep), "--probability", "1"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err.split("error: ")[-1].splitlines()
    assert end.value.code == 2
    assert said[0] == "4 failed."
    for name, line in zip(("LPS", "PSR", "RAS", "oblique"), said[1:], strict=True):
        assert f"{name}.nii.gz: " in line
        assert f"free some space, or write to another place: '{out}/{name}_probability.nii.gz'" in line
    assert files(out) == []
    assert stale_parts(out) == {}
    states = [o.state for o in segment_here(balls / "imagesTr", out, deep, probability=1)]
    assert states == ["done"] * 4


def under_a_file(folder):
    (folder / "file").touch()
    return folder / "file" / "out"


def where_nothing_can_be_made(_):
    if not Path("/proc/self").is_dir():
        pytest.skip("this system has no /proc")
    return Path("/proc/self/out")


def read_only(folder):
    if not hasattr(os, "geteuid") or os.geteuid() == 0:
        pytest.skip("permissions do not bind root")
    (folder / "out" / ".locks").mkdir(parents=True)
    (folder / "out" / ".locks").chmod(0o555)
    (folder / "out").chmod(0o555)
    return folder / "out"


@pytest.mark.parametrize("place", [under_a_file, where_nothing_can_be_made, read_only])
def test_output_that_cannot_be_written_to_is_said_before_the_first_scan(
    balls, tmp_path, deep, capsys, place, monkeypatch
):
    monkeypatch.setattr("monai_unetpp.segment.run.check_volume", lambda _: pytest.fail("a scan was read"))
    with pytest.raises(SystemExit) as end:
        main(arguments(balls / "imagesTr", place(tmp_path), deep))
    error = capsys.readouterr().err.split("error: ")[-1]
    assert end.value.code == 2
    assert "output must be a folder that can be written to, name another: '" in error
    assert error.count("\n") == 1


def test_names_as_long_as_a_file_system_takes_stop_no_other_scan(balls, tmp_path, out, deep):
    scans = tmp_path / "scans"
    scans.mkdir()
    for name in ("a" * 240, "b" * 247, "c"):  # of 255 bytes; _seg.nii.gz takes 11
        shutil.copy(balls / "imagesTr" / "RAS.nii.gz", scans / f"{name}.nii.gz")
    outcomes = segment_here(scans, out, deep)
    assert [outcome.state for outcome in outcomes] == ["done", "failed", "done"]
    assert "name too long" in outcomes[1].reason
    assert files(out) == [f"{'a' * 240}_seg.nii.gz", "c_seg.nii.gz"]


def test_series_deep_below_long_names_is_segmented(balls, tmp_path, out, deep):
    volume = nib.load(balls / "imagesTr" / "RAS.nii.gz").dataobj[:]
    place = Path(*(letter * 64 for letter in "abcde"))
    planes = [(4.0 * z, volume[..., z]) for z in range(volume.shape[2])]
    write_series(tmp_path / "scans" / place, planes, pixel=4.0)
    [outcome] = segment_here(tmp_path / "scans", out, deep)
    assert outcome.reason == ""
    assert files(out) == [f"{place.as_posix()}_seg.nii.gz"]
