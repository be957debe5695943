# SPDX-License-Identifier: Apache-2.0
"""Whatever is done to a module of the network from outside, the result is that of plain torch."""

import pytest
import torch
from monai.networks.utils import convert_to_torchscript
from monai.visualize import GradCAM, OcclusionSensitivity
from processes import apart, python
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parametrizations, spectral_norm
from torch.nn.utils import prune as torch_prune
from torch.optim.swa_utils import AveragedModel
from torch.utils.flop_counter import FlopCounterMode

from monai_unetpp import UNetPlusPlus
from monai_unetpp.network import kernels
from monai_unetpp.network.blocks import JointConv, Node, TwoConv
from monai_unetpp.network.kernels import dispatch
from monai_unetpp.network.kernels.cpu import onednn
from monai_unetpp.network.kernels.gpu import norm as gpu

SHAPES = {2: (2, 1, 20, 17), 3: (1, 1, 12, 10, 9)}
BY_DIMS = pytest.mark.parametrize("spatial_dims", [2, 3], ids="{}D".format)
CLOSE = {"rtol": 1e-3, "atol": 1e-4}  # float32, summed in another order and magnified by the norms


def network(spatial_dims=3, **arguments):
    """Smooth, so that rounding decides nothing: no kink of a ReLU, no two equal voxels to pool."""
    torch.manual_seed(0)
    return UNetPlusPlus(spatial_dims, 1, 2, (4, 6, 8), **{"strides": 2, "act": "swish", **arguments})


def step(net, x):
    """Logits of all heads, and the gradient of every parameter."""
    net.zero_grad()
    heads = net.train()(x)
    sum(head.square().mean() * (n + 1) for n, head in enumerate(heads)).backward()
    return [*heads, *(parameter.grad for parameter in net.parameters())]


def assert_as_plain(build, x):
    """A training step and an evaluation give what they give with torch's own operators."""
    ours, theirs = build(), build()
    with kernels.plain():
        wanted = [*step(theirs, x), theirs.eval()(x)]
    for got, expected in zip([*step(ours, x), ours.eval()(x)], wanted, strict=True):
        torch.testing.assert_close(got, expected, **CLOSE)


# The switch


def test_plain_calls_every_module_that_computes():
    net, called = network(), set()
    for name, module in net.named_modules():
        if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            module.register_forward_hook(lambda *_, name=name: called.add(name))
    with kernels.plain():
        net(torch.rand(SHAPES[3]))
    assert called == {
        name for name, m in net.named_modules() if not isinstance(m, (nn.ModuleList, nn.ModuleDict))
    }


@pytest.mark.parametrize("chosen", ["memory", "auto"])
@BY_DIMS
def test_kernels_give_what_plain_torch_gives(spatial_dims, chosen):
    with kernels.use(chosen):
        assert_as_plain(lambda: network(spatial_dims), torch.rand(SHAPES[spatial_dims]))


@pytest.mark.parametrize(("chosen", "applies"), [("plain", False), ("memory", True), ("auto", False)])
def test_a_device_that_was_not_measured_gets_plain_torch(chosen, applies):
    with kernels.use(chosen):
        assert dispatch.applies(torch.empty(1, 1, 4, 4, device="meta")) == applies


@pytest.mark.parametrize(
    ("capability", "triton", "hip", "expected"),
    [
        ((9, 0), True, None, True),
        ((8, 0), True, None, True),
        ((7, 5), True, None, False),
        ((9, 0), False, None, False),
        ((9, 0), True, "6.4", False),
    ],
    ids=["Hopper", "Ampere", "Turing", "without Triton", "AMD"],
)
def test_kernels_for_gpus_are_those_of_matrix_units_and_triton(
    monkeypatch, capability, triton, hip, expected
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(dispatch, "find_spec", lambda _: triton or None)
    assert dispatch._is_measured.__wrapped__(0) == expected


def test_a_kernel_for_gpus_that_fails_is_named_and_done_without(caplog):
    assert not gpu.available.__wrapped__(0) or torch.cuda.is_available()
    assert torch.cuda.is_available() or "The Triton kernels for this GPU fail: " in caplog.text


def test_memory_keeps_fewer_bytes_for_backward_than_plain():
    def kept(chosen):
        storages = {}

        def pack(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with kernels.use(chosen), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            heads = net(torch.rand(1, 1, 64, 64))
        return sum(storages.values()) + 0 * len(heads)

    net = network(2)
    assert kept("memory") < 0.6 * kept("plain")


@pytest.mark.parametrize(
    ("value", "expected"),
    [("plain", "plain"), ("memory", "memory"), ("", "must be one of auto, memory, plain, got ''")],
    ids=["plain", "memory", "wrong"],
)
def test_environment_chooses_the_kernels(value, expected):
    code = "from monai_unetpp.network.kernels import dispatch; print(dispatch._in_use)"
    run = python("-c", code, MONAI_UNETPP_KERNELS=value)
    assert expected in run.stdout + run.stderr


def test_unknown_kernels_are_refused():
    with pytest.raises(ValueError, match="kernels must be one of auto, memory, plain, got 'fast'"):
        kernels.use("fast").__enter__()


def test_a_private_operator_that_is_gone_is_named_and_done_without(monkeypatch, caplog):
    def missing():
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_convolution_pointwise_'")

    onednn.available.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(onednn._CHECKS, "mkldnn::_convolution_pointwise_", missing)
        assert_as_plain(network, torch.rand(SHAPES[3]))
        assert not onednn.available()
    onednn.available.cache_clear()
    (line,) = {record.message for record in caplog.records}
    assert "mkldnn::_convolution_pointwise_ of torch" in line
    assert torch.__version__ in line
    assert onednn.available()


def test_a_private_operator_that_is_wrong_is_done_without(monkeypatch, caplog):
    monkeypatch.setitem(onednn._CHECKS, "x", lambda: (torch.ones(2), torch.zeros(2)))
    assert not onednn.available.__wrapped__()
    assert "differs from the public one by up to 1" in caplog.text


# Hooks


TAKES_A_LIST = (JointConv, TwoConv, Node)


def modules_of(net):
    kinds = (nn.ModuleList, nn.ModuleDict)
    named = [(name, module) for name, module in net.named_modules() if name and not isinstance(module, kinds)]
    return [name for name, module in named if not isinstance(module, nn.Sequential) or len(module)]


@pytest.mark.parametrize("use_checkpoint", [False, True], ids=["plain", "checkpoint"])
def test_hooks_on_any_module_see_once_a_step_what_a_plain_network_shows(use_checkpoint):
    x = torch.rand(SHAPES[2]).requires_grad_()

    def watch(name, chosen):
        net, seen = network(2, use_checkpoint=use_checkpoint), []
        module = net.get_submodule(name)
        module.register_forward_pre_hook(lambda _, inputs: seen.append(("pre", inputs)))
        module.register_forward_hook(lambda _, inputs, output: seen.append(("forward", inputs, output)))
        if not isinstance(module, TAKES_A_LIST):  # whose backward hooks torch does not support
            module.register_full_backward_hook(lambda _, gi, go: seen.append(("backward", gi, go)))
        with kernels.use(chosen):
            step(net, x)
        return seen

    for name in modules_of(network(2)):
        wanted, got = watch(name, "plain"), watch(name, "auto")
        assert [each[0] for each in got] == [each[0] for each in wanted], name
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(flat(a[1:]), flat(b[1:]), **CLOSE, msg=lambda m, n=name: f"{n}: {m}")


def flat(tree):
    """The tensors of nested tuples and lists."""
    if isinstance(tree, torch.Tensor):
        return [tree.detach()]
    return [tensor for each in tree or () for tensor in flat(each)]


def test_neighbours_of_a_module_with_a_hook_stay_fast(monkeypatch):
    net, count = network(), []
    convolve = onednn.convolve_plain
    monkeypatch.setattr(onednn, "convolve_plain", lambda *a: count.append(1) or convolve(*a))
    net.eval()(torch.rand(SHAPES[3]))
    before = len(count)
    net.encoder[1].convs.conv_0.conv.register_forward_hook(lambda *_: None)
    net(torch.rand(SHAPES[3]))
    assert len(count) - before == before - 1


def test_a_hook_may_change_what_a_module_returns():
    def hooked():
        net = network()
        net.nodes["x_0_1"].convs.conv_0.register_forward_hook(lambda _, __, output: output * 2)
        net.encoder[0].register_forward_hook(lambda _, __, output: output.mul_(0.5))
        return net

    assert_as_plain(hooked, torch.rand(SHAPES[3]))


def test_what_a_hook_keeps_of_a_convolution_is_not_overwritten():
    net, kept = network().eval(), {}
    conv = net.encoder[0].convs.conv_0.conv
    conv.register_forward_hook(lambda _, inputs, output: kept.update(x=inputs[0], y=output))
    with torch.no_grad():
        net(torch.rand(SHAPES[3]))
        torch.testing.assert_close(kept["y"], conv._conv_forward(kept["x"], conv.weight, conv.bias))


@pytest.mark.parametrize("layer", ["nodes.x_0_2", "nodes.x_0_1", "heads.1"])
def test_grad_cam_sees_a_layer(layer):
    net, x = network().eval(), torch.rand(SHAPES[3])
    with kernels.plain():
        wanted = GradCAM(net, layer)(x, class_idx=1)
    torch.testing.assert_close(GradCAM(net, layer)(x, class_idx=1), wanted, **CLOSE)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")  # MONAI's own
def test_occlusion_sensitivity_is_that_of_a_plain_network():
    pool = nn.Sequential(net := network(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())  # it wants a classifier
    pool.eval()
    x = torch.rand(1, 1, 20, 17)
    occlude = OcclusionSensitivity(nn_module=pool, mask_size=4, n_batch=8, verbose=False)
    with kernels.plain():
        wanted, _ = occlude(x)
    torch.testing.assert_close(occlude(x)[0], wanted, **CLOSE)
    assert not net.training


def hooks_under_distributed_data_parallel(folder):
    seen = []
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=0, world_size=1)
    net = network(2)
    net.nodes["x_0_2"].convs.conv_1.conv.register_forward_hook(lambda *_: seen.append(1))
    parallel = nn.parallel.DistributedDataParallel(net)
    sum(head.mean() for head in parallel(torch.rand(SHAPES[2]))).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert seen == [1]


def test_hooks_fire_under_distributed_data_parallel(tmp_path):
    apart(hooks_under_distributed_data_parallel, str(tmp_path))


# Modules that are changed, wrapped, exchanged


class LoRA(nn.Module):
    """A frozen layer and a trained one beside it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        kind = nn.Conv2d if layer.weight.dim() == 4 else nn.Conv3d
        self.extra = kind(layer.in_channels, layer.out_channels, 1)

    def forward(self, x):
        return self.layer(x) + self.extra(x)


class ChannelShare(nn.Module):
    """No elementwise activation: a share of the sum over axis 2."""

    def forward(self, x):
        return x.sigmoid() / x.sigmoid().sum(dim=2, keepdim=True)


def change_conv(change):
    def apply(net):
        block = net.nodes["x_0_1"].convs.conv_0
        block.conv = change(block.conv)
        net.heads["0"] = change(net.heads["0"])

    return apply


def grouped(conv):
    return type(conv)(conv.in_channels, conv.out_channels, conv.kernel_size, padding=conv.padding, groups=2)


def exchange_activation(net):
    net.encoder[0].convs.conv_0.adn.A = ChannelShare()


def exchange_norm(net):
    net.encoder[0].convs.conv_0.adn.N = nn.BatchNorm3d(4)


def exchange_pooling(net):
    net.encoder[1].pool = nn.AvgPool3d(2, ceil_mode=True)


CHANGES = {
    "torch-prune": change_conv(lambda conv: torch_prune.l1_unstructured(conv, "weight", 0.5)),
    "old-spectral-norm": change_conv(spectral_norm),
    "spectral-norm": change_conv(parametrizations.spectral_norm),
    "weight-norm": change_conv(parametrizations.weight_norm),
    "lora": change_conv(LoRA),
    "groups": lambda net: change_conv(lambda c: grouped(c) if c.in_channels % 2 == 0 else c)(net),
    "activation": exchange_activation,
    "norm": exchange_norm,
    "pooling": exchange_pooling,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_module_is_called(change):
    def changed():
        net = network()
        change(net)
        return net

    assert_as_plain(changed, torch.rand(SHAPES[3]))


def test_weights_that_torch_prunes_stay_pruned_over_several_steps():
    net, x = network(), torch.rand(SHAPES[3])
    conv = net.nodes["x_0_1"].convs.conv_0.conv
    torch_prune.l1_unstructured(conv, "weight", 0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        step(net, x)
        optimizer.step()
    assert (conv.weight_orig.grad[conv.weight_mask == 0] == 0).all()


def test_averaged_model_computes_as_plain():
    net, x = network(), torch.rand(SHAPES[3])
    averaged = AveragedModel(net)
    averaged.update_parameters(net)
    with kernels.plain():
        wanted = averaged.eval()(x)
    torch.testing.assert_close(averaged(x), wanted, **CLOSE)


# What only plain torch can do


def test_plain_has_a_second_derivative():
    net, x = network(2).double(), torch.rand(SHAPES[2]).double().requires_grad_()
    with kernels.plain():
        (gradient,) = torch.autograd.grad(net(x)[0].sum(), x, create_graph=True)
        gradient.square().sum().backward()  # a gradient penalty
    assert all(p.grad is not None for name, p in net.named_parameters() if name.startswith("encoder"))


@BY_DIMS
def test_torch_func_computes_gradients_and_batches(spatial_dims):
    net, x = network(spatial_dims).eval(), torch.rand(SHAPES[spatial_dims])
    weights = dict(net.named_parameters())

    def loss(weights, x):
        return functional_call(net, weights, (x[None],)).square().mean()

    per_sample = vmap(grad(loss), in_dims=(None, 0))(weights, x)
    net.zero_grad()
    net(x[:1]).square().mean().backward()
    for name, parameter in net.named_parameters():
        wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(per_sample[name][0], wanted, **CLOSE)


def test_operators_are_counted_as_those_of_a_plain_network():
    net, x = network().eval(), torch.rand(SHAPES[3])

    def count():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(x)
        return counter.get_total_flops()

    with kernels.plain():
        wanted = count()
    assert count() == wanted > 1e6


@BY_DIMS
def test_monai_verifies_torchscript_at_its_default_tolerance(spatial_dims):
    """It allows no absolute difference, so near 0 none from another order of summation: plain has none."""
    net, x = network(spatial_dims), torch.rand(SHAPES[spatial_dims])
    with kernels.plain():
        convert_to_torchscript(net.eval(), inputs=[x], verify=True)
