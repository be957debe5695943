# SPDX-License-Identifier: Apache-2.0
import re

import numpy as np
import pytest
import torch
from monai.losses import DeepSupervisionLoss
from monai.networks.nets import BasicUNetPlusPlus
from torch import nn

from monai_unetpp import DeepSupervisionDiceLoss

FLOAT64 = {"rtol": 0, "atol": 1e-10}  # the same arithmetic in another order


@pytest.fixture
def heads():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 6, 5, generator=generator, dtype=torch.float64) for _ in range(3)]


@pytest.fixture
def target():
    return torch.randint(0, 3, (2, 1, 6, 5), generator=torch.Generator().manual_seed(1)).double()


def dice(probabilities, onehot):
    """Soft Dice loss, 1e-5 added to both sides of the fraction, averaged over cases and classes."""
    axes = tuple(range(2, onehot.ndim))
    overlap = 2 * (probabilities * onehot).sum(axes) + 1e-5
    return np.mean(1 - overlap / (probabilities.sum(axes) + onehot.sum(axes) + 1e-5))


def dice_and_cross_entropy(logits, target, first_class=0):
    """What one head scores, by hand in numpy: softmax, Dice, cross-entropy."""
    logits, labels = logits.numpy(), target[:, 0].long().numpy()
    exponentials = np.exp(logits)
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    onehot = np.moveaxis(np.eye(logits.shape[1])[labels], -1, 1)
    cross_entropy = -np.log((probabilities * onehot).sum(axis=1)).mean()
    return dice(probabilities[:, first_class:], onehot[:, first_class:]) + cross_entropy


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("equal", [1, 1, 1]),
        ("halving", [1, 1 / 2, 1 / 4]),
        ([3, 0.5, 2], [3, 0.5, 2]),
        ([0, 0, 1], [0, 0, 1]),
    ],
    ids=["equal", "halving", "explicit", "shallowest-alone"],
)
def test_loss_is_the_weighted_mean_over_heads(heads, target, weights, expected):
    loss = DeepSupervisionDiceLoss(weights)(heads, target)
    by_hand = np.average([dice_and_cross_entropy(head, target) for head in heads], weights=expected)
    torch.testing.assert_close(loss.item(), by_hand, **FLOAT64)


@pytest.mark.parametrize("weights", ["equal", "halving", [3, 0.5, 2]], ids=["equal", "halving", "explicit"])
@pytest.mark.parametrize("distillation", [0.0, 0.5])
def test_scripted_loss_is_the_loss(heads, target, weights, distillation):
    loss = DeepSupervisionDiceLoss(weights, distillation=distillation)
    scripted = torch.jit.script(loss)
    torch.testing.assert_close(scripted(heads, target), loss(heads, target), **FLOAT64)
    torch.testing.assert_close(scripted(heads[0], target), loss(heads[0], target), **FLOAT64)


def test_weights_are_equal_by_default(heads, target):
    assert DeepSupervisionDiceLoss()(heads, target) == DeepSupervisionDiceLoss("equal")(heads, target)


def test_only_the_ratios_of_weights_matter(heads, target):
    loss, scaled = (DeepSupervisionDiceLoss(weights)(heads, target) for weights in ([4, 2, 1], [12, 6, 3]))
    torch.testing.assert_close(loss, scaled, **FLOAT64)


@pytest.mark.parametrize("weights", ["equal", "halving", [1, 2, 3]], ids=["equal", "halving", "explicit"])
def test_one_tensor_scores_alone_whatever_the_weights(heads, target, weights):
    loss = DeepSupervisionDiceLoss(weights)(heads[0], target)
    torch.testing.assert_close(loss.item(), dice_and_cross_entropy(heads[0], target), **FLOAT64)


def test_a_list_of_one_scores_like_its_tensor(heads, target):
    loss = DeepSupervisionDiceLoss()
    assert torch.equal(loss(heads[:1], target), loss(heads[0], target))


@pytest.mark.parametrize("weights", ["equal", "halving", [5, 2, 2, 1]], ids=["equal", "halving", "explicit"])
def test_head_weights_sum_to_one(weights):
    assert sum(DeepSupervisionDiceLoss(weights).head_weights(4)) == pytest.approx(1)


def test_halving_gives_each_head_half_the_weight_of_the_next_deeper_one():
    assert DeepSupervisionDiceLoss("halving").head_weights(3) == pytest.approx([4 / 7, 2 / 7, 1 / 7])


def test_further_arguments_reach_the_loss_of_every_head(heads, target):
    loss = DeepSupervisionDiceLoss(include_background=False)(heads, target)
    by_hand = np.mean([dice_and_cross_entropy(head, target, first_class=1) for head in heads])
    torch.testing.assert_close(loss.item(), by_hand, **FLOAT64)


def test_one_class_takes_a_sigmoid(heads, target):
    logits, mask = heads[0][:, :1], (target > 0).double()
    loss = DeepSupervisionDiceLoss(softmax=False, sigmoid=True, to_onehot_y=False)([logits], mask)
    p, y = 1 / (1 + np.exp(-logits.numpy())), mask.numpy()
    cross_entropy = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    torch.testing.assert_close(loss.item(), dice(p, y) + cross_entropy, **FLOAT64)


def test_every_parameter_of_the_network_learns_from_the_loss(tiny):
    net = tiny()
    target = torch.randint(0, 2, (1, 1, 16, 16)).float()
    DeepSupervisionDiceLoss()(net(torch.rand(1, 1, 16, 16)), target).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("exp", "weights must be 'equal', 'halving' or one number per head, got 'exp'."),
        ([1, -1], "weights must not be negative and not all zero, got [1, -1]."),
        ([0, 0], "weights must not be negative and not all zero, got [0, 0]."),
        ([], "weights must not be negative and not all zero, got []."),
    ],
    ids=["unknown-word", "negative", "all-zero", "empty"],
)
def test_wrong_weights_are_refused(weights, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DeepSupervisionDiceLoss(weights)


def test_another_number_of_heads_than_of_weights_is_refused(heads, target):
    with pytest.raises(
        ValueError, match=r"weights has 2 entries, but the network returned 3 heads; give one"
    ):
        DeepSupervisionDiceLoss([1, 1])(heads, target)


def test_no_heads_are_refused(target):
    with pytest.raises(ValueError, match="heads must hold at least one tensor, got an empty list"):
        DeepSupervisionDiceLoss()([], target)


# MONAI's DeepSupervisionLoss weights heads by their place in the list


class Mean(nn.Module):
    """A loss whose gradient tells the weight that a head was given."""

    def forward(self, head, target):
        return (head - target).mean()


def weights_given_by_monai(heads):
    for head in heads:
        head.retain_grad()
    DeepSupervisionLoss(Mean())(heads, torch.zeros_like(heads[0])).backward()
    return [head.grad.sum().item() for head in heads]


def test_deep_supervision_loss_of_monai_weights_our_deepest_head_most(tiny):
    net, x = tiny(), torch.rand(1, 1, 16, 16)
    heads = net(x)
    assert weights_given_by_monai(heads) == pytest.approx([1, 1 / 2, 1 / 4])
    assert torch.equal(heads[0], net.eval()(x))


def test_deep_supervision_loss_of_monai_weights_the_shallowest_head_of_basic_unet_plus_plus_most():
    net = BasicUNetPlusPlus(2, 1, 2, features=(4, 4, 4, 4, 4, 4), deep_supervision=True)
    heads = net(torch.rand(1, 1, 32, 32))
    assert weights_given_by_monai(heads) == pytest.approx([1, 1 / 2, 1 / 4, 1 / 8])
    net.zero_grad()
    net(torch.rand(1, 1, 32, 32))[0].sum().backward()
    assert net.final_conv_0_1.weight.grad is not None
    assert net.conv_2_0.convs.conv_0.conv.weight.grad is None


def test_one_class_with_a_sigmoid_is_dice_and_binary_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    heads = [torch.randn(2, 1, 6, 5, generator=generator, dtype=torch.float64) for _ in range(2)]
    target = torch.randint(0, 2, (2, 1, 6, 5), generator=generator).double()

    def by_hand(logits):
        p = logits.sigmoid()
        binary = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
        return dice(p.numpy(), target.numpy()) + binary.item()

    found = DeepSupervisionDiceLoss(sigmoid=True)(heads, target).item()
    torch.testing.assert_close(found, np.mean([by_hand(head) for head in heads]), **FLOAT64)


@pytest.mark.parametrize("form", [list, lambda heads: heads[0]], ids=["list", "tensor"])
def test_one_class_with_a_softmax_is_refused(form):
    heads = [torch.zeros(1, 1, 4, 4)]
    with pytest.raises(ValueError, match=r"softmax requires two classes or more.*sigmoid=True for one class"):
        DeepSupervisionDiceLoss()(form(heads), torch.zeros(1, 1, 4, 4))


def by_numpy(teacher, logits, annotated=None, sigmoid=False):
    """T^2 KL(teacher || logits) at T = 2, the mean over voxels: an oracle."""
    teacher, logits = (np.moveaxis(x.detach().double().numpy(), 1, -1) / 2 for x in (teacher, logits))
    if sigmoid:
        teacher, logits = (np.stack([x, np.zeros_like(x)], -1) for x in (teacher, logits))
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (teacher, logits))
    apart = 4 * (p * np.log(p / q)).sum(-1)
    return apart[annotated].mean() if annotated is not None else apart.mean()


def test_distillation_adds_the_mean_divergence_from_the_deepest_head(heads, target):
    plain, distilled = DeepSupervisionDiceLoss(), DeepSupervisionDiceLoss(distillation=0.5)
    added = float(distilled(heads, target) - plain(heads, target))
    expected = 0.5 * np.mean([by_numpy(heads[0], head) for head in heads[1:]])
    assert added == pytest.approx(expected, rel=1e-4)


def test_distillation_of_regions_takes_each_channel_by_itself():
    heads = [torch.randn(2, 3, 6, 5), torch.randn(2, 3, 6, 5)]
    target, regions = torch.randint(0, 4, (2, 1, 6, 5)), [[1, 2, 3], [2, 3], [3]]
    plain, distilled = (DeepSupervisionDiceLoss(regions=regions, distillation=d) for d in (0, 1.0))
    added = float(distilled(heads, target) - plain(heads, target))
    assert added == pytest.approx(by_numpy(*heads, sigmoid=True), rel=1e-4)


def test_the_deepest_head_learns_nothing_from_its_pupils(heads, target):
    leaves = [head.clone().requires_grad_() for head in heads]
    grads = [
        torch.autograd.grad(DeepSupervisionDiceLoss(distillation=d)(leaves, target), leaves) for d in (0, 1.0)
    ]
    assert torch.allclose(grads[0][0], grads[1][0])
    assert not torch.allclose(grads[0][1], grads[1][1])


def test_distillation_leaves_out_what_is_ignored():
    heads = [torch.randn(2, 3, 6, 5), torch.randn(2, 3, 6, 5)]
    target = torch.randint(0, 3, (2, 1, 6, 5))
    target[:, :, :2] = 255
    for head in heads:
        head[:, :, 0] = torch.nan  # of voxels that nobody annotated
    leaves = [head.requires_grad_() for head in heads]
    plain, distilled = (DeepSupervisionDiceLoss(ignore_index=255, distillation=d) for d in (0, 1.0))
    added = distilled(leaves, target) - plain(leaves, target)
    annotated = (target != 255)[:, 0].numpy()
    assert added.item() == pytest.approx(by_numpy(*heads, annotated), rel=1e-4)
    added.backward()
    assert leaves[1].grad[:, :, :2].eq(0).all()
    assert leaves[1].grad.isfinite().all()


def test_negative_distillation_is_refused():
    with pytest.raises(ValueError, match=r"distillation must be 0 or more, such as 0\.5, got -1"):
        DeepSupervisionDiceLoss(distillation=-1)
