# SPDX-License-Identifier: Apache-2.0
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom import write_series
from monai.data import list_data_collate

from bundles import AFFINES, write_balls
from monai_unetpp.data import list_volumes, read_dataset, scan_names, split_cases
from monai_unetpp.readers import memory


@pytest.fixture
def balls(tmp_path) -> Path:
    return write_balls(tmp_path / "balls")


def rewrite(directory, **changes):
    """Change keys of a ``dataset.json``; None takes one away."""
    index = directory / "dataset.json"
    content = json.loads(index.read_text()) | changes
    index.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


# read_dataset


def test_data_set_has_its_cases_and_the_names_of_its_classes(balls):
    dataset = read_dataset(balls, 3)
    assert dataset.labels == ["background", "ball", "pip"]
    assert dataset.cases == [
        {key: str(balls / f"{key}sTr" / f"{name}.nii.gz") for key in ("image", "label")} for name in AFFINES
    ]


def test_classes_are_in_the_order_of_their_values(balls):
    rewrite(balls, labels={"2": "c", "0": "a", "1": "b"})
    assert read_dataset(balls, 3).labels == ["a", "b", "c"]


@pytest.mark.parametrize("names", [["a", "b", "b"], ["a", "a", "b"]])
@pytest.mark.parametrize("given", [True, False])
def test_classes_of_one_name_are_refused(balls, names, given):
    """Tables of scores would lack one of them, and means as well."""
    rewrite(balls, labels={str(n): name for n, name in enumerate("abc" if given else names)})
    with pytest.raises(ValueError, match=rf"must have different names, got '{names[1]}' more than once"):
        read_dataset(balls, 3, labels=names if given else None)


def test_ten_classes_and_more_are_ordered_as_numbers(balls):
    names = [f"class-{value}" for value in range(12)]
    rewrite(balls, labels={str(value): name for value, name in sorted(enumerate(names), key=str)})
    assert read_dataset(balls, 12).labels == names


def test_cubes_of_one_scan_stay_together():
    cases = [{"image": f"{scan}_{n}", "label": "", "scan": scan} for scan in "abcdefgh" for n in range(3)]
    for seed in range(5):
        train, held_out = split_cases(cases, 0.25, seed)
        assert not {case["scan"] for case in train} & {case["scan"] for case in held_out}
        assert sorted(case["image"] for case in train + held_out) == [case["image"] for case in cases]
    assert split_cases(cases, 0.25, 1) == split_cases(cases, 0.25, 1) != split_cases(cases, 0.25, 2)


def test_cases_of_which_some_name_their_scan_make_up_a_batch_and_are_split_by_the_same_names(balls):
    training = json.loads((balls / "dataset.json").read_text())["training"]
    alone = scan_names(read_dataset(balls, 3).cases)
    rewrite(balls, training=[case | {"scan": "one"} if n < 2 else case for n, case in enumerate(training)])
    cases = read_dataset(balls, 3).cases
    assert scan_names(cases) == [case["scan"] for case in cases] == ["one", "one", *alone[2:]]
    assert list_data_collate(cases)["scan"] == ["one", "one", *alone[2:]]


@pytest.mark.parametrize("numbers", [(0, 0, 1, 1), ("0", "0", "1", "1")])
def test_scans_may_be_numbers(balls, numbers):
    """Of scan 0, too, no case is held out while another is trained on."""
    training = json.loads((balls / "dataset.json").read_text())["training"]
    rewrite(balls, training=[{**case, "scan": n} for case, n in zip(training, numbers, strict=True)])
    assert scan_names(read_dataset(balls, 3).cases) == ["0", "0", "1", "1"]


@pytest.mark.parametrize("scan", [r"^(?P<scan>\d*)", r"(?P<scan>\d)?"])
def test_an_expression_whose_group_is_empty_finds_no_scan(balls, scan):
    """All such cases would be of one scan, whoever they are of."""
    with pytest.raises(ValueError, match=r"does not fit .*\.nii\.gz, in which its group scan is empty\."):
        read_dataset(balls, 3, scan=scan)


def scans(names, folder="/data/ct"):
    return [{"image": f"{folder}/imagesTr/{name}.nii.gz", "label": name} for name in names]


def sides(cases, seed=0, fraction=0.25):
    return [{case["label"] for case in side} for side in split_cases(cases, fraction, seed)]


@pytest.mark.parametrize("seed", range(4))
def test_a_scan_more_or_another_order_moves_no_scan(seed):
    names = [f"scan-{n}" for n in range(40)]
    train, held_out = sides(scans(names), seed)
    assert sides(scans(names[::-1]), seed) == [train, held_out]
    for count in range(20, 40):
        before_train, before_held_out = sides(scans(names[-count:]), seed)
        assert before_train <= train
        assert before_held_out <= held_out


def test_a_scan_more_never_holds_out_one_that_was_trained_on_however_few_there_are():
    for seed in range(50):
        names = [f"scan-{n}" for n in range(12)]
        for count in range(3, 12):
            train, _ = sides(scans(names[:count]), seed)
            assert train.isdisjoint(sides(scans(names[: count + 1]), seed)[1])


def test_data_set_that_was_moved_is_split_as_before():
    names = [f"scan-{n}" for n in range(12)]
    assert sides(scans(names)) == sides(scans(names, "/mnt/other/place"))


def test_images_of_one_name_in_folders_of_their_patients_are_told_apart():
    cases = [{"image": f"/data/{patient}/ct/image.nii.gz", "label": patient} for patient in "abcdefgh"]
    assert scan_names(cases) == [f"{patient}/ct/image.nii.gz" for patient in "abcdefgh"]
    train, held_out = sides(cases)
    assert train
    assert held_out


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_share_that_is_held_out_is_near_the_one_asked_for(fraction):
    for seed in range(5):
        _, held_out = sides(scans(range(1000)), seed, fraction)
        assert abs(len(held_out) / 1000 - fraction) < 0.05


@pytest.mark.parametrize("count", range(2, 9))
def test_few_scans_have_one_on_each_side(count):
    for seed in range(20):
        assert all(sides(scans(range(count)), seed, 0.4))


@pytest.mark.parametrize(
    ("count", "fraction", "message"),
    [
        (1, 0.25, "val_fraction 0.25 holds out none of 1 scans: at least 2 scans are required"),
        (0, 0.25, "val_fraction 0.25 holds out none of 0 scans"),
        (4, 0.001, "val_fraction 0.001 holds out none of 4 scans: --val_fraction 0.25 would work"),
        (4, 0.999, "val_fraction 0.999 leaves none to train on of 4 scans: --val_fraction 0.75 would work"),
    ],
)
def test_empty_side_is_refused_with_the_number_of_scans(count, fraction, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        split_cases(scans(range(count)), fraction, 0)


@pytest.mark.parametrize("fraction", [0, 1, -0.5])
def test_fraction_that_leaves_nothing_is_refused(fraction):
    with pytest.raises(ValueError, match=f"val_fraction must be between 0 and 1, got {fraction}"):
        split_cases([{"image": "a", "label": "b"}], fraction, 0)


@pytest.mark.parametrize("exists", [True, False], ids=["empty-folder", "no-folder"])
def test_folder_without_a_data_set_is_named_with_the_command_that_makes_one(tmp_path, exists):
    named = tmp_path / "named"
    if exists:
        named.mkdir()
    message = (
        rf"^dataset_dir holds no data set: {re.escape(str(named))}\. .*the Decathlon.*Task03_Liver"
        rf".*monai-unetpp phantom --kind liver --out {re.escape(str(named))} \(or --kind chest\)\.$"
    )
    with pytest.raises(FileNotFoundError, match=message):
        read_dataset(named, 3)
    assert named.exists() == exists


def test_missing_argument_is_named_as_one_types_it():
    with pytest.raises(ValueError, match="--dataset_dir FOLDER"):
        read_dataset(None, 3)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"training": []}', '{"labels": {"0": "a"}}', b"\xff\xfe\x00"],
    ids=["empty", "cut-off", "list", "null", "no-labels", "no-training", "binary"],
)
def test_damaged_index_is_named(tmp_path, content):
    index = tmp_path / "dataset.json"
    index.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(index))} is not a (Decathlon data set|data set of the)"
    ):
        read_dataset(tmp_path, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["a", "b", "c"]}, "is not a data set of the Decathlon or of nnU-Net"),
        (
            {"labels": {"0": "a", "1": "b", "3": "d"}},
            r"must have labels of the values 0\.\.2, got 0, 1, 3: monai-unetpp plan",
        ),
        ({"training": ["a.nii.gz"]}, "is not a Decathlon data set"),
        ({"training": [{"image": "imagesTr/RAS.nii.gz"}]}, "must name an image and a label .*RAS"),
        ({"training": []}, "lists no training cases"),
        (
            {"labels": {"0": "a", "1": "b"}},
            r"out_channels must be 2 for the labels a, b of .*: --out_channels 2\.$",
        ),
    ],
    ids=["labels-as-list", "gap-in-labels", "cases-as-list", "case-without-label", "no-cases", "two-labels"],
)
def test_index_that_does_not_fit_says_what_is_wrong(balls, changes, message):
    rewrite(balls, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        read_dataset(balls, 3)
    assert str(balls / "dataset.json") in str(caught.value)


def test_files_that_do_not_exist_are_counted_and_the_first_is_named(balls):
    for name in ("imagesTr/LPS.nii.gz", "labelsTr/PSR.nii.gz"):
        (balls / name).unlink()
    first = re.escape(str(balls / "imagesTr" / "LPS.nii.gz"))
    with pytest.raises(
        FileNotFoundError, match=rf"dataset\.json names 2 files that do not exist, first {first}\.$"
    ):
        read_dataset(balls, 3)


def test_memory_of_a_case_follows_its_size_in_mm(balls):
    """Resampled to twice the spacing, a case is an eighth."""
    (case, *_) = read_dataset(balls, 3).cases
    voxels, zooms = np.prod(nib.load(case["image"]).shape), nib.load(case["image"]).header.get_zooms()
    assert memory.cached_bytes(case, zooms) == pytest.approx(2 * 4 * voxels)  # image and label, float32
    assert memory.cached_bytes(case, 2 * np.array(zooms)) == pytest.approx(voxels)


def test_cases_that_do_not_fit_in_memory_are_refused_with_the_rate_that_fits(balls, monkeypatch):
    needed = sum(memory.cached_bytes(case, [1, 1, 1]) for case in read_dataset(balls, 3).cases)
    monkeypatch.setattr(memory, "available_memory", lambda: int(needed / 2))
    with pytest.raises(ValueError, match=r"cache_rate 1 would keep .* --cache_rate 0\.(39|4) fits"):
        read_dataset(balls, 3, pixdim=[1, 1, 1], cache_rate=1.0)
    read_dataset(balls, 3, pixdim=[1, 1, 1], cache_rate=0.39)


def test_available_memory_is_less_than_the_machine_has():
    available = memory.available_memory()
    assert available is None or 0 < available < 2**50


# list_volumes


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("b.nii.gz", "a.nii", "._a.nii", "notes.txt", "c.nii.gz.part"):
        (tmp_path / name).touch()
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "d.nii.gz").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("a.nii", ["a.nii"]),
        ("", ["a.nii", "b.nii.gz", "inside/d.nii.gz"]),
        ("inside", ["inside/d.nii.gz"]),
        (["b.nii.gz", "a.nii"], ["b.nii.gz", "a.nii"]),
        (("a.nii", "inside"), ["a.nii", "inside/d.nii.gz"]),
    ],
    ids=["file", "folder", "folder-below", "list", "folder-and-file"],
)
@pytest.mark.parametrize("kind", [Path, str], ids=["path", "string"])
def test_volumes_are_listed(folder, names, expected, kind):
    source = kind(folder / names) if isinstance(names, str) else [kind(folder / name) for name in names]
    assert list_volumes(source) == [{"image": str(folder / name)} for name in expected]


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere.nii", "nowhere.nii does not exist"), ("empty", r"empty holds no volume: .* or a DICOM")],
    ids=["no-file", "empty-folder"],
)
def test_nothing_to_segment_is_an_error_with_the_path(folder, name, message):
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=re.escape(str(folder)) + "/" + message):
        list_volumes(folder / name)


def test_two_volumes_that_would_be_written_as_one_are_refused(folder):
    (folder / "inside" / "a.nii.gz").touch()
    with pytest.raises(ValueError, match=r"a\.nii and .*inside/a\.nii\.gz would both be written as a"):
        list_volumes([folder / "a.nii", folder / "inside"])


def test_link_back_up_does_not_go_round(tmp_path):
    write_series(tmp_path / "a" / "ct", [(0, np.zeros((4, 4), np.int16))])
    (tmp_path / "a" / "again").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "b").symlink_to(tmp_path / "a" / "ct", target_is_directory=True)
    (tmp_path / "c.nii").symlink_to("c.nii")  # to itself
    assert list_volumes(tmp_path) == [{"image": str(tmp_path / name)} for name in ("a/ct", "b", "c.nii")]
