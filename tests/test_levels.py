# SPDX-License-Identifier: Apache-2.0
"""Levels scored, chosen and shown."""

import csv
import dataclasses
import logging
import math
import struct

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.metrics import DiceMetric, MeanIoU, SurfaceDiceMetric
from monai.networks.utils import one_hot
from torch import nn

from monai_unetpp import LevelScore, UNetPlusPlus, prune, score_levels, select_level
from monai_unetpp.levels import check_report, draw_levels, write_levels
from monai_unetpp.levels.cost import interleaved, multiply_adds, peak_memory

SPACING = (1.0, 2.0, 1.5)
INFERER = SlidingWindowInferer((9, 9, 9), sw_batch_size=3, overlap=0.5, mode="gaussian")


def case(seed, shape=(12, 10, 9), label=None):
    """Noise with a label that has a meaning for no network: scores lie anywhere between 0 and 1."""
    rng = np.random.default_rng(seed)
    affine = torch.diag(torch.tensor([*SPACING, 1.0]))
    if label is None:
        label = np.zeros(shape)
        label[2:7, 2:8, 1:6] = rng.integers(0, 3, (5, 6, 5))
    image = MetaTensor(torch.tensor(rng.random(shape), dtype=torch.float32)[None], affine=affine)
    image.meta["filename_or_obj"] = f"case_{seed}.nii.gz"
    return {
        "image": image,
        "label": MetaTensor(torch.tensor(label, dtype=torch.float32)[None], affine=affine),
    }


def loader(*cases, batch_size=1):
    return DataLoader(Dataset(list(cases)), batch_size=batch_size)


@pytest.fixture(scope="module")
def net(tiny):
    return tiny(3, out_channels=3).eval()


@pytest.fixture(scope="module")
def scores(net):
    cases = [case(0), case(1, (14, 9, 11))]
    return score_levels(net, loader(*cases), INFERER, class_labels=["a", "b"], rounds=1, progress=False)


def score(level, dice, parameters=100, seconds=1.0, **other):
    values = {f"{metric}_per_class": {"a": dice} for metric in ("dice", "iou", "surface_dice")}
    values |= {"dice_per_case": (dice,), "multiply_adds": 10**9, "peak_mib": 10.0, **other}
    return LevelScore(level, dice, dice, dice, parameters=parameters, seconds=seconds, **values)


SCORES = [
    score(1, 0.8, 10, 0.1),
    score(2, 0.912, 1000, 0.3, multiply_adds=250_000_000, peak_mib=2.5),
    score(3, 0.9, 5000, 0.6),
    score(4, 0.918, 17700, 0.87),
]


# Scores


@pytest.mark.filterwarnings(
    "ignore"
)  # MONAI's, of a class that no voxel was given to, and of how it calls itself
@pytest.mark.parametrize("level", [1, 2, 3])
def test_scores_are_those_of_monais_metrics_on_each_level_alone(net, scores, level):
    metrics = {
        "dice": DiceMetric(include_background=False),
        "iou": MeanIoU(include_background=False),
        "surface_dice": SurfaceDiceMetric([2.0, 2.0], include_background=False),
    }
    alone = prune(net, level)
    for item in (case(0), case(1, (14, 9, 11))):
        with torch.no_grad():
            pred = one_hot(INFERER(item["image"][None], alone).argmax(1, keepdim=True), 3)
        label = one_hot(item["label"][None].as_tensor(), 3)
        metrics["dice"](pred, label)
        metrics["iou"](pred, label)
        metrics["surface_dice"](pred, label, spacing=SPACING)
    got = scores[level - 1]
    for name, metric in metrics.items():
        by_class = metric.aggregate("mean_batch").flatten().tolist()
        assert getattr(got, name) == pytest.approx(float(metric.aggregate("mean")), abs=1e-6)
        assert getattr(got, f"{name}_per_class") == pytest.approx(
            dict(zip("ab", by_class, strict=True)), abs=1e-6
        )
    assert np.mean(got.dice_per_case) == pytest.approx(got.dice, abs=1e-6)


def test_all_levels_are_scored_in_one_pass(net):
    windows = []
    count = net.encoder[0].register_forward_hook(lambda _, __, y: windows.append(len(y)))
    inferer = SlidingWindowInferer((9, 9, 9), overlap=0)
    score_levels(net, loader(case(0, (18, 9, 9))), inferer, rounds=1, progress=False)
    count.remove()
    levels, warm_and_timed_and_weighed = 3, 4  # two rounds, two for the memory
    assert len(windows) == 2 + levels * warm_and_timed_and_weighed


def test_batches_are_scored_case_by_case(net):
    cases = [case(0), case(2)]
    one, two = (
        score_levels(net, loader(*cases, batch_size=n), INFERER, rounds=1, progress=False) for n in (1, 2)
    )
    assert [s.dice_per_case for s in one] == [pytest.approx(s.dice_per_case, abs=1e-6) for s in two]


def test_scores_of_cases_are_those_of_which_the_means_are_taken(scores):
    for got in scores:
        assert got.cases == ("case_0.nii.gz", "case_1.nii.gz")
        for name, values in got.dice_per_case_and_class.items():
            assert np.nanmean(values) == pytest.approx(got.dice_per_class[name], abs=1e-6)
        columns = np.array(list(got.dice_per_case_and_class.values()))
        assert np.nanmean(columns, axis=0) == pytest.approx(got.dice_per_case, abs=1e-6)


def test_case_without_a_class_and_without_a_name_is_nan_and_numbered(net):
    one = case(0, label=np.pad(np.ones((2, 2, 2)), [(0, 10), (0, 8), (0, 7)]))
    one["image"] = one["image"].as_tensor()
    got, *_ = score_levels(net, loader(one), INFERER, class_labels=["a", "b"], rounds=1, progress=False)
    assert got.cases == ("case 1",)
    assert math.isnan(got.dice_per_case_and_class["b"][0])


def test_costs_are_those_of_the_pruned_networks(net, scores):
    assert [s.level for s in scores] == [1, 2, 3]
    for s in scores:
        pruned = prune(net, s.level)
        assert s.parameters == sum(p.numel() for p in pruned.parameters())
        assert s.multiply_adds == multiply_adds(pruned, (1, 1, 9, 9, 9))
        assert s.seconds > 0
        assert s.peak_mib > 0
    assert scores[0].peak_mib < scores[2].peak_mib


def test_network_of_one_level_is_scored(tiny):
    net = tiny(3, out_channels=3, channels=(4, 6))
    (got,) = score_levels(net, loader(case(0)), INFERER, rounds=1, progress=False)
    assert 0 < got.dice < 1


def test_network_is_left_as_it_was(tiny):
    net = tiny(3, out_channels=3)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net.level = 2
    score_levels(net, loader(case(0)), INFERER, rounds=1, progress=False)
    assert (net.level, net.training) == (2, True)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_perfect_network_has_perfect_scores(norm):
    """A network that knows: its head reads the input, which is the label."""
    net = UNetPlusPlus(2, 1, 1, channels=(4, 4), strides=2, norm=norm)
    net.all_heads = lambda x: [x - 0.5]
    label = torch.zeros(1, 12, 12)
    label[:, 3:8, 4:9] = 1
    (got,) = score_levels(
        net,
        loader({"image": label, "label": label}),
        SimpleInferer(),
        window=(8, 8),
        rounds=1,
        progress=False,
    )
    assert (got.dice, got.iou, got.surface_dice) == (1, 1, 1)
    assert got.dice_per_class == {"class_1": 1}


def test_surface_dice_counts_what_lies_within_the_tolerance():
    net = UNetPlusPlus(2, 1, 1, channels=(4, 4), strides=2)
    net.all_heads = lambda x: [torch.roll(x, 3, dims=2) - 0.5]  # three pixels away
    label = torch.zeros(1, 32, 32)
    label[:, 8:20, 8:20] = 1
    near, far = (
        score_levels(
            net,
            loader({"image": label, "label": label}),
            SimpleInferer(),
            surface_tolerance=tolerance,
            window=(8, 8),
            rounds=1,
            progress=False,
        )[0].surface_dice
        for tolerance in (3, 2)
    )
    assert near == 1
    assert far < 0.8


def test_case_of_background_only_has_no_score_and_is_named(net, caplog):
    empty = case(7, label=np.zeros((12, 10, 9)))
    scores = score_levels(net, loader(case(0), empty), INFERER, rounds=1, progress=False)
    assert [math.isnan(dice) for dice in scores[0].dice_per_case] == [False, True]
    assert scores[0].dice == pytest.approx(scores[0].dice_per_case[0])
    assert [r.message for r in caplog.records] == [
        "case_7.nii.gz has no class but background in its label: it has no score."
    ]


def test_progress_is_not_shown_where_there_is_no_terminal(net, capsys):
    score_levels(net, loader(case(0)), INFERER, rounds=1)
    assert "Scoring levels" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": []}, "the validation set is empty"),
        ({"data": [case(0, label=np.zeros((12, 10, 9)))]}, "of all 1 cases are background only"),
        ({"class_labels": ["a"]}, r"must name the 2 classes of out_channels = 3.* got \['a'\]"),
        ({"inferer": SimpleInferer()}, r"window must be given, 3 positive ints.* got \[\]"),
        ({"window": (8, 8)}, r"window must be given, 3 positive ints.* got \[8, 8\]"),
        ({"window": (8, 8, -1)}, r"got \[8, 8, -1\]"),
        (
            {"postprocessing": lambda item: item},
            r"case_0.nii.gz must be one-hot on the grid .*\[3, 12, 10, 9\]",
        ),
    ],
    ids=["empty", "background", "labels", "no-window", "flat-window", "open-window", "not-one-hot"],
)
def test_what_cannot_be_scored_is_said(net, arguments, message):
    settings = {"data": [case(0)], "inferer": INFERER, "rounds": 1, "progress": False, **arguments}
    settings["data"] = loader(*settings["data"])
    with pytest.raises(ValueError, match=message):
        score_levels(net, **settings)


@pytest.mark.parametrize("shrink", [False, True], ids=["trained-so", "pruned"])
def test_network_without_deep_supervision_has_no_levels_to_compare(tiny, shrink):
    net = prune(tiny(3), 2) if shrink else tiny(3, deep_supervision=False)
    with pytest.raises(ValueError, match=f"no head but that of L{net.depth} was ever trained"):
        score_levels(net, loader(case(0)), INFERER)


# Costs


def test_multiply_adds_of_a_convolution_are_counted():
    conv = nn.Conv3d(2, 3, 3, padding=1)
    assert multiply_adds(conv, (1, 2, 4, 5, 6)) == 4 * 5 * 6 * 2 * 3 * 27
    assert conv.weight.device.type == "cpu"


def test_peak_memory_is_the_most_that_is_alive_at_a_time():
    mib = 2**18  # floats

    def job():
        a = torch.zeros(3 * mib)
        b = a + 1  # 6 MiB with a
        del a
        c = b.view(-1)[:mib] * 2  # 4
        return c.add_(1)

    assert peak_memory(job, "cpu") == pytest.approx(6)


def test_jobs_take_turns_after_a_round_that_is_not_counted():
    turns = []
    seconds = interleaved({name: lambda name=name: turns.append(name) for name in "ab"}, rounds=2)
    assert turns == list("ababab")
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}


# The choice


@pytest.mark.parametrize(
    ("dice", "tolerance", "level"),
    [
        ((0.80, 0.91, 0.90, 0.92), 0.0, 4),
        ((0.80, 0.91, 0.90, 0.92), 0.01, 2),
        ((0.80, 0.91, 0.90, 0.92), 0.02, 2),
        ((0.80, 0.91, 0.90, 0.92), 0.12, 1),
        ((0.80, 0.93, 0.90, 0.92), 0.0, 2),  # a shallow level may be the best
        ((0.90, 0.90, 0.90), 0.0, 1),
        ((0.5,), 0.0, 1),
    ],
)
def test_shallowest_level_within_the_tolerance_is_chosen(dice, tolerance, level):
    scores = [score(k, d) for k, d in enumerate(dice, start=1)]
    assert select_level(scores, tolerance) == level
    assert select_level(scores[::-1], tolerance) == level


@pytest.mark.parametrize(
    ("tolerance", "line"),
    [
        (0.01, "L2: Dice 0.912, best L4 0.918, tolerance 0.010; 17.7x fewer parameters, 2.9x faster than L4"),
        (0.0, "L4: Dice 0.918, best L4 0.918, tolerance 0.000; no shallower level is good enough"),
    ],
)
def test_choice_explains_itself_in_one_line(caplog, tolerance, line):
    with caplog.at_level(logging.INFO, logger="monai_unetpp"):
        select_level(SCORES, tolerance)
    assert [record.message for record in caplog.records] == [line]


def test_of_levels_that_are_equal_the_shallowest_is_the_best(caplog):
    with caplog.at_level(logging.INFO, logger="monai_unetpp"):
        select_level([score(4, 0.9), score(3, 0.8), score(2, 0.9), score(1, 0.7)], 0.0)
    assert "L2: Dice 0.900, best L2 0.900" in caplog.text


@pytest.mark.parametrize(
    ("scores", "tolerance", "message"),
    [
        ([], 0.1, "scores must hold at least one level"),
        (SCORES, -0.1, "tolerance must be a Dice of at least 0, such as 0.01, got -0.1"),
        (SCORES, math.nan, "got nan"),
        ([score(1, math.nan)], 0.1, "got NaN: no case"),
    ],
    ids=["none", "negative", "not-a-number", "no-dice"],
)
def test_nothing_is_chosen_from_what_is_no_score(scores, tolerance, message):
    with pytest.raises(ValueError, match=message):
        select_level(scores, tolerance)


def test_a_score_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SCORES[0].dice = 1.0


# Table and figure


def test_table_holds_the_scores_and_their_share_of_the_deepest(tmp_path):
    write_levels(SCORES, tmp_path / "new", level=2, tolerance=0.01)
    rows = list(csv.DictReader((tmp_path / "new" / "levels.csv").read_text().splitlines()))
    assert [row["level"] for row in rows] == ["1", "2", "3", "4"]
    assert [float(row["dice"]) for row in rows] == [0.8, 0.912, 0.9, 0.918]
    assert [float(row["dice a"]) for row in rows] == [0.8, 0.912, 0.9, 0.918]
    assert float(rows[1]["parameters share"]) == pytest.approx(1000 / 17700, abs=1e-4)
    assert float(rows[1]["seconds share"]) == pytest.approx(0.3 / 0.87, abs=1e-4)
    assert float(rows[3]["multiply_adds share"]) == 1


def test_markdown_marks_the_chosen_level(tmp_path):
    write_levels(SCORES, tmp_path, level=2, tolerance=0.01, title="Balls")
    lines = (tmp_path / "levels.md").read_text().splitlines()
    assert lines[0] == "# Balls"
    table = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert [line.startswith("| **L2** | 0.912") for line in table[2:]] == [False, True, False, False]
    assert table[3] == (
        "| **L2** | 0.912 | 0.912 | 0.912 | 1,000 (5.6%) | 0.25 G (25%) | 300 ms (34%) | 2.5 MiB (25%) |"
    )
    assert lines[-1].endswith("Chosen: L2, the shallowest within 0.01 Dice of the best.")


def test_picture_is_one(tmp_path):
    write_levels(SCORES, tmp_path, level=2, tolerance=0.01)
    data = (tmp_path / "levels.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert width > height > 400


def test_figure_shows_quality_against_time_with_parameters_as_area():
    (axes,) = draw_levels(SCORES, level=2, tolerance=0.01, title="Balls").axes
    points = axes.collections
    places = [tuple(point.get_offsets()[0]) for point in points]
    assert np.allclose(places, [(100, 0.8), (300, 0.912), (600, 0.9), (870, 0.918)])
    assert np.allclose(axes.lines[0].get_xydata(), places)
    labels = [text.get_text() for text in axes.texts]
    assert labels == ["L1  0 k", "L2  1 k", "L3  5 k", "L4  18 k", " within 0.01 of the best"]
    areas = [point.get_sizes()[0] for point in points]
    assert areas[2] / areas[3] == pytest.approx(5000 / 17700)
    colours = [tuple(point.get_facecolor()[0]) for point in points]
    assert colours[1] not in (colours[0], colours[2])
    assert colours[0] == colours[2] == colours[3]
    for (left, right), place in zip((axes.get_xlim(), axes.get_ylim()), np.transpose(places), strict=True):
        assert left < place.min() <= place.max() < right
        assert place.max() - place.min() > 0.5 * (right - left)  # and they fill it


def test_dice_of_every_case_and_class_is_written(scores, tmp_path):
    write_levels(scores, tmp_path, 2, 0.01)
    rows = list(csv.DictReader((tmp_path / "levels_cases.csv").read_text().splitlines()))
    assert list(rows[0]) == ["level", "precision", "case", "class", "dice"]
    found = {(int(r["level"]), r["precision"], r["case"], r["class"]): float(r["dice"]) for r in rows}
    assert len(found) == len(rows) == len(scores) * 2 * 2
    for got in scores:
        for name, values in got.dice_per_case_and_class.items():
            for path, value in zip(got.cases, values, strict=True):
                want = pytest.approx(value, abs=1e-4, nan_ok=True)
                assert found[got.level, "float32", path, name] == want
    with pytest.raises(FileExistsError, match=r"levels\.csv"):
        write_levels(scores, tmp_path, 2, 0.01)
    for name in ("levels.csv", "levels.md", "levels.png"):
        (tmp_path / name).unlink()
    with pytest.raises(FileExistsError, match=r"levels_cases\.csv"):
        write_levels(scores, tmp_path, 2, 0.01)
    write_levels(SCORES, tmp_path, 2, 0.01, overwrite=True)  # scores without cases: no table of others
    assert not (tmp_path / "levels_cases.csv").exists()


@pytest.mark.parametrize("name", ["levels.csv", "levels.md", "levels.png", "levels_cases.csv", "L2"])
def test_report_is_not_begun_where_one_is(tmp_path, name):
    check_report(tmp_path / "new")
    (tmp_path / name).mkdir()
    with pytest.raises(FileExistsError, match=f"{name} exists.*--overwrite"):
        check_report(tmp_path)
    check_report(tmp_path, overwrite=True)


def test_report_is_overwritten_on_request_only(tmp_path):
    write_levels(SCORES, tmp_path, level=2, tolerance=0.01)
    with pytest.raises(FileExistsError, match=r"levels\.csv exists"):
        write_levels(SCORES[:2], tmp_path, level=1, tolerance=0.01)
    assert len((tmp_path / "levels.csv").read_text().splitlines()) == 5
    write_levels(SCORES[:2], tmp_path, level=1, tolerance=0.01, overwrite=True)
    assert len((tmp_path / "levels.csv").read_text().splitlines()) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["levels.csv", "levels.md", "levels.png"]


def test_inferer_of_two_axes_tells_the_window(tiny):
    net = tiny(2)
    inferer = type("Slices", (), {"roi_size": (9, 9), "__call__": lambda _, x, network: network(x)})()
    item = {"image": torch.rand(1, 12, 12), "label": torch.ones(1, 12, 12)}
    scores = score_levels(net, loader(item), inferer, rounds=1, progress=False)
    assert scores[2].multiply_adds == multiply_adds(prune(net, 3), (1, 1, 9, 9))
