# SPDX-License-Identifier: Apache-2.0
"""Two processes, the default settings of DistributedDataParallel: every parameter needs its gradient."""

import pytest
import torch
import torch.distributed as dist
from monai.networks.nets import BasicUNetPlusPlus
from processes import METHOD
from torch.multiprocessing import start_processes
from torch.nn.parallel import DistributedDataParallel

from monai_unetpp import DeepSupervisionDiceLoss, UNetPlusPlus

CASES = {
    f"{skips}-{'all-heads' if deep_supervision else 'one-head'}": (skips, deep_supervision)
    for skips in ("dense", "short", "long")
    for deep_supervision in (True, False)
}

pytestmark = pytest.mark.slow


def network(case):
    skips, deep_supervision = CASES[case]
    torch.manual_seed(0)
    net = UNetPlusPlus(2, 1, 2, channels=(4, 6, 8), strides=2, skips=skips, deep_supervision=deep_supervision)
    return net.double()


def backward(net, rank, step=0):
    """Run a training step on the images of this rank, but for the optimizer."""
    net.zero_grad()
    generator = torch.Generator().manual_seed(10 * step + rank)
    heads = net(torch.rand(1, 1, 32, 32, dtype=torch.float64, generator=generator))
    sum(head.square().mean() for head in (heads if isinstance(heads, list) else [heads])).backward()


def loss_curve(net, ranks):
    """Five steps of AdamW on the cases of these ranks as one batch: the loss of each step."""
    loss = DeepSupervisionDiceLoss(include_background=False)  # the mean over cases
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    curve = []
    for step in range(5):
        cases = []
        for rank in ranks:
            generator = torch.Generator().manual_seed(10 * step + rank)
            image = torch.rand(1, 1, 32, 32, dtype=torch.float64, generator=generator)
            cases.append((image, (image > 0.7).double()))
        images, labels = map(torch.cat, zip(*cases, strict=True))
        optimizer.zero_grad()
        value = loss(net(images), labels)
        value.backward()
        optimizer.step()
        curve.append(value.item())
    return curve


def gradients(net):
    return {name: parameter.grad.clone() for name, parameter in net.named_parameters()}


def train(rank, folder):
    """Write the gradients of each case's first step, and the error of a network that DDP must refuse."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    report = {}
    for case in CASES:
        net = DistributedDataParallel(network(case))
        backward(net, rank)
        report[case] = gradients(net.module)
        backward(net, rank, step=1)  # unused parameters raise here
    report["curve"] = loss_curve(DistributedDataParallel(network("dense-all-heads")), [rank])
    basic = DistributedDataParallel(BasicUNetPlusPlus(2, 1, 2, features=(4,) * 6).double())
    try:
        backward(basic, rank)
        backward(basic, rank, step=1)
    except RuntimeError as error:
        report["basic"] = str(error)
    torch.save(report, folder / f"rank-{rank}.pt")  # the group stays open, see processes.apart


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    start_processes(train, (folder,), nprocs=2, start_method=METHOD)
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_the_same_on_both_processes(reports, case):
    torch.testing.assert_close(reports[0][case], reports[1][case], rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_the_mean_of_those_of_single_processes(reports, case):
    single = []
    for rank in (0, 1):
        net = network(case)
        backward(net, rank)
        single.append(gradients(net))
    mean = {name: (single[0][name] + single[1][name]) / 2 for name in single[0]}
    torch.testing.assert_close(reports[0][case], mean, rtol=0, atol=1e-12)  # float64 rounding


def test_loss_curve_is_that_of_one_process_with_the_doubled_batch(reports):
    mean = [sum(values) / 2 for values in zip(*(report["curve"] for report in reports), strict=True)]
    single = loss_curve(network("dense-all-heads"), [0, 1])
    assert single[-1] < single[0]
    assert mean == pytest.approx(single, abs=1e-9)


def test_heads_that_are_built_but_not_used_are_what_this_file_guards_against(reports):
    assert "parameters that were not used in producing loss" in reports[0]["basic"]
