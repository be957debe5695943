# SPDX-License-Identifier: Apache-2.0
"""From a folder of data to weights and a choice, in one command that goes on where it was stopped."""

import contextlib
import csv
import errno
import json
import math
import os
import shutil
import signal
import statistics
import time
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock
from processes import running

from bundles import AFFINES, TINY_PLAN, ball, write_cases
from monai_unetpp.__main__ import main
from monai_unetpp.files import read_csv, write_csv
from monai_unetpp.fitting import command, fit_bundle, pictures
from monai_unetpp.fitting import outcome as outcomes
from monai_unetpp.fitting.outcome import choose
from monai_unetpp.fitting.stages import Training
from monai_unetpp.levels import pool_levels, read_levels
from monai_unetpp.levels.select import by_precision
from monai_unetpp.planning import Source
from monai_unetpp.planning import command as planning
from monai_unetpp.weights import read_record

FIVE_EPOCHS = {**TINY_PLAN, "max_epochs": 5}
OPTIONS = {"folds": 2, "device": "cpu", "given": TINY_PLAN}


@pytest.fixture(autouse=True, scope="module")
def _speed():
    """Seconds that a test need not take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "speed_of_machine", lambda *_: 3e10)
        yield


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device", "x")


def fit(source, out, **options):
    said = []
    return fit_bundle(source, out, say=said.append, **{**OPTIONS, **options}), said


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Data, bundle, outcome and what was said."""
    root = tmp_path_factory.mktemp("fitted")
    data = write_cases(
        root / "data", (ball(f"{name}{n}", AFFINES[name]) for name in ("RAS", "LPS") for n in (1, 2))
    )
    outcome, said = fit(Source(data), root / "balls")
    return data, root / "balls", outcome, said


@pytest.fixture
def copied(fitted, tmp_path):
    """A copy of the finished bundle, to be stopped at some stage."""
    data, bundle, *_ = fitted
    return Source(data), shutil.copytree(bundle, tmp_path / "balls")


def test_every_case_is_scored_once_by_the_network_that_did_not_see_it(fitted):
    """Independent of our reading and pooling: means of the rows of the folds' tables."""
    data, bundle, outcome, _ = fitted
    rows = []
    for fold in (0, 1):
        with (bundle / f"levels/fold_{fold}/levels_cases.csv").open() as file:
            rows += list(csv.DictReader(file))
        held_out = json.loads((bundle / "splits.json").read_text())[fold]["val"]
        names = {row["case"] for row in rows[-len(rows) // (fold + 1) :]}
        assert len(names) == len(held_out) == 2
    index = json.loads((data / "dataset.json").read_text())
    assert len({row["case"] for row in rows}) == len(index["training"])
    for score in outcome.scores:
        of = [row for row in rows if (int(row["level"]), row["precision"]) == (score.level, score.precision)]
        by_case = {}
        for row in of:
            by_case.setdefault(row["case"], []).append(float(row["dice"]))
        assert score.dice == pytest.approx(
            statistics.fmean(map(statistics.fmean, by_case.values())), abs=1e-4
        )
        for name, dice in score.dice_per_class.items():
            mine = [float(row["dice"]) for row in of if row["class"] == name]
            assert dice == pytest.approx(statistics.fmean(mine), abs=1e-4)


def test_choice_is_the_shallowest_good_level_and_lies_beside_the_weights_of_each_fold(fitted):
    _, bundle, outcome, _ = fitted
    first = next(iter(by_precision(outcome.scores).values()))
    best = max(score.dice for score in first)
    assert outcome.level == min(score.level for score in first if best - score.dice <= 0.01)
    assert outcome.weights == [bundle / f"models/fold_{fold}/model.pt" for fold in (0, 1)]
    for weights in outcome.weights:
        record = read_record(weights)
        assert (record.level, record.precision) == (outcome.level, outcome.precision)
    assert read_levels(bundle / "levels")[0].dice == pytest.approx(outcome.scores[0].dice, abs=1e-4)


def test_lines_say_dice_by_class_level_and_what_it_saves(fitted):
    _, _, outcome, said = fitted
    lines = outcome.lines()
    assert "Dice of 4 held-out cases" in lines[0]
    assert [line.split()[0] for line in lines[2:4]] == ["L1", "L2"]
    assert lines[4].startswith(f"Chosen: L{outcome.level} in {outcome.precision}: ")
    assert [line for line in said if line.startswith("Fold")] == [
        "Fold 0 of 2: training, 2 epochs.",
        "Fold 0 of 2: scoring the levels.",
        "Fold 1 of 2: training, 2 epochs.",
        "Fold 1 of 2: scoring the levels.",
    ]


@pytest.mark.parametrize(
    ("level", "depth", "precision", "said"),
    [
        (1, 2, "float32", "4.0 times fewer parameters and 1.5 times faster than L2 in float32, Dice -0.0100"),
        (2, 2, "bfloat16", "good enough; 3.0 times faster than in float32, Dice -0.0010"),
        (2, 2, "float32", "the deepest; no shallower level is good enough."),
        (1, 1, "float32", "the only level."),
    ],
)
def test_choice_says_what_it_saves(fitted, level, depth, precision, said):
    [first, *_] = fitted[2].scores
    made = {
        1: {"parameters": 1, "seconds": 2.0, "dice": 0.89},
        2: {"parameters": 4, "seconds": 3.0, "dice": 0.9},
    }
    scores = [replace(first, level=k, **made[k]) for k in range(1, depth + 1)]
    scores += [replace(each, precision="bfloat16", seconds=1.0, dice=each.dice - 0.001) for each in scores]
    assert said in replace(fitted[2], scores=scores, level=level, precision=precision).table()[-1]


def test_masks_by_the_networks_of_all_folds(fitted, tmp_path):
    data, bundle, outcome, _ = fitted
    words = ["segment", "-i", str(data / "imagesTr"), "-o", str(tmp_path / "out"), "--bundle", str(bundle)]
    main([*words, "--checkpoint", *map(str, outcome.weights)])
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 4


# A run that was stopped


def states(bundle):
    """Time of every file of weights and scores."""
    files = [*bundle.glob("models/*/model.pt"), *bundle.glob("levels/*/levels.csv")]
    return {path.relative_to(bundle).as_posix(): path.stat().st_mtime_ns for path in files}


def test_finished_run_does_nothing_again(copied, fitted):
    source, bundle = copied
    before = states(bundle)
    outcome, said = fit(source, bundle)
    assert (said, states(bundle)) == ([], before)
    assert outcome.level == fitted[2].level


@pytest.mark.parametrize(
    ("lost", "again"),
    [
        (["levels/fold_1"], ["scoring the levels"]),
        (["levels/fold_1/levels.md"], ["scoring the levels"]),  # half-written
        (["models/fold_1", "levels/fold_1"], ["training, 2 epochs", "scoring the levels"]),
        (
            ["models/fold_1/checkpoint_epoch=2.pt", "levels/fold_1"],
            ["training, 2 epochs", "scoring the levels"],
        ),
        (
            ["models/fold_1/checkpoint_epoch=1.pt", "models/fold_1/checkpoint_epoch=2.pt"],
            ["training, 2 epochs"],
        ),
    ],
)
def test_stopped_run_goes_on_where_it_was_and_comes_to_the_same(copied, fitted, lost, again):
    source, bundle = copied
    kept = {name: state for name, state in states(bundle).items() if "fold_0" in name}
    for name in lost:
        path = bundle / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    outcome, said = fit(source, bundle)
    of_folds = [line.split(": ")[1].rstrip(".") for line in said if line.startswith("Fold")]
    assert of_folds[: len(again)] == again
    assert {name: states(bundle)[name] for name in kept} == kept
    for score, before in zip(outcome.scores, fitted[2].scores, strict=True):
        assert score.dice == pytest.approx(before.dice, abs=1e-3)


@pytest.mark.parametrize("stage", ["train", "score"])
def test_full_disk_in_the_second_fold_is_said(copied, monkeypatch, stage):
    """What was there is as it was: a stopped run, which goes on (below)."""
    source, bundle = copied
    shutil.rmtree(bundle / "levels/fold_1")
    if stage == "train":
        shutil.rmtree(bundle / "models/fold_1")
    before = states(bundle)
    with monkeypatch.context() as patch:

        def full(training, *_):
            raise OSError(errno.ENOSPC, "No space left on device", str(training.weights))

        patch.setattr(Training, stage, full)
        with pytest.raises(OSError, match=r"No space left on device.*fold_1"):
            fit(source, bundle)
    assert states(bundle) == before


def test_plan_that_failed_leaves_no_bundle(tmp_path, fitted, monkeypatch):
    data, *_ = fitted

    monkeypatch.setattr(command, "plan_bundle", full_disk)
    with pytest.raises(OSError, match="No space left"):
        fit(Source(data), tmp_path / "b")
    assert not (tmp_path / "b").exists()


# All levels first, then the chosen one alone


@pytest.fixture(scope="module")
def narrowed(fitted, tmp_path_factory):
    """Data, bundle, outcome and what was said; any level is good enough."""
    data, bundle = fitted[0], tmp_path_factory.mktemp("narrowed") / "balls"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outcomes, "tolerances", lambda _: (1.0, 0.002))
        yield data, bundle, *fit(Source(data), bundle, narrow=True, given=FIVE_EPOCHS)


def test_second_part_trains_the_chosen_level_from_its_weights(narrowed):
    data, bundle, outcome, said = narrowed
    every = bundle.parent / "balls_all_levels"
    assert ({score.level for score in outcome.scores}, outcome.bundle) == ({1}, bundle)
    plan = json.loads((bundle / "plan/plan.json").read_text())
    assert plan["channels"]["value"] == TINY_PLAN["channels"][:2]
    epochs = plan["max_epochs"]["value"]
    assert 4 <= epochs <= 15  # two with all levels are 40 % of the time
    trainings = [line for line in said if "training" in line]
    assert trainings == [f"Fold {fold} of 2: training, {n} epochs." for n in (2, epochs) for fold in (0, 1)]
    for fold, path in enumerate(outcome.weights):
        first, second = read_record(every / f"models/fold_{fold}/model.pt"), read_record(path)
        assert second.initial_weights == {"file": "model.pt", "sha256": first.weights}
        assert second.network["channels"] == TINY_PLAN["channels"][:2]
        assert (first.level, len(first.network["channels"])) == (1, 3)
    before = states(bundle) | states(every)
    again, said = fit(Source(data), bundle, narrow=True, given=FIVE_EPOCHS)
    assert (again.level, said, states(bundle) | states(every)) == (1, [], before)


def test_second_part_that_was_stopped_goes_on_where_it_was(narrowed, tmp_path):
    data, bundle, outcome, _ = narrowed
    for name in ("balls", "balls_all_levels"):
        shutil.copytree(bundle.parent / name, tmp_path / name)
    copy, epochs = tmp_path / "balls", json.loads((bundle / "train.json").read_text())["max_epochs"]
    shutil.rmtree(copy / "levels/fold_1")
    (copy / f"models/fold_1/checkpoint_epoch={epochs}.pt").unlink()
    kept = {name: state for name, state in states(copy).items() if "fold_0" in name}
    again, said = fit(Source(data), copy, narrow=True, given=FIVE_EPOCHS)
    assert said[:2] == [f"Fold 1 of 2: training, {epochs} epochs.", "Fold 1 of 2: scoring the levels."]
    assert {name: states(copy)[name] for name in kept} == kept
    for score, before in zip(again.scores, outcome.scores, strict=True):
        assert score.dice == pytest.approx(before.dice, abs=1e-3)


def test_first_part_that_was_stopped_goes_on_where_it_was(narrowed, tmp_path):
    data, bundle, *_ = narrowed
    every = shutil.copytree(bundle.parent / "balls_all_levels", tmp_path / "balls_all_levels")
    shutil.rmtree(every / "levels/fold_1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "write_second_part", full_disk)
        with pytest.raises(OSError, match="No space left"):
            fit(Source(data), tmp_path / "balls", narrow=True, given=FIVE_EPOCHS)
    assert not (tmp_path / "balls").exists()
    assert (every / "levels/fold_1/levels.md").is_file()


def test_mask_by_the_narrowed_networks(narrowed, tmp_path):
    data, _, outcome, _ = narrowed
    words = ["segment", "-i", str(data / "imagesTr"), "-o", str(tmp_path), "--bundle", str(outcome.bundle)]
    main([*words, "--checkpoint", *map(str, outcome.weights)])
    assert len(list(tmp_path.glob("*.nii.gz"))) == 4


def test_fit_that_was_not_narrowed_is_not_narrowed_afterwards(copied):
    source, bundle = copied
    with pytest.raises(ValueError, match="balls was fitted with narrow False, got True"):
        fit(source, bundle, narrow=True)


# Refused


def test_two_at_once(copied):
    source, bundle = copied
    with (
        FileLock(bundle.parent / f".{bundle.name}.lock"),
        pytest.raises(FileExistsError, match=r"balls is being fitted by another process.*another --out"),
    ):
        fit(source, bundle)


def test_other_arguments_than_before(copied):
    source, bundle = copied
    with pytest.raises(
        ValueError, match=r"balls was fitted with folds 2, got 3: the same arguments resume it"
    ):
        fit(source, bundle, folds=3)


def test_folder_of_something_else(tmp_path, fitted):
    data, *_ = fitted
    (tmp_path / "notes").mkdir()
    with pytest.raises(FileExistsError, match=r"notes has no fit\.json: give another --out"):
        fit(Source(data), tmp_path / "notes")
    assert not list((tmp_path / "notes").iterdir())


def test_folds_of_machines_with_other_precisions_are_chosen_by_what_they_share(copied):
    _, bundle = copied
    rows = read_csv(path := bundle / "levels/fold_0/levels.csv")
    write_csv(path, [*rows, *({**row, "precision": "float16"} for row in rows)])
    outcome = choose([Training(bundle, 2, fold) for fold in (0, 1)])
    assert {score.precision for score in outcome.scores} == {row["precision"] for row in rows}


def test_folds_that_do_not_fit_together(copied):
    _, bundle = copied
    path = bundle / "levels/fold_0/levels.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(ValueError, match="all folds must have the same levels"):
        choose([Training(bundle, 2, fold) for fold in (0, 1)])


def test_damaged_table_is_named(copied):
    _, bundle = copied
    path = bundle / "levels/fold_0/levels_cases.csv"
    path.write_text(path.read_text().replace("dice", "nice", 1))
    with pytest.raises(ValueError, match=r"levels_cases\.csv is damaged"):
        read_levels(path.parent)


def test_class_that_no_case_of_a_fold_has_does_not_count_there(fitted):
    """NaN of one fold leaves the mean of the others."""
    _, bundle, *_ = fitted
    folds = [read_levels(bundle / f"levels/fold_{fold}") for fold in (0, 1)]
    name = next(iter(folds[0][0].dice_per_class))
    lacking = [
        type(score)(
            **{
                **vars(score),
                "dice_per_case_and_class": {**score.dice_per_case_and_class, name: (math.nan,) * 2},
            }
        )
        for score in folds[0]
    ]
    [pooled, *_] = pool_levels([lacking, folds[1]])
    assert pooled.dice_per_class[name] == pytest.approx(folds[1][0].dice_per_class[name], abs=1e-4)


# Several devices


def test_folds_shared_by_two_processes_come_to_the_same(fitted, tmp_path):
    data, _, outcome, _ = fitted
    options = {"devices": ["cpu", "cpu"], "device": None}
    shared, _ = fit(Source(data), tmp_path / "balls", **options)
    assert fit(Source(data), tmp_path / "balls", **options)[0].level == shared.level  # nothing is left to do
    for score, alone in zip(shared.scores, outcome.scores, strict=True):
        assert score.dice == pytest.approx(alone.dice, abs=0.02)  # threads add in another order


JOBS = """
import os, signal, time
from pathlib import Path

GROUPS = [["idle"], ["training"]]

def run(job):
    got = []
    if job == "training":
        signal.signal(signal.SIGTERM, lambda *_: got.append(1))
    Path(f"{os.getpid()}.pid").touch()
    while not got:
        time.sleep(0.1)
    raise SystemExit(143)
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are listed in /proc")
def test_processes_end_with_the_one_that_started_them(tmp_path):
    """Killed, so that it cannot tell them; a training saves on the signal, and exits with 143."""
    (tmp_path / "jobs.py").write_text(JOBS)
    start = "import jobs; from monai_unetpp.fitting.sharing import share_folds as s; s(jobs.run, jobs.GROUPS)"
    with running("-c", start, cwd=tmp_path, log=tmp_path / "log.txt") as parent:
        wait_for(lambda: len([*tmp_path.glob("*.pid")]) == 2, seconds=200)  # they import torch and MONAI
        started = [int(path.stem) for path in tmp_path.glob("*.pid")]
        assert all(is_running(pid) for pid in started)
        parent.kill()
        parent.join()
        try:
            wait_for(lambda: not any(is_running(pid) for pid in started))
        finally:
            for pid in started:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, r"folds must be a whole number from 2 on, got 1"),
        ({"folds": 0}, r"folds must be a whole number from 2 on, got 0"),
        ({"folds": 5}, r"folds must be at most 4, the number of scans, got 5"),
        (
            {"devices": ["cuda:0", "cuda:0"], "device": None},
            "devices must be different, got cuda:0 more than once",
        ),
        (
            {"devices": ["cuda", "cuda:0"], "device": None},
            "devices must be different, got cuda:0 more than once",
        ),
        (
            {"devices": ["cuda:0", "cpu"], "device": None},
            "devices must be of one kind, for which the plan is made, got cpu and cuda",
        ),
        ({"devices": ["cpu", "cpu"]}, "device must be left out with devices cpu cpu, got cpu"),
    ],
)
def test_folds_and_devices_that_do_not_fit_are_refused_before_anything_is_written(
    fitted, tmp_path, options, message
):
    data, *_ = fitted
    with pytest.raises(ValueError, match=message):
        fit(Source(data), tmp_path / "balls", **options)
    assert not (tmp_path / "balls").exists()


def test_case_that_cannot_be_drawn_is_left_out_of_the_report(copied, monkeypatch, caplog):
    source, bundle = copied
    (bundle / "report.html").unlink()

    def fails(*_, **__):
        raise ValueError("no such slice")

    monkeypatch.setattr(pictures, "draw_case", fails)
    fit(source, bundle)
    assert (bundle / "report.html").is_file()
    assert caplog.text.count("in the report: no such slice") == 3


def test_folds_that_are_left_are_shared_by_all_devices(copied, monkeypatch):
    """Not those that fall to each by their numbers: two of one GPU would fill its memory."""
    _, bundle = copied
    devices = ["cuda:0", "cuda:1"]
    trainings = [Training(bundle, 5, fold, devices[fold % 2]) for fold in range(5)]
    for stage in ("is_trained", "is_scored"):
        monkeypatch.setattr(Training, stage, lambda training: training.fold == 1)

    class SharedError(Exception):
        """Instead of the trainings."""

    def share(_, groups):
        raise SharedError(groups)

    monkeypatch.setattr(command, "share_folds", share)
    with pytest.raises(SharedError) as shared:
        command._fit(trainings, 2, print)
    [groups] = shared.value.args
    found = [[(training.fold, training.device) for training in group] for group in groups]
    assert found == [[(0, "cuda:0"), (3, "cuda:0")], [(2, "cuda:1"), (4, "cuda:1")]]


def test_devices_without_folds(fitted, tmp_path):
    data, *_ = fitted
    with pytest.raises(ValueError, match="devices share folds: give folds, such as --folds 5"):
        fit(Source(data), tmp_path / "balls", folds=None, device=None, devices=["cpu", "cpu"])
