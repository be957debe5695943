# SPDX-License-Identifier: Apache-2.0
"""Early exit and its calibration."""

import json
import logging
from dataclasses import replace

import pytest
import torch
from exits import stop
from monai.inferers import SlidingWindowInferer, sliding_window_inference
from monai.metrics import compute_dice

from bundles import BUNDLES, TINY, run
from monai_unetpp import UNetPlusPlus
from monai_unetpp.inferers import EarlyExitInferer
from monai_unetpp.levels import (
    ExitScore,
    calibrate_exit,
    calibrated_level,
    read_calibration,
    write_calibration,
)
from monai_unetpp.segment import load_pipeline, segment
from monai_unetpp.weights import Record, write_record

WINDOW = {"roi_size": (16, 16, 16), "sw_batch_size": 4, "overlap": 0.25, "mode": "gaussian"}
FOUND = ExitScore(threshold=0.2, dice=0.8, full_dice=0.81, exits=(3, 2), tolerance=0.01)
DEEP = [4, 6, 8]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def net():
    """Three levels; the deepest is what the labels were made by, the others know it roughly."""
    torch.manual_seed(0)
    net = UNetPlusPlus(3, 1, 2, channels=(4, 4, 4, 4), strides=2).eval()
    for head in net.heads.values():
        head.weight.data *= 6
    return net


@pytest.fixture(scope="module")
def data(net):
    batches = []
    for n in range(3):
        image = torch.randn(1, 1, 24, 24, 40, generator=torch.Generator().manual_seed(n))
        with torch.no_grad():
            label = SlidingWindowInferer(**WINDOW)(image, net).argmax(1, keepdim=True)
        batches.append({"image": image, "label": label})
    return batches


def brute_force(net, data, threshold):
    """Mean Dice with early exit, by all heads of every window."""

    def stopped(windows):
        heads = net.all_heads(windows)[::-1]
        stops = [stop([head[n : n + 1] for head in heads], threshold) for n in range(len(windows))]
        return torch.stack([heads[k][n] for n, k in enumerate(stops)])

    scores = []
    for batch in data:
        with torch.no_grad():
            logits = sliding_window_inference(batch["image"], predictor=stopped, **WINDOW)
        found = logits.argmax(1, keepdim=True)
        scores.append(compute_dice(found, batch["label"], include_background=True))
    return float(torch.stack(scores).mean())


THRESHOLDS = (0.75, 0.695, 0.685, 0.6, 0.192, 0.19, 0.189, 0.16)


@pytest.fixture(scope="module")
def scores(net, data):
    """Mean Dice of each threshold, by brute force."""
    return {threshold: brute_force(net, data, threshold) for threshold in (*THRESHOLDS, 0)}


@pytest.mark.parametrize("tolerance", [0.0, 0.05, 0.2, 0.6])
def test_the_threshold_is_the_greatest_that_loses_no_more_than_is_accepted(net, data, scores, tolerance):
    found = calibrate_exit(
        net, data, SlidingWindowInferer(**WINDOW), tolerance=tolerance, thresholds=THRESHOLDS
    )
    assert scores[0] == pytest.approx(1)
    good = [threshold for threshold, dice in scores.items() if 1 - dice <= tolerance + 1e-6]
    assert found.threshold == max(good)
    assert found.dice == pytest.approx(scores[found.threshold], abs=1e-4)
    assert found.full_dice == pytest.approx(1)
    assert sum(found.exits) > 3
    assert min(scores.values()) < 0.95  # or there was nothing to choose


def test_no_window_stops_early_if_every_threshold_loses_too_much(net, data):
    found = calibrate_exit(net, data, SlidingWindowInferer(**WINDOW), tolerance=0.0, thresholds=(0.4, 0.5))
    assert (found.threshold, found.dice) == (0, found.full_dice)
    assert found.exits[:-1] == (0, 0)


def test_the_network_is_left_as_it_was(net, data):
    net.level = 2
    calibrate_exit(net, data, SlidingWindowInferer(**WINDOW), thresholds=(0.1,))
    assert net.level == 2
    assert not net.training
    net.level = 3


def test_what_was_chosen_is_logged(net, data, caplog):
    with caplog.at_level(logging.INFO):
        calibrate_exit(net, data, SlidingWindowInferer(**WINDOW), thresholds=(0.1,))
    assert "Early exit at an uncertainty of" in caplog.text
    assert "windows that stop at L1" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tolerance": -1}, r"tolerance must be a Dice of at least 0, such as 0\.005, got -1"),
        ({"data": []}, "a class other than background: none has"),
        ({"network": UNetPlusPlus(3, 1, 2, (4, 4), strides=2, deep_supervision=False)}, "levels to stop at"),
    ],
    ids=["tolerance", "no-case", "one-head"],
)
def test_what_cannot_be_calibrated_is_an_error(net, data, change, message):
    arguments = {"network": net, "data": data, "inferer": SlidingWindowInferer(**WINDOW), **change}
    with pytest.raises(ValueError, match=message):
        calibrate_exit(**arguments)


# Beside the weights


def test_what_was_found_is_read_again(tmp_path):
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"weights")
    assert write_calibration(weights, 2, FOUND) == tmp_path / "model.json"
    found = read_calibration(weights)
    assert (found.level, found.exit) == (2, FOUND)


def test_a_level_holds_without_early_exit(tmp_path):
    """Folds that choose another precision together than one of them alone leave it without early exit."""
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"weights")
    assert calibrated_level(weights) is None
    write_record(weights, Record("", level=2, precision="bfloat16"))
    assert calibrated_level(weights) == 2
    with pytest.raises(FileNotFoundError, match=r"model\.pt was not calibrated"):
        read_calibration(weights)


def test_what_was_found_for_other_weights_is_refused(tmp_path):
    weights = tmp_path / "model.pt"
    with pytest.raises(FileNotFoundError, match=r"model\.pt was not calibrated.*run levels\.json"):
        read_calibration(weights)
    weights.write_bytes(b"weights")
    write_calibration(weights, 2, FOUND)
    weights.write_bytes(b"trained on")
    with pytest.raises(ValueError, match=r"model\.json is the record of other weights than .*model\.pt"):
        read_calibration(weights)
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(ValueError, match=r"model\.json is damaged"):
        read_calibration(weights)


@pytest.fixture(scope="module")
def calibrated(balls, tmp_path_factory):
    """The folder of a liver bundle after training and calibration."""
    root = tmp_path_factory.mktemp("calibrated")
    settings = {"dataset_dir": str(balls), "channels": DEEP, "formats": ["pt"]}
    run("liver", "train", root, **{k: v for k, v in settings.items() if k != "formats"})
    run("liver", "train levels", root, **settings, exit_tolerance=1.0)
    return root / "models" / "model.pt"


def test_the_bundle_calibrates_its_weights(calibrated):
    found = json.loads(calibrated.with_suffix(".json").read_text())
    assert found["level"] in (1, 2)
    assert found["exit"]["threshold"] == 0.99  # any loss is accepted


def test_segment_takes_the_level_that_was_found(balls, calibrated, tmp_path):
    settings = {**TINY, "channels": DEEP, "ckpt_path": str(calibrated), "level": "auto"}
    chosen = read_calibration(calibrated)
    for level in (1, 2):
        write_calibration(calibrated, level, chosen.exit)
        pipeline = load_pipeline(BUNDLES / "liver", balls, tmp_path, **settings)
        assert pipeline.network.level == level
    write_calibration(calibrated, chosen.level, chosen.exit)


def test_segment_exits_early_as_was_found(balls, calibrated, tmp_path):
    weights, chosen, calibrated = torch.load(calibrated), read_calibration(calibrated), tmp_path / "sure.pt"
    weights["heads.0.bias"][0] += 10  # L1 is sure of the background
    torch.save(weights, calibrated)
    settings = {**TINY, "channels": DEEP, "ckpt_path": str(calibrated)}
    write_calibration(calibrated, chosen.level, replace(chosen.exit, threshold=0.25))
    pipeline = load_pipeline(BUNDLES / "liver", balls, tmp_path, ("early_exit",), **settings)
    windows = pipeline.inferer.inferer
    assert isinstance(windows, EarlyExitInferer)
    assert windows.threshold == 0.25
    assert windows.overlap == 0.5
    outcomes = segment(
        balls / "imagesTr", tmp_path / "out", BUNDLES / "liver", overlays=("early_exit",), **settings
    )
    assert all(sum(outcome.exits) == outcome.exits[0] > 0 for outcome in outcomes)


def test_what_a_unetplusplus_cannot_take_is_refused(net):
    with pytest.raises(ValueError, match="with_coord must be left out"):
        EarlyExitInferer(0.1, **WINDOW, with_coord=True)
    with pytest.raises(ValueError, match="takes no further arguments, got 2"):
        EarlyExitInferer(0.1, **WINDOW)(torch.zeros(1, 1, 16, 16, 16), net, 1, scale=2)
