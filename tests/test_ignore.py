# SPDX-License-Identifier: Apache-2.0
"""Voxels that nobody annotated have no part in the loss; the oracle is MONAI's loss of the others."""

import itertools
import re

import pytest
import torch
from monai.losses import DiceCELoss

from monai_unetpp import DeepSupervisionDiceLoss

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
