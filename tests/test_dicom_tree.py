# SPDX-License-Identifier: Apache-2.0
"""A tree as an archive exports it or a CD holds it: every series that is a volume is a scan of its own."""

import gc
import logging
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from dicom import SHAPE, SPACING, dicom_bytes, enhanced_tags, hounsfield_of, slice_tags, write_slices

from monai_unetpp.data import list_volumes
from monai_unetpp.readers import SimpleITKReader, read_geometry, volume_loader
from monai_unetpp.readers.dicom import headers
from monai_unetpp.readers.memory import check_volume

RIGHT = np.stack([hounsfield_of(n).T for n in range(SHAPE[2])], axis=-1)
CORONAL, SAGITTAL = "1\\0\\0\\0\\0\\-1", "0\\1\\0\\0\\0\\-1"
DESCRIPTION, NUMBER, KIND, KERNEL, UNIT = 0x0008103E, 0x00200011, 0x00080008, 0x00181210, 0x00281054
ACQUISITION, MODALITY, POSITION, AXES = 0x00200012, 0x00080060, 0x00200032, 0x00200037


def add_series(folder, uid, number=1, description="", slices=SHAPE[2], change=None, name="{uid}_{n}", **tags):
    """Write a series, whose values are the plain ones and its number; ``change(n)`` are tags of a slice."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(slices):
        own = slice_tags(n % SHAPE[2], uid, **tags)
        values = (hounsfield_of(n % SHAPE[2]) + 1024 + number).astype("<u2").tobytes()
        own |= {0x00080018: f"{uid}.{n + 1}", 0x00200013: str(n + 1), 0x7FE00010: values}
        own |= {DESCRIPTION: description or None, NUMBER: str(number)}
        own |= {POSITION: f"-20\\-30\\{SPACING[2] * n - 40}"} | (change(n) if change else {})
        (folder / name.format(uid=uid, n=n)).write_bytes(dicom_bytes(own))
    return folder


def listed(source, **settings):
    """Names of the scans, below ``source``."""
    found = [Path(case["image"]) for case in list_volumes(source, **{"modality": "CT", **settings})]
    return [path.relative_to(source).as_posix() for path in found]


def check(path, number):
    """A scan has the voxels of the series of that number."""
    volume = volume_loader()(path)
    np.testing.assert_array_equal(volume[0].numpy(), RIGHT + number)
    assert read_geometry(path)[0] == SHAPE
    return volume


# Several series in one folder


@pytest.fixture
def mixed(tmp_path):
    """Two axial series in one folder, files in no order and without suffix, and what lies beside them."""
    folder = tmp_path / "cd" / "DICOM"
    add_series(folder, "1.2.3.1", 2, "Thorax 1.0 B70f", name="IM_{n}3")
    add_series(folder, "1.2.3.2", 3, "Abdomen 3.0", name="IM_{n}1")
    for name in ("autorun.exe", "README", "Thumbs.db"):
        (tmp_path / "cd" / name).write_bytes(b"MZ of no medical kind" * 20)
    return tmp_path / "cd"


def test_series_of_one_folder_are_scans_with_names_of_their_own(mixed):
    names = listed(mixed)
    assert len(names) == 2
    assert [re.fullmatch(r"DICOM/series-(\d)-[0-9a-f]{8}", name)[1] for name in names] == ["2", "3"]
    for name, number in zip(names, (2, 3), strict=True):
        volume = check(mixed / name, number)
        check_volume(str(mixed / name), [1.0, 1.0, 1.0])
        assert volume.meta["filename_or_obj"] == str(mixed / name)
    array, _ = SimpleITKReader().get_data(SimpleITKReader().read(str(mixed / names[1])))
    np.testing.assert_array_equal(array, RIGHT + 3)
    assert listed(mixed, series=["abdomen"]) == names[1:]  # as it is called without
    assert list_volumes(mixed / names[0]) == [{"image": str(mixed / names[0])}]


def test_names_stay_when_a_tree_is_moved_or_files_are_renamed(mixed, tmp_path):
    before = listed(mixed)
    for path in (mixed / "DICOM").iterdir():
        path.rename(path.with_name(f"x{path.name[::-1]}.dcm"))
    shutil.move(mixed, tmp_path / "elsewhere")
    assert listed(tmp_path / "elsewhere") == before


def test_name_that_is_no_series_lists_those_that_are(mixed):
    with pytest.raises(
        FileNotFoundError, match=r"is no series of .*DICOM: it holds series-2-\w+, series-3-\w+\."
    ):
        volume_loader()(mixed / "DICOM" / "series-9-00000000")


def test_folder_with_one_scan_stands_for_it_whatever_else_it_holds(tmp_path):
    add_series(tmp_path / "ct", "1.2.3.1", 1)
    add_series(tmp_path / "ct", "1.2.3.2", 2, t00200037=CORONAL, slices=4)
    add_series(tmp_path / "ct", "1.2.3.3", 3, t00080008="ORIGINAL\\PRIMARY\\LOCALIZER")
    assert listed(tmp_path) == ["ct"]
    check(tmp_path / "ct", 1)


def across(n):
    """Place of the slice ``n`` of a coronal series."""
    return {POSITION: f"-20\\{2.5 * n}\\-40"}


def apart(n):
    """Places of key images."""
    return {POSITION: f"-20\\-30\\{[0, 30, 37, 90][n]}"}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"t00200037": CORONAL, "change": across}, "coronal"),
        ({"t00200037": SAGITTAL, "change": lambda n: {POSITION: f"{2.5 * n}\\0\\0"}}, "sagittal"),
        ({"slices": 1, "change": lambda _: {POSITION: "0\\0\\900"}}, "a single image of another series"),
        ({"change": lambda _: {POSITION: "-20\\-30\\7"}}, "6 images of one place"),
        ({"slices": 4, "change": apart}, "4 images that do not lie side by side"),
        ({"slices": 2, "change": apart}, "2 images that do not lie side by side"),
        ({"t00080008": "DERIVED\\SECONDARY\\AXIAL\\MIP"}, "a projection, MIP"),
        ({"t00281054": "Z_EFF"}, "values in Z_EFF, not HU"),
        ({"t00080060": "MR"}, "of another modality"),
        ({"change": lambda _: {POSITION: None}}, "without a place"),
    ],
)
def test_series_that_are_no_scan_are_listed_with_the_reason(mixed, caplog, settings, reason):
    before = listed(mixed)
    add_series(mixed / "DICOM", "1.2.3.9", 9, "Other", **settings)
    caplog.clear()
    assert listed(mixed) == before
    assert re.search(rf'DICOM: series 9 "Other" \(\w+, \d images?, 1\.2\.3\.9\): {reason}\n', caplog.text)
    for name, number in zip(before, (2, 3), strict=True):
        check(mixed / name, number)


def test_files_that_are_no_slices_are_listed_with_the_reason(mixed, caplog):
    add_series(mixed / "DICOM", "1.2.3.8", 8, slices=1, t00080008="ORIGINAL\\PRIMARY\\LOCALIZER")
    seg = slice_tags(0, "1.2.3.7", t00080060="SEG", t00280100=1, t00280101=1, t00280102=0)
    (mixed / "DICOM" / "IM_99").write_bytes(dicom_bytes(seg))
    assert len(listed(mixed)) == 2
    assert "README, Thumbs.db, autorun.exe (no DICOM)" in caplog.text
    assert "1.2.3.8_0 (a localizer)" in caplog.text
    assert "IM_99 (of modality SEG)" in caplog.text
    assert caplog.text.count("autorun.exe") == 1


def test_series_that_is_alone_in_its_study_is_a_scan_in_any_direction(tmp_path):
    add_series(tmp_path / "axial", "1.2.3.1")
    add_series(tmp_path / "other", "1.2.3.2", t00200037=CORONAL, change=across, t0020000d="1.9")
    assert listed(tmp_path) == ["axial", "other"]


def test_magnetic_resonance_is_wanted_where_the_bundle_says_so(tmp_path):
    add_series(tmp_path / "a", "1.2.3.1", t00080060="MR")
    add_series(tmp_path / "b", "1.2.3.2", t00080060="MR", t00200037=CORONAL, change=across)
    add_series(tmp_path / "c", "1.2.3.3")
    assert listed(tmp_path, modality="MR") == ["a", "b"]
    assert listed(tmp_path, modality=None) == ["a", "b", "c"]
    assert listed(tmp_path) == ["c"]
    with pytest.raises(
        FileNotFoundError, match=r"holds no volume: [\s\S]*passed over:\s+series 1 .*of another mod"
    ):
        list_volumes(tmp_path / "a", modality="CT")


# Chosen by whoever asks


@pytest.mark.parametrize(
    ("chosen", "numbers"),
    [
        (["1.2.3.1"], [2]),
        (["1.2.3.2", "1.2.3.1"], [2, 3]),
        (["thorax"], [2]),
        (["T*B70?"], [2]),
        (["3.0"], [3, 4]),
        (["Abdomen 3.0"], [3]),
        (["1.2.3.3"], [4]),
        (["MPR"], [4]),
        (["(2)"], [5]),
    ],
)
def test_series_are_chosen_by_uid_or_description(mixed, chosen, numbers):
    """A reformation is passed over beside what it was made of, unless it alone is meant."""
    add_series(mixed / "b", "1.2.3.3", 4, "MPR 3,0", t00200037=CORONAL, change=across)
    add_series(mixed / "c", "1.2.3.4", 5, "Head 3,0 (2)")
    if chosen == ["3.0"]:
        numbers = [3]  # no regular expression
    found = listed(mixed, series=chosen)
    got = [int(found_in(mixed / name)) for name in found]
    assert sorted(got) == numbers


def found_in(path):
    return volume_loader()(path)[0].min() + 1000


def test_pattern_that_matches_nothing_lists_what_there_is(mixed):
    with pytest.raises(ValueError, match=r"series \(--series\) 'liver' is none of the series in") as error:
        list_volumes(mixed, series=["abdomen", "liver"])
    lines = str(error.value).splitlines()[1:]
    assert lines == [
        '  DICOM: series 2 "Thorax 1.0 B70f" (CT, 6 images, 1.2.3.1)',
        '  DICOM: series 3 "Abdomen 3.0" (CT, 6 images, 1.2.3.2)',
    ]


# Several volumes under one UID


@pytest.mark.parametrize("tag", [ACQUISITION, KERNEL, 0x00181060, 0x00200100, 0x00180086, KIND])
def test_series_of_several_volumes_is_divided_by_what_tells_them_apart(tmp_path, tag):
    """12 images at 6 places, in the order of time."""

    def change(n):
        phase = n // SHAPE[2]
        values = (hounsfield_of(n % SHAPE[2]) + 1024 + phase).astype("<u2").tobytes()
        text = f"ORIGINAL\\PRIMARY\\M{phase}" if tag == KIND else str(phase + 1)
        return {tag: text, 0x7FE00010: values, POSITION: slice_tags(n % SHAPE[2])[POSITION]}

    add_series(tmp_path / "ct", "1.2.3.1", 7, slices=2 * SHAPE[2], change=change)
    names = listed(tmp_path)
    assert [name[-2:] for name in names] == ["-1", "-2"]
    check(tmp_path / names[0], 0)
    check(tmp_path / names[1], 1)
    with pytest.raises(ValueError, match=r"2 images at each of 6 places|mixes slices of different"):
        volume_loader()(tmp_path / "ct")
    [name] = listed(tmp_path, divided=False)
    np.testing.assert_array_equal(volume_loader(phase=2)(tmp_path / name)[0].numpy(), RIGHT + 1)


def test_interleaved_kernels_are_no_volume_of_half_the_spacing(tmp_path):
    def change(n):
        return {KERNEL: ["B30f", "B70f"][n % 2], POSITION: f"-20\\-30\\{n}"}

    add_series(tmp_path / "ct", "1.2.3.1", slices=6, change=change)
    names = listed(tmp_path)
    assert len(names) == 2
    assert [read_geometry(tmp_path / name)[1][2] for name in names] == [2.0, 2.0]
    add_series(tmp_path / "odd", "1.2.3.2", change=lambda n: {KERNEL: ["B30f", "B70f"][n == 5]})
    with pytest.raises(
        ValueError, match=r"mixes slices of different convolution kernel: 1\.2\.3\.2_5 has B70f, most"
    ):
        volume_loader()(tmp_path / "odd")


def test_attribute_that_counts_the_slices_divides_nothing(tmp_path):
    add_series(tmp_path / "ct", "1.2.3.1", 3, change=lambda n: {0x00200100: str(n), ACQUISITION: str(n)})
    assert listed(tmp_path) == ["ct"]
    check(tmp_path / "ct", 3)


def test_directions_under_one_uid_are_divided_and_one_odd_slice_is_not(tmp_path):
    def change(n):
        return {AXES: CORONAL, **across(n)} if n >= SHAPE[2] else {}

    add_series(tmp_path / "ct", "1.2.3.1", 3, slices=SHAPE[2] + 4, change=change)
    assert listed(tmp_path) == ["ct"]  # the coronal images are another part
    check(tmp_path / "ct", 3)
    (tmp_path / "ct" / "1.2.3.1_9").unlink()
    (tmp_path / "ct" / "1.2.3.1_8").unlink()
    assert listed(tmp_path) == ["ct"]
    with pytest.raises(ValueError, match=r"different direction: 1\.2\.3\.1_6 has"):
        volume_loader()(tmp_path / "ct")


@pytest.mark.parametrize("tags", [{0x00280030: "0.8\\0.75"}, {AXES: "0.9998\\0.02\\0\\-0.02\\0.9998\\0"}])
def test_stack_whose_slices_disagree_is_no_two_volumes(tmp_path, tags):
    add_series(tmp_path / "ct", "1.2.3.1", change=lambda n: tags if n % 2 else {})
    assert listed(tmp_path) == ["ct"]
    with pytest.raises(ValueError, match="mixes slices of different"):
        volume_loader()(tmp_path / "ct")


def test_frames_of_several_phases_are_divided(tmp_path):
    tags = enhanced_tags([*range(6), *range(6)])
    for n, frame in enumerate(tags[0x52009230]):
        frame[0x00209111] = [{0x00209128: np.uint32(n // 6 + 1).tobytes()}]
    (tmp_path / "ct").mkdir()
    (tmp_path / "ct" / "a").write_bytes(dicom_bytes(tags))
    names = listed(tmp_path)
    assert len(names) == 2
    for name in names:
        np.testing.assert_array_equal(volume_loader()(tmp_path / name)[0].numpy(), RIGHT)


# Several folders


def test_series_whose_files_lie_in_several_folders_is_one_scan(tmp_path):
    add_series(tmp_path / "pacs" / "all", "1.2.3.1", 5)
    for n, path in enumerate(sorted((tmp_path / "pacs" / "all").iterdir())):
        folder = tmp_path / "pacs" / f"{n % 3:02x}"
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
    [name] = listed(tmp_path)
    assert re.fullmatch(r"pacs/series-5-[0-9a-f]{8}", name)
    volume = check(tmp_path / name, 5)
    assert '"00/1.2.3.1_0"' in volume.meta["sections"]


def test_copies_and_phases_in_folders_of_their_own_stay_apart(tmp_path):
    add_series(tmp_path / "a", "1.2.3.1", 1)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    add_series(tmp_path / "c", "1.2.3.2", 1)
    add_series(tmp_path / "d", "1.2.3.2", 1, change=lambda n: {0x00080018: f"1.2.3.2.{n + 100}"})
    assert listed(tmp_path) == ["a", "b", "c", "d"]


def test_damage_stops_the_series_that_it_is_of_and_no_other(mixed):
    names = listed(mixed)
    path = mixed / "DICOM" / "IM_43"
    path.write_bytes(path.read_bytes()[:-9])  # of series 2
    assert listed(mixed) == names
    check(mixed / names[1], 3)
    with pytest.raises(ValueError, match=r"IM_43 is truncated or damaged: its pixels are longer"):
        volume_loader()(mixed / names[0])
    path.write_bytes(b"")  # of whichever
    for name in names:
        with pytest.raises(ValueError, match=r"IM_43 cannot be read as a slice.*it is empty"):
            volume_loader()(mixed / name)


def test_slice_that_names_another_series_stops_the_stack_that_it_continues(tmp_path):
    write_slices(tmp_path / "ct", lambda n: {"t0020000e": "1.2.33"} if n == 5 else {})
    names = listed(tmp_path)
    for name in names:
        with pytest.raises(ValueError, match=r"IM0005\.dcm lies where the next slice of another series"):
            volume_loader()(tmp_path / name)


# Headers are read once


def test_header_is_parsed_once_until_its_file_changes(mixed, monkeypatch):
    old = time.time() - 60
    for path in (mixed / "DICOM").iterdir():
        os.utime(path, (old, old))
    parsed, parse = [], headers.parse
    monkeypatch.setattr(headers, "parse", lambda content: parsed.append(1) or parse(content))
    for name in listed(mixed):
        check_volume(str(mixed / name))
        volume_loader()(mixed / name)
    assert len(parsed) == 12
    path = mixed / "DICOM" / "IM_43"
    path.write_bytes(dicom_bytes(slice_tags(4, "1.2.3.1", t00180050="9")))
    listed(mixed)
    assert len(parsed) == 13


# A CD as pydicom writes it


@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")  # of pydicom's FileSet
def test_file_set_with_its_directory_is_read_series_by_series(mixed, tmp_path, caplog):
    pydicom = pytest.importorskip("pydicom", reason='pip install -e ".[test]"')
    from pydicom.fileset import FileSet

    names, medium = listed(mixed), FileSet()
    for path in (mixed / "DICOM").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.PatientID, dataset.StudyDate, dataset.StudyTime, dataset.StudyID = (
            "1",
            "20200101",
            "1200",
            "1",
        )
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        medium.add(dataset)
    medium.write(tmp_path / "written")
    del medium
    gc.collect()
    with caplog.at_level(logging.WARNING, "monai_unetpp"):
        folders = listed(tmp_path / "written")
    assert len(folders) == len(names) == 2
    assert all(re.fullmatch(r"PT000000/ST000000/SE00000\d", name) for name in folders)
    assert sorted(found_in(tmp_path / "written" / name) for name in folders) == [2, 3]
    assert "DICOMDIR (a directory)" in caplog.text
    assert "not there" not in caplog.text
    lost = sorted((tmp_path / "written" / folders[1]).iterdir())[-1]
    lost.unlink()
    list_volumes(tmp_path / "written")
    assert (
        f"DICOMDIR names 1 files that are not there, first {folders[1]}/{lost.name}: slices may"
        in caplog.text
    )
