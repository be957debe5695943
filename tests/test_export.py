# SPDX-License-Identifier: Apache-2.0
"""One network in every form that it is shipped in; made at an even size, used at any."""

import json
import shutil

import onnxruntime
import pytest
import torch
from monai.bundle import verify_net_in_out
from monai.networks.utils import convert_to_torchscript
from torch import nn

from monai_unetpp.network.blocks import Down
from monai_unetpp.network.kernels import plain

EVEN, ODD = {2: (16, 24), 3: (16, 8, 12)}, {2: (21, 13), 3: (11, 9, 10)}
BOTH = pytest.mark.parametrize("spatial_dims", [2, 3], ids="{}D".format)
EVERY_SKIPS = pytest.mark.parametrize("skips", ["dense", "short", "long"])
SIZES = pytest.mark.parametrize("sizes", [EVEN, ODD], ids=["even", "odd"])

TORCH = {"rtol": 0, "atol": 1e-5}  # the same kernels, but elementwise steps may be fused
ONNX = {"rtol": 0, "atol": 2e-5}  # other kernels: float32 rounding, magnified by the norms

COMPILER = pytest.mark.skipif(shutil.which("c++") is None, reason="inductor requires a C++ compiler")

pytestmark = pytest.mark.slow


def dynamic_shapes(spatial_dims):
    return (dict.fromkeys([0, *range(2, spatial_dims + 2)], torch.export.Dim.DYNAMIC),)


# TorchScript


@BOTH
@EVERY_SKIPS
@SIZES
def test_scripted_network_equals_eager_in_every_mode(tiny, spatial_dims, skips, sizes):
    net, x = tiny(spatial_dims, skips=skips), torch.rand(1, 1, *sizes[spatial_dims])
    scripted = torch.jit.script(net)
    torch.testing.assert_close(scripted(x), net(x), **TORCH)
    torch.testing.assert_close(scripted.eval()(x), net.eval()(x), **TORCH)
    torch.testing.assert_close(scripted.all_heads(x), net.all_heads(x), **TORCH)


@BOTH
@SIZES
def test_monai_verifies_the_scripted_network_without_tolerance(tiny, spatial_dims, sizes):
    net, x = tiny(spatial_dims).eval(), torch.rand(1, 1, *sizes[spatial_dims])
    with plain():  # the kernels add in another order
        convert_to_torchscript(net, inputs=(x,), verify=True)


def test_scripted_network_keeps_its_level(tiny):
    net, x = tiny().eval(), torch.rand(1, 1, *ODD[2])
    net.level = 1
    torch.testing.assert_close(torch.jit.script(net)(x), net(x), **TORCH)


def test_scripted_network_survives_the_disk(tiny, tmp_path):
    net, x = tiny().eval(), torch.rand(1, 1, *ODD[2])
    torch.jit.save(torch.jit.script(net), tmp_path / "model.ts")
    loaded = torch.jit.load(tmp_path / "model.ts")
    torch.testing.assert_close(loaded(x), net(x), **TORCH)
    torch.testing.assert_close(loaded.all_heads(x), net.all_heads(x), **TORCH)


def test_scripted_network_names_a_short_axis_too(tiny):
    with pytest.raises(torch.jit.Error, match="axis 3 of x is too short"):
        torch.jit.script(tiny())(torch.rand(1, 1, 4, 4))


@BOTH
@EVERY_SKIPS
def test_network_traced_at_an_even_size_equals_eager_at_an_odd_one(tiny, spatial_dims, skips):
    net = tiny(spatial_dims, skips=skips, channels=(4, 6, 8)).eval()
    traced = torch.jit.trace(net, torch.rand(1, 1, *EVEN[spatial_dims]))
    x = torch.rand(2, 1, *ODD[spatial_dims])
    torch.testing.assert_close(traced(x), net(x), **TORCH)


# torch.compile


def test_compiled_network_equals_eager_without_a_graph_break(tiny):
    net, x = tiny(3, channels=(4, 6)).eval(), torch.rand(1, 1, 8, 8, 8)
    with torch.no_grad():
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), net(x), **TORCH)


@pytest.mark.parametrize(("spatial_dims", "gradients"), [(2, False), (3, True)], ids=["2D", "3D-training"])
def test_compiled_network_equals_eager_at_one_size_after_another(tiny, spatial_dims, gradients):
    """Sizes of which the second makes the compiler leave them open, with and without a remainder."""
    torch._dynamo.reset()
    net = tiny(spatial_dims, channels=(4, 6, 8)).eval()
    compiled = torch.compile(net, backend="aot_eager")
    with plain(), torch.set_grad_enabled(gradients):
        for size in (16, 24, 13):
            x = torch.rand(1, 1, *[size] * spatial_dims)
            y, wanted = compiled(x), net(x)
            torch.testing.assert_close(y, wanted, **TORCH)
            if gradients:
                weights = list(net.encoder.parameters())
                found, expected = (torch.autograd.grad(z.square().sum(), weights) for z in (y, wanted))
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@BOTH
@pytest.mark.parametrize("use_checkpoint", [False, True], ids=["", "checkpoint"])
def test_training_compiles_without_a_graph_break(tiny, spatial_dims, use_checkpoint):
    torch._dynamo.reset()
    net, x = (
        tiny(spatial_dims, channels=(4, 6, 8), use_checkpoint=use_checkpoint),
        torch.rand(1, 1, *[16] * spatial_dims),
    )
    with plain():
        heads = torch.compile(net.train(), fullgraph=True, backend="eager")(x)
        for head, wanted in zip(heads, net(x), strict=True):
            torch.testing.assert_close(head, wanted, **TORCH)


@COMPILER
@pytest.mark.parametrize("size", [16, 17], ids=["even", "odd"])
def test_inductor_compiles_pooling_with_open_sizes(size):
    """Pooling with ``ceil_mode`` alone fails here, with "Invalid ranges [0:-1]"."""
    torch._dynamo.reset()
    net = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), Down(3, (2, 2, 2)), nn.Conv3d(2, 2, 3, padding=1))
    x = torch.rand(1, 1, size, size, size)
    with plain():
        y = torch.compile(net, dynamic=True)(x)
        torch.testing.assert_close(y, net(x), **TORCH)
        y.sum().backward()


@COMPILER
def test_inductor_compiles_a_stride_for_every_size_on_request():
    torch._dynamo.reset()
    net = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.Conv3d(2, 2, 3, stride=2, padding=1))
    net.append(nn.Conv3d(2, 2, 3, padding=1))
    compiled = torch.compile(net, dynamic=False)
    for size in (16, 24):
        x = torch.rand(1, 1, size, size, size)
        torch.testing.assert_close(compiled(x), net(x), **TORCH)


@pytest.mark.parametrize("name", ["convolve", "deconvolve"])
def test_operators_for_the_compiler_are_what_they_declare(name):
    x, weight = torch.rand(1, 4, 6, 5, 4), torch.rand(4, 4, 2, 2, 2)
    arguments = {
        "convolve": ([x, x], torch.rand(3, 8, 3, 3, 3), torch.rand(3), [1, 1, 1]),
        "deconvolve": (x, weight, None, [2, 2, 2]),
    }[name]
    operator = getattr(torch.ops.monai_unetpp, name).default
    torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


# torch.export and ONNX


@BOTH
def test_network_exported_at_an_even_size_equals_eager_at_an_odd_one(tiny, spatial_dims):
    net = tiny(spatial_dims, channels=(4, 6, 8)).eval()
    example = torch.rand(2, 1, *EVEN[spatial_dims])
    exported = torch.export.export(net, (example,), dynamic_shapes=dynamic_shapes(spatial_dims)).module()
    x = torch.rand(3, 1, *ODD[spatial_dims])
    torch.testing.assert_close(exported(x), net(x), **TORCH)


@pytest.fixture(scope="module", params=[2, 3], ids="{}D".format)
def eager_and_onnx(request, tiny, tmp_path_factory):
    """A network, and a function that computes it in onnxruntime; exported at an even size."""
    spatial_dims, path = request.param, tmp_path_factory.mktemp("onnx") / "model.onnx"
    net = tiny(spatial_dims, channels=(4, 6, 8)).eval()
    torch.onnx.export(
        net,
        (torch.rand(2, 1, *EVEN[spatial_dims]),),
        path,
        dynamic_shapes=dynamic_shapes(spatial_dims),
        dynamo=True,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path)
    (entry,) = session.get_inputs()
    return net, lambda x: torch.from_numpy(session.run(None, {entry.name: x.numpy()})[0])


@SIZES
def test_onnx_network_equals_eager(eager_and_onnx, sizes):
    net, onnx = eager_and_onnx
    x = torch.rand(1, 1, *sizes[net.spatial_dims])
    torch.testing.assert_close(onnx(x), net(x), **ONNX)


# MONAI's own check of a bundle's network


def test_verify_net_in_out_accepts_the_network(tmp_path):
    config = {
        "network": {
            "_target_": "monai_unetpp.UNetPlusPlus",
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": 3,
            "channels": [4, 6, 8],
            "strides": 2,
        }
    }
    image = {"num_channels": 1, "spatial_shape": ["4*n", "4*n", "*"], "dtype": "float32"}
    prediction = {"num_channels": 3, "spatial_shape": ["4*n", "4*n", "*"], "dtype": "float32"}
    metadata = {"network_data_format": {"inputs": {"image": image}, "outputs": {"pred": prediction}}}
    (tmp_path / "train.json").write_text(json.dumps(config))
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    verify_net_in_out(
        "network",
        meta_file=str(tmp_path / "metadata.json"),
        config_file=str(tmp_path / "train.json"),
        device="cpu",
        n=4,
        any=9,
    )
