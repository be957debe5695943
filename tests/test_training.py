# SPDX-License-Identifier: Apache-2.0
"""A training says how it ended: what is held out, what is validated, what would be destroyed or ignored."""

import io
import logging
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from bundles import TINY_TRAINING, affine, ball, raises_within, run, workflow, write_cases
from monai_unetpp.handlers import (
    CheckpointLoader,
    CheckpointSaver,
    ProgressBar,
    ZeroDice,
    check_training_folder,
    console,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _path_as_before():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", sys.path[:])  # a workflow adds its folder
        yield


@pytest.fixture
def again(trained, tmp_path):
    """A copy of the trained bundle."""
    return shutil.copytree(trained, tmp_path / "again")


def checkpoint(root, epoch=2):
    return torch.load(root / "models" / f"checkpoint_epoch={epoch}.pt", weights_only=True)


# The split


def test_checkpoint_names_the_scans_of_both_sides(trained, balls):
    split = checkpoint(trained)["split"]
    assert len(split["train"]) == 3
    assert sorted(split["train"] + split["held_out"]) == [
        f"imagesTr/{path.name}" for path in sorted((balls / "imagesTr").iterdir())
    ]


def test_resuming_with_a_trained_scan_held_out_is_refused_by_its_name(again, balls):
    trained_on = checkpoint(again)["split"]["train"]
    with raises_within(ValueError, r"imagesTr/\w+\.nii\.gz.* trained on and would be held out now"):
        run("liver", "train", again, dataset_dir=str(balls), resume=True, max_epochs=3, seed=2)
    assert checkpoint(again)["split"]["train"] == trained_on


@pytest.mark.parametrize("names", ["train evaluate", "train levels"])
def test_scoring_a_scan_that_was_trained_on_as_held_out_is_refused_by_its_name(again, balls, names):
    with raises_within(
        ValueError, r"model\.pt: imagesTr/\w+\.nii\.gz.* trained on and would be held out now"
    ):
        run("liver", names, again, dataset_dir=str(balls), seed=2)


def test_data_set_of_one_scan_cannot_be_trained_on(tmp_path):
    data = write_cases(tmp_path / "data", [ball("a", affine())])
    with raises_within(ValueError, r"val_fraction 0\.25 holds out none of 1 scans"):
        run("liver", "train", tmp_path, dataset_dir=str(data))
    assert not (tmp_path / "models").exists()


# Validation


def test_kept_weights_are_the_average_of_the_steps(balls, tmp_path):
    run("liver", "train", tmp_path, dataset_dir=str(balls), max_epochs=1)
    kept = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    saved = checkpoint(tmp_path, 1)
    average = {key: value for key, value in saved["average"].items() if key != "n_averaged"}
    assert all(torch.equal(kept[key.removeprefix("module.")], value) for key, value in average.items())
    assert not all(torch.equal(kept[key], value) for key, value in saved["model"].items())


@pytest.mark.parametrize(("epochs", "interval", "validated"), [(3, 5, [3]), (3, 2, [2, 3]), (2, 1, [1, 2])])
def test_last_epoch_is_always_validated(balls, tmp_path, epochs, interval, validated):
    settings = TINY_TRAINING | {"max_epochs": epochs, "val_interval": interval}
    flow = workflow("liver", "train", tmp_path, dataset_dir=str(balls), **settings)
    flow.initialize()
    found = []
    flow.evaluator.add_event_handler(Events.STARTED, lambda engine: found.append(engine.state.max_epochs))
    flow.run()
    assert found == validated
    assert (tmp_path / "models" / "model.pt").is_file()


# Settings of a resumed training


@pytest.mark.parametrize(
    ("key", "value", "before"),
    [
        ("learning_rate", 1e-5, 0.02),
        ("weight_decay", 0.1, 1e-5),
        ("optimizer#betas", [0.5, 0.9], r"\(0\.9, 0\.999\)"),
    ],
)
def test_setting_that_the_checkpoint_would_override_is_refused_by_name(again, balls, key, value, before):
    settings = {"dataset_dir": str(balls), "resume": True, "max_epochs": 3, key: value}
    with raises_within(ValueError, rf"{key} is .* now and {before} in .*resume with --{key} {before}, or"):
        run("liver", "train", again, **settings)
    assert not (again / "models" / "checkpoint_epoch=3.pt").exists()


def test_settings_of_now_are_taken_where_that_is_asked_for(again, balls, caplog):
    settings = {"learning_rate": 1e-5, "weight_decay": 0.1, "max_epochs": 4}
    run("liver", "train", again, dataset_dir=str(balls), resume=True, resume_changes="take", **settings)
    assert "learning_rate is 1e-05 from here on, it was 0.02." in caplog.text
    [group] = checkpoint(again, 3)["optimizer"]["param_groups"]
    assert group["lr"] == pytest.approx(1e-5 * (1 / 4) ** 0.9)
    assert group["weight_decay"] == 0.1
    assert checkpoint(again, 3)["lr_scheduler"]["base_lrs"] == [1e-5]


def test_settings_of_now_are_taken_by_other_schedules(tmp_path):
    def build(rate):
        optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=rate)
        return {"optimizer": optimizer, "schedule": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)}

    before = build(0.8)
    before["optimizer"].step()
    before["schedule"].step()
    torch.save({name: target.state_dict() for name, target in before.items()}, tmp_path / "c.pt")
    now = build(0.4)
    engine = Engine(lambda *_: None)
    CheckpointLoader(str(tmp_path / "c.pt"), now, changes="take")(engine)
    assert now["optimizer"].param_groups[0]["lr"] == pytest.approx(0.2)
    now["optimizer"].step()
    now["schedule"].step()
    assert now["optimizer"].param_groups[0]["lr"] == pytest.approx(0.1)


def test_other_word_for_changes_is_refused():
    with pytest.raises(ValueError, match="changes must be 'refuse' or 'take', got 'ignore'"):
        CheckpointLoader("x.pt", {"model": nn.Linear(1, 1)}, changes="ignore")


# Classes


def without(case, *values):
    """The case, whose labels of these values become background."""
    case.label[np.isin(case.label, values)] = 0
    return case


def warnings_of(caplog, text):
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and text in r.getMessage()]


@pytest.mark.parametrize("cache_rate", [1.0, 0.0], ids=["in memory", "on disk"])
def test_class_that_no_label_has_is_named_before_training(tmp_path, caplog, cache_rate):
    data = write_cases(tmp_path / "data", [without(ball(name, affine()), 2) for name in "abcd"])
    settings = TINY_TRAINING | {"max_epochs": 1, "cache_rate": cache_rate}
    flow = workflow("liver", "train", tmp_path, dataset_dir=str(data), **settings)
    flow.initialize()
    before = []
    flow.trainer.add_event_handler(
        Events.EPOCH_STARTED, lambda: before.extend(warnings_of(caplog, "in none"))
    )
    flow.run()
    training, validation = before
    assert training.startswith("pip (value 2) is in none of the 3 training labels: the network cannot learn")
    assert validation.startswith("pip (value 2) is in none of the 1 validation labels: it has no validation")


def test_class_that_vanishes_when_labels_are_resampled_is_named(tmp_path, caplog):
    data = write_cases(tmp_path / "data", [ball(name, affine(), radius=8.0) for name in "abcd"])
    run("liver", "train", tmp_path, dataset_dir=str(data), max_epochs=1, pixdim=[12.0] * 3)
    assert warnings_of(caplog, "pip (value 2) is in none of the 3 training labels")


def test_labels_that_have_every_class_are_not_worth_a_word(balls, tmp_path, caplog):
    run("liver", "train", tmp_path, dataset_dir=str(balls), max_epochs=1)
    assert warnings_of(caplog, "is in none of") == []


def test_class_with_a_dice_of_zero_is_one_warning_that_says_where_to_look(caplog):
    engine, scores = Engine(lambda *_: None), iter([0.0, 0.0, 0.5])

    def score():
        engine.state.metrics = {
            "val_dice_ball": 0.9,
            "val_dice_pip": next(scores),
            "val_dice_no": float("nan"),
        }

    engine.add_event_handler(Events.EPOCH_COMPLETED, score)
    ZeroDice(["ball", "pip", "no"]).attach(engine)
    engine.run([0], max_epochs=3)
    [warning] = warnings_of(caplog, "is exactly 0")
    assert warning.startswith("The validation Dice of pip is exactly 0")
    assert all(key in warning for key in ("pixdim", "hu_range", "roi_size", "learning_rate"))


@pytest.mark.parametrize("names", ["train", "train evaluate"])
def test_bundles_warn_of_a_dice_of_zero(again, balls, tmp_path, names, caplog):
    weights = {"ckpt_path": str(again / "models" / "model.pt")}
    run("liver", names, tmp_path / "new", dataset_dir=str(balls), **weights)
    assert len(warnings_of(caplog, "The validation Dice of pip is exactly 0")) == 1


# One training per folder


def test_second_training_is_refused_and_the_first_stays(again, balls):
    files = {path: path.read_bytes() for path in again.rglob("*") if path.is_file()}
    message = r"ckpt_dir holds a training: .*checkpoint_epoch=2\.pt.*--resume True .*--ckpt_dir .*models_2 "
    with raises_within(FileExistsError, message):
        run("liver", "train", again, dataset_dir=str(balls))
    assert {path: path.read_bytes() for path in again.rglob("*") if path.is_file()} == files


def test_weights_alone_are_a_training_as_well(again, balls):
    for path in (again / "models").glob("checkpoint*"):
        path.unlink()
    with raises_within(FileExistsError, r"ckpt_dir holds a training: .*model\.pt\. To keep it"):
        run("liver", "train", again, dataset_dir=str(balls))


def test_curves_of_two_trainings_are_not_mixed(again, balls, caplog):
    before = {path.name for path in (again / "runs").glob("events*")}
    (again / "models").rename(again / "models_2")
    run("liver", "train", again, dataset_dir=str(balls), max_epochs=1)
    assert {path.name for path in (again / "runs" / "1").iterdir()} == before | {"epochs.csv"}
    assert before.isdisjoint(path.name for path in (again / "runs").glob("events*"))
    assert "had the curves of another training" in caplog.text


def test_resumed_training_continues_its_curves(again, balls):
    before = {path.name for path in (again / "runs").glob("events*")}
    run("liver", "train", again, dataset_dir=str(balls), resume=True, max_epochs=3)
    assert before < {path.name for path in (again / "runs").glob("events*")}


def test_training_that_failed_before_its_first_epoch_left_nothing_in_the_way(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "events.out.tfevents.1").write_bytes(bytes(88))
    check_training_folder(tmp_path / "models", tmp_path / "runs")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["events.out.tfevents.1"]


def test_previous_training_is_kept_in_a_numbered_folder_by_the_first_process_alone(tmp_path):
    models = tmp_path / "models"
    (models / "1").mkdir(parents=True)
    for name in ("model.pt", "model.json", "model.ts", "checkpoint_epoch=2.pt"):
        (models / name).write_text(name)
    check_training_folder(models, tmp_path, rank=1, previous="keep")
    assert (models / "model.ts").exists()
    check_training_folder(models, tmp_path, previous="keep")
    assert {path.name for path in models.iterdir()} == {"1", "2", "model.json", "model.pt"}
    kept = {path.name: path.read_text() for path in (models / "2").iterdir()}
    assert kept == {name: name for name in ("model.pt", "model.json", "model.ts", "checkpoint_epoch=2.pt")}


def test_previous_training_is_refused_or_kept_and_nothing_else(tmp_path):
    with pytest.raises(ValueError, match="previous must be one of refuse, keep, got delete"):
        check_training_folder(tmp_path, tmp_path, previous="delete")


# The end


def report(caplog):
    """The last five lines of a training."""
    return [record.getMessage() for record in caplog.records if record.levelname == "INFO"][-5:]


def test_last_lines_are_scores_weights_duration_and_commands(balls, tmp_path, caplog):
    caplog.set_level("INFO")
    flow = run("liver", "train", tmp_path, dataset_dir=str(balls), max_epochs=3, val_interval=2)
    state = flow.parser.get_parsed_content("train#report").state_dict()
    assert state["epoch"] in (2, 3)
    assert state["score"] == flow.evaluator.state.best_metric
    took, dice, weights, score, segment = report(caplog)
    assert re.fullmatch(r"Trained 3 epochs in \d+ s\.", took)
    ball, pip = state["dice"].values()
    assert dice == f"Validation Dice of the best epoch, {state['epoch']}: ball {ball:.3f}, pip {pip:.3f}."
    assert weights == f"Weights: {tmp_path / 'models' / 'model.pt'}"
    assert score == f"Score:   monai-unetpp evaluate {tmp_path} --dataset_dir {balls}"
    assert segment == f"Segment: monai-unetpp segment -i SCANS -o MASKS --bundle {tmp_path}"


def test_best_epoch_of_a_resumed_training_may_be_an_earlier_one(again, balls, caplog):
    caplog.set_level("INFO")
    best = checkpoint(again)["report"]
    settings = {"learning_rate": 0.0, "resume": True, "resume_changes": "take", "max_epochs": 3}
    run("liver", "train", again, dataset_dir=str(balls), **settings)
    assert report(caplog)[0].startswith("Trained 1 epoch in ")
    assert report(caplog)[1].startswith(f"Validation Dice of the best epoch, {best['epoch']}: ")


def test_training_without_weights_is_an_error(balls, tmp_path, monkeypatch):
    monkeypatch.setattr(CheckpointSaver, "metrics_completed", lambda *_: None)  # as if each score were NaN
    with raises_within(ValueError, r"no weights, .*model\.pt: no validation score was a number"):
        run("liver", "train", tmp_path, dataset_dir=str(balls), max_epochs=1)


@pytest.mark.parametrize(("seconds", "text"), [(3.4, "3 s"), (200, "3 min 20 s"), (18720, "5 h 12 min")])
def test_duration_is_written_as_one_reads_it(seconds, text):
    assert console._duration(seconds) == text


@pytest.mark.parametrize("terminal", [True, False])
def test_log_lines_are_not_glued_to_the_bar(terminal, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    handler = logging.StreamHandler(stream)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    engine = Engine(lambda *_: None)
    ProgressBar(file=stream, mininterval=0).attach(engine)
    engine.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda engine: logging.getLogger().error("line %d", engine.state.iteration),
    )
    engine.run(range(3))
    assert ("%|" in stream.getvalue()) == terminal
    assert not handler.filters
    shown = re.split(r"[\r\n]", stream.getvalue())
    assert [text for text in shown if "line" in text] == ["line 1", "line 2", "line 3"]
