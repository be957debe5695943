# SPDX-License-Identifier: Apache-2.0
import csv
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from bundles import Payload
from monai_unetpp.handlers import CheckpointLoader, CheckpointSaver, MetricsSaver, tables


def engine(**metrics):
    """An engine that does nothing but have these metrics, one value per epoch."""
    made = Engine(lambda *_: None)
    made.state.metrics = {}

    @made.on(Events.EPOCH_COMPLETED)
    def score(_):
        made.state.metrics = {name: values[made.state.epoch - 1] for name, values in metrics.items()}
        made.state.key_metric_name = next(iter(metrics), None)

    return made


def load(path, **targets):
    CheckpointLoader(str(path), targets)(engine())


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# CheckpointLoader


@pytest.mark.parametrize("nested", [True, False], ids=["whole-checkpoint", "weights-alone"])
def test_weights_are_loaded(tiny, tmp_path, nested):
    net, other = tiny(), tiny()
    nn.init.zeros_(next(other.parameters()))
    weights = net.state_dict()
    torch.save({"model": weights, "epoch": 3} if nested else weights, tmp_path / "model.pt")
    load(tmp_path / "model.pt", model=other)
    assert same(net, other)


def test_folder_means_the_checkpoint_of_the_last_epoch(tmp_path):
    for epoch in (2, 9, 10):
        torch.save({"bias": torch.full((1,), float(epoch))}, tmp_path / f"checkpoint_epoch={epoch}.pt")
    torch.save({"bias": torch.zeros(1)}, tmp_path / "model.pt")
    target = nn.ParameterDict({"bias": torch.zeros(1)})
    load(tmp_path, model=target)
    assert target["bias"].item() == 10


def test_checkpoint_that_was_being_written_is_passed_over_for_the_one_before(tmp_path, caplog):
    for epoch in (2, 3):
        torch.save({"bias": torch.full((1,), float(epoch))}, tmp_path / f"checkpoint_epoch={epoch}.pt")
    half = (tmp_path / "checkpoint_epoch=3.pt").read_bytes()[:100]
    (tmp_path / "checkpoint_epoch=3.pt").write_bytes(half)
    target = nn.ParameterDict({"bias": torch.zeros(1)})
    load(tmp_path, model=target)
    assert target["bias"].item() == 2
    assert "checkpoint_epoch=3.pt" in caplog.text
    assert "Trying the previous one." in caplog.text
    (tmp_path / "checkpoint_epoch=2.pt").write_bytes(half)
    with pytest.raises(ValueError, match=r"checkpoint_epoch=2\.pt"):
        load(tmp_path, model=target)


def test_resumed_engine_counts_the_data_of_now(tmp_path):
    """A checkpoint of an engine with other data, such as that of another process or another batch size."""
    then, now = (Engine(lambda *_: None) for _ in range(2))
    then.run([1, 2, 3], max_epochs=2)
    torch.save({"trainer": then.state_dict()}, tmp_path / "checkpoint_epoch=2.pt")
    now.state.epoch_length, now.state.max_epochs = 5, 4
    CheckpointLoader(str(tmp_path), {"trainer": now})(now)
    assert (now.state.epoch, now.state.epoch_length, now.state.iteration) == (2, 5, 10)


def test_folder_without_checkpoints_is_named(tmp_path):
    (tmp_path / "model.pt").touch()
    with pytest.raises(FileNotFoundError, match=rf"nothing to resume: {re.escape(str(tmp_path))} holds no"):
        load(tmp_path, model=nn.Linear(1, 1))


def test_missing_file_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=rf"no checkpoint at {re.escape(str(tmp_path))}/models/model\.pt"
    ):
        load("models/model.pt", model=nn.Linear(1, 1))


@pytest.mark.parametrize("zipped", [True, False], ids=["torch-save", "pickle"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, zipped):
    path, marker = tmp_path / "model.pt", tmp_path / "run"
    content = {"model": Payload(marker)}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))} is refused: .* no code"):
        load(path, model=nn.Linear(1, 1))
    assert not marker.exists()
    pickle.loads(pickle.dumps(content))  # what would have happened
    assert marker.exists()


def test_whole_network_in_a_file_is_refused(tiny, tmp_path):
    torch.save(tiny(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt is refused"):
        load(tmp_path / "model.pt", model=tiny())


@pytest.mark.parametrize("kept", [0, 3, 100, 0.5, 0.99], ids="{}".format)
def test_checkpoint_that_ends_early_is_named(tiny, tmp_path, kept):
    path = tmp_path / "model.pt"
    torch.save(tiny().state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    before = tiny()
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(path))} (cannot be read as a checkpoint|is refused)"
    ):
        load(path, model=before)
    assert same(before, tiny())


def test_scripted_network_is_no_checkpoint(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), tmp_path / "model.ts")
    with pytest.raises(ValueError, match=r"model\.ts is TorchScript, not weights"):
        load(tmp_path / "model.ts", model=nn.Linear(1, 1))


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], "weights"], ids=["tensor", "list", "string"])
def test_file_without_names_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=rf"holds no weights by name, but a {type(content).__name__}"):
        load(tmp_path / "model.pt", model=nn.Linear(1, 1))


def test_weights_alone_are_not_enough_to_resume(tiny, tmp_path):
    torch.save({"model": tiny().state_dict()}, tmp_path / "model.pt")
    net = tiny()
    with pytest.raises(ValueError, match=r"model\.pt has no 'optimizer', only 'model'\.$"):
        load(tmp_path / "model.pt", model=net, optimizer=torch.optim.SGD(net.parameters()))


@pytest.mark.parametrize(
    ("there", "here", "message"),
    [
        ({}, {"out_channels": 5}, r"network \(out_channels 2 in the file, 5 in the network\): heads"),
        ({}, {"in_channels": 3}, r"network \(in_channels 1 in the file, 3 in the network\): encoder\.0"),
        (
            {"in_channels": 2, "out_channels": 3},
            {},
            r"network \(in_channels 2 in the file, 1 in the network; out_channels 3 in the file, 2 in the",
        ),
        ({}, {"channels": (4, 6, 8)}, r"network: encoder\.3\S+ is not in the network; .*; and \d+ more\.$"),
        ({}, {"norm": None}, r"network: .* is not in the network"),
        ({"norm": None}, {}, r"network: .* is missing in the file"),
        ({}, {"spatial_dims": 3}, r"network: encoder.* is \[4, 1, 3, 3\] in the file and \[4, 1, 3, 3, 3\]"),
    ],
    ids=["out_channels", "in_channels", "both", "depth", "no-norm", "norm", "3D"],
)
def test_weights_of_another_network_are_refused_and_the_difference_is_named(
    tiny, tmp_path, there, here, message
):
    torch.save(tiny(**there).state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt does not fit the " + message):
        load(tmp_path / "model.pt", model=tiny(**here))


def test_scheduler_goes_on_with_its_function_as_it_is_now(tmp_path):
    def build(epochs):
        optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.8)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 - epoch / epochs)

    (_, first), (optimizer, second) = build(2), build(4)
    for _ in range(2):
        first.optimizer.step()
        first.step()
    assert first.get_last_lr() == [0]
    state = {"optimizer": first.optimizer.state_dict(), "scheduler": first.state_dict()}
    torch.save(state, tmp_path / "checkpoint_epoch=2.pt")
    load(tmp_path, optimizer=optimizer, scheduler=second)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.4)


# CheckpointSaver


def best(folder, net):
    return CheckpointSaver(str(folder), {"model": net}, save_key_metric=True, key_metric_filename="model.pt")


def train(saver, net, scores):
    """Run an epoch per score; the weight is the epoch's number, so that the file tells whose it is."""
    made = engine(dice=scores)
    saver.attach(made)
    made.add_event_handler(Events.EPOCH_STARTED, lambda e: nn.init.constant_(net.weight, e.state.epoch))
    made.run([0], max_epochs=len(scores))


def saved(folder):
    return torch.load(folder / "model.pt", weights_only=True)["weight"].item()


def test_weights_of_the_best_epoch_are_kept(tmp_path):
    net = nn.Linear(1, 1)
    train(best(tmp_path, net), net, [0.2, 0.5, 0.4])
    assert saved(tmp_path) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.parametrize(("score", "epoch"), [(0.4, 2), (0.6, 1)], ids=["worse", "better"])
def test_resumed_saver_knows_the_score_to_beat(tmp_path, score, epoch):
    net = nn.Linear(1, 1)
    first, second = best(tmp_path, net), best(tmp_path, net)
    train(first, net, [0.2, 0.5])
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    train(second, net, [score])
    assert saved(tmp_path) == epoch


def test_best_weights_that_are_gone_need_not_be_beaten(tmp_path):
    net = nn.Linear(1, 1)
    first, second = best(tmp_path / "a", net), best(tmp_path / "b", net)
    train(first, net, [0.9])
    second.load_state_dict(first.state_dict())
    train(second, net, [0.1, 0.2])
    assert saved(tmp_path / "b") == 2


def test_best_metric_is_part_of_the_engines_state(tmp_path):
    made = engine()
    best(tmp_path, nn.Linear(1, 1)).attach(made)
    made.state.best_metric, made.state.best_metric_epoch = 0.5, 3
    assert dict(made.state_dict())["best_metric"] == 0.5
    assert dict(made.state_dict())["best_metric_epoch"] == 3


def test_saver_of_epochs_leaves_the_engines_state_alone(tmp_path):
    made, net = engine(), nn.Linear(1, 1)
    CheckpointSaver(str(tmp_path), {"model": net}, save_interval=1).attach(made)
    made.run([0], max_epochs=1)
    assert "best_metric" not in made.state_dict()
    assert [path.name for path in tmp_path.iterdir()] == ["model_epoch=1.pt"]


# MetricsSaver

SCORES = np.array([[0.5, 0.25], [1.0, np.nan]])


def score(folder):
    """Run a metrics saver on two cases, and return its CSV files as lists of rows."""
    made = engine(dice=[0.6], iou=[0.4])
    made.state.metric_details = {"dice": torch.from_numpy(SCORES), "iou": torch.zeros(2, 2)}
    saver = MetricsSaver(
        class_labels=["liver", "tumour"],
        save_dir=str(folder),
        metrics=["dice"],
        metric_details=["dice"],
        batch_transform=lambda batch: [{"filename_or_obj": batch}],
        summary_ops=["mean", "notnans"],
    )
    saver.attach(made)
    made.run(["a.nii.gz", "b.nii.gz"])
    return {
        path.name: list(csv.reader(path.read_text().splitlines()))
        for path in sorted(Path(folder).glob("*.csv"))
    }


def test_scores_are_written_under_the_names_of_the_classes(tmp_path):
    tables = score(tmp_path)
    assert list(tables) == ["dice_raw.csv", "dice_summary.csv", "metrics.csv"]
    header, *rows = tables["dice_raw.csv"]
    assert header == ["filename", "liver", "tumour", "mean"]
    assert [row[0] for row in rows] == ["a.nii.gz", "b.nii.gz"]
    values = np.array([row[1:] for row in rows], float)
    assert np.array_equal(values[:, :2], SCORES, equal_nan=True)
    assert np.array_equal(values[:, 2], [0.375, 1.0])
    assert tables["dice_summary.csv"][1:3] == [["liver", "0.7500", "2.0000"], ["tumour", "0.2500", "1.0000"]]
    assert tables["metrics.csv"] == [["dice", "0.6"]]


def test_only_one_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(tables.idist, "get_rank", lambda: 1)
    assert score(tmp_path) == {}


def test_cases_of_all_processes_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tables.idist, "get_world_size", lambda: 2)
    monkeypatch.setattr(
        tables, "string_list_all_gather", lambda names: [f"gathered-{name}" for name in names]
    )
    rows = score(tmp_path)["dice_raw.csv"][1:]
    assert [row[0] for row in rows] == ["gathered-a.nii.gz", "gathered-b.nii.gz"]
