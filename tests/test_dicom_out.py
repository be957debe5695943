# SPDX-License-Identifier: Apache-2.0
"""DICOM SEG and RTSTRUCT, read back by others than the libraries that wrote them.

dcmqi, SimpleITK, plastimatch, pydicom and scikit-image find the mask voxel by voxel on the grid of the
series, however it lies and in whatever order its files are.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from dicom import (
    IMPLICIT,
    SHAPE,
    SPACING,
    dicom_bytes,
    enhanced_tags,
    write_slices,
)
from skimage.draw import polygon2mask

from bundles import config, rotation
from monai_unetpp.readers import volume_loader

pydicom = pytest.importorskip("pydicom", reason='pip install -e ".[test]"')
pytest.importorskip("highdicom", reason='pip install -e ".[dicom]"')

from pydicom.sr.codedict import codes  # noqa: E402

from monai_unetpp.dicom_out import (  # noqa: E402
    Algorithm,
    find_segments,
    read_series,
    write_rtstruct,
    write_seg,
)
from monai_unetpp.dicom_out.outlines import find_outlines  # noqa: E402

FRAME = "1.2.840.99.7"
ALGORITHM = Algorithm("monai-unetpp liver", "0.1 L2 float32 w=0123", "0.1", "0123", "monai-unetpp 0.1 s=1")
NAMES = ["background", "liver", "tumour"]
CODES = config("liver", "metadata")["segment_codes"]
SEGMENTS = find_segments(NAMES, None, CODES)

pytestmark = pytest.mark.slow


# Series that lie in every way


def placed(axes, step, order=range(SHAPE[2]), origin=(-20.0, -30.0, -40.0)):
    """What ``write_slices`` changes for slice ``n`` of these axes, at ``origin + order[n] * step``."""

    def change(n):
        place = np.array(origin) + list(order)[n] * np.array(step)
        return {
            "t00200052": FRAME,
            "t00200032": "\\".join(f"{value:.10g}" for value in place),
            "t00200037": "\\".join(f"{value:.10g}" for value in np.ravel(axes)),
        }

    return change


FLAT = np.eye(3)[:2]
TURNED = (rotation(20, 2) @ rotation(10, 0))[:, :2].T
TILT = np.array([[1, 0, 0], [0, np.cos(0.3), -np.sin(0.3)]])  # the gantry leans by 17 degrees
GAP = SPACING[2]
GEOMETRY = {
    "plain": placed(FLAT, (0, 0, GAP)),
    "5-mm": lambda n: {**placed(FLAT, (0, 0, 5.0))(n), "t00180050": "5"},
    "oblique": placed(TURNED, GAP * np.cross(*TURNED)),
    "reversed": placed(FLAT, (0, 0, -GAP)),
    "shuffled": placed(FLAT, (0, 0, GAP), (3, 0, 5, 1, 4, 2)),
    "feet-first": placed(-FLAT, (0, 0, GAP)),
    "sagittal": placed([[0, 1, 0], [0, 0, -1]], (GAP, 0, 0)),
    "tilted-stack": placed(TILT, GAP * np.cross(*TILT)),
}
EVERY_GEOMETRY = pytest.mark.parametrize("name", GEOMETRY)


def mask_of(n):
    """What is found in slice ``n``, (rows, columns): noise and a ring with an island; nothing in 2."""
    rng = np.random.default_rng(n)
    found = ((rng.random(SHAPE[1::-1]) > 0.7) * rng.integers(1, 3, SHAPE[1::-1])).astype(np.uint8)
    found[1:8, 2:9] = 1
    found[3:6, 4:7] = 0
    found[4, 5] = 2
    return found * np.uint8(n != 2)


def number_of(plane):
    """The slice that a plane of HU is: its air says so, whoever read it."""
    return round(float(plane.min())) + 1000


def loaded(folder):
    """The series by our reader, and the label map in its order, as a network would give it."""
    volume = volume_loader()(folder)
    planes = [mask_of(number_of(volume[0, :, :, z])) for z in range(volume.shape[-1])]
    return read_series(folder, volume.meta["sections"]), np.stack([p.T for p in planes], axis=-1)


def by_itk(folder):
    """The series as SimpleITK orders it, and the masks of its slices (Z, Y, X)."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    return image, np.stack([mask_of(number_of(plane)) for plane in sitk.GetArrayFromImage(image)])


# SEG


def by_dcmqi(path, folder):
    """The images that dcmqi's own reader writes, with the values of segments."""
    pytest.importorskip("dcmqi", reason="pip install dcmqi")
    program = shutil.which("segimage2itkimage", path=str(Path(sys.executable).parent))
    folder.mkdir()
    command = [program, "--inputDICOM", path, "--outputDirectory", folder, "-t", "nrrd", "-p", "s"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads((folder / "s-meta.json").read_text())
    images = [sitk.ReadImage(str(each)) for each in sorted(folder.glob("*.nrrd"))]
    return images, [segment for group in said["segmentAttributes"] for segment in group]


@EVERY_GEOMETRY
@pytest.mark.parametrize("seg_type", ["binary", "labelmap"])
@pytest.mark.parametrize("empty_frames", [False, True], ids=["sparse", "all-frames"])
def test_seg_comes_back_by_dcmqi_voxel_by_voxel(tmp_path, name, seg_type, empty_frames):
    folder = write_slices(tmp_path / "scan#1", GEOMETRY[name])
    series, labels = loaded(folder)
    write_seg(tmp_path / "seg.dcm", labels, series, SEGMENTS, ALGORITHM, seg_type, empty_frames)
    image, expected = by_itk(folder)
    found = np.zeros_like(expected)
    images, said = by_dcmqi(tmp_path / "seg.dcm", tmp_path / "dcmqi")
    for each in images:
        on_grid = sitk.Resample(each, image, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
        found = np.maximum(found, sitk.GetArrayFromImage(on_grid).astype(np.uint8))
    np.testing.assert_array_equal(found, expected)
    assert {each["SegmentLabel"] for each in said} >= {"liver", "tumour"}


def check_frames(path, folder, seg_type="binary"):
    """Every frame is the mask of the image that it refers to, and lies where that lies, by pydicom."""
    seg = pydicom.dcmread(path)
    sources = {d.SOPInstanceUID: d for d in map(pydicom.dcmread, folder.iterdir())}
    seen = set()
    pixels = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    for frame, group in zip(pixels, seg.PerFrameFunctionalGroupsSequence, strict=True):
        [reference] = group.DerivationImageSequence[0].SourceImageSequence
        source = sources[reference.ReferencedSOPInstanceUID]
        assert reference.ReferencedSOPClassUID == source.SOPClassUID
        place = group.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(place, source.ImagePositionPatient, atol=1e-6)
        expected = mask_of(int(source.InstanceNumber) - 1)
        if seg_type == "binary":
            number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            expected = expected == number
            seen.add((source.SOPInstanceUID, number))
        np.testing.assert_array_equal(frame, expected)
    shared = seg.SharedFunctionalGroupsSequence[0]
    axes = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    np.testing.assert_allclose(axes, source.ImageOrientationPatient, atol=1e-6)
    np.testing.assert_allclose(shared.PixelMeasuresSequence[0].PixelSpacing, source.PixelSpacing)
    assert seg.FrameOfReferenceUID == FRAME
    [of] = seg.ReferencedSeriesSequence
    assert {each.ReferencedSOPInstanceUID for each in of.ReferencedInstanceSequence} == {*sources}
    return seg, seen


@EVERY_GEOMETRY
def test_frames_lie_where_the_images_lie_that_they_refer_to(tmp_path, name):
    folder = write_slices(tmp_path / "scan", GEOMETRY[name])
    series, labels = loaded(folder)
    write_seg(tmp_path / "seg.dcm", labels, series, SEGMENTS, ALGORITHM)
    _, seen = check_frames(tmp_path / "seg.dcm", folder)
    slices = [n for n in range(SHAPE[2]) if n != 2]
    assert seen == {(f"1.2.3.{n + 1}", number) for n in slices for number in (1, 2)}


SHEARED = placed(TILT, (0, 0, GAP))  # the table moves along z, the images lean


def test_slices_of_a_tilted_gantry_keep_their_places(tmp_path):
    folder = write_slices(tmp_path / "scan", SHEARED)
    series, labels = loaded(folder)
    series.check_places(volume_loader()(folder).affine.numpy())
    write_seg(tmp_path / "seg.dcm", labels, series, SEGMENTS, ALGORITHM)
    check_frames(tmp_path / "seg.dcm", folder)
    write_rtstruct(tmp_path / "rt.dcm", labels, series, SEGMENTS, ALGORITHM)
    check_structures(tmp_path / "rt.dcm", folder)


def test_label_map_has_a_frame_per_slice_and_empty_ones_on_request(tmp_path):
    folder = write_slices(tmp_path / "scan", GEOMETRY["shuffled"])
    series, labels = loaded(folder)
    counts = {}
    for kind in ("binary", "labelmap"):
        for empty in (False, True):
            write_seg(tmp_path / "seg.dcm", labels, series, SEGMENTS, ALGORITHM, kind, empty)
            seg, _ = check_frames(tmp_path / "seg.dcm", folder, kind)
            assert seg.SegmentationType == kind.upper()
            counts[kind, empty] = int(seg.NumberOfFrames)
    found = SHAPE[2] - 1  # slice 2 is empty
    assert counts == {
        ("binary", False): 2 * found,
        ("binary", True): 2 * SHAPE[2],
        ("labelmap", False): found,
        ("labelmap", True): SHAPE[2],
    }


def test_segments_are_named_and_coded(tmp_path):
    folder = write_slices(tmp_path / "scan", GEOMETRY["plain"])
    series, labels = loaded(folder)
    segments = find_segments(["background", "liver", "a thing of \\ a long name"], None, CODES)
    write_seg(tmp_path / "seg.dcm", labels, series, segments, ALGORITHM)
    first, second = pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence

    def code(sequence):
        return tuple(sequence[0][key].value for key in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning"))

    assert (first.SegmentLabel, second.SegmentLabel) == ("liver", "a thing of / a long name")
    assert code(first.SegmentedPropertyTypeCodeSequence) == ("10200004", "SCT", "Liver")
    category = code(first.SegmentedPropertyCategoryCodeSequence)
    assert category == ("91723000", "SCT", "Anatomical Structure")
    assert code(second.SegmentedPropertyCategoryCodeSequence) == ("85756007", "SCT", "Tissue")
    value, scheme, meaning = code(second.SegmentedPropertyTypeCodeSequence)
    assert re.fullmatch("[0-9a-f]{16}", value)
    assert (scheme, meaning) == ("99MONAIUNETPP", "a thing of / a long name")
    for each in (first, second):
        assert (each.SegmentAlgorithmType, each.SegmentAlgorithmName) == ("AUTOMATIC", "monai-unetpp liver")
        [kind] = each.SegmentationAlgorithmIdentificationSequence
        assert kind.AlgorithmVersion == "0.1 L2 float32 w=0123"


def all_codes():
    for bundle in ("liver", "lung_nodule"):
        for name, given in config(bundle, "metadata")["segment_codes"].items():
            for key, code in given.items():
                yield pytest.param(key, code, id=f"{bundle}-{name}-{key}")


@pytest.mark.parametrize(("key", "code"), [*all_codes()])
def test_codes_of_the_bundles_are_those_of_the_context_groups(key, code):
    """7150 are categories, 7151 types, of which regions are as well."""
    group = codes.cid7150 if key == "category" else codes.cid7151
    assert tuple(code) in [tuple(each)[:3] for each in group.concepts.values()]


def test_every_class_of_the_bundles_has_codes():
    for bundle in ("liver", "lung_nodule"):
        metadata = config(bundle, "metadata")
        names = [*metadata["network_data_format"]["outputs"]["pred"]["channel_def"].values()]
        assert {*names[1:]} <= {*metadata["segment_codes"]}


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (["liver"], r"segment_codes of metadata\.json must be \{name of a class: .*got \['liver'\]"),
        ({"liver": {"type": ["1", "SCT", "a"]}}, "'category': .*for liver"),
        ({"liver": {"type": ["1", "SCT"], "category": ["1", "SCT", "a"]}}, "as type of liver"),
        ({"liver": {"type": ["1" * 17, "SCT", "a"], "category": ["1", "SCT", "a"]}}, "16 characters at most"),
    ],
)
def test_codes_of_another_form_are_refused(codes, message):
    with pytest.raises(ValueError, match=message):
        find_segments(NAMES, None, codes)


def test_regions_that_overlap_are_segments_that_overlap(tmp_path):
    folder = write_slices(tmp_path / "scan", GEOMETRY["plain"])
    series, labels = loaded(folder)
    regions = find_segments([], {"whole": [1, 2], "core": [2]})
    write_seg(tmp_path / "seg.dcm", labels, series, regions, ALGORITHM)
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert seg.SegmentsOverlap == "YES"
    counted = {1: 0, 2: 0}
    for frame, group in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        counted[group.SegmentIdentificationSequence[0].ReferencedSegmentNumber] += int(frame.sum())
    assert counted == {1: (labels > 0).sum(), 2: (labels == 2).sum()}
    with pytest.raises(ValueError, match="seg_type must be binary for regions that overlap, got labelmap"):
        write_seg(tmp_path / "seg.dcm", labels, series, regions, ALGORITHM, "labelmap")


def test_labels_that_no_segment_has_or_of_another_shape_are_refused(tmp_path):
    series, labels = loaded(write_slices(tmp_path / "scan", GEOMETRY["plain"]))
    for write in (write_seg, write_rtstruct):
        with pytest.raises(ValueError, match=r"segments must name every value .* slice 0 has \[2\] as well"):
            write(tmp_path / "new.dcm", labels, series, SEGMENTS[:1], ALGORITHM)
        with pytest.raises(ValueError, match=r"shape of the series, \(12, 10, 6\), got \(10, 12, 6\)"):
            write(tmp_path / "new.dcm", labels.transpose(1, 0, 2), series, SEGMENTS, ALGORITHM)
    assert not (tmp_path / "new.dcm").exists()


def test_nothing_found_is_a_result_as_well(tmp_path):
    """Both segments are described, so that 'none was found' differs from 'nobody looked'."""
    folder = write_slices(tmp_path / "scan", GEOMETRY["plain"])
    series, labels = loaded(folder)
    for kind in ("binary", "labelmap"):
        write_seg(tmp_path / "seg.dcm", labels * 0, series, SEGMENTS, ALGORITHM, kind)
        seg = pydicom.dcmread(tmp_path / "seg.dcm")
        assert seg.pixel_array.max() == 0
        assert [each.SegmentLabel for each in seg.SegmentSequence][-2:] == ["liver", "tumour"]
    write_rtstruct(tmp_path / "rt.dcm", labels * 0, series, SEGMENTS, ALGORITHM)
    structures = pydicom.dcmread(tmp_path / "rt.dcm")
    assert [roi.ROIName for roi in structures.StructureSetROISequence] == ["liver", "tumour"]
    assert not any("ContourSequence" in each for each in structures.ROIContourSequence)


# RTSTRUCT


def structure(path, folder, number):
    """Masks by slice, filled by scikit-image in the pixels of the image that each outline refers to."""
    sources = {d.SOPInstanceUID: d for d in map(pydicom.dcmread, folder.iterdir())}
    found = {int(d.InstanceNumber) - 1: np.zeros(SHAPE[1::-1], bool) for d in sources.values()}
    areas = dict.fromkeys(found, 0.0)
    item = next(i for i in pydicom.dcmread(path).ROIContourSequence if i.ReferencedROINumber == number)
    for contour in item.get("ContourSequence", []):
        assert contour.ContourGeometricType == "CLOSED_PLANAR"
        source = sources[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        assert len(points) == contour.NumberOfContourPoints
        row, column = np.array(source.ImageOrientationPatient, float).reshape(2, 3)
        away = points - np.array(source.ImagePositionPatient, float)
        assert np.abs(away @ np.cross(row, column)).max() < 1e-3  # mm: they lie in the image
        rows, columns = away @ column / source.PixelSpacing[0], away @ row / source.PixelSpacing[1]
        n = int(source.InstanceNumber) - 1
        found[n] |= polygon2mask(SHAPE[1::-1], np.stack([rows, columns], axis=1))
        areas[n] += (columns @ np.roll(rows, -1) - rows @ np.roll(columns, -1)) / 2
    return found, areas


def check_structures(path, folder):
    """Filled outlines are the mask without one pixel of difference, and enclose its area."""
    for number in (1, 2):
        found, areas = structure(path, folder, number)
        for n, plane in found.items():
            np.testing.assert_array_equal(plane, mask_of(n) == number)
            assert areas[n] == pytest.approx((mask_of(n) == number).sum(), abs=0.01)


@EVERY_GEOMETRY
def test_outlines_come_back_as_the_mask_of_their_image(tmp_path, name):
    folder = write_slices(tmp_path / "scan#1", GEOMETRY[name])
    series, labels = loaded(folder)
    write_rtstruct(tmp_path / "rt.dcm", labels, series, SEGMENTS, ALGORITHM)
    check_structures(tmp_path / "rt.dcm", folder)
    found = pydicom.dcmread(tmp_path / "rt.dcm")
    [frame] = found.ReferencedFrameOfReferenceSequence
    assert frame.FrameOfReferenceUID == found.FrameOfReferenceUID == FRAME
    images = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0].ContourImageSequence
    assert {image.ReferencedSOPInstanceUID for image in images} == {f"1.2.3.{n + 1}" for n in range(SHAPE[2])}
    assert [each.ROIName for each in found.StructureSetROISequence] == ["liver", "tumour"]
    codes = [each.RTROIIdentificationCodeSequence[0].CodeValue for each in found.RTROIObservationsSequence]
    assert codes == ["10200004", "108369006"]


@pytest.mark.parametrize("name", ["plain", "shuffled", "5-mm", "reversed"])
def test_outlines_come_back_by_plastimatch(tmp_path, name):
    """Which takes a pixel on the outline's right edge as outside: none of ours lies on one."""
    pytest.importorskip("plastimatch", reason="pip install plastimatch")
    program = shutil.which("plastimatch", path=str(Path(sys.executable).parent))
    folder = write_slices(tmp_path / "scan", GEOMETRY[name])
    series, labels = loaded(folder)
    write_rtstruct(tmp_path / "rt.dcm", labels, series, SEGMENTS, ALGORITHM)
    image, expected = by_itk(folder)
    sitk.WriteImage(image, str(tmp_path / "image.nrrd"))
    places = ["--input", tmp_path / "rt.dcm", "--fixed", tmp_path / "image.nrrd"]
    command = [program, "convert", *places, "--output-prefix", tmp_path / "masks"]
    subprocess.run([*map(str, command)], capture_output=True, check=True)
    for number, segment_name in enumerate(NAMES[1:], 1):
        found = sitk.ReadImage(str(tmp_path / "masks" / f"{segment_name}.mha"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(found) > 0, expected == number)


def test_outlines_are_simple_where_pixels_touch_at_a_corner():
    found = find_outlines(np.eye(3, dtype=bool))
    assert [len(each) for each in found] == [4, 4, 4]
    assert find_outlines(np.zeros((2, 2), bool)) == []


@pytest.mark.parametrize("seed", range(20))
def test_any_mask_is_what_its_outlines_enclose(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((13, 17)) > rng.random()
    found = np.zeros_like(mask)
    for outline in find_outlines(mask):
        inside = polygon2mask(mask.shape, outline[:, ::-1])
        assert not (found & inside).any()
        found |= inside
    np.testing.assert_array_equal(found, mask)


# What is copied of the patient, and what is missing

ALLOWED = {
    **{0x00100010: "Müller^Jörg", 0x00100020: "ID-77", 0x00100030: "19700203", 0x00100040: "O"},
    **{0x00080020: "20200304", 0x00080030: "101112", 0x00080050: "ACC-5", 0x00080090: "Ref^Doctor"},
    **{0x0020000D: "1.2", 0x00200010: "STUDY-9"},
}
SECRET = {  # all that begins with SECRET may not be found in a result
    **dict.fromkeys((0x00101000, 0x00101001, 0x00101040, 0x00102160, 0x00104000, 0x00080080), "SECRET-1"),
    **dict.fromkeys((0x00081010, 0x00081030, 0x0008103E, 0x00081050, 0x00081070, 0x00180015), "SECRET-2"),
    **dict.fromkeys((0x00180070, 0x00181000, 0x00200011, 0x00324000, 0x00400254, 0x00091001), "SECRET-3"),
    **{0x00101010: "077Y", 0x00101030: "77.5"},
}


def write_both(folder, tags, out):
    """Results of a series with these elements in every file, written as an implicit syntax has them."""
    change = {f"t{tag:08x}": value for tag, value in tags.items()}
    write_slices(folder, lambda n: {**GEOMETRY["plain"](n), **change}, syntax=IMPLICIT)
    series, labels = loaded(folder)
    write_seg(out / "seg.dcm", labels, series, SEGMENTS, ALGORITHM)
    write_rtstruct(out / "rt.dcm", labels, series, SEGMENTS, ALGORITHM)
    return [pydicom.dcmread(out / name) for name in ("seg.dcm", "rt.dcm")], series


def test_only_what_identifies_patient_and_study_is_copied(tmp_path):
    tags = {0x00080005: "ISO_IR 100", **ALLOWED, **SECRET}
    results, _ = write_both(tmp_path / "scan", tags, tmp_path)
    for result in results:
        assert {e.tag for e in result if e.tag.group == 0x0010} == {t for t in ALLOWED if t >> 16 == 0x0010}
        assert result.SpecificCharacterSet == "ISO_IR 192"
        for tag, value in ALLOWED.items():
            assert str(result[tag].value) == value
        for element in result.iterall():
            assert "SECRET" not in str(element.value) or element.VR == "SQ", element
            assert not element.tag.is_private
    for name in ("seg.dcm", "rt.dcm"):
        content = (tmp_path / name).read_bytes()
        assert b"SECRET" not in content
        assert b"077Y" not in content
        assert str(tmp_path).encode() not in content


def test_what_a_source_leaves_out_is_empty_and_aborts_nothing(tmp_path):
    left_out = (0x00100010, 0x00180050, 0x00200013, *(tag for tag in ALLOWED if tag != 0x0020000D))
    results, _ = write_both(tmp_path / "scan", dict.fromkeys(left_out), tmp_path)
    for result in results:
        assert (result.PatientName, result.PatientID, result.StudyID) == ("", "", "")
        assert result.PositionReferenceIndicator in ("", None)
        assert "SpecificCharacterSet" not in result


def test_values_that_are_not_as_the_standard_wants_them_are_copied_as_they_are(tmp_path):
    odd = {0x00100030: "unknown", 0x00100040: "MALE ADULT", 0x00080020: "2020-3-4", 0x00080030: "noon"}
    results, _ = write_both(tmp_path / "scan", odd, tmp_path)
    for result in results:
        for tag, value in odd.items():
            assert str(result[tag].value) == value


def test_a_series_without_a_frame_of_reference_gets_one_and_a_warning(tmp_path):
    results, series = write_both(tmp_path / "scan", {0x00200052: None}, tmp_path)
    seg, structures = (result.FrameOfReferenceUID for result in results)
    assert seg == structures
    assert seg.startswith("2.25.")
    assert series.warnings == (
        f"{tmp_path / 'scan'} has no FrameOfReferenceUID: its DICOM results state one of their own.",
    )


def test_result_of_pixels_that_were_compressed_with_loss_says_so(tmp_path):
    tags = {0x00282110: "01", 0x00282112: "7.5", 0x00282114: "ISO_10918_1"}
    (seg, _), _ = write_both(tmp_path / "scan", tags, tmp_path)
    assert (seg.LossyImageCompression, float(seg.LossyImageCompressionRatio)) == ("01", 7.5)
    assert seg.LossyImageCompressionMethod == "ISO_10918_1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda n: {"t00080018": None} if n == 3 else {},
            r"IM0003\.dcm has no SOPInstanceUID, which a DICOM",
        ),
        (lambda _: {"t0020000d": None}, r"IM0000\.dcm has no StudyInstanceUID"),
        (lambda n: {"t00080018": "1.9"} if n > 3 else {}, r"of different SOPInstanceUID .*IM0004.*IM0005"),
        (lambda n: {"t0020000d": "1.9"} if n == 4 else {}, r"one StudyInstanceUID .*IM0004\.dcm has 1\.9"),
        (lambda n: {"t00200052": "1.9"} if n == 4 else {}, r"one FrameOfReferenceUID .*IM0004\.dcm has 1\.9"),
    ],
    ids=["instance", "study", "same-instance", "two-studies", "two-frames"],
)
def test_series_that_cannot_be_referred_to_is_refused(tmp_path, change, message):
    folder = write_slices(tmp_path / "scan", lambda n: {**GEOMETRY["plain"](n), **change(n)})
    volume = volume_loader()(folder)
    with pytest.raises(ValueError, match=message):
        read_series(folder, volume.meta["sections"])


def test_slices_of_different_rescale_are_one_series(tmp_path):
    def change(n):
        return {
            **GEOMETRY["plain"](n),
            "t00281053": ("1", "0.5")[n % 2],
            "t00281052": ("-1024", "-2000")[n % 2],
        }

    folder = write_slices(tmp_path / "scan", change)
    series, labels = loaded(folder)
    write_seg(tmp_path / "seg.dcm", labels, series, SEGMENTS, ALGORITHM)
    check_frames(tmp_path / "seg.dcm", folder)


def test_frames_of_an_enhanced_file_are_referred_to_by_number(tmp_path):
    order = [3, 0, 5, 1, 4, 2]
    (tmp_path / "scan").mkdir()
    tags = {**enhanced_tags(order), 0x00200052: FRAME}
    (tmp_path / "scan" / "all.dcm").write_bytes(dicom_bytes(tags))
    series, labels = loaded(tmp_path / "scan")
    write_seg(tmp_path / "seg.dcm", labels, series, SEGMENTS, ALGORITHM)
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    for frame, group in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        [reference] = group.DerivationImageSequence[0].SourceImageSequence
        n = order[int(reference.ReferencedFrameNumber) - 1]
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        np.testing.assert_array_equal(frame, mask_of(n) == number)
        height = group.PlanePositionSequence[0].ImagePositionPatient[2]
        assert height == pytest.approx(GAP * n - 40)
    write_rtstruct(tmp_path / "rt.dcm", labels, series, SEGMENTS, ALGORITHM)
    for item in pydicom.dcmread(tmp_path / "rt.dcm").ROIContourSequence:
        for contour in item.ContourSequence:
            n = order[int(contour.ContourImageSequence[0].ReferencedFrameNumber) - 1]
            assert float(contour.ContourData[2]) == pytest.approx(GAP * n - 40)
