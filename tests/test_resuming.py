# SPDX-License-Identifier: Apache-2.0
"""A training that was stopped ends as one that was not; no bad number reaches its weights."""

import shutil
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events, State
from monai.data import MetaTensor
from torch import nn

from bundles import TINY_TRAINING, raises_within, run, workflow
from monai_unetpp.files import atomic_write
from monai_unetpp.handlers import (
    CheckpointLoader,
    CheckpointSaver,
    EarlyStop,
    EpochSeeds,
    FiniteSteps,
    StopOnSignal,
    atomic,
)

SETTINGS = TINY_TRAINING | {"batch_size": 1, "max_epochs": 3, "network_def#dropout": 0.2}  # 3 steps an epoch

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_path_as_before")]


def last(root, epoch=3):
    return torch.load(root / "models" / f"checkpoint_epoch={epoch}.pt", weights_only=True)


def same(a, b):
    """Whether two states are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(*pair) for pair in zip(a, b, strict=True))
    return a == b


def train(root, balls, *, until=None, **override):
    """Train, or train on; ``until``: an event and what is done there."""
    flow = workflow("liver", "train", root, dataset_dir=str(balls), **SETTINGS | override)
    flow.initialize()
    if until is not None:
        flow.trainer.add_event_handler(*until)
    flow.run()
    return flow


def interrupt(*_):
    raise KeyboardInterrupt


def terminate(*_):
    signal.raise_signal(signal.SIGTERM)


@pytest.fixture(scope="module")
def whole(balls, tmp_path_factory):
    """What three epochs give that nothing stopped."""
    root = tmp_path_factory.mktemp("whole")
    train(root, balls)
    return last(root)


# Going on


@pytest.mark.parametrize("step", [4, 6, 7], ids=["after an epoch", "at the end of one", "within the third"])
def test_killed_training_ends_as_one_that_was_not(whole, balls, tmp_path, step):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, balls, until=(Events.ITERATION_COMPLETED(once=step), interrupt))
    assert signal.getsignal(signal.SIGTERM) is before
    train(tmp_path, balls, resume=True)
    assert same(last(tmp_path), whole)


@pytest.mark.parametrize(
    "step", [1, 2, 3, 5], ids=["first", "within the first", "last of one", "within the second"]
)
def test_sigterm_saves_within_the_epoch_and_nothing_is_repeated(whole, balls, tmp_path, step, caplog):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        train(tmp_path, balls, until=(Events.ITERATION_STARTED(once=step), terminate))
    assert end.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    assert "SIGTERM: saving after this step, then stopping." in caplog.text
    assert "Saved and stopped: --resume True continues from here." in caplog.text
    assert last(tmp_path, step // 3)["trainer"]["iteration"] == step
    flow = train(tmp_path, balls, resume=True)
    assert flow.trainer.state.iteration == 9
    assert same(last(tmp_path), whole)


def test_training_that_is_stopped_again_and_again_ends_as_one_that_was_not(whole, balls, tmp_path):
    for step in range(1, 9):
        with pytest.raises(SystemExit):
            train(tmp_path, balls, until=(Events.ITERATION_STARTED(once=step), terminate), resume=step > 1)
    train(tmp_path, balls, resume=True)
    assert same(last(tmp_path), whole)
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [
        "checkpoint_epoch=2.pt",
        "checkpoint_epoch=3.pt",
        "model.json",
        "model.pt",
    ]


def test_sigterm_while_validating_lets_the_validation_end(whole, balls, tmp_path):
    flow = workflow("liver", "train", tmp_path, dataset_dir=str(balls), **SETTINGS)
    flow.initialize()
    flow.evaluator.add_event_handler(Events.ITERATION_STARTED(once=1), terminate)
    with pytest.raises(SystemExit):
        flow.run()
    assert last(tmp_path, 1)["trainer"]["iteration"] == 3
    assert last(tmp_path, 1)["best"]["_saved"]
    train(tmp_path, balls, resume=True)
    assert same(last(tmp_path), whole)


def test_trainer_in_another_thread_runs_without_listening(tmp_path):
    """Python lets the main thread alone listen to signals."""
    made = Engine(lambda *_: None)
    made.load_state_dict({"epoch": 0, "max_epochs": 2, "epoch_length": 1})
    stop = StopOnSignal(CheckpointSaver(str(tmp_path), {"model": nn.Linear(1, 1)}, save_interval=1))
    thread = threading.Thread(target=stop.run, args=(made,))
    thread.start()
    thread.join()
    assert made.state.epoch == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_what_an_epoch_draws_depends_on_the_seed_and_its_number_alone(balls, tmp_path, workers):
    def images(epochs, seed=0):
        seen = {}
        flow = workflow(
            "liver",
            "train",
            tmp_path,
            dataset_dir=str(balls),
            **SETTINGS | {"seed": seed, "num_workers": workers},
        )
        flow.initialize()
        loader = flow.parser.get_parsed_content("train#dataloader")
        made = Engine(lambda e, batch: seen.setdefault(e.state.epoch, []).append(batch["image"].sum().item()))
        EpochSeeds(seed).attach(made)
        made.load_state_dict({"epoch": epochs[0] - 1, "max_epochs": epochs[-1], "epoch_length": len(loader)})
        made.run(loader)
        return seen

    both, second = images([1, 2]), images([2])
    assert second[2] == both[2] != both[1]
    assert images([2], seed=1)[2] != both[2]


def test_workers_give_the_same_training_every_time(balls, tmp_path):
    """Not that of another number of workers: each of them draws by itself, and has every so-manieth batch."""
    for name in ("a", "b"):
        train(tmp_path / name, balls, num_workers=2, max_epochs=1)
    assert same(last(tmp_path / "a", 1), last(tmp_path / "b", 1))


# Stopping early


def test_training_stops_when_nothing_improves_and_its_count_is_kept(tmp_path):
    def made(scores):
        trainer, evaluator = Engine(lambda *_: None), Engine(lambda *_: None)
        evaluator.state.key_metric_name = "dice"
        stop = EarlyStop(evaluator, interval=2, patience=2)

        @trainer.on(Events.EPOCH_COMPLETED(every=2))
        def validate(_):
            evaluator.state.metrics["dice"] = scores.pop(0)

        stop.attach(trainer)
        return trainer, stop

    trainer, stop = made([0.5, 0.4, 0.3, 0.2])
    trainer.run([0], max_epochs=20)
    assert trainer.state.epoch == 6  # the third validation is the second without improvement

    trainer, stop = made([0.5, 0.4])
    trainer.run([0], max_epochs=4)
    torch.save(stop.state_dict(), tmp_path / "state.pt")
    trainer, stop = made([0.3, 0.2, 0.1])
    stop.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    trainer.run([0], max_epochs=20)
    assert trainer.state.epoch == 2


def test_patience_of_the_bundle_ends_the_training(balls, tmp_path):
    flow = train(tmp_path, balls, patience=1, learning_rate=0.0, max_epochs=9)
    assert flow.trainer.state.epoch == 2
    with raises_within(ValueError, "patience must be None or a number of validations from 1 on, got 0"):
        train(tmp_path / "other", balls, patience=0)


# Saving


def epochs(saver, count, net, before=0):
    made = Engine(lambda *_: None)
    saver.attach(made)
    made.add_event_handler(Events.EPOCH_STARTED, lambda e: nn.init.constant_(net.weight, e.state.epoch))
    made.load_state_dict({"epoch": before, "max_epochs": before + count, "epoch_length": 1})
    made.run([0])


def saver(folder, net, **settings):
    return CheckpointSaver(str(folder), {"model": net, "more": net}, save_interval=1, n_saved=2, **settings)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def failing(monkeypatch):
    """Let writing fail, for a list of tries."""
    tries = []

    def part(path, *_):
        if tries and tries.pop(0):
            raise OSError(28, "No space left on device")
        return atomic_write(path)

    monkeypatch.setattr(atomic, "atomic_write", part)
    monkeypatch.setattr(atomic, "RETRY_SECONDS", (0, 0))
    return tries


def test_checkpoint_that_cannot_be_written_leaves_the_one_before(failing, tmp_path):
    net = nn.Linear(1, 1)
    epochs(saver(tmp_path, net), 2, net)
    failing += [True] * 3
    with pytest.raises(OSError, match=r"epoch=3\.pt could not be saved: .*No space left") as error:
        epochs(saver(tmp_path, net), 1, net, before=2)
    assert f"--resume True continues from {tmp_path / 'checkpoint_epoch=2.pt'}" in str(error.value)
    assert "checkpoint_epoch=2.pt" in names(tmp_path)
    assert torch.load(tmp_path / "checkpoint_epoch=2.pt", weights_only=True)["model"]["weight"].item() == 2


def test_checkpoint_is_written_on_the_second_try(failing, tmp_path, caplog):
    net = nn.Linear(1, 1)
    failing += [True, False]
    epochs(saver(tmp_path, net), 1, net)
    assert names(tmp_path) == ["checkpoint_epoch=1.pt"]
    assert "Retrying in 0 s." in caplog.text


def test_best_weights_stay_when_better_ones_cannot_be_written(failing, tmp_path):
    net, made = nn.Linear(1, 1), Engine(lambda *_: None)
    made.state.key_metric_name = "dice"
    best = CheckpointSaver(
        str(tmp_path), {"model": net}, save_key_metric=True, key_metric_filename="model.pt"
    )
    best.attach(made)

    @made.on(Events.EPOCH_STARTED)
    def learn(engine):
        nn.init.constant_(net.weight, engine.state.epoch)
        engine.state.metrics["dice"] = engine.state.epoch / 10
        failing.extend([True] * 3 if engine.state.epoch == 2 else [])

    with pytest.raises(OSError, match=r"model\.pt could not be saved"):
        made.run([0], max_epochs=3)
    assert torch.load(tmp_path / "model.pt", weights_only=True)["weight"].item() == 1


def test_resumed_training_makes_room_for_new_epochs(tmp_path):
    net = nn.Linear(1, 1)
    epochs(saver(tmp_path, net), 2, net)
    epochs(saver(tmp_path, net), 2, net, before=2)
    assert names(tmp_path) == ["checkpoint_epoch=3.pt", "checkpoint_epoch=4.pt"]


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    net = nn.Linear(1, 1)
    half = tmp_path / ".checkpoint_epoch=1.pt.abcd1234.part"
    half.mkdir(parents=True)
    (half / "checkpoint_epoch=1.pt").write_bytes(b"half")
    epochs(saver(tmp_path, net), 1, net)
    assert names(tmp_path) == ["checkpoint_epoch=1.pt"]


def test_checkpoints_of_a_longer_training_are_kept_and_named(tmp_path, caplog):
    net = nn.Linear(1, 1)
    epochs(saver(tmp_path, net), 5, net)
    epochs(saver(tmp_path, net), 1, net)
    assert "checkpoint_epoch=5.pt: --resume True would continue from it" in caplog.text
    assert names(tmp_path) == [f"checkpoint_epoch={n}.pt" for n in (1, 4, 5)]


def test_folder_that_is_no_folder_is_named_before_the_training(tmp_path):
    (tmp_path / "models").write_text("")
    with pytest.raises((FileExistsError, NotADirectoryError), match="models"):
        saver(tmp_path / "models" / "here", nn.Linear(1, 1))


# Bad numbers


class PoisonOne:
    """A transform of our own that makes an infinite voxel in one case."""

    def __init__(self, case):
        self.case = case

    def __call__(self, data):
        if Path(data["image"].meta["filename_or_obj"]).name.startswith(self.case):
            data["image"][..., 0] = np.inf
        return data


@pytest.fixture
def poisoned(balls):
    """An augmentation that spoils a case that is trained on, and the case's name."""
    flow = workflow("liver", "train", Path("unused"), dataset_dir=str(balls), **SETTINGS)
    [case, *_] = flow.parser.get_parsed_content("split")[0]
    name = Path(case["image"]).name
    return name, [{"_target_": "test_resuming.PoisonOne", "case": name}]


def test_bad_number_stops_the_training_and_says_where_it_came_from(poisoned, balls, tmp_path):
    name, augmentation = poisoned
    message = (
        rf"Epoch 1, step \d: the loss is nan\. Cases: .*{name}\. The image of .*{name} is not finite "
        r"after PoisonOne \(transform 11 of 11\)\. To skip such steps: --bad_numbers skip\."
    )
    with raises_within(ValueError, message):
        train(tmp_path, balls, augmentation=augmentation)
    assert not list((tmp_path / "models").glob("*.pt"))


def test_bad_number_is_explained_in_a_training_that_goes_on_within_an_epoch(poisoned, balls, tmp_path):
    name, augmentation = poisoned
    with pytest.raises(SystemExit):
        train(tmp_path, balls, until=(Events.ITERATION_STARTED(once=1), terminate))
    with raises_within(
        ValueError, rf"Epoch \d, step \d: the loss is nan.*{name} is not finite after PoisonOne"
    ):
        train(tmp_path, balls, augmentation=augmentation, resume=True)


def test_bad_step_is_left_out_and_nothing_of_it_stays(poisoned, balls, tmp_path, caplog):
    name, augmentation = poisoned
    train(tmp_path, balls, augmentation=augmentation, bad_numbers="skip")
    state = last(tmp_path)
    assert all(torch.isfinite(value).all() for value in state["model"].values())
    steps = {int(entry["step"]) for entry in state["optimizer"]["state"].values()}
    assert steps == {2 * 3}  # two of three cases, three epochs
    assert f"{name} is not finite after PoisonOne" in caplog.text


def test_gradient_alone_is_enough_to_stop(balls, tmp_path):
    def spoil(engine):
        next(engine.network.parameters()).register_hook(lambda grad: grad * float("inf"))

    with raises_within(ValueError, "a gradient is not finite.*The images are finite: a lower learning_rate"):
        train(tmp_path, balls, until=(Events.STARTED, spoil))


def scaled(loss):
    """A trainer in float16 after its backward pass: a gradient that overflowed, and a loss."""
    net = nn.Linear(1, 1)
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, float("inf"))
    state = State(output={"loss": torch.tensor(loss)}, epoch=1, iteration=2, batch={"image": IMAGES})
    return SimpleNamespace(
        network=net,
        state=state,
        scaler=torch.amp.GradScaler("cpu"),
        optimizer=torch.optim.SGD(net.parameters(), lr=1.0),
    )


IMAGES = MetaTensor(torch.zeros(2, 1, 4, 4, 4), meta={"filename_or_obj": ["a.nii", "a.nii"]})
IMAGES.is_batch = True


def test_gradients_that_overflow_are_left_to_the_scaler(caplog):
    FiniteSteps("stop")(scaled(1.0))
    made = scaled(float("nan"))
    FiniteSteps("skip")(made)
    assert "the loss is nan. Cases: a.nii. The images are finite" in caplog.text
    assert all(parameter.grad is not None for parameter in made.network.parameters())
    with pytest.raises(ValueError, match="the loss is nan"):
        FiniteSteps("stop")(scaled(float("nan")))


def test_scaler_goes_on_with_its_scale(tmp_path):
    net, made = nn.Linear(1, 1), Engine(lambda *_: None)
    made.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    saver(tmp_path, net).attach(made)
    made.run([0], max_epochs=1)
    again = Engine(lambda *_: None)
    again.scaler = torch.amp.GradScaler("cpu")
    CheckpointLoader(str(tmp_path), {"model": net}).attach(again)
    again.run([0], max_epochs=1)
    assert again.scaler.state_dict()["scale"] == 8.0


def test_other_action_is_refused():
    with pytest.raises(ValueError, match="action must be 'stop' or 'skip', got 'ignore'"):
        FiniteSteps("ignore")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_score_that_is_no_number_is_never_the_best(tmp_path, value, caplog):
    net, made = nn.Linear(1, 1), Engine(lambda *_: None)
    made.state.key_metric_name = "dice"
    CheckpointSaver(
        str(tmp_path), {"model": net}, save_key_metric=True, key_metric_filename="model.pt"
    ).attach(made)
    made.add_event_handler(Events.EPOCH_STARTED, lambda e: e.state.metrics.update(dice=value))
    made.run([0], max_epochs=1)
    assert not list(tmp_path.iterdir())
    assert f"dice is {value}: these weights are not the best ones." in caplog.text


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    net = nn.Linear(1, 1)
    epochs(saver(tmp_path, net), 1, net)
    made = Engine(lambda *_: nn.init.constant_(net.weight, float("nan")))
    saver(tmp_path, net).attach(made)
    made.load_state_dict({"epoch": 1, "max_epochs": 2, "epoch_length": 1})
    with pytest.raises(ValueError, match=r"epoch=2\.pt is not saved: model is not finite in weight") as error:
        made.run([0])
    assert "--resume True continues from" in str(error.value)
    assert names(tmp_path) == ["checkpoint_epoch=1.pt"]


def test_finished_folder_can_be_resumed_after_it_was_moved(balls, tmp_path):
    train(tmp_path / "a", balls, max_epochs=1)
    shutil.move(tmp_path / "a", tmp_path / "b")
    flow = run(
        "liver",
        "train",
        tmp_path / "b",
        dataset_dir=str(balls),
        **SETTINGS | {"resume": True, "max_epochs": 2},
    )
    assert flow.trainer.state.epoch == 2


def test_copy_of_a_checkpoint_is_passed_over(tmp_path):
    for name in ("checkpoint_epoch=2.pt", "checkpoint_epoch=10.pt", "checkpoint_epoch=10 (copy).pt"):
        (tmp_path / name).touch()
    found = atomic.checkpoints_in(tmp_path)
    assert found == {epoch: tmp_path / f"checkpoint_epoch={epoch}.pt" for epoch in (2, 10)}
