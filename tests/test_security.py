# SPDX-License-Identifier: Apache-2.0
"""Files of others are data: no code in them is run, and no name in them leads out of a folder."""

import gzip
import json
import logging
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from dicom import write_series
from ignite.engine import Engine
from monai.data import ImageReader
from torch import nn

from bundles import AFFINES, BUNDLES, TINY, Payload, raises_within, run, write_balls
from monai_unetpp import load_network
from monai_unetpp.__main__ import main
from monai_unetpp.bundle import pack_bundle
from monai_unetpp.data import read_dataset
from monai_unetpp.data.decathlon import Case, write_case, write_index
from monai_unetpp.data.sources.lidc import ball_labels, find_scans, write_lidc
from monai_unetpp.data.sources.slices import write_slices
from monai_unetpp.files import result_path
from monai_unetpp.handlers import CheckpointLoader, NetworkLoader
from monai_unetpp.levels import read_calibration
from monai_unetpp.segment import segment
from monai_unetpp.transforms import LoadImageAndLabeld
from monai_unetpp.weights import prune_weights, read_tensors

LIVER = BUNDLES / "liver"
SETTINGS = {**TINY, "channels": [4, 8]}
SETS = [text for key, value in SETTINGS.items() for text in ("--set", key, json.dumps(value))]


def below(folder):
    """All that is in a folder, by its path in it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


# Code in weights


def in_bundle(name, use):
    def read(path, folder, data, _):
        source = {"input": str(data / "imagesTr")} if use == "inference" else {"dataset_dir": str(data)}
        run(name, use, folder / "root", ckpt_path=str(path), **SETTINGS, out_channels=3, **source)

    return read


def resume(path, folder, data, _):
    models = folder / "root" / "models"
    models.mkdir(parents=True)
    shutil.copy(path, models / "checkpoint_epoch=1.pt")
    run("liver", "train", folder / "root", dataset_dir=str(data), resume=True)


def folder_loader(path, folder, *_):
    models = folder / "models"
    models.mkdir()
    shutil.copy(path, models / "checkpoint_epoch=1.pt")
    CheckpointLoader(str(models), {"model": nn.Linear(1, 1)})(Engine(lambda *_: None))


def network_loader(path, _folder, _data, tiny):
    engine = Engine(lambda *_: None)
    engine.state.device = torch.device("cpu")
    NetworkLoader(str(path), tiny())(engine)


def calibration(path, *_):
    shutil.copy(path, path.with_suffix(".json"))
    read_calibration(path)


PLACES = {
    "read_tensors": lambda path, *_: read_tensors(path),
    "load_network": lambda path, _f, _d, tiny: load_network(tiny(), path),
    "prune_weights": lambda path, folder, *_: prune_weights(path, 1, folder / "out.pt"),
    "pack_bundle": lambda path, folder, *_: pack_bundle(LIVER, path, folder / "packed"),
    "CheckpointLoader": lambda path, *_: CheckpointLoader(str(path), {"model": nn.Linear(1, 1)})(
        Engine(lambda *_: None)
    ),
    "CheckpointLoader-folder": folder_loader,
    "NetworkLoader": network_loader,
    "read_calibration": calibration,
    "segment": lambda path, folder, data, _: segment(
        data / "imagesTr", folder / "out", LIVER, ckpt_path=str(path), **SETTINGS
    ),
    "resume": resume,
    **{
        f"{bundle}-{use}": in_bundle(bundle, f"train {use}" if use != "inference" else use)
        for bundle in ("liver", "lung_nodule")
        for use in ("inference", "evaluate", "levels")
    },
}
COMMANDS = {
    "prune": ["prune", "--checkpoint", "PATH", "--level", "1", "--out", "OUT"],
    "pack": ["pack", str(LIVER), "--checkpoint", "PATH", "--out", "OUT"],
    "segment": ["segment", "-i", "SCANS", "-o", "OUT", "--bundle", str(LIVER), "--checkpoint", "PATH", *SETS],
}
FORMS = pytest.mark.parametrize("zipped", [True, False], ids=["torch-save", "pickle"])


def plant(path, marker, zipped):
    """Write weights that make ``marker`` where they are unpickled."""
    content = {"model": Payload(marker)}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    return path


@FORMS
@pytest.mark.parametrize("place", PLACES)
def test_code_in_weights_is_not_run_and_the_file_is_named(balls, tmp_path, tiny, place, zipped):
    path, marker = plant(tmp_path / "model.pt", tmp_path / "ran", zipped), tmp_path / "ran"
    named = {"read_calibration": r"model\.json is damaged"}.get(place, r"model\.pt is refused: .* no code")
    if place in ("resume", "CheckpointLoader-folder"):
        named = r"models/checkpoint_epoch=1\.pt is refused: .* no code"
    with raises_within(ValueError, rf"^{re.escape(str(tmp_path))}/.*{named}"):
        PLACES[place](path, tmp_path, balls, tiny)
    assert not marker.exists()
    pickle.loads(pickle.dumps({"model": Payload(marker)}))  # what would have happened
    assert marker.exists()


@FORMS
@pytest.mark.parametrize("name", COMMANDS)
def test_command_refuses_weights_with_code_in_one_line(balls, tmp_path, capsys, name, zipped):
    path, marker = plant(tmp_path / "model.pt", tmp_path / "ran", zipped), tmp_path / "ran"
    known = {"PATH": str(path), "OUT": str(tmp_path / "out"), "SCANS": str(balls / "imagesTr")}
    with pytest.raises(SystemExit) as end:
        main([known.get(argument, argument) for argument in COMMANDS[name]])
    error = capsys.readouterr().err.split("error: ")[-1]
    assert end.value.code == 2
    assert error.startswith(f"{path} is refused: ")
    assert error.count("\n") == 1
    assert not marker.exists()


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_arrays_of_numpy_are_no_volumes_for_they_can_hold_code(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("np.load"))  # MONAI 1.5 unpickles in it
    path = tmp_path / f"scan.{suffix}"
    path.write_bytes(b"\x93NUMPY" + pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(ValueError, match=rf"scan\.{suffix} cannot be read"):
        LoadImageAndLabeld("image")({"image": str(path)})
    assert not (tmp_path / "ran").exists()


def test_every_reader_of_volumes_is_known_not_to_unpickle():
    names = {type(reader).__name__ for reader in LoadImageAndLabeld("image").load.readers}
    assert "NumpyReader" not in names
    assert all(isinstance(reader, ImageReader) for reader in LoadImageAndLabeld("image").load.readers)


@pytest.mark.parametrize("where", ["scans", "bundle", "output", "weights"])
def test_a_path_that_begins_as_an_expression_is_a_path(balls, trained, tmp_path, monkeypatch, where):
    """Configurations run what begins with ``$``; names of files come from others."""
    monkeypatch.chdir(tmp_path)
    evil = "$open('ran', 'w').close() or '.'"
    paths = {"scans": "scans", "bundle": "liver", "output": "out", "weights": "model.pt"} | {where: evil}
    (tmp_path / paths["scans"]).mkdir()
    shutil.copy(balls / "imagesTr" / "RAS.nii.gz", paths["scans"])
    shutil.copytree(LIVER, paths["bundle"])
    shutil.copy(trained / "models" / "model.pt", paths["weights"])
    arguments = ["-i", paths["scans"], "-o", paths["output"], "--bundle", paths["bundle"]]
    main(["segment", *arguments, "--checkpoint", paths["weights"], *SETS])
    assert (tmp_path / paths["output"] / "RAS_seg.nii.gz").is_file()
    assert not (tmp_path / "ran").exists()


# Names that lead out of a folder


@pytest.fixture
def data(tmp_path):
    """A data set of its own, and a file outside of it."""
    folder = write_balls(tmp_path / "data")
    shutil.copy(folder / "imagesTr" / "RAS.nii.gz", tmp_path / "secret.nii.gz")
    return folder


def name_instead(data, image):
    """Let the first case of a data set name another image."""
    index = json.loads((data / "dataset.json").read_text())
    index["training"][0]["image"] = image
    (data / "dataset.json").write_text(json.dumps(index))


def absolute(data):
    name_instead(data, str(data.parent / "secret.nii.gz"))


def dots(data):
    name_instead(data, "imagesTr/../../secret.nii.gz")


def link(data):
    (data / "imagesTr" / "RAS.nii.gz").unlink()
    (data / "imagesTr" / "RAS.nii.gz").symlink_to(data.parent / "secret.nii.gz")


def linked_folder(data):
    (data / "imagesTr").rename(data.parent / "elsewhere")
    (data / "imagesTr").symlink_to(data.parent / "elsewhere", target_is_directory=True)


def test_link_that_goes_round_is_a_file_that_does_not_exist(data):
    (data / "imagesTr" / "RAS.nii.gz").unlink()
    (data / "imagesTr" / "RAS.nii.gz").symlink_to("RAS.nii.gz")
    with pytest.raises(FileNotFoundError, match=r"names 1 files that do not exist, first .*RAS\.nii\.gz"):
        read_dataset(data, 3)


@pytest.mark.parametrize("way", [absolute, dots, link, linked_folder], ids=lambda way: way.__name__)
def test_data_set_may_name_files_outside_of_its_folder_on_request_only(data, way):
    way(data)
    number = 4 if way is linked_folder else 1
    message = (
        rf"dataset\.json names {number} files outside of its folder, first .*\.nii\.gz: move them into it.*"
        r"allow_outside=True \(plan --allow-outside; of a bundle --dataset#allow_outside True\)\.$"
    )
    with pytest.raises(ValueError, match=message):
        read_dataset(data, 3)
    assert len(read_dataset(data, 3, allow_outside=True).cases) == 4


def test_bundles_refuse_files_outside_of_the_data_set_and_take_the_switch(data, tmp_path):
    dots(data)
    with raises_within(ValueError, "files outside of its folder"):
        run("liver", "train", tmp_path / "root", dataset_dir=str(data))
    more = {"dataset#allow_outside": True, "max_epochs": 1}
    run("liver", "train", tmp_path / "root", dataset_dir=str(data), **more)
    assert (tmp_path / "root" / "models" / "model.pt").is_file()


@pytest.mark.parametrize("where", ["relative", "link-to-it", "links-within", "absolute-within"])
def test_data_set_may_be_reached_by_links_and_hold_links_within(data, tmp_path, monkeypatch, where):
    folder = data
    if where == "relative":
        monkeypatch.chdir(tmp_path)
        folder = Path("data")
    elif where == "link-to-it":
        folder = tmp_path / "link"
        folder.symlink_to(data, target_is_directory=True)
    elif where == "links-within":
        (data / "imagesTr").rename(data / "ct")
        (data / "imagesTr").symlink_to("ct", target_is_directory=True)
    else:
        name_instead(data, str(data / "imagesTr" / "RAS.nii.gz"))
    assert len(read_dataset(folder, 3).cases) == len(AFFINES)


@pytest.mark.parametrize(
    "image", [3, ["a.nii.gz", "b.nii.gz"], None, {"a": 1}], ids=["number", "list", "null", "object"]
)
def test_what_is_no_path_is_refused(data, image):
    name_instead(data, image)
    with pytest.raises(ValueError, match="must name an image and a label for every training case"):
        read_dataset(data, 3)


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", "..\\x", "c:x", ""])
def test_a_case_has_the_name_of_a_file(tmp_path, name):
    out = tmp_path / "a" / "out"
    case = Case(name, np.zeros((2, 2, 2), np.int16), np.zeros((2, 2, 2), np.uint8), np.eye(4))
    with pytest.raises(ValueError, match=f"name of a case must be a file name.* got {re.escape(repr(name))}"):
        write_case(out, case)
    with pytest.raises(ValueError, match="name of a case must be a file name"):
        write_index(out, [name], name="x", description="x", labels={"0": "a"})
    assert below(tmp_path) == set()


def lung_planes():
    """Slices that pass for a chest in HU."""
    plane = np.full((12, 12), -800, np.int16)
    plane[4:7, 4:7] = 50
    return [(2.0 * n, plane) for n in range(6)]


@pytest.mark.parametrize("way", ["header", "argument"])
def test_series_whose_uid_leads_out_of_the_folder_does_not(tmp_path, way):
    """SimpleITK takes separators out of what a header says; a dictionary can still say anything."""
    uid = "../../../x"
    folder = write_series(tmp_path / "dicom" / "a", lung_planes(), more={"0020|000e": uid})
    assert uid.encode() in (folder / "1.2.3_00.dcm").read_bytes()
    scans = find_scans(tmp_path / "dicom") if way == "header" else {uid: folder}
    [taken] = scans
    table = tmp_path / "annotations.csv"
    table.write_text(f"seriesuid,coordX,coordY,coordZ,diameter_mm\n{taken},-17,-27,4,4\n")
    before = below(tmp_path)
    [row] = write_lidc(scans, ball_labels(table), tmp_path / "out" / "deep" / "er", progress=False)
    new = {path for path in below(tmp_path) - before if (tmp_path / path).is_file()}
    assert all(path.startswith("out/deep/er/") for path in new)
    if way == "argument":
        assert row.reason.startswith("error: name of a case must be a file name")
        assert new == {"out/deep/er/nodules.csv", "out/deep/er/begun.json"}


def test_patient_whose_name_leads_out_of_the_folder_does_not(trained, tmp_path):
    """The results are named after files and folders, of which none can hold a separator."""
    tags = {"0010|0010": "../../x", "0010|0020": "../../x"}
    write_series(tmp_path / "scans" / "x..", lung_planes(), more={**tags, "0020|000e": "../../x"})
    before = below(tmp_path)
    weights = str(trained / "models" / "model.pt")
    [outcome] = segment(tmp_path / "scans", tmp_path / "a" / "out", LIVER, ckpt_path=weights, **SETTINGS)
    assert outcome.reason == ""
    new = {path for path in below(tmp_path) - before if (tmp_path / path).is_file()}
    assert new == {"a/out/x.._seg.nii.gz", "a/out/x.._seg.json", "a/out/.locks/x.._seg.nii.gz.lock"}


def test_slices_of_a_scan_with_a_strange_name_stay_in_the_folder(tmp_path):
    import SimpleITK as sitk  # noqa: N813

    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        picture = sitk.GetImageFromArray(255 * np.eye(4, dtype=np.uint8))
        sitk.WriteImage(picture, str(tmp_path / kind / "liver_..\\..\\x_1.png"))
    with pytest.raises(ValueError, match="name of a case must be a file name"):
        write_slices(tmp_path / "images", tmp_path / "masks", tmp_path / "a" / "out")
    assert {path for path in below(tmp_path) if path.endswith("nii.gz")} == set()


def test_result_of_a_scan_that_is_not_below_the_root_lies_flat():
    assert result_path("scans/../ward/ct.nii.gz", "out", "scans") == Path("out/ct_seg.nii.gz")
    assert result_path("scans/a/../ct.nii.gz", "out", "scans") == Path("out/ct_seg.nii.gz")
    assert result_path("/other/ct.nii.gz", "out", "scans") == Path("out/ct_seg.nii.gz")


# What a DICOM header says of the patient

PRIVATE = {
    "0010|0010": "Zappelin^Xaverine",
    "0010|0020": "PID-7431-Q",
    "0010|0030": "19480229",
    "0010|1000": "OTHER-8812",
    "0008|0020": "20190817",
    "0008|0050": "ACC-55512",
    "0008|0080": "Klinik am Quellenhof",
    "0008|0090": "Referrer^Odalric",
    "0008|1030": "Study of Xaverine",
    "0010|4000": "comment-jjqz",
    "0009|0010": "GEMS_IDEN_01",
    "0009|1001": "private-kwxv",
}
SAID = {word for value in PRIVATE.values() for word in (value, *value.split("^"))}


def plain_bytes(path):
    """What is in a file, unpacked."""
    content = path.read_bytes()
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


def words_of_the_patient(content):
    return {word for word in SAID if word.encode() in content}


@pytest.fixture
def series(tmp_path, balls):
    """Three series whose headers tell of a patient: one that is whole, one without a slice, one cut off."""
    import nibabel as nib

    volume = np.asarray(nib.load(balls / "imagesTr" / "RAS.nii.gz").dataobj)
    planes = [(4.0 * z, plane) for z, plane in enumerate(np.moveaxis(volume, -1, 0))]
    folder = tmp_path / "scans"
    for name in ("whole", "gap", "cut", "two"):
        write_series(folder / name, planes, pixel=4.0, more=PRIVATE)
    (folder / "gap" / "1.2.3_05.dcm").unlink()
    cut = folder / "cut" / "1.2.3_05.dcm"
    cut.write_bytes(cut.read_bytes()[:-700])
    write_series(folder / "two", planes, uid="1.2.4", pixel=4.0, more=PRIVATE)
    written = (folder / "whole" / "1.2.3_00.dcm").read_bytes()
    assert words_of_the_patient(written) >= {"Zappelin", "PID-7431-Q", "19480229", "Klinik am Quellenhof"}
    assert words_of_the_patient(written) >= {"private-kwxv", "20190817", "ACC-55512"}
    return folder


@pytest.mark.parametrize("level", [logging.INFO, logging.DEBUG], ids=logging.getLevelName)
def test_nothing_that_dicom_says_of_the_patient_is_in_results_or_messages(
    series, tmp_path, caplog, capfd, level
):
    pytest.importorskip("matplotlib")
    from monai_unetpp import UNetPlusPlus

    torch.manual_seed(0)
    torch.save(UNetPlusPlus(3, 1, 3, channels=[4, 6, 8], strides=2).state_dict(), tmp_path / "model.pt")
    more = ["--probability", "1", "--uncertainty", "--sheets", *SETS, "--set", "channels", "[4, 6, 8]"]
    places = ["-i", series, "-o", tmp_path / "out", "--bundle", LIVER, "--checkpoint", tmp_path / "model.pt"]
    with caplog.at_level(level), pytest.raises(SystemExit):
        main(["segment", *map(str, places), *more])
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {path.name for path in files if "whole" in path.name and path.suffix != ".lock"} == {
        *("whole_seg.nii.gz", "whole_seg.json", "whole_probability.nii.gz", "whole_uncertainty.nii.gz"),
        "whole_sheet.png",
    }
    assert {*files} >= {tmp_path / "out" / "uncertainty.csv"}
    for path in files:
        assert words_of_the_patient(plain_bytes(path)) == set(), path
        assert words_of_the_patient(str(path).encode()) == set()
    said = capfd.readouterr()
    assert "3 segmented, 2 failed." in said.err
    for text in (said.out, said.err, caplog.text):
        assert words_of_the_patient(text.encode()) == set()


def test_data_set_of_nodules_holds_the_series_uid_and_no_more_of_the_header(tmp_path):
    write_series(tmp_path / "dicom" / "a", lung_planes(), more=PRIVATE)
    table = tmp_path / "annotations.csv"
    table.write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\n1.2.3,-17,-27,4,4\n")
    out = tmp_path / "out"
    places = ["--dicom", tmp_path / "dicom", "--annotations", table, "--out", out]
    main(["lidc", *map(str, places)])
    assert (out / "nodules.csv").read_text().splitlines()[1].startswith("1.2.3,1,")
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {*("begun.json", "nodules.csv", "dataset.json", "1.2.3.nii.gz")}
    for path in files:
        assert words_of_the_patient(plain_bytes(path)) == set(), path


# What others ship


def test_every_dependency_has_a_lower_bound():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((BUNDLES.parent / "pyproject.toml").read_text())
    listed = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    listed += [name for extra in project["project"]["optional-dependencies"].values() for name in extra]
    without = [name for name in listed if ">=" not in name and not name.startswith("monai-unetpp[")]
    assert without == []
