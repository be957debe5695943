# SPDX-License-Identifier: Apache-2.0
import itertools
import json
import logging
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import load_decathlon_datalist
from monai.transforms import Compose, LoadImaged, Orientationd
from SimpleITK import ConnectedComponent, GetArrayFromImage, GetImageFromArray, RelabelComponent

from monai_unetpp.data.phantoms import Phantom, ensure_phantoms, liver_phantom, phantom, write_liver_phantoms
from monai_unetpp.data.phantoms.canvas import Canvas
from monai_unetpp.data.phantoms.parts import Part
from monai_unetpp.data.phantoms.shapes import blob, tube

CASES = 6
ORIENTATIONS = [
    "".join(codes)
    for axes in itertools.permutations(("LR", "PA", "IS"))
    for codes in itertools.product(*axes)
]


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    """The first cases of seed 0, as they are stored: each in its own orientation."""
    return [liver_phantom(np.random.default_rng([0, k])) for k in range(CASES)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_liver_phantoms(tmp_path_factory.mktemp("phantoms"), cases=2, seed=0)


def draw_by(monkeypatch, draw):
    monkeypatch.setitem(phantom.KINDS, "liver", replace(phantom.KINDS["liver"], draw=draw))


@pytest.fixture
def quick(monkeypatch):
    """Cases of a few voxels, where only the writing is looked at."""

    def speck(rng):
        return Phantom(
            rng.integers(-1024, 1024, (4, 5, 6), np.int16),
            rng.integers(0, 3, (4, 5, 6), np.uint8),
            np.zeros((4, 5, 6), np.uint8),
            np.diag([3.0, 3.0, 5.0, 1.0]),
        )

    draw_by(monkeypatch, speck)
    return speck


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def world_centre(mask, affine):
    return nib.affines.apply_affine(affine, np.argwhere(mask).mean(0))


def components(mask):
    """The connected components of a mask as label values, the largest first, and their number."""
    found = RelabelComponent(ConnectedComponent(GetImageFromArray(mask.astype(np.uint8))))
    labels = GetArrayFromImage(found)
    return labels, int(labels.max())


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


# What is in a case


@pytest.mark.parametrize("size", [0, 3], ids=["as-scanned", "smoothed"])
def test_no_window_of_densities_finds_the_liver(phantoms, size):
    """The best of all windows is chosen with the labels at hand, for all voxels or the largest component."""
    scores = {}
    for k, case in enumerate(phantoms):
        image = torch.from_numpy(case.image.astype(np.float32))
        if size:
            image = torch.nn.functional.avg_pool3d(image[None], size, 1, size // 2)[0]
        for window in itertools.product(range(40, 101, 15), range(110, 171, 15)):
            inside = ((image >= window[0]) & (image <= window[1])).numpy()
            largest = components(inside)[0] == 1
            liver = case.label > 0
            scores[window, k] = dice(inside, liver), dice(largest, liver)
    windows = {window for window, _ in scores}
    mean = {w: np.mean([scores[w, k] for k in range(CASES)], axis=0) for w in windows}
    everything, largest = np.max(list(mean.values()), axis=0)
    assert 0.3 < everything < 0.7
    assert 0.3 < largest < 0.7


def test_neighbours_have_the_density_of_the_liver(phantoms):
    for case in phantoms:
        low, high = np.percentile(case.image[case.label == 1], [5, 95])
        alike = {
            part.name
            for part in (Part.SPLEEN, Part.KIDNEY, Part.HEART, Part.STOMACH, Part.PANCREAS, Part.BOWEL)
            if low < np.median(case.image[case.parts == part]) < high
        }
        assert "SPLEEN" in alike
        assert len(alike) >= 2


def test_liver_lies_on_the_right_and_spleen_on_the_left(phantoms):
    for case in phantoms:
        spine, liver, spleen = (
            world_centre(mask, case.affine)
            for mask in (case.parts == Part.BONE, case.label > 0, case.parts == Part.SPLEEN)
        )
        assert liver[0] > spine[0] + 20
        assert spleen[0] < spine[0] - 50
        assert liver[1] > spine[1]  # in front of the spine


def test_cases_are_stored_in_several_orientations_and_spacings(phantoms):
    assert len({nib.aff2axcodes(case.affine) for case in phantoms}) > 2
    spacings = np.array([sorted(nib.affines.voxel_sizes(case.affine)) for case in phantoms])
    assert spacings.min() >= 2.4
    assert spacings.max() <= 5
    assert (spacings.std(0) > 0.1).all()


def test_every_case_has_one_liver_of_plausible_volume(phantoms):
    for case in phantoms:
        liver = case.label > 0
        labels, _ = components(liver)
        assert 700 < liver.sum() * abs(np.linalg.det(case.affine)) / 1000 < 2500  # ml
        assert (labels == 1).sum() > 0.99 * liver.sum()


def test_tumours_differ_in_number_and_size_and_lie_inside_the_liver(phantoms):
    counts, volumes = [], []
    for case in phantoms:
        labels, number = components(case.label == 2)
        counts.append(number)
        for n in range(1, number + 1):
            tumour = torch.from_numpy(labels == n)
            volumes.append(int(tumour.sum()) * abs(np.linalg.det(case.affine)) / 1000)
            shell = torch.nn.functional.max_pool3d(tumour.float()[None], 3, 1, 1)[0].bool() & ~tumour
            assert (case.label[shell.numpy()] > 0).mean() > 0.5
    assert len(set(counts)) > 2
    assert sum(count > 0 for count in counts) >= CASES - 2
    assert max(volumes) > 10 * min(volumes)


def test_tumours_are_darker_or_brighter_than_the_liver(phantoms):
    contrasts = []
    for case in phantoms:
        labels, number = components(case.label == 2)
        liver = case.image[case.label == 1].mean()
        contrasts += [case.image[labels == n].mean() - liver for n in range(1, number + 1)]
    assert min(contrasts) < -20
    assert np.ptp(contrasts) > 30


def test_image_is_int16_in_hounsfield_units_and_label_has_three_values(phantoms):
    for case in phantoms:
        assert case.image.dtype == np.int16
        assert case.label.dtype == np.uint8
        assert case.image.shape == case.label.shape == case.parts.shape
        assert set(np.unique(case.label)) <= {0, 1, 2}
        assert case.image.min() == -1024
        assert -900 < np.median(case.image[case.parts == Part.LUNG]) < -700
        assert -125 < np.median(case.image[case.parts == Part.FAT]) < -75


# Where it lies: the canvas


@pytest.mark.parametrize("axcodes", ORIENTATIONS, ids=str)
def test_scan_is_the_same_body_in_every_orientation(axcodes):
    canvas = Canvas((-20, -15, -10), (20, 15, 10), (2, 2, 4))
    canvas.paint(blob((8, 5, 2), (6, 4, 6)), 100, Part.LIVER)
    upright, turned = (
        canvas.scan(np.random.default_rng(0), 10, axcodes=codes, origin=(3, -7, 50))
        for codes in ("RAS", axcodes)
    )
    assert nib.aff2axcodes(turned.affine) == tuple(axcodes)
    back = nib.as_closest_canonical(nib.Nifti1Image(turned.image, turned.affine))
    np.testing.assert_array_equal(np.asarray(back.dataobj), upright.image)
    np.testing.assert_allclose(back.affine, upright.affine, atol=1e-5)  # voxel centres are float32
    centre = world_centre(turned.parts == Part.LIVER, turned.affine)
    np.testing.assert_allclose(centre, (11, -2, 52), atol=1)  # half a voxel


def test_voxels_cut_by_a_surface_are_mixed_by_volume():
    canvas = Canvas((-12, -12, -12), (12, 12, 12), (1, 1, 1))
    canvas.image[:] = 0
    canvas.paint(blob((0.3, 0.2, 0.1), (7, 7, 7)), 1, Part.LIVER)
    assert canvas.image.sum() == pytest.approx(4 / 3 * np.pi * 7**3, rel=0.01)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Canvas((0, 0, 0), (9, 9, 9), (1, 0, 1)), r"spacing must be positive, got \(1, 0, 1\)"),
        (lambda: Canvas((0, 0, 0), (9, 9, 1), (2, 2, 2)), "high must be at least one voxel above low"),
        (lambda: tube([(0, 0, 0)], [3]), "path must have at least two points, got 1"),
    ],
    ids=["spacing", "no-voxels", "one-point"],
)
def test_impossible_drawings_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# Writing a data set


def test_monai_reads_what_was_drawn(dataset, phantoms):
    cases = load_decathlon_datalist(dataset, is_segmentation=True, data_list_key="training")
    assert len(cases) == 2
    keys = ("image", "label")
    load = Compose([LoadImaged(keys, ensure_channel_first=True), Orientationd(keys, "RAS", labels=None)])
    for case, drawn in zip(cases, phantoms, strict=False):
        read = load(case)
        for key in keys:
            upright = nib.as_closest_canonical(nib.Nifti1Image(getattr(drawn, key), drawn.affine))
            np.testing.assert_array_equal(read[key][0].numpy(), np.asarray(upright.dataobj))
            np.testing.assert_allclose(read[key].affine, upright.affine, atol=1e-3)  # float32 header


def test_files_are_int16_volumes_in_millimetres_with_labels_that_fit(dataset):
    index = json.loads(dataset.read_text())
    assert index["labels"] == {"0": "background", "1": "liver", "2": "tumour"}
    assert index["numTraining"] == len(index["training"]) == 2
    for entry in index["training"]:
        image, label = (nib.load(dataset.parent / entry[key]) for key in ("image", "label"))
        assert image.get_data_dtype() == np.int16
        assert image.header.get_xyzt_units()[0] == "mm"
        assert image.shape == label.shape
        np.testing.assert_array_equal(image.affine, label.affine)
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-3)


def test_same_seed_gives_the_same_bytes(dataset, tmp_path):
    again = write_liver_phantoms(tmp_path, cases=2, seed=0)
    assert contents(again.parent) == contents(dataset.parent)


@pytest.mark.usefixtures("quick")
def test_case_does_not_depend_on_the_number_of_cases(tmp_path):
    few = contents(write_liver_phantoms(tmp_path / "few", cases=2, seed=3).parent)
    many = contents(write_liver_phantoms(tmp_path / "many", cases=5, seed=3).parent)
    assert len(few) == 5
    assert all(many[name] == few[name] for name in few if name != "dataset.json")


@pytest.mark.usefixtures("quick")
def test_cases_and_seeds_differ_from_each_other(tmp_path):
    volumes = [
        content
        for seed in range(3)
        for name, content in contents(write_liver_phantoms(tmp_path / str(seed), 3, seed).parent).items()
        if name != "dataset.json"
    ]
    assert len(set(volumes)) == len(volumes) == 18


@pytest.mark.usefixtures("quick")
def test_existing_data_set_is_left_alone(tmp_path):
    write_liver_phantoms(tmp_path, cases=1)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=r"already holds a data set: .*dataset\.json.*--overwrite"):
        write_liver_phantoms(tmp_path, cases=1, seed=1)
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("quick")
def test_overwrite_replaces_the_data_set(tmp_path):
    write_liver_phantoms(tmp_path / "a", cases=2, seed=1)
    write_liver_phantoms(tmp_path / "a", cases=2, seed=2, overwrite=True)
    write_liver_phantoms(tmp_path / "b", cases=2, seed=2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwriting"])
def test_interrupted_drawing_leaves_no_index_and_can_be_taken_up(tmp_path, quick, monkeypatch, overwrite):
    if overwrite:
        write_liver_phantoms(tmp_path, cases=3, seed=8)
    calls = []

    def interrupted(rng):
        calls.append(rng)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return quick(rng)

    draw_by(monkeypatch, interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_liver_phantoms(tmp_path, cases=3, overwrite=overwrite)
    assert not (tmp_path / "dataset.json").exists()
    assert write_liver_phantoms(tmp_path, cases=3).exists()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["liver_001.nii.gz", "dataset.json"], ids=["volume", "index"])
def test_interrupted_writing_leaves_nothing_half_written(tmp_path, monkeypatch, name):
    write = Path.write_bytes

    def full_disk(path, content):
        if name in path.name:
            write(path, content[:10])
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_liver_phantoms(tmp_path, cases=2)
    left = contents(tmp_path)
    assert "dataset.json" not in left
    assert all(path.endswith(".nii.gz") and len(content) > 100 for path, content in left.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cases": 0}, r"cases must be at least 1, got 0"),
        ({"seed": -1}, r"seed must not be negative, got -1"),
    ],
    ids=["cases", "seed"],
)
def test_bad_numbers_are_refused_before_anything_is_written(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_liver_phantoms(tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


# By default


@pytest.mark.usefixtures("quick")
def test_phantoms_are_made_where_the_default_is_empty(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(phantom, "DEFAULT_CASES", 1)
    folder = tmp_path / "bundle" / "data"
    with caplog.at_level(logging.INFO, "monai_unetpp"):
        assert ensure_phantoms(folder, folder, "liver") == folder
    assert [record.getMessage() for record in caplog.records] == [
        f"No data set given: making 1 synthetic CTs (phantoms) in {folder}."
    ]
    before = contents(folder)
    assert sorted(before) == ["dataset.json", "imagesTr/liver_000.nii.gz", "labelsTr/liver_000.nii.gz"]
    assert ensure_phantoms(str(folder), folder, "liver") == str(folder)
    assert contents(folder) == before
    assert len(caplog.records) == 1


@pytest.mark.parametrize("default", [None, "default"])
@pytest.mark.parametrize("named", [None, "named"])
def test_folder_that_was_named_is_never_filled_with_phantoms(tmp_path, monkeypatch, named, default):
    monkeypatch.chdir(tmp_path)
    assert ensure_phantoms(named, default, "liver") == named
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_processes_other_than_the_first_wait(tmp_path, monkeypatch):
    def write(_):  # what the first process does meanwhile
        write_liver_phantoms(tmp_path, cases=1)

    monkeypatch.setattr(phantom.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(phantom.dist, "get_rank", lambda: 1)
    monkeypatch.setattr(phantom.time, "sleep", write)
    ensure_phantoms(tmp_path, tmp_path, "chest")
    assert (tmp_path / "imagesTr" / "liver_000.nii.gz").exists()
