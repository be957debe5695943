# SPDX-License-Identifier: Apache-2.0
"""Volumes as they come: read by SimpleITK, at the same place as by nibabel and by ITK."""

import bz2
import gzip
import re
import struct
import subprocess
import sys
import zlib
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from dicom import write_series
from monai.data import list_data_collate
from monai.transforms import LoadImage

from bundles import affine
from monai_unetpp.data import list_volumes
from monai_unetpp.readers import SimpleITKReader, read_geometry, volume_loader
from monai_unetpp.readers.checks import check_affine
from monai_unetpp.readers.memory import check_cache
from monai_unetpp.transforms import LoadImageAndLabeld

SHAPE = (11, 9, 7)
PLACES = {
    "RAS": affine("RAS", (1, 1, 1)),
    "LPS": affine("LPS", (0.7, 0.7, 2.5)),
    "PSR": affine("PSR", (3, 1, 2)),
    "oblique": affine("LPS", (0.8, 0.9, 3), 20),
}


def voxels(dtype=np.int16):
    return np.random.default_rng(0).integers(-1000, 400, SHAPE).astype(dtype)


def image(matrix, array=None):
    """A SimpleITK image of an array (X, Y, Z) that lies where an RAS+ affine says."""
    array = voxels() if array is None else array
    result = sitk.GetImageFromArray(array.transpose())
    lps = np.diag([-1.0, -1, 1, 1]) @ matrix
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    result.SetSpacing(spacing.tolist())
    result.SetDirection((lps[:3, :3] / spacing).flatten().tolist())
    result.SetOrigin(lps[:3, 3].tolist())
    return result


def load(path, **settings):
    loader = LoadImage(image_only=True, ensure_channel_first=True)
    loader.register(SimpleITKReader(**settings))
    return loader(path)


def write_dicom(folder, heights=range(5), **settings):
    """A series of slices, 12 x 10 pixels: HU from -24, stored with an offset."""
    values = np.arange(120).reshape(10, 12).T - 24
    planes = ((z, (values + n).astype(np.int16)) for n, z in enumerate(heights))
    return write_series(folder, planes, **settings)


# Where a voxel lies


@pytest.mark.parametrize("suffix", [".mhd", ".mha", ".nrrd", ".nhdr"])
@pytest.mark.parametrize("place", PLACES)
def test_volume_lies_where_nibabel_says(tmp_path, suffix, place):
    nib.save(nib.Nifti1Image(voxels(), PLACES[place]), tmp_path / "ct.nii.gz")
    sitk.WriteImage(image(PLACES[place]), str(tmp_path / f"ct{suffix}"))
    found, reference = load(tmp_path / f"ct{suffix}"), LoadImage(image_only=True)(tmp_path / "ct.nii.gz")
    assert found.shape == (1, *SHAPE)
    assert torch.equal(found[0].as_tensor(), reference.as_tensor())
    np.testing.assert_allclose(found.affine, PLACES[place], atol=1e-4)
    np.testing.assert_allclose(found.affine, reference.affine, atol=1e-4)
    np.testing.assert_allclose(found.pixdim, reference.pixdim, atol=1e-4)


BY_ITK = """
import sys, torch
from monai.data import list_data_collate
from monai.transforms import LoadImage
volume = LoadImage("ITKReader", image_only=True, ensure_channel_first=True)(sys.argv[1])
torch.save({"volume": volume.as_tensor(), "affine": volume.affine}, sys.argv[2])
"""


@pytest.mark.skipif(find_spec("itk") is None, reason="itk is not installed")
@pytest.mark.parametrize("place", PLACES)
def test_volume_lies_where_monais_reader_of_itk_says(tmp_path, place):
    sitk.WriteImage(image(PLACES[place]), str(tmp_path / "ct.mhd"))
    # in a process of its own: ITK and SimpleITK in one may crash each other
    subprocess.run([sys.executable, "-c", BY_ITK, tmp_path / "ct.mhd", tmp_path / "itk.pt"], check=True)
    found, reference = load(tmp_path / "ct.mhd"), torch.load(tmp_path / "itk.pt", weights_only=True)
    assert torch.equal(found.as_tensor(), reference["volume"])
    np.testing.assert_allclose(found.affine, reference["affine"], atol=1e-5)


def test_dicom_series_is_in_order_in_hounsfield_units_and_in_place(tmp_path):
    found = load(write_dicom(tmp_path / "series", heights=[-40.0, -37.5, -35.0, -32.5]))
    assert found.shape == (1, 12, 10, 4)
    assert [float(found[0, 0, 0, n]) for n in range(4)] == [-24, -23, -22, -21]
    assert float(found[0, 3, 2, 0]) == 2 * 12 + 3 - 24
    stored = sitk.ReadImage(str(next((tmp_path / "series").iterdir())))
    assert stored.GetMetaData("0028|1052").strip() == "-1024"
    np.testing.assert_allclose(found.pixdim, (0.7, 0.7, 2.5), atol=1e-5)
    np.testing.assert_allclose(found.affine[:3, 3], (20, 30, -40), atol=1e-5)  # from LPS to RAS


def test_dicom_slices_are_sorted_by_place_not_by_name(tmp_path):
    up = load(write_dicom(tmp_path / "up", heights=[0, 2, 4]))
    down = load(write_dicom(tmp_path / "down", heights=[4, 2, 0]))
    np.testing.assert_allclose(up.affine, down.affine)
    assert torch.equal(up[..., 0] + 2, down[..., 0])  # the lowest slice was written first, or last


def test_channels_come_first(tmp_path):
    rgb = sitk.GetImageFromArray(np.random.default_rng(1).random((5, 4, 3, 2)), isVector=True)
    sitk.WriteImage(rgb, str(tmp_path / "two.nrrd"))
    assert load(tmp_path / "two.nrrd").shape == (2, 3, 4, 5)


def test_cases_of_any_kind_are_loaded_by_the_bundles(tmp_path):
    sitk.WriteImage(image(PLACES["LPS"]), str(tmp_path / "ct.mhd"))
    label = (voxels() > 0).astype(np.uint8)
    nib.save(nib.Nifti1Image(label, PLACES["LPS"]), tmp_path / "label.nii.gz")
    case = LoadImageAndLabeld()({"image": str(tmp_path / "ct.mhd"), "label": str(tmp_path / "label.nii.gz")})
    assert torch.equal(case["image"] > 0, case["label"] > 0)


# What cannot be read


def test_header_without_its_voxels_is_named(tmp_path):
    for suffix, data in ((".mhd", "ct.raw"), (".nhdr", "ct.raw")):
        sitk.WriteImage(image(PLACES["RAS"]), str(tmp_path / f"ct{suffix}"))
        (tmp_path / data).unlink()
        message = rf"ct\{suffix} names its voxels {data}, which is not beside it"
        with pytest.raises(FileNotFoundError, match=message):
            SimpleITKReader().read(tmp_path / f"ct{suffix}")


@pytest.mark.parametrize("suffix", [".mhd", ".mha", ".nrrd"])
def test_damaged_file_is_named(tmp_path, suffix):
    path = tmp_path / f"ct{suffix}"
    path.write_bytes(b"\x00\x01 no header")
    with pytest.raises(ValueError, match=rf"ct\{suffix} is damaged"):
        SimpleITKReader().read(path)


def _two_series(folder):
    write_dicom(folder, uid="1.2.3")
    write_dicom(folder, heights=range(3), uid="1.2.4")


@pytest.mark.parametrize(
    ("make", "settings", "error", "message"),
    [
        (lambda f: f.mkdir(), {}, FileNotFoundError, "holds no DICOM series"),
        (_two_series, {}, ValueError, r"holds 2 DICOM series; name one as series: 1\.2\.3 \(5 slices\), "),
        (_two_series, {"series": "1.9"}, ValueError, r"has no series 1\.9, only 1\.2\.3, 1\.2\.4"),
        (
            lambda f: write_dicom(f, heights=[0, 2, 4, 8, 10]),
            {},
            ValueError,
            r"lacks a slice .*: 4\.00 mm between 1\.2\.3_02\.dcm and 1\.2\.3_03\.dcm, 2\.00 mm elsewhere",
        ),
        (lambda f: write_dicom(f, modality="MR"), {}, ValueError, "must be CT, got modality MR"),
        (
            lambda f: (write_dicom(f), write_dicom(f, heights=[5, 6], pixel=0.9, uid="1.2.3")),
            {},
            ValueError,
            "mixes slices of different pixel spacing",
        ),
        (
            lambda f: write_dicom(f, more={"0020|0032": "0\\nan\\0"}),
            {},
            ValueError,
            r"must have 3 numbers in its tag 0020\|0032",
        ),
    ],
    ids=[
        *("empty", "two-series", "unknown-series", "missing-slice", "modality", "mixed-spacing"),
        "position",
    ],
)
def test_series_that_is_no_volume_is_named(tmp_path, make, settings, error, message):
    make(tmp_path / "scan")
    with pytest.raises(error, match=rf"scan.*{message}"):
        SimpleITKReader(**settings).read(tmp_path / "scan")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            b"\x28\x00\x30\x00",
            b"\x28\x00\x32\x00",
            r"1\.2\.3_01\.dcm does not say how far its pixels are apart",
        ),  # 1 mm was taken
        (
            b"\x28\x00\x52\x10",
            b"\x28\x00\x5f\x10",
            "mixes slices of different kinds, with and without slope",
        ),
        (b"-1024 ", b"1e30  ", r"is damaged: its tag 0028\|1052 is 1e30"),
        (b"1\\0\\0\\0\\1\\0", b"1\\0\\0\\1\\1\\0", "must have directions at a right angle"),
    ],
    ids=["spacing", "intercept", "number", "direction"],
)
def test_slice_whose_header_is_damaged_is_refused(tmp_path, old, new, message):
    folder = write_dicom(tmp_path / "scan")
    spoilt(folder / "1.2.3_01.dcm", old, new)
    with pytest.raises(ValueError, match=message):
        SimpleITKReader().read(folder)


def test_element_that_is_longer_than_the_file_is_refused_before_memory_is_asked_for(tmp_path):
    folder = write_dicom(tmp_path / "scan")
    path = folder / "1.2.3_01.dcm"
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"\xe0\x7f\x10\x00") + 4, 2_000_000_000)
    path.write_bytes(data)
    with pytest.raises(
        ValueError, match=r"1\.2\.3_01\.dcm is truncated or damaged: its pixels are longer than the file"
    ):
        SimpleITKReader().read(folder)


@pytest.mark.parametrize("n", [0, 2, 4])
def test_damaged_slice_is_named(tmp_path, n):
    folder = write_dicom(tmp_path / "scan")
    (folder / f"1.2.3_{n:02d}.dcm").write_bytes(b"")
    with pytest.raises(ValueError, match=rf"1\.2\.3_{n:02d}\.dcm cannot be read as a slice"):
        SimpleITKReader().read(folder)


def test_series_is_chosen_by_its_uid(tmp_path):
    _two_series(tmp_path / "scan")
    assert load(tmp_path / "scan", series="1.2.4").shape == (1, 12, 10, 3)


def test_other_modality_is_read_on_request(tmp_path):
    assert load(write_dicom(tmp_path / "scan", modality="MR"), modality=None).shape == (1, 12, 10, 5)


def test_reader_leaves_nifti_to_others():
    reader = SimpleITKReader()
    assert not reader.verify_suffix("ct.nii.gz")
    assert reader.verify_suffix(["ct.mhd", Path("ct.NRRD")])


def test_size_and_spacing_are_known_without_the_voxels(tmp_path):
    sitk.WriteImage(image(PLACES["oblique"]), str(tmp_path / "ct.mhd"))
    (tmp_path / "ct.raw").unlink()
    size, spacing = read_geometry(tmp_path / "ct.mhd")
    assert tuple(size) == SHAPE
    np.testing.assert_allclose(spacing, (0.8, 0.9, 3), atol=1e-5)
    size, spacing = read_geometry(write_dicom(tmp_path / "series", heights=[0, 2, 4, 6]))
    assert tuple(size) == (12, 10, 4)
    np.testing.assert_allclose(spacing[:2], 0.7)


def test_tilted_gantry_is_a_warning_and_its_grid_is_sheared(tmp_path):
    planes = [(z, np.zeros((12, 10), np.int16)) for z in range(5)]
    for n, plane in enumerate(planes):
        write_series(tmp_path / "scan", [plane], origin=(-20.0, -30.0 + 0.4 * n), first=n)
    image = SimpleITKReader().read(tmp_path / "scan")
    np.testing.assert_allclose(image.TransformIndexToPhysicalPoint((0, 0, 4)), (-20, -28.4, 4), atol=1e-5)
    [warning] = volume_loader()(tmp_path / "scan").meta["warnings"]
    assert "scan was scanned with a gantry tilted by 21.8 degrees" in warning


# Headers that cannot be believed: what tests of damaged files by the thousand found (benchmarks/faults)


def written(folder, suffix):
    path = folder / f"ct{suffix}"
    sitk.WriteImage(image(PLACES["LPS"]), str(path))
    return path


def spoilt(path, old, new):
    """A copy of a text header with something in it replaced."""
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("suffix", "old", "new", "message"),
    [
        (".mhd", b"NDims = 3", b"NDims = -1", "must have as many DimSize"),  # ITK ends the process
        (".mhd", b"NDims = 3", b"NDims = 4294967296", "must have as many DimSize"),  # the same
        (".mhd", b"MET_SHORT", b"MET_" + 5000 * b"A", "is damaged: its header has 5"),  # the same
        (".mhd", b"ElementSpacing", b"ElementSpacimg", "must say ElementSpacing"),  # 1 mm was taken
        (".mhd", b"ElementSpacing", b"ELementSpacing", "must say ElementSpacing"),  # 1 mm was taken
        (".mhd", b"Offset = ", b"Offset = 1e308 ", "must have 3 numbers up to 1e+06 as Offset"),
        (".mhd", b"= ct.raw", b"= %s%n", "names its voxels %s%n, which is not beside it"),
        (".mhd", b"DimSize = ", b"DimSize = 9", "is truncated or damaged: its header claims"),
        (".nrrd", b"endian: little", b"endian: " + 5000 * b"A", "is damaged: its header has 5"),
        (".nrrd", b"sizes: ", b"sizes: 9", "is truncated or damaged"),
        (".nrrd", b"space directions", b"space\x00directions", "its header is no text"),
    ],
)
def test_header_that_is_damaged_is_refused_before_a_library_takes_it(tmp_path, suffix, old, new, message):
    path = spoilt(written(tmp_path, suffix), old, new)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)) as error:
        volume_loader()(path)
    assert str(path) in str(error.value)


def test_what_a_header_does_not_say_is_a_warning(tmp_path, caplog):
    path = spoilt(written(tmp_path, ".mhd"), b"Offset", b"Offzet")
    assert volume_loader()(path).affine[:3, 3].abs().max() == 0
    assert "does not say Offset" in caplog.text


def nifti(tmp_path, name="ct.nii.gz", sform=1, qform=1, pixdim=None):
    """A NIfTI file with a spacing of 1, 2 and 3 mm, of which header fields may be other ones."""
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), affine)
    image.set_sform(affine, code=sform)
    image.set_qform(affine, code=qform)
    if pixdim is not None:
        image.header["pixdim"][1:4] = pixdim
    path = tmp_path / name
    nib.save(image, path)
    return path


def test_nifti_lies_where_its_sform_puts_it(tmp_path, caplog):
    """MONAI's reader takes the qform as soon as ``pixdim`` is rounded, here to 1 mm."""
    found = volume_loader()(nifti(tmp_path, pixdim=[1.0, 1.0, 1.0]))
    assert found.affine.diag().tolist() == [1, 2, 3, 1]
    assert "contradicts itself: voxels of 1 x 2 x 3 mm by its sform, which is taken" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-30] + bytes(30), "is truncated or damaged"),  # the check sum of gzip
        (lambda data: data[:40], "is truncated or damaged"),
    ],
    ids=["check sum", "cut"],
)
def test_packed_nifti_whose_voxels_are_damaged_is_refused(tmp_path, change, message):
    path = nifti(tmp_path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        volume_loader()(path)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, struct.pack("<i", 7), "is no NIfTI file"),
        (42, struct.pack("<h", 32767), "is truncated or damaged: its header claims"),
        (254, struct.pack("<h", 99), "its sform_code must be 0 to 5, got 99"),
    ],
)
def test_nifti_header_that_is_damaged_is_refused(tmp_path, at, value, message):
    path = nifti(tmp_path, "ct.nii")
    data = bytearray(path.read_bytes())
    data[at : at + len(value)] = value
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        volume_loader()(path)


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.diag([1, 1e-6, 1, 1]), "must have voxels of"),
        (np.diag([1, np.nan, 1, 1]), "must have voxels of"),
        (np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "two of them are one"),
        (np.diag([1, 1, 900, 1]), "must be at most 5 m long, got 9 m"),
        (np.array([[1, 0, 0, 1e9], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "less than 1 km away"),
    ],
)
def test_volume_that_cannot_lie_where_its_affine_puts_it_is_refused(affine, message):
    with pytest.raises(ValueError, match=message):
        check_affine("ct.nii", affine, (10, 10, 10))


# How much of a packed file is unpacked


class _Counter:
    """Counts the bytes that are unpacked, by our own objects of zlib and by files of gzip."""

    def __init__(self, monkeypatch):
        self.bytes = 0
        decompressobj, read, counter = zlib.decompressobj, gzip.GzipFile.read, self

        class Inflate:
            def __init__(self, **settings):
                self.inflate, self.counts = decompressobj(**settings), settings.get("wbits", 0) > 0

            def __getattr__(self, name):
                return getattr(self.inflate, name)

            def decompress(self, *arguments):
                found = self.inflate.decompress(*arguments)
                counter.bytes += len(found) * self.counts  # of gzip's own objects the files count
                return found

        def counted(file, *arguments):
            found = read(file, *arguments)
            counter.bytes += len(found)
            return found

        monkeypatch.setattr(zlib, "decompressobj", Inflate)
        monkeypatch.setattr(gzip.GzipFile, "read", counted)


@pytest.fixture
def packed(tmp_path):
    """A scan of 100 x 80 x 60 voxels and its label, in 960 kB and 480 kB when unpacked."""
    rng = np.random.default_rng(0)
    scan, label = rng.integers(-1000, 400, (100, 80, 60)), rng.integers(0, 2, (100, 80, 60))
    for name, array in (("ct", scan.astype(np.int16)), ("label", label.astype(np.uint8))):
        nib.save(nib.Nifti1Image(array, PLACES["LPS"]), tmp_path / f"{name}.nii.gz")
    return {"image": str(tmp_path / "ct.nii.gz"), "label": str(tmp_path / "label.nii.gz")}


def test_geometry_of_a_packed_file_unpacks_its_header_alone(packed, monkeypatch):
    counter = _Counter(monkeypatch)
    assert tuple(read_geometry(packed["image"])[0]) == (100, 80, 60)
    assert counter.bytes == 352


def test_geometry_of_a_packed_nifti_2_unpacks_its_header_alone(tmp_path, monkeypatch):
    nib.save(nib.Nifti2Image(voxels(), PLACES["LPS"]), tmp_path / "ct.nii.gz")
    counter = _Counter(monkeypatch)
    assert tuple(read_geometry(tmp_path / "ct.nii.gz")[0]) == SHAPE
    assert counter.bytes == 540
    np.testing.assert_allclose(volume_loader()(tmp_path / "ct.nii.gz").affine, PLACES["LPS"], atol=1e-5)


def test_memory_of_a_cache_is_known_from_headers_alone(packed, monkeypatch):
    counter = _Counter(monkeypatch)
    check_cache([packed] * 3, [0.7, 0.7, 2.5], 1.0)
    assert counter.bytes == 3 * 2 * 352


def test_loading_unpacks_a_file_once(packed, monkeypatch):
    counter = _Counter(monkeypatch)
    case = LoadImageAndLabeld()(packed)
    assert counter.bytes == 352 + 2 * 480_000 + 352 + 480_000
    assert np.array_equal(case["image"][0].numpy(), nib.load(packed["image"]).get_fdata())


def test_what_is_larger_than_memory_is_refused_before_it_is_unpacked(packed, monkeypatch):
    counter = _Counter(monkeypatch)
    monkeypatch.setattr("monai_unetpp.readers.checks.available_memory", lambda: 1_000_000)
    with pytest.raises(ValueError, match=r"ct\.nii\.gz has 0 million voxels, which take 0\.0 GiB"):
        volume_loader()(packed["image"])
    assert counter.bytes < 1000


def test_packed_file_that_would_unpack_to_a_thousand_times_its_size_is_refused_by_its_header(tmp_path):
    header = nib.Nifti1Image(np.zeros((1, 1, 1), np.int16), np.eye(4)).header
    header.set_data_shape((20000, 20000, 20000))
    header["vox_offset"] = 352
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(10_000_000)))
    with pytest.raises(
        ValueError, match=r"bomb\.nii\.gz is truncated or damaged: its header claims 16,000,000"
    ):
        volume_loader()(tmp_path / "bomb.nii.gz")


# As other programs write them


def nrrd(path, fields=(), lines=(), array=None, encoding="gzip"):
    """An NRRD in LPS whose voxels are of (0.7, 0.8, 2.5) mm; ``fields`` replace those of the header."""
    array = voxels() if array is None else array
    header = {
        "type": {"i2": "int16", "u1": "uint8"}[array.dtype.str[1:]],
        "dimension": str(array.ndim),
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, array.shape)),
        "space directions": "(0.7,0,0) (0,0.8,0) (0,0,2.5)",
        "kinds": "domain domain domain",
        "endian": "little",
        "encoding": encoding,
        "space origin": "(1,2,3)",
        **dict(fields),
    }
    text = "\n".join(
        ["NRRD0005", "# by hand", *(f"{k}: {v}" for k, v in header.items() if v is not None), *lines]
    )
    raw = array.tobytes(order="F")
    body = {"raw": bytes, "gzip": gzip.compress, "bzip2": bz2.compress}.get(encoding, bytes)(raw)
    if encoding == "ascii":
        body = " ".join(map(str, array.ravel(order="F"))).encode()
    path.write_bytes(text.encode() + b"\n\n" + body)
    return path


NRRD_AFFINE = np.array([[-0.7, 0, 0, -1], [0, -0.8, 0, -2], [0, 0, 2.5, 3], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    "lines",
    [
        ["Segment0_Name:=Leber-Läsion 肝臓", "Segment0_LabelValue:=1"],
        ["Segmentation_ConversionParameters:=" + "Parameter|0.000|what it does: so.&" * 3000],
        ["# " + "x" * 100_000, "key:=a: b := c"],
    ],
    ids=["utf-8", "long", "comment"],
)
def test_segmentation_of_slicer_is_read(tmp_path, lines):
    path = nrrd(tmp_path / "label.seg.nrrd", lines=lines, array=(voxels() > 0).astype(np.uint8))
    found = volume_loader()(path)
    np.testing.assert_array_equal(found[0].numpy(), voxels() > 0)
    np.testing.assert_allclose(found.affine, NRRD_AFFINE)


def test_layers_of_a_segmentation_of_slicer_are_channels(tmp_path):
    layers = np.stack([voxels(), voxels() + 1])
    fields = {"space directions": "none (0.7,0,0) (0,0.8,0) (0,0,2.5)", "kinds": "list domain domain domain"}
    found = volume_loader()(nrrd(tmp_path / "two.seg.nrrd", fields, array=layers))
    np.testing.assert_array_equal(found.numpy(), layers)
    np.testing.assert_allclose(found.affine, NRRD_AFFINE)


def test_kinds_of_axes_tell_channels_from_space_where_all_have_spacings(tmp_path):
    layers = np.stack([voxels(), voxels() + 1], axis=-1)
    fields = {"space directions": None, "spacings": "0.7 0.8 2.5 1", "kinds": "domain domain domain list"}
    found = volume_loader()(nrrd(tmp_path / "two.nrrd", fields, array=layers))
    np.testing.assert_array_equal(found.numpy(), np.moveaxis(layers, -1, 0))
    np.testing.assert_allclose(found.affine, NRRD_AFFINE)
    with pytest.raises(ValueError, match="must have 4 kinds, one for each axis, got 2"):
        volume_loader()(nrrd(tmp_path / "few.nrrd", {**fields, "kinds": "domain domain"}, array=layers))
    with pytest.raises(ValueError, match="as many axes of space"):  # which one is not of space, nothing says
        volume_loader()(nrrd(tmp_path / "four.nrrd", {**fields, "kinds": None}, array=layers))


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
def test_every_encoding_of_nrrd_is_read(tmp_path, encoding):
    found = volume_loader()(nrrd(tmp_path / "ct.nrrd", encoding=encoding))
    np.testing.assert_array_equal(found[0].numpy(), voxels())
    np.testing.assert_allclose(found.affine, NRRD_AFFINE)


def test_line_that_might_end_a_library_is_not_given_to_it(tmp_path):
    """Text is read by ITK, whose readers of headers have buffers of fixed size."""
    path = nrrd(tmp_path / "ct.nrrd", {"content": "A" * 5000}, encoding="ascii")
    with pytest.raises(ValueError, match="must have a header of short lines in ASCII to be read by ITK"):
        volume_loader()(path)


@pytest.mark.parametrize("name", ["ct.nrrd", "ct.mha", "ct.nii"])
def test_bytes_after_the_voxels_are_tolerated(tmp_path, name):
    path = tmp_path / name
    sitk.WriteImage(image(PLACES["LPS"]), str(path))
    path.write_bytes(path.read_bytes() + b"\n\0\n")
    np.testing.assert_array_equal(volume_loader()(path)[0].numpy(), voxels())


@pytest.mark.parametrize("name", ["ct.Nii", "CT.NII.GZ", "CT.MHA", "ct.Nrrd"])
def test_suffix_may_be_in_capitals(tmp_path, name):
    sitk.WriteImage(image(PLACES["LPS"]), str(tmp_path / name.lower()))
    (tmp_path / name.lower()).rename(tmp_path / name)
    assert list_volumes(tmp_path) == [{"image": str(tmp_path / name)}]
    assert torch.equal(volume_loader()(tmp_path / name)[0].as_tensor(), torch.from_numpy(voxels()).float())
    assert tuple(read_geometry(tmp_path / name)[0]) == SHAPE


@pytest.mark.parametrize("more", [(1,), (1, 1), (1, 1, 1)])
def test_axes_of_one_voxel_beyond_the_third_are_left_out(tmp_path, more):
    nib.save(nib.Nifti1Image(voxels().reshape(*SHAPE, *more), PLACES["LPS"]), tmp_path / "ct.nii.gz")
    found = volume_loader()(tmp_path / "ct.nii.gz")
    np.testing.assert_array_equal(found[0].numpy(), voxels())


# Units


@pytest.mark.parametrize(
    ("unit", "scale"),
    [("meter", 1e-3), ("micron", 1e3), ("mm", 1), ("unknown", 1)],
    ids=lambda value: str(value),
)
@pytest.mark.parametrize("form", ["sform", "qform"])
def test_units_of_nifti_become_millimetres(tmp_path, caplog, unit, scale, form):
    stated = np.diag([0.7 * scale, 0.8 * scale, 2.5 * scale, 1])
    stated[:3, 3] = np.array([10, -20, 30]) * scale
    image = nib.Nifti1Image(voxels(), stated)
    image.set_sform(stated, code=int(form == "sform"))
    image.set_qform(stated, code=int(form == "qform"))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "ct.nii.gz")
    found = volume_loader()(tmp_path / "ct.nii.gz")
    np.testing.assert_allclose(found.affine.diag()[:3], (0.7, 0.8, 2.5), rtol=1e-5)
    np.testing.assert_allclose(found.affine[:3, 3], (10, -20, 30), rtol=1e-5)
    np.testing.assert_allclose(read_geometry(tmp_path / "ct.nii.gz")[1], (0.7, 0.8, 2.5), rtol=1e-5)
    assert ("and is taken as" in caplog.text) == (scale != 1)


def test_millimetres_that_are_said_to_be_metres_are_refused(tmp_path):
    image = nib.Nifti1Image(voxels(), PLACES["LPS"])
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "ct.nii.gz")
    with pytest.raises(
        ValueError, match=r"ct\.nii\.gz must (be at most 5 m long|have voxels of 0.0001 to 1000 mm)"
    ):
        LoadImageAndLabeld("image")({"image": str(tmp_path / "ct.nii.gz")})


@pytest.mark.parametrize(
    ("unit", "scale"), [("mm", 1), ("cm", 10), ("m", 1000), ("um", 1e-3), ("µm", 1e-3), ("", 1)]
)
def test_units_of_nrrd_become_millimetres(tmp_path, caplog, unit, scale):
    path = nrrd(tmp_path / "ct.nrrd", {"space units": " ".join([f'"{unit}"'] * 3)})
    np.testing.assert_allclose(volume_loader()(path).affine[:3], NRRD_AFFINE[:3] * scale)
    assert ("and is taken as" in caplog.text) == (scale != 1)


@pytest.mark.parametrize(("unit", "scale"), [("mm", 1), ("um", 1e-3), ("cm", 10), ("?", 1)])
def test_units_of_metaimage_become_millimetres(tmp_path, unit, scale):
    path = spoilt(written(tmp_path, ".mha"), b"DimSize", f"DistanceUnits = {unit}\nDimSize".encode())
    np.testing.assert_allclose(volume_loader()(path).affine[:3], PLACES["LPS"][:3] * scale, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"space units": '"pixel" "pixel" "pixel"'}, "must have lengths in mm, cm, m or um as its units"),
        ({"space": "scanner-xyz"}, "must be in one of the spaces left-posterior-superior"),
        ({"space directions": "(1,0,0) (0,1,0)"}, "must have 3 space directions, got 2"),
        ({"space directions": "(1,0) (0,1) none"}, "must have a space origin of 2 numbers, got 3"),
        ({"endian": "middle"}, "must have the endian little or big, got 'middle'"),
        ({"type": "block"}, "must have a type such as short"),
        ({"colour": "grey"}, "has the field 'colour', which NRRD does not know"),
    ],
    ids=["units", "space", "directions", "origin", "endian", "type", "field"],
)
def test_what_nrrd_does_not_say_rightly_is_refused(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        volume_loader()(nrrd(tmp_path / "ct.nrrd", fields))


@pytest.mark.parametrize(
    ("space", "signs"),
    [("RAS", (1, 1)), ("left-anterior-superior", (-1, 1)), ("LPS", (-1, -1)), (None, (-1, -1))],
)
def test_nrrd_lies_in_the_space_that_it_names(tmp_path, space, signs):
    found = volume_loader()(nrrd(tmp_path / "ct.nrrd", {"space": space}))
    np.testing.assert_allclose(found.affine[:3], np.abs(NRRD_AFFINE[:3]) * np.array([*signs, 1])[:, None])


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("suffix", [".mhd", ".mha"])
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "f4", "f8"])
def test_every_type_of_metaimage_is_read_as_itk_reads_it(tmp_path, dtype, suffix, compressed):
    array = (voxels() % 100).astype(dtype)
    path = tmp_path / f"ct{suffix}"
    sitk.WriteImage(image(PLACES["oblique"], array), str(path), useCompression=compressed)
    found = volume_loader()(path)
    np.testing.assert_array_equal(
        found[0].numpy(), sitk.GetArrayFromImage(sitk.ReadImage(str(path))).transpose()
    )
    np.testing.assert_allclose(found.affine, PLACES["oblique"], atol=1e-5)


@pytest.mark.parametrize("files", ["ct%d.raw 0 6 1", "LIST"])
def test_metaimage_of_one_file_per_slice_is_read(tmp_path, files):
    sitk.WriteImage(image(PLACES["LPS"]), str(tmp_path / "ct.mhd"))
    for n in range(SHAPE[2]):
        (tmp_path / f"ct{n}.raw").write_bytes(voxels()[:, :, n].tobytes(order="F"))
    listed = "LIST\n" + "\n".join(f"ct{n}.raw" for n in range(SHAPE[2])) if files == "LIST" else files
    header = (tmp_path / "ct.mhd").read_text().replace("ct.raw", listed)
    (tmp_path / "ct.mhd").write_text(header)
    np.testing.assert_array_equal(volume_loader()(tmp_path / "ct.mhd")[0].numpy(), voxels())


@pytest.mark.parametrize("name", ["ct.nii.gz", "ct.mha", "ct.nrrd"])
@pytest.mark.parametrize("kept", [0.5, 0.95])
def test_packed_file_that_ends_early_is_named(tmp_path, name, kept):
    path = tmp_path / name
    sitk.WriteImage(image(PLACES["LPS"]), str(path), useCompression=True)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} is truncated or damaged"):
        volume_loader()(path)


def test_no_default_reader_of_monai_is_made(tmp_path, monkeypatch):
    """One of them unpickles, one warns where pydicom is installed."""
    monkeypatch.setattr("monai.transforms.LoadImage.__init__", lambda *_: pytest.fail("LoadImage"))
    sitk.WriteImage(image(PLACES["LPS"]), str(tmp_path / "ct.mha"))
    assert volume_loader()(tmp_path / "ct.mha").shape == (1, *SHAPE)


def test_volumes_with_and_without_warnings_collate(tmp_path):
    nib.save(nib.Nifti1Image(voxels(), None), tmp_path / "nowhere.nii")
    nib.save(nib.Nifti1Image(voxels(), PLACES["LPS"]), tmp_path / "somewhere.nii")
    nowhere, somewhere = (volume_loader()(tmp_path / f"{name}.nii") for name in ("nowhere", "somewhere"))
    assert [text.split(" ", 1)[1] for text in nowhere.meta["warnings"]] == [
        "does not say where it lies (no affine): its axes are taken for RAS."
    ]
    assert "warnings" not in somewhere.meta
    assert list_data_collate([nowhere, somewhere]).shape == (2, 1, *SHAPE)
    assert list_data_collate([nowhere, nowhere]).shape == (2, 1, *SHAPE)
