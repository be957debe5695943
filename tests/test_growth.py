# SPDX-License-Identifier: Apache-2.0
"""Training shallow levels first: what is computed, when a level is added, and what is validated."""

import logging
import re
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Events
from monai.engines import Trainer

from bundles import TINY_TRAINING, raises_within, workflow
from monai_unetpp import DeepSupervisionDiceLoss, UNetPlusPlus
from monai_unetpp.handlers import EpochLog, Growth

DEEP = [4, 6, 8, 10]


def network(**settings):
    torch.manual_seed(0)
    return UNetPlusPlus(2, 1, 3, channels=DEEP, strides=2, **settings)


# The network


@pytest.mark.parametrize("skips", ["dense", "short", "long"])
def test_training_computes_the_heads_up_to_a_level_and_no_other_node(skips):
    net, x = network(skips=skips), torch.rand(2, 1, 24, 24)
    every = net(x)
    net.training_level = 2
    heads = net(x)
    assert [torch.equal(a, b) for a, b in zip(heads, every[1:], strict=True)] == [True, True]
    DeepSupervisionDiceLoss()(heads, torch.randint(3, (2, 1, 24, 24))).backward()
    places = {name: [int(n) for n in re.findall(r"\d+", name)[:2]] for name in net.state_dict()}
    for name, parameter in net.named_parameters():
        first, *second = places[name]
        inside = first < 2 if name.startswith("heads") else first <= 2
        if name.startswith("nodes"):
            inside = first + second[0] <= 2
        assert (parameter.grad is not None) == inside, name
    assert torch.equal(net.eval()(x), net.all_heads(x)[0])  # evaluation has its own level


@pytest.mark.parametrize("level", [0, 4, 1.0, True])
def test_training_level_has_to_be_a_head(level):
    with pytest.raises(ValueError, match="level must be"):
        network().training_level = level


def test_training_level_without_deep_supervision_is_the_depth():
    with pytest.raises(ValueError, match="deep_supervision is off"):
        network(deep_supervision=False).training_level = 1


@pytest.mark.parametrize(
    ("strides", "kernel_size"), [(2, 3), ([(2, 1), 2, 2], [3, (1, 3), 3, 3]), ([1, 2, 2], [5, 3, 3, 1])]
)
def test_receptive_field_is_where_the_gradient_is(strides, kernel_size):
    net = UNetPlusPlus(2, 1, 2, [4] * 4, strides, kernel_size, norm=None, act="ELU").eval()
    for level in net.spec.levels:
        net.level = level
        widest = [0, 0]
        for place in range(56, 64):  # a period of the strides
            x = torch.rand(1, 1, 128, 128, requires_grad=True)
            [gradient] = torch.autograd.grad(net(x)[0, 0, place, place], x)
            seen = gradient[0, 0] != 0
            extent = [seen.any(1 - axis).nonzero().flatten() for axis in (0, 1)]
            widest = [max(n, int(each[-1] - each[0]) + 1) for n, each in zip(widest, extent, strict=True)]
        assert net.spec.receptive_field(level) == widest


# The schedule


@pytest.mark.parametrize(
    ("shares", "epochs", "levels"),
    [
        ([0.4, 0.7], 10, [1] * 4 + [2] * 3 + [3] * 3),
        ([0.5], 4, [2, 2, 3, 3]),
        ([0.4, 0.9], 1, [3]),  # the last epoch trains all levels
        ([0.4, 0.9], 2, [2, 3]),
    ],
)
def test_levels_are_added_after_shares_of_the_epochs(shares, epochs, levels):
    growth = Growth(network(), shares)
    assert [growth.level(epoch, epochs) for epoch in range(1, epochs + 1)] == levels


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([0.7, 0.4], r"increase between 0 and 1, such as \[0.4, 0.7\], got \[0.7, 0.4\]"),
        ([0.4, 1.0], "increase between 0 and 1"),
        ([0.0], "increase between 0 and 1"),
        ([0.2, 0.4, 0.6], "at most 2 for a network with heads at 3 levels"),
    ],
)
def test_shares_that_mean_nothing_are_refused(shares, message):
    with pytest.raises(ValueError, match=message):
        Growth(network(), shares)


# A training


def grow(root, balls, **settings):
    """A workflow whose network of two levels grows after the second of four epochs."""
    settings = {**TINY_TRAINING, "channels": DEEP[:3], "max_epochs": 4, "growth": [0.5], **settings}
    flow = workflow("liver", "train", root, dataset_dir=str(balls), **settings)
    flow.initialize()
    return flow


@pytest.mark.slow
@pytest.mark.usefixtures("_path_as_before")
def test_network_that_grows_is_validated_once_it_is_whole(balls, tmp_path, caplog):
    flow, seen = grow(tmp_path, balls, patience=1), SimpleNamespace(validated=[], levels=[])
    trainer = flow.trainer
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda engine: seen.levels.append(engine.network.training_level)
    )
    flow.evaluator.add_event_handler(
        Events.STARTED, lambda engine: seen.validated.append(engine.state.max_epochs)
    )
    with caplog.at_level(logging.INFO):
        flow.run()
    assert seen.levels == [1, 1, 2, 2][: len(seen.levels)]
    assert seen.validated == [3, 4][: len(seen.validated)]
    assert seen.validated
    assert "Epoch 1: the network is trained up to L1 of L2." in caplog.text
    assert "loss/L2" in trainer.state.metrics


def test_time_that_is_left_is_the_least_while_the_network_grows(monkeypatch):
    class Nothing(Trainer):
        network = network()

        def _iteration(self, *_):
            return None

    lines, log = [], EpochLog("of growth")
    monkeypatch.setattr(log.logger, "info", lines.append)
    trainer = Nothing(torch.device("cpu"), 3, [0], 1)
    Growth(trainer.network, [0.4]).attach(trainer)
    log.attach(trainer)
    trainer.run()
    said = [("at least" in line, "left" in line) for line in lines]
    assert said == [(True, True), (False, True), (False, False)]


def _fail():
    raise ZeroDivisionError("stopped")


@pytest.mark.slow
@pytest.mark.usefixtures("_path_as_before")
def test_resumed_training_grows_as_one_that_was_not_interrupted(balls, tmp_path):
    grow(tmp_path / "whole", balls).run()
    stopped = grow(tmp_path / "parts", balls)
    stopped.trainer.add_event_handler(Events.EPOCH_STARTED(once=2), _fail)
    with raises_within(ZeroDivisionError, "stopped"):
        stopped.run()
    grow(tmp_path / "parts", balls, resume=True).run()
    whole, parts = (
        torch.load(tmp_path / name / "models" / "checkpoint_epoch=4.pt", weights_only=True)
        for name in ("whole", "parts")
    )
    assert all(torch.equal(tensor, parts["model"][name]) for name, tensor in whole["model"].items())
