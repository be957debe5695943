# SPDX-License-Identifier: Apache-2.0
import re

import pytest
import torch
from monai.networks.nets import BasicUNetPlusPlus
from torch import nn

from monai_unetpp import UNetPlusPlus, from_basic_unet_plus_plus, prune, prune_state_dict

SKIPS = ("dense", "short", "long")
LEVELS = pytest.mark.parametrize("level", [1, 2, 3], ids="L{}".format)
EVERY_SKIPS = pytest.mark.parametrize("skips", SKIPS)


# L^k is head k


@LEVELS
@EVERY_SKIPS
@pytest.mark.parametrize(
    "size", [(16, 24), (17, 11), (16, 8, 8), (9, 13, 10)], ids=lambda n: "x".join(map(str, n))
)
@pytest.mark.parametrize("strides", [2, [(2, 1), 2, 3]], ids=["isotropic", "anisotropic"])
@pytest.mark.parametrize(
    "norm",
    [("instance", {"affine": True}), "batch", ("group", {"num_groups": 2}), None],
    ids=["instance", "batch", "group", "no-norm"],
)
@torch.no_grad()
def test_pruned_network_equals_head_bit_for_bit(tiny, level, skips, size, strides, norm):
    if strides != 2 and len(size) == 3:
        strides = [(2, 2, 1), 2, 3]
    net = tiny(len(size), skips=skips, strides=strides, norm=norm).eval()
    x = torch.rand(2, 1, *size)
    assert torch.equal(prune(net, level)(x), net.all_heads(x)[-level])


@LEVELS
@EVERY_SKIPS
def test_level_equals_head_bit_for_bit(tiny, level, skips):
    net, x = tiny(skips=skips).eval(), torch.rand(1, 1, 16, 17)
    head = net.all_heads(x)[-level]
    net.level = level
    assert torch.equal(net(x), head)


@LEVELS
def test_pruned_network_equals_head_bit_for_bit_in_training(tiny, level):
    net, x = tiny(norm="batch").train(), torch.rand(2, 1, 16, 16)
    pruned = prune(net, level)
    assert torch.equal(pruned(x), net(x)[-level])


@LEVELS
@pytest.mark.parametrize(
    "arguments",
    [
        {"upsample": "nontrainable"},
        {"upsample": "pixelshuffle"},
        {"kernel_size": [(3, 1), 3, 5, 3]},
        {"up_channels": (5, 3, 2), "last_channels": 7},
        {"bias": False, "act": "PRELU"},
        {"dropout": 0.3},
    ],
    ids=["nontrainable", "pixelshuffle", "kernels", "widths", "no-bias-prelu", "dropout"],
)
def test_pruned_network_keeps_the_other_arguments(tiny, level, arguments):
    net, x = tiny(**arguments).eval(), torch.rand(1, 1, 16, 16)
    assert torch.equal(prune(net, level)(x), net.all_heads(x)[-level])


@EVERY_SKIPS
def test_without_deep_supervision_the_deepest_level_is_the_network_itself(tiny, skips):
    net, x = tiny(skips=skips, deep_supervision=False).eval(), torch.rand(1, 1, 16, 16)
    assert torch.equal(prune(net, 3)(x), net(x))


@pytest.mark.parametrize(
    ("level", "expected"), [(1, 100_961), (2, 511_105), (3, 2_204_961), (4, 9_041_601)], ids="L{}".format
)
def test_pruned_network_has_the_parameter_count_of_the_paper(level, expected):
    with torch.device("meta"):
        net = UNetPlusPlus(2, 1, 1, norm=None)
    assert sum(parameter.numel() for parameter in prune(net, level).parameters()) == expected


# What L^k is made of


@LEVELS
@EVERY_SKIPS
def test_gradients_of_a_head_reach_exactly_the_parameters_of_its_level(tiny, level, skips):
    net = tiny(skips=skips)
    net(torch.rand(1, 1, 16, 16))[-level].sum().backward()
    reached = {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    assert reached == {*prune(net, level).state_dict()}


@LEVELS
@EVERY_SKIPS
def test_pruned_state_dict_is_that_of_the_pruned_network(tiny, level, skips):
    net = tiny(skips=skips, norm="batch")
    state, expected = prune_state_dict(net.state_dict(), level, skips), prune(net, level).state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) for key in expected)


@LEVELS
@EVERY_SKIPS
def test_pruned_state_dict_fits_a_network_of_that_depth(tiny, level, skips):
    net, x = tiny(skips=skips).eval(), torch.rand(1, 1, 16, 16)
    shallow = UNetPlusPlus(
        2, 1, 2, (4, 6, 8, 10)[: level + 1], strides=2, skips=skips, deep_supervision=False
    ).eval()
    shallow.load_state_dict(prune_state_dict(net.state_dict(), level, skips))
    assert torch.equal(shallow(x), net.all_heads(x)[-level])


def test_pruned_network_trains_on(tiny):
    pruned, x = prune(tiny(), 2), torch.rand(1, 1, 16, 16)
    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.01)
    losses = []
    for _ in range(3):
        loss = pruned(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert all(parameter.grad is not None for parameter in pruned.parameters())


def test_pruned_network_is_as_deep_as_its_level_with_one_head(tiny):
    pruned = prune(tiny(), 2)
    assert (pruned.depth, pruned.level, pruned.deep_supervision) == (2, 2, False)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_pruned_network_keeps_mode_and_dtype(tiny, training):
    pruned = prune(tiny().double().train(training), 2)
    assert {module.training for module in pruned.modules()} == {training}
    assert {parameter.dtype for parameter in pruned.parameters()} == {torch.float64}


def test_pruning_draws_no_random_numbers(tiny):
    net = tiny()
    before = torch.get_rng_state()
    prune(net, 2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "weights_of",
    [lambda net: prune(net, 2).state_dict(), lambda net: prune_state_dict(net.state_dict(), 2)],
    ids=["prune", "prune_state_dict"],
)
def test_pruned_weights_are_copies(tiny, weights_of):
    net = tiny(norm="batch")
    storages = {tensor.untyped_storage().data_ptr() for tensor in net.state_dict().values()}
    assert storages.isdisjoint(tensor.untyped_storage().data_ptr() for tensor in weights_of(net).values())


# What the caller did wrong


def test_pruning_to_a_level_without_a_head_is_refused(tiny):
    message = "level must be one of the network's heads, 1, 2, 3, got 4."
    with pytest.raises(ValueError, match=re.escape(message)):
        prune(tiny(), 4)


def test_pruning_a_pruned_network_is_refused_and_says_why(tiny):
    message = "level must be one of the network's heads, 2 (deep_supervision is off), got 1."
    with pytest.raises(ValueError, match=re.escape(message)):
        prune(prune(tiny(), 2), 1)


def test_state_dict_of_another_network_is_refused():
    with pytest.raises(ValueError, match=r"state_dict has no 'heads\.\*' keys: it is not of a UNetPlusPlus"):
        prune_state_dict(nn.Linear(1, 1).state_dict(), 1)


def test_state_dict_without_the_head_is_refused(tiny):
    message = "level must be one of the heads in state_dict, 1, 2, 3, got 5."
    with pytest.raises(ValueError, match=re.escape(message)):
        prune_state_dict(tiny().state_dict(), 5)


def test_unknown_skips_are_refused(tiny):
    with pytest.raises(ValueError, match="skips must be one of dense, short, long, got 'all'"):
        prune_state_dict(tiny().state_dict(), 1, skips="all")


@pytest.mark.parametrize(
    ("made_with", "claimed", "message"),
    [
        ("dense", "long", "skips must be 'dense' for these weights, got 'long'."),
        ("dense", "short", "skips must be 'dense' for these weights, got 'short'."),
        ("short", "dense", "skips must be 'short' or 'long' for these weights, got 'dense'."),
        ("long", "dense", "skips must be 'short' or 'long' for these weights, got 'dense'."),
    ],
    ids=["dense-as-long", "dense-as-short", "short-as-dense", "long-as-dense"],
)
def test_skips_that_the_weights_deny_are_refused(tiny, made_with, claimed, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        prune_state_dict(tiny(skips=made_with).state_dict(), 2, skips=claimed)


# The weights of MONAI's BasicUNetPlusPlus

BASIC = {
    "2D": {"spatial_dims": 2},
    "2D-batch-relu-no-bias": {"spatial_dims": 2, "norm": "batch", "act": "relu", "bias": False},
    "2D-group-prelu": {"spatial_dims": 2, "norm": ("group", {"num_groups": 2}), "act": "prelu"},
    "2D-no-norm-elu": {"spatial_dims": 2, "norm": None, "act": ("elu", {"alpha": 0.5})},
    "2D-nontrainable": {"spatial_dims": 2, "upsample": "nontrainable"},
    "2D-pixelshuffle": {"spatial_dims": 2, "upsample": "pixelshuffle"},
    "3D": {"spatial_dims": 3},
    "3D-batch-nontrainable": {"spatial_dims": 3, "norm": "batch", "upsample": "nontrainable"},
}
EVERY_BASIC = pytest.mark.parametrize("arguments", BASIC.values(), ids=BASIC.keys())
SUPERVISION = pytest.mark.parametrize("deep_supervision", [True, False], ids=["all-heads", "one-head"])


def basic(spatial_dims, **arguments):
    torch.manual_seed(0)
    net = BasicUNetPlusPlus(spatial_dims, 1, 2, features=(4, 4, 6, 8, 10, 12), **arguments)
    return net, torch.rand(2, 1, 32, *[16] * (spatial_dims - 1))


@EVERY_BASIC
@SUPERVISION
@pytest.mark.parametrize(
    ("dtype", "atol"),
    # a node is a sum over its skips here, one convolution over their concatenation there: rounding differs
    [(torch.float32, 2e-5), (torch.float64, 1e-10)],
    ids=["float32", "float64"],
)
@torch.no_grad()
def test_all_heads_equal_those_of_basic_unet_plus_plus(arguments, deep_supervision, dtype, atol):
    theirs, x = basic(**arguments, deep_supervision=deep_supervision)
    theirs, x = theirs.to(dtype).eval(), x.to(dtype)
    ours = from_basic_unet_plus_plus(theirs)
    for head, expected in zip(ours.all_heads(x), reversed(theirs(x)), strict=True):
        torch.testing.assert_close(head, expected, rtol=0, atol=atol)


@EVERY_BASIC
@SUPERVISION
def test_a_training_step_changes_both_networks_alike(arguments, deep_supervision):
    theirs, x = basic(**arguments, deep_supervision=deep_supervision)
    theirs, x = theirs.double(), x.double()
    ours = from_basic_unet_plus_plus(theirs)
    for net, heads in ((theirs, theirs(x)), (ours, ours.all_heads(x))):
        sum(head.square().mean() for head in heads).backward()
        torch.optim.SGD(net.parameters(), lr=1).step()
    expected = from_basic_unet_plus_plus(theirs).state_dict()
    torch.testing.assert_close(ours.state_dict(), expected, rtol=0, atol=1e-10)  # float64 rounding


def test_dropout_of_basic_unet_plus_plus_is_taken_over():
    theirs, x = basic(2, dropout=0.3)
    ours = from_basic_unet_plus_plus(theirs.eval())
    assert ours.arguments["dropout"] == 0.3
    torch.testing.assert_close(ours(x), theirs(x)[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_mode_of_basic_unet_plus_plus_is_kept(training):
    assert from_basic_unet_plus_plus(basic(2)[0].train(training)).training == training


def test_another_network_than_basic_unet_plus_plus_is_refused(tiny):
    message = "net must be monai.networks.nets.BasicUNetPlusPlus, got UNetPlusPlus."
    with pytest.raises(TypeError, match=re.escape(message)):
        from_basic_unet_plus_plus(tiny())


def test_a_norm_that_cannot_be_taken_over_is_refused():
    theirs, _ = basic(2)
    theirs.conv_0_0.conv_0.adn.N = nn.LayerNorm(4)
    message = "net has norm layers of type LayerNorm, which cannot be taken over."
    with pytest.raises(TypeError, match=re.escape(message)):
        from_basic_unet_plus_plus(theirs)
