# SPDX-License-Identifier: Apache-2.0
"""python -m monai_unetpp segment --format dicom-seg dicom-rtstruct: complete or absent."""

import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from dicom import write_series
from processes import python

from bundles import BUNDLES, DEEP, TINY
from monai_unetpp import UNetPlusPlus
from monai_unetpp.__main__ import main
from monai_unetpp.files import stale_parts
from monai_unetpp.readers import volume_loader
from monai_unetpp.segment import segment

pydicom = pytest.importorskip("pydicom", reason='pip install -e ".[test]"')
pytest.importorskip("highdicom", reason='pip install -e ".[dicom]"')

LIVER = BUNDLES / "liver"
SETTINGS = {**TINY, "channels": DEEP}
FRAME = "1.2.840.99.7"

pytestmark = pytest.mark.slow


@pytest.fixture
def scan(balls, tmp_path):
    """A DICOM series of one of the balls, in a folder that a parser of paths could trip over."""
    values = np.asarray(nib.load(balls / "imagesTr" / "LPS.nii.gz").dataobj)
    planes = [(4.0 * z, plane) for z, plane in enumerate(np.moveaxis(values, -1, 0))]
    more = {"0020|0052": FRAME, "0010|0010": "Anon^Test"}
    return write_series(tmp_path / "scans" / "ct#1", planes, pixel=4.0, more=more)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights that were not trained and find every class."""
    torch.manual_seed(2)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(UNetPlusPlus(3, 1, 3, channels=DEEP, strides=2).state_dict(), path)
    return str(path)


def segment_here(source, out, weights, **more):
    return segment(source, out, LIVER, ckpt_path=weights, **{**SETTINGS, **more})


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file())


BOTH = ["dicom-seg", "dicom-rtstruct"]
FILES = ["ct#1_rtstruct.dcm", "ct#1_seg.dcm", "ct#1_seg.json", "ct#1_seg.nii.gz"]


def as_volume(seg, folder):
    """The label map (X, Y, Z) that a SEG of BINARY is, in the order of our reader."""
    volume = volume_loader()(folder)
    heights = [float(volume.affine[2, 2] * z + volume.affine[2, 3]) for z in range(volume.shape[-1])]
    found = np.zeros(volume.shape[1:], np.uint8)
    for frame, group in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        z = int(np.argmin(np.abs(np.array(heights) - group.PlanePositionSequence[0].ImagePositionPatient[2])))
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        found[..., z] += frame.T * np.uint8(number)
    return found


def test_segment_writes_dicom_beside_nifti_with_the_same_voxels(scan, out, weights):
    [outcome] = segment_here(scan.parent, out, weights, formats=["nifti", *BOTH])
    assert (outcome.state, outcome.reason) == ("done", "")
    assert names(out) == FILES
    seg = pydicom.dcmread(out / "ct#1_seg.dcm")
    mask = np.asarray(nib.load(out / "ct#1_seg.nii.gz").dataobj)
    assert {*np.unique(mask)} >= {1, 2}
    np.testing.assert_array_equal(as_volume(seg, scan), mask)
    [kind] = seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence
    assert re.fullmatch(r"\d\S* L2 float32 w=[0-9a-f]{12}", kind.AlgorithmVersion)
    assert kind.AlgorithmName == "monai-unetpp liver"
    said = json.loads((out / "ct#1_seg.json").read_text())
    assert seg.DeviceSerialNumber == said["weights"][:16]
    assert (seg.Manufacturer, seg.ManufacturerModelName) == ("monai-unetpp contributors", "monai-unetpp")


def test_dicom_alone_is_complete_and_is_not_done_again(scan, out, weights):
    [outcome] = segment_here(scan.parent, out, weights, formats=BOTH)
    assert (outcome.state, outcome.mask) == ("done", str(out / "ct#1_seg.dcm"))
    assert names(out) == FILES[:3]
    assert dict(outcome.volumes).keys() >= {"liver", "tumour"}
    before = (out / "ct#1_seg.dcm").read_bytes()
    assert [o.state for o in segment_here(scan.parent, out, weights, formats=BOTH)] == ["skipped"]
    (out / "ct#1_rtstruct.dcm").unlink()
    assert [o.state for o in segment_here(scan.parent, out, weights, formats=["dicom-seg"])] == ["skipped"]
    assert (out / "ct#1_seg.dcm").read_bytes() == before
    assert [o.state for o in segment_here(scan.parent, out, weights, formats=BOTH)] == ["done"]
    assert [o.state for o in segment_here(scan.parent, out, weights)] == ["done"]
    assert names(out) == FILES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"level": 1}, r"ct#1_seg\.dcm exists and was made with level 'L2', now 'L1': name another output"),
        ({"seg_type": "labelmap"}, r"ct#1_seg\.dcm exists and was made with the header 'monai-unetpp .* s="),
        ({"empty_frames": True}, "the header 'monai-unetpp"),
    ],
    ids=["level", "type", "frames"],
)
def test_dicom_of_other_settings_is_named_and_not_taken(scan, out, weights, settings, message):
    segment_here(scan.parent, out, weights, formats=["dicom-seg"])
    before = (out / "ct#1_seg.dcm").read_bytes()
    [outcome] = segment_here(scan.parent, out, weights, formats=["dicom-seg"], **settings)
    assert outcome.state == "failed"
    assert re.search(message, outcome.reason), outcome.reason
    assert (out / "ct#1_seg.dcm").read_bytes() == before
    [outcome] = segment_here(scan.parent, out, weights, formats=["dicom-seg"], overwrite=True, **settings)
    assert outcome.state == "done"
    [outcome] = segment_here(scan.parent, out, weights, formats=["dicom-seg"], **settings)
    assert outcome.state == "skipped"


def test_file_that_is_no_dicom_is_not_taken_for_a_result(scan, out, weights):
    segment_here(scan.parent, out, weights, formats=["dicom-seg"])
    (out / "ct#1_seg.dcm").write_bytes(b"something else")
    [outcome] = segment_here(scan.parent, out, weights, formats=["dicom-seg"])
    assert outcome.state == "failed"
    assert re.search(r"ct#1_seg\.dcm exists and does not say what made it \(.*--overwrite", outcome.reason)
    assert (out / "ct#1_seg.dcm").read_bytes() == b"something else"


def test_nifti_input_is_refused_with_the_reason_and_stops_no_series(scan, balls, out, weights):
    shutil.copy(balls / "imagesTr" / "RAS.nii.gz", scan.parent)
    bad, good = segment_here(scan.parent, out, weights, formats=["dicom-seg"])
    assert (good.state, bad.state) == ("done", "failed")
    assert re.search(
        r"RAS\.nii\.gz must be a folder with a DICOM series for --format dicom-seg or dicom-rtstruct: these "
        r"refer to the images .* or ask for --format nifti alone",
        bad.reason,
    )
    assert names(out) == ["ct#1_seg.dcm", "ct#1_seg.json"]


def test_results_of_several_series_in_one_folder_refer_each_to_its_own(scan, out, weights, capsys):
    """Two series of one study share a folder and their places; a report and a localizer lie beside them."""
    folder = scan.parent / "all"
    origins = {}
    for number in ("1", "2"):
        for path in sorted(scan.iterdir()):
            image = pydicom.dcmread(path)
            image.SeriesNumber, image.SeriesInstanceUID = number, f"1.2.3.{number}"
            image.SOPInstanceUID = f"{image.SOPInstanceUID}.{number}"
            image.SeriesDescription = "Lung" if number == "2" else "Doe^Jane abdomen"
            origins[image.SOPInstanceUID] = (number, image.ImagePositionPatient[2])
            folder.mkdir(exist_ok=True)
            image.save_as(folder / f"{path.stem[::-1]}{number}")
    image.SOPInstanceUID, image.ImageType = "1.2.9", ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    image.save_as(folder / "scout")
    shutil.rmtree(scan)
    outcomes = segment_here(scan.parent, out, weights, formats=["nifti", *BOTH])
    assert [outcome.state for outcome in outcomes] == ["done", "done"]
    stems = sorted(path.name.removesuffix("_seg.dcm") for path in (out / "all").glob("*_seg.dcm"))
    assert [re.fullmatch(r"series-(\d)-[0-9a-f]{8}", stem)[1] for stem in stems] == ["1", "2"]
    assert len(names(out / "all")) == 2 * len(FILES)
    for number, stem in zip("12", stems, strict=True):
        seg = pydicom.dcmread(out / "all" / f"{stem}_seg.dcm")
        np.testing.assert_array_equal(
            as_volume(seg, folder / stem), np.asarray(nib.load(out / "all" / f"{stem}_seg.nii.gz").dataobj)
        )
        for frame in seg.PerFrameFunctionalGroupsSequence:
            [source] = frame.DerivationImageSequence[0].SourceImageSequence
            place = frame.PlanePositionSequence[0].ImagePositionPatient[2]
            assert origins[source.ReferencedSOPInstanceUID] == (number, place)
        structures = pydicom.dcmread(out / "all" / f"{stem}_rtstruct.dcm")
        [study] = structures.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence
        [of] = study.RTReferencedSeriesSequence
        assert of.SeriesInstanceUID == f"1.2.3.{number}"
        images = [each.ReferencedSOPInstanceUID for each in of.ContourImageSequence]
        assert {origins[uid][0] for uid in images} == {number}
    assert [o.state for o in segment_here(scan.parent, out, weights, formats=BOTH)] == ["skipped"] * 2
    [outcome] = segment_here(scan.parent, out, weights, formats=BOTH, series=["LUNG"], overwrite=True)
    assert (outcome.state, Path(outcome.image).name) == ("done", stems[1])
    assert not any("Doe" in path.name for path in out.rglob("*"))
    places = ["-i", str(scan.parent), "-o", str(out), "--bundle", str(LIVER), "--checkpoint", weights]
    with pytest.raises(SystemExit):
        main(["segment", *places, *sets(), "--series", "liver"])
    assert 'all: series 2 "Lung" (CT, 24 images, 1.2.3.2)' in capsys.readouterr().err


def test_commands_of_the_page_on_scans_from_a_cd_run(scan, tmp_path, weights, monkeypatch, capsys, caplog):
    for path in sorted(scan.iterdir()):
        image = pydicom.dcmread(path)
        for number, name in ((2, "Thorax 1.0 B30f"), (3, "Abdomen 3.0")):
            image.SeriesNumber, image.SeriesDescription = number, name
            image.SeriesInstanceUID, image.SOPInstanceUID = (
                f"1.2.840.99.{number}",
                f"1.2.{number}{path.stem[-2:]}",
            )
            (tmp_path / "CD" / "DICOM").mkdir(parents=True, exist_ok=True)
            image.save_as(tmp_path / "CD" / "DICOM" / f"IM{number}{path.stem[-2:]}")
    monkeypatch.chdir(tmp_path)
    page = (BUNDLES.parent / "docs" / "how-to" / "dicom-in.md").read_text()
    lines = re.findall(r"^monai-unetpp (segment .*)$", page, flags=re.MULTILINE)
    assert len(lines) == 2
    for line, counts in zip(lines, ("2 segmented.", "2 had been done before."), strict=True):
        words = [str(LIVER) if word == "liver" else word for word in shlex.split(line)]
        main([*words, "--checkpoint", weights, *sets()])
        assert capsys.readouterr().out.startswith(counts)
        assert re.search(r'DICOM/series-2-\w{8}: series 2 "Thorax 1\.0 B30f" \(CT, 24 images, 1', caplog.text)
    assert len([*Path("OUT/DICOM").glob("series-*_seg.nii.gz")]) == 2


def sets():
    return [text for key, value in SETTINGS.items() for text in ("--set", key, json.dumps(value))]


def damaged(scan, what):
    files = sorted(scan.iterdir())
    if what == "missing":
        files[5].unlink()
    elif what == "copied":
        shutil.copy(files[5], scan / "again.dcm")
    else:
        files[5].write_bytes(files[5].read_bytes()[:700])


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", "ct#1 lacks a slice or is unevenly spaced: 8.00 mm between"),
        ("copied", "ct#1 holds two images at one place"),
        ("truncated", "truncated or damaged"),
    ],
)
def test_series_that_is_no_volume_leaves_no_dicom(scan, out, weights, what, message):
    damaged(scan, what)
    [outcome] = segment_here(scan.parent, out, weights, formats=BOTH)
    assert outcome.state == "failed"
    assert message in outcome.reason
    assert names(out) == []


@pytest.mark.parametrize("form", BOTH)
def test_full_disk_leaves_no_partial_dicom(scan, out, weights, form):
    resource = pytest.importorskip("resource", reason="Windows has no limit for a file's size")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))  # Python ignores the signal
    try:
        [outcome] = segment_here(scan.parent, out, weights, formats=[form])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert outcome.state == "failed"
    assert re.search(r"free some space, or write to another place: .*ct#1_\w+\.dcm", outcome.reason)
    assert names(out) == ["ct#1_seg.json"]
    assert stale_parts(out) == {}
    assert [o.state for o in segment_here(scan.parent, out, weights, formats=[form])] == ["done"]


def test_changes_of_the_postprocessing_are_in_dicom_as_well(scan, out, weights, tmp_path):
    """A bundle of one's own may change labels before they are written."""
    own = tmp_path / "own"
    shutil.copytree(LIVER, own, ignore=shutil.ignore_patterns("weights"))
    inference = json.loads((own / "inference.json").read_text())
    change = {"_target_": "MapLabelValued", "keys": "pred", "orig_labels": [2], "target_labels": [1]}
    inference["postprocessing"]["transforms"].insert(0, {**change, "dtype": "$torch.uint8"})
    (own / "inference.json").write_text(json.dumps(inference))
    [outcome] = segment(
        scan, out, own, formats=["nifti", "dicom-seg"], ckpt_path=weights, override_record=True, **SETTINGS
    )
    assert outcome.reason == ""
    mask = np.asarray(nib.load(out / "ct#1_seg.nii.gz").dataobj)
    assert mask.max() == 1
    np.testing.assert_array_equal(as_volume(pydicom.dcmread(out / "ct#1_seg.dcm"), scan), mask)


def test_classes_without_names_are_numbered(scan, out, weights, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(LIVER, own, ignore=shutil.ignore_patterns("weights", "metadata.json"))
    [outcome] = segment(scan, out, own, formats=["dicom-seg"], ckpt_path=weights, **SETTINGS)
    assert outcome.reason == ""
    segments = pydicom.dcmread(out / "ct#1_seg.dcm").SegmentSequence
    assert [each.SegmentLabel for each in segments] == ["class 1", "class 2"]


def test_command_takes_formats_and_says_what_is_wrong_with_them(scan, out, weights, capsys):
    arguments = [
        "segment",
        *map(str, ["-i", scan, "-o", out, "--bundle", LIVER, "--checkpoint", weights]),
        *sets(),
    ]
    main([*arguments, "--format", "nifti", "dicom-seg", "--seg-type", "labelmap", "--empty-frames"])
    assert "1 segmented." in capsys.readouterr().out
    seg = pydicom.dcmread(out / "ct#1_seg.dcm")
    assert (seg.SegmentationType, seg.NumberOfFrames) == ("LABELMAP", len([*scan.iterdir()]))
    for more, message in (
        (
            ["--format", "dicom"],
            "formats (--format) must be some of nifti, dicom-seg, dicom-rtstruct, got dicom.",
        ),
        (["--seg-type", "float"], "seg_type (--seg-type) must be binary or labelmap, got 'float'."),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, *more])
        assert stopped.value.code == 2
        assert capsys.readouterr().err.splitlines()[-1] == f"error: {message}"


def test_missing_extra_is_named_before_a_scan_is_read(scan, out, weights, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "highdicom" else found(name)
    )
    with pytest.raises(
        ModuleNotFoundError, match=r'highdicom is not installed: pip install "monai-unetpp\[dicom\]"'
    ):
        segment_here(scan, out, weights, formats=["dicom-seg"])
    assert not out.exists()
    assert segment_here(scan, out, weights)[0].state == "done"


def test_nothing_of_the_extra_is_imported_before_dicom_is_asked_for():
    code = "import sys, monai_unetpp.segment as _; print(*sys.modules, sep='\\n')"
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert "monai_unetpp.dicom_out.seg" in loaded
    assert [name for name in loaded if name.startswith("highdicom")] == []
