# SPDX-License-Identifier: Apache-2.0
import copy
import re

import pytest
import torch
from monai.inferers import SlidingWindowInferer
from torch.nn import functional as F

from monai_unetpp import UNetPlusPlus, prune

SKIPS = ("dense", "short", "long")
EVEN, ODD = (16, 24), (17, 13)


# Parameter counts of the paper


def count(spatial_dims, depth=4, **arguments):
    """Parameters of the default widths down to row ``depth``, as the paper counts: no norm, one class."""
    with torch.device("meta"):
        net = UNetPlusPlus(
            spatial_dims, 1, 1, (32, 64, 128, 256, 512)[: depth + 1], strides=2, norm=None, **arguments
        )
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("spatial_dims", "level", "expected"),
    [
        pytest.param(2, 1, 100_961, id="2D-L1"),
        pytest.param(2, 2, 511_105, id="2D-L2"),
        pytest.param(2, 3, 2_204_961, id="2D-L3"),
        pytest.param(2, 4, 9_041_601, id="2D-L4"),
        pytest.param(3, 1, 294_049, id="3D-L1"),
        pytest.param(3, 2, 1_482_433, id="3D-L2"),
        pytest.param(3, 3, 6_389_601, id="3D-L3"),
        pytest.param(3, 4, 26_198_273, id="3D-L4"),
    ],
)
def test_every_level_has_the_parameter_count_of_the_paper(spatial_dims, level, expected):
    assert count(spatial_dims, level, deep_supervision=False) == expected


def test_unet_has_the_parameter_count_of_the_paper():
    assert count(2, skips="long", deep_supervision=False) == 7_759_521


def test_unet_plus_has_the_parameter_count_of_the_paper():
    assert count(2, skips="short", deep_supervision=False) == 8_728_257


def test_deep_supervision_costs_one_head_per_level_and_nothing_else():
    assert count(2) - count(2, deep_supervision=False) == 3 * (32 + 1)


# The equation


def all_heads_by_the_formula(net, x):
    """X^{i,j} = H([skips, U(X^{i+1,j-1})]), one concatenation a node, from the state dict alone."""
    state, arguments = net.state_dict(), net.arguments
    dims, depth = arguments["spatial_dims"], net.depth
    conv, up, pool = {
        2: (F.conv2d, F.conv_transpose2d, F.max_pool2d),
        3: (F.conv3d, F.conv_transpose3d, F.max_pool3d),
    }[dims]

    def h(x, name):
        def step(x, key):
            x = conv(x, state[f"{key}.conv.weight"], state[f"{key}.conv.bias"], padding="same")
            x = F.instance_norm(x, weight=state[f"{key}.adn.N.weight"], bias=state[f"{key}.adn.N.bias"])
            return F.leaky_relu(x, 0.1)

        first = step(x, f"{name}.convs.conv_0")
        if arguments["block"] == "dense":
            return step(torch.cat([x, first], dim=1), f"{name}.convs.conv_1")
        second = step(first, f"{name}.convs.conv_1")
        if arguments["block"] == "residual":
            return second + conv(x, state[f"{name}.convs.residual.conv.weight"])
        return second

    node = {(0, 0): h(x, "encoder.0")}
    for i in range(1, depth + 1):
        node[i, 0] = h(pool(node[i - 1, 0], arguments["strides"][i - 1], ceil_mode=True), f"encoder.{i}")
    for j in range(1, depth + 1):
        for i in range(depth - j + 1):
            key, stride = f"nodes.x_{i}_{j}", arguments["strides"][i]
            weight, bias = state[f"{key}.up.deconv.weight"], state[f"{key}.up.deconv.bias"]
            u = up(node[i + 1, j - 1], weight, bias, stride)
            for axis, size in enumerate(node[i, 0].shape[2:], start=2):
                u = u.narrow(axis, 0, size)
            columns = {"dense": range(j), "short": [j - 1], "long": [0]}[net.skips]
            node[i, j] = h(torch.cat([node[i, n] for n in columns] + [u], dim=1), key)
    return [
        conv(node[0, k], state[f"heads.{k - 1}.weight"], state[f"heads.{k - 1}.bias"])
        for k in range(depth, 0, -1)
    ]


@pytest.mark.parametrize("skips", SKIPS)
@pytest.mark.parametrize(
    ("size", "strides"),
    [
        pytest.param(EVEN, 2, id="2D"),
        pytest.param(ODD, 2, id="2D-odd"),
        pytest.param((16, 8, 16), 2, id="3D"),
        pytest.param((11, 9, 5), [(2, 2, 1), 2, (3, 2, 2)], id="3D-odd-anisotropic"),
    ],
)
def test_all_heads_follow_the_equation(tiny, skips, size, strides):
    net = tiny(len(size), skips=skips, strides=strides).double()
    x = torch.rand(2, 1, *size, dtype=torch.float64)
    for head, expected in zip(net.all_heads(x), all_heads_by_the_formula(net, x), strict=True):
        # float64: what is left is the order of summation over the pieces of a concatenation
        torch.testing.assert_close(head, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("block", ["residual", "dense"])
@pytest.mark.parametrize("size", [ODD, (11, 9, 5)], ids=["2D", "3D"])
def test_blocks_follow_the_equation_with_their_gradients(tiny, block, size):
    net = tiny(len(size), block=block).double()
    x = torch.rand(2, 1, *size, dtype=torch.float64)
    heads, expected = net(x), all_heads_by_the_formula(net, x)
    for head, other in zip(heads, expected, strict=True):
        torch.testing.assert_close(head, other, rtol=0, atol=1e-10)
    sum(head.square().mean() for head in heads).backward()
    for parameter in net.parameters():
        assert parameter.grad.abs().max() > 0
    reference = tiny(len(size), block=block).double()
    reference.load_state_dict(net.state_dict())
    weights = dict(reference.named_parameters())
    reference.state_dict = lambda: weights  # what the formula reads then has gradients
    sum(head.square().mean() for head in all_heads_by_the_formula(reference, x)).backward()
    for ours, theirs in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("block", ["residual", "dense"])
def test_blocks_are_pruned_and_scripted(tiny, block):
    net, x = tiny(3, block=block).eval(), torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        for k, head in zip((3, 2, 1), net.all_heads(x), strict=True):
            assert torch.equal(prune(net, k)(x), head)
        torch.testing.assert_close(torch.jit.script(net)(x), net(x), rtol=0, atol=1e-4)


def test_dropout_comes_after_the_norm(tiny):
    row, x = tiny(dropout=0.9).encoder[0], torch.rand(1, 1, *EVEN)
    assert (row(x) == 0).float().mean() > 0.8  # a norm after it would shift the zeros away


# Modes, levels, heads


def test_training_returns_the_logits_of_every_level():
    net = UNetPlusPlus(2, 1, 3, channels=(4, 8, 16), strides=2)
    assert [head.shape for head in net(torch.rand(2, 1, 16, 16))] == [(2, 3, 16, 16)] * 2


@pytest.mark.parametrize("skips", SKIPS)
def test_training_lists_the_deepest_head_first(tiny, skips):
    net, x = tiny(skips=skips), torch.rand(1, 1, *EVEN)
    heads = net.train()(x)
    net.eval()
    for level, head in zip((3, 2, 1), heads, strict=True):
        net.level = level
        assert torch.equal(net(x), head)


@pytest.mark.parametrize("skips", SKIPS)
def test_evaluation_returns_the_deepest_head_alone(tiny, skips):
    net, x = tiny(skips=skips).eval(), torch.rand(1, 1, *EVEN)
    assert torch.equal(net(x), net.all_heads(x)[0])


@pytest.mark.parametrize("skips", SKIPS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_without_deep_supervision_the_result_is_one_tensor_in_every_mode(tiny, skips, training):
    net, x = tiny(skips=skips, deep_supervision=False).train(training), torch.rand(1, 1, *EVEN)
    (only,) = net.all_heads(x)
    assert torch.equal(net(x), only)


def test_all_heads_is_the_same_list_in_any_mode_and_at_any_level(tiny):
    net, x = tiny(), torch.rand(1, 1, *EVEN)
    training = net.train().all_heads(x)
    net.eval().level = 1
    for head, expected in zip(net.all_heads(x), training, strict=True):
        assert torch.equal(head, expected)


def test_level_is_the_depth_by_default(tiny):
    assert tiny().level == 3


@pytest.mark.parametrize("level", [1, 2, 3], ids="L{}".format)
@pytest.mark.parametrize("skips", SKIPS)
def test_evaluation_computes_the_nodes_of_its_level_and_no_others(tiny, skips, level):
    net, computed = tiny(skips=skips).eval(), []
    for name, node in net.nodes.items():
        node.register_forward_hook(lambda *_, name=name: computed.append(name))
    net.level = level
    net(torch.rand(1, 1, *EVEN))
    assert computed == list(prune(net, level).nodes)


def test_level_does_not_change_training(tiny):
    net, x = tiny(), torch.rand(1, 1, *EVEN)
    before = net(x)
    net.level = 1
    assert all(torch.equal(head, expected) for head, expected in zip(net(x), before, strict=True))


@torch.no_grad()
def test_sliding_window_over_all_heads_stitches_each_level_as_if_alone(tiny):
    net, x = tiny().eval(), torch.rand(1, 1, 40, 27)
    inferer = SlidingWindowInferer(roi_size=(16, 16), sw_batch_size=2, overlap=0.5, mode="gaussian")
    for level, stitched in zip((3, 2, 1), inferer(x, net.all_heads), strict=True):
        net.level = level
        assert torch.equal(stitched, inferer(x, net))


# Names of the weights

LEAVES = ["conv.weight", "conv.bias", "adn.N.weight", "adn.N.bias"]
CONVS = [f"convs.conv_{n}.{leaf}" for n in (0, 1) for leaf in LEAVES]
KEYS = [
    *[f"encoder.{i}.{leaf}" for i in (0, 1, 2) for leaf in CONVS],
    *[f"nodes.x_0_1.{leaf}" for leaf in ["up.deconv.weight", "up.deconv.bias", *CONVS]],
    *[f"nodes.x_1_1.{leaf}" for leaf in ["up.deconv.weight", "up.deconv.bias", *CONVS]],
    *[f"nodes.x_0_2.{leaf}" for leaf in ["up.deconv.weight", "up.deconv.bias", *CONVS]],
    *["heads.0.weight", "heads.0.bias", "heads.1.weight", "heads.1.bias"],
]


@pytest.mark.parametrize("skips", SKIPS)
def test_state_dict_keys_are_frozen(tiny, skips):
    assert list(tiny(channels=(4, 6, 8), skips=skips).state_dict()) == KEYS


def test_mode_and_level_do_not_change_the_state_dict(tiny):
    net = tiny(channels=(4, 6, 8)).eval()
    net.level = 1
    assert list(net.state_dict()) == KEYS


@pytest.mark.parametrize("skips", SKIPS)
def test_weights_from_deep_supervision_fit_without_it(tiny, skips):
    supervised, x = tiny(skips=skips).eval(), torch.rand(1, 1, *EVEN)
    plain = UNetPlusPlus(2, 1, 2, (4, 6, 8, 10), 2, skips=skips, deep_supervision=False).eval()
    assert plain.load_state_dict(supervised.state_dict(), strict=False).missing_keys == []
    assert torch.equal(plain(x), supervised(x))


# Sizes, strides, kernels


@pytest.mark.parametrize("upsample", ["deconv", "nontrainable", "pixelshuffle"])
@pytest.mark.parametrize(
    "size",
    [EVEN, ODD, (9, 9), (17, 9, 11)],
    ids=lambda size: "x".join(map(str, size)),
)
def test_output_has_the_size_of_the_input(tiny, upsample, size):
    net = tiny(len(size), upsample=upsample)
    assert {head.shape for head in net(torch.rand(1, 1, *size))} == {(1, 2, *size)}


def test_strides_and_kernels_may_differ_per_row_and_axis(tiny):
    net = tiny(3, channels=(4, 6, 8), strides=[(2, 2, 1), 2], kernel_size=[(3, 3, 1), 3, (1, 5, 3)])
    shapes = []
    for row in net.encoder:
        row.register_forward_hook(lambda *args: shapes.append(tuple(args[-1].shape[2:])))
    net(torch.rand(1, 1, 16, 16, 8))
    assert shapes == [(16, 16, 8), (8, 8, 8), (4, 4, 4)]
    kernels = [tuple(row.convs.conv_0.conv.weight.shape[2:]) for row in net.encoder]
    assert kernels == [(3, 3, 1), (3, 3, 3), (1, 5, 3)]


@pytest.mark.parametrize("upsample", ["deconv", "nontrainable"])
def test_a_network_flat_along_an_axis_is_a_2d_network_on_every_slice(tiny, upsample):
    net = tiny(3, strides=[(2, 2, 1)] * 3, kernel_size=[(3, 3, 1)] * 4, norm=None, upsample=upsample)
    net, x = net.double().eval(), torch.rand(1, 1, 16, 13, 4, dtype=torch.float64)
    slices = [net(x[..., z : z + 1]) for z in range(4)]
    torch.testing.assert_close(net(x), torch.cat(slices, dim=-1), rtol=0, atol=1e-12)  # float64 rounding


def test_one_level_is_enough(tiny):
    net, x = tiny(channels=(4, 6)), torch.rand(1, 1, *ODD)
    (head,) = net(x)
    assert torch.equal(head, net.eval()(x))


# What the caller did wrong


WRONG = [
    ("block", "resnet", "block must be one of conv, residual, dense, got 'resnet'."),
    ("spatial_dims", 1, "spatial_dims must be 2 or 3, got 1."),
    ("deep_supervision", None, "deep_supervision must be True or False, got None."),
    ("use_checkpoint", 2, "use_checkpoint must be True or False, got 2."),
    ("in_channels", 0, "in_channels, out_channels must be positive ints, got [0, 2]."),
    ("out_channels", 2.0, "in_channels, out_channels must be positive ints, got [1, 2.0]."),
    ("channels", (4,), "channels must have at least 2 entries (one level), got (4,)."),
    ("channels", (4, 0), "channels must be positive ints, got (4, 0)."),
    ("channels", 4, "channels must be positive ints, got 4."),
    ("strides", (2, 2), "strides must be an int or have 3 entries for these channels, got 2: (2, 2)."),
    ("strides", [(2, 2, 1), 2, 2], "each entry of strides must be an int or 2 ints, got (2, 2, 1)."),
    ("channels", (True, 4), "channels must be positive ints, got (True, 4)."),
    ("strides", True, "strides must be positive ints, got (True, True)."),
    ("norm", [], "norm must be a name, (name, arguments) or None, got []."),
    ("act", "GEGLU", "act must keep the number of channels; geglu halves it."),
    ("strides", 0, "strides must be positive ints, got (0, 0)."),
    ("kernel_size", (3, 3), "kernel_size must be an int or have 4 entries for these channels, got 2"),
    ("kernel_size", 4, "kernel_size must be odd on every axis, got 4."),
    ("skips", "all", "skips must be one of dense, short, long, got 'all'."),
    ("dropout", 1, "dropout must be at least 0 and below 1, got 1."),
    ("dropout", -0.1, "dropout must be at least 0 and below 1, got -0.1."),
    (
        "dropout",
        ("dropout", {"p": 0.1}),
        "dropout must be at least 0 and below 1, got ('dropout', {'p': 0.1}).",
    ),
    ("up_channels", (4, 6), "up_channels must have one entry per row 0..2, so 3, got (4, 6)."),
    ("up_channels", (4, 6, -1), "up_channels must be positive ints, got (4, 6, -1)."),
    ("last_channels", 0, "last_channels must be positive ints, got [0]."),
]


@pytest.mark.parametrize(
    ("argument", "value", "message"), WRONG, ids=[f"{argument}={value}" for argument, value, _ in WRONG]
)
def test_constructor_names_the_wrong_argument(tiny, argument, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny(**{argument: value})


@pytest.mark.parametrize(
    ("level", "message"),
    [
        pytest.param(0, "level must be one of the network's heads, 1, 2, 3, got 0.", id="too-low"),
        pytest.param(4, "level must be one of the network's heads, 1, 2, 3, got 4.", id="too-high"),
        pytest.param(2.0, "level must be an int, got 2.0.", id="float"),
        pytest.param(True, "level must be an int, got True.", id="bool"),
    ],
)
def test_level_without_a_head_is_refused(tiny, level, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny().level = level


def test_level_is_refused_without_deep_supervision_and_says_why(tiny):
    message = "level must be one of the network's heads, 3 (deep_supervision is off), got 2."
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny(deep_supervision=False).level = 2


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        pytest.param(
            (1, 1, 16), "x must have 4 axes (B, C, *spatial), got 3: [1, 1, 16].", id="an-axis-missing"
        ),
        pytest.param((1, 1, 16, 16, 16), "x must have 4 axes (B, C, *spatial), got 5", id="an-axis-too-many"),
        pytest.param((1, 3, 16, 16), "x must have in_channels = 1 on axis 1, got 3.", id="channels"),
    ],
)
def test_forward_names_what_is_wrong_with_the_shape(tiny, shape, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny()(torch.rand(shape))


@pytest.mark.parametrize("by", [0, -1], ids=["that-works", "and-one-less-does-not"])
@pytest.mark.parametrize("strides", [2, 3, [2, (1, 3), 2]], ids=["even", "odd", "anisotropic"])
@pytest.mark.parametrize(
    ("norm", "training"),
    [("instance", True), ("instance", False), ("batch", True)],
    ids=["instance-training", "instance-evaluation", "batch-training"],
)
def test_too_short_axis_is_named_with_the_size(tiny, by, strides, norm, training):
    net, x = tiny(norm=norm, strides=strides).train(training), torch.rand(1, 1, 4, 5)
    message = rf"axis 3 of x is too short: \[4, 5\] leaves one voxel in row 3, where {norm} norm needs two"
    with pytest.raises(ValueError, match=message) as error:
        net(x)
    size = int(re.search(r"a size of at least (\d+) would work", str(error.value))[1])
    longer = torch.rand(1, 1, 4, size + by)
    if by == 0:
        net(longer)
    else:
        with pytest.raises(ValueError, match="axis 3 of x is too short"):
            net(longer)


def test_too_short_axis_of_three_is_named(tiny):
    with pytest.raises(ValueError, match="axis 4 of x is too short"):
        tiny(3)(torch.rand(1, 1, 4, 4, 4))


def test_group_norm_needs_no_more_than_a_voxel(tiny):
    assert len(tiny(norm=("group", {"num_groups": 2}))(torch.rand(1, 1, 4, 4))) == 3


def test_a_shallower_level_takes_shorter_axes(tiny):
    net = tiny().eval()
    net.level = 2
    assert net(torch.rand(1, 1, 5, 4)).shape == (1, 2, 5, 4)


def test_batch_norm_counts_the_voxels_of_the_whole_batch(tiny):
    assert len(tiny(norm="batch")(torch.rand(2, 1, 4, 4))) == 3


# Reproducibility


def test_same_seed_gives_the_same_outputs():
    outputs = []
    for _ in range(2):
        torch.manual_seed(3)
        net = UNetPlusPlus(2, 1, 2, channels=(4, 6, 8), strides=2, dropout=0.2)
        outputs.append(net(torch.rand(1, 1, *EVEN))[0])
    assert torch.equal(*outputs)


def test_permuting_the_batch_permutes_the_output(tiny):
    net, x = tiny().double().eval(), torch.rand(3, 1, *ODD, dtype=torch.float64)
    order = [2, 0, 1]
    torch.testing.assert_close(net(x[order]), net(x)[order], rtol=0, atol=1e-12)  # float64 rounding


def test_a_deep_copy_computes_the_same(tiny):
    net, x = tiny().eval(), torch.rand(1, 1, *EVEN)
    assert torch.equal(copy.deepcopy(net)(x), net(x))


def test_weights_survive_the_disk(tiny, tmp_path):
    net, x = tiny(norm="batch").eval(), torch.rand(1, 1, *EVEN)
    torch.save(net.state_dict(), tmp_path / "model.pt")
    loaded = UNetPlusPlus(2, 1, 2, (4, 6, 8, 10), strides=2, norm="batch").eval()
    loaded.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(loaded(x), net(x))
