# SPDX-License-Identifier: Apache-2.0
"""DICOM as scanners, archives and CDs write it: read rightly, or refused with the reason."""

import base64
import importlib.util
import locale
import logging
import struct

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from dicom import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    SHAPE,
    SPACING,
    dicom_bytes,
    enhanced_tags,
    hounsfield_of,
    slice_tags,
    write_slices,
)
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose, Orientationd, Spacingd

from monai_unetpp.data import list_volumes
from monai_unetpp.inferers import VolumeInferer
from monai_unetpp.readers import SimpleITKReader, is_series, read_geometry, volume_loader
from monai_unetpp.readers.dicom.headers import read_slices
from monai_unetpp.readers.memory import check_volume
from monai_unetpp.transforms import LoadImageAndLabeld

RIGHT = np.stack([hounsfield_of(n).T for n in range(SHAPE[2])], axis=-1)  # (X, Y, Z)
AFFINE = np.array([[-0.7, 0, 0, 20], [0, -0.8, 0, 30], [0, 0, 2.5, -40], [0, 0, 0, 1]])


def check_plain(folder, **settings):
    """A series is read as the plain one: every voxel, and where it lies."""
    volume = volume_loader(**settings)(folder)
    np.testing.assert_array_equal(volume[0].numpy(), RIGHT)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    return volume


def add(folder, name, data):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# What belongs to a series


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED])
def test_every_syntax_without_compression_is_read(tmp_path, syntax):
    swap = (
        (lambda n: {"t7fe00010": (hounsfield_of(n) + 1024).astype(">u2").tobytes()})
        if syntax == BIG_ENDIAN
        else None
    )
    check_plain(write_slices(tmp_path / "scan", swap, syntax=syntax))


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
def test_files_without_a_preamble_are_read(tmp_path, syntax):
    check_plain(write_slices(tmp_path / "scan", syntax=syntax, preamble=False))


def test_hidden_files_of_a_mac_are_passed_over(tmp_path):
    folder = write_slices(tmp_path / "scan")
    for n in range(SHAPE[2]):
        add(folder, f"._IM{n:04d}.dcm", b"\x00\x05\x16\x07" + bytes(4000))
    add(folder, ".DS_Store", bytes(6148))
    check_plain(folder)


def report(uid="1.2.9"):
    tags = slice_tags(0, uid, t00080016="1.2.840.10008.5.1.4.1.1.88.67", t00080060="SR")
    return dicom_bytes({tag: value for tag, value in tags.items() if tag < 0x00280000})


def localizer(uid):
    change = {
        "t00080008": "ORIGINAL\\PRIMARY\\LOCALIZER",
        "t00200037": "1\\0\\0\\0\\0\\-1",
        "t00080018": "1.2.3.99",
    }
    return dicom_bytes(slice_tags(0, uid, **change))


def screenshot():
    change = {"t00280002": 3, "t00280100": 8, "t00280101": 8, "t00280102": 7, "t00280004": "RGB"}
    return dicom_bytes(slice_tags(0, "1.2.8", **change, t7fe00010=bytes(3 * SHAPE[0] * SHAPE[1])))


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("dose.dcm", report(), "no pixels"),
        ("LOC.dcm", localizer("1.2.7"), "a localizer"),
        ("LOC.dcm", localizer("1.2.3"), "a localizer"),
        ("DICOMDIR", report(), "a directory"),
        ("shot.dcm", screenshot(), "a picture in colour"),
        ("mr.dcm", dicom_bytes(slice_tags(0, "1.2.6", t00080060="MR")), "of another modality"),
        (
            "one.dcm",
            dicom_bytes(slice_tags(0, "1.2.5", t00200032="0\\0\\900")),
            "a single image of another series",
        ),
        ("capture.dcm", dicom_bytes(slice_tags(0, "1.2.4", t00200032=None)), "without a place"),
        ("read me.txt", b"a CD of the hospital", "no DICOM"),
    ],
    ids=[
        "report",
        "localizer",
        "localizer-in-series",
        "dicomdir",
        "colour",
        "modality",
        "single",
        "capture",
        "text",
    ],
)
def test_what_is_no_slice_is_set_aside_and_named(tmp_path, caplog, name, data, reason):
    folder = write_slices(tmp_path / "scan")
    add(folder, name, data)
    check_plain(folder)
    assert f"not part of the volume: {name} ({reason})" in caplog.text


@pytest.mark.parametrize("suffix", [".dcm", ".DCM", ""])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda _: b"", "it is empty"),
        (lambda _: b"<html>not found</html>" * 20, "it does not begin as DICOM does"),
        (lambda data: data[:300], "is truncated or damaged"),
        (lambda data: data[: data.index(b"\x20\x00\x13\x00")], "it states an image and holds no pixels"),
        (lambda data: data[:-5], "its pixels are longer than the file"),
    ],
    ids=["empty", "garbage", "header-cut", "between-elements", "pixels-cut"],
)
def test_slice_that_cannot_be_read_is_named_whatever_its_suffix(tmp_path, suffix, content, reason):
    folder = write_slices(tmp_path / "scan")
    for path in sorted(folder.iterdir()):
        path.rename(path.with_suffix(suffix))
    path = folder / f"IM0005{suffix}"
    path.write_bytes(content(path.read_bytes()))
    assert list_volumes(folder) == [{"image": str(folder)}]
    with pytest.raises(ValueError, match=reason) as error:
        volume_loader()(folder)
    assert str(path) in str(error.value)


def test_series_on_a_cd_is_found_below_its_directory(tmp_path, caplog):
    series = write_slices(tmp_path / "cd" / "PT000000" / "ST000000" / "SE000000")
    add(tmp_path / "cd", "DICOMDIR", report())
    add(tmp_path / "cd", "AUTORUN.INF", b"[autorun]")
    with caplog.at_level(logging.INFO, "monai_unetpp"):
        assert list_volumes(tmp_path / "cd") == [{"image": str(series)}]
    assert "DICOMDIR (a directory)" in caplog.text


@pytest.mark.parametrize(
    "above", [localizer("1.2.7"), report(), screenshot()], ids=["localizer", "report", "colour"]
)
def test_folders_below_are_searched_whatever_lies_above(tmp_path, above):
    series = write_slices(tmp_path / "patient" / "ct")
    add(tmp_path / "patient", "first.dcm", above)
    assert list_volumes(tmp_path / "patient") == [{"image": str(series)}]
    assert not is_series(tmp_path / "patient")


def test_voxels_of_other_formats_are_no_dicom(tmp_path):
    """Eight in the first voxel, as an element of group 8 begins."""
    add(tmp_path, "ct.raw", np.full((4, 4, 4), 8, "<i2").tobytes())
    assert not is_series(tmp_path)


def test_series_of_other_places_in_one_folder_must_be_named(tmp_path):
    folder = write_slices(tmp_path / "scan")
    for n in range(3):
        add(folder, f"other{n}.dcm", dicom_bytes(slice_tags(n, "1.2.4")))
    with pytest.raises(
        ValueError, match=r"holds 2 DICOM series; name one as series: 1\.2\.3 \(6 slices\), 1\.2\.4"
    ):
        volume_loader()(folder)
    check_plain(folder, series="1.2.3")


def test_slice_that_names_another_series_is_not_lost(tmp_path):
    """In the middle it leaves a gap; at an end nothing else would show it."""
    for n, message in ((0, "holds 2 DICOM series"), (5, "holds 2 DICOM series"), (3, "lacks a slice")):
        folder = write_slices(tmp_path / str(n), lambda k, n=n: {"t0020000e": "1.2.33"} if k == n else {})
        with pytest.raises(ValueError, match=message):
            volume_loader()(folder)


# The geometry is proven


@pytest.mark.parametrize(
    "change",
    [
        lambda n: {"t00200037": ["1\\0\\0\\0\\1\\0", "1.000000\\0.0\\0\\0\\1.000000\\0e0"][n % 2]},
        lambda n: {"t00200037": ["1\\0\\0\\0\\1\\0", "1\\-0\\0\\-0.0\\1\\-0"][n % 2]},
        lambda n: {"t00200037": ["1\\0\\0\\0\\1\\0", "0.9999999\\1e-6\\0\\-1e-6\\0.9999999\\0"][n % 2]},
        lambda n: {"t00280030": ["0.8\\0.7", "0.80000\\ 0.7000001 "][n % 2]},
        lambda n: {"t00200032": f"-20\\-30\\{SPACING[2] * n - 40 + [0, 0.004][n % 2]:.4f}"},
    ],
    ids=["text", "minus-zero", "rounding", "spacing", "place"],
)
def test_numbers_are_compared_as_numbers(tmp_path, change):
    volume = volume_loader()(write_slices(tmp_path / "scan", change))
    np.testing.assert_array_equal(volume[0].numpy(), RIGHT)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=2e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: {"t00200032": "0\\0\\0"}, r"holds 6 images at each of 1 places"),
        (
            lambda n: {"t00200032": f"0\\0\\{n // 2}"},
            r"holds 2 images at each of 3 places: .* phase .* 1 to 2",
        ),
        (
            lambda n: {"t00200032": f"0\\0\\{max(n, 1)}"},
            r"two images at one place, IM0000\.dcm and IM0001\.dcm",
        ),
        (lambda n: {"t00200032": f"0\\0\\{n * 0.001}"}, "places"),
        (lambda n: {"t00200032": f"0\\0\\{n * 400}"}, "at most 50 mm apart, got 400 mm"),
        (
            lambda n: {"t00200032": f"0\\0\\{n + (n > 3)}"},
            r"lacks a slice .* between IM0003\.dcm and IM0004\.dcm",
        ),
        (
            lambda n: {"t00200037": "1\\0\\0\\0\\0\\-1"} if n == 2 else {},
            r"different direction: IM0002\.dcm has",
        ),
        (
            lambda n: {"t00280030": "0.9\\0.7"} if n == 2 else {},
            r"pixel spacing: IM0002\.dcm has 0\.7, 0\.9, most",
        ),
        (lambda n: {"t00281052": None} if n == 2 else {}, "kinds, with and without slope and intercept"),
        (lambda n: {"t00200032": None} if n == 2 else {}, r"IM0002\.dcm has no position"),
        (lambda _: {"t00280030": None}, "does not say how far its pixels are apart"),
        (lambda _: {"t00280030": "0\\0.7"}, "spacing of pixels above 0"),
        (
            lambda n: {"t00200032": f"0\\{n * n * 0.1}\\{n}"},
            r"shifted by up to 0\.6 mm, and not evenly, as a tilted gantry would",
        ),
        (
            lambda n: {"t00200032": f"0\\{n * 2.5}\\{n * 2.5}"},
            r"tilted by at most 35 degrees, got 45\.0: its slices are shifted by 12\.5 mm",
        ),
        (lambda _: {"t00283000": [{}]}, "lookup table"),
        (
            lambda n: {"t7fe00010": None} if n == 5 else {},
            r"IM0005\.dcm .* it states an image and holds no pixels",
        ),
        (
            lambda n: {"t00280002": 3, "t7fe00010": bytes(720)} if n == 5 else {},
            r"number of colours: IM0005\.dcm has 12, 10, 3",
        ),
        (lambda n: {"t00080060": "MR"} if n == 0 else {}, r"must be CT, got modality MR in IM0000\.dcm"),
        (lambda _: {"t00281053": "0"}, r"is damaged: its tag 0028\|1053 is 0"),
    ],
    ids=[
        *(
            "one-place",
            "phases",
            "twice",
            "micrometres",
            "far-apart",
            "gap",
            "direction",
            "spacing",
            "rescale",
        ),
        *(
            "no-place",
            "no-spacing",
            "zero-spacing",
            "shifted",
            "sideways",
            "lookup-table",
            "no-pixels",
            "colour",
            "modality",
            "slope",
        ),
    ],
)
def test_what_is_no_volume_is_refused_with_the_reason(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as error:
        volume_loader()(write_slices(tmp_path / "scan", change))
    assert str(tmp_path / "scan") in str(error.value)


def test_slice_of_another_size_is_named(tmp_path):
    folder = write_slices(tmp_path / "scan")
    tags = slice_tags(3, t00280010=5, t7fe00010=bytes(2 * 5 * SHAPE[0]))
    add(folder, "IM0003.dcm", dicom_bytes(tags))
    with pytest.raises(ValueError, match=r"different size .*: IM0003\.dcm has 12, 5, 1, most have 12, 10, 1"):
        volume_loader()(folder)


@pytest.mark.parametrize(
    "order",
    [lambda n: n, lambda n: (n % 2) * SHAPE[2] + n // 2],
    ids=["alternating", "one-after-the-other"],
)
def test_one_of_several_phases_is_read_by_its_number(tmp_path, order):
    folder = tmp_path / "scan"
    for n in range(2 * SHAPE[2]):
        place, phase = n // 2, n % 2
        values = (hounsfield_of(place) + 1024 + 100 * phase).astype("<u2").tobytes()
        add(
            folder,
            f"{order(n)}.dcm",
            dicom_bytes(slice_tags(place, t00200013=str(order(n)), t7fe00010=values)),
        )
    check_plain(folder, phase=1)
    np.testing.assert_array_equal(volume_loader(phase=2)(folder)[0].numpy(), RIGHT + 100)
    with pytest.raises(ValueError, match="has 2 phases, got phase=3"):
        volume_loader(phase=3)(folder)


def test_slices_that_lie_far_apart_for_their_thickness_are_a_warning(tmp_path, caplog):
    volume = check_plain(write_slices(tmp_path / "scan", lambda _: {"t00180050": "0.6"}))
    assert "has slices of 0.6 mm that lie 2.5 mm apart" in caplog.text
    assert "has slices of 0.6 mm that lie 2.5 mm apart" in volume.meta["warnings"][0]


def test_direction_of_the_stack_is_that_of_its_positions(tmp_path):
    """Rows from left to right and columns from the feet up: the normal points backward."""
    change = {"t00200037": "1\\0\\0\\0\\0\\1"}
    folder = write_slices(tmp_path / "scan", lambda n: {**change, "t00200032": f"-20\\{2.5 * n - 40}\\-30"})
    volume = volume_loader()(folder)
    np.testing.assert_array_equal(volume[0].numpy(), RIGHT[..., ::-1])
    np.testing.assert_allclose(volume.affine.numpy() @ [0, 0, 0, 1], [20, 27.5, -30, 1])
    np.testing.assert_allclose(volume.affine[:3, :3], [[-0.7, 0, 0], [0, 0, 2.5], [0, 0.8, 0]], atol=1e-6)


def test_geometry_of_a_series_is_that_of_its_positions(tmp_path):
    size, spacing = read_geometry(write_slices(tmp_path / "scan", lambda _: {"t00180050": "5"}))
    assert size == SHAPE
    np.testing.assert_allclose(spacing, SPACING)


def test_tilted_gantry_is_read_where_its_slices_lie_and_a_ball_is_found_there(tmp_path, caplog):
    """The images lean by 17 degrees, the table moves along z; the ball is known in mm (LPS)."""
    axes, size = np.array([[1, 0, 0], [0, np.cos(0.3), -np.sin(0.3)]]), (44, 40, 24)
    step, origin, centre, radius = (
        np.array([0, 0, 2.5]),
        np.array([-30.0, -25, -30]),
        np.array([3.0, 2, -9]),
        14,
    )
    index = np.moveaxis(np.indices(size), 0, -1).astype(float)
    matrix = np.stack([axes[0] * 1.4, axes[1] * 1.3, step], axis=1)
    depth = radius - np.linalg.norm(index @ matrix.T + origin - centre, axis=-1)  # mm below the surface
    for n in range(size[2]):
        values = np.clip(20 * depth[..., n].T, -1000, 1000).round() + 1024
        place = "\\".join(f"{x:.6f}" for x in origin + n * step)
        own = {"t00280010": size[1], "t00280011": size[0], "t00280030": "1.3\\1.4", "t00200032": place}
        lean = "\\".join(f"{x:.8f}" for x in axes.ravel())
        tags = slice_tags(0, t00200037=lean, t7fe00010=values.astype("<u2").tobytes(), **own)
        add(tmp_path / "scan", f"IM{n}", dicom_bytes(tags | {0x00080018: f"1.2.3.{n}"}))
    volume = volume_loader()(tmp_path / "scan")
    np.testing.assert_allclose(volume.affine[:3, :3], np.diag([-1, -1, 1]) @ matrix, atol=1e-5)
    assert "scan was scanned with a gantry tilted by 17.2 degrees" in caplog.text
    prepare = Compose(
        [
            LoadImageAndLabeld("image"),
            Orientationd("image", "RAS", labels=None),
            Spacingd("image", (2, 2, 2), mode="bilinear"),
        ]
    )
    image = prepare({"image": str(tmp_path / "scan")})["image"]
    grid = np.moveaxis(np.indices(image.shape[1:]), 0, -1)
    world = grid @ image.affine[:3, :3].numpy().T + image.affine[:3, 3].numpy()
    axes = image.affine[:3, :3].numpy()
    np.testing.assert_allclose(axes.T @ axes, 4 * np.eye(3), atol=1e-6)  # at right angles, for the network
    expected = radius - np.linalg.norm(world * [-1, -1, 1] - centre, axis=-1)
    inside = np.abs(expected) < 4  # of the scan, and away from the kink of the distance at the centre
    assert np.abs(image[0].numpy() / 20 - expected)[inside].max() < 0.35
    infer = VolumeInferer(SlidingWindowInferer((32, 32, 32), overlap=0.25))
    labels = infer.segment(image[None], lambda x: torch.cat([-x, x], dim=1) / 400).labels
    found = labels[0, 0].numpy() > 0
    np.testing.assert_allclose(labels.affine, volume.affine)
    clear = np.abs(depth) > 0.4
    assert (found[clear] == (depth[clear] > 0)).all()
    millilitres = found.sum() * abs(np.linalg.det(volume.affine[:3, :3].numpy())) / 1000
    assert millilitres == pytest.approx(4 / 3 * np.pi * radius**3 / 1000, rel=0.02)


# Values


def test_rescale_of_every_slice_is_applied(tmp_path):
    def change(n):
        slope, intercept, signed = [(1, -1024, 0), (1, 0, 1), (0.5, -1100, 0), (2, -1000 + n, 1)][n % 4]
        return {"t00281052": str(intercept), "t00281053": str(slope), "t00280103": signed}

    volume = volume_loader()(write_slices(tmp_path / "scan", change))
    assert volume.dtype.is_floating_point
    np.testing.assert_allclose(volume[0].numpy(), RIGHT, atol=1)
    np.testing.assert_array_equal(volume[0, ..., [0, 1, 2, 4, 5]].numpy(), RIGHT[..., [0, 1, 2, 4, 5]])


def test_first_slice_decides_nothing(tmp_path):
    change = lambda n: {"t00281052": "0", "t00280103": 1} if n == 0 else {}  # noqa: E731
    check_plain(write_slices(tmp_path / "scan", change))


def test_slice_that_cannot_hold_air_is_named(tmp_path):
    """Its intercept is 0 and it has no sign: what was below 0 is lost, whoever reads it."""

    def change(n):
        stored = np.maximum(hounsfield_of(n), 0).astype("<u2").tobytes()
        return {"t00281052": "0", "t7fe00010": stored} if n == 0 else {}

    volume = volume_loader()(write_slices(tmp_path / "scan", change))
    np.testing.assert_array_equal(volume[0, ..., 1:].numpy(), RIGHT[..., 1:])
    np.testing.assert_array_equal(volume[0, ..., 0].numpy(), np.maximum(RIGHT[..., 0], 0))
    assert "cannot hold air, first IM0000.dcm (unsigned, intercept 0)" in volume.meta["warnings"][0]


def test_bits_beyond_those_stored_are_no_value(tmp_path):
    """Twelve bits, with an overlay in those above; the sign is that of the twelfth."""

    def change(n):
        stored = (hounsfield_of(n).astype(np.int32) & 0x0FFF) | 0xA000
        return {
            "t7fe00010": stored.astype("<u2").tobytes(),
            "t00280101": 12,
            "t00280102": 11,
            "t00280103": 1,
            "t00281052": "0",
        }

    check_plain(write_slices(tmp_path / "scan", change))


@pytest.mark.parametrize("zeros", [2, 8, 1000])
def test_bytes_after_the_last_element_are_tolerated(tmp_path, zeros):
    folder = write_slices(tmp_path / "scan")
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes() + bytes(zeros))
    check_plain(folder)


def test_private_sequences_are_passed_over(tmp_path):
    nested = [{0x00091002: "x", 0x00091003: [{0x00091004: "y"}, {}]}, {}]
    for undefined in (True, False):
        folder = write_slices(tmp_path / str(undefined), lambda _: {"t00091001": nested}, undefined=undefined)
        check_plain(folder)


def test_compressed_icon_is_passed_over(tmp_path):
    fragment = b"\xfe\xff\x00\xe0\x04\x00\x00\x00\xff\xd8\xff\xe0"
    pixels = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff" + fragment + b"\xfe\xff\xdd\xe0\0\0\0\0"
    icon = b"\x88\x00\x00\x02SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" + pixels
    icon += b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    folder = write_slices(tmp_path / "scan")
    for path in folder.iterdir():
        data = path.read_bytes()
        at = data.rindex(b"\xe0\x7f\x10\x00OW")
        path.write_bytes(data[:at] + icon + data[at:])
    check_plain(folder)


def test_what_is_set_aside_is_logged_once_by_segment(tmp_path, caplog):
    folder = write_slices(tmp_path / "scan")
    add(folder, "LOC.dcm", localizer("1.2.7"))
    [case] = list_volumes(folder)
    check_volume(case["image"], [1.0, 1.0, 1.0])
    volume_loader()(folder)
    assert caplog.text.count("LOC.dcm (a localizer)") == 1


def test_sequences_within_sequences_end_somewhere(tmp_path):
    value = []
    for _ in range(40):
        value = [{0x00091001: value}]
    folder = write_slices(tmp_path / "scan", lambda _: {"t00091001": value}, undefined=True)
    with pytest.raises(ValueError, match="its sequences are nested more than 16 deep"):
        volume_loader()(folder)


# Enhanced files


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
@pytest.mark.parametrize("undefined", [True, False], ids=["undefined-length", "length"])
@pytest.mark.parametrize("order", [range(6), [3, 0, 5, 1, 4, 2]], ids=["in-order", "shuffled"])
def test_frames_are_read_in_the_order_of_their_positions(tmp_path, order, undefined, syntax):
    folder = tmp_path / "scan"
    add(folder, "frames.dcm", dicom_bytes(enhanced_tags(order), syntax, undefined=undefined))
    assert list_volumes(folder) == [{"image": str(folder)}]
    check_plain(folder)


def test_every_frame_has_its_own_rescale(tmp_path):
    tags = enhanced_tags([2, 0, 1, 3, 5, 4], lambda n: [(1.0, -1024.0), (0.5, -1100.0 - n)][n % 2])
    add(tmp_path / "scan", "frames.dcm", dicom_bytes(tags))
    check_plain(tmp_path / "scan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tags: tags[0x52009230].pop(), "a place for each of its 6 frames, got 5"),
        (lambda tags: tags.pop(0x52009230), r"frames\.dcm, frame 1 has no position"),
        (
            lambda tags: tags[0x52009230][1].update(tags[0x52009230][0]),
            r"two images at one place, frames\.dcm, frame",
        ),
        (
            lambda tags: tags[0x52009230][1].update({0x00209116: [{0x00200037: "0\\1\\0\\-1\\0\\0"}]}),
            r"different direction: frames\.dcm, frame 2 has",
        ),
    ],
    ids=["too-few", "none", "twice", "direction"],
)
def test_frames_that_are_no_volume_are_refused(tmp_path, change, message):
    tags = enhanced_tags(range(6))
    change(tags)
    add(tmp_path / "scan", "frames.dcm", dicom_bytes(tags))
    with pytest.raises(ValueError, match=message):
        volume_loader()(tmp_path / "scan")


def test_several_enhanced_files_are_one_series(tmp_path):
    for name, order in (("a", [4, 5, 0]), ("b", [1, 2, 3])):
        add(tmp_path / "scan", name, dicom_bytes(enhanced_tags(order)))
    check_plain(tmp_path / "scan")


def test_reader_for_monais_loader_takes_the_same_arguments(tmp_path):
    folder = write_slices(tmp_path / "scan", lambda _: {"t00080060": "MR"})
    with pytest.raises(ValueError, match="must be CT, got modality MR"):
        SimpleITKReader().read(folder)
    array, meta = SimpleITKReader(series="1.2.3", modality=None).get_data(
        SimpleITKReader(modality=None).read(folder)
    )
    np.testing.assert_array_equal(array, RIGHT)
    np.testing.assert_allclose(meta["affine"], AFFINE, atol=1e-6)


# An independent reader


def test_values_and_places_are_those_of_pydicom(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    change = lambda n: {"t00281052": str(-1000 - n), "t00281053": "0.5"}  # noqa: E731
    folder = write_slices(tmp_path / "scan", change)
    datasets = sorted((pydicom.dcmread(p) for p in folder.iterdir()), key=lambda d: d.ImagePositionPatient[2])
    planes = [d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in datasets]
    volume = volume_loader()(folder)
    np.testing.assert_array_equal(volume[0].numpy(), np.stack(planes).transpose())
    last = [*datasets[-1].ImagePositionPatient]
    np.testing.assert_allclose(
        volume.affine[:3].numpy() @ [0, 0, SHAPE[2] - 1, 1], [-last[0], -last[1], last[2]]
    )


# Compressed pixels


def compressed(folder, compressor, intercept=lambda _: -1024):
    """A series that GDCM compresses; what is stored is the values less the intercept of each slice."""
    before = locale.setlocale(locale.LC_ALL)
    folder.mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    for n in range(SHAPE[2]):
        image = sitk.GetImageFromArray(hounsfield_of(n))
        image.SetSpacing((SPACING[0], SPACING[1]))
        for tag, value in slice_tags(n, t00281052=str(intercept(n))).items():
            if isinstance(value, str):
                image.SetMetaData(f"{tag >> 16:04x}|{tag & 0xFFFF:04x}", value)
        writer.SetFileName(str(folder / f"IM{n:04d}.dcm"))
        writer.Execute(image)
    locale.setlocale(locale.LC_ALL, before)  # writing DICOM leaves that of C behind
    return folder


@pytest.mark.parametrize("compressor", ["JPEG2000", "JPEG"])
def test_compressed_series_is_read_with_the_rescale_of_every_slice(tmp_path, compressor):
    folder = compressed(tmp_path / "scan", compressor, lambda n: [-1024, -1100, 0][n % 3])
    assert all(read_slices(path)[1][0].pixels.length is None for path in folder.iterdir())
    check_plain(folder)


@pytest.mark.parametrize("kept", [-4, -20, -100])
def test_compressed_slice_that_ends_early_is_named(tmp_path, kept):
    folder = compressed(tmp_path / "scan", "JPEG2000")
    path = folder / "IM0002.dcm"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"IM0002\.dcm is truncated or damaged"):
        volume_loader()(folder)


def test_compressed_slice_whose_pixels_are_damaged_is_named(tmp_path):
    folder = compressed(tmp_path / "scan", "JPEG2000")
    data = bytearray((folder / "IM0002.dcm").read_bytes())
    at = data.rindex(b"\xff\x93")  # start of the data of JPEG 2000
    data[at - 30 : at + 2] = bytes(32)
    (folder / "IM0002.dcm").write_bytes(data)
    with pytest.raises(ValueError, match=r"IM0002\.dcm cannot be decompressed"):
        volume_loader()(folder)


def test_compressed_slices_of_other_modalities_are_read_with_their_rescale(tmp_path):
    """GDCM applies it to CT alone; here it decompresses, and no more."""
    folder = compressed(tmp_path / "scan", "JPEG2000")
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b"CS\x02\x00CT", b"CS\x02\x00MR"))
    check_plain(folder, modality="MR")


def enhanced(folder, syntax, pieces=1):
    """An enhanced file, its frames shuffled, which pydicom compresses; each frame in several fragments."""
    pydicom = pytest.importorskip("pydicom", reason='pip install -e ".[test]"')
    from pydicom.encaps import encapsulate, generate_frames

    rescale = lambda n: (1.0, -1024.0 - n)  # noqa: E731
    path = add(folder, "frames.dcm", dicom_bytes(enhanced_tags([3, 0, 5, 1, 4, 2], rescale)))
    dataset = pydicom.dcmread(path)
    dataset.compress(syntax, generate_instance_uid=False)
    if pieces > 1:
        frames = [*generate_frames(dataset.PixelData, number_of_frames=6)]
        dataset.PixelData = encapsulate(frames, fragments_per_frame=pieces)
    dataset.save_as(path)
    return folder


RLE, JPEG_LS, HTJ2K = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.201"


@pytest.mark.parametrize(("syntax", "pieces"), [(RLE, 1), (JPEG_LS, 1), (JPEG_LS, 2)])
def test_frames_of_a_compressed_file_are_read_each_with_its_rescale(tmp_path, syntax, pieces):
    if syntax == JPEG_LS:
        pytest.importorskip("jpeg_ls", reason="pydicom compresses to JPEG-LS by pyjpegls")
    check_plain(enhanced(tmp_path / "scan", syntax, pieces))


# slice 2, by imagecodecs (OpenJPH)
FRAME = base64.b64decode(
    "/0//UQApQAAAAAAMAAAACgAAAAAAAAAAAAAADAAAAAoAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQ"
    "kJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAANAAAf+TwAAmyf0FB3QAAMAAEsAAEsAAEwDqAgd0ABQB"
    "h3QAJP4CB3QAwAATwAATwAATAMBJ/AILdAAS4JEAwjQAkv0Ch3QAwAAWpAABWQAAVoAAiegGj4wzkCM4IPABAtxBgb2YAP6y3aIyxQBC"
    "AXq2AP5r48AYL/wAIIB9lgDAAC1oAAWvAAC0AIFAJI1H0jgA4AQ/iCR4/xA4h/ED3QABxh1gHAjQuAc2DsgCUUUjyAkYADfbAAcOGDDw"
    "AAQHyBB5B/ID2wD/2Q=="
)


def write_encapsulated(folder, frame, syntax):
    """One slice, number 2, whose pixels are compressed bytes."""
    plain = dicom_bytes(slice_tags(2, t7fe00010=b""), syntax)
    head = plain[: plain.rindex(b"\xe0\x7f\x10\x00")]
    frame += b"\0" * (len(frame) % 2)
    items = [struct.pack("<HHI", 0xFFFE, 0xE000, len(each)) + each for each in (b"", frame)]
    pixels = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff" + b"".join(items) + b"\xfe\xff\xdd\xe0\0\0\0\0"
    add(folder, "IM0002", head + pixels)
    return folder


def test_high_throughput_jpeg_2000_is_read_by_the_extra(tmp_path):
    pytest.importorskip("openjpeg", reason='pip install -e ".[codecs]"')
    pytest.importorskip("pylibjpeg", reason='pip install -e ".[codecs]"')
    volume = volume_loader()(write_encapsulated(tmp_path / "scan", FRAME, HTJ2K))
    np.testing.assert_array_equal(volume[0, ..., 0].numpy(), RIGHT[..., 2])
    folder = write_encapsulated(tmp_path / "cut", FRAME[:150], HTJ2K)
    with pytest.raises(ValueError, match="IM0002 cannot be decompressed, it may be damaged"):
        volume_loader()(folder)


def test_package_that_decompresses_is_named_where_it_is_missing(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openjpeg" else found(name))
    folder = write_encapsulated(tmp_path / "scan", FRAME, HTJ2K)
    message = (
        r"IM0002 is high-throughput JPEG 2000, which pylibjpeg-openjpeg decompresses: \w+ is not installed: "
        r'pip install "monai-unetpp\[codecs\]"'
    )
    with pytest.raises(ModuleNotFoundError, match=message):
        volume_loader()(folder)


def test_transfer_syntax_that_nothing_reads_is_named_with_those_that_are(tmp_path):
    folder = write_encapsulated(tmp_path / "scan", FRAME, "1.2.840.10008.1.2.4.110")
    with pytest.raises(ValueError, match=r"syntax 1\.2\.840\.10008\.1\.2\.4\.110, which is none of .*RLE"):
        volume_loader()(folder)
