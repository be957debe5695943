# SPDX-License-Identifier: Apache-2.0
"""Pictures of slices become volumes, a scan each, with nothing turned over."""

import json
import re
import struct
import zlib

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


# Kinds of masks


INSIDE = np.zeros((16, 16), bool)
INSIDE[3:9, 4:12] = True


def colours(inside, outside=(0, 0, 0)):
    return np.where(INSIDE[..., None], np.array(inside, np.uint8), np.array(outside, np.uint8))


def instances(dtype, count=40):
    numbers = np.zeros((16, 16), dtype)
    numbers[INSIDE] = np.arange(INSIDE.sum()) % count + 1
    return numbers


def palette_png(numbers, palette):
    """A PNG of indexes into a palette, which SimpleITK does not write."""
    rows = b"".join(b"\0" + row.tobytes() for row in numbers.astype(np.uint8))
    size = struct.pack(">IIBBBBB", numbers.shape[1], numbers.shape[0], 8, 3, 0, 0, 0)
    chunks = ((b"IHDR", size), (b"PLTE", bytes(palette)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def soft():
    """White with an edge in steps of grey."""
    x, y = np.mgrid[:16, :16]
    return (255 * np.clip(6.9 - np.hypot(x - 7.3, y - 7.8), 0, 1)).astype(np.uint8)


MASKS = {
    "zero-and-one": INSIDE.astype(np.uint8),
    "two-values": INSIDE * np.uint8(38),
    "white": INSIDE * np.uint8(255),
    "red": colours((255, 0, 0)),
    "dark-blue": colours((0, 0, 40)),
    "grey-as-colours": colours((1, 1, 1)),
    "alpha": np.dstack([np.zeros((16, 16, 3), np.uint8), INSIDE * np.uint8(255)]),
    "instances": instances(np.uint8),
    "instances-of-16-bits": instances(np.uint16) * np.uint16(1000),
    "instances-to-255": instances(np.uint8, 48) * np.uint8(5),
    "classes": INSIDE + (INSIDE & np.roll(INSIDE, 2, 0)).astype(np.uint8),
    "classes-in-colours": np.where(
        np.arange(16)[:, None, None] > 5, colours((0, 128, 0)), colours((128, 0, 0))
    ),
}


def one_slice(folder, mask, grey=None, name="s_1_1.png"):
    image = np.arange(256, dtype=np.uint8).reshape(16, 16) if grey is None else grey
    picture(folder / "images" / "s_1_1.png", image)
    (folder / "masks").mkdir(exist_ok=True)
    if isinstance(mask, bytes):
        (folder / "masks" / name).write_bytes(mask)
        return
    is_vector = mask.ndim == 3
    sitk.WriteImage(sitk.GetImageFromArray(mask, isVector=is_vector), str(folder / "masks" / name))


def voxels_of(folder, key):
    return np.asarray(nib.load(folder / "out" / f"{key}Tr" / "scan_1.nii.gz").dataobj)[..., 0]


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_all_that_is_not_black_is_the_label(tmp_path, mask):
    one_slice(tmp_path, mask)
    write(tmp_path, rows="x")
    np.testing.assert_array_equal(voxels_of(tmp_path, "labels"), INSIDE)


def test_palette_is_read_by_its_colours(tmp_path):
    one_slice(tmp_path, palette_png(INSIDE, (0, 0, 0, 70, 0, 0)))
    write(tmp_path, rows="x")
    np.testing.assert_array_equal(voxels_of(tmp_path, "labels"), INSIDE)


@pytest.mark.parametrize("name", ["s_1_1.png", "s_1_1.jpg"])
def test_soft_edges_end_half_way(tmp_path, name):
    one_slice(tmp_path, soft(), name=name)
    write(tmp_path, rows="x")
    np.testing.assert_array_equal(voxels_of(tmp_path, "labels"), soft() > 127)


def test_kind_of_the_masks_is_decided_over_all_of_them(tmp_path):
    one_slice(tmp_path, MASKS["zero-and-one"])
    for n in (2, 3):
        picture(tmp_path / "images" / f"s_1_{n}.png", np.zeros((16, 16), np.uint8))
        picture(tmp_path / "masks" / f"s_1_{n}.png", np.zeros((16, 16), np.uint8))
    write(tmp_path, rows="x")
    np.testing.assert_array_equal(voxels_of(tmp_path, "labels"), INSIDE)


@pytest.mark.parametrize(
    ("mask", "name", "settings", "message"),
    [
        (np.zeros((16, 16), np.uint8), "s_1_1.png", {}, r"no pixel is label, by the rule 'nonzero'.* are 0"),
        (np.full((16, 16), 255, np.uint8), "s_1_1.png", {}, "every pixel is label"),
        (
            INSIDE.astype(np.uint8),
            "s_1_1.png",
            {"mask_kind": "threshold"},
            r"no pixel is label, .*'threshold'",
        ),
        (INSIDE * np.uint8(2), "s_1_1.jpg", {}, "are JPEG of values up to .* store them as PNG"),
        (INSIDE * np.uint8(2), "s_1_1.png", {"mask_kind": "red"}, "mask_kind must be 'auto' or 'nonzero' or"),
    ],
    ids=["empty", "full", "threshold", "jpeg", "kind"],
)
def test_masks_without_a_label_are_refused(tmp_path, mask, name, settings, message):
    one_slice(tmp_path, mask, name=name)
    with pytest.raises(ValueError, match=message):
        write(tmp_path, **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("grey", "dtype"),
    [
        (np.arange(256).reshape(16, 16).astype(np.uint16) * 255, np.int32),
        (np.arange(256).reshape(16, 16).astype(np.uint16) * 100, np.int16),
        (np.arange(256).reshape(16, 16).astype(np.uint8), np.int16),
    ],
    ids=["16-bit", "15-bit", "8-bit"],
)
def test_range_of_grey_values_is_kept(tmp_path, grey, dtype):
    one_slice(tmp_path, MASKS["white"], grey)
    write(tmp_path, rows="x")
    np.testing.assert_array_equal(voxels_of(tmp_path, "images"), grey)
    assert voxels_of(tmp_path, "images").dtype == dtype


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (r".*_(\d+)_(\d+)", r"name must have the groups .* lacks scan and slice"),
        (r"(?P<scan>.*)_\d+", "lacks slice"),
        (r"(?P<scan>.*", "name must be a regular expression such as"),
        (r"(?P<slice>.*)_(?P<scan>\d+)", "must be named like"),
    ],
    ids=["no-groups", "no-slice", "no-expression", "no-number"],
)
def test_expression_for_names_must_have_its_groups(scans, name, message):
    folder, _ = scans
    with pytest.raises(ValueError, match=message):
        write(folder, name=name)


def test_two_pictures_of_one_slice_are_both_taken_and_named(scans, caplog):
    folder, grey = scans
    for key in ("images", "masks"):
        picture(folder / key / "c_7_012.png", grey["a_7_12"])
    write(folder)
    assert nib.load(folder / "out" / "imagesTr" / "scan_7.nii.gz").shape == (8, 6, 4)
    assert "1 pictures are of a slice that another is of, first " in caplog.text
