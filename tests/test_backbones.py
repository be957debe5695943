# SPDX-License-Identifier: Apache-2.0
"""MONAI's backbones as column 0: the same feature maps, any depth, every level still to be had."""

import re

import pytest
import torch
from monai.networks.nets.flexible_unet import FLEXUNET_BACKBONE
from monai.networks.utils import eval_mode

from monai_unetpp import UNetPlusPlus, prune
from monai_unetpp.network.backbones import backbone_stages, backbone_widths

NAMES = ["resnet10", "resnet50", "efficientnet-b0"]

pytestmark = pytest.mark.slow


def network(name, dims=2, depth=5, **settings):
    torch.manual_seed(0)
    return UNetPlusPlus(dims, 1, 2, (4, 6, 8, 8, 8, 8)[: depth + 1], strides=2, encoder=name, **settings)


@pytest.mark.parametrize("name", NAMES)
def test_stages_make_the_maps_that_monai_makes(name):
    entry, x = FLEXUNET_BACKBONE.register_dict[name], torch.rand(1, 1, 64, 64)
    settings = {"spatial_dims": 2, "in_channels": 1, "pretrained": False}
    torch.manual_seed(1)
    theirs = entry["type"](**{**entry["parameter"], **settings})
    torch.manual_seed(1)
    ours = backbone_stages(name, 2, 1)
    with eval_mode(theirs, *ours):
        y = x
        for stage, wanted in zip(ours, theirs(x), strict=True):
            y = stage(y)
            torch.testing.assert_close(y, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FLEXUNET_BACKBONE.register_dict)
def test_widths_are_those_of_the_maps(name):
    with torch.device("meta"):
        y = torch.empty(1, 1, 64, 64)
        for width, stage in zip(backbone_widths(name), backbone_stages(name, 2, 1), strict=True):
            y = stage.eval()(y)
            assert y.shape[1] == width


@pytest.mark.parametrize("name", ["resnet10", "efficientnet-b0"])
@pytest.mark.parametrize(
    ("depth", "size"), [(5, (64, 96)), (5, (71, 45)), (3, (32, 16, 17))], ids=["2D", "2D-odd", "3D"]
)
def test_levels_are_pruned_and_scripted(name, depth, size):
    net, x = network(name, len(size), depth).eval(), torch.rand(1, 1, *size)
    with torch.no_grad():
        heads = net.all_heads(x)
        assert [head.shape for head in heads] == [(1, 2, *size)] * depth
        for level, head in zip(range(depth, 0, -1), heads, strict=True):
            small = prune(net, level)
            assert torch.equal(small(x), head)
            assert len(small.encoder) == level + 1
        torch.testing.assert_close(torch.jit.script(net)(x), net(x), rtol=0, atol=1e-4)
        for head, other in zip(net.diagonals(x), heads[::-1], strict=True):
            assert torch.equal(head, other)


@pytest.mark.parametrize("name", ["resnet10", "efficientnet-b0"])
@pytest.mark.parametrize("use_checkpoint", [False, True])
def test_every_parameter_is_trained(name, use_checkpoint):
    net = network(name, depth=3, use_checkpoint=use_checkpoint)
    sum(head.square().mean() for head in net(torch.rand(2, 1, 32, 32))).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "vgg"}, "encoder must be one of efficientnet-b0, "),
        ({"channels": (2,) * 7}, "channels must have at most 6 entries, row 0 and the 5 feature maps"),
        ({"strides": 4}, "strides must be 2, those of resnet10, got 4"),
        ({"pretrained": True}, "pretrained must be False: resnet10 has weights for spatial_dims=3"),
        ({"pretrained": True, "encoder": None}, "pretrained must be False without an encoder"),
    ],
)
def test_errors_say_what_would_work(settings, message):
    arguments = {"channels": (4, 6, 8), "strides": 2, "encoder": "resnet10", **settings}
    with pytest.raises(ValueError, match=re.escape(message)):
        UNetPlusPlus(2, 1, 2, **arguments)


def test_one_voxel_is_too_little_for_batch_norm():
    net = network("resnet10", norm=None)
    with pytest.raises(ValueError, match="where batch norm needs two"):
        net.train()(torch.rand(1, 1, 32, 32))
    net.eval()(torch.rand(1, 1, 32, 32))
