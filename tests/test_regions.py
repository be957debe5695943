# SPDX-License-Identifier: Apache-2.0
"""Classes that overlap: one channel with a sigmoid per region, one label map in and out."""

import json
import re

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer

from bundles import AFFINES, TINY_TRAINING, ball, raises_within, run, workflow
from monai_unetpp import DeepSupervisionDiceLoss, UNetPlusPlus, VolumeInferer, score_levels
from monai_unetpp.bundle import pack_bundle, run_workflow
from monai_unetpp.data import read_dataset
from monai_unetpp.inferers import AveragedNetwork, EarlyExitInferer
from monai_unetpp.inferers.uncertainty import ExpectedError, disagreement
from monai_unetpp.inferers.windows import window_change, window_uncertainty
from monai_unetpp.planning import Source, command, plan_bundle, take_fingerprint
from monai_unetpp.regions import check_writable, region_values, to_regions
from monai_unetpp.segment import segment
from monai_unetpp.segment.pipeline import load_pipeline
from monai_unetpp.transforms import AsDiscreteAnnotatedd, LoadImageAndLabeld
from monai_unetpp.weights import read_record

BRATS = [[1, 2, 3], [2, 3], [3]]
ORDER = [1, 2, 3]
NAMES = ["whole_tumor", "tumor_core", "enhancing"]
IGNORED = 255
FLOAT64 = {"rtol": 0, "atol": 1e-12}  # the same arithmetic in another order
KEYS = {"regions": BRATS, "regions_class_order": ORDER, "out_channels": 3}


def a_batch(shape=(7, 6), values=4, ignored=None):
    """Return logits and a label map; a third of it is not annotated if a value for that is given."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, *shape, generator=generator, dtype=torch.float64)
    target = torch.randint(0, values, (2, 1, *shape), generator=generator).double()
    if ignored is not None:
        target[torch.rand(target.shape, generator=generator) < 0.3] = ignored
    return logits, target


def loss_by_region(logits, target, batch, ignored=None):
    """Mean over regions of the soft Dice loss and of binary cross-entropy, in plain torch."""
    losses = []
    for n, values in enumerate(BRATS):
        kept = [target[b, 0] != ignored for b in range(len(target))]
        p = [logits[b, n][kept[b]].sigmoid() for b in range(len(target))]
        y = [sum((target[b, 0][kept[b]] == v).double() for v in values) for b in range(len(target))]
        if batch:
            p, y = [torch.cat(p)], [torch.cat(y)]
        dice = [
            1 - (2 * (a * b).sum() + 1e-5) / (a.sum() + b.sum() + 1e-5) for a, b in zip(p, y, strict=True)
        ]
        a, b = torch.cat(p), torch.cat(y)
        losses.append(sum(dice) / len(dice) - (b * a.log() + (1 - b) * (1 - a).log()).mean())
    return sum(losses) / len(losses)


@pytest.mark.parametrize("batch", [False, True], ids=["by-case", "by-batch"])
@pytest.mark.parametrize("ignored", [None, IGNORED], ids=["all", "ignored"])
def test_loss_is_that_of_each_region_by_itself(batch, ignored):
    logits, target = a_batch((5, 4, 3), ignored=ignored)
    logits.requires_grad_()
    loss = DeepSupervisionDiceLoss(regions=BRATS, batch=batch, ignore_index=ignored)
    found, wanted = loss(logits, target), loss_by_region(logits, target, batch, ignored)
    torch.testing.assert_close(found, wanted, **FLOAT64)
    gradients = [torch.autograd.grad(each, logits)[0] for each in (found, wanted)]
    torch.testing.assert_close(*gradients, **FLOAT64)
    torch.testing.assert_close(torch.jit.script(loss)([logits, logits], target), wanted, **FLOAT64)


def test_masks_of_classes_that_overlap_score_as_regions():
    """MONAI's cross-entropy would take such masks for probabilities that sum to one."""
    logits, target = a_batch()
    found = DeepSupervisionDiceLoss(sigmoid=True)([logits], to_regions(target, BRATS, 1))
    assert torch.equal(found, DeepSupervisionDiceLoss(regions=BRATS)([logits], target))
    torch.testing.assert_close(found, loss_by_region(logits, target, batch=False), **FLOAT64)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32], ids=str)
def test_type_of_the_label_map_does_not_matter(dtype):
    logits, target = a_batch(ignored=IGNORED)
    loss = DeepSupervisionDiceLoss(regions=BRATS, ignore_index=IGNORED)
    torch.testing.assert_close(loss(logits, target.to(dtype)), loss(logits, target))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regions": [1, 2]}, "regions must be a list with the label values of each region, such as [[1,"),
        ({"regions": [[1], []]}, "got [[1], []]"),
        ({"regions": [[0, 1]]}, "whole numbers 1..255, got 0 in [[0, 1]]"),
        ({"regions": [[1, "2"]]}, "whole numbers 1..255, got '2' in [[1, '2']]"),
        ({"include_background": False}, "regions require to_onehot_y=False and include_background=True"),
        ({"to_onehot_y": True}, "got to_onehot_y=True"),
        ({"ignore_index": 3}, "ignore_index must be in no region of [[1, 2, 3], [2, 3], [3]] and not 0, got"),
        ({"ignore_index": 0}, "and not 0, got 0"),
        ({"weight": torch.ones(3)}, "weight and label_smoothing must be left out for classes that overlap"),
        ({"label_smoothing": 0.1}, "label_smoothing=0.1"),
    ],
)
def test_loss_refuses_what_does_not_fit_regions(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DeepSupervisionDiceLoss(**{"regions": BRATS, **settings})


# Conversion


@pytest.mark.parametrize("ignored", [None, IGNORED], ids=["all", "ignored"])
def test_channels_are_those_of_numpy(ignored):
    logits, target = a_batch((5, 4, 3), ignored=ignored)
    label = MetaTensor(target[0], affine=np.diag([2, 3, 4, 1]))
    values, p = target[0, 0].numpy(), logits[0].sigmoid()
    keys = {"keys": ["pred", "label"], "ignore_label": ignored, "zeroed": ["probability"]}
    post = AsDiscreteAnnotatedd(**keys, regions=BRATS, argmax=[True, False], to_onehot=3)
    found = post({"pred": p, "label": label, "probability": p})
    inside = np.stack([np.isin(values, each) for each in BRATS])
    predicted = p.numpy() > 0.5
    kept = values != ignored
    for key, masks in (("label", inside), ("pred", predicted), ("probability", p.numpy())):
        wanted = np.concatenate([1 - masks.max(0, keepdims=True), masks])
        np.testing.assert_array_equal(found[key].numpy(), wanted * kept)
    assert found["label"].pixdim.tolist() == [2, 3, 4]
    assert torch.equal(label, target[0])  # the input is not changed


def test_prediction_of_other_channels_is_an_error():
    post = AsDiscreteAnnotatedd(["pred", "label"], regions=BRATS)
    with pytest.raises(ValueError, match=r"pred must have a channel for each of the 3 regions, .* got 4"):
        post({"pred": torch.zeros(4, 5, 5), "label": torch.zeros(1, 5, 5)})


ORDERS = {
    "brats": (BRATS, ORDER),
    "values-with-a-gap": ([[1, 2, 4], [1, 4], [4]], [2, 1, 4]),
    "kidney": ([[1, 2, 3], [2, 3], [2]], [1, 3, 2]),
    "apart": ([[1], [2]], [1, 2]),
    "share-a-region": ([[1, 2], [2, 3], [2]], [1, 3, 2]),
    "one": ([[1, 2]], [2]),
}


@pytest.mark.parametrize(("regions", "order"), ORDERS.values(), ids=ORDERS.keys())
def test_mask_that_is_right_in_every_region_is_written_as_these_regions(regions, order):
    check_writable(regions, order)
    label = torch.arange(5).repeat(5)[None]
    label[~torch.isin(label, torch.tensor(region_values(regions)))] = 0
    inside = to_regions(label, regions)
    written = torch.zeros_like(label)
    for mask, value in zip(inside, order, strict=True):
        written[0, mask.bool()] = value
    assert torch.equal(to_regions(written, regions), inside)


@pytest.mark.parametrize(
    ("regions", "order", "message"),
    [
        (None, [1], "regions_class_order must be left out without regions, got [1]"),
        (BRATS, None, "regions_class_order must have the value that a mask gets in each of 3 regions"),
        (BRATS, [1, 2], "got [1, 2]"),
        (BRATS, [1, 2, 4], "one of its own, [[1, 2, 3], [2, 3], [3]], got 4 for [3]"),
        ([[1, 2], [1], [2]], [7, 1, 2], "got 7 for [1, 2]"),  # where only the whole is found
        (BRATS[::-1], [3, 2, 1], "the value 2 would be written as 1, which is not in the same regions"),
        ([[1, 2], [2, 3]], [1, 3], "the value 2 would be written as 3"),
    ],
    ids=["no-regions", "none", "length", "unknown", "covered", "inner-first", "no-region-of-its-own"],
)
def test_order_that_loses_regions_is_refused(regions, order, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_writable(regions, order)


# Inference


class Fixed(torch.nn.Module):
    """A network whose logits are channels of its input."""

    def forward(self, x):
        return x


def volume(channels=3, size=(9, 8, 7), seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = MetaTensor(torch.randn(1, channels, *size, generator=generator), affine=torch.eye(4)[None])
    image.meta |= {"original_affine": torch.eye(4), "spatial_shape": torch.tensor(size)}
    return image


def test_written_map_is_numpys_and_a_probability_is_that_of_a_region():
    image = volume()
    inferer = VolumeInferer(SlidingWindowInferer(16), regions=BRATS, regions_class_order=[1, 2, 3])
    p = 1 / (1 + np.exp(-image.numpy()[0].astype(float)))
    wanted = np.zeros(p.shape[1:])
    for n in range(3):
        wanted[p[n] > 0.5] = n + 1
    found = inferer.segment(image, Fixed(), probability=2)
    np.testing.assert_array_equal(found.labels[0, 0].numpy(), wanted)
    np.testing.assert_allclose(found.probability[0, 0].numpy(), p[1], atol=1e-6)
    for wrong in (0, 4):
        with pytest.raises(
            ValueError, match=f"probability must be a region of the network, 1..3, got {wrong}"
        ):
            inferer.segment(image, Fixed(), probability=wrong)


def test_network_of_other_channels_is_refused():
    inferer = VolumeInferer(SlidingWindowInferer(16), regions=BRATS, regions_class_order=ORDER)
    with pytest.raises(ValueError, match="regions must be as many as the network has channels, 4, got 3"):
        inferer(volume(4), Fixed())
    with pytest.raises(ValueError, match="regions_class_order must have the value that a mask gets"):
        VolumeInferer(SlidingWindowInferer(16), regions=BRATS)


def test_ensemble_and_mirroring_average_the_probabilities_of_each_region():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 6, 5, generator=generator)
    shifted = torch.nn.Conv2d(3, 3, 3, padding=1)
    networks = [Fixed(), lambda windows: shifted(windows)]
    with torch.no_grad():
        found = AveragedNetwork(networks, (0,), sigmoid=True)(x).sigmoid()
        every = [net(x).sigmoid() for net in networks]
        every += [net(x.flip(2)).sigmoid().flip(2) for net in networks]
    torch.testing.assert_close(found, torch.stack(every).mean(0))


def test_uncertainty_is_that_of_each_region_by_itself():
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(1, 3, 6, 5, 4, generator=generator) for _ in range(2))
    by_region = [disagreement([one[:, n : n + 1], other[:, n : n + 1]]) for n in range(3)]
    assert torch.equal(
        disagreement([one, other], sigmoid=True), torch.cat(by_region, 1).amax(1, keepdim=True)
    )
    errors = [ExpectedError(1) for _ in range(3)]
    for n, error in enumerate(errors):
        error.add(one[:, n : n + 1])
    together = ExpectedError(3, sigmoid=True)
    together.add(one)
    assert together.value() == pytest.approx(np.mean([error.value() for error in errors]))


def test_early_exit_judges_regions():
    generator = torch.Generator().manual_seed(0)
    logits, previous = (torch.randn(2, 3, 6, 5, generator=generator) for _ in range(2))
    p = logits.sigmoid().numpy()
    np.testing.assert_allclose(
        window_uncertainty(logits, sigmoid=True), np.minimum(p, 1 - p).max(1).mean((1, 2)), rtol=1e-5
    )
    changed = ((logits > 0) != (previous > 0)).numpy().any(1).mean((1, 2))
    np.testing.assert_allclose(window_change(logits, previous, sigmoid=True), changed, rtol=1e-5)
    net = UNetPlusPlus(2, 1, 3, (4, 6, 8), strides=2).eval()
    image = torch.rand(1, 1, 16, 16)
    exits = EarlyExitInferer(0.49, sigmoid=True, roi_size=(16, 16))
    with torch.no_grad():
        wanted = net.all_heads(image)[-1]
        first = window_uncertainty(wanted, sigmoid=True) <= 0.49 / 4
        found = exits(image, net)
    assert exits.exits[0] == int(first)
    assert found.shape == wanted.shape


def test_levels_are_scored_by_region():
    net = UNetPlusPlus(2, 1, 3, (4, 6, 8), strides=2)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 1, 16, 16, generator=generator)
    label = torch.randint(0, 4, (2, 1, 16, 16), generator=generator).float()
    scores = score_levels(
        net,
        [{"image": image, "label": label}],
        SlidingWindowInferer((16, 16)),
        class_labels=NAMES,
        regions=BRATS,
        rounds=1,
        progress=False,
    )
    with torch.no_grad():
        heads = [head.sigmoid().numpy() > 0.5 for head in net.eval().all_heads(image)]
    for score, head in zip(scores, reversed(heads), strict=True):
        for n, name in enumerate(NAMES):
            y = np.isin(label[:, 0].numpy(), BRATS[n])
            dice = [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in zip(head[:, n], y, strict=True)]
            assert score.dice_per_class[name] == pytest.approx(np.mean(dice), abs=1e-6)


# Data sets and plans


def write_nested(folder, change=dict, values=(0, 1, 2, 3)):
    """Balls in balls in balls in the layout of nnU-Net, and regions as it states them."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for n in range(4):
        case = ball(f"c{n}", AFFINES["RAS"], radius=40 - n)
        depth = np.indices(case.label.shape) - (np.array(case.label.shape).reshape(3, 1, 1, 1) - 1) / 2
        label = sum((np.sqrt((depth**2).sum(0)) < radius).astype(np.uint8) for radius in (10 - n / 4, 7, 4))
        noise = np.random.default_rng(n).normal(0, 15, label.shape)
        image = (np.array([-100, 30, 120, 220])[label] + noise).astype(np.int16)
        nib.save(nib.Nifti1Image(image, case.affine), folder / f"imagesTr/c{n}_0000.nii.gz")
        mask = np.array(values, np.uint8)[label]
        nib.save(nib.Nifti1Image(mask, case.affine), folder / f"labelsTr/c{n}.nii.gz")
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "whole_tumor": [1, 2, 3], "tumor_core": [2, 3], "enhancing": 3},
        "regions_class_order": [1, 2, 3],
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    change(content)
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def nested(tmp_path_factory):
    return write_nested(tmp_path_factory.mktemp("nested") / "data")


BAD = {
    "no-order": (
        lambda content: content.pop("regions_class_order"),
        "regions_class_order must have the value that a mask gets in each of 3 regions, {'whole_tumor': [1,",
    ),
    "length": (lambda content: content.update(regions_class_order=[1, 2]), "'enhancing': [3]}, got [1, 2]"),
    "unknown-order": (
        lambda content: content.update(regions_class_order=[1, 2, 9]),
        "got 9 for",
    ),
    "unknown-value": (
        lambda content: content["labels"].update(enhancing="x"),
        "whole numbers 1..255, got 'x' in [[1, 2, 3], [2, 3], ['x']]",
    ),
    "background": (
        lambda content: content["labels"].update(background=4),
        "its labels must have background 0, got 4",
    ),
    "ignore": (
        lambda content: content["labels"].update(ignore=3),
        "the label ignore must be a whole number above those of all classes, got 3 beside 0, 1, 2, 3, 2",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_regions_that_do_not_fit_name_the_file(tmp_path, change, message):
    data = write_nested(tmp_path / "d", change)
    for read in (lambda: take_fingerprint(Source(data)), lambda: read_dataset(data, 3)):
        with pytest.raises(ValueError, match=re.escape(str(data / "dataset.json"))) as error:
            read()
        assert message in str(error.value)


def test_value_in_no_region_names_the_mask(tmp_path):
    def without_1(content):
        content["labels"] = {"background": 0, "core": [2, 3], "enhancing": 3}
        content["regions_class_order"] = [2, 3]

    data = write_nested(tmp_path / "d", without_1)
    with pytest.raises(
        ValueError, match=r"labelsTr/c0.* has values that are no class: 1; classes are 0, 2, 3"
    ):
        plan_bundle(Source(data), tmp_path / "bundle")
    case = {"image": str(data / "imagesTr/c0_0000.nii.gz"), "label": str(data / "labelsTr/c0.nii.gz")}
    with pytest.raises(
        ValueError, match=r"must have values 0, 2, 3 \(regions = \[\[2, 3\], \[3\]\]\), got 1"
    ):
        LoadImageAndLabeld(regions=[[2, 3], [3]])(case)


def test_data_set_of_other_regions_is_refused(nested):
    assert read_dataset(nested, **KEYS).labels == ["background", *NAMES]
    for given in ({}, {"regions": [[1, 2, 3], [3]], "regions_class_order": [1, 3]}):
        with pytest.raises(ValueError, match=r"regions and regions_class_order must be \[\[1, 2, 3\], "):
            read_dataset(nested, **{"out_channels": 3, **given})
    with pytest.raises(
        ValueError, match=r"out_channels must be 3 for the regions .* got 4: --out_channels 3"
    ):
        read_dataset(nested, **{**KEYS, "out_channels": 4})


def test_regions_of_classes_are_named_by_them(balls):
    keys = {"regions": [[1, 2], [2]], "regions_class_order": [1, 2], "out_channels": 2}
    assert read_dataset(balls, **keys).labels == ["background", "ball+pip", "pip"]
    with pytest.raises(
        ValueError, match=r"regions must have all values of .* but 0, 0, 1, 2, .* got 0, 2 in"
    ):
        read_dataset(balls, 1, regions=[[2]], regions_class_order=[2])


def test_ignored_value_is_in_no_region():
    with pytest.raises(
        ValueError, match="ignore_label must be none of the values of regions, 0, 1, 2, 3, got 3"
    ):
        LoadImageAndLabeld(regions=BRATS, ignore_label=3)
    with pytest.raises(ValueError, match=r"label_values must be left out with regions, got \[0, 1\]"):
        LoadImageAndLabeld(regions=BRATS, label_values=[0, 1])


# Bundles

CPU_ONLY = {"device": "$torch.device('cpu')"}


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A bundle that was planned for BraTS's first values, with a gap, and trained for two epochs."""

    def gap(content):
        content["labels"] = {"background": 0, "whole_tumor": [1, 2, 4], "tumor_core": [1, 4], "enhancing": 4}
        content["regions_class_order"] = [2, 1, 4]

    root = tmp_path_factory.mktemp("planned")
    data = write_nested(root / "data", gap, values=(0, 2, 1, 4))
    tiny = {
        "roi_size": [16] * 3,
        "channels": [4, 6, 8],
        "batch_size": 2,
        "max_epochs": 2,
        "learning_rate": 0.03,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "speed_of_machine", lambda *_: 3e10)
        plan_bundle(
            Source(data),
            root / "tumour",
            device="cpu",
            given={**tiny, "patches_per_case": 4, "largest_component": False},
        )
    run_workflow("train", root / "tumour", settings=CPU_ONLY)
    run_workflow("evaluate", root / "tumour", settings=CPU_ONLY)
    one = {"precisions": ["float32"]}  # a processor with bfloat16 may choose that, and round
    run_workflow("levels", root / "tumour", settings={**CPU_ONLY, "formats": ["pt"], **one})
    return root / "tumour", data


@pytest.mark.slow
def test_planned_bundle_has_regions_and_trains_them(planned):
    bundle, _ = planned
    for name in ("train", "inference"):
        config = json.loads((bundle / f"{name}.json").read_text())
        assert (config["regions"], config["regions_class_order"]) == ([[1, 2, 4], [1, 4], [4]], [2, 1, 4])
        assert config["out_channels"] == 3
    channels = json.loads((bundle / "metadata.json").read_text())["network_data_format"]["outputs"]["pred"]
    assert list(channels["channel_def"].values()) == NAMES
    record = read_record(bundle / "models" / "model.pt")
    assert record.settings["regions_class_order"] == [2, 1, 4]
    assert record.scores.keys() >= {f"val_dice_{name}" for name in NAMES}
    assert record.scores["val_dice_whole_tumor"] > 0.1


@pytest.mark.slow
def test_planned_bundle_evaluates_scores_levels_and_writes_what_numpy_computes(planned, tmp_path):
    bundle, data = planned
    assert (bundle / "eval" / "val_mean_dice_raw.csv").read_text().splitlines()[0].split(",")[1:4] == NAMES
    assert all(name in (bundle / "levels" / "levels.csv").read_text() for name in NAMES)
    outcomes = segment(data / "imagesTr", tmp_path / "masks", bundle, probability=1, uncertainty=True)
    assert {outcome.state for outcome in outcomes} == {"done"}
    pipeline = load_pipeline(bundle, data / "imagesTr", tmp_path / "masks")
    for outcome in outcomes:
        image = pipeline.preprocessing({"image": outcome.image})["image"][None]
        with torch.no_grad():
            p = pipeline.inferer.inferer(image.as_tensor(), pipeline.network)[0].sigmoid().numpy()
        written = nib.load(outcome.mask)
        assert np.allclose(image.affine.reshape(4, 4), written.affine)  # else the mask is on another grid
        wanted = np.zeros(p.shape[1:], int)
        for channel, value in zip(p, (2, 1, 4), strict=True):
            wanted = np.where(channel > 0.5, value, wanted)
        unclear = (np.abs(p - 0.5) < 1e-5).any(0)
        found = np.asarray(written.dataobj)
        assert np.array_equal(found[~unclear], wanted[~unclear])
        assert unclear.mean() < 0.01
        assert found.any()
        millilitres = 0.064 * np.isin(found, [1, 2, 4]).sum()
        assert dict(outcome.volumes)["whole_tumor"] == pytest.approx(millilitres)
        name = outcome.mask.replace("_seg.nii.gz", "_probability.nii.gz")
        np.testing.assert_allclose(nib.load(name).get_fdata(), p[0], atol=1e-4)


@pytest.mark.slow
def test_sheets_early_exit_and_mirroring_take_regions(planned, tmp_path):
    bundle, data = planned
    (case,) = list((data / "imagesTr").glob("c0*"))
    (exit,) = segment(case, tmp_path / "exit", bundle, overlays=["early_exit"], threshold=0.4, sheets=True)
    assert sum(exit.exits) > 0
    assert (tmp_path / "exit" / "c0_0000_sheet.png").exists()
    (mirrored,) = segment(case, tmp_path / "mirrored", bundle, mirror=True, mirror_axes=[0])
    assert mirrored.state == "done"
    assert set(np.unique(nib.load(mirrored.mask).dataobj)) <= {0, 1, 2, 4}


@pytest.mark.slow
@pytest.mark.parametrize("bundle", ["liver", "lung_nodule"])
def test_shipped_bundle_takes_regions_with_voxels_that_nobody_annotated(bundle, nested, tmp_path):
    """Dice by region of a network without training, on the annotated voxels."""
    data = tmp_path / "data"
    for folder in ("imagesTr", "labelsTr"):
        (data / folder).mkdir(parents=True)
        for path in (nested / folder).iterdir():
            volume = nib.load(path)
            values = np.asarray(volume.dataobj).copy()
            if folder == "labelsTr":
                values[..., : values.shape[-1] // 2] = IGNORED
            nib.save(nib.Nifti1Image(values, volume.affine), data / folder / path.name)
    (data / "dataset.json").write_text((nested / "dataset.json").read_text())
    settings = {**KEYS, "dataset_dir": str(data), "ignore_label": IGNORED, "max_epochs": 1}
    more = {} if bundle == "liver" else {"shifted_size": [20] * 3}
    run(bundle, "train", tmp_path, **settings, **more)
    flow = workflow(bundle, "train evaluate", tmp_path, **{**TINY_TRAINING, **settings, "pixdim": [4.0] * 3})
    flow.initialize()
    flow.run()
    (item,) = flow.evaluator.state.output
    label = np.asarray(nib.load(item["label"].meta["filename_or_obj"]).dataobj)
    kept = label != IGNORED
    assert not item["pred"].numpy()[:, ~kept].any()
    dice = []
    for n in range(3):
        a, b = item["pred"][n + 1].numpy().astype(bool)[kept], np.isin(label, BRATS[n])[kept]
        dice.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    metrics = flow.evaluator.state.metrics
    assert metrics["val_mean_dice"] == pytest.approx(np.mean(dice), abs=1e-6)
    assert [metrics[f"val_dice_{name}"] for name in NAMES] == pytest.approx(dice, abs=1e-4)


@pytest.mark.slow
def test_bundle_refuses_an_order_that_does_not_fit_before_training(nested, tmp_path):
    with raises_within(ValueError, r"regions_class_order must have the value that a mask gets in each of 3"):
        run("liver", "train", tmp_path, dataset_dir=str(nested), out_channels=3, regions=BRATS)
    assert not (tmp_path / "models").exists()


@pytest.mark.slow
def test_packed_bundle_names_the_regions(planned, tmp_path):
    bundle, _ = planned
    pack_bundle(bundle, bundle / "models" / "model.pt", tmp_path / "packed")
    configs = {
        name: json.loads((tmp_path / "packed" / "configs" / f"{name}.json").read_text())
        for name in ("train", "inference", "metadata")
    }
    assert configs["train"]["labels"]["otherwise"] == ["background", *NAMES]
    assert configs["inference"]["regions_class_order"] == [2, 1, 4]
    pred = configs["metadata"]["network_data_format"]["outputs"]["pred"]
    assert (pred["num_channels"], list(pred["channel_def"].values())) == (3, NAMES)
