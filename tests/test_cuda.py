# SPDX-License-Identifier: Apache-2.0
"""On a GPU: the same numbers as on the CPU, in training, in inference, by the commands."""

import copy

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bundles import BUNDLES, DEEP, TINY, TINY_TRAINING, run, write_balls
from monai_unetpp import DeepSupervisionDiceLoss, UNetPlusPlus, prune
from monai_unetpp.__main__ import main
from monai_unetpp.inferers import EarlyExitInferer
from monai_unetpp.network import kernels
from monai_unetpp.network.kernels import dispatch
from monai_unetpp.network.kernels.gpu import norm as gpu
from monai_unetpp.planning.budget import step_memory
from monai_unetpp.segment import segment

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.torch.cuda.amp.GradScaler:FutureWarning"),  # MONAI's mixed precision
]

CUDA = "$torch.device('cuda')"
BY_DIMS = [pytest.param(2, (2, 1, 40, 35), id="2D"), pytest.param(3, (2, 1, 24, 20, 17), id="3D")]


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    """Convolutions in float32 as on a CPU; by default a GPU rounds what they multiply to TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="module")
def on_gpu(tmp_path_factory):
    """A training of two epochs on the GPU, in mixed precision: data and the folder of the bundle."""
    data = write_balls(tmp_path_factory.mktemp("cuda") / "balls")
    root = tmp_path_factory.mktemp("cuda") / "bundle"
    settings = TINY_TRAINING | {"device": CUDA, "channels": DEEP, "amp": True}
    run("liver", "train", root, dataset_dir=str(data), **settings)
    return data, root


def network(dims, dtype=torch.float32):
    torch.manual_seed(0)
    return UNetPlusPlus(dims, 1, 3, (8, 16, 32, 64), strides=2).to(dtype)


def results(net, x, target):
    """Heads, loss, gradients of the parameters and of the input."""
    x = x.clone().requires_grad_()
    net.zero_grad()
    heads = net.all_heads(x)
    loss = DeepSupervisionDiceLoss()(heads, target)
    loss.backward()
    return [tensor.cpu().clone() for tensor in (*heads, loss, x.grad, *(p.grad for p in net.parameters()))]


@pytest.mark.parametrize("path", ["plain", "memory", "auto"])
@pytest.mark.parametrize(("dims", "shape"), BY_DIMS)
def test_heads_loss_and_gradients_are_those_of_the_cpu(dims, shape, path):
    net, x = network(dims, torch.float64), torch.rand(shape).double()
    target = torch.randint(0, 3, shape)
    with kernels.plain():
        wanted = results(net, x, target)
    with kernels.use(path):
        found = results(copy.deepcopy(net).to("cuda"), x.to("cuda"), target.to("cuda"))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    with kernels.use(path):
        found = results(net.float().to("cuda"), x.float().to("cuda"), target.to("cuda"))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(
            ours.double(), theirs, rtol=2e-2, atol=1e-6 + 2e-3 * float(theirs.abs().max())
        )


@pytest.mark.parametrize("slope", [1.0, 0.0, 0.1])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(2, 5, 9, 7, 6), (1, 32, 40, 44, 32), (2, 70, 33, 31), (2, 3, 100, 120)])
def test_norm_and_activation_are_those_of_torch_in_double_precision(shape, affine, slope):
    torch.manual_seed(0)
    x = dispatch.channels_last(torch.randn(shape, device="cuda") * 3 + 50).requires_grad_()
    kind = nn.InstanceNorm3d if len(shape) == 5 else nn.InstanceNorm2d
    norm = kind(shape[1], affine=affine).cuda()
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    assert gpu.available(x.device.index)
    y = gpu._norm_act(x, norm, slope)
    grad = torch.randn_like(y) * (y.detach().abs() > 1e-3)  # not at the kink, where rounding decides
    found = [y, *torch.autograd.grad(y, [x, *norm.parameters()], grad)]
    norm, x = copy.deepcopy(norm).double(), x.detach().double().contiguous().requires_grad_()
    y = norm(x) if slope == 1 else F.leaky_relu(norm(x), slope)
    wanted = [y, *torch.autograd.grad(y, [x, *norm.parameters()], grad.double().contiguous())]
    for ours, theirs in zip(found, wanted, strict=True):
        assert float((ours.double() - theirs).abs().max() / theirs.abs().max()) < 1e-4


def test_a_network_without_the_bias_before_an_instance_norm_is_the_same():
    net = network(3).cuda()
    x = torch.rand(1, 1, 24, 20, 17, device="cuda")
    net.all_heads(x)[0].sum().backward()
    with torch.no_grad():
        wanted = net.all_heads(x)
        for name, parameter in net.named_parameters():
            if name.endswith(".conv.bias") and name.startswith(("encoder", "nodes")):
                assert not parameter.grad.any()  # but there: a distributed training waits for it
                parameter.add_(1)
        found = net.all_heads(x)
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("dims", "shape"), BY_DIMS)
def test_levels_on_the_gpu_are_the_heads_of_the_whole(dims, shape):
    net, x = network(dims).eval().to("cuda"), torch.rand(shape, device="cuda")
    with torch.no_grad():
        heads = net.all_heads(x)
        for level in (1, 2):
            torch.testing.assert_close(prune(net, level)(x), heads[-level], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", kernels.precisions("cuda")[1:])
def test_mixed_precision_keeps_the_heads(precision):
    net, x = network(3).eval().to("cuda"), torch.rand(1, 1, 32, 32, 32, device="cuda")
    with torch.no_grad():
        wanted = net.all_heads(x)
        with kernels.in_precision(precision, "cuda")():
            found = net.all_heads(x)
    for ours, theirs in zip(found, wanted, strict=True):
        assert float((ours.float() - theirs).abs().max() / theirs.abs().max()) < 0.06


def test_early_exit_is_that_of_the_cpu():
    net, x = network(3).eval(), torch.rand(1, 1, 48, 40, 40)
    inferer = EarlyExitInferer(roi_size=(24, 24, 24), threshold=0.5)
    with torch.no_grad():
        wanted = inferer(x, copy.deepcopy(net))
        found = inferer(x.to("cuda"), net.to("cuda")).cpu()
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_training_writes_weights_that_a_cpu_loads_and_goes_on(on_gpu):
    data, root = on_gpu
    resumed = TINY_TRAINING | {"channels": DEEP, "max_epochs": 3, "resume": True}
    run("liver", "train", root, dataset_dir=str(data), **resumed)  # on the CPU
    assert (root / "models" / "checkpoint_epoch=3.pt").is_file()


def test_masks_are_those_of_the_cpu(balls, trained, tmp_path):
    weights = str(trained / "models" / "model.pt")
    for device in ("cpu", "cuda"):
        settings = {**TINY, "channels": [4, 8], "device": f"$torch.device('{device}')"}
        out = tmp_path / device
        segment(balls / "imagesTr", out, BUNDLES / "liver", ckpt_path=weights, amp=False, **settings)
    paths = sorted((tmp_path / "cpu").glob("*.nii.gz"))
    assert len(paths) == 4
    for path in paths:
        wanted, found = (np.asarray(nib.load(p).dataobj) for p in (path, tmp_path / "cuda" / path.name))
        assert np.count_nonzero(wanted != found) <= max(3, 1e-3 * wanted.size)


def test_a_bundle_is_planned_for_the_gpu_and_trained(balls, tmp_path):
    out = tmp_path / "planned"
    command = ["plan", str(balls), "--out", str(out), "--hours", "0.01", "--device", "cuda"]
    main([*command, "--set", "max_epochs", "1"])
    main(["train", str(out)])
    assert (out / "models" / "model.pt").is_file()


@pytest.mark.parametrize("size", [48, 64])
def test_memory_of_a_step_is_that_of_the_formula(size):
    net = UNetPlusPlus(3, 1, 2, (32, 64, 128, 256), strides=2).to("cuda")
    x = torch.rand(2, 1, size, size, size, device="cuda")
    target = torch.zeros(2, 1, size, size, size, device="cuda")
    loss = DeepSupervisionDiceLoss(include_background=False)

    def step():
        with kernels.autocast("cuda", True)():
            heads = net(x)
        loss(heads, target).backward()

    step()
    net.zero_grad()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    found = torch.cuda.max_memory_allocated() - before
    assert found == pytest.approx(step_memory(net, (size,) * 3, 2, "cuda"), rel=0.2)
