# SPDX-License-Identifier: Apache-2.0
"""Pictures of slices become volumes, a scan each, with nothing turned over."""

import json
import re

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from monai_unetpp.__main__ import main
from monai_unetpp.data.sources.slices import write_slices


def picture(path, grey):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(grey), str(path))
    return grey


@pytest.fixture
def scans(tmp_path):
    """Two scans of three slices and of one, written out of order; a mark of the mask in each."""
    rng = np.random.default_rng(0)
    grey = {}
    for name in ("a_7_12", "b_7_3", "a_7_101", "a_12_5"):
        mask = np.zeros((6, 8), np.uint8)
        mask[1, 5] = 255
        picture(tmp_path / "masks" / f"{name}.png", mask)
        grey[name] = picture(tmp_path / "images" / f"{name}.png", rng.integers(0, 255, (6, 8), np.uint8))
    return tmp_path, grey


def write(folder, **settings):
    return write_slices(folder / "images", folder / "masks", folder / "out", **settings)


def test_a_scan_is_a_volume_of_its_slices_in_order(scans):
    folder, grey = scans
    index = json.loads(write(folder, rows="x").read_text())
    assert [case["image"] for case in index["training"]] == [
        f"./imagesTr/scan_{n}.nii.gz" for n in ("12", "7")
    ]
    volume = nib.load(folder / "out" / "imagesTr" / "scan_7.nii.gz")
    wanted = np.stack([grey[name] for name in ("b_7_3", "a_7_12", "a_7_101")], axis=-1)
    np.testing.assert_array_equal(np.asarray(volume.dataobj), wanted)


@pytest.mark.parametrize(
    ("rows", "where"),
    [("x", (1 * 2.0, 5 * 2.0)), ("y", (-5 * 2.0, -1 * 2.0))],  # R and A of row 1, column 5
)
def test_the_mark_lies_where_the_picture_shows_it(scans, rows, where):
    folder, _ = scans
    write(folder, rows=rows, pixel=2.0)
    label = nib.load(folder / "out" / "labelsTr" / "scan_12.nii.gz")
    [voxel] = np.argwhere(np.asarray(label.dataobj))
    np.testing.assert_allclose((label.affine @ [*voxel, 1])[:2], where)


def test_pictures_that_were_turned_over_are_turned_back(tmp_path):
    whole = np.arange(48, dtype=np.uint8).reshape(6, 8)
    for name, grey in (("as_1_1", whole), ("up_1_2", whole[::-1]), ("left_1_3", whole[:, ::-1])):
        picture(tmp_path / "images" / f"{name}.png", np.ascontiguousarray(grey))
        picture(tmp_path / "masks" / f"{name}.png", np.ascontiguousarray(grey + np.uint8(100)))
    name = r"(?:as|(?P<flip_rows>up)|(?P<flip_columns>left))_(?P<scan>\d)_(?P<slice>\d)"
    write(tmp_path, rows="x", name=name)
    for key, wanted in (("images", whole), ("labels", whole > 27)):
        volume = np.asarray(nib.load(tmp_path / "out" / f"{key}Tr" / "scan_1.nii.gz").dataobj)
        np.testing.assert_array_equal(volume, np.stack([wanted] * 3, axis=-1))


def test_colours_become_grey_and_jpeg_masks_have_soft_edges(tmp_path):
    colours = np.repeat(np.arange(48, dtype=np.uint8).reshape(6, 8, 1), 3, axis=-1)
    for name, array in (("images", colours), ("masks", colours + np.uint8(100))):
        (tmp_path / name).mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(tmp_path / name / "s_1_1.png"))
    write(tmp_path, rows="x")
    volumes = [nib.load(tmp_path / "out" / f"{key}sTr" / "scan_1.nii.gz") for key in ("image", "label")]
    image, label = (np.asarray(volume.dataobj)[..., 0] for volume in volumes)
    np.testing.assert_array_equal(image, colours[..., 0])
    np.testing.assert_array_equal(label, colours[..., 0] > 27)


def test_the_command_says_what_it_did(scans, capsys):
    folder, _ = scans
    places = [f"--{name}={folder / name}" for name in ("images", "masks", "out")]
    main(["slices", *places])
    assert capsys.readouterr().out.startswith("2 scans, listed in ")


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda f: (f / "masks" / "a_7_12.png").unlink(), FileNotFoundError, "a_7_12.png has no mask"),
        (lambda f: (f / "images" / "a_7_12.png").write_bytes(b"no"), ValueError, "a_7_12.png cannot be read"),
        (
            lambda f: picture(f / "images" / "a_7_12.png", np.zeros((5, 8), np.uint8)),
            ValueError,
            "a_7_12.png must be of the size of",
        ),
        (
            lambda f: picture(f / "masks" / "a_12_5.png", np.zeros((5, 8), np.uint8)),
            ValueError,
            "a_12_5.png must be of the size of",
        ),
        (
            lambda f: picture(f / "images" / "slice.png", np.zeros((5, 8), np.uint8)),
            ValueError,
            "slice.png must be named like",
        ),
    ],
)
def test_errors_name_the_file_and_leave_no_data_set(scans, spoil, error, message):
    folder, _ = scans
    spoil(folder)
    with pytest.raises(error, match=re.escape(message)):
        write(folder)
    assert not (folder / "out" / "dataset.json").exists()


def test_a_folder_without_pictures_is_refused(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(FileNotFoundError, match="images must be a folder of pictures"):
        write(tmp_path)
