# SPDX-License-Identifier: Apache-2.0
import copy
import io

import pytest
import torch

from monai_unetpp import DeepSupervisionDiceLoss, Muon, UNetPlusPlus


def gradients(*shape, steps=5):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator) for _ in range(steps)]


def moved(optimizer, start, given):
    """Return a parameter after one step per gradient."""
    parameter = torch.nn.Parameter(start.clone())
    stepper = optimizer([parameter])
    for grad in given:
        parameter.grad = grad.clone()
        stepper.step()
    return parameter.detach()


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (4, 4)])
@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
def test_matrices_move_as_by_torch(shape):
    start, given = torch.ones(shape), gradients(*shape)
    theirs = moved(
        lambda p: torch.optim.Muon(p, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"), start, given
    )
    ours = moved(lambda p: Muon(p, lr=0.01, weight_decay=0.1), start, given)
    length = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.02 * length  # torch computes in bfloat16


def test_a_step_is_nearly_orthogonal_and_keeps_the_singular_vectors():
    grad = gradients(16, 8, 3, 3, 3)[0]
    step = -moved(lambda p: Muon(p, lr=1.0, momentum=0.0), torch.zeros_like(grad), [grad]).flatten(1)
    u, _, v = torch.linalg.svd(grad.flatten(1).double(), full_matrices=False)
    values = u.T @ step.double() @ v.T / (0.2 * 216**0.5)
    across = values - torch.diag(values.diagonal())
    assert values.diagonal().min() > 0.65
    assert values.diagonal().max() < 1.2
    assert across.abs().max() < 1e-4


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e-19, 1e19, 1e30])
def test_a_step_does_not_depend_on_the_size_of_the_gradient(scale):
    """The momentum of a kernel whose gradient has become 0 reaches such numbers within 1000 steps."""
    start, given = torch.zeros(4, 3, 3, 3), gradients(4, 3, 3, 3, steps=1)
    assert torch.allclose(moved(Muon, start, [scale * given[0]]), moved(Muon, start, given), rtol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
def test_kernels_move_as_their_matrices_in_any_layout(dims):
    shape = (6, 4, *(3,) * dims)
    given = gradients(*shape)
    wanted = moved(Muon, torch.ones(6, 4 * 3**dims), [each.flatten(1) for each in given])
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}[dims]
    for form in (torch.contiguous_format, layout):
        ours = moved(
            Muon,
            torch.ones(shape).to(memory_format=form),
            [each.to(memory_format=form) for each in given],
        )
        assert torch.allclose(ours.flatten(1), wanted, atol=1e-6)


def test_what_has_one_axis_moves_as_by_adamw():
    start, given = torch.ones(7), gradients(7)
    theirs = moved(lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1), start, given)
    assert torch.allclose(moved(lambda p: Muon(p, lr=0.01, weight_decay=0.1), start, given), theirs)


def test_steps_are_as_long_as_those_of_adam():
    """So that a learning rate for AdamW holds."""
    given = gradients(64, 32, 3, 3, steps=1)
    step = moved(lambda p: Muon(p, lr=1.0), torch.zeros(64, 32, 3, 3), given)
    assert 0.1 < step.square().mean().sqrt() < 0.3


def test_a_training_continues_from_its_state():
    torch.manual_seed(0)
    net, loss = UNetPlusPlus(2, 1, 2, channels=(4, 8), strides=(2,)).train(), DeepSupervisionDiceLoss()
    x, y = torch.rand(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)
    y[..., 4:9, 4:9] = 1

    def train(net, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            loss(net(x), y).backward()
            optimizer.step()

    optimizer = Muon(net.parameters(), weight_decay=1e-5)
    train(net, optimizer, 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(net)
    resumed = Muon(other.parameters())
    resumed.load_state_dict(torch.load(file, weights_only=True))
    train(net, optimizer, 2)
    train(other, resumed, 2)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_a_gradient_of_zeros_moves_nothing():
    start = torch.ones(3, 2, 3, 3)
    assert torch.equal(moved(Muon, start, [torch.zeros_like(start)]), start)


def test_parameters_without_a_gradient_stay_and_a_closure_is_called():
    a, b = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([a, b])

    def closure():
        optimizer.zero_grad()
        loss = (a**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 4
    assert not torch.equal(a, torch.ones(2, 2))
    assert torch.equal(b, torch.ones(2, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 0}, r"lr must be greater than 0, such as 0.003, got 0"),
        ({"weight_decay": -1}, r"weight_decay must be 0 or greater, such as 1e-5, got -1"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), such as 0.9, got 1.0"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\] must be in"),
        ({"eps": 0}, r"eps must be greater than 0"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        Muon([torch.nn.Parameter(torch.ones(2))], **arguments)
