# SPDX-License-Identifier: Apache-2.0
"""epochs.csv has each epoch of a training once, however often it was stopped."""

import csv
import logging
import math

import pytest
import torch
from ignite.engine import Engine, Events

from bundles import TINY_TRAINING, run, workflow
from monai_unetpp.handlers import CheckpointLoader, EpochTable, epochs

SETTINGS = TINY_TRAINING | {"batch_size": 1, "max_epochs": 3, "val_interval": 2}
COLUMNS = ["epoch", "train_loss", "train_mean_dice", "val_mean_dice", "val_dice_ball", "val_dice_pip"]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_path_as_before")]


def table(root):
    return list(csv.DictReader((root / "runs" / "epochs.csv").read_text().splitlines()))


def train(root, balls, *, until=None, **override):
    """Train; ``until``: an event and what is done there. Returns the metrics of each epoch."""
    flow = workflow("liver", "train", root, dataset_dir=str(balls), **SETTINGS | override)
    flow.initialize()
    seen = {}
    flow.trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda engine: seen.update({engine.state.epoch: dict(engine.state.metrics)})
    )
    flow.evaluator.add_event_handler(
        Events.COMPLETED,
        lambda engine: seen.setdefault("validation", {}).update(
            {flow.trainer.state.epoch: dict(engine.state.metrics)}
        ),
    )
    if until is not None:
        flow.trainer.add_event_handler(*until)
    flow.run()
    return seen


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole(balls, tmp_path_factory):
    """Folder and metrics of a training that nothing stopped."""
    root = tmp_path_factory.mktemp("whole")
    return root, train(root, balls)


def test_rows_are_the_metrics_of_the_engines(whole):
    root, seen = whole
    rows = table(root)
    assert list(rows[0]) == COLUMNS
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    for epoch, row in enumerate(rows, 1):
        for name in ("train_loss", "train_mean_dice"):
            assert float(row[name]) == pytest.approx(seen[epoch][name], rel=1e-4)
        found = seen["validation"].get(epoch)  # every two epochs, and after the last
        assert (found is None) == (epoch == 1)
        for name in COLUMNS[3:]:
            assert (
                row[name] == "" if found is None else float(row[name]) == pytest.approx(found[name], abs=1e-5)
            )


@pytest.mark.parametrize("step", [4, 6, 7], ids=["after an epoch", "at the end of one", "within the third"])
def test_resumed_training_has_every_epoch_once(whole, balls, tmp_path, step):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, balls, until=(Events.ITERATION_COMPLETED(once=step), interrupt))
    train(tmp_path, balls, resume=True)
    assert table(tmp_path) == table(whole[0])


def test_epochs_after_an_older_checkpoint_are_dropped(balls, tmp_path):
    train(tmp_path, balls)
    before = table(tmp_path)
    (tmp_path / "models" / "checkpoint_epoch=3.pt").unlink()
    with pytest.raises(KeyboardInterrupt):  # the epoch that comes again is not complete
        train(tmp_path, balls, resume=True, max_epochs=4, until=(Events.EPOCH_COMPLETED(once=3), interrupt))
    rows = table(tmp_path)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert rows[:2] == before[:2]
    assert rows[2]["val_mean_dice"] == ""  # no longer the last epoch


def test_checkpoint_of_an_earlier_version_is_resumed(balls, tmp_path, caplog):
    train(tmp_path, balls, max_epochs=2)
    path = tmp_path / "models" / "checkpoint_epoch=2.pt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["epoch_table"]
    torch.save(checkpoint, path)
    with caplog.at_level(logging.INFO):
        train(tmp_path, balls, resume=True)
    assert "of an earlier version and has no 'epoch_table', which starts anew" in caplog.text
    assert [row["epoch"] for row in table(tmp_path)] == ["3"]


def test_other_names_that_a_checkpoint_lacks_are_refused(tmp_path):
    torch.save({"trainer": {"epoch": 0}}, tmp_path / "a.pt")
    loader = CheckpointLoader(
        str(tmp_path / "a.pt"), {"trainer": Engine(print), "seeds": Engine(print)}, optional=["epoch_table"]
    )
    with pytest.raises(ValueError, match=r"a\.pt has no 'seeds', only 'trainer'"):
        loader(Engine(print))


def test_table_of_another_training_is_moved(balls, tmp_path):
    run("liver", "train", tmp_path, dataset_dir=str(balls), max_epochs=1)
    before = table(tmp_path)
    (tmp_path / "models").rename(tmp_path / "gone")
    run("liver", "train", tmp_path, dataset_dir=str(balls), max_epochs=2)
    assert len(table(tmp_path)) == 2
    moved = (tmp_path / "runs" / "1" / "epochs.csv").read_text().splitlines()
    assert list(csv.DictReader(moved)) == before


# The handler alone


def made(tmp_path, losses, names=("a",)):
    """A trainer of one step per loss, with its table; prediction and label are half right."""
    steps = iter(losses)
    pred = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0]])
    label = torch.tensor([[0, 1, 1, 1], [1, 0, 0, 0]])  # Dice 2/3

    def step(*_):
        return [{"loss": torch.tensor(next(steps)), "pred": pred, "label": label}]

    trainer, evaluator = Engine(step), Engine(lambda *_: None)
    handler = EpochTable(tmp_path, evaluator, names)
    handler.attach(trainer)
    return trainer, handler


def test_loss_that_is_not_finite_is_left_out(tmp_path):
    trainer, handler = made(tmp_path, [1.0, math.nan, 2.0, math.inf, math.nan])
    trainer.run([0, 1, 2, 3], max_epochs=1)
    assert handler.rows == [
        {"epoch": 1, "train_loss": 1.5, "train_mean_dice": pytest.approx(2 / 3)},
    ]


def test_epoch_without_a_finite_loss_is_nan(tmp_path):
    trainer, _ = made(tmp_path, [math.nan])
    trainer.run([0], max_epochs=1)
    assert (tmp_path / "epochs.csv").read_text().splitlines()[1] == "1,nan,0.666667,,"


def test_state_within_an_epoch_has_its_sums(tmp_path):
    trainer, handler = made(tmp_path, [1.0, 2.0, 6.0])
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.run([0, 1, 2], max_epochs=1)
    state = handler.state_dict()
    torch.save(state, tmp_path / "state.pt")
    trainer, handler = made(tmp_path, [6.0])
    handler.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    trainer.run([2], max_epochs=1)
    assert handler.rows[0]["train_loss"] == 3.0


def test_table_that_cannot_be_written_does_not_end_the_training(tmp_path, caplog, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    trainer, handler = made(tmp_path, [1.0, 2.0])
    monkeypatch.setattr(epochs, "write_csv", fail)
    trainer.run([0], max_epochs=1)
    assert "epochs.csv could not be written: [Errno 28]" in caplog.text
    monkeypatch.undo()
    trainer.run([0], max_epochs=2)
    assert len((tmp_path / "epochs.csv").read_text().splitlines()) == 3
    assert len(handler.rows) == 2
