# SPDX-License-Identifier: Apache-2.0
"""The liver bundle as its JSONs stand, made small by overrides: what a user may rely on.

What a user can do wrong is in test_bad_input.py.
"""

import csv
import json
import shutil

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.data import load_net_with_metadata
from processes import python
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bundles import (
    AFFINES,
    BUNDLES,
    LABELS,
    TINY,
    TINY_TRAINING,
    affine,
    ball,
    config,
    raises_within,
    run,
    workflow,
    write_cases,
)
from monai_unetpp import UNetPlusPlus
from monai_unetpp.data.phantoms import phantom

LIVER = BUNDLES / "liver"
METADATA, INFERENCE = str(LIVER / "metadata.json"), str(LIVER / "inference.json")
TRAIN, EVALUATE = str(LIVER / "train.json"), str(LIVER / "evaluate.json")
WORKFLOWS = pytest.mark.parametrize(
    "names", ["train", "train evaluate", "train levels", "train msd", "inference"]
)
SELF_CONTAINED = pytest.mark.parametrize("name", ["train", "inference"])

pytestmark = pytest.mark.slow


def liver(names, root, **override):
    return run("liver", names, root, **override)


def weights(path):
    return torch.load(path, weights_only=True)


def rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture
def again(trained, tmp_path):
    """A copy of the trained bundle, to resume from."""
    return shutil.copytree(trained, tmp_path / "again")


# MONAI's own export


def test_exported_network_equals_the_trained_one_and_carries_the_configs(trained, tmp_path):
    monai.bundle.ckpt_export(
        "network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(trained / "models" / "model.pt"),
        meta_file=METADATA,
        config_file=INFERENCE,
        channels=TINY["channels"],
    )
    scripted, metadata, files = load_net_with_metadata(
        str(tmp_path / "model.ts"), more_extra_files=["inference.json"]
    )
    eager = UNetPlusPlus(3, 1, 3, channels=TINY["channels"], strides=2).eval()
    eager.load_state_dict(weights(trained / "models" / "model.pt"))
    x = torch.rand(2, 1, 16, 20, 12)
    with torch.no_grad():
        # the same kernels, but elementwise steps may be fused
        torch.testing.assert_close(scripted.eval()(x), eager(x), rtol=0, atol=1e-5)
    assert metadata["name"] == config("liver", "metadata")["name"]
    assert json.loads(files["inference.json"]) == config("liver", "inference")


# Logging


def test_monais_command_trains_and_logs_a_few_lines_per_epoch(balls, tmp_path):
    settings = {**TINY_TRAINING, "bundle_root": tmp_path, "dataset_dir": balls, "max_epochs": 1}
    command = ["-m", "monai.bundle", "run", "--config_file", TRAIN]
    command += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    done = python(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line.split(" - INFO - ")[1] for line in done.stdout.splitlines() if "Epoch 1" in line]
    assert [line.split(" 0.")[0] for line in lines][:1] == ["Epoch 1: val_dice_ball"]
    assert [line.split()[:5] for line in lines][1:] == [["Epoch", "1", "of", "1:", "train_loss"]]
    assert "Loading dataset" not in done.stderr  # bars are for terminals
    assert (tmp_path / "models" / "model.pt").is_file()


# Training


def test_model_file_holds_nothing_but_weights(trained):
    state = weights(trained / "models" / "model.pt")
    assert all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items())
    UNetPlusPlus(3, 1, 3, channels=TINY["channels"], strides=2).load_state_dict(state)


def test_last_two_epochs_are_kept_with_all_that_a_resumed_training_needs(balls, tmp_path):
    liver("train", tmp_path, dataset_dir=str(balls), max_epochs=3)
    names = sorted(path.name for path in (tmp_path / "models").iterdir())
    assert names == ["checkpoint_epoch=2.pt", "checkpoint_epoch=3.pt", "model.json", "model.pt"]
    state = weights(tmp_path / "models" / "checkpoint_epoch=3.pt")
    engines, counts = {"trainer", "evaluator"}, {"best", "early_stop", "seeds", "split", "report"}
    assert {"model", "average", "optimizer", "lr_scheduler", "epoch_table"} | engines | counts == state.keys()
    assert state["trainer"]["iteration"] == 3 * state["trainer"]["epoch_length"]


def test_curves_are_written_for_tensorboard(trained):
    scalars = {}
    for path in (trained / "runs").glob("events.out.tfevents.*"):
        events = EventAccumulator(str(path)).Reload()
        scalars |= {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    epochs = {tag: steps for tag, steps in scalars.items() if tag.startswith(("val_", "train_mean"))}
    assert epochs.pop("val_mean_dice") == [1, 2]
    assert set(map(tuple, epochs.values())) == {(1, 2)}
    assert {"val_dice_ball", "val_dice_pip"} <= epochs.keys()
    assert "train_loss" in scalars


def test_same_seed_gives_the_same_weights(trained, balls, tmp_path):
    liver("train", tmp_path, dataset_dir=str(balls))
    first, second = weights(trained / "models" / "model.pt"), weights(tmp_path / "models" / "model.pt")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_another_seed_gives_other_weights(trained, balls, tmp_path):
    liver("train", tmp_path, dataset_dir=str(balls), seed=1)
    first, second = weights(trained / "models" / "model.pt"), weights(tmp_path / "models" / "model.pt")
    assert any(not torch.equal(first[key], second[key]) for key in first)


def test_held_out_cases_do_not_train_and_depend_on_the_seed_alone(balls, tmp_path):
    def split(**override):
        parser = workflow(
            "liver", "train", tmp_path, dataset_dir=str(balls), **TINY_TRAINING | override
        ).parser
        return [sorted(case["image"] for case in part) for part in parser.get_parsed_content("split")]

    train, held_out = split()
    assert (len(train), len(held_out)) == (3, 1)
    assert sorted(train + held_out) == sorted(map(str, (balls / "imagesTr").iterdir()))
    assert split(max_epochs=7, batch_size=1) == [train, held_out]
    assert len({split(seed=seed)[1][0] for seed in range(8)}) > 1


def test_loss_falls(balls, tmp_path):
    losses = []
    flow = workflow("liver", "train", tmp_path, dataset_dir=str(balls), **TINY_TRAINING | {"max_epochs": 4})
    flow.initialize()
    flow.trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda e: losses.append(e.state.metrics["train_loss"])
    )
    flow.trainer.run()
    assert losses[-1] < 0.9 * losses[0]


def test_recipe_for_real_data_runs_with_the_transforms_of_both_files(balls, tmp_path):
    flow = liver("train msd", tmp_path, dataset_dir=str(balls), max_epochs=1)
    own, more = config("liver", "train"), config("liver", "msd")
    expected = [
        transform["_target_"].split(".")[-1]
        for part in (
            own["preprocessing_transforms"],
            own["train"]["random_transforms"].values(),
            more["augmentation"],
        )
        for transform in part
        if "_disabled_" not in transform
    ]
    assert [type(t).__name__ for t in flow.train_preprocessing.transforms] == expected
    assert (tmp_path / "models" / "model.pt").is_file()


@SELF_CONTAINED
@pytest.mark.parametrize("bf16", [True, False], ids=["bfloat16", "float16"])
def test_gpu_is_used_with_mixed_precision_where_there_is_one(name, bf16, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    parser = ConfigParser(config("liver", name))
    assert parser.get_parsed_content("device") == torch.device("cuda")
    assert parser.get_parsed_content("amp") is True
    assert parser.get_parsed_content("amp_kwargs") == {"dtype": torch.bfloat16 if bf16 else torch.float16}


@SELF_CONTAINED
def test_cpu_is_used_in_full_precision_where_there_is_no_gpu(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    parser = ConfigParser(config("liver", name))
    assert parser.get_parsed_content("device") == torch.device("cpu")
    assert parser.get_parsed_content("amp") is False


def test_mixed_precision_gives_nearly_the_same_loss(balls, tmp_path):
    flow = workflow("liver", "train", tmp_path, dataset_dir=str(balls), **TINY_TRAINING)
    flow.initialize()
    batch = next(iter(flow.parser.get_parsed_content("train#dataloader")))
    network, loss = flow.network_def.train(), flow.parser.get_parsed_content("loss")
    full = loss(network(batch["image"]), batch["label"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = loss(network(batch["image"]), batch["label"])
    mixed.backward()
    assert abs(mixed - full).item() < 0.02 * full.item()  # bfloat16 has eight bits of mantissa
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())


# Resuming


def test_resumed_training_goes_on_where_the_other_stopped(again, balls):
    before = weights(again / "models" / "checkpoint_epoch=2.pt")
    flow = liver("train", again, dataset_dir=str(balls), resume=True, max_epochs=3)
    after = weights(again / "models" / "checkpoint_epoch=3.pt")
    length = before["trainer"]["epoch_length"]
    assert flow.trainer.state.epoch == 3
    assert before["trainer"]["iteration"] == 2 * length
    assert after["trainer"]["iteration"] == 3 * length
    for name, epochs in ((before, 2), (after, 3)):
        steps = {entry["step"].item() for entry in name["optimizer"]["state"].values()}
        assert steps == {epochs * length}
        assert name["lr_scheduler"]["last_epoch"] == epochs


def test_learning_rate_goes_on_with_the_number_of_epochs_that_is_asked_for_now(again, balls):
    rates = []
    settings = TINY_TRAINING | {"max_epochs": 4, "resume": True}
    flow = workflow("liver", "train", again, dataset_dir=str(balls), **settings)
    flow.initialize()
    optimizer = flow.parser.get_parsed_content("optimizer")
    flow.trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda _: rates.append(optimizer.param_groups[0]["lr"])
    )
    flow.trainer.add_event_handler(
        Events.EPOCH_STARTED, lambda _: rates.append(optimizer.param_groups[0]["lr"])
    )
    flow.trainer.run()
    # epochs to go: before the third, after it, before the fourth; after it a federated round may begin
    left = [2 / 4, 1 / 4, 1 / 4, 4 / 4]
    assert rates == pytest.approx([settings["learning_rate"] * part**0.9 for part in left])


def test_interrupted_training_takes_the_learning_rates_of_one_that_was_not(balls, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    flow = workflow("liver", "train", tmp_path, dataset_dir=str(balls), **TINY_TRAINING | {"max_epochs": 3})
    flow.initialize()
    flow.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), interrupt)  # in the second epoch
    with pytest.raises(KeyboardInterrupt):
        flow.trainer.run()
    flow = liver("train", tmp_path, dataset_dir=str(balls), max_epochs=3, resume=True)
    second = weights(tmp_path / "models" / "checkpoint_epoch=2.pt")
    assert second["lr_scheduler"]["last_epoch"] == 2
    assert second["optimizer"]["param_groups"][0]["lr"] == pytest.approx(
        TINY_TRAINING["learning_rate"] * (1 / 3) ** 0.9
    )
    assert flow.trainer.state.iteration == 3 * flow.trainer.state.epoch_length


@pytest.mark.parametrize(("best", "kept"), [(0.99, True), (0.0001, False)], ids=["worse", "better"])
def test_best_weights_are_replaced_only_by_better_ones_than_those_before(again, balls, best, kept):
    path, model = again / "models" / "checkpoint_epoch=2.pt", again / "models" / "model.pt"
    state = weights(path)
    [(score, name)] = state["best"]["_saved"]
    assert score == state["evaluator"]["best_metric"] > 0
    state["best"]["_saved"] = [(best, name)]
    torch.save(state, path)
    before = model.stat().st_mtime_ns
    liver("train", again, dataset_dir=str(balls), resume=True, max_epochs=3)
    assert (model.stat().st_mtime_ns == before) == kept


def test_best_weights_that_were_taken_away_are_written_again(again, balls):
    model = again / "models" / "model.pt"
    model.unlink()
    liver("train", again, dataset_dir=str(balls), resume=True, max_epochs=3)
    assert model.is_file()


def test_finished_training_that_is_resumed_does_nothing(again, balls):
    before = weights(again / "models" / "model.pt")
    flow = liver("train", again, dataset_dir=str(balls), resume=True, max_epochs=2)
    after = weights(again / "models" / "model.pt")
    assert flow.trainer.state.epoch == 2
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert len(list((again / "models").iterdir())) == 4  # with the record of the weights


# Inference


def threshold(root, source, **override):
    """Segment with a network that is a threshold in the middle of the window of intensities, at 50 HU."""
    override = {
        "network_def": {"_target_": "bundles.Threshold", "out_channels": "@out_channels"},
        "handlers#0#_disabled_": True,
        "input": source,
        **override,
    }
    liver("inference", root, **override)
    return root / "output"


def dice(a, b):
    """Dice of two masks; NaN if ``b``, the label, is empty."""
    return 2 * (a & b).sum() / (a.sum() + b.sum()) if b.any() else np.nan


GRIDS = {
    **AFFINES,
    "anisotropic": affine("LAS", (3, 3, 7)),
    "oblique and anisotropic": affine("SPL", (3, 5, 4), 25),
}


@pytest.mark.parametrize("grid", GRIDS)
def test_segmentation_lies_where_the_volume_lies(grid, tmp_path):
    """At the voxel size of the file nothing is resampled: the threshold is met to the voxel."""
    case = ball("case", GRIDS[grid], centre=(0.4, 0.55, 0.6), radius=30)
    source = write_cases(tmp_path, [case]) / "imagesTr" / "case.nii.gz"
    canonical = nib.as_closest_canonical(nib.load(source))
    pixdim = [float(size) for size in canonical.header.get_zooms()]
    output = threshold(tmp_path, str(source), pixdim=pixdim)
    image, found = nib.load(source), nib.load(output / "case_seg.nii.gz")
    assert found.shape == image.shape
    assert np.array_equal(found.affine, image.affine)
    assert found.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(found.dataobj), case.image > 50)


@pytest.mark.parametrize("grid", GRIDS)
def test_segmentation_is_at_the_same_place_after_resampling(grid, tmp_path):
    case = ball("case", GRIDS[grid], centre=(0.4, 0.55, 0.6), radius=30, noise=0)
    source = write_cases(tmp_path, [case]) / "imagesTr" / "case.nii.gz"
    found = nib.load(threshold(tmp_path, str(source), pixdim=[3.1, 3.3, 2.9]) / "case_seg.nii.gz")
    mask = np.asarray(found.dataobj) == 1
    # the inverse of a resampling may leave 1e-33 where there was a zero
    np.testing.assert_allclose(found.affine, nib.load(source).affine, rtol=0, atol=1e-20)
    assert dice(mask, case.label > 0) > 0.9
    centres = [nib.affines.apply_affine(found.affine, np.argwhere(m).mean(0)) for m in (mask, case.label > 0)]
    assert np.linalg.norm(centres[0] - centres[1]) < 1  # mm


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("RAS.nii.gz", ["RAS"]),
        ("", ["LPS", "PSR", "RAS", "oblique"]),
        (["oblique.nii.gz", "LPS.nii.gz"], ["LPS", "oblique"]),
    ],
    ids=["file", "folder", "list"],
)
def test_trained_network_segments_what_is_given(trained, balls, tmp_path, names, expected):
    folder = balls / "imagesTr"
    source = [str(folder / name) for name in names] if isinstance(names, list) else str(folder / names)
    liver("inference", tmp_path, input=source, ckpt_path=str(trained / "models" / "model.pt"))
    assert sorted(path.name for path in (tmp_path / "output").iterdir()) == [
        f"{n}_seg.nii.gz" for n in expected
    ]
    for name in expected:
        image, found = (
            nib.load(folder / f"{name}.nii.gz"),
            nib.load(tmp_path / "output" / f"{name}_seg.nii.gz"),
        )
        assert found.shape == image.shape
        assert np.array_equal(found.affine, image.affine)
        assert found.get_data_dtype() == np.uint8
        assert set(np.unique(found.dataobj)) <= set(range(len(LABELS)))


def test_checkpoint_of_an_epoch_can_be_used_as_well(trained, balls, tmp_path):
    for name in ("model.pt", "checkpoint_epoch=2.pt"):
        path = trained / "models" / name
        liver("inference", tmp_path / name, input=str(balls / "imagesTr" / "RAS.nii.gz"), ckpt_path=str(path))
        assert (tmp_path / name / "output" / "RAS_seg.nii.gz").is_file()


# Evaluation


def test_scores_are_those_of_the_files_that_inference_writes(trained, balls, tmp_path):
    settings = {"ckpt_path": str(trained / "models" / "model.pt"), "pixdim": [5.0, 5.0, 5.0]}
    overlap = config("liver", "train")["validate"]["inferer"]["overlap"]
    liver("inference", tmp_path, input=str(balls / "imagesTr"), **{**settings, "windows#overlap": overlap})
    liver("train evaluate", tmp_path, dataset_dir=str(balls), eval_cases="$@dataset.cases", **settings)
    tables = {name: rows(tmp_path / "eval" / f"val_mean_{name}_raw.csv") for name in ("dice", "iou")}
    assert sorted(row["filename"] for row in tables["dice"]) == sorted(
        map(str, (balls / "imagesTr").iterdir())
    )
    for row_of_dice, row_of_iou in zip(tables["dice"], tables["iou"], strict=True):
        name = row_of_dice["filename"].rsplit("/")[-1].removesuffix(".nii.gz")
        label = np.asarray(nib.load(balls / "labelsTr" / f"{name}.nii.gz").dataobj)
        found = np.asarray(nib.load(tmp_path / "output" / f"{name}_seg.nii.gz").dataobj)
        for value in (1, 2):
            expected = dice(found == value, label == value)
            assert float(row_of_dice[LABELS[str(value)]]) == pytest.approx(expected, abs=1e-6)
            assert float(row_of_iou[LABELS[str(value)]]) == pytest.approx(expected / (2 - expected), abs=1e-6)


def test_evaluation_scores_the_cases_that_were_held_out(trained, balls, tmp_path):
    flow = liver(
        "train evaluate", tmp_path, dataset_dir=str(balls), ckpt_path=str(trained / "models" / "model.pt")
    )
    held_out = [case["image"] for case in flow.parser.get_parsed_content("split")[1]]
    [row] = rows(tmp_path / "eval" / "val_mean_dice_raw.csv")
    assert list(row) == ["filename", *list(LABELS.values())[1:], "mean"]
    assert [row["filename"]] == held_out
    names = [row["class"] for row in rows(tmp_path / "eval" / "val_mean_dice_summary.csv")]
    assert names == [*list(LABELS.values())[1:], "mean"]


def test_class_that_a_case_lacks_has_no_score_there(trained, tmp_path):
    case = ball("case", affine())
    case.label[case.label == 2] = 1
    data = write_cases(tmp_path / "data", [case])
    ckpt_path = str(trained / "models" / "model.pt")
    liver(
        "train evaluate", tmp_path, dataset_dir=str(data), ckpt_path=ckpt_path, eval_cases="$@dataset.cases"
    )
    [row] = rows(tmp_path / "eval" / "val_mean_dice_raw.csv")
    assert row["pip"] == "nan"
    assert row["mean"] == row["ball"]


# Levels


def test_slices_are_learnt_from_and_a_volume_is_segmented_slice_by_slice(balls, tmp_path):
    flat = {"out_channels": 3, "roi_size": [16, 16, 1], "pixdim": [4.0, 4.0, -1], "hu_range": [-150, 250]}
    learnt = {**flat, "dataset_dir": str(balls), "max_epochs": 6, "batch_size": 4, "channels": [8, 16]}
    flow = liver("train slices", tmp_path, **learnt)
    assert flow.parser.get_parsed_content("network").spatial_dims == 2
    assert flow.parser.get_parsed_content("validate#evaluator").state.best_metric > 0.25
    source = balls / "imagesTr" / "oblique.nii.gz"
    liver("inference slices", tmp_path, input=str(source), channels=[8, 16], **flat)
    found = nib.load(tmp_path / "output" / "oblique_seg.nii.gz")
    label = nib.load(balls / "labelsTr" / "oblique.nii.gz")
    np.testing.assert_allclose(found.affine, label.affine, atol=1e-4)
    assert dice(np.asarray(found.dataobj) == 1, np.asarray(label.dataobj) == 1) > 0.5


@pytest.fixture(scope="module")
def measured(balls, tmp_path_factory):
    """The folder of a bundle after levels.json, on all cases; every form of the chosen level is written."""
    root = tmp_path_factory.mktemp("levels")
    settings = {"dataset_dir": str(balls), "channels": [4, 6, 8]}
    liver("train", root, **settings)
    one = {"precisions": ["float32"]}  # on a processor with bfloat16 there would be two
    liver("train levels", root, eval_cases="$@dataset.cases", level=1, **settings, **one)
    return root


def test_levels_get_the_scores_that_evaluation_gives_each(measured, balls, tmp_path):
    table = rows(measured / "levels" / "levels.csv")
    assert [row["level"] for row in table] == ["1", "2"]
    for level in (1, 2):
        liver(
            "train evaluate",
            tmp_path / str(level),
            dataset_dir=str(balls),
            ckpt_path=str(measured / "models" / "model.pt"),
            channels=[4, 6, 8],
            eval_cases="$@dataset.cases",
            level=level,
        )
        for name in ("dice", "iou"):
            summary = rows(tmp_path / str(level) / "eval" / f"val_mean_{name}_summary.csv")
            for row in summary:
                column = f"{name} {row['class']}" if row["class"] != "mean" else name
                assert float(table[level - 1][column]) == pytest.approx(float(row["mean"]), abs=1e-4)


def test_level_is_written_in_a_folder_of_its_own_with_table_and_figure(measured):
    assert sorted(path.name for path in (measured / "levels").iterdir()) == [
        "L1", "levels.csv", "levels.md", "levels.png", "levels_cases.csv",
    ]  # fmt: skip
    assert sorted(path.name for path in (measured / "levels" / "L1").iterdir()) == [
        "model.json", "model.onnx", "model.pt", "model.pt2", "model.ts",
    ]  # fmt: skip
    assert not list((measured / "models").glob("*L1*"))


@pytest.mark.parametrize(
    ("override", "equal"),
    [
        ({"ckpt_path": "levels/L1/model.pt"}, 1.0),
        ({"ckpt_path": "levels/L1/model.pt", "level": 1}, 1.0),
        ({"ckpt_path": "levels/L1/model.onnx", "runtime": "onnxruntime"}, 0.999),
        ({"ckpt_path": "levels/L1/model.onnx"}, 0.999),
    ],
    ids=["pruned", "pruned-and-named", "onnxruntime", "installed-runtime"],
)
def test_whatever_runs_a_level_segments_alike(measured, balls, tmp_path, override, equal):
    masks = []
    for n, settings in enumerate([{"ckpt_path": "models/model.pt", "level": 1}, override]):
        settings = {**settings, "ckpt_path": str(measured / settings["ckpt_path"])}
        source = str(balls / "imagesTr" / "oblique.nii.gz")
        liver("inference", tmp_path / str(n), input=source, channels=[4, 6, 8], **settings)
        masks.append(nib.load(tmp_path / str(n) / "output" / "oblique_seg.nii.gz").get_fdata())
    assert masks[0].any()
    assert (masks[0] == masks[1]).mean() >= equal


def test_second_run_does_not_overwrite_the_first(measured, balls):
    settings = {"channels": [4, 6, 8], "dataset_dir": str(balls), "eval_cases": "$@dataset.cases"}
    before = (measured / "levels" / "levels.csv").stat().st_mtime_ns
    with raises_within(FileExistsError, r"levels\.csv exists, and is not overwritten.*--overwrite"):
        liver("train levels", measured, **settings)
    assert (measured / "levels" / "levels.csv").stat().st_mtime_ns == before


@pytest.mark.parametrize("names", ["train evaluate", "inference"])
def test_level_that_pruned_weights_do_not_have_is_an_error_that_says_which_they_have(
    names, measured, balls, tmp_path
):
    settings = {"ckpt_path": str(measured / "levels" / "L1" / "model.pt"), "channels": [4, 6, 8], "level": 2}
    data = {"input": str(balls / "imagesTr")} if names == "inference" else {"dataset_dir": str(balls)}
    with raises_within(ValueError, r"level must be one of those that .*model\.pt has, 1, got 2"):
        liver(names, tmp_path, **settings, **data)


# Phantoms


def test_training_without_data_starts_on_phantoms(tmp_path, monkeypatch):
    monkeypatch.setattr(phantom, "DEFAULT_CASES", 2)
    flow = workflow(
        "liver", "train", tmp_path, **{**TINY_TRAINING, "val_fraction": 0.5, "pixdim": [12.0] * 3}
    )
    flow.initialize()
    assert len(flow.train_dataset) == len(flow.val_dataset) == 1
    assert (tmp_path / "data" / "dataset.json").is_file()
    assert flow.parser.get_parsed_content("dataset").labels == ["background", "liver", "tumour"]
