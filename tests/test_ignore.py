# SPDX-License-Identifier: Apache-2.0
"""Voxels that nobody annotated have no part in the loss and the scores; oracles gather the others."""

import itertools
import re
import shutil

import monai.transforms as mt
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch
from monai.losses import DiceCELoss
from monai.metrics import compute_dice

from bundles import DEEP, TINY_TRAINING, raises_within, run, workflow
from monai_unetpp import DeepSupervisionDiceLoss
from monai_unetpp.transforms import (
    AsDiscreteAnnotatedd,
    LoadImageAndLabeld,
    RandCropByLabelClassesAnnotatedd,
    RandCropByPosNegAnnotatedd,
    RandShiftLabeledIntensityd,
)

IGNORED = 255
SHAPES = {"2d": (7, 6), "3d": (5, 4, 3)}
FLOAT64 = {"rtol": 0, "atol": 1e-12}  # the same arithmetic in another order


def a_batch(shape, classes=3, cases=2, ignored=IGNORED):
    """Return logits and a label map of which a different third of each case is not annotated."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(cases, classes, *shape, generator=generator, dtype=torch.float64)
    target = torch.randint(0, max(classes, 2), (cases, 1, *shape), generator=generator).double()
    for n in range(cases):
        target[n, torch.rand(1, *shape, generator=generator) < 0.2 + 0.3 * n] = ignored
    return logits, target


def annotated(logits, target, ignored=IGNORED):
    """Gather what is annotated in a batch, (1, K, voxels) and (1, 1, voxels)."""
    kept = target[:, 0] != ignored
    return logits.movedim(1, -1)[kept].T[None], target[:, 0][kept][None, None]


def loss_of_the_rest(logits, target, ignored=IGNORED, **settings):
    """What MONAI says of the annotated voxels alone: Dice of each case or of all, cross-entropy of all."""
    settings = {"to_onehot_y": logits.shape[1] > 1, **settings}
    if len(logits) == 1 or settings.get("batch"):
        return DiceCELoss(**settings)(*annotated(logits, target, ignored))
    dice, cross_entropy = settings.pop("lambda_dice", 1.0), settings.pop("lambda_ce", 1.0)
    cases = [(logits[n : n + 1], target[n : n + 1]) for n in range(len(logits))]
    cases = [case for case in cases if (case[1] != ignored).any()]
    scores = [DiceCELoss(**settings, lambda_ce=0.0)(*annotated(*case, ignored)) for case in cases]
    reduced = sum(scores) if settings.get("reduction") == "sum" else sum(scores) / len(scores)
    return dice * reduced + cross_entropy * DiceCELoss(**settings, lambda_dice=0.0)(
        *annotated(logits, target, ignored)
    )


WEIGHT = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
SETTINGS = {
    "plain": {},
    "squared": {"squared_pred": True},
    "jaccard": {"jaccard": True},
    "weighted": {"weight": WEIGHT},
    "lambdas": {"lambda_dice": 0.3, "lambda_ce": 2.0},
    "dice-alone": {"lambda_ce": 0.0},
    "sum": {"reduction": "sum"},
    "smoothed-labels": {"label_smoothing": 0.1, "weight": WEIGHT},
    "unequal-smoothing": {"smooth_nr": 0.0, "smooth_dr": 1.0},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_loss_is_monais_loss_of_the_annotated_voxels(shape, settings):
    choices = itertools.product((1, 3), (True, False), (True, False), ("softmax", "sigmoid"))
    for cases, include_background, batch, activation in choices:
        logits, target = a_batch(shape, cases=cases)
        logits.requires_grad_()
        given = {"include_background": include_background, "batch": batch, activation: True, **settings}
        loss = DeepSupervisionDiceLoss(ignore_index=IGNORED, to_onehot_y=True, **given)
        found, wanted = loss(logits, target), loss_of_the_rest(logits, target, **given)
        torch.testing.assert_close(found, wanted, **FLOAT64)
        gradients = [torch.autograd.grad(each, logits)[0] for each in (found, wanted)]
        torch.testing.assert_close(*gradients, **FLOAT64)


@pytest.mark.parametrize("batch", [False, True], ids=["by-case", "by-batch"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"squared_pred": True}, {"weight": torch.tensor([3.0])}],
    ids=["plain", "squared", "weighted"],
)
def test_loss_of_one_class_is_monais_loss_of_the_annotated_voxels(batch, settings):
    for cases in (1, 2):
        logits, target = a_batch((5, 4, 3), classes=1, cases=cases)
        given = {"sigmoid": True, "batch": batch, **settings}
        found = DeepSupervisionDiceLoss(ignore_index=IGNORED, **given)(logits, target)
        torch.testing.assert_close(found, loss_of_the_rest(logits, target, **given), **FLOAT64)


def test_every_head_is_scored_on_the_annotated_voxels():
    (deep, target), (shallow, _) = a_batch((7, 6)), a_batch((7, 6))
    heads = [deep, shallow.flip(2), -shallow]
    found = DeepSupervisionDiceLoss("halving", ignore_index=IGNORED)(heads, target)
    scores = [loss_of_the_rest(head, target, softmax=True) for head in heads]
    torch.testing.assert_close(found, (scores[0] + scores[1] / 2 + scores[2] / 4) / 1.75, **FLOAT64)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32], ids=str)
def test_type_of_the_label_map_does_not_matter(dtype):
    logits, target = a_batch((7, 6))
    loss = DeepSupervisionDiceLoss(ignore_index=IGNORED)
    assert loss(logits, target.to(dtype)) == loss(logits, target)


@pytest.mark.parametrize("ignored", [-1, -100, 3, 1000], ids=str)
def test_any_value_of_no_class_can_be_ignored(ignored):
    logits, target = a_batch((7, 6), ignored=ignored)
    found = DeepSupervisionDiceLoss(ignore_index=ignored)(logits, target)
    torch.testing.assert_close(found, loss_of_the_rest(logits, target, ignored, softmax=True), **FLOAT64)


def test_value_that_wraps_around_to_the_ignored_one_is_not_ignored():
    logits, target = a_batch((7, 6))
    with pytest.raises((RuntimeError, IndexError)):  # MONAI's, of a value that is no class
        DeepSupervisionDiceLoss(ignore_index=-1)(logits, target.to(torch.uint8))


@pytest.mark.parametrize("batch", [False, True], ids=["by-case", "by-batch"])
def test_loss_without_an_ignored_voxel_is_the_plain_one_bit_for_bit(batch):
    logits, target = a_batch((7, 6), ignored=1)
    heads = [logits, logits.flip(1)]
    plain = DeepSupervisionDiceLoss(batch=batch)(heads, target)
    assert torch.equal(DeepSupervisionDiceLoss(batch=batch, ignore_index=IGNORED)(heads, target), plain)


@pytest.mark.parametrize("batch", [False, True], ids=["by-case", "by-batch"])
@pytest.mark.parametrize("value", [1e30, -1e30, float("inf"), float("nan")], ids=str)
@pytest.mark.parametrize("classes", [1, 3], ids=["sigmoid", "softmax"])
def test_logits_of_ignored_voxels_change_nothing_and_get_no_gradient(batch, value, classes):
    logits, target = a_batch((5, 4, 3), classes)
    hole = (target == IGNORED).expand_as(logits)
    loss = DeepSupervisionDiceLoss(ignore_index=IGNORED, sigmoid=classes == 1, batch=batch)
    odd = logits.masked_fill(hole, value).requires_grad_()
    found = loss([odd], target)
    found.backward()
    assert torch.equal(found, loss([logits], target))
    assert torch.equal(odd.grad[hole], torch.zeros_like(odd.grad[hole]))
    assert odd.grad[~hole].isfinite().all()
    assert odd.grad[~hole].any()


@pytest.mark.parametrize("batch", [False, True], ids=["by-case", "by-batch"])
@pytest.mark.parametrize("value", [0.0, 1e30, float("nan")], ids=str)
@pytest.mark.parametrize("classes", [1, 3], ids=["sigmoid", "softmax"])
def test_batch_without_an_annotated_voxel_scores_0_and_gets_no_gradient(batch, value, classes):
    heads = [torch.full((2, classes, 4, 4), value, requires_grad=True) for _ in range(2)]
    target = torch.full((2, 1, 4, 4), float(IGNORED))
    loss = DeepSupervisionDiceLoss(
        ignore_index=IGNORED, sigmoid=classes == 1, batch=batch, smooth_nr=0.0, smooth_dr=1.0
    )
    found = loss(heads, target)
    found.backward()
    assert found.item() == 0
    assert all(torch.equal(head.grad, torch.zeros_like(head)) for head in heads)


@pytest.mark.parametrize("batch", [False, True], ids=["by-case", "by-batch"])
def test_case_without_an_annotated_voxel_does_not_count(batch):
    logits, target = a_batch((7, 6), cases=3)
    target[1] = IGNORED
    loss = DeepSupervisionDiceLoss(ignore_index=IGNORED, batch=batch)
    torch.testing.assert_close(loss(logits, target), loss(logits[::2], target[::2]), **FLOAT64)


def test_scripted_loss_ignores_the_same_voxels():
    logits, target = a_batch((7, 6))
    for settings in ({}, {"batch": True}, {"sigmoid": True, "to_onehot_y": True}):
        loss = DeepSupervisionDiceLoss(ignore_index=IGNORED, **settings)
        scripted = torch.jit.script(loss)
        for label in (target, torch.full_like(target, IGNORED), target.where(target != IGNORED, 0)):
            torch.testing.assert_close(scripted([logits], label), loss([logits], label), **FLOAT64)


@pytest.mark.parametrize("ignored", [0, 1, 2], ids=str)
def test_ignoring_a_class_is_an_error(ignored):
    logits, target = a_batch((7, 6))
    message = f"ignore_index must be none of the classes 0..2, got {ignored}: use a value of no class"
    with pytest.raises(ValueError, match=re.escape(message)):
        DeepSupervisionDiceLoss(ignore_index=ignored)(logits, target)


def test_ignoring_the_only_class_is_an_error():
    logits, target = a_batch((7, 6), classes=1)
    with pytest.raises(ValueError, match=re.escape("none of the classes 0..1, got 1")):
        DeepSupervisionDiceLoss(sigmoid=True, ignore_index=1)(logits, target)


@pytest.mark.parametrize("ignored", ["255", 255.0, True], ids=repr)
def test_ignore_index_is_a_whole_number(ignored):
    with pytest.raises(ValueError, match=f"ignore_index must be a whole number or None, got {ignored!r}"):
        DeepSupervisionDiceLoss(ignore_index=ignored)


def test_ignoring_in_an_encoded_target_is_an_error():
    with pytest.raises(ValueError, match="ignore_index=255 requires a label map as target"):
        DeepSupervisionDiceLoss(ignore_index=IGNORED, to_onehot_y=False)
    logits, target = a_batch((7, 6))
    message = "and to_onehot_y=True, got 3 channels and to_onehot_y=False"
    with pytest.raises(ValueError, match=message):
        DeepSupervisionDiceLoss(ignore_index=IGNORED, sigmoid=True)(logits, target.expand(-1, 3, -1, -1))
    with pytest.raises(ValueError, match="got 1 channels and to_onehot_y=False"):
        DeepSupervisionDiceLoss(ignore_index=IGNORED, sigmoid=True)(logits, target)


# Transforms


def write_case(folder, label, image=None):
    """Write a volume and a label map; return their paths."""
    image = np.random.default_rng(0).normal(0, 100, label.shape) if image is None else image
    case = {"image": str(folder / "image.nii.gz"), "label": str(folder / "label.nii.gz")}
    for key, values in (("image", image.astype(np.float32)), ("label", label)):
        nib.save(nib.Nifti1Image(values, np.diag([2, 2, 2, 1])), case[key])
    return case


def label_map(*values, shape=(8, 7, 6), dtype=np.int16):
    return np.resize(np.array(values, dtype), shape)


@pytest.mark.parametrize("ignored", [255, -1, 3], ids=str)
@pytest.mark.parametrize("label_values", [None, [0, 7, 9], "nonzero"], ids=str)
def test_loader_keeps_the_ignored_value(tmp_path, ignored, label_values):
    values = [0, 7, 9] if label_values else [0, 1, 2]
    label = label_map(*values, ignored)
    load = LoadImageAndLabeld(out_channels=3, label_values=label_values, ignore_label=ignored, modality=None)
    found = load(write_case(tmp_path, label))["label"][0].numpy()
    classes = [0, 1, 1] if label_values == "nonzero" else [0, 1, 2]
    assert np.array_equal(found, label_map(*classes, ignored))


@pytest.mark.parametrize("label_values", [None, [0, 1, 2]], ids=str)
def test_loader_still_refuses_other_values(tmp_path, label_values):
    case = write_case(tmp_path, label_map(0, 1, 2, 255, 254))
    load = LoadImageAndLabeld(out_channels=3, label_values=label_values, ignore_label=255)
    with pytest.raises(ValueError, match="got 254"):
        load(case)
    with pytest.raises(ValueError, match="got 254, 255"):
        LoadImageAndLabeld(out_channels=3, label_values=label_values)(case)


def test_ignored_value_is_no_class():
    message = "ignore_label must be none of the classes 0..2 (out_channels = 3), got 2: use a value of no"
    with pytest.raises(ValueError, match=re.escape(message)):
        LoadImageAndLabeld(out_channels=3, ignore_label=2)
    with pytest.raises(ValueError, match="ignore_label must be none of label_values, 0, 7, 9, got 9"):
        LoadImageAndLabeld(out_channels=3, ignore_label=9, label_values=[0, 7, 9])
    with pytest.raises(ValueError, match="ignore_label must be a whole number such as 255, or None, got 'x'"):
        LoadImageAndLabeld(ignore_label="x")


CROPS = {
    "classes": lambda: RandCropByLabelClassesAnnotatedd(
        ["label"], "label", spatial_size=3, num_classes=3, num_samples=40, warn=False
    ),
    "pos-neg": lambda: RandCropByPosNegAnnotatedd(
        ["label"], "label", spatial_size=3, num_samples=40, ignore_label=IGNORED
    ),
}


@pytest.mark.parametrize("crop", CROPS.values(), ids=CROPS.keys())
@pytest.mark.parametrize("kind", ["all-classes", "background-alone"])
@pytest.mark.filterwarnings("ignore:Num foregrounds:UserWarning")  # MONAI's, of a label with one kind
def test_no_patch_is_centred_on_an_ignored_voxel(crop, kind):
    label = torch.full((1, 12, 11, 10), float(IGNORED))
    label[:, 4:7, 4:7, 4:7] = 0
    if kind == "all-classes":
        label[:, 5, 5, 5:7] = torch.tensor([1.0, 2.0])
    patches = crop().set_random_state(0)({"label": MetaTensor(label)})
    assert IGNORED not in {patch["label"][0, 1, 1, 1].item() for patch in patches}


def test_ignored_value_among_those_of_regions_is_no_class_to_crop_around():
    label = torch.zeros(1, 9, 9, 9)
    label[:, 2:4], label[:, 4:6], label[:, 6:] = 1, 2, 3  # regions [[1, 3], [3]]
    crop = RandCropByLabelClassesAnnotatedd(
        *(["label"], "label"), spatial_size=3, num_classes=4, num_samples=60, ignore_label=2, warn=False
    )
    patches = crop.set_random_state(0)({"label": MetaTensor(label)})
    assert {patch["label"][0, 1, 1, 1].item() for patch in patches} == {0, 1, 3}


@pytest.mark.parametrize("crop", CROPS.values(), ids=CROPS.keys())
@pytest.mark.filterwarnings("ignore:Num foregrounds:UserWarning")
def test_case_without_an_annotated_voxel_is_cropped_anywhere(crop):
    patches = crop().set_random_state(0)({"label": MetaTensor(torch.full((1, 9, 9, 9), float(IGNORED)))})
    assert len(patches) == 40
    assert all(patch["label"].shape == (1, 3, 3, 3) for patch in patches)


@pytest.mark.filterwarnings("ignore:Num foregrounds:UserWarning")
def test_image_threshold_leaves_annotated_voxels_to_crop_around():
    label = torch.full((1, 9, 9, 9), float(IGNORED))
    label[:, 4, 4, 4] = 0
    crop = RandCropByPosNegAnnotatedd(
        *(["label"], "label"), spatial_size=3, image_key="image", image_threshold=1, ignore_label=IGNORED
    )
    (patch,) = crop({"label": MetaTensor(label), "image": MetaTensor(torch.zeros(1, 9, 9, 9))})
    assert patch["label"][0, 1, 1, 1] == 0


def test_crops_without_gaps_are_monais():
    label = MetaTensor(torch.randint(0, 3, (1, 9, 8, 7), generator=torch.Generator().manual_seed(0)).float())
    shared = {"spatial_size": 3, "num_samples": 8}
    pairs = [
        (
            mt.RandCropByLabelClassesd(["label"], "label", num_classes=3, **shared),
            RandCropByLabelClassesAnnotatedd(["label"], "label", num_classes=3, **shared),
        ),
        (
            mt.RandCropByPosNegLabeld(["label"], "label", **shared),
            RandCropByPosNegAnnotatedd(["label"], "label", **shared),
        ),
    ]
    for pair in pairs:
        there, here = ([p["label"] for p in each.set_random_state(1)({"label": label})] for each in pair)
        assert all(torch.equal(a, b) for a, b in zip(there, here, strict=True))


def test_organ_is_shifted_without_the_ignored_voxels():
    label = torch.zeros(1, 9, 9)
    label[:, :, 5:] = IGNORED
    image = torch.rand(1, 9, 9, generator=torch.Generator().manual_seed(0))
    shift = RandShiftLabeledIntensityd("image", offsets=(0.2, 0.2), prob=1.0, ignore_label=IGNORED)
    assert torch.equal(shift({"image": image, "label": label})["image"], image)


# Scores


def dice_of(pred, label):
    """Dice of each class but the background, of class numbers; NaN for a class that the label lacks."""
    return [
        2 * ((pred == c) & (label == c)).sum() / ((pred == c).sum() + (label == c).sum())
        if (label == c).any()
        else np.nan
        for c in (1, 2)
    ]


def test_scores_are_those_of_the_annotated_voxels():
    logits, target = a_batch((5, 6, 7), cases=1)
    post = AsDiscreteAnnotatedd(
        ["pred", "label"], argmax=[True, False], to_onehot=3, ignore_label=IGNORED, zeroed=["probability"]
    )
    before = {"pred": logits[0], "label": MetaTensor(target[0]), "probability": logits[0].softmax(0)}
    after = post(before)
    kept = (target[0, 0] != IGNORED).numpy()
    found = compute_dice(after["pred"][None], after["label"][None], include_background=False)[0]
    wanted = dice_of(logits[0].argmax(0).numpy()[kept], target[0, 0].numpy()[kept])
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-6)
    for key in ("pred", "label", "probability"):
        assert not after[key][:, ~kept].any()
    assert torch.equal(after["probability"][:, kept], before["probability"][:, kept])
    assert (before["label"] == IGNORED).any()  # the input is not changed
    assert isinstance(after["label"], MetaTensor)


def test_discrete_values_without_gaps_are_monais():
    logits, target = a_batch((5, 6, 7), cases=1, ignored=1)
    item = {"pred": logits[0], "label": target[0]}
    settings = {"keys": ["pred", "label"], "argmax": [True, False], "to_onehot": 3}
    there, here = mt.AsDiscreted(**settings)(item), AsDiscreteAnnotatedd(**settings)(item)
    assert all(torch.equal(there[key], here[key]) for key in item)


def test_prediction_on_another_grid_is_an_error():
    post = AsDiscreteAnnotatedd(["pred", "label"], argmax=[True, False], to_onehot=2, ignore_label=IGNORED)
    with pytest.raises(
        ValueError, match=re.escape("pred must be on the grid of the label, [4, 4], got [3, 4]")
    ):
        post({"pred": torch.zeros(2, 3, 4), "label": torch.zeros(1, 4, 4)})


# Bundles


@pytest.fixture(scope="module")
def gaps(balls, tmp_path_factory):
    """The balls, of which nobody drew the slices of one half; a number of no class is there."""
    root = shutil.copytree(balls, tmp_path_factory.mktemp("gaps") / "balls")
    for path in (root / "labelsTr").iterdir():
        label = nib.load(path)
        values = np.asarray(label.dataobj).copy()
        values[..., : values.shape[-1] // 2] = IGNORED
        nib.save(nib.Nifti1Image(values, label.affine), path)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("bundle", ["liver", "lung_nodule"])
def test_bundle_trains_and_scores_on_the_annotated_voxels(bundle, gaps, tmp_path):
    settings = {"dataset_dir": str(gaps), "out_channels": 3, "ignore_label": IGNORED}
    more = (
        {"max_epochs": 1, "batch_size": 1, "shifted_size": [20] * 3}
        if bundle != "liver"
        else {"max_epochs": 1}
    )
    run(bundle, "train", tmp_path, **settings, **more)
    threshold = {"_target_": "bundles.Threshold", "out_channels": 3}
    flow = workflow(
        *(bundle, "train evaluate", tmp_path),
        **{**TINY_TRAINING, **settings, "network_def": threshold, "pixdim": [4.0] * 3},
        **{"validate#handlers": [], "eval_cases": "$@split[1]", "initialize": []},
    )
    flow.initialize()
    flow.run()
    (item,) = flow.evaluator.state.output
    label = np.asarray(nib.load(item["label"].meta["filename_or_obj"]).dataobj)
    kept = label != IGNORED
    assert not item["pred"].numpy()[:, ~kept].any()
    pred = item["pred"].argmax(0).numpy()
    wanted = np.nanmean(dice_of(pred[kept], label[kept]))
    assert 0 < wanted < 1
    assert flow.evaluator.state.metrics["val_mean_dice"] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.slow
def test_bundle_without_the_key_refuses_the_value(gaps, tmp_path):
    with raises_within(ValueError, r"must have values 0\.\.2 \(out_channels = 3\), got 255"):
        run("liver", "train", tmp_path, dataset_dir=str(gaps))


@pytest.mark.slow
def test_bundle_refuses_to_ignore_a_class_before_training(gaps, tmp_path):
    with raises_within(ValueError, r"ignore_label must be none of the classes 0\.\.2"):
        run("liver", "train", tmp_path, dataset_dir=str(gaps), ignore_label=2)
    assert not (tmp_path / "models").exists()


@pytest.mark.slow
def test_levels_are_scored_on_the_annotated_voxels(gaps, tmp_path):
    settings = {"dataset_dir": str(gaps), "ignore_label": IGNORED, "channels": DEEP}
    run("liver", "train", tmp_path, max_epochs=1, **settings)
    flow = workflow(
        "liver", "train levels", tmp_path, **{**TINY_TRAINING, **settings, "precisions": ["float32"]}
    )
    flow.initialize()
    scores = flow.parser.get_parsed_content("scores")
    net, items = flow.parser.get_parsed_content("trained").eval(), []
    post = flow.parser.get_parsed_content("validate#postprocessing")
    for batch in flow.parser.get_parsed_content("validate#dataloader"):
        with torch.no_grad():
            pred = flow.parser.get_parsed_content("validate#inferer")(batch["image"], net)
        items += [post(item) for item in decollate_batch({**batch, "pred": pred})]
    wanted = []
    for item in items:
        label = np.asarray(nib.load(item["label"].meta["filename_or_obj"]).dataobj)
        kept = label != IGNORED
        wanted.append(dice_of(item["pred"].argmax(0).numpy()[kept], label[kept]))
    assert np.nanmean(wanted) > 0
    assert scores[-1].dice == pytest.approx(np.nanmean(wanted), abs=1e-5)
