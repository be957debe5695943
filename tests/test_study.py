# SPDX-License-Identifier: Apache-2.0
"""The study: an interrupted training ends as if it had not been, and its tables say what their rows say."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import RandSpatialCropd
from scipy.stats import ttest_1samp

SCRIPTS = Path(__file__).parents[1] / "benchmarks"
NAMES = ["U-Net L1", "U-Net L2", "wide U-Net", "UNet++", "UNet++, grown", "UNet++, narrowed to L1"]
NAMES += ["DynUNet", "SegResNetDS", "U-Net^e, annealed to shallow heads", "U-Net^e, learned weights"]


@pytest.fixture(scope="module")
def scripts():
    """The scripts of the study, by name."""
    names = ("family", "frontier", "measure", "nodule_boxes", "study", "tasks")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield {name: __import__(name) for name in names}
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def task(scripts):
    """A task of three epochs of two steps."""
    crop = RandSpatialCropd(("image", "label"), (16, 16), random_size=False)
    changes = {"window": (16, 16), "crop": (crop,), "channels": (2, 3, 4), "batch_size": 2, "steps": 6}
    return replace(scripts["tasks"].TASKS["nuclei"], **changes)


def cases(count):
    rng = np.random.default_rng(0)
    made = []
    for n in range(count):
        label = np.zeros((1, 20, 24), np.float32)
        label[:, 4:12, 3 + n : 11 + n] = 1
        image = torch.tensor(label + rng.normal(0, 0.3, label.shape).astype(np.float32))
        made.append({"image": image, "label": torch.tensor(label), "scan": str(n), "case": f"{n}.png"})
    return made


@pytest.mark.parametrize("name", NAMES)
def test_interrupted_training_ends_as_one_that_was_not(name, scripts, task, tmp_path, monkeypatch):
    study, member, data = scripts["study"], scripts["family"].family(2)[name], (cases(4), cases(2))
    windows, ends = study.windows, []

    def stopped(task, cases, seed):
        if seed == 2:  # the third epoch
            raise KeyboardInterrupt
        return windows(task, cases, seed)

    for interrupted in (False, True):
        begun = tmp_path / f"{interrupted}.part"
        torch.manual_seed(5)
        net = member.make(2, 2, task.channels)
        if interrupted:
            monkeypatch.setattr(study, "windows", stopped)
            with pytest.raises(KeyboardInterrupt):
                study.train(net, task, member, data, 0, begun)
            monkeypatch.undo()
            net = member.make(2, 2, task.channels)  # with other weights
        notes = study.train(net, task, member, data, 0, begun)
        ends.append((net.state_dict(), notes["curve"], notes["step"]))
    (weights, *notes), (resumed, *after) = ends
    assert notes == after
    assert notes[1] == 6
    assert all(torch.equal(weights[key], resumed[key]) for key in weights)


def test_rows_of_two_processes_are_all_kept_and_a_repeated_training_replaces_its_own(scripts, tmp_path):
    study, table = scripts["study"], tmp_path / "table.csv"
    for name, seed, dice in (("a", 0, 1), ("b", 0, 2), ("a", 1, 3), ("a", 0, 4)):
        study.append(table, list(study.rows_of(name, seed, cases(2), {"L1": [[dice], [dice]]})))
    found = [tuple(row.values()) for row in study.read(table)]
    kept = (("b", "0", 2), ("a", "1", 3), ("a", "0", 4))
    assert found == [
        (name, "L1", seed, f"{n}.png", f"{dice}.0000") for name, seed, dice in kept for n in range(2)
    ]


def by_seed(dice):
    return {str(seed): each for seed, each in enumerate(dice)}


@pytest.mark.parametrize(("gain", "worse"), [(0.0, False), (-0.002, False), (-0.005, True), (-0.01, True)])
def test_only_what_is_within_the_margin_is_shown_not_to_be_worse(gain, worse, scripts):
    rng = np.random.default_rng(1)
    best = rng.uniform(0.7, 0.9, (3, 60))
    dice = best + gain + rng.normal(0, 0.004, best.shape)
    mean, low, high, p = scripts["frontier"].compare(by_seed(dice), by_seed(best))
    difference = (dice - best).mean(0)
    assert low < mean < high
    assert mean == pytest.approx(difference.mean())
    reference = ttest_1samp(difference, 0).confidence_interval()
    assert [low, high] == pytest.approx(reference, abs=2e-4)
    assert (p > 0.05) == worse


def test_networks_are_compared_on_the_seeds_that_both_have(scripts):
    one, three = np.full((1, 4), 0.8), np.array([[0.7] * 4, [0.9] * 4, [0.9] * 4])
    for dice, other, wanted in ((one, three, 0.1), (three, one, -0.1)):
        found = scripts["frontier"].difference(by_seed(dice), by_seed(other))
        assert found == pytest.approx([wanted] * 4)


def test_rise_is_that_of_the_best_in_the_last_fifth(scripts):
    def curve(seed, *dice):
        return [
            {"network": "a", "seed": seed, "share": f"{(n + 1) / 5 + 0.003}", "dice": str(each)}
            for n, each in enumerate(dice)
        ]

    rows = [*curve("0", 0.1, 0.5, 0.4, 0.4, 0.6), *curve("1", 0.1, 0.5, 0.4, 0.4, 0.2)]
    assert scripts["frontier"].late_rise(rows) == pytest.approx({"a": (0.1 - 0.3) / 2})


def test_dominated_is_what_is_neither_better_nor_faster(scripts):
    dice = {
        (name, ""): {"0": np.full(3, value)}
        for name, value in zip("abcd", (0.8, 0.9, 0.9, 0.95), strict=True)
    }
    took = {(name, ""): value for name, value in zip("abcd", (1.0, 1.0, 2.0, 3.0), strict=True)}
    found = {
        (one, other)
        for one in "abcd"
        for other in "abcd"
        if scripts["frontier"]._dominates((one, ""), (other, ""), dice, took)
    }
    assert found == {("b", "a"), ("b", "c")}
    dice["a", ""]["1"] = np.full(3, 0.8)
    assert not scripts["frontier"]._dominates(("b", ""), ("a", ""), dice, took)  # of one seed


def test_narrowed_network_trains_all_levels_first_and_is_scored_up_to_its_own(scripts, task, tmp_path):
    study, member = scripts["study"], scripts["family"].family(2)["U-Net^e, narrowed to L1"]
    trained, data = [], (cases(4), cases(2))
    net = member.make(2, 2, task.channels)
    net.register_forward_hook(lambda net, _, heads: trained.append(len(heads)) if net.training else None)
    study.train(net, task, member, data, 0, tmp_path / "x.part")
    assert trained == [2, 2, 1, 1, 1, 1]  # a quarter of six steps
    found = study.score(net, task, data[1])
    net.level = 1
    assert found == {"L1": study.score(net, task, data[1], deepest=True)[""]}


def test_heads_weigh_the_same_at_first_and_what_was_said_at_the_end(scripts, task, tmp_path, monkeypatch):
    member = scripts["family"].family(2)["U-Net^e, annealed to shallow heads"]
    loss = member.make_loss(2)
    monkeypatch.setattr(type(member), "make_loss", lambda *_, **__: loss)
    weights, net = [], member.make(2, 2, task.channels)
    net.register_forward_hook(lambda net, *_: weights.append(loss.given) if net.training else None)
    scripts["study"].train(net, task, member, (cases(4), cases(2)), 0, tmp_path / "x.part")
    assert [each[0] for each in weights] == [1] * 6  # of the deepest head
    assert [each[1] for each in weights] == pytest.approx([1 + n / 6 for n in range(6)])


def test_learned_weights_of_heads_tend_to_the_inverse_of_their_losses(scripts):
    loss = scripts["family"].LearnedWeights(2, sigmoid=True)
    target = torch.zeros(1, 1, 8, 8)
    target[..., 2:6, 2:6] = 1
    heads = [torch.where(target > 0, high, -high) for high in (3.0, 0.5)]
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.2)
    for _ in range(200):
        optimizer.zero_grad()
        loss(heads, target).backward()
        optimizer.step()
    alone = torch.stack([loss.one_head(head, target) for head in heads])
    torch.testing.assert_close(torch.exp(-loss.s), 1 / alone, rtol=1e-3, atol=0)


def test_times_are_those_of_equal_networks_or_all_are_measured_again(scripts, task, monkeypatch):
    measure = scripts["frontier"].measure
    names = ["U-Net L1", "UNet++"]
    rows = measure(task, names, [], 1)
    assert [(row["network"], row["head"]) for row in rows] == [
        ("U-Net L1", ""),
        ("UNet++", "L1"),
        ("UNet++", "L2"),
    ]
    monkeypatch.setattr(scripts["frontier"], "interleaved", None)  # nothing is timed
    [*same, first, second] = measure(task, [*names, "UNet++, grown"], rows, 1)
    assert (same, first["s, float32"]) == (rows, rows[1]["s, float32"])
    assert (second["network"], second["parameters"]) == ("UNet++, grown", rows[2]["parameters"])
    with pytest.raises(TypeError, match="not callable"):
        measure(task, [*names, "UNet++ residual"], rows, 1)
