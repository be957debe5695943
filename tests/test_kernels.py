# SPDX-License-Identifier: Apache-2.0
"""What monai_unetpp.network.kernels does for time and memory must not show in any result."""

import copy
from functools import partial

import pytest
import torch
from monai.data import MetaTensor
from monai.networks.blocks import ADN
from monai.networks.nets import BasicUNetPlusPlus
from monai.utils import set_determinism
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from monai_unetpp import UNetPlusPlus, from_basic_unet_plus_plus, prune
from monai_unetpp.levels.cost import peak_memory
from monai_unetpp.network import kernels
from monai_unetpp.network.blocks import Up
from monai_unetpp.network.kernels.cpu import norm, onednn, winograd
from monai_unetpp.network.kernels.recompute import activate

BY_DIMS = [pytest.param(2, (1, 1, 20, 17), id="2D"), pytest.param(3, (1, 1, 12, 10, 9), id="3D")]
NORMS = ["instance", ("group", {"num_groups": 2}), "batch", None]
NORM_IDS = ["instance", "group", "batch", "none"]


def network(spatial_dims, dtype=torch.float64, **arguments):
    torch.manual_seed(0)
    return UNetPlusPlus(spatial_dims, 1, 2, (4, 6, 8), strides=2, **arguments).to(dtype)


def gradients(net, x):
    """Logits of all heads, and the gradients that they leave: of the input, then of every parameter."""
    x = x.clone().requires_grad_()
    net.zero_grad()
    heads = net.all_heads(x)
    sum((head**2).sum() * (n + 1) for n, head in enumerate(heads)).backward()
    return [*heads, x.grad, *(parameter.grad for parameter in net.parameters())]


def plain(net, x):
    """The same by torch's own operators."""
    with kernels.plain():
        return gradients(net, x)


@pytest.mark.parametrize("use_checkpoint", [False, True], ids=["plain", "checkpoint"])
@pytest.mark.parametrize("norm", NORMS, ids=NORM_IDS)
@pytest.mark.parametrize(("spatial_dims", "shape"), BY_DIMS)
def test_outputs_and_gradients_are_those_of_plain_torch(spatial_dims, shape, norm, use_checkpoint):
    net, x = network(spatial_dims, norm=norm, use_checkpoint=use_checkpoint), torch.rand(shape).double()
    for ours, theirs in zip(gradients(net, x), plain(net, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)  # float64 rounding


@pytest.mark.parametrize("batch", [1, 2])
def test_float32_outputs_and_gradients_are_those_of_plain_torch(batch):
    net, x = network(3, torch.float32), torch.rand(batch, 1, 12, 10, 9)
    ours, theirs = (
        torch.cat([tensor.flatten() for tensor in tensors]) for tensors in (gradients(net, x), plain(net, x))
    )
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()  # float32, summed in another order


def test_gradients_are_those_of_basic_unet_plus_plus():
    torch.manual_seed(0)
    theirs = BasicUNetPlusPlus(3, 1, 2, (4, 4, 6, 8, 10, 4), deep_supervision=True).double()
    ours, x = from_basic_unet_plus_plus(theirs), torch.rand(1, 1, 32, 32, 32).double()
    sum((head**2).sum() for head in theirs(x)).backward()
    sum((head**2).sum() for head in ours(x)).backward()
    wanted = from_basic_unet_plus_plus(_with_gradients_as_weights(theirs)).state_dict()
    for name, parameter in ours.named_parameters():
        # a bias before a norm has no gradient but rounding: of 32^3 voxels, each around 1e-13
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-9, atol=1e-9)


def _with_gradients_as_weights(net):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(parameter.grad)
    return net


@pytest.mark.parametrize("frozen", ["encoder", "nodes", "heads"])
def test_frozen_parameters_get_no_gradient_and_the_others_keep_theirs(frozen):
    net, x = network(2), torch.rand(1, 1, 16, 16).double()
    wanted = dict(zip(dict(net.named_parameters()), gradients(net, x)[3:], strict=True))
    getattr(net, frozen).requires_grad_(False)
    gradients(net, x)
    for name, parameter in net.named_parameters():
        if name.startswith(frozen):
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, wanted[name])


def test_dropout_is_drawn_once():
    net, x = network(2, dropout=0.5), torch.rand(1, 1, 16, 16).double()
    torch.manual_seed(1)
    with kernels.use("memory"):  # which draws in the order of plain torch, not of channels last
        ours = gradients(net, x)
    torch.manual_seed(1)
    for a, b in zip(ours, plain(net, x), strict=True):
        torch.testing.assert_close(a, b)


def test_running_statistics_move_once_a_step():
    ours, theirs = network(2, norm="batch"), network(2, norm="batch")
    x = torch.rand(2, 1, 16, 16).double()
    gradients(ours, x)
    plain(theirs, x)
    for name, value in ours.named_buffers():
        torch.testing.assert_close(value, dict(theirs.named_buffers())[name])


def test_training_is_deterministic():
    def trained():
        set_determinism(0)
        net = network(3, torch.float32)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            sum(head.square().mean() for head in net(torch.rand(1, 1, 12, 10, 9))).backward()
            optimizer.step()
        return net.state_dict()

    first, second = trained(), trained()
    set_determinism(None)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("use_checkpoint", [False, True], ids=["plain", "checkpoint"])
def test_mixed_precision_gives_gradients_near_those_of_float32(use_checkpoint):
    net, x = network(2, torch.float32, use_checkpoint=use_checkpoint), torch.rand(2, 1, 32, 32)
    wanted = gradients(net, x)[3:]
    with torch.autocast("cpu", torch.bfloat16):
        heads = net.all_heads(x)
    net.zero_grad()
    sum((head.float() ** 2).sum() * (n + 1) for n, head in enumerate(heads)).backward()
    got = torch.cat([parameter.grad.flatten() for parameter in net.parameters()])
    wanted = torch.cat([grad.flatten() for grad in wanted])
    assert nn.functional.cosine_similarity(got, wanted, dim=0) > 0.99  # bfloat16 has 8 bits


@pytest.mark.parametrize("dims", [2, 3])
def test_training_in_mixed_precision_is_that_of_plain_torch_bit_for_bit(dims):
    """There our kernels take longer; inference keeps them, with gradients off."""
    net, x = network(dims, torch.float32), torch.rand(2, 1, *[16] * dims)
    found = []
    for choice in ("auto", "plain"):
        net.zero_grad()
        with kernels.use(choice), torch.autocast("cpu", torch.bfloat16):
            heads = net.train()(x)
            sum(head.float().square().sum() for head in heads).backward()
        found.append([*heads, *(parameter.grad.clone() for parameter in net.parameters())])
    assert all(torch.equal(ours, plain) for ours, plain in zip(*found, strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        assert not kernels.dispatch.applies(x)
        with torch.no_grad():
            assert kernels.dispatch.applies(x)


class Convolutions(TorchDispatchMode):
    """Counts convolutions."""

    takes_any_operator = True
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "convolution" in str(func) and "backward" not in str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("spatial_dims", [2, 3], ids="{}D".format)
def test_checkpointing_computes_forward_once_and_takes_less_memory(spatial_dims):
    """To look into the graph for how a map is made again made it there and then, frame by frame."""
    x, counts, peaks = torch.rand(1, 1, *[96 // spatial_dims] * spatial_dims), {}, {}
    for use_checkpoint in (False, True):
        net = network(spatial_dims, torch.float32, use_checkpoint=use_checkpoint)
        with Convolutions() as counted:
            net.all_heads(x)
        counts[use_checkpoint] = counted.count
        peaks[use_checkpoint] = peak_memory(partial(gradients, net, x), "cpu")
    assert counts[True] < 2 * counts[False]
    assert peaks[True] < peaks[False]


def test_weight_gradient_from_contiguous_copies_is_that_of_plain_torch(monkeypatch):
    monkeypatch.setattr(onednn, "weight_gradient_is_slow", lambda x: x.dim() == 4)
    net, x = network(2, torch.float32), torch.rand(2, 1, 20, 17)
    for found, wanted in zip(gradients(net, x), plain(net, x), strict=True):
        if wanted.dim() > 1:  # the others are biases before a norm, whose gradients are zero but for rounding
            assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max().clamp(min=10)


def test_what_is_saved_on_another_device_gives_the_same_gradients():
    net, x = network(2), torch.rand(1, 1, 20, 17).double()
    wanted = gradients(net, x)
    with torch.autograd.graph.save_on_cpu():
        found = gradients(net, x)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_backward_keeps_one_map_for_each_convolution():
    """Two for each convolution, and the joined skips, is what the plain form keeps."""
    net, x = network(2, torch.float32), torch.rand(1, 1, 64, 64)
    kept = {}

    def pack(tensor):
        if tensor.dim() == 4 and tensor.shape[2:] == x.shape[2:] and tensor.shape[1] == 4:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net(x)
    assert len(kept) == 2 * 3  # two convolutions in each of X^{0,0}, X^{0,1}, X^{0,2}


def test_meta_tensor_in_is_meta_tensor_out():
    x = MetaTensor(torch.rand(1, 1, 16, 16), meta={"filename_or_obj": "ct.nii.gz"})
    net = network(2, torch.float32)
    heads = [*net(x), net.eval()(x)]
    assert all(isinstance(head, MetaTensor) for head in heads)
    assert all(head.meta["filename_or_obj"] == "ct.nii.gz" for head in heads)


def test_second_derivative_is_refused():
    net, x = network(2), torch.rand(1, 1, 16, 16).double().requires_grad_()
    with pytest.raises(RuntimeError, match="create_graph must be off"):
        torch.autograd.grad(net(x)[0].sum(), x, create_graph=True)


# The kernels one by one, against torch in double precision


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last_3d)


# whole tiles, and what is left over
SIZES = [(4, 6, 5), (5, 6, 7), (7, 3, 4), (13, 4, 4), (16, 3, 5), (22, 5, 5)]


@pytest.mark.parametrize("workspace", [2**22, 1], ids=["one-slab", "slabs"])
@pytest.mark.parametrize("channels", [(3,), (2, 5)], ids=["one-map", "two-maps"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["double", "single"]
)
def test_winograd_equals_plain_convolution(dtype, tolerance, size, channels, workspace, monkeypatch):
    monkeypatch.setattr(winograd, "_WORKSPACE", workspace)
    torch.manual_seed(0)
    maps = [channels_last(torch.randn(2, c, *size)) for c in channels]
    weight, bias, grad = torch.randn(4, sum(channels), 3, 3, 1), torch.randn(4), torch.randn(2, 4, *size)
    joined, kernel = torch.cat(maps, 1).double(), weight.double().requires_grad_()
    wanted = nn.functional.conv3d(joined, kernel, bias.double(), padding=(1, 1, 0))
    wanted.backward(grad.double())

    weights = weight.to(dtype).split(channels, dim=1)
    got = winograd.convolve([x.to(dtype) for x in maps], weights, bias.to(dtype))
    gradients = [
        winograd.weight_gradient(x.to(dtype), channels_last(grad).to(dtype), w)
        for x, w in zip(maps, weights, strict=True)
    ]
    for ours, theirs in ((got, wanted.detach()), (torch.cat(gradients, 1), kernel.grad)):
        assert (ours - theirs).norm() < tolerance * theirs.norm()
    assert got.is_contiguous(memory_format=torch.channels_last_3d)


def test_wide_network_equals_plain_torch():
    """Wide and large enough for Winograd in every row.

    Smooth, with nothing to pool: at the kink of a ReLU and between two equal voxels, rounding decides where a
    gradient goes.
    """
    torch.manual_seed(0)
    net, x = UNetPlusPlus(3, 1, 2, (32, 32, 48), strides=1, act="swish"), torch.rand(1, 1, 18, 20, 17)
    assert winograd.pays(torch.empty(1, 32, 18, 20, 17), net.encoder[0].convs.conv_1.conv.weight)
    ours, theirs = (
        torch.cat([tensor.flatten() for tensor in tensors]) for tensors in (gradients(net, x), plain(net, x))
    )
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()


def test_pruned_wide_network_equals_head_bit_for_bit():
    net = UNetPlusPlus(3, 1, 2, (32, 32, 48), strides=2).eval()
    x = torch.rand(1, 1, 18, 20, 17)
    with torch.inference_mode():
        for level, head in zip((2, 1), net.all_heads(x), strict=True):
            assert torch.equal(prune(net, level)(x), head)


@pytest.mark.parametrize("stride", [2, (2, 2, 1), (1, 3, 2)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_deconvolution_and_its_gradients_are_those_of_torch(stride, bias):
    ours = Up(3, 3, 5, stride, mode="deconv", bias=bias)
    theirs = nn.ConvTranspose3d(3, 5, stride, stride, bias=bias).double()
    theirs.load_state_dict(ours.deconv.state_dict())
    x = channels_last(torch.rand(2, 3, 4, 5, 6))
    results = []
    for module, y in ((ours, x), (theirs, x.double())):
        y.requires_grad_()
        out = module(y)
        out.square().sum().backward()
        results.append([out, y.grad, *(parameter.grad for parameter in module.parameters())])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("act", "tolerance"),
    [
        # at a kink, rounding decides which of two gradients a voxel has
        pytest.param("relu", 1e-2, id="relu"),
        pytest.param("prelu", 1e-2, id="prelu"),
        pytest.param("swish", 1e-5, id="swish"),
        pytest.param("mish", 1e-5, id="mish"),
        pytest.param(None, 1e-5, id="none"),
    ],
)
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("mean", [0, 3], ids=["centred", "far"])
def test_norm_and_activation_and_their_gradients_are_exact(mean, affine, act, tolerance, monkeypatch):
    """Torch's own group norm in channels last is wrong by 1e-4 where the mean is not zero."""
    monkeypatch.setattr(norm, "_CACHED", 2**12)  # several slabs
    adn = ADN("NA", 8, act, ("instance", {"affine": affine}), 3)
    theirs = copy.deepcopy(adn).double()
    x, grad = channels_last(torch.randn(2, 8, 20, 24, 16) + mean), torch.randn(2, 8, 20, 24, 16)
    results = []
    for module, y, g in ((adn, x, channels_last(grad)), (theirs, x.double(), grad.double())):
        y.requires_grad_()
        out = activate(module, y, may_overwrite=False)
        out.backward(g)
        results.append([out, y.grad, *(parameter.grad for parameter in module.parameters())])
    for got, wanted in zip(*results, strict=True):
        assert (got - wanted).norm() < tolerance * max(wanted.norm(), 1)
    with torch.no_grad():
        assert (activate(adn, x.detach().clone(), may_overwrite=True) - results[1][0]).abs().max() < 1e-5


def test_statistics_are_exact_over_a_large_flat_background():
    """Running sums in single precision over so many equal voxels are wrong in the fifth digit."""
    torch.manual_seed(0)
    x = channels_last((torch.randn(2, 8, 33, 64, 65) + 4).clamp_(min=3.5))
    mean, rstd = norm.statistics(x, 0)
    variance, wanted = torch.var_mean(x.double(), (2, 3, 4), correction=0, keepdim=True)
    assert (mean / wanted - 1).abs().max() < 1e-6
    assert (rstd.double().square() * variance - 1).abs().max() < 2e-6
