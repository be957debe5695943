# SPDX-License-Identifier: Apache-2.0
"""From a fingerprint to a plan, and from a folder of data to a bundle that trains and segments."""

import ast
import csv
import json
import multiprocessing
import os
import shlex
import shutil
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.apps.auto3dseg import DataAnalyzer
from monai.bundle import ConfigParser
from processes import CONTEXT
from torch.utils.flop_counter import FlopCounterMode

from bundles import AFFINES, TINY_PLAN, ball, config, schema, write_cases
from monai_unetpp import UNetPlusPlus
from monai_unetpp.__main__ import main
from monai_unetpp.bundle import pack_bundle, run_workflow
from monai_unetpp.data import list_volumes, read_dataset, split_cases
from monai_unetpp.levels.cost import multiply_adds
from monai_unetpp.planning import (
    Machine,
    Source,
    budget,
    command,
    make_plan,
    narrowing,
    parse_memory,
    plan_bundle,
    take_fingerprint,
)
from monai_unetpp.planning.budget import (
    STEP_FACTOR,
    relative_costs,
    speed_of_machine,
    step_memory,
    step_multiply_adds,
)
from monai_unetpp.planning.configs import SYNTHETIC, TEMPLATE, planned_configs
from monai_unetpp.planning.fingerprint import Fingerprint
from monai_unetpp.planning.given import CHECKS, check_given
from monai_unetpp.planning.measuring import CaseFacts
from monai_unetpp.planning.patches import network_of
from monai_unetpp.planning.training import mean_cost
from monai_unetpp.planning.writing import OVERLAYS
from monai_unetpp.transforms import LoadImageAndLabeld

GROWTH = Path(__file__).parents[1] / "benchmarks" / "results" / "growth.csv"
CPU = Machine(memory=8 * 2**30, speed=5e10, hours=10)
UNCHECKED = {"roi_size", "regions", "regions_class_order", "label_values", "ignore_label"}  # elsewhere


@pytest.fixture(autouse=True, scope="module")
def _speed():
    """Seconds that a test need not take; the machine is measured once, below."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "speed_of_machine", lambda *_: 3e10)
        yield


@pytest.fixture(autouse=True, scope="module")
def _networks_are_counted_once():
    """The same networks and patches are tried by many plans."""
    known = {}

    def counted(net, shape, training):
        key = (repr(net.spec), net.training_level, tuple(shape), training)
        if key not in known:
            known[key] = multiply_adds(net, shape, training)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "multiply_adds", counted)
        yield


def fingerprint(size, spacing=(1, 1, 1), number=20, modality=("CT",), target=1000, labels=("a",), **facts):
    """A data set of equal cases, whose target has ``target`` voxels."""
    channels = len(modality)
    case = {
        "size": tuple(size),
        "spacing": tuple(map(float, spacing)),
        "channels": channels,
        "whole": True,
        "low": (-1000.0,) * channels,
        "high": (1000.0,) * channels,
        "quantiles": (tuple(np.linspace(-100, 300, 201)),) * channels,
        "mean": (0.0,) * channels,
        "std": (1.0,) * channels,
        "values": {str(n): (target, 1, float(target)) for n in range(len(labels) + 1)},
        "centre": (0.5, 0.5, 0.5),
        **facts,
    }
    cases = [CaseFacts(f"images/{n}.nii.gz", f"labels/{n}.nii.gz", **case) for n in range(number)]
    return Fingerprint("data", cases, ["background", *labels], None, list(modality))


# What a plan chooses, from fingerprints alone; what nnU-Net's planner chooses is in docs/how-to/plan.md


def test_hippocampus():
    """Small MR: the median image is the patch, of three levels."""
    plan = make_plan(fingerprint((35, 50, 36), modality=("MRI",), labels=("anterior", "posterior")), CPU)
    assert plan["roi_size"] == [36, 52, 36]
    assert plan["strides"] == [[2, 2, 2]] * 3
    assert (plan["skips"], plan["growth"]) == ("long", None)
    assert plan["hu_range"] is None
    assert not plan["normalize_nonzero"]


def test_deepest_level_does_not_begin_late_in_a_short_training():
    """L1 sees 18 voxels, of a target of 12. Nodes of UNet++ alone begin with what others have learnt."""
    found = fingerprint((35, 50, 36), number=200, target=900)
    dense = {"skips": "dense"}
    assert make_plan(found, CPU, {"max_epochs": 10, **dense})["growth"] is None
    assert make_plan(found, CPU, {"max_epochs": 30, **dense})["growth"] == [0.33, 0.67]
    assert make_plan(found, CPU, {"max_epochs": 30})["growth"] is None


def test_liver():
    """Large CT: a window of HU, four levels, a patch that memory limits and that is shaped as the image."""
    found = fingerprint((400, 300, 200), target=10**6, labels=("liver",))
    plan = make_plan(found, CPU, {"skips": "dense"})
    patch = plan["roi_size"]
    assert patch[0] >= patch[1] >= patch[2]
    assert len(plan["channels"]) == 5
    assert plan["growth"] is None  # L1 sees 18 voxels, of a target of 124
    assert plan["hu_range"] == [-98, 298]
    assert plan["shift"] is None


def test_lung_nodules():
    """Tiny targets: patches are shifted, or the network would learn that a nodule is in the middle."""
    plan = make_plan(fingerprint((51, 51, 51), target=500, labels=("nodule",)), CPU)
    assert plan["roi_size"] == [52, 52, 52]
    assert plan["shift"] == [16, 16, 16]


def test_nuclei():
    """RGB pictures of differing brightness."""
    bright = [tuple(np.full(201, 20.0 + 200 * (n % 2))) for n in range(20)]
    found = fingerprint(
        (256, 256, 1), modality=("r", "g", "b"), picture=True, low=(0.0,) * 3, high=(255.0,) * 3
    )
    cases = [
        CaseFacts(**{**case.__dict__, "quantiles": (q,) * 3})
        for case, q in zip(found.cases, bright, strict=True)
    ]
    plan = make_plan(Fingerprint("data", cases, ["background", "nucleus"], "nonzero", ["r", "g", "b"]), CPU)
    assert (plan["spatial_dims"], plan["in_channels"]) == (2, 3)
    assert plan["roi_size"] == [256, 256, 1]
    assert plan["hu_range"] is None
    assert plan["label_values"] == "nonzero"


def test_slices_of_ct_in_pictures_keep_their_range():
    found = fingerprint((256, 256, 1), modality=("grey",), picture=True, low=(0.0,), high=(255.0,))
    assert make_plan(found, CPU)["hu_range"] == [0, 255]


def test_four_channels_of_mr():
    """What is 0 in all channels, around a skull that was stripped, does not count for the mean."""
    found = fingerprint((140, 170, 140), modality=("T1", "T1c", "T2", "FLAIR"), zero=0.6)
    plan = make_plan(found, CPU)
    assert plan["in_channels"] == 4
    assert plan["normalize_nonzero"]


def test_thick_slices():
    """5 mm: not halved along the slices, and kernels of 1, until the pixels are as coarse."""
    plan = make_plan(fingerprint((256, 256, 24), (0.8, 0.8, 5)), CPU)
    assert plan["pixdim"] == [0.8, 0.8, 5]
    assert (
        plan["strides"] == [[2, 2, 1], [2, 2, 1], [2, 2, 2], [2, 2, 2]]
        or plan["strides"][:2] == [[2, 2, 1]] * 2
    )
    assert plan["kernel_size"][:3] == [[3, 3, 1], [3, 3, 1], [3, 3, 3]]
    assert plan["rotate_range"] == [0.0, 0.0, 0.26]


@pytest.mark.parametrize(
    "name", ["kidney_left", "Left-Hippocampus", "lung_l", "LeftKidney", "kidney (right)"]
)
def test_left_and_right_are_not_mirrored(name):
    assert make_plan(fingerprint((64, 64, 64), labels=(name,)), CPU)["flip_axes"] == [1, 2]


@pytest.mark.parametrize("name", ["liver", "cleft", "bright spot"])
def test_what_has_no_side_is_mirrored(name):
    assert make_plan(fingerprint((64, 64, 64), labels=(name,)), CPU)["flip_axes"] == [0, 1, 2]


def test_two_dimensions_count_by_slice():
    """A volume of five slices is as five pictures: targets, and how often an image is seen."""
    volumes = fingerprint((256, 256, 5), number=20, target=5 * 1000)
    pictures = fingerprint((256, 256, 1), number=100, target=1000)
    made = [make_plan(found, Machine(hours=0.05), {"spatial_dims": 2}) for found in (volumes, pictures)]
    for key in ("shift", "growth", "flip_axes", "augmentation_prob"):
        assert made[0][key] == made[1][key], key


def test_pictures_of_12_bits_fill_the_range():
    found = fingerprint((64, 64, 1), modality=("grey",), picture=True, low=(0.0,), high=(4000.0,))
    assert make_plan(found, CPU)["hu_range"] == [0, 4095]


# Memory and time


@pytest.mark.parametrize(
    "row",
    [r for r in csv.DictReader(GROWTH.read_text().splitlines()) if r["task"] == "train_step"],
    ids=lambda r: r["setting"],
)
def test_memory_by_formula_is_what_was_measured(row):
    setting = ast.literal_eval(row["setting"])
    with torch.device("meta"):
        net = UNetPlusPlus(
            3, 1, setting.get("out_channels", 2), setting.get("channels", (32, 64, 128, 256, 512)), strides=2
        )
    found = step_memory(net, [setting.get("size", 48)] * 3, 1) / 2**20
    assert found == pytest.approx(float(row["peak MiB"]), rel=0.2)


@pytest.mark.parametrize("skips", ["dense", "long"])
def test_work_of_a_step_is_that_of_all_heads(skips):
    """Evaluation computes one of the U-Nets of ``long``, training all of them."""
    widths = (4, 6, 8, 10)
    net = UNetPlusPlus(2, 1, 2, widths, strides=2, skips=skips).train()
    costs = []
    for level in net.spec.levels:
        net.training_level = level
        with FlopCounterMode(display=False) as counter:
            net(torch.rand(2, 1, 24, 16))
        costs.append(counter.get_total_flops() / 2)
    assert step_multiply_adds(net, (24, 16), 2) == pytest.approx(STEP_FACTOR * costs[-1])
    assert relative_costs(net, (24, 16)) == pytest.approx([cost / costs[-1] for cost in costs])
    alone = UNetPlusPlus(2, 1, 2, widths[:2], strides=2, skips="long", deep_supervision=False)
    assert costs[0] == 2 * multiply_adds(alone, (1, 1, 24, 16))


def test_more_memory_never_gives_a_smaller_patch():
    found = fingerprint((300, 300, 200))
    sizes = [
        np.prod(make_plan(found, Machine(memory=gb * 2**30, hours=1000))["roi_size"])
        for gb in (0.25, 0.5, 1, 2, 4, 8, 16, 32)
    ]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("hours", [1e-4, 0.01, 0.1, 1, 100])
@pytest.mark.parametrize("size", [(5, 6, 7), (60, 50, 40), (512, 512, 30), (8, 300, 300)])
@pytest.mark.parametrize("given", [{}, {"channels": [4, 8]}])
def test_every_size_and_time_has_a_plan_whose_network_takes_its_patch(hours, size, given):
    if given and size == (5, 6, 7):
        pytest.skip("one level is all that this patch allows")
    plan = make_plan(fingerprint(size, (1, 1, 1)), Machine(hours=hours), given)
    net = UNetPlusPlus(3, 1, 2, plan["channels"], strides=plan["strides"], kernel_size=plan["kernel_size"])
    assert all(n % d == 0 for n, d in zip(plan["roi_size"], net.spec.divisors(net.depth - 1), strict=True))
    assert 1 <= plan["val_interval"] <= plan["max_epochs"]


def test_validations_follow_the_epochs_that_were_given():
    plan = make_plan(fingerprint((32, 32, 32)), CPU, {"max_epochs": 100})
    assert plan["val_interval"] <= 5


def test_epochs_fill_the_time():
    found = fingerprint((35, 50, 36), number=200)
    one, ten = (make_plan(found, Machine(hours=hours))["max_epochs"] for hours in (1, 10))
    assert 8 * one <= ten <= 12 * one


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"roi_size": 16}, r"roi_size must be \[X, Y, Z\], whole numbers, got 16"),
        ({"growth": [0.5, 0.2]}, r"growth must be at most 2 shares .* \[0.33, 0.67\], got \[0.5, 0.2\]"),
        ({"growth": 0.5}, r"growth must be a list of shares .*, or None, got 0.5"),
        ({"skips": "all"}, "skips must be one of dense, short, long, got 'all'"),
        ({"spatial_dims": 4}, "spatial_dims must be 2 or 3, got 4"),
        ({"strides": 2}, r"strides must be a list with the step down to each row, such as .*, got 2"),
        ({"kernel_size": [3, 3, [3, 3, 0]]}, r"kernel_size must be a list .*, got \[3, 3, \[3, 3, 0\]\]"),
        ({"channels": 16}, r"channels must be a list with a width per row, such as \[16, 32, 64\], got 16"),
        ({"pixdim": [1, 1, 0]}, r"pixdim must be \[X, Y, Z\], mm, such as .*, got \[1, 1, 0\]"),
        ({"hu_range": [300, -100]}, r"hu_range must be \[LOW, HIGH\], .*, got \[300, -100\]"),
        ({"batch_size": True}, "batch_size must be a whole number from 1 on, got True"),
        ({"max_epochs": 2.5}, "max_epochs must be a whole number from 1 on, got 2.5"),
        ({"val_interval": 0}, "val_interval must be a whole number of epochs from 1 on, got 0"),
        ({"val_fraction": 1}, "val_fraction must be a share between 0 and 1, such as 0.2, got 1"),
        ({"learning_rate": "fast"}, "learning_rate must be a number above 0, such as 0.003, got 'fast'"),
        ({"flip_axes": [3]}, r"flip_axes must be a list of axes, such as \[0, 1\], got \[3\]"),
        ({"cache_rate": float("nan")}, "cache_rate must be a share from 0 to 1, got nan"),
        ({"largest_component": 1}, "largest_component must be True or False, got 1"),
        ({"roi": [8, 8, 8]}, "a plan has no 'roi'; it has spatial_dims, "),
        (
            {"roi_size": [16, 16, 16], "channels": [4] * 9},
            r"channels must have at most 3 entries for a patch of 16 x 16",
        ),
    ],
)
def test_setting_that_does_not_fit_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        make_plan(fingerprint((40, 40, 40)), CPU, given)


def test_every_choice_of_a_plan_could_be_given():
    for size, spacing in (((60, 60, 60), (1, 1, 1)), ((8, 300, 300), (5, 1, 1)), ((300, 300, 1), (1, 1, 1))):
        plan = make_plan(fingerprint(size, spacing), CPU)
        check_given({choice.key: choice.value for choice in plan.choices})
        assert {choice.key for choice in plan.choices} - {*CHECKS} <= UNCHECKED


def test_cheaper_member_of_the_family_has_more_steps(tmp_path):
    """U-Nets on one encoder; ``--set skips dense`` takes UNet++."""
    found, out = fingerprint((60, 60, 60), number=20), tmp_path / "b"
    settings = {"growth": None}
    dense, long = (
        make_plan(found, Machine(hours=2), {"skips": skips, **settings}) for skips in ("dense", "long")
    )
    assert long["roi_size"] == dense["roi_size"]
    assert long["max_epochs"] > dense["max_epochs"]
    assert make_plan(found, Machine(hours=2), settings)["skips"] == "long"
    for plan, skips in ((dense, "dense"), (long, "long")):
        configs = planned_configs(plan, found, out)
        assert [configs[name]["network_def"]["skips"] for name in ("train", "inference")] == [skips] * 2


def test_too_little_memory_is_an_error_with_what_would_work():
    with pytest.raises(
        ValueError, match=r"memory must be at least 0\.0\d+GB for the smallest patch, .*, got 0\.00GB"
    ):
        make_plan(fingerprint((40, 40, 40)), Machine(memory=2**20))


def test_one_scan_is_not_enough():
    with pytest.raises(ValueError, match="has 1 scan that can be used: at least 2 are required"):
        make_plan(fingerprint((40, 40, 40), number=1), CPU)


@pytest.mark.parametrize(
    ("text", "wanted"), [("8GB", 2**33), ("500 mb", 500 * 2**20), ("2", 2**31), ("1.5G", 1.5 * 2**30)]
)
def test_memory_as_one_types_it(text, wanted):
    assert parse_memory(text) == wanted


@pytest.mark.parametrize("text", ["much", "", "-3GB", "0"])
def test_memory_that_is_none(text):
    with pytest.raises(ValueError, match="memory must be such as 8GB"):
        parse_memory(text)


def test_speed_of_this_machine_is_that_of_a_training_step():
    network = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": 2}
    assert 1e7 < speed_of_machine(network, torch.device("cpu")) < 1e13


def test_speed_of_one_of_several_trainings_is_not_above_that_of_one_alone():
    network = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": 2}
    cpu, threads = torch.device("cpu"), torch.get_num_threads()
    alone = max(speed_of_machine(network, cpu) for _ in range(2))
    assert 1e7 < speed_of_machine(network, cpu, 2 * (os.cpu_count() or 1)) < 0.8 * alone  # half a core each
    assert torch.get_num_threads() == threads


# The fingerprint


@pytest.fixture(scope="module")
def found(balls):
    return take_fingerprint(Source(balls))


@pytest.mark.filterwarnings("ignore")
def test_fingerprint_agrees_with_monais_analyzer(balls, found, tmp_path):
    index = json.loads((balls / "dataset.json").read_text())
    listed = {"training": index["training"][:2]}
    (tmp_path / "list.json").write_text(json.dumps(listed))
    analyzer = DataAnalyzer(
        str(tmp_path / "list.json"),
        str(balls),
        str(tmp_path / "stats.yaml"),
        device="cpu",
        worker=0,
        do_ccp=True,
        fmt="yaml",
    )
    theirs = {
        Path(case["image_filepath"]).name: case for case in analyzer.get_all_case_stats()["stats_by_cases"]
    }
    ours = {Path(case.image).name: case for case in found.cases}
    for name, case in theirs.items():
        mine = ours[name]
        assert sorted(case["image_stats"]["shape"][0]) == sorted(mine.size)
        assert sorted(case["image_stats"]["spacing"]) == pytest.approx(sorted(mine.spacing), rel=1e-4)
        voxels = sum(n for n, _, _ in mine.values.values())
        for value, label in enumerate(case["label_stats"]["label"]):
            assert label["foreground_percentage"] == pytest.approx(
                mine.values[str(value)][0] / voxels, rel=1e-3
            )
            assert value == 0 or label["ncomponents"] == mine.values[str(value)][1]
        middle = mine.quantiles[0][100]
        assert case["image_foreground_stats"]["intensity"][0]["median"] == pytest.approx(middle, rel=0.02)


def test_axes_are_those_of_the_patient(tmp_path):
    data = write_cases(tmp_path / "d", (ball(n, AFFINES[n], (32, 28, 24)) for n in ("RAS", "PSR")))
    ras, psr = sorted(
        take_fingerprint(Source(data)).cases, key=lambda case: case.image != "imagesTr/RAS.nii.gz"
    )
    assert ras.size == (32, 28, 24)
    assert psr.size == (24, 32, 28)  # the file's axes run to the back, to the head, to the right


def test_processes_measure_what_one_measures(tmp_path, found, monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: CONTEXT)  # importing torch takes seconds
    many = write_cases(tmp_path / "d", (ball(f"ball_{n}", AFFINES["RAS"]) for n in range(18)))
    log = tmp_path / "log.jsonl"
    first = take_fingerprint(Source(many), processes=2, log=log)
    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines[:10]) + "\n" + lines[10][:40])  # killed while it wrote
    assert take_fingerprint(Source(many), processes=1, log=log) == first
    assert len(log.read_text().split("\n")) == 1 + 9 + 1 + 9
    assert take_fingerprint(Source(many), processes=1, log=log) == first
    assert len(log.read_text().split("\n")) == 1 + 9 + 1 + 9
    assert Fingerprint.from_json(json.loads(json.dumps(found.to_json()))) == found


# Layouts


def write_nnunet(folder, cases=4, channels=2):
    rng = np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for n in range(cases):
        case = ball(f"c{n}", AFFINES["RAS"])
        for c in range(channels):
            image = case.image + 10 * c + rng.integers(0, 3, case.image.shape)
            nib.save(
                nib.Nifti1Image(image.astype(np.float32), case.affine),
                folder / f"imagesTr/c{n}_{c:04d}.nii.gz",
            )
        nib.save(nib.Nifti1Image(case.label, case.affine), folder / f"labelsTr/c{n}.nii.gz")
    content = {
        "channel_names": {str(c): f"MR{c}" for c in range(channels)},
        "labels": {"background": 0, "ball": 1, "pip": 2},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def write_pictures(folder, number=8, seed=0):
    """RGBA pictures of discs, and maps of instances, 16 bit."""
    rng = np.random.default_rng(seed)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for n in range(number):
        rows, columns = np.indices((40, 48))
        mask = np.zeros((40, 48), np.uint16)
        for k in range(3):
            mask[(rows - rng.integers(8, 32)) ** 2 + (columns - rng.integers(8, 40)) ** 2 < 25] = 7 * k + 5
        colours = np.stack([(mask > 0) * 120 + rng.integers(0, 60, mask.shape) for _ in range(3)], -1)
        picture = np.concatenate([colours, np.full((40, 48, 1), 255)], -1).astype(np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(picture, isVector=True), str(folder / f"images/p{n}.png"))
        sitk.WriteImage(sitk.GetImageFromArray(mask), str(folder / f"masks/p{n}.png"))
    return folder


def test_nnunets_layout_with_two_channels(tmp_path):
    found = take_fingerprint(Source(write_nnunet(tmp_path / "d")))
    assert [case.scan for case in found.cases] == ["c0", "c1", "c2", "c3"]
    assert {case.channels for case in found.cases} == {2}
    assert (found.labels, found.modality) == (["background", "ball", "pip"], ["MR0", "MR1"])


def mark_unknown(data, value, name=None):
    """Give the last slice of each mask the value of what nobody annotated, and, of nnU-Net, its label."""
    for path in (data / "labelsTr").glob("*.nii.gz"):
        mask = nib.load(path)
        array = np.asarray(mask.dataobj).astype(np.int16)
        array[..., -1] = value
        nib.save(nib.Nifti1Image(array, mask.affine), path)
    if name is not None:
        content = json.loads((data / "dataset.json").read_text())
        content["labels"][name] = value
        (data / "dataset.json").write_text(json.dumps(content))
    return data


@pytest.mark.parametrize(("value", "name", "given"), [(3, "ignore", None), (255, None, 255)])
def test_voxels_that_nobody_annotated_are_no_class(tmp_path, value, name, given):
    plain = take_fingerprint(Source(write_nnunet(tmp_path / "a")))
    data = mark_unknown(write_nnunet(tmp_path / "b"), value, name)
    found, plan = plan_bundle(Source(data, ignore_label=given), tmp_path / "bundle", given=TINY_PLAN)
    assert (found.labels, found.ignore_label) == (plain.labels, value)
    assert [case.values.keys() for case in found.cases] == [case.values.keys() for case in plain.cases]
    assert [case.largest for case in found.cases] == [case.largest for case in plain.cases]
    assert plan["out_channels"] == 3
    configs = [
        json.loads((tmp_path / "bundle" / f"{name}.json").read_text()) for name in ("train", "inference")
    ]
    assert [config["ignore_label"] for config in configs] == [value, value]
    run_workflow("train", tmp_path / "bundle", settings=CPU_ONLY)


def test_index_of_the_decathlon_may_name_what_nobody_annotated(balls, tmp_path):
    plain, data = take_fingerprint(Source(balls)), shutil.copytree(balls, tmp_path / "d")
    index = json.loads((mark_unknown(data, 255) / "dataset.json").read_text())
    index["labels"]["255"] = "ignore"  # value first
    (data / "dataset.json").write_text(json.dumps(index))
    found = take_fingerprint(Source(data))
    assert (found.labels, found.ignore_label) == (plain.labels, 255)
    assert [case.values.keys() for case in found.cases] == [case.values.keys() for case in plain.cases]


def test_value_of_what_nobody_annotated_is_no_class(tmp_path):
    data = write_nnunet(tmp_path / "d")
    with pytest.raises(
        ValueError, match=r"none of the values of classes, 0, 1, 2, got 2: use that of no class"
    ):
        take_fingerprint(Source(data, ignore_label=2))
    mark_unknown(data, 3, "ignore")
    with pytest.raises(ValueError, match=r"got 9: dataset.json has 3"):
        take_fingerprint(Source(data, ignore_label=9))


def test_masks_of_3d_slicer_are_named_by_their_segments(tmp_path):
    for n in range(3):
        case = ball(f"c{n}", AFFINES["RAS"])
        for name in ("images", "labels"):
            (tmp_path / name).mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(case.image, case.affine), tmp_path / f"images/c{n}.nii.gz")
        label = sitk.GetImageFromArray(case.label.transpose(2, 1, 0))
        label.SetSpacing([4.0] * 3)
        label.SetDirection([-1, 0, 0, 0, -1, 0, 0, 0, 1])
        matrix = case.affine[:3, 3]
        label.SetOrigin([-matrix[0], -matrix[1], matrix[2]])
        names = ["kidney", "tumour"][:: -1 if n == 2 else 1]
        for k, name in enumerate(names, start=1):
            label.SetMetaData(f"Segment{k}_LabelValue", str(k))
            label.SetMetaData(f"Segment{k}_Name", name)
        sitk.WriteImage(label, str(tmp_path / f"labels/c{n}.seg.nrrd"))
    found = take_fingerprint(Source(tmp_path))
    assert found.labels == ["background", "kidney", "tumour"]
    assert found.problems == {
        "labels/c2.seg.nrrd": "calls the value 2 'kidney', which is 'tumour' in most masks"
    }


def test_names_that_would_not_be_taken_are_refused(balls, tmp_path):
    with pytest.raises(
        ValueError, match=r"classes must be those of dataset\.json, or left out, ball, pip, got"
    ):
        take_fingerprint(Source(balls, classes=["liver", "tumour"]))
    with pytest.raises(ValueError, match="classes must be one name, liver, got liver, tumour"):
        take_fingerprint(Source(balls, classes=["liver", "tumour"], foreground=True))
    assert take_fingerprint(Source(balls, classes=["ball", "pip"])).labels == ["background", "ball", "pip"]
    (data := tmp_path / "d").mkdir()
    for name in ("imagesTr", "labelsTr"):
        shutil.copytree(balls / name, data / name)
    with pytest.raises(ValueError, match="must have different names, got 'pip' more than once"):
        take_fingerprint(Source(data, classes=["pip", "pip"]))
    assert take_fingerprint(Source(data, classes=["b", "a"])).labels == ["background", "b", "a"]


def test_frames_are_no_channels(tmp_path):
    """Files that are numbered, each with a mask of its own name, are cases; segment lists them all."""
    data = write_pictures(tmp_path / "d", 4)
    for folder in ("images", "masks"):
        for n in range(4):
            (data / folder / f"p{n}.png").rename(data / folder / f"p_{n:04d}.png")
    found = take_fingerprint(Source(data, foreground=True))
    assert ([case.channels for case in found.cases], found.problems) == ([3] * 4, {})
    assert len(list_volumes(data / "images", 3, pictures=True)) == 4


def test_channels_of_other_names_are_a_problem(tmp_path):
    data = write_nnunet(tmp_path / "d", 3)
    content = json.loads((data / "dataset.json").read_text())
    for n in range(3):
        (data / "imagesTr" / f"c{n}_0000.nii.gz").rename(data / "imagesTr" / f"c{n}_flair.nii.gz")
    content["dataset"] = {
        f"c{n}": {
            "images": [f"imagesTr/c{n}_flair.nii.gz", f"imagesTr/c{n}_0001.nii.gz"],
            "label": f"labelsTr/c{n}.nii.gz",
        }
        for n in range(3)
    }
    (data / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="must be named CASE_0000, CASE_0001"):
        take_fingerprint(Source(data))


def test_channel_that_lies_elsewhere_or_was_changed_is_noticed(tmp_path):
    data, log = write_nnunet(tmp_path / "d", 3), tmp_path / "log.jsonl"
    before = take_fingerprint(Source(data), log=log)
    path = data / "imagesTr" / "c0_0001.nii.gz"
    volume = nib.load(path)
    array = np.asarray(volume.dataobj)
    nib.save(nib.Nifti1Image(array + np.float32(1000), volume.affine), path)
    assert take_fingerprint(Source(data), log=log).cases[0].mean[1] == pytest.approx(
        before.cases[0].mean[1] + 1000, rel=1e-3
    )
    nib.save(nib.Nifti1Image(array, volume.affine + np.array([[0, 0, 0, 50.0]] + [[0] * 4] * 3)), path)
    found = take_fingerprint(Source(data), log=log)
    assert "50.0 mm apart" in found.problems["imagesTr/c0_0000.nii.gz"]


def test_colours_of_masks_are_the_same_class_in_every_picture(tmp_path):
    """White is 255 beside red as without it, in a palette as in colours."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for n in range(4):
        sitk.WriteImage(
            sitk.GetImageFromArray(np.full((16, 16), 9 + n, np.uint8)), str(tmp_path / f"images/{n}.png")
        )
        mask = np.zeros((16, 16, 3), np.uint8)
        mask[:4] = 255
        if n % 2:
            mask[8:, :, 0] = 255
        sitk.WriteImage(sitk.GetImageFromArray(mask, isVector=True), str(tmp_path / f"masks/{n}.png"))
    found = take_fingerprint(Source(tmp_path))
    assert len(found.labels) == 3
    load = LoadImageAndLabeld(out_channels=3, label_values=found.label_values, modality=None)
    for n in range(4):
        label = load({"image": tmp_path / f"images/{n}.png", "label": tmp_path / f"masks/{n}.png"})["label"]
        assert (label[0, :, :4] == 1).all()
        assert ((label[0, :, 8:] == 2).all()) == bool(n % 2)


def test_grey_picture_stored_in_colours_has_one_channel(tmp_path):
    data = write_pictures(tmp_path / "d", 3)
    for path in (data / "images").iterdir():
        grey = np.repeat(sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[..., :1], 3, axis=-1)
        sitk.WriteImage(sitk.GetImageFromArray(grey, isVector=True), str(path))
    found = take_fingerprint(Source(data, foreground=True))
    assert {case.channels for case in found.cases} == {1}
    load = LoadImageAndLabeld("image", in_channels=1, modality=None)
    assert load({"image": data / "images" / "p0.png"})["image"].shape == (1, 48, 40, 1)


def test_jpeg_and_png_masks_mean_the_same(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for n in range(4):
        image = np.arange(256, dtype=np.uint8).reshape(16, 16) + np.uint8(n)
        sitk.WriteImage(sitk.GetImageFromArray(image), str(tmp_path / f"images/{n}.png"))
        mask = np.zeros((16, 16), np.uint8)
        mask[:8] = 255 if n % 2 else 1
        sitk.WriteImage(
            sitk.GetImageFromArray(mask), str(tmp_path / f"masks/{n}.{'jpg' if n % 2 else 'png'}")
        )
    found = take_fingerprint(Source(tmp_path))
    load = LoadImageAndLabeld(out_channels=2, label_values=found.label_values, modality=None)
    for n in range(4):
        path = tmp_path / f"masks/{n}.{'jpg' if n % 2 else 'png'}"
        label = load({"image": tmp_path / f"images/{n}.png", "label": path})["label"]
        assert label.sum() == 128


# What does not fit


def break_one(folder, how):
    image, label = folder / "imagesTr" / "b1.nii.gz", folder / "labelsTr" / "b1.nii.gz"
    volume = nib.load(label)
    array = np.asarray(volume.dataobj)
    if how == "no mask":
        label.unlink()
    elif how == "cut off":
        image.write_bytes(image.read_bytes()[:500])
    elif how == "empty":
        nib.save(nib.Nifti1Image(np.zeros_like(array), volume.affine), label)
    elif how == "value":
        nib.save(nib.Nifti1Image(np.where(array == 2, 7, array), volume.affine), label)
    elif how == "size":
        nib.save(nib.Nifti1Image(array[:-1], volume.affine), label)
    elif how == "grid":
        nib.save(nib.Nifti1Image(array, volume.affine + np.array([[0, 0, 0, 30.0]] + [[0] * 4] * 3)), label)
    elif how == "spacing":
        for path in (image, label):
            there = nib.load(path)
            nib.save(
                nib.Nifti1Image(np.asarray(there.dataobj), there.affine @ np.diag([0.1, 0.1, 0.1, 1])), path
            )
    elif how == "twice":
        image.write_bytes((folder / "imagesTr" / "b0.nii.gz").read_bytes())


@pytest.mark.parametrize(
    ("how", "path", "reason"),
    [
        ("no mask", "labelsTr/b1.nii.gz", "does not exist: mask of .*b1.nii.gz"),
        ("cut off", "imagesTr/b1.nii.gz", "truncated or damaged"),
        ("empty", "labelsTr/b1.nii.gz", "is empty: --allow-empty"),
        ("value", "labelsTr/b1.nii.gz", "has values that are no class: 7; classes are 0, 1, 2"),
        ("size", "imagesTr/b1.nii.gz", r"labelsTr/b1.nii.gz is of 31 x 28 x 24 voxels, .* of 32 x 28 x 24"),
        ("grid", "imagesTr/b1.nii.gz", "lies elsewhere than .*30.0 mm apart"),
        ("spacing", "imagesTr/b1.nii.gz", "has a spacing of 0.4 x 0.4 x 0.4 mm, others about 4 x 4 x 4"),
        ("twice", "imagesTr/b1.nii.gz", "is the same file as imagesTr/b0.nii.gz"),
    ],
)
def test_what_does_not_fit_is_named_by_file_and_left_out_on_request(tmp_path, how, path, reason):
    data = write_cases(tmp_path / "d", (ball(f"b{n}", AFFINES["RAS"]) for n in range(4)))
    break_one(data, how)
    out = tmp_path / "bundle"
    with pytest.raises(ValueError, match=rf"(?s)1 files of .* do not fit; --skip-bad.*{path} .*{reason}"):
        plan_bundle(Source(data), out, given=TINY_PLAN)
    assert not out.exists()
    plan_bundle(Source(data), out, skip_bad=True, given=TINY_PLAN)
    dataset = json.loads((out / "train.json").read_text())["dataset"]
    assert dataset["skip"] == [path]
    assert len(read_dataset(data, 3, labels=dataset["labels"], skip=dataset["skip"]).cases) == 3


def test_largest_file_may_be_the_damaged_one(tmp_path):
    data = write_cases(tmp_path / "d", (ball(f"b{n}", AFFINES["RAS"]) for n in range(4)))
    (data / "imagesTr" / "b1.nii.gz").write_bytes(bytes(10**6))
    assert list(take_fingerprint(Source(data)).problems) == ["imagesTr/b1.nii.gz"]


def test_all_that_does_not_fit_is_listed_at_once(tmp_path):
    data = write_nnunet(tmp_path / "d", 5)
    (data / "imagesTr/c0_0001.nii.gz").unlink()
    (data / "labelsTr/c3.nii.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"(?s)2 files of .*c0_0001.nii.gz does not exist: channel 1.*c3"):
        plan_bundle(Source(data), tmp_path / "bundle")


@pytest.mark.parametrize("how", ["alpha", "grey among colours", "instances", "no masks"])
def test_pictures_that_do_not_fit(tmp_path, how):
    data = write_pictures(tmp_path / "d")
    options, message = {"foreground": True}, ""
    if how == "alpha":
        picture = np.zeros((40, 48, 4), np.uint8)
        picture[:20, :, 3] = 255
        sitk.WriteImage(sitk.GetImageFromArray(picture, isVector=True), str(data / "images/p0.png"))
        message = r"p0.png .*has an alpha channel of 0 to 255: transparent parts have no value"
    elif how == "grey among colours":
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((40, 48), np.uint8)), str(data / "images/p0.png"))
        assert {case.channels for case in take_fingerprint(Source(data, foreground=True)).cases} == {1, 3}
        return
    elif how == "instances":
        options, message = {}, "hold 4 values"
        mask = np.arange(40 * 48).reshape(40, 48).astype(np.uint16)
        sitk.WriteImage(sitk.GetImageFromArray(mask), str(data / "masks/p0.png"))
        message = "values, 0 to 1919: instances rather than classes. --foreground"
    else:
        for path in (data / "masks").iterdir():
            path.unlink()
        message = "has no case that can be used: 8 problems, first images/p0.png: has no mask"
    with pytest.raises(ValueError, match=f"(?s){message}"):
        plan_bundle(Source(data, **options), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_data_behind_links_is_planned_and_read_when_it_is_allowed(tmp_path, balls):
    data = tmp_path / "data"
    data.mkdir()
    for path in balls.iterdir():
        (data / path.name).symlink_to(path)
    (data / "dataset.json").unlink()
    shutil.copy(balls / "dataset.json", data)
    with pytest.raises(ValueError, match=r"names 8 files outside of its folder, .*plan --allow-outside"):
        plan_bundle(Source(data), tmp_path / "bundle", given=TINY_PLAN)
    plan_bundle(Source(data, allow_outside=True), tmp_path / "bundle", given=TINY_PLAN)
    parser = ConfigParser(json.loads((tmp_path / "bundle" / "train.json").read_text()))
    assert len(parser.get_parsed_content("dataset").cases) == 4


def test_folder_that_exists_is_left_alone(tmp_path, balls):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(FileExistsError, match="mine"):
        plan_bundle(Source(balls), tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hours": 0}, "hours must be above 0, got 0"),
        ({"device": "meta"}, "device must be cpu or cuda"),
        ({"device": "gpu"}, "device must be one that this machine has, such as cpu, .*got gpu: "),
        ({"device": "cuda:99"}, "device must be one that this machine has, such as cpu, .*got cuda:99: "),
    ],
)
def test_option_that_does_not_fit_is_named(tmp_path, balls, options, message):
    with pytest.raises(ValueError, match=message):
        plan_bundle(Source(balls), tmp_path / "bundle", **options)


def test_file_to_skip_that_is_none_of_the_data_set_is_named(balls):
    with pytest.raises(ValueError, match=r"skip must be files of .*, got .*imagesTr/other\.nii\.gz"):
        read_dataset(balls, 3, skip=["imagesTr/other.nii.gz"])


def test_way_to_the_data_does_not_matter(tmp_path, monkeypatch):
    data = write_cases(tmp_path / "d", (ball(f"b{n}", AFFINES["RAS"]) for n in range(4)))
    break_one(data, "empty")
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path)
    plan_bundle(Source("x/../d"), "bundle", skip_bad=True, given=TINY_PLAN)
    dataset = json.loads(Path("bundle/train.json").read_text())["dataset"]
    assert len(read_dataset("x/../d", 3, skip=dataset["skip"]).cases) == 3


def test_more_memory_than_there_is(tmp_path, balls):
    with pytest.raises(
        ValueError, match=r"memory must be at most .*GB, which this cpu can spare, got 1024000.0GB"
    ):
        plan_bundle(Source(balls), tmp_path / "bundle", memory=parse_memory("1000TB"))


# The bundle


CPU_ONLY = {"device": "$torch.device('cpu')"}


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """Bundle for two channels, and its data."""
    root = tmp_path_factory.mktemp("planned")
    data = write_nnunet(root / "data")
    plan_bundle(Source(data), root / "twochannels", given=TINY_PLAN)
    run_workflow("train", root / "twochannels", settings=CPU_ONLY)
    return root / "twochannels", data


def test_bundle_trains_evaluates_chooses_a_level_and_segments(planned, tmp_path):
    bundle, data = planned
    run_workflow("evaluate", bundle, settings=CPU_ONLY)
    run_workflow("levels", bundle, settings={**CPU_ONLY, "formats": ["pt"]})
    main(["segment", "-i", str(data / "imagesTr"), "-o", str(tmp_path / "out"), "--bundle", str(bundle)])
    masks = sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz"))
    assert masks == [f"c{n}_0000_seg.nii.gz" for n in range(4)]
    mask, image = nib.load(tmp_path / "out" / masks[0]), nib.load(data / "imagesTr/c0_0000.nii.gz")
    assert mask.shape == image.shape
    np.testing.assert_allclose(mask.affine, image.affine)


@pytest.mark.filterwarnings("ignore:No hash value provided for .*schema.json:UserWarning")
def test_bundle_passes_what_monai_checks_and_can_be_packed(planned, tmp_path):
    bundle, _ = planned
    (tmp_path / "schema.json").write_text(json.dumps(schema()))
    monai.bundle.verify_metadata(str(bundle / "metadata.json"), filepath=str(tmp_path / "schema.json"))
    assert json.loads((bundle / "metadata.json").read_text())["segment_codes"] == {}  # not the template's
    for name in ("train", "inference"):
        monai.bundle.verify_net_in_out(
            "network_def",
            meta_file=str(bundle / "metadata.json"),
            config_file=str(bundle / f"{name}.json"),
            device="cpu",
        )
    packed = pack_bundle(bundle, bundle / "models" / "model.pt", tmp_path / "packed", standalone=False)
    assert (packed / "configs" / "train.json").is_file()
    assert not (packed / "configs" / "fingerprint.json").exists()


def test_pictures_from_plan_to_masks(tmp_path):
    data = write_pictures(tmp_path / "d")
    given = {**TINY_PLAN, "roi_size": [32, 32, 1], "max_epochs": 16}
    plan_bundle(Source(data, foreground=True, classes=["nucleus"]), tmp_path / "nuclei", given=given)
    assert json.loads((tmp_path / "nuclei" / "inference.json").read_text())["input"] == str(data / "images")
    run_workflow("train", tmp_path / "nuclei", settings=CPU_ONLY)
    out = tmp_path / "out"
    main(["segment", "-i", str(data / "images"), "-o", str(out), "--bundle", str(tmp_path / "nuclei")])
    for n in range(8):
        found = sitk.GetArrayFromImage(sitk.ReadImage(str(out / f"p{n}_seg.png")))
        wanted = sitk.GetArrayFromImage(sitk.ReadImage(str(data / f"masks/p{n}.png"))) > 0
        assert found.shape == wanted.shape
        assert 2 * (found & wanted).sum() / (found.sum() + wanted.sum()) > 0.9


def test_weights_are_averaged_as_in_the_bundles_that_ship(planned):
    bundle, _ = planned
    template = ConfigParser({**config(TEMPLATE, "train"), "device": "cpu"})
    chosen = json.loads((bundle / "train.json").read_text())["average_decay"]
    assert chosen == template.get_parsed_content("average_decay")


def test_template_is_the_bundle_liver(planned):
    """What is not planned is as in the bundle that ships, and so are the overlays, in all bundles."""
    bundle, _ = planned
    for name in OVERLAYS:
        assert json.loads((bundle / f"{name}.json").read_text()) == config(TEMPLATE, name)
    train, template = json.loads((bundle / "train.json").read_text()), config(TEMPLATE, "train")
    assert template.keys() - train.keys() == {*SYNTHETIC}
    assert train.keys() - template.keys() == set()
    optimizer = {**template["optimizer"], "_target_": "monai_unetpp.Muon"}  # on a CPU
    assert train["optimizer"] == optimizer
    del template["record"]["synthetic"]
    same = (
        "loss",
        "lr_scheduler",
        "state",
        "checkpoints",
        "initialize",
        "run",
        "validate",
        "record",
    )
    assert all(train[key] == template[key] for key in same)
    assert {key for key in train["train"] if train["train"][key] != template["train"][key]} <= {
        "random_transforms"
    }


@pytest.mark.parametrize("name", ["liver", "lung_nodule"])
def test_bundles_written_by_hand_are_made_from_the_template(name):
    """Up to what they override on purpose."""
    there, here = config(TEMPLATE, "train"), config(name, "train")
    purpose = {"_desc_", "bundle_root", "out_channels", "pixdim", "hu_range", "phantoms", "max_epochs"}
    purpose |= {"patches_per_case", "shifted_size", "train"}
    assert {key for key in {*there, *here} if there.get(key) != here.get(key)} <= purpose
    differ = {key for key in there["train"] if there["train"][key] != here["train"][key]}
    assert differ <= {"random_transforms"}
    for overlay in OVERLAYS:
        a, b = config(TEMPLATE, overlay), config(name, overlay)
        assert {key for key in {*a, *b} if a.get(key) != b.get(key)} <= {"_desc_"}


def test_path_that_monai_would_read_as_code_is_refused(tmp_path, balls):
    with pytest.raises(ValueError, match=r"a#b must have no # and no .* which MONAI reads as code"):
        plan_bundle(Source(balls), tmp_path / "a#b", given=TINY_PLAN)


@pytest.mark.parametrize("skips", ["dense", "long"])
def test_both_parts_take_no_more_time_than_was_planned(skips):
    """Of networks whose shallow levels are trained first, too."""
    plan = make_plan(fingerprint((60, 60, 60), number=20), Machine(hours=1), {"skips": skips})
    first = narrowing.first_part(plan)
    net = network_of(plan, plan["channels"], plan["strides"], plan["kernel_size"])
    costs = relative_costs(net, plan["roi_size"])
    assert (plan["growth"] is None) == (skips == "long")
    of_epoch = mean_cost(costs, plan["growth"] or [])
    for level, cost in enumerate(costs, 1):
        second = narrowing.second_part(first, level)["max_epochs"]
        taken = first["max_epochs"] * of_epoch + second * cost
        assert 0.7 < taken / (plan["max_epochs"] * of_epoch) < 1.03


def test_each_mask_of_an_image_is_measured(tmp_path):
    data = write_cases(tmp_path / "d", (ball(f"b{n}", AFFINES["RAS"]) for n in range(3)))
    index = json.loads((data / "dataset.json").read_text())
    first = index["training"][0]
    other = data / first["label"].replace("b0", "b0_of_another")
    label = nib.load(data / first["label"])
    nib.save(nib.Nifti1Image(np.full(label.shape, 7, np.uint8), label.affine), other)
    index["training"].insert(0, {**first, "label": os.path.relpath(other, data)})
    (data / "dataset.json").write_text(json.dumps(index))
    found = take_fingerprint(Source(data))
    assert found.problems[first["image"].removeprefix("./")].startswith("is listed twice, with")
    assert found.problems[str(other.relative_to(data))].startswith("has values that are no class: 7")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 4}, r"fold \d of 4 would hold out only cases without a foreground, .*fewer --folds"),
        ({"given": {"val_fraction": 0.25}}, "the validation would hold out only .*val_fraction, now 0.25"),
    ],
)
def test_validation_without_any_foreground_is_refused(tmp_path, options, message):
    data = write_cases(tmp_path / "d", (ball(f"b{n}", AFFINES["RAS"]) for n in range(4)))
    pairs = [{"image": str(path)} for path in sorted((data / "imagesTr").iterdir())]
    for case in split_cases(pairs, 0.25, 0)[1]:
        path = data / "labelsTr" / Path(case["image"]).name
        label = nib.load(path)
        nib.save(nib.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), path)
    options["given"] = {**TINY_PLAN, **options.get("given", {})}
    with pytest.raises(ValueError, match=message):
        plan_bundle(Source(data, allow_empty=True), tmp_path / "bundle", **options)
    assert not (tmp_path / "bundle").exists()


def test_commands_for_a_folder_with_a_space_are_quoted(tmp_path, balls):
    plan_bundle(Source(balls), tmp_path / "my balls", given=TINY_PLAN)
    block = (tmp_path / "my balls" / "README.md").read_text().split("```")[1]
    commands = [shlex.split(line) for line in block.splitlines()[1:]]
    assert len(commands) == 4
    assert all(any(word.startswith(f"{tmp_path}/my balls") for word in words) for words in commands)


def test_second_part_begins_at_the_learning_rate_of_one_decay_over_both():
    """That of train.json at the end of the first part."""
    decay = config(TEMPLATE, "train")["lr_scheduler"]["lr_lambda"]
    decay = decay.removeprefix("$").replace("@train#trainer#max_epochs", "10")
    assert eval(decay)(10 * narrowing.FIRST_SHARE) == pytest.approx(
        (1 - narrowing.FIRST_SHARE) ** narrowing.POWER
    )


def test_expression_for_scans_reaches_the_training_as_it_is(tmp_path):
    data = write_cases(
        tmp_path / "d", (ball(f"b_{n}_{3 * k}", AFFINES["RAS"]) for n in range(3) for k in range(2))
    )
    plan_bundle(Source(data, scan=r"_(?P<scan>\d+)_\d+$"), tmp_path / "b", given=TINY_PLAN)
    parser = ConfigParser(json.loads((tmp_path / "b" / "train.json").read_text()))
    split = parser.get_parsed_content("split")
    assert sorted(case["scan"] for side in split for case in side) == ["0", "0", "1", "1", "2", "2"]
    assert {case["scan"] for case in split[0]}.isdisjoint(case["scan"] for case in split[1])


def test_command_prints_the_data_and_a_reason_for_every_choice(tmp_path, balls, capsys):
    settings = [word for key, value in TINY_PLAN.items() for word in ("--set", key, json.dumps(value))]
    main(["plan", str(balls), "--out", str(tmp_path / "b"), *settings])
    printed = capsys.readouterr().out
    assert "in 4 cases; median" in printed
    for key in ("pixdim", "strides", "hu_range", "val_interval"):
        assert f"\n{key} " in printed
    assert f"next: monai-unetpp train {tmp_path / 'b'}" in printed
    assert planned_configs  # the JSONs are compared above
