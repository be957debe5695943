# SPDX-License-Identifier: Apache-2.0
"""What a training leaves behind to be looked at: curves and pictures in TensorBoard, runs in MLflow."""

import csv
import importlib.util
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines import IterationEvents, SupervisedTrainer
from monai.handlers import MLFlowHandler
from monai.losses import DeepSupervisionLoss, DiceLoss
from processes import python
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_multi_gpu import in_two

from bundles import BUNDLES, TINY_TRAINING, affine, ball, raises_within, run, workflow, write_cases
from monai_unetpp import DeepSupervisionDiceLoss
from monai_unetpp.handlers import (
    HeadLosses,
    OutlineImages,
    sqlite_store,
    track_levels,
    track_training,
    tracking,
)
from monai_unetpp.levels import LevelScore

MISSING = [name for name in ("mlflow", "sqlalchemy", "alembic") if not importlib.util.find_spec(name)]
NEEDS_MATPLOTLIB = pytest.mark.skipif(
    not importlib.util.find_spec("matplotlib"), reason='pip install "monai-unetpp[figures]"'
)
CHANNELS = [4, 6, 8]  # two levels
GREEN, RED = (61, 220, 132), (255, 82, 82)

pytestmark = pytest.mark.slow


def needs_mlflow(test):
    """Skip a test where the extra is not installed; MLflow 3.17 uses what SQLAlchemy 2.1 deprecates."""
    test = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")(test)
    return pytest.mark.skipif(bool(MISSING), reason='pip install "monai-unetpp[tracking]"')(test)


def curves(folder):
    """Every scalar in the event files of a folder: tag -> {step: value}."""
    found = {}
    for path in folder.glob("events.out.tfevents.*"):
        events = EventAccumulator(str(path)).Reload()
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, {}).update({event.step: event.value for event in events.Scalars(tag)})
    return found


def images(folder):
    """The same of pictures: tag -> {step: (rows, columns, 3)}, 0 to 255."""
    from matplotlib.image import imread

    found = {}
    for path in folder.glob("events.out.tfevents.*"):
        events = EventAccumulator(str(path)).Reload()
        for tag in events.Tags()["images"]:
            for event in events.Images(tag):
                picture = imread(io.BytesIO(event.encoded_image_string))[..., :3]
                found.setdefault(tag, {})[event.step] = (picture * 255).round().astype(int)
    return found


# Losses of heads


def dice_and_cross_entropy(logits, label):
    """By numpy: (B, K, *spatial) and class numbers (B, 1, *spatial) to a number; Dice of the whole batch."""
    logits, label = logits.double().numpy(), label[:, 0].numpy().astype(int)
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    hot = np.moveaxis(np.eye(logits.shape[1])[label], -1, 1)
    axes = (0, *range(2, logits.ndim))
    overlap, mass = (probability * hot).sum(axes), (probability + hot).sum(axes)
    dice = 1 - (2 * overlap + 1e-5) / (mass + 1e-5)
    return dice[1:].mean() - np.log((probability * hot).sum(1)).mean()


def test_loss_of_each_head_is_its_mean_over_the_epoch_and_is_not_printed(balls, tmp_path, caplog, capsys):
    caplog.set_level("INFO")
    expected = {}
    settings = {**TINY_TRAINING, "channels": CHANNELS, "dataset_dir": str(balls)}
    flow = workflow("liver", "train", tmp_path, **settings)
    flow.initialize()

    @flow.trainer.on(IterationEvents.LOSS_COMPLETED)
    def by_hand(engine):
        heads, label = engine.state.output["pred"], engine.state.output["label"]
        assert len(heads) == 2
        for level, head in zip((2, 1), heads, strict=True):
            value = dice_and_cross_entropy(head.detach().as_tensor(), label.as_tensor())
            expected.setdefault((level, engine.state.epoch), []).append(value)

    flow.trainer.run()
    printed = capsys.readouterr().out + caplog.text  # to whom it goes, earlier tests decide
    found = curves(tmp_path / "runs")
    assert {tag for tag in found if tag.startswith("loss/")} == {"loss/L1", "loss/L2"}
    for (level, epoch), values in expected.items():
        assert found[f"loss/L{level}"][epoch] == pytest.approx(np.mean(values), rel=1e-5)
    for epoch in (1, 2):  # the heads' weights are equal
        mean = (found["loss/L1"][epoch] + found["loss/L2"][epoch]) / 2
        assert found["train_loss"][epoch] == pytest.approx(mean, rel=1e-6)
    assert list(found["train_loss_iteration"]) == [1, 2, 3, 4]
    assert "train_loss " in printed
    assert "loss/L" not in printed


def trainer(net, loss, handlers):
    batch = {"image": torch.rand(2, 1, 16, 16), "label": torch.randint(2, (2, 1, 16, 16)).float()}
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[batch],
        network=net,
        optimizer=torch.optim.SGD(net.parameters(), 0.1),
        loss_function=loss,
        train_handlers=handlers,
        decollate=False,
    )


def test_losses_of_heads_leave_the_training_and_the_loss_as_they_are(tiny):
    weights = []
    loss = DeepSupervisionDiceLoss()
    for handlers in ([], [HeadLosses()]):
        net = tiny()
        trainer(net.train(), loss, handlers).run()
        weights.append(net.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not loss.loss._forward_hooks


def test_monais_loss_over_heads_is_understood_as_well(tiny):
    made = trainer(
        tiny().train(), DeepSupervisionLoss(DiceLoss(softmax=True, to_onehot_y=True)), [HeadLosses()]
    )
    made.run()
    assert {"loss/L1", "loss/L2", "loss/L3"} == made.state.metrics.keys()


@pytest.mark.parametrize(
    ("arguments", "loss"),
    [({"deep_supervision": False}, DeepSupervisionDiceLoss()), ({}, lambda heads, _: heads[0].mean())],
    ids=["one-head", "no-module"],
)
def test_without_losses_of_heads_nothing_is_added(tiny, arguments, loss):
    made = trainer(tiny(**arguments).train(), loss, [HeadLosses()])
    made.run()
    assert made.state.metrics == {}


def test_losses_of_heads_are_means_over_all_processes(tiny, monkeypatch):
    monkeypatch.setattr(tracking.idist, "get_world_size", lambda: 2)
    monkeypatch.setattr(tracking.idist, "all_reduce", lambda mine: mine + torch.full_like(mine, 1.5))
    alone, both = ([], [])
    for made in (both, alone):
        torch.manual_seed(1)
        engine = trainer(tiny().train(), DeepSupervisionDiceLoss(), [HeadLosses()])
        engine.run()
        made.extend(engine.state.metrics.values())
        monkeypatch.undo()
    assert both == pytest.approx([value / 2 + 1.5 for value in alone])


def test_two_processes_write_the_losses_of_heads_once_and_of_all_their_cases(tmp_path):
    data = write_cases(tmp_path / "data", (ball(name, affine()) for name in "abcde"))
    in_two("liver", tmp_path, data, channels=CHANNELS, max_epochs=1)
    found = curves(tmp_path / "runs")
    # MONAI's mean, over both processes, of the mean over heads
    assert found["train_loss"][1] == pytest.approx((found["loss/L1"][1] + found["loss/L2"][1]) / 2, rel=1e-6)
    assert len({path.name.split(".")[-2] for path in (tmp_path / "runs").glob("events*")}) == 1  # its number


# Pictures


def item(size=(20, 16, 6)):
    """A case of which the last class lies on slice 4 alone, x 3..7, y 9..12; in the prediction y 2..5."""
    affine = torch.diag(torch.tensor([1.0, 1.0, 3.0, 1.0], dtype=torch.float64))
    label, pred = torch.zeros(3, *size), torch.zeros(3, *size)
    label[2, 3:8, 9:13, 4], pred[2, 3:8, 2:6, 4] = 1, 1
    for one_hot in (label, pred):
        one_hot[0] = 1 - one_hot[2]
    made = {"image": torch.zeros(1, *size), "label": label, "pred": pred}
    return {key: MetaTensor(value, affine, {"filename_or_obj": "a/ct.nii"}) for key, value in made.items()}


def draw(folder, *cases, count=4):
    """Draw a validation; returns the pictures."""
    engine = Engine(lambda _, case: [case])
    OutlineImages(str(folder), count=count).attach(engine)
    engine.run(cases)
    return images(folder)


def box(picture, colour):
    """Where a colour is, as fractions of the picture: left, right, top, bottom."""
    rows, columns = np.nonzero(np.abs(picture - colour).sum(-1) < 60)
    return np.array([columns.min(), columns.max(), rows.min(), rows.max()]) / picture.shape[0]


@NEEDS_MATPLOTLIB
def test_outlines_lie_where_reference_and_prediction_are(tmp_path):
    [(tag, pictures)] = draw(tmp_path, item()).items()
    assert tag == "cases/ct.nii"
    # 20 columns fill the width, 16 rows are in the middle of 20; the patient's left is on the right
    left, right = (20 - 8) / 20, (20 - 3) / 20
    for colour, (low, high) in {GREEN: (9, 13), RED: (2, 6)}.items():
        top, bottom = (2 + 16 - high) / 20, (2 + 16 - low) / 20
        assert np.abs(box(pictures[1], colour) - [left, right, top, bottom]).max() < 0.04  # a pixel: 0.05


@NEEDS_MATPLOTLIB
def test_all_classes_are_outlined(tmp_path):
    case = item()
    case["label"][0, 1:19, 1:15, 4], case["label"][1, 1:19, 1:15, 4] = 0, 1
    case["label"][1] *= 1 - case["label"][2]
    [pictures] = draw(tmp_path, case).values()
    assert box(pictures[1], GREEN) == pytest.approx([1 / 20, 19 / 20, 3 / 20, 17 / 20], abs=0.04)
    inner = pictures[1][:, 200:]  # the outline of the last class, inside of the other's
    assert (np.abs(inner[60:180, 60:140] - GREEN).sum(-1) < 60).any()


@NEEDS_MATPLOTLIB
def test_classes_on_different_slices_are_drawn_side_by_side(tmp_path):
    case = item()
    case["label"][1, 3:8, 9:13, 1], case["label"][0, 3:8, 9:13, 1] = 1, 0
    [pictures] = draw(tmp_path, case).values()
    assert pictures[1].shape == (400, 800, 3)
    for half in (pictures[1][:, :400], pictures[1][:, 400:]):
        assert np.abs(half - GREEN).sum(-1).min() < 60


@NEEDS_MATPLOTLIB
def test_first_cases_are_drawn_and_no_more(tmp_path):
    cases = [item() for _ in range(3)]
    for n, case in enumerate(cases):
        case["image"].meta["filename_or_obj"] = f"{n}.nii"
    assert sorted(draw(tmp_path, *cases, count=2)) == ["cases/0.nii", "cases/1.nii"]


@NEEDS_MATPLOTLIB
def test_cases_are_drawn_at_every_validation(trained):
    [(tag, pictures)] = images(trained / "runs").items()
    assert tag.startswith("cases/")
    assert list(pictures) == [1, 2]


def test_image_on_another_grid_than_its_label_is_an_error_that_says_what_to_do(tmp_path):
    case = item()
    case["image"] = case["image"][:, ::2]
    with pytest.raises(
        ValueError, match=r"one grid to be drawn, got \(10, 16, 6\) and \(20, 16, 6\): resample"
    ):
        draw(tmp_path, case)


@pytest.mark.parametrize(
    ("override", "drawn"),
    [({}, True), ({"rank": 1}, False), ({"resampled": ["image"]}, False)],
    ids=["first-process", "second-process", "label-not-resampled"],
)
@NEEDS_MATPLOTLIB
def test_nothing_is_drawn_where_it_cannot_be(balls, tmp_path, override, drawn):
    flow = workflow("liver", "train", tmp_path, dataset_dir=str(balls), **{**TINY_TRAINING, **override})
    handlers = flow.parser.get_parsed_content("validate#handlers")
    assert any(isinstance(handler, OutlineImages) for handler in handlers) == drawn


def test_second_process_writes_no_curves(balls, tmp_path):
    run("liver", "train", tmp_path, dataset_dir=str(balls), rank=1, max_epochs=1, channels=CHANNELS)
    assert not (tmp_path / "runs").exists()


# Levels


def score(level, dice):
    return LevelScore(
        level=level,
        dice=dice,
        iou=0.5,
        surface_dice=0.25,
        dice_per_class={"liver": dice, "tumour": float("nan")},
        iou_per_class={"liver": 0.5, "tumour": 0.5},
        surface_dice_per_class={"liver": 0.25, "tumour": 0.25},
        dice_per_case=(dice,),
        parameters=10 * level,
        multiply_adds=100 * level,
        seconds=0.5,
        peak_mib=1.5,
    )


def test_scores_of_levels_are_logged_as_metrics_of_epochs_are(tmp_path):
    logged = []
    handler = SimpleNamespace(attach=lambda engine: engine.add_event_handler(Events.EPOCH_COMPLETED, log))

    def log(engine):
        logged.append((engine.state.epoch, dict(engine.state.metrics)))

    track_levels([handler], [score(1, 0.5), score(2, 0.75)], 2, tmp_path)
    assert [step for step, _ in logged] == [1, 2]
    assert [metrics["levels/dice"] for _, metrics in logged] == [0.5, 0.75]
    assert [metrics["levels/dice_liver"] for _, metrics in logged] == [0.5, 0.75]
    assert np.isnan(logged[0][1]["levels/dice_tumour"])
    assert [metrics["levels/parameters"] for _, metrics in logged] == [10, 20]


# MLflow


@pytest.fixture(scope="module")
def tracked(balls, tmp_path_factory):
    """The folder of a bundle after a training and levels.json, both with --tracking mlflow."""
    root = tmp_path_factory.mktemp("tracked") / "a folder"
    settings = {**TINY_TRAINING, "channels": CHANNELS, "dataset_dir": balls, "bundle_root": root}
    command = ["-m", "monai.bundle", "run", "--tracking", "mlflow"]
    command += ["--config_file", str(BUNDLES / "liver" / "train.json")]
    command += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    done = python(*command, MLFLOW_DISABLE_TELEMETRY="true")
    assert done.returncode == 0, done.stderr[-3000:]
    levels = {
        "dataset_dir": str(balls),
        "channels": CHANNELS,
        "formats": ["pt"],
        "level": 1,
        "precisions": ["float32"],
    }
    run("liver", "train levels", root, tracking="mlflow", **levels)
    return root


@pytest.fixture
def store(tracked):
    """A client of what MLflow kept, and its runs by the first word of their names."""
    from mlflow import MlflowClient

    client = MlflowClient(sqlite_store(tracked / "runs" / "mlruns.db"))
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return client, {made.info.run_name.split("_")[0]: made for made in client.search_runs(experiments)}


def history(store, name, metric):
    client, runs = store
    found = client.get_metric_history(runs[name].info.run_id, metric)
    return {entry.step: entry.value for entry in found}


@needs_mlflow
def test_training_logs_what_it_was_made_with(store):
    run_of_training = store[1]["run"]
    assert run_of_training.info.status == "FINISHED"
    expected = {"seed": "0", "max_epochs": "2", "learning_rate": "0.02", "batch_size": "2"}
    expected |= {"network": "UNetPlusPlus", "network.channels": "(4, 6, 8)", "network.out_channels": "3"}
    assert expected.items() <= run_of_training.data.params.items()
    assert [file.path[:7] for file in store[0].list_artifacts(run_of_training.info.run_id)] == ["config_"]


@needs_mlflow
@pytest.mark.parametrize(
    "metric", ["train_loss", "train_loss_iteration", "loss/L1", "loss/L2", "val_mean_dice", "val_dice_ball"]
)
def test_training_logs_the_curves_that_tensorboard_gets(tracked, store, metric):
    curve = curves(tracked / "runs")[metric]
    assert list(curve) == ([1, 2, 3, 4] if metric == "train_loss_iteration" else [1, 2])
    assert history(store, "run", metric) == pytest.approx(curve)  # float32 there


@needs_mlflow
def test_levels_are_logged_with_table_and_figure_in_a_run_of_their_own(tracked, store):
    client, runs = store
    table = list(csv.DictReader((tracked / "levels" / "levels.csv").read_text().splitlines()))
    for tag, column in {"dice": "dice", "dice_ball": "dice ball", "parameters": "parameters"}.items():
        expected = {int(row["level"]): float(row[column]) for row in table}
        assert history(store, "levels", f"levels/{tag}") == pytest.approx(expected, abs=1e-4)
        assert curves(tracked / "runs")[f"levels/{tag}"] == pytest.approx(expected, abs=1e-4)
    made = runs["levels"]
    assert made.info.status == "FINISHED"
    assert made.data.params["level"] == "1"
    assert "max_epochs" not in made.data.params
    files = {file.path for file in client.list_artifacts(made.info.run_id)}
    assert files == {"levels.csv", "levels.md", "levels.png"}
    assert (tracked / "runs" / "mlruns" / made.info.run_id / "artifacts" / "levels.png").is_file()


@needs_mlflow
def test_evaluation_is_a_run_of_its_own_that_ends(tracked, balls):
    from mlflow import MlflowClient

    uri = sqlite_store(tracked / "runs" / "evaluated.db")
    settings = {"dataset_dir": str(balls), "channels": CHANNELS, "tracking_uri": uri}
    run("liver", "train evaluate", tracked, tracking="mlflow", **settings).finalize()
    client = MlflowClient(uri)
    [made] = client.search_runs([found.experiment_id for found in client.search_experiments()])
    assert made.info.status == "FINISHED"
    assert made.data.metrics["val_mean_dice"] > 0


@needs_mlflow
def test_run_that_goes_on_keeps_the_parameters_that_it_has(tracked, tiny):
    uri = sqlite_store(tracked / "runs" / "mlruns.db")
    for seed in (1, 2):  # the first is stopped, so that its run is still open
        handler = MLFlowHandler(uri, run_name="stopped", iteration_log=False, close_on_complete=seed == 2)
        made = trainer(tiny().train(), DeepSupervisionDiceLoss(), [handler])
        track_training(made, [handler], {"seed": seed, f"only_of_{seed}": True})
        made.run()
    [kept] = [
        r
        for r in handler.client.search_runs([handler.experiment.experiment_id])
        if r.info.run_name == "stopped"
    ]
    assert kept.data.params["seed"] == "1"
    assert {"only_of_1", "only_of_2"} <= kept.data.params.keys()


def test_name_that_was_chosen_for_the_loss_is_kept_and_other_handlers_are_left_alone(tiny):
    handler = MLFlowHandler.__new__(MLFlowHandler)
    handler.tag_name = "my_loss"
    made = trainer(tiny().train(), DeepSupervisionDiceLoss(), [])
    track_training(made, [object(), handler], {})
    assert handler.tag_name == "my_loss"


def test_nothing_is_kept_for_mlflow_that_was_not_asked_for(trained):
    assert {path.name.split(".")[0] for path in (trained / "runs").iterdir()} == {"events", "epochs"}


@pytest.mark.parametrize("names", ["train", "train levels"])
def test_missing_mlflow_is_an_error_that_says_how_to_install_it(balls, names, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "mlflow" else find(name, *rest)
    )
    flow = workflow("liver", names, tmp_path, tracking="mlflow", dataset_dir=str(balls), **TINY_TRAINING)
    with raises_within(
        ModuleNotFoundError, r'mlflow is not installed: pip install "monai-unetpp\[tracking\]"'
    ):
        flow.initialize()  # of levels.json: before any level is scored
