# SPDX-License-Identifier: Apache-2.0
"""Folds of a cross-validation: dealt out by names, kept in one file, each trained into its own folder."""

import csv
import hashlib
import json
import logging
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from monai.data import Dataset, partition_dataset

from bundles import BUNDLES, DEEP, TINY, config, raises_within, run, workflow
from monai_unetpp.bundle import copy_bundle
from monai_unetpp.data import deal_folds, fold_folder, read_dataset, scan_names, split_cases
from monai_unetpp.data.folds import keep_folds
from monai_unetpp.files import atomic_write
from monai_unetpp.handlers import AbsentClasses, SplitRecord
from monai_unetpp.segment import load_pipeline
from monai_unetpp.weights import find_weights, read_record

pytestmark = pytest.mark.usefixtures("_path_as_before")

NAMES = st.sets(st.text("abcdefghij/._0123456789", min_size=1, max_size=6), min_size=2, max_size=40)


def scans(names):
    return [{"image": f"/data/imagesTr/{name}.nii.gz", "label": name} for name in names]


def held_out(cases, folds, fold, seed=0):
    return [case["label"] for case in split_cases(cases, 0.25, seed, folds, fold)[1]]


# Dealing


@given(names=NAMES, folds=st.integers(2, 8), seed=st.integers(0, 2**31), order=st.randoms())
def test_every_scan_is_held_out_once_and_folds_are_of_nearly_equal_size(names, folds, seed, order):
    names, folds = sorted(names), min(folds, len(names))
    dealt = deal_folds(names, folds, seed)
    assert sorted(name for fold in dealt for name in fold["val"]) == names
    assert all(sorted(fold["train"] + fold["val"]) == names for fold in dealt)
    sizes = [len(fold["val"]) for fold in dealt]
    assert max(sizes) - min(sizes) <= 1
    order.shuffle(names)
    assert deal_folds(names, folds, seed) == dealt


@given(names=NAMES, folds=st.integers(2, 8), seed=st.integers(0, 2**31))
def test_folds_are_the_partitions_of_monai_of_the_scans_in_the_order_of_their_hash(names, folds, seed):
    folds = min(folds, len(names))
    ordered = sorted(names, key=lambda name: hashlib.sha256(f"{name}:{seed}".encode()).hexdigest())
    parts = partition_dataset(ordered, num_partitions=folds, shuffle=False, even_divisible=False)
    assert [fold["val"] for fold in deal_folds(sorted(names), folds, seed)] == [sorted(p) for p in parts]


@pytest.mark.parametrize("seed", range(3))
def test_cases_of_a_fold_keep_their_order_whatever_the_order_of_others(seed):
    cases = scans(range(11))
    parts = [held_out(cases, 3, fold, seed) for fold in range(3)]
    assert sorted(label for part in parts for label in part) == list(range(11))
    assert [part[::-1] for part in parts] == [held_out(cases[::-1], 3, fold, seed) for fold in range(3)]
    assert parts != [held_out(cases, 3, fold, seed + 1) for fold in range(3)]


def test_cases_of_one_scan_stay_together():
    cases = [{"image": f"{scan}_{n}", "label": scan, "scan": scan} for scan in "abcdefg" for n in range(3)]
    for fold in range(3):
        train, val = split_cases(cases, 0.25, 0, 3, fold)
        assert not {case["scan"] for case in train} & {case["scan"] for case in val}
        assert len({case["scan"] for case in val}) in (2, 3)
        assert len(train) + len(val) == len(cases)


def test_without_folds_the_split_is_that_of_the_fraction(tmp_path):
    cases = scans(range(40))
    path = tmp_path / "splits.json"
    assert split_cases(cases, 0.25, 0, None, 0, path, True) == split_cases(cases, 0.25, 0)
    assert not path.exists()
    assert (fold_folder(None), fold_folder(5, 2)) == ("", "/fold_2")


@pytest.mark.parametrize(
    ("count", "folds", "fold", "message"),
    [
        (4, None, 2, "fold must be left out without folds, got 2: --folds 5 --fold 2 would work."),
        (4, 1, 0, "folds must be a whole number from 2 on, got 1: --folds 5 would work."),
        (4, 0, 0, "folds must be a whole number from 2 on, got 0"),
        (4, True, 0, "folds must be a whole number from 2 on, got True"),
        (4, 2.0, 0, "folds must be a whole number from 2 on, got 2.0"),
        (4, "all", 0, "folds must be a whole number from 2 on, got 'all'"),
        (4, 3, 3, "fold must be a whole number from 0 to 2 with folds 3, got 3: --fold 2 is the last one."),
        (4, 3, -1, "fold must be a whole number from 0 to 2 with folds 3, got -1"),
        (4, 3, "x", "fold must be a whole number from 0 to 2 with folds 3, got 'x'"),
        (4, 5, 0, "folds must be at most the number of scans, 4, got 5: --folds 4 would work."),
        (1, 5, 0, "folds must be at most the number of scans, 1, got 5: at least 2 scans are required."),
    ],
)
def test_fold_that_does_not_exist_is_refused_with_what_would_work(count, folds, fold, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        split_cases(scans(range(count)), 0.25, 0, folds, fold, tmp_path / "splits.json", True)
    assert not list(tmp_path.iterdir())


# The file


def test_file_is_a_list_of_train_and_val_by_name(tmp_path):
    cases, path = scans("abcde"), tmp_path / "new" / "splits.json"
    split_cases(cases, 0.25, 0, 2, 0, path)
    assert not path.exists()  # it is compared, and not written
    split_cases(cases, 0.25, 0, 2, 0, path, True)
    found = json.loads(path.read_text())
    assert found == deal_folds(scan_names(cases), 2, 0)
    before = path.stat()
    split_cases(cases[::-1], 0.25, 0, 2, 1, path, True)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert [entry.name for entry in path.parent.iterdir()] == ["splits.json"]


@pytest.mark.parametrize(
    ("names", "folds", "seed", "message"),
    [
        ("abcde", 3, 0, "2 folds, not 3. Continue with --folds 2, or"),
        ("abcde", 2, 1, "the same scans, dealt out otherwise than by seed 1. Continue with the seed of the"),
        ("abcdefg", 2, 0, "5 scans, the data set has 7: imagesTr/f.nii.gz and 1 more not in the file. Cont"),
        ("abcd", 2, 0, "5 scans, the data set has 4: imagesTr/e.nii.gz not in the data set. Continue with"),
    ],
)
@pytest.mark.parametrize("write", [False, True])
def test_other_folds_are_refused_with_what_differs(names, folds, seed, message, write, tmp_path):
    path = tmp_path / "splits.json"
    split_cases(scans("abcde"), 0.25, 0, 2, 0, path, True)
    before = path.read_text()
    with pytest.raises(ValueError, match=re.escape(f"{path} holds other folds: {message}")):
        split_cases(scans(names), 0.25, seed, folds, 0, path, write)
    assert path.read_text() == before


@pytest.mark.parametrize("text", ["", "[", "{}x", "3", '[{"train": []}]', "[1]"])
def test_damaged_file_is_refused_by_its_name(text, tmp_path):
    path = tmp_path / "splits.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(f"{path} must be a list of folds")):
        split_cases(scans("abcde"), 0.25, 0, 2, 0, path, True)


@pytest.mark.parametrize("links", [True, False], ids=["links", "no hard links"])
def test_file_that_another_process_wrote_in_the_meantime_is_not_replaced(links, tmp_path, monkeypatch):
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", lambda *_: os.link(tmp_path, tmp_path / "no"))  # an OSError
    first, only = tmp_path / "first.json", tmp_path / "only.json"

    def write(path, text, meanwhile=None):
        with atomic_write(path, overwrite=False) as part:
            part.write_text(text)
            if meanwhile is not None:
                path.write_text(meanwhile)

    write(only, "only")
    with pytest.raises(FileExistsError, match=r"first\.json exists"):
        write(first, "second", meanwhile="first")
    assert (first.read_text(), only.read_text()) == ("first", "only")
    assert sorted(tmp_path.iterdir()) == [first, only]


def test_of_folds_that_start_at_the_same_moment_one_writes_and_the_others_compare(tmp_path):
    path, count = tmp_path / "splits.json", 8
    together = Barrier(count)

    def begin(seed):
        together.wait()
        try:
            keep_folds(path, deal_folds("abcdefghij", 5, seed % 2), seed % 2)
        except ValueError:
            return False
        return True

    with ThreadPoolExecutor(count) as threads:
        began = list(threads.map(begin, range(count)))
    assert sum(began) == count // 2  # those of one seed
    assert json.loads(path.read_text()) == deal_folds("abcdefghij", 5, began.index(True) % 2)
    assert [entry.name for entry in tmp_path.iterdir()] == ["splits.json"]


# Checkpoints


def test_checkpoint_of_another_fold_is_not_resumed():
    split = scans("abc"), scans("de")
    record = SplitRecord(split, 5, 2).state_dict()
    SplitRecord(split, 5, 2).load_state_dict(record)
    for other, now in (
        (SplitRecord(split, 5, 1), "--folds 5 --fold 1"),
        (SplitRecord(split, 4, 2), "--folds 4 --fold 2"),
        (SplitRecord(split), "no --folds"),
    ):
        message = (
            f"started with --folds 5 --fold 2 and would be resumed with {now}: resume with --folds 5 --fold 2"
        )
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(record)
    with pytest.raises(
        ValueError, match="started with no --folds and would be resumed with --folds 5 --fold"
    ):
        SplitRecord(split, 5, 0).load_state_dict(SplitRecord(split).state_dict())


def test_checkpoint_without_folds_is_what_it_was():
    assert SplitRecord((scans("a"), scans("b"))).state_dict().keys() == {"train", "held_out"}


def test_class_that_no_scan_of_a_fold_has_is_a_warning_with_advice_on_folds(caplog):
    class Labels(Dataset):
        def __init__(self, *values):
            super().__init__([{"label": n} for n in range(len(values))])
            self._cache = [{"label": torch.tensor(value)} for value in values]

    with caplog.at_level(logging.WARNING):
        AbsentClasses(Labels([0, 1, 2]), Labels([0, 1]), ["background", "ball", "pip"], folds=5)()
    assert "pip (value 2) is in none of the 1 validation labels" in caplog.text
    assert "no validation Dice in this fold" in caplog.text
    assert "fewer --folds" in caplog.text
    assert "val_fraction" not in caplog.text


# Weights


def test_weights_of_folds_are_named_and_not_chosen(tmp_path):
    model, shipped = tmp_path / "models" / "model.pt", tmp_path / "weights" / "model.pt"
    shipped.parent.mkdir()
    shipped.touch()
    for number in (10, 2):
        path = model.parent / f"fold_{number}" / "model.pt"
        path.parent.mkdir(parents=True)
        path.touch()
    (model.parent / "fold_old").mkdir()
    listed = ", ".join(str(model.parent / f"fold_{n}" / "model.pt") for n in (2, 10))
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"only folds were trained, {listed}. Name one: --ch")
    ):
        find_weights(model, shipped)
    model.touch()
    assert find_weights(model, shipped) == str(model)


# Bundles


@pytest.fixture(scope="module")
def folded(balls, tmp_path_factory):
    """A bundle of which both of two folds were trained for an epoch, to be left as it is."""
    root = tmp_path_factory.mktemp("folded")
    for fold in (0, 1):
        run("liver", "train", root, dataset_dir=str(balls), max_epochs=1, channels=DEEP, folds=2, fold=fold)
    return root


@pytest.fixture
def again(folded, tmp_path):
    return shutil.copytree(folded, tmp_path / "again")


def names_of(cases):
    return sorted(scan_names(cases))


def test_each_fold_trains_into_its_own_folder_and_all_share_the_file(folded, balls):
    splits = json.loads((folded / "splits.json").read_text())
    assert splits == deal_folds(scan_names(read_dataset(balls, 3).cases), 2, 0)
    assert sorted(path.name for path in folded.iterdir()) == ["models", "runs", "splits.json"]
    for fold in (0, 1):
        models = folded / "models" / f"fold_{fold}"
        split = torch.load(models / "checkpoint_epoch=1.pt", weights_only=True)["split"]
        assert split == {
            "train": splits[fold]["train"],
            "held_out": splits[fold]["val"],
            "folds": 2,
            "fold": fold,
        }
        record = read_record(models / "model.pt")
        assert (record.folds, record.fold) == (2, fold)
        assert list((folded / "runs" / f"fold_{fold}").glob("events*"))
    assert [path.name for path in (folded / "models").iterdir() if path.is_file()] == []


def test_fold_is_resumed_in_its_folder(again, balls):
    flow = settings = {"channels": DEEP, "max_epochs": 2, "folds": 2, "fold": 1, "resume": True}
    flow = run("liver", "train", again, dataset_dir=str(balls), **settings)
    assert (again / "models" / "fold_1" / "checkpoint_epoch=2.pt").is_file()
    assert not (again / "models" / "fold_0" / "checkpoint_epoch=2.pt").exists()
    lines = flow.parser.get_parsed_content("train#report").lines()
    assert f"{again} --dataset_dir {balls} --folds 2 --fold 1" in lines[-2]
    assert lines[-1].endswith(f"--bundle {again} --checkpoint {again}/models/fold_1/model.pt")


def test_fold_that_was_trained_is_not_trained_over(again, balls):
    with raises_within(FileExistsError, r"ckpt_dir holds a training: .*fold_1/checkpoint_epoch=1\.pt"):
        run("liver", "train", again, dataset_dir=str(balls), folds=2, fold=1)


def test_resuming_as_another_fold_is_refused(again, balls):
    settings = {"dataset_dir": str(balls), "max_epochs": 2, "resume": True, "channels": DEEP}
    folder = str(again / "models" / "fold_1")
    with raises_within(
        ValueError, "started with --folds 2 --fold 1 and would be resumed with --folds 2 --fold 0"
    ):
        run("liver", "train", again, **settings, folds=2, ckpt_dir=folder)
    with raises_within(
        ValueError, r"splits\.json holds other folds: 2 folds, not 4\. Continue with --folds 2"
    ):
        run("liver", "train", again, **settings, folds=4, fold=1)
    assert not (again / "models" / "fold_1" / "checkpoint_epoch=2.pt").exists()


@pytest.mark.parametrize(
    ("settings", "match"), [({"fold": 2}, "--folds 5 --fold 2"), ({"folds": 2, "fold": 2}, "0 to 1")]
)
@pytest.mark.parametrize("names", ["train", "train evaluate"])
def test_workflow_refuses_a_fold_that_does_not_exist_and_writes_nothing(
    names, settings, match, balls, tmp_path
):
    with raises_within(ValueError, match):
        run("liver", names, tmp_path / "root", dataset_dir=str(balls), **settings)
    assert not (tmp_path / "root").exists()


def test_evaluation_scores_the_scans_of_the_fold(again, balls):
    run("liver", "train evaluate", again, dataset_dir=str(balls), channels=DEEP, folds=2, fold=1)
    with (again / "eval" / "fold_1" / "val_mean_dice_raw.csv").open() as file:
        rows = [row[0] for row in csv.reader(file)][1:]
    splits = json.loads((again / "splits.json").read_text())
    assert len(rows) == len(splits[1]["val"])
    assert all(any(name.split("/")[-1] in row for row in rows) for name in splits[1]["val"])


def test_levels_are_those_of_the_fold(again, balls):
    settings = {"channels": DEEP, "folds": 2, "fold": 1, "formats": ["pt"]}
    run("liver", "train levels", again, dataset_dir=str(balls), **settings)
    assert (again / "levels" / "fold_1" / "levels.csv").is_file()
    assert read_record(again / "models" / "fold_1" / "model.pt").level
    assert read_record(again / "models" / "fold_0" / "model.pt").level is None


def test_scoring_weights_of_another_fold_is_refused(again, balls):
    path = str(again / "models" / "fold_0" / "model.pt")
    with raises_within(
        ValueError, r"trained on and would be held out now.*Score with --folds 2 --fold 0, the seed"
    ):
        run(
            "liver",
            "train evaluate",
            again,
            dataset_dir=str(balls),
            channels=DEEP,
            folds=2,
            fold=1,
            ckpt_path=path,
        )


def test_evaluation_does_not_write_the_file_of_folds(again, balls):
    (again / "splits.json").unlink()
    run("liver", "train evaluate", again, dataset_dir=str(balls), channels=DEEP, folds=2, fold=0)
    assert not (again / "splits.json").exists()


def test_evaluation_without_the_fold_names_the_weights_that_are_there(folded, balls):
    there = ", ".join(str(folded / "models" / f"fold_{n}" / "model.pt") for n in (0, 1))
    with raises_within(FileNotFoundError, re.escape(f"models/model.pt: there are {there}")):
        run("liver", "train evaluate", folded, dataset_dir=str(balls), output_dir=str(folded / "none"))


@pytest.mark.parametrize("name", ["liver", "lung_nodule"])
def test_segment_names_the_folds_rather_than_take_what_ships(name, folded, tmp_path):
    root = copy_bundle(name, tmp_path)
    shutil.copytree(folded / "models", root / "models")
    there = ", ".join(str(root / "models" / f"fold_{n}" / "model.pt") for n in (0, 1))
    with pytest.raises(FileNotFoundError, match=re.escape(f"only folds were trained, {there}. Name one")):
        load_pipeline(root, "scans", tmp_path / "out", device="$torch.device('cpu')")
    if name == "liver":
        settings = {**TINY, "channels": DEEP, "ckpt_path": str(root / "models" / "fold_1" / "model.pt")}
        load_pipeline(root, "scans", tmp_path / "out", **settings)


def test_overlay_trains_its_folds_below_its_own_folder(tmp_path):
    flow = workflow("liver", "train slices", tmp_path, folds=3, fold=2)
    assert flow.parser.get_parsed_content("ckpt_dir") == f"{tmp_path}/models/slices/fold_2"
    assert flow.parser.get_parsed_content("log_dir") == f"{tmp_path}/runs/slices/fold_2"


@pytest.mark.parametrize("name", ["liver", "lung_nodule"])
def test_bundles_are_as_before_without_folds(name):
    parser = ConfigParser(config(name, "train"))
    found = {key: parser.get_parsed_content(key) for key in ("ckpt_dir", "log_dir", "arguments")}
    root = f"bundles/{name}"
    assert found == {"ckpt_dir": f"{root}/models", "log_dir": f"{root}/runs", "arguments": ""}
    assert (BUNDLES / name).is_dir()
