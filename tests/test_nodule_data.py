# SPDX-License-Identifier: Apache-2.0
"""Training on boxes of which nobody knows what lies outside: the data set, the recipe, and radiologists."""

import json
import sqlite3
import sys
from contextlib import closing

import monai.transforms as mt
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from test_lidc import ORIGIN, SPACING, UIDS, block, write_database

from bundles import BUNDLES, TINY_TRAINING, affine, run, workflow, write_cases
from monai_unetpp.data import read_dataset, split_cases
from monai_unetpp.data.decathlon import Case

LABELS = {"0": "background", "1": "nodule"}
IGNORE = 2
NODULE, LUNG = 30, -850  # HU

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def benchmarks():
    """The scripts of the folder, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BUNDLES.parent / "benchmarks"))
        import nodule_boxes
        import radiologists
    yield {"boxes": nodule_boxes, "radiologists": radiologists}
    for name in ("nodule_boxes", "radiologists"):
        sys.modules.pop(name, None)


def nodule(name, shape, matrix, seed=0):
    """Lung with a block in its middle that reaches the first and the last slice, and a vessel."""
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    label[shape[0] // 3 : -(shape[0] // 3), shape[1] // 3 : -(shape[1] // 3)] = 1
    image = np.where(label > 0, NODULE, LUNG) + rng.normal(0, 20, shape)
    image[2:4, 2:4] = NODULE
    return Case(name, image.round().astype(np.int16), label, matrix)


BOXES = {
    "thin": ((15, 13, 3), affine("LPS", (0.7, 0.7, 2.5))),
    "thick": ((9, 11, 12), affine("RAS", (0.9, 0.9, 0.5))),
    "oblique": ((12, 9, 5), affine("LPS", (0.8, 0.8, 1.8), turn=20)),
    "larger than asked for": ((30, 28, 14), affine("RAS", (0.8, 0.8, 1.2))),
}


def names_of(box):
    return pytest.mark.parametrize(box, BOXES)


def a_box(kind):
    return nodule("a", *BOXES[kind])


# The data set


@names_of("kind")
def test_voxel_of_a_box_stays_at_its_place_and_all_outside_is_ignored(benchmarks, kind):
    box = a_box(kind)
    padded = benchmarks["boxes"].pad(box, size=16)
    world = nib.affines.apply_affine(box.affine, np.argwhere(np.ones_like(box.label)))
    places = nib.affines.apply_affine(np.linalg.inv(padded.affine), world)
    index = tuple(places.round().astype(int).T)
    np.testing.assert_allclose(places, np.transpose(index), atol=1e-6)
    assert np.array_equal(padded.image[index], box.image.ravel())
    assert np.array_equal(padded.label[index], box.label.ravel())
    outside = np.ones(padded.label.shape, bool)
    outside[index] = False
    assert np.array_equal(padded.label == IGNORE, outside)


@names_of("kind")
def test_padded_box_has_the_size_after_resampling_and_no_more_than_it_needs(benchmarks, kind):
    box = a_box(kind)
    padded = benchmarks["boxes"].pad(box, size=16)
    volume = MetaTensor(torch.as_tensor(padded.image[None].astype(np.float32)), affine=padded.affine)
    resampled = mt.Spacing((1.0, 1.0, 1.0))(volume)
    assert min(resampled.shape[1:]) >= 16
    step = np.linalg.norm(box.affine[:3, :3], axis=0)
    assert all(np.maximum(box.image.shape * step, 16 + step) >= (np.array(padded.image.shape) - 1) * step)


def test_edge_repeats_the_nearest_voxel_and_reflect_mirrors(benchmarks):
    box = a_box("thin")
    pad = benchmarks["boxes"].pad
    edge, mirrored, air = (pad(box, 16, fill) for fill in ("edge", "reflect", -1000.0))
    inside = np.argwhere(edge.label != IGNORE)
    nearest = np.moveaxis(np.indices(edge.label.shape), 0, -1).clip(inside.min(0), inside.max(0))
    assert np.array_equal(edge.image, edge.image[tuple(np.moveaxis(nearest, -1, 0))])
    z = inside[:, 2].min()
    assert np.array_equal(mirrored.image[:, :, z - 1], mirrored.image[:, :, z + 1])
    assert (air.image[air.label == IGNORE] == -1000).all()
    with pytest.raises(
        ValueError, match="fill must be edge, reflect or a number of HU such as -1000, got 'air'"
    ):
        pad(box, 16, "air")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Twelve cubes, and two boxes of each of eight patients."""
    root = tmp_path_factory.mktemp("sources")
    matrix = affine("LPS", (1, 1, 1))
    cubes = [nodule(f"nodule_{k:03d}", (20, 20, 20), matrix, seed=k) for k in range(12)]
    boxes = [
        nodule(f"LIDC-{k:04d}_R_{n}", (12, 12, 4), affine("LPS", (0.8, 0.8, 2)), seed=10 * k + n)
        for k in range(8)
        for n in (1, 2)
    ]
    return write_cases(root / "cubes", cubes, LABELS), write_cases(root / "boxes", boxes, LABELS)


@pytest.fixture(scope="module")
def mixed(benchmarks, sources, tmp_path_factory):
    cubes, boxes = sources
    out = tmp_path_factory.mktemp("mixed") / "nodules"
    benchmarks["boxes"].write_nodules(out, [cubes], [boxes], scan=r"(?P<scan>LIDC-\d+)", size=20)
    return out


def test_patients_stay_together_and_cubes_are_held_out_as_of_cubes_alone(sources, mixed):
    alone, both = (read_dataset(folder, out_channels=2) for folder in (sources[0], mixed))
    assert both.labels == ["background", "nodule"]
    sides = [{side: split_cases(data.cases, 0.3, seed=3)[side] for side in (0, 1)} for data in (alone, both)]
    names = [
        [case["image"].rsplit("/", 1)[1] for case in each[1] if "box_" not in case["image"]] for each in sides
    ]
    assert names[0] == names[1] != []
    train, held_out = ({case["scan"] for case in sides[1][n] if "scan" in case} for n in (0, 1))
    assert train
    assert held_out
    assert not train & held_out


def test_cubes_are_what_they_were(sources, mixed):
    for name in ("imagesTr", "labelsTr"):
        before, after = (nib.load(root / name / "nodule_003.nii.gz") for root in (sources[0], mixed))
        assert np.array_equal(np.asarray(before.dataobj), np.asarray(after.dataobj))
        assert np.array_equal(before.affine, after.affine)
    assert json.loads((mixed / "dataset.json").read_text())["labels"]["ignore"] == IGNORE


def test_errors_name_the_cases(benchmarks, sources, mixed, tmp_path):
    write, (cubes, boxes) = benchmarks["boxes"].write_nodules, sources
    with pytest.raises(FileExistsError, match=r"dataset\.json"):
        write(mixed, [cubes], [boxes])
    with pytest.raises(
        ValueError, match=r"nodule_000.nii.gz and .*nodule_000.nii.gz would both be nodule_000"
    ):
        write(tmp_path, [cubes, cubes], [boxes])
    with pytest.raises(ValueError, match=r"scan must fit the name of every case"):
        write(tmp_path, [cubes], [boxes], scan="(?P<scan>MSD)")
    other = write_cases(tmp_path / "other", [a_box("thin")], {"0": "background", "1": "liver"})
    with pytest.raises(ValueError, match=r"other must have the classes background and nodule, got .*liver"):
        write(tmp_path / "out", [other], [boxes])
    assert not (tmp_path / "out").exists()


# The recipe

TRAINING = {
    "growth": None,  # its network has one level
    **TINY_TRAINING,
    **{"pixdim": [1.0, 1.0, 1.0], "hu_range": [-1000, 400], "roi_size": [16, 16, 16], "out_channels": 2},
    **{"max_epochs": 1, "cube_repeats": 2},
}
RECIPE = "train lidc boxes"


def test_recipe_trains_on_cubes_and_boxes(mixed, tmp_path):
    flow = run("lung_nodule", RECIPE, tmp_path, dataset_dir=str(mixed), **TRAINING)
    assert flow.parser.get_parsed_content("ignore_label") == IGNORE
    assert flow.trainer.state.epoch == 1
    assert 0 <= flow.evaluator.state.metrics["val_mean_dice"] <= 1
    record = json.loads((tmp_path / "models" / "model.json").read_text())
    assert record["overlays"] == ["lidc", "boxes"]


def test_cubes_are_repeated_and_patches_are_drawn_around_thin_structures(mixed, tmp_path):
    settings = {**TRAINING, "cube_repeats": 3, "train#random_transforms#crop#pos": 0}
    settings |= {"train#random_transforms#shift#random_center": False}
    flow = workflow("lung_nodule", RECIPE, tmp_path, dataset_dir=str(mixed), **settings)
    flow.initialize()
    get = flow.parser.get_parsed_content
    cases = [case["image"] for case in get("train#dataset").data]
    cubes = [case for case in cases if "box_" not in case]
    assert cubes
    assert len(cubes) == 3 * len({*cubes})
    assert len([case for case in cases if "box_" in case]) == len({*cases} - {*cubes})
    for item in get("train#dataset")[0]:
        assert set(item) == {"image", "label"}
        assert item["image"].shape == item["label"].shape == (1, 16, 16, 16)


# Agreement of radiologists


def test_agreement_is_that_of_squares_counted_by_hand(benchmarks, tmp_path):
    drawn = [block(5, 5, (2, 3), 8), block(7, 5, (2, 3), 8), block(5, 5, (3, 4), 8)]
    apart = [block(25, 25, (9,), 4)]
    database = write_database(tmp_path / "a.sqlite", *((UIDS[0], each) for each in drawn + apart))
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT count(*) FROM annotations").fetchone() == (4,)
    module = benchmarks["radiologists"]
    positions = [ORIGIN[2] + SPACING[2] * k for k in range(20)]
    nodules = sorted(module.nodules_of(database, UIDS[0], SPACING[0], positions), key=lambda n: len(n.masks))
    assert [len(each.masks) for each in nodules] == [1, 3]
    # two slices of 8 x 8; shifted by 2 in x: 6 of 8; by a slice: half; by both: 6 of 16
    assert module.pairs(nodules[1].masks) == pytest.approx(np.mean([6 / 8, 1 / 2, 3 / 8]))
    volume = 2 * 8 * 8 * SPACING[0] ** 2 * SPACING[2]
    assert nodules[1].diameter == pytest.approx((6 * volume / np.pi) ** (1 / 3))


def test_one_of_four_is_compared_with_two_of_the_three_others(benchmarks):
    same, wide = np.zeros((2, 8), bool), np.zeros((2, 8), bool)
    same[0, :4] = True
    wide[0] = True
    agreement = benchmarks["radiologists"].with_majority([same, same, same, wide])
    assert agreement == pytest.approx(np.mean([1, 1, 1, 2 * 4 / 12]))
