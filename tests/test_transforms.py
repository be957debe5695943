# SPDX-License-Identifier: Apache-2.0
import re

import nibabel as nib
import numpy as np
import pytest
import torch
from dicom import dicom_bytes, hounsfield_of, slice_tags
from monai.data import MetaTensor
from monai.transforms import LoadImaged
from scipy import ndimage

from bundles import AFFINES, affine, ball
from monai_unetpp.transforms import (
    DeepestHeadd,
    LoadImageAndLabeld,
    LocalContrastd,
    RandShiftLabeledIntensityd,
)
from monai_unetpp.transforms.hounsfield import why_no_hounsfield

LOAD = LoadImageAndLabeld(out_channels=3)


def save(path, array, matrix):
    nib.save(nib.Nifti1Image(array, matrix), path)
    return str(path)


@pytest.fixture
def write(tmp_path):
    """A function that writes a case, with any of its parts replaced, and returns its paths."""

    def build(axcodes="RAS", **parts):
        case = ball("case", affine(axcodes), size=(10, 9, 8), radius=12)
        part = {"image": case.image, "label": case.label, "matrix": case.affine} | parts
        return {
            "image": save(tmp_path / "image.nii.gz", part["image"], case.affine),
            "label": save(tmp_path / "label.nii.gz", part["label"], part["matrix"]),
        }

    return build


# LoadImageAndLabeld


@pytest.mark.parametrize("matrix", AFFINES.values(), ids=AFFINES)
def test_case_is_loaded_as_nibabel_reads_it(tmp_path, matrix):
    case = ball("case", matrix, size=(10, 9, 8), radius=12)
    save(tmp_path / "image.nii.gz", case.image, matrix)
    save(tmp_path / "label.nii.gz", case.label, matrix)
    loaded = LOAD({key: str(tmp_path / f"{key}.nii.gz") for key in ("image", "label")})
    for key in ("image", "label"):
        file = nib.load(tmp_path / f"{key}.nii.gz")
        assert isinstance(loaded[key], MetaTensor)
        assert loaded[key].dtype == torch.float32
        assert np.array_equal(loaded[key][0].numpy(), file.get_fdata())
        assert np.array_equal(loaded[key].affine.numpy(), file.affine)


def test_case_is_loaded_as_monai_loads_it(write):
    paths = write("LPS")
    ours, theirs = LOAD(paths), LoadImaged(("image", "label"), ensure_channel_first=True)(paths)
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.equal(ours[key], theirs[key])
        assert torch.equal(ours[key].affine, theirs[key].affine)


def test_what_is_no_file_passes_through(write):
    loaded = LOAD({**write(), "name": "a case"})
    assert loaded["name"] == "a case"


def test_paths_that_are_given_are_left_alone(write):
    paths = write()
    before = dict(paths)
    LOAD(paths)
    assert paths == before


def test_label_may_be_missing_where_that_is_allowed(write):
    image = {"image": write()["image"]}
    assert LoadImageAndLabeld(out_channels=3, allow_missing_keys=True)(image).keys() == {"image"}
    with pytest.raises(KeyError, match="label"):
        LOAD(image)


def test_label_that_is_not_asked_for_is_not_read(write):
    paths = write() | {"label": "nowhere.nii.gz"}
    assert LoadImageAndLabeld("image")(paths)["label"] == "nowhere.nii.gz"


def test_keys_may_have_other_names(write):
    ct, seg = write().values()
    loaded = LoadImageAndLabeld(("ct", "seg"), image_key="ct", label_key="seg", out_channels=3)(
        {"ct": ct, "seg": seg}
    )
    assert set(torch.unique(loaded["seg"]).tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("value", "number"), [(np.nan, 1), (np.inf, 2), (-np.inf, 3)], ids=["nan", "inf", "minus-inf"]
)
def test_voxels_that_are_no_numbers_are_counted(write, value, number):
    image = ball("case", affine(), size=(10, 9, 8)).image.astype(np.float32)
    image[:number, 0, 0] = value
    paths = write(image=image)
    message = f"{re.escape(paths['image'])} has {number} voxels that are NaN or infinite"
    with pytest.raises(ValueError, match=message):
        LOAD(paths)


def test_volume_with_several_channels_is_refused(write):
    paths = write(image=np.zeros((10, 9, 8, 2), np.int16))
    with pytest.raises(ValueError, match=r"image\.nii\.gz must have one channel, got 2"):
        LOAD(paths)


@pytest.mark.parametrize(
    ("value", "shown"), [(3, "3"), (255, "255"), (-1, "-1"), (0.5, r"0\.5")], ids=["3", "255", "-1", "half"]
)
def test_label_value_that_is_no_class_is_named(write, value, shown):
    label = np.zeros((10, 9, 8), np.float32)
    label[0, 0, 0] = value
    message = rf"label .*label\S* of .*image\S* must have values 0\.\.2 \(out_channels = 3\), got {shown}\."
    with pytest.raises(ValueError, match=message):
        LOAD(write(label=label))


def test_label_of_another_shape_is_refused_and_both_shapes_are_named(write):
    with pytest.raises(ValueError, match=r"the shape of the image, \[10, 9, 8\], got \[10, 9, 7\]"):
        LOAD(write(label=np.zeros((10, 9, 7), np.uint8)))


@pytest.mark.parametrize(
    "matrix",
    [
        affine() @ np.diag([1, 1, 1.2, 1]),
        affine("LPS"),
        affine(turn=10),
        affine() + np.eye(4, k=3) * 6,
    ],
    ids=["spacing", "orientation", "turned", "shifted"],
)
def test_label_that_lies_elsewhere_is_refused_and_the_distance_is_named(write, matrix):
    corners = nib.affines.apply_affine
    far = max(np.linalg.norm(corners(affine(), c) - corners(matrix, c)) for c in np.ndindex((10, 9, 8)))
    with pytest.raises(ValueError, match=rf"must lie where the image lies; .* {far:.1f} mm apart"):
        LOAD(write(matrix=matrix))


def test_rounding_of_an_affine_is_no_other_place(write):
    nudge = np.zeros((4, 4))
    nudge[:3] = np.random.default_rng(0).uniform(-1e-4, 1e-4, (3, 4))
    LOAD(write(matrix=affine() + nudge))


@pytest.mark.parametrize("kept", [0, 100, 0.9], ids=["empty", "header-only", "all-but-the-end"])
@pytest.mark.parametrize("key", ["image", "label"])
def test_file_that_ends_early_is_named(write, key, kept, tmp_path):
    paths = write()
    content = (tmp_path / f"{key}.nii.gz").read_bytes()
    kept = int(kept * len(content)) if isinstance(kept, float) else kept
    (tmp_path / f"{key}.nii.gz").write_bytes(content[:kept])
    with pytest.raises(ValueError, match=rf"{re.escape(paths[key])} cannot be read, it may be damaged"):
        LOAD(paths)


def test_file_of_another_kind_is_named(write, tmp_path):
    paths = write()
    (tmp_path / "image.nii.gz").write_text("not found: 404")
    with pytest.raises(ValueError, match=r"image\.nii\.gz cannot be read"):
        LOAD(paths)


# DeepestHeadd


@pytest.mark.parametrize("kind", [list, tuple], ids=["list", "tuple"])
def test_deepest_head_is_kept_and_the_rest_of_the_item_too(kind):
    heads, label = kind(torch.rand(3, 4, 4) for _ in range(3)), torch.rand(1, 4, 4)
    item = DeepestHeadd("pred")({"pred": heads, "label": label})
    assert item["pred"] is heads[0]
    assert item["label"] is label


def test_single_tensor_is_left_alone():
    pred = torch.rand(3, 4, 4)
    assert DeepestHeadd("pred")({"pred": pred})["pred"] is pred


def test_deepest_head_is_that_of_the_network_in_training(tiny):
    net = tiny(out_channels=3).train()
    heads = net(torch.rand(1, 1, 32, 32))
    item = DeepestHeadd("pred")({"pred": [head[0] for head in heads]})
    *shallow, deepest = net.heads.values()
    item["pred"].sum().backward()
    assert deepest.weight.grad.abs().sum() > 0
    assert all(head.weight.grad is None for head in shallow)


@pytest.mark.parametrize("size", [(40, 40), (24, 24, 24)])
def test_what_is_labelled_is_shifted_and_the_rest_is_not(size):
    label = torch.zeros(1, *size)
    label[0, 8:16, 8:16] = 2
    image = torch.linspace(0, 1, label.numel()).reshape(label.shape)
    shift = RandShiftLabeledIntensityd("image", offsets=(-0.2, -0.2), sigma=0.5, prob=1)
    moved = shift({"image": image, "label": label})["image"] - image
    inside, far = torch.zeros_like(label), torch.ones_like(label)
    inside[0, 10:14, 10:14] = 1
    far[0, 4:20, 4:20] = 0
    if len(size) == 3:
        inside[..., :3], inside[..., -3:] = 0, 0
    inside *= image > 0.2
    torch.testing.assert_close(moved[inside > 0], torch.full_like(moved[inside > 0], -0.2))
    assert not moved[far > 0].any()
    assert (image + moved).min() >= 0


def test_a_shift_of_what_is_labelled_comes_as_often_as_asked_and_from_its_range():
    shift = RandShiftLabeledIntensityd("image", offsets=(-0.2, 0.1), sigma=0.1, prob=0.5).set_random_state(0)
    case = {"image": torch.tensor([[[0.0, 1.0, 0.5, 0.5, 0.5]]]), "label": torch.ones(1, 1, 5)}
    moved = torch.stack([shift(case)["image"] - case["image"] for _ in range(400)])[:, 0, 0, 2]
    assert 0.42 < (moved != 0).float().mean() < 0.58
    assert -0.2 <= moved.min() < -0.18
    assert 0.08 < moved.max() <= 0.1


# LocalContrastd


def test_contrast_is_the_volume_less_scipys_gaussian_mean():
    volume = torch.rand(1, 30, 28, 26, generator=torch.Generator().manual_seed(0))
    found = LocalContrastd("image", sigma=1.5, ceiling=0.7)({"image": volume})["image"]
    clipped = volume[0].clamp(max=0.7).numpy()
    wanted = clipped - ndimage.gaussian_filter(clipped, 1.5, mode="constant", truncate=4)
    inside = (slice(7, -7),) * 3
    np.testing.assert_allclose(
        found[0].numpy()[inside], wanted[inside], atol=5e-3
    )  # MONAI integrates its kernel
    assert volume.max() > 0.7  # the input is not changed


def test_contrast_is_high_in_a_vessel_and_low_in_a_wall_and_in_its_bone():
    volume = torch.full((1, 60, 60, 40), 0.1)
    volume[:, 20:23, 20:23], volume[:, 35:], volume[:, 46:50] = 0.7, 0.7, 1.0
    contrast = LocalContrastd("image", sigma=4.0, ceiling=0.6)({"image": volume})["image"][0, :, 14:46, 12:28]
    assert contrast[21, 7].min() > 0.4
    assert contrast[40:50].abs().max() < 0.15
    assert contrast[35].max() < contrast[21, 7].min()


def test_sigma_is_greater_than_0():
    with pytest.raises(ValueError, match=r"sigma must be greater than 0, such as 4\.0, got 0"):
        LocalContrastd("image", sigma=0)


# Whether it is HU


def body(air=-1000.0, tissue=50.0, bone=700.0, noise=15.0):
    """A body in air, with lungs' worth of air in it, a rim of fat and some bone."""
    rng = np.random.default_rng(0)
    distance = np.linalg.norm(np.indices((40, 36, 30)) - np.array([20, 18, 15])[:, None, None, None], axis=0)
    volume = np.where(distance < 14, tissue, np.where(distance < 16, tissue - 150, air))
    volume = np.where(np.abs(distance - 5) < 0.4, bone, volume)
    return (volume + rng.normal(0, noise, volume.shape)).astype(np.float32)


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        (body(), ""),
        (np.where(body() < -900, -3024, body()), ""),
        (body()[12:28, 10:26, 8:22], ""),
        (body(tissue=-850, bone=-800), ""),
        (np.full((8, 8, 8), -1000.0), ""),
        (np.maximum(body() + 1024, -183), r"no peak of air .* offset of about 1024 was left in"),
        (body() + 1000, "offset of about 1024 was left in"),
        (body() + 8192 - 9000 * (np.indices((40, 36, 30))[0] == 0), "below -1200|offset of about 8"),
        (np.maximum(body() + 1200, 0), "has no voxel below 0, .* Is it MR, or stored with an offset"),
        (body() - 1024, r"of its voxels below -1200, where HU have none"),
        (body() / 1000, "no range of HU: were they scaled or normalised"),
        ((body() - body().mean()) / body().std(), "no range of HU: were they scaled or normalised"),
        (body() * 10, "below -1200"),
        (np.where(body() < 0, -1000, 1000), "no soft tissue|offset"),
    ],
    ids=[
        *("body", "padding", "crop", "lung", "air", "offset-1024", "offset-1000", "offset-8192", "positive"),
        *("twice", "thousandth", "normalised", "tenfold", "two-valued"),
    ],
)
def test_volume_that_is_not_in_hu_is_named(volume, message):
    found = why_no_hounsfield(torch.from_numpy(np.asarray(volume, dtype=np.float32)))
    assert re.search(message, found) if message else found == ""


def test_warnings_of_a_volume_are_logged_and_kept(tmp_path, caplog):
    path = save(tmp_path / "ct.nii", np.maximum(body() + 1024, -183).astype(np.int16), affine())
    loaded = LoadImageAndLabeld("image", hounsfield=True)({"image": path})["image"]
    assert caplog.text.count("an offset of about 1024 was left in") == 1
    assert loaded.meta["warnings"][0].startswith(f"{path} has no peak of air near -1000")
    assert "warnings" not in LoadImageAndLabeld("image")({"image": path})["image"].meta


@pytest.mark.parametrize("high", [1, 3, 19])
@pytest.mark.parametrize("hounsfield", [True, False], ids=["ct", "other"])
def test_label_map_among_the_scans_is_named(tmp_path, caplog, high, hounsfield):
    labels = np.zeros((10, 9, 8), np.uint8)
    labels.flat[100 : 100 + high + 1] = np.arange(high + 1)
    path = save(tmp_path / "seg.nii.gz", labels, affine())
    LoadImageAndLabeld("image", hounsfield=hounsfield)({"image": path})
    assert f"{path} holds whole numbers 0..{high} alone: is it a label map or a mask?" in caplog.text


@pytest.mark.parametrize("off", [1e-7, -1e-7, 5e-4])
def test_label_that_nearly_is_a_class_is_rounded_with_a_warning(write, caplog, off):
    label = np.zeros((10, 9, 8), np.float32)
    label[2:4], label[5:6] = 1 + off, 2
    loaded = LOAD(write(label=label))["label"]
    assert set(torch.unique(loaded).tolist()) == {0, 1, 2}
    assert (
        f"has values that are no whole numbers, such as {np.float32(1 + off):.9g}: they are rounded"
        in caplog.text
    )


def test_label_value_is_shown_with_the_digits_that_matter(write):
    label = np.zeros((10, 9, 8), np.float32)
    label[0] = 0.998
    with pytest.raises(ValueError, match=r"must have values 0\.\.2 \(out_channels = 3\), got 0\.99800\d*\."):
        LOAD(write(label=label))


def test_one_of_several_phases_is_chosen_by_the_transform(tmp_path):
    folder = tmp_path / "scan"
    for n in range(12):
        values = (hounsfield_of(n // 2) + 1024 + 100 * (n % 2)).astype("<u2").tobytes()
        (folder).mkdir(exist_ok=True)
        (folder / f"{n}").write_bytes(dicom_bytes(slice_tags(n // 2, t00200013=str(n), t7fe00010=values)))
    with pytest.raises(ValueError, match=r"--set preprocessing_transforms#0#phase 1"):
        LoadImageAndLabeld("image")({"image": str(folder)})
    assert LoadImageAndLabeld("image", phase=2)({"image": str(folder)})["image"].min() == -900
