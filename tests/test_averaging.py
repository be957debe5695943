# SPDX-License-Identifier: Apache-2.0
"""The average of the weights: against a sum written out, resumed, in rounds, in a training."""

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from monai_unetpp.handlers import WeightAverage
from monai_unetpp.weights import load_network


def weight(value):
    net = nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(value)
    return net


def trainer_of(average, net):
    """A trainer whose step sets the weight to the next number."""

    def step(_engine, value):
        net.weight.data.fill_(value)

    average.attach(trainer := Engine(step))
    return trainer


def run(average, net, values):
    trainer = trainer_of(average, net)
    trainer.run(values, max_epochs=1)
    return trainer


def written_out(values, decay, warm_up=10):
    """Return sum_k (1 - d_k) d_{k+1} ... d_n values_k, where d_1 = 0."""
    decays = [min(decay, n / (n + warm_up)) for n in range(len(values))]
    total, share = 0.0, 1.0
    for value, d in zip(reversed(values), reversed(decays), strict=True):
        total += share * (1 - d) * value
        share *= d
    assert share == 0  # nothing is left of the first, random weights
    return total


@pytest.mark.parametrize("decay", [0, 0.5, 0.9, 0.998])
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_average_is_that_of_the_formula(decay, steps):
    values = torch.randn(steps, generator=torch.Generator().manual_seed(0)).tolist()
    net = weight(1000.0)
    run(average := WeightAverage(net, decay), net, values)
    assert average.network.weight.item() == pytest.approx(written_out(values, decay), rel=1e-5, abs=1e-6)
    assert net.weight.item() == pytest.approx(values[-1])


def test_resumed_average_is_that_of_one_run():
    values = [3.0, -1.0, 4.0, 1.0, -5.0, 9.0]
    net = weight(0.0)
    run(first := WeightAverage(net, 0.9), net, values[:4])
    saved = {key: value.clone() for key, value in first.state_dict().items()}
    trainer = trainer_of(resumed := WeightAverage(net, 0.9), net)
    trainer.add_event_handler(Events.STARTED, resumed.load_state_dict, saved)
    trainer.run(values[4:], max_epochs=1)
    assert resumed.network.weight.item() == pytest.approx(written_out(values, 0.9))


def test_each_run_averages_anew():
    net = weight(0.0)
    trainer = run(average := WeightAverage(net, 0.9), net, [100.0, 100.0])
    trainer.run([1.0, 1.0], max_epochs=2)
    assert average.network.weight.item() == 1


def test_average_of_a_wrapped_network_is_plain(tiny):
    net = tiny()
    average = WeightAverage(nn.DataParallel(net))
    assert type(average.network) is type(net)
    assert average.network is not net
    assert not average.network.training


def test_weights_of_a_training_checkpoint_are_the_average_that_was_validated(tiny, tmp_path):
    net, blank = tiny(), tiny()
    average = WeightAverage(net, 0.9)
    for parameter in net.parameters():
        parameter.data.fill_(7.0)
    torch.save(
        {"model": net.state_dict(), "average": average.state_dict()}, tmp_path / "checkpoint_epoch=1.pt"
    )
    loaded = load_network(blank, tmp_path / "checkpoint_epoch=1.pt").state_dict()
    torch.testing.assert_close(loaded, average.network.state_dict(), rtol=0, atol=0)


def test_average_of_another_kind_in_somebody_elses_checkpoint_is_left_alone(tiny, tmp_path):
    net = tiny()
    torch.save({"model": net.state_dict(), "average": 0.93}, tmp_path / "theirs.pt")
    loaded = load_network(tiny(), tmp_path / "theirs.pt").state_dict()
    torch.testing.assert_close(loaded, net.state_dict(), rtol=0, atol=0)


def test_decay_that_is_none():
    with pytest.raises(ValueError, match=r"decay must be at least 0 and below 1, such as 0.998, got 1"):
        WeightAverage(weight(0.0), 1)
