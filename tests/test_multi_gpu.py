# SPDX-License-Identifier: Apache-2.0
"""The bundles in two processes, with gloo on CPUs."""

import csv
import filecmp
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch
from processes import torchrun

from bundles import BUNDLES, TINY_TRAINING, affine, ball, run, write_cases

SETTINGS = {**TINY_TRAINING, "out_channels": 3, "max_epochs": 2, "val_fraction": 0.7, "batch_size": 1}

pytestmark = pytest.mark.slow


# After the last line torch 2.13 may abort, or wait for ever, where a group of gloo is destroyed before the
# network in DDP that holds it: with torch alone too, on busy cores about once in thirty times.
ABORTED = "terminate called without an active exception"


def words(bundle, root, data, names="train multi_gpu_train", **override):
    """The command that runs the JSONs ``names`` of a bundle, merged in this order."""
    files = [str(BUNDLES / bundle / f"{name}.json") for name in names.split()]
    settings = {**SETTINGS, "bundle_root": root, "dataset_dir": data, **override}
    del settings["device"]
    settings = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    return ["-m", "monai.bundle", "run", "--config_file", str(files), *settings]


@contextmanager
def by_torchrun(log, *given, **override):
    """A process that runs it twice, by torch's own command, and prints into the folder ``log``."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (log / "out.txt").open("w") as out, (log / "err.txt").open("w") as err:
        arguments = [*launch, *words(*given, **override)]
        process = subprocess.Popen(arguments, env=environment, stdout=out, stderr=err)
        try:
            yield process
        finally:
            process.terminate()  # it ends what it has started; killed, it would leave that behind
            process.wait(timeout=60)


def in_two(bundle, root, data, names="train multi_gpu_train", **override):
    """Run it in two processes, in training with the group open to their end; returns what they print."""
    override |= {} if "evaluate" in names else {"finalize": []}
    done = torchrun(*words(bundle, root, data, names, **override))
    assert done.returncode == 0 or ABORTED in done.stderr, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """Two cases to train on, three to validate: more than one for one of the processes."""
    folder = tmp_path_factory.mktemp("five") / "data"
    return write_cases(folder, (ball(name, affine()) for name in "abcde"))


@pytest.fixture(scope="module")
def trained(five, tmp_path_factory):
    """Folder and output of a training that was started as the READMEs of the bundles say."""
    root = tmp_path_factory.mktemp("two")
    log = tmp_path_factory.mktemp("log")
    with by_torchrun(log, "liver", root, five) as process:
        try:
            code = process.wait(timeout=150)
        except subprocess.TimeoutExpired:
            code = None
    said, printed = (log / "err.txt").read_text(), (log / "out.txt").read_text()
    waits = code is None and (root / "models" / "checkpoint_epoch=2.pt").exists()
    assert code == 0 or ABORTED in said or waits, said[-3000:]
    return root, printed


def test_one_process_writes_and_prints(trained):
    root, output = trained
    assert sorted(path.name for path in (root / "models").iterdir()) == [
        "checkpoint_epoch=1.pt", "checkpoint_epoch=2.pt", "model.json", "model.pt",
    ]  # fmt: skip
    lines = re.findall(r"Epoch (\d) of \d+: train_loss", output)
    assert lines == ["1", "2"]
    events = [path.name.split(".")[-2] for path in (root / "runs").glob("events.*")]
    assert len(set(events)) == 1  # its number
    rows = list(csv.DictReader((root / "runs" / "epochs.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]


def test_weights_are_those_of_one_network_and_load_in_one_process(trained, five, tmp_path):
    root, _ = trained
    weights = torch.load(root / "models" / "model.pt", weights_only=True)
    assert not any(key.startswith("module.") for key in weights)
    ckpt_path = str(root / "models" / "model.pt")
    settings = {"dataset_dir": str(five), "ckpt_path": ckpt_path, "eval_cases": "$@dataset.cases"}
    run("liver", "train evaluate", tmp_path, **settings)
    table = list(csv.DictReader((tmp_path / "eval" / "val_mean_dice_raw.csv").read_text().splitlines()))
    assert len(table) == 5


def test_uneven_validation_is_that_of_one_process(trained, five, tmp_path):
    """What two processes say of the best weights is what one finds on the same cases."""
    root, output = trained
    found = [float(v) for v in re.findall(r"val_mean_dice ([0-9.]+)", output)]
    settings = {"dataset_dir": str(five), "ckpt_path": str(root / "models" / "model.pt"), "val_fraction": 0.7}
    flow = run("liver", "train evaluate", tmp_path, resampled=["image", "label"], **settings)
    alone = flow.parser.get_parsed_content("validate#evaluator").state.metrics["val_mean_dice"]
    assert alone == pytest.approx(max(found), abs=1e-4)


def test_two_processes_train_a_network_that_grows(five, tmp_path):
    """Nodes that are not trained yet get no gradient."""
    output = in_two("liver", tmp_path, five, channels=[4, 6, 8], growth=[0.5])
    assert re.findall(r"Epoch (\d): the network is trained up to L(\d)", output)[:1] == [("1", "1")]
    assert (tmp_path / "models" / "model.pt").is_file()


def words_and_numbers(path):
    """The cells of a table, its rows sorted: MONAI writes one process's cases after the other's."""
    cells = re.split("[,\t\n]", "\n".join(sorted(path.read_text().splitlines())))
    numbers = [float(cell) for cell in cells if re.fullmatch(r"[-+.\de]*\d|nan|inf", cell)]
    return [cell for cell in cells if re.search(r"[^-+.\de]", cell)], numbers


def test_two_processes_evaluate_as_one(trained, five, tmp_path):
    """Tables, lesions and the picture are those of one process: three cases in one, two in the other."""
    root, _ = trained
    settings = {"dataset_dir": str(five), "ckpt_path": str(root / "models" / "model.pt")}
    settings |= {"eval_cases": "$@dataset.cases", "out_channels": 3, "lesion_labels": ["ball", "pip"]}
    names = "train evaluate multi_gpu_evaluate"
    output = in_two("liver", tmp_path / "two", **{**settings, "data": five, "names": names})
    assert (output.count("Wrote the scores of 5 cases"), output.count(" found, ")) == (1, 2)  # lesion classes
    run("liver", "train evaluate", tmp_path / "one", **settings)
    one, two = (tmp_path / name / "eval" for name in ("one", "two"))
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    for path in sorted(one.iterdir()):
        if path.suffix == ".png":  # compared as files: pytest would explain a difference of bytes for minutes
            assert filecmp.cmp(two / path.name, path, shallow=False)
        else:
            (words, numbers), (found, close) = (words_and_numbers(each) for each in (path, two / path.name))
            assert found == words, path.name
            assert close == pytest.approx(numbers, abs=1e-5, nan_ok=True), path.name


def test_two_processes_resume(trained, five, tmp_path):
    root, _ = trained
    output = in_two("liver", tmp_path, five, ckpt_dir=root / "models", resume=True, max_epochs=3)
    assert re.findall(r"Epoch (\d) of \d+: train_loss", output) == ["3"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to catch")
def test_two_processes_stop_together_at_a_signal_and_what_they_save_goes_on(five, tmp_path):
    models, until = tmp_path / "models", time.monotonic() + 120
    with by_torchrun(tmp_path, "liver", tmp_path, five, max_epochs=500) as process:
        while process.poll() is None and not (models / "model.pt").exists():
            assert time.monotonic() < until, (tmp_path / "err.txt").read_text()[-3000:]
            time.sleep(0.1)
        process.terminate()
        assert process.wait(timeout=60) != 0
    text = (tmp_path / "out.txt").read_text() + (tmp_path / "err.txt").read_text()
    assert "SIGTERM: saving after this step, then stopping." in text, text[-3000:]
    [*_, last] = sorted(models.glob("checkpoint_epoch=*.pt"), key=lambda path: path.stat().st_mtime)
    epoch = torch.load(last, weights_only=True)["trainer"]["iteration"]  # one step an epoch in each process
    output = in_two("liver", tmp_path, five, resume=True, max_epochs=epoch + 1)
    assert re.findall(r"Epoch (\d+) of \d+: train_loss", output) == [str(epoch + 1)]
