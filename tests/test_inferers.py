# SPDX-License-Identifier: Apache-2.0
"""Whole volumes: MONAI's own pipeline is the oracle."""

import math
import re

import nibabel as nib
import numpy as np
import pytest
import torch
from exits import stop
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.inferers import SliceInferer, SlidingWindowInferer, sliding_window_inference
from monai.transforms import Activationsd, Compose, CropForegroundd, Invertd, Orientationd, Spacingd

from bundles import affine
from monai_unetpp import EarlyExitInferer, UNetPlusPlus, VolumeInferer
from monai_unetpp.inferers import disagreement, window_uncertainty
from monai_unetpp.inferers.slabs import slabs
from monai_unetpp.inferers.uncertainty import ExpectedError
from monai_unetpp.inferers.windows import FlatOnce
from monai_unetpp.transforms import LoadImageAndLabeld

SIZE = (23, 31, 27)


def network(dims=3, classes=3, skips="dense", deep_supervision=True):
    torch.manual_seed(0)
    return UNetPlusPlus(
        dims,
        1,
        classes,
        channels=(4, 6, 8, 10),
        strides=2,
        skips=skips,
        deep_supervision=deep_supervision,
    ).eval()


def noise(*size):
    return torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(1))


# Slabs

WINDOWS = [
    {"roi_size": (16, 16, 16), "overlap": 0.5, "mode": "gaussian"},
    {"roi_size": (16, 16, 16), "overlap": 0.25, "mode": "gaussian", "sigma_scale": 0.3},
    {"roi_size": (40, 12, 10), "overlap": (0, 0.3, 0.6)},
    {"roi_size": (16, 16, 40), "overlap": 0.5, "mode": "gaussian"},  # one row of windows, and padded
    {"roi_size": (-1, 16, 5), "overlap": 0.7},
    {"roi_size": 9, "overlap": 0},
]


@pytest.mark.parametrize("settings", WINDOWS, ids=lambda s: "-".join(map(str, s.values())))
@pytest.mark.parametrize("size", [SIZE, (16, 16, 100)], ids=str)
def test_slabs_are_the_sliding_window_of_the_whole(settings, size):
    image, net = noise(*size), network()
    inferer = SlidingWindowInferer(sw_batch_size=3, **settings)
    with torch.no_grad():
        whole = inferer(image, net)
        parts = list(slabs(inferer, image, net))
    torch.testing.assert_close(torch.cat(parts, dim=-1), whole, rtol=0, atol=1e-5)


def test_no_window_is_computed_twice():
    net, counts = network(), []
    for call in (
        lambda f: SlidingWindowInferer((16, 16, 16), 3, 0.5)(noise(16, 16, 100), f),
        lambda f: list(slabs(SlidingWindowInferer((16, 16, 16), 3, 0.5), noise(16, 16, 100), f)),
    ):
        counts.append(0)

        def counted(windows):
            counts[-1] += len(windows)
            return net(windows)

        with torch.no_grad():
            call(counted)
    assert counts[0] == counts[1] > 5


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slabs_of_a_two_dimensional_network_are_its_slices(axis):
    image, net = noise(*SIZE), network(dims=2)
    settings = {"roi_size": (16, 16), "sw_batch_size": 4, "overlap": 0.5, "mode": "gaussian"}
    inferer = SliceInferer(spatial_dim=axis, **settings)
    with torch.no_grad():
        whole = inferer(image, net)
        parts = list(slabs(inferer, image, net))
    torch.testing.assert_close(torch.cat(parts, dim=-1), whole, rtol=0, atol=1e-5)


# The way back to the file

TILTED = affine("LPS", (1, 1, 3))
TILTED[1, 2] = 0.8  # a tilted gantry, as NIfTI can say it: slices are shifted against each other
PLACES = {
    "tilted": TILTED,
    "RAS": affine("RAS", (1.0, 1.0, 1.0)),
    "LPS": affine("LPS", (0.7, 0.7, 2.5)),
    "PSR": affine("PSR", (3.0, 1.0, 0.8)),
    "oblique": affine("LPI", (0.9, 0.9, 5.0), turn=25),
}


def preprocessing(*more, pixdim=(1.3, 1.3, 1.3)):
    return Compose(
        [
            LoadImageAndLabeld(keys=["image"]),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=pixdim, mode="bilinear", dtype=None),
            *more,
        ]
    )


def load(path, transform):
    return next(iter(DataLoader(Dataset([{"image": str(path)}], transform), batch_size=1)))


def write(path, voxels, matrix):
    image = nib.Nifti1Image(voxels, matrix)
    nib.save(image, path)
    return path


def by_monai(batch, net, inferer, transform):
    """Probabilities on the grid of the file, by MONAI's transforms."""
    with torch.no_grad():
        pred = inferer(batch["image"], net)
    post = Compose(
        [
            Activationsd("pred", softmax=True),
            Invertd("pred", transform=transform, orig_keys="image", nearest_interp=False),
        ]
    )
    return post(decollate_batch({**batch, "pred": pred})[0])["pred"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("pixdim", [(1.3, 1.3, 1.3), (0.8, 1.1, 2.0)], ids=str)
def test_whole_volume_is_what_monai_makes_of_it(tmp_path, place, pixdim):
    voxels = np.random.default_rng(0).normal(size=SIZE).astype(np.float32)
    path, transform = write(tmp_path / "ct.nii", voxels, PLACES[place]), preprocessing(pixdim=pixdim)
    batch, net = load(path, transform), network()
    inferer = SlidingWindowInferer((16, 16, 16), 4, 0.5, "gaussian")
    expected = by_monai(batch, net, inferer, transform)
    found = VolumeInferer(inferer).segment(batch["image"], net, probability=1)
    assert found.labels.dtype == torch.uint8
    assert found.labels.shape == (1, 1, *SIZE)
    torch.testing.assert_close(
        found.probability[0, 0].as_tensor(), expected[1].as_tensor(), rtol=0, atol=1e-5
    )
    top = expected.as_tensor().topk(2, dim=0).values
    clear = top[0] - top[1] > 1e-5
    assert clear.float().mean() > 0.99
    assert torch.equal(found.labels[0, 0].as_tensor()[clear], expected.argmax(0).as_tensor()[clear].byte())
    np.testing.assert_allclose(found.labels.affine[0], nib.load(path).affine, atol=1e-6)


def test_what_was_cropped_away_is_background(tmp_path):
    voxels = np.zeros(SIZE, dtype=np.float32)
    voxels[8:18, 10:20, 6:20] = 1
    path = write(tmp_path / "ct.nii", voxels, PLACES["LPS"])
    crop = CropForegroundd("image", source_key="image", select_fn=lambda x: x > 0.5, allow_smaller=True)
    batch = load(path, preprocessing(crop))
    everywhere = lambda x: torch.cat([torch.zeros_like(x), torch.ones_like(x)], dim=1)  # noqa: E731
    found = VolumeInferer(SlidingWindowInferer((8, 8, 8), 4)).segment(
        batch["image"], everywhere, probability=0
    )
    labels = found.labels[0, 0].as_tensor().numpy()
    assert labels[8:18, 10:20, 6:20].all()
    assert not labels[:6].any()
    assert not labels[:, :7].any()
    assert not labels[..., 23:].any()
    assert (found.probability[0, 0].as_tensor().numpy()[:6] == 1).all()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("thick", [1, 2, 27], ids=["one-slice", "two-slices", "27-slices"])
def test_a_marker_in_the_world_comes_back_where_it_was(tmp_path, place, thick):
    matrix, size = PLACES[place], (24, 28, thick)
    middle = np.array([9, 17, thick // 2])
    world = nib.affines.apply_affine(matrix, middle)
    everywhere = nib.affines.apply_affine(matrix, np.moveaxis(np.indices(size), 0, -1))
    closeness = 1 - np.linalg.norm(everywhere - world, axis=-1) / 9
    near = closeness > 0.5
    batch = load(write(tmp_path / "ct.nii", closeness.astype(np.float32), matrix), preprocessing())
    bright = lambda x: torch.cat([0.5 - x, x - 0.5], dim=1) * 100  # noqa: E731
    labels = VolumeInferer(SlidingWindowInferer((16, 16, 16), 4, 0.5))(batch["image"], bright)
    found = np.argwhere(labels[0, 0].as_tensor().numpy())
    assert len(found)
    assert np.abs(found.mean(axis=0) - np.argwhere(near).mean(axis=0)).max() < 0.5


def test_one_channel_is_a_threshold(tmp_path):
    path = write(tmp_path / "ct.nii", np.random.default_rng(0).normal(size=SIZE).astype("f4"), PLACES["RAS"])
    batch = load(path, preprocessing(pixdim=(1, 1, 1)))
    found = VolumeInferer(SlidingWindowInferer((16, 16, 16), 4)).segment(
        batch["image"], lambda x: x, probability=1
    )
    assert torch.equal(found.labels.as_tensor() > 0, found.probability.as_tensor() > 0.5)
    assert 0.4 < found.labels.as_tensor().float().mean() < 0.6


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(2, 1, 8, 8, 8), r"one volume \(1, C, X, Y, Z\), of any size, got \[2, 1, 8, 8, 8\]"),
        (torch.zeros(1, 1, 8, 8, 8), "meta lack original_affine, spatial_shape"),
        (MetaTensor(torch.zeros(1, 1, 8, 8, 8)), "meta lack original_affine, spatial_shape"),
    ],
    ids=["batch", "tensor", "no-meta"],
)
def test_what_is_no_volume_of_a_file_is_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        VolumeInferer(SlidingWindowInferer((8, 8, 8), 1))(inputs, network())


def test_a_class_that_the_network_lacks_is_refused(tmp_path):
    batch = load(write(tmp_path / "ct.nii", np.zeros(SIZE, "f4"), PLACES["RAS"]), preprocessing())
    with pytest.raises(
        ValueError, match=re.escape("probability must be a class of the network, 0..2, got 3")
    ):
        VolumeInferer(SlidingWindowInferer((16, 16, 16), 1)).segment(batch["image"], network(), probability=3)


@pytest.mark.parametrize("classes", [1, 3])
def test_of_the_foreground_the_largest_component_is_kept(tmp_path, classes):
    voxels = np.full(SIZE, -1, "f4")
    voxels[2:6, 2:6, 2:6] = 1
    voxels[6:9, 2:6, 2:6] = 2  # hangs on it
    voxels[10, 10, 10] = 2
    batch = load(write(tmp_path / "ct.nii", voxels, PLACES["RAS"]), preprocessing(pixdim=(1, 1, 1)))
    windows = SlidingWindowInferer((8, 8, 8), 4)
    steps = (
        (lambda x: x)
        if classes == 1
        else lambda x: -10 * torch.cat([abs(x - k + (k < 1)) for k in range(3)], 1)
    )
    found, whole = (
        VolumeInferer(windows, largest_component=on)(batch["image"], steps)[0, 0] for on in (1, 0)
    )
    wanted = np.where(voxels > 0, voxels if classes > 1 else 1, 0)
    np.testing.assert_array_equal(whole, wanted)
    wanted[10, 10, 10] = 0
    np.testing.assert_array_equal(found, wanted)


def test_nothing_has_no_largest_component(tmp_path):
    batch = load(
        write(tmp_path / "ct.nii", np.zeros(SIZE, "f4"), PLACES["RAS"]), preprocessing(pixdim=(1, 1, 1))
    )
    inferer = VolumeInferer(SlidingWindowInferer((8, 8, 8), 4), largest_component=True)
    assert not inferer(batch["image"], lambda x: x - 1).any()


# The heads together


def test_uncertainty_is_the_divergence_of_the_heads(tmp_path):
    voxels = np.random.default_rng(0).normal(size=SIZE).astype("f4")
    batch = load(write(tmp_path / "ct.nii", voxels, PLACES["RAS"]), preprocessing(pixdim=(1, 1, 1)))
    net, inferer = network(), SlidingWindowInferer((16, 16, 16), 4, 0.5)
    found = VolumeInferer(inferer).segment(batch["image"], net, uncertainty=True)
    with torch.no_grad():
        heads = [
            torch.as_tensor(head).softmax(1).double().numpy()
            for head in inferer(batch["image"], net.all_heads)
        ]
    mean = sum(heads) / 3
    kl = sum((p * np.log(p / mean)).sum(axis=1) for p in heads) / 3  # the other definition
    np.testing.assert_allclose(found.uncertainty[:, 0].numpy(), kl / math.log(3), atol=1e-5)
    assert torch.equal(found.labels.as_tensor(), VolumeInferer(inferer)(batch["image"], net).as_tensor())
    dice = []
    for k in (1, 2):
        p, here = heads[0][:, k], heads[0].argmax(axis=1) == k
        dice.append(2 * p[here].sum() / (p.sum() + here.sum()))
    assert found.case_uncertainty == pytest.approx(1 - np.mean(dice), abs=1e-3)


@pytest.mark.parametrize("classes", [1, 3])
def test_an_expected_error_is_0_where_all_is_certain(classes):
    something = torch.full((1, classes, 4, 4), -100.0)
    something[:, -1, :2] = 100
    something[:, 0, 2:] = 100 if classes > 1 else -100
    error = ExpectedError(classes)
    for rows in something.split(1, dim=2):
        error.add(rows)
    assert error.value() == pytest.approx(0, abs=1e-6)


def test_where_nothing_is_found_the_likeliest_voxel_counts():
    error = ExpectedError(1)
    error.add(torch.tensor([-9.0, 0.4, 0.1]).logit(eps=1e-9)[None, None])
    assert error.value() == pytest.approx(0.4, abs=1e-6)


def test_an_expected_error_is_the_error_where_probabilities_are_right():
    rng = torch.Generator().manual_seed(0)
    p = torch.rand(1, 1, 100_000, generator=rng) ** 3
    truth = torch.rand(p.shape, generator=rng) < p
    error = ExpectedError(1)
    error.add(p.logit())
    found = p > 0.5
    dice = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    assert error.value() == pytest.approx(1 - float(dice), abs=0.005)


def test_uncertainty_at_a_level_is_of_the_heads_up_to_it(tmp_path):
    voxels = np.random.default_rng(0).normal(size=SIZE).astype("f4")
    batch = load(write(tmp_path / "ct.nii", voxels, PLACES["RAS"]), preprocessing(pixdim=(1, 1, 1)))
    net, inferer = network(), VolumeInferer(SlidingWindowInferer((16, 16, 16), 4, 0.5))
    net.level = 2
    found, small = (inferer.segment(batch["image"], n, uncertainty=True) for n in (net, shallower(net)))
    assert torch.equal(found.labels.as_tensor(), small.labels.as_tensor())
    torch.testing.assert_close(
        found.uncertainty.as_tensor(), small.uncertainty.as_tensor(), atol=1e-6, rtol=0
    )
    net.level = 1
    with pytest.raises(ValueError, match="only one head, which cannot disagree"):
        inferer.segment(batch["image"], net, uncertainty=True)


def shallower(net):
    """The same network without its deepest diagonal, with the heads that are left."""
    small = UNetPlusPlus(3, 1, 3, channels=(4, 6, 8), strides=2).eval()
    small.load_state_dict({key: net.state_dict()[key] for key in small.state_dict()})
    return small


def test_disagreement_is_0_of_equal_heads_and_1_of_opposite_ones():
    certain = torch.tensor([[100.0, -100.0]])[..., None]
    assert disagreement([certain, certain]).item() == pytest.approx(0, abs=1e-6)
    assert disagreement([certain, -certain]).item() == pytest.approx(1, abs=1e-6)
    one = torch.full((1, 1, 4), 50.0)
    assert disagreement([one, -one]).tolist() == [[[1.0] * 4]]


def test_one_head_has_no_uncertainty(tmp_path):
    batch = load(write(tmp_path / "ct.nii", np.zeros(SIZE, "f4"), PLACES["RAS"]), preprocessing())
    with pytest.raises(ValueError, match="only one head, which cannot disagree"):
        VolumeInferer(SlidingWindowInferer((16, 16, 16), 1)).segment(
            batch["image"], network(deep_supervision=False), uncertainty=True
        )
    with pytest.raises(ValueError, match="at least two"):
        disagreement([torch.zeros(1, 2, 4)])


# Early exit


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("skips", ["dense", "short", "long"])
def test_diagonals_are_the_heads_whichever_windows_go_on(dims, skips):
    net = network(dims, skips=skips)
    x = torch.randn(5, 1, *[18] * dims)
    kept = [[0, 1, 2, 3, 4], [0, 2, 4], [2, 4]]
    with torch.no_grad():
        heads = net.all_heads(x)[::-1]
        diagonals = net.diagonals(x)
        found = [
            next(diagonals),
            diagonals.send(torch.tensor([0, 2, 4])),
            diagonals.send(torch.tensor([1, 2])),
        ]
        for logits, head, samples in zip(found, heads, kept, strict=True):
            torch.testing.assert_close(logits, head[samples], rtol=0, atol=1e-5)
        with pytest.raises(StopIteration):
            next(diagonals)


def test_diagonals_need_heads_on_the_way():
    with pytest.raises(ValueError, match="deep_supervision is off"):
        next(network(deep_supervision=False).diagonals(torch.zeros(1, 1, 16, 16, 16)))


def test_uncertainty_of_a_window_is_the_share_of_voxels_that_is_expected_to_be_wrong():
    p = torch.tensor([[0.9, 0.6], [0.1, 0.4]]).log()[None]
    assert window_uncertainty(p).item() == pytest.approx(0.25)
    assert window_uncertainty(torch.logit(torch.tensor([[[0.9, 0.3, 0.98]]]))).item() == pytest.approx(0.14)


def test_without_a_threshold_nothing_stops_and_all_is_as_monai_says():
    image, net = noise(*SIZE), network()
    settings = {"roi_size": (16, 16, 16), "sw_batch_size": 3, "overlap": 0.5, "mode": "gaussian"}
    inferer = EarlyExitInferer(threshold=0, **settings)
    with torch.no_grad():
        torch.testing.assert_close(
            inferer(image, net), SlidingWindowInferer(**settings)(image, net), atol=1e-5, rtol=0
        )
    assert inferer.exits[:2] == [0, 0]


@pytest.mark.parametrize(
    ("says", "stops"),
    [((None, None), [1, 2, 3]), ((0, 4), [2]), ((0, 0), [3]), ((5, None), [1])],
    ids=str,
)
def test_a_window_stops_at_the_first_level_that_is_sure_of_it(says, stops):
    image, net, stopped, threshold = noise(40, 40, 40), network(), [], 0.356
    for head, bias in zip(net.heads.values(), (*says, None), strict=True):
        head.weight.data *= 40 if bias is None else 0
        if bias is not None:  # the same of every voxel: 4 is sure enough, 0 is not
            head.bias.data[:] = torch.tensor([bias, 0, 0])

    def oracle(windows):
        heads = net.all_heads(windows)[::-1]
        result = heads[-1].clone()
        for n in range(len(windows)):
            stopped.append(stop([head[n : n + 1] for head in heads], threshold))
            result[n] = heads[stopped[-1]][n]
        return result

    inferer = EarlyExitInferer(threshold=threshold, roi_size=(16, 16, 16), sw_batch_size=4, overlap=0.25)
    with torch.no_grad():
        expected = sliding_window_inference(image, (16, 16, 16), 4, oracle, overlap=0.25)
        torch.testing.assert_close(inferer(image, net), expected, rtol=0, atol=1e-4)
    assert inferer.exits == [stopped.count(k) for k in range(3)]
    assert [k for k, n in enumerate(inferer.exits, 1) if n] == stops


def test_the_level_of_the_network_is_the_deepest():
    net = network()
    net.level = 2
    inferer = EarlyExitInferer(threshold=0, roi_size=(16, 16, 16), sw_batch_size=4)
    with torch.no_grad():
        expected = SlidingWindowInferer((16, 16, 16), 4)(noise(*SIZE), net)
        torch.testing.assert_close(inferer(noise(*SIZE), net), expected, rtol=0, atol=1e-5)
    assert len(inferer.exits) == 2


def test_exits_are_summed_until_reset():
    inferer = EarlyExitInferer(threshold=0.66, roi_size=(16, 16, 16), sw_batch_size=4)
    for _ in range(2):
        with torch.no_grad():
            inferer(noise(16, 16, 16), network())
    assert sum(inferer.exits) == 2
    inferer.reset()
    assert inferer.exits == []


@pytest.mark.parametrize(
    ("net", "got"),
    [(network(deep_supervision=False), "one head"), (torch.nn.Identity(), "Identity")],
    ids=["one-head", "other"],
)
def test_a_network_without_levels_is_refused(net, got):
    with pytest.raises(ValueError, match=f"network must be a UNetPlusPlus with deep_supervision.*got {got}"):
        EarlyExitInferer(threshold=0.1, roi_size=8)(noise(8, 8, 8), net)


@pytest.mark.parametrize("threshold", [-0.1, 1.0])
def test_a_threshold_that_is_none_is_refused(threshold):
    with pytest.raises(ValueError, match=r"threshold must be at least 0 and below 1"):
        EarlyExitInferer(threshold=threshold, roi_size=8)


# Windows of one value


@pytest.mark.parametrize(("dims", "last", "computed"), [(2, 6, 2 * 4 + 2), (3, 48, 4 + 2)])
def test_windows_of_one_value_are_computed_once(dims, last, computed):
    net, image = network(dims), torch.zeros(1, 1, 32, 32, last)
    image[..., last // 3 :] = 0.5
    image[..., 2 * last // 3 :] = noise(32, 32, last // 3)
    window = (16,) * dims
    kind = (SliceInferer, {"spatial_dim": 2}) if dims == 2 else (SlidingWindowInferer, {})
    plain = kind[0](roi_size=window, sw_batch_size=3, overlap=0, **kind[1])
    windows = []

    def counted(batch):
        windows.extend(batch)
        return net(batch)

    with torch.no_grad():
        torch.testing.assert_close(plain(image, FlatOnce(counted)), plain(image, net))
    assert len(windows) == computed
