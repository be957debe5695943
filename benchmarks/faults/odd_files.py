# SPDX-License-Identifier: Apache-2.0
"""Files that are whole but odd, as scanners, CDs and other programs write them: read rightly or refused.

Each variant changes one thing of a plain volume. What is right is told by an independent reader of the files:
pydicom with NumPy, sorted along the normal here; nibabel; SimpleITK. A refusal has to name the file.

python benchmarks/faults/odd_files.py --out benchmarks/results/odd_files.csv
"""

from __future__ import annotations

import argparse
import gzip
import logging
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813  its own documentation's name
import torch
from numpy.typing import NDArray

from monai_unetpp.data import list_volumes
from monai_unetpp.files import write_csv
from monai_unetpp.transforms import LoadImageAndLabeld
from monai_unetpp.transforms.hounsfield import looks_like_labels, why_no_hounsfield

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from dicom import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    SHAPE,
    SPACING,
    dicom_bytes,
    element,
    enhanced_tags,
    hounsfield_of,
    slice_tags,
    write_slices,
)

Found = tuple[NDArray[Any], NDArray[Any]] | None  # voxels (X, Y, Z) and affine; nothing if it is no volume
Variant = tuple[str, str, Callable[[Path], Path]]  # kind, name, what writes it and returns its path

RIGHT = np.stack([hounsfield_of(n).T for n in range(SHAPE[2])], axis=-1).astype(np.float64)
NUMBERS = ("{}", "{:.6f}", "{:e}", " {}", "{} ", "+{}", "{:.10g}", "{:012.5f}")
OUTCOMES = ("read rightly", "refused", "refused, though a volume", "wrong")


def main() -> None:
    """Write every variant, read it, and write one row per kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out")
    parser.add_argument(
        "--list", action="store_true", help="show every variant that is refused, with the reason"
    )
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    counts: dict[str, Counter[str]] = {}
    for kind, name, write in [*series(), *attributes(), *values(), *enhanced(), *files()]:
        with tempfile.TemporaryDirectory() as folder:
            outcome, why = judge(write(Path(folder) / "scan"))
        counts.setdefault(kind, Counter())[outcome] += 1
        if outcome == "wrong" or (args.list and outcome != "read rightly"):
            sys.stdout.write(f"{outcome}: {kind}, {name}: {why}\n")
    for name, volume, is_hu in intensities():
        said = bool(why_no_hounsfield(volume) or looks_like_labels(volume))
        outcome = "wrong" if said == is_hu else "read rightly" if is_hu else "refused"
        counts.setdefault("is it HU (refused: a warning)", Counter())[outcome] += 1
        if outcome == "wrong":
            sys.stdout.write(f"wrong: HU, {name}: {why_no_hounsfield(volume)!r}\n")
    rows = [{"kind": kind, **{outcome: n[outcome] for outcome in OUTCOMES}} for kind, n in counts.items()]
    rows.append({"kind": "all", **{o: sum(n[o] for n in counts.values()) for o in OUTCOMES}})
    for row in rows:
        sys.stdout.write(" | ".join(str(value) for value in row.values()) + "\n")
    if args.out:
        write_csv(args.out, rows)


def judge(path: Path) -> tuple[str, str]:
    """Read a volume as a bundle does, and compare it with what an independent reader finds."""
    wanted = by_pydicom(path) if path.is_dir() else by_libraries(path)
    try:
        case, *others = list_volumes(path)
        if others:  # several scans, each with a name: as good as the question which one is meant
            raise ValueError(f"{path} holds {1 + len(others)} scans.")
        volume = LoadImageAndLabeld("image")(case)["image"]
    except Exception as error:
        if not isinstance(error, (ValueError, OSError)) or str(path) not in str(error):
            return "wrong", f"unclear: {error!r}"
        return ("refused" if wanted is None else "refused, though a volume"), str(error)[:200]
    if wanted is None:
        return "wrong", f"read as {tuple(volume.shape)}, though no volume"
    voxels, affine = volume[0].numpy(), volume.affine.numpy()
    if voxels.shape != wanted[0].shape or not np.allclose(voxels, wanted[0], rtol=1e-5, atol=1e-3):
        return "wrong", f"voxels differ: {voxels.shape}, {wanted[0].shape}"
    if not np.allclose(affine, wanted[1], rtol=1e-3, atol=5e-3):
        return "wrong", f"affine {affine.tolist()}, wanted {wanted[1].tolist()}"
    return "read rightly", ""


# Independent readers


def by_pydicom(folder: Path) -> Found:
    """Return what the files of a folder are by pydicom, if they are one volume."""
    planes: dict[str, list[tuple[NDArray[Any], ...]]] = {}
    for path in sorted(path for path in folder.iterdir() if path.name[0] != "."):
        try:
            dataset = pydicom.dcmread(path, force=True)
            if "TransferSyntaxUID" not in dataset.file_meta:  # no preamble
                dataset.file_meta.TransferSyntaxUID = IMPLICIT if dataset.original_encoding[0] else EXPLICIT
            found = list(_planes(dataset))
        except Exception:
            if path.name.upper().startswith("IM"):
                return None  # a slice that cannot be read
            continue
        if not found and path.name.startswith("IM"):
            return None  # nor one without pixels
        for plane in found:
            planes.setdefault(str(dataset.get("SeriesInstanceUID", "")), []).append(plane)
    if not planes:
        return None
    stack = max(planes.values(), key=len)
    if len({plane[0].shape for plane in stack}) > 1 or len(stack) < 2:
        return None
    values, positions, axes, spacing = (np.array(part) for part in zip(*stack, strict=True))
    if np.abs(axes - axes[0]).max() > 2e-3 or np.abs(spacing / spacing[0] - 1).max() > 2e-3:
        return None
    normal = np.cross(*axes[0].reshape(2, 3))
    order = np.argsort(positions @ normal)
    gaps = np.diff((positions @ normal)[order])
    if gaps.min() < 0.06 or np.abs(gaps - np.median(gaps)).max() > 0.03 * np.median(gaps) or gaps.max() > 50:
        return None
    steps = np.diff(positions[order], axis=0)
    line = positions[order[0]] + np.arange(len(order))[:, None] * steps.mean(axis=0)
    if np.linalg.norm(positions[order] - line, axis=1).max() > 0.5:
        return None  # shifted unevenly; a tilted gantry shifts evenly
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = axes[0][:3] * spacing[0][1], axes[0][3:] * spacing[0][0]
    affine[:3, 2], affine[:3, 3] = steps.mean(axis=0), positions[order[0]]
    return values[order].transpose(2, 1, 0), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _planes(dataset: Any) -> Iterator[tuple[NDArray[Any], ...]]:
    """Values, position, direction and spacing of each section of a file; none if it has no CT."""
    if (
        "PixelData" not in dataset
        or dataset.get("Modality", "").upper() != "CT"
        or dataset.get("SamplesPerPixel", 1) != 1
    ):
        return
    if "LOCALIZER" in dataset.get("ImageType", []):
        return
    if "ModalityLUTSequence" in dataset:
        raise ValueError("lookup table")
    dataset.SamplesPerPixel = dataset.get("SamplesPerPixel", 1)
    dataset.PhotometricInterpretation = dataset.get("PhotometricInterpretation") or "MONOCHROME2"
    pixels = dataset.pixel_array.astype(np.float64)
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        position = np.array(dataset.ImagePositionPatient, float)
        axes, spacing = (
            np.array(dataset.ImageOrientationPatient, float),
            np.array(dataset.PixelSpacing, float),
        )
        slope, intercept = float(_or(dataset, "RescaleSlope", 1)), float(_or(dataset, "RescaleIntercept", 0))
        if position.shape != (3,) or axes.shape != (6,) or spacing.shape != (2,):
            raise ValueError("no place")
        if spacing.min() <= 0 or slope == 0 or not np.isfinite([*position, *axes]).all():
            raise ValueError("no spacing")
        if abs(np.linalg.norm(np.cross(*axes.reshape(2, 3))) - 1) > 0.02:
            raise ValueError("no directions")
        yield pixels * slope + intercept, position, axes, spacing
        return
    shared = dataset.SharedFunctionalGroupsSequence[0]
    for n, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):

        def of(name: str, frame: Any = frame) -> Any:
            return (frame if name in frame else shared)[name][0]

        rescale = of("PixelValueTransformationSequence")
        yield (
            pixels[n] * float(rescale.RescaleSlope) + float(rescale.RescaleIntercept),
            np.array(of("PlanePositionSequence").ImagePositionPatient, float),
            np.array(of("PlaneOrientationSequence").ImageOrientationPatient, float),
            np.array(of("PixelMeasuresSequence").PixelSpacing, float),
        )


def _or(dataset: Any, name: str, default: float) -> Any:
    value = dataset.get(name)
    return default if value is None or value == "" else value


def by_libraries(path: Path) -> Found:
    """Return what a file is by nibabel or SimpleITK, in mm; they know suffixes in small letters alone."""
    if path.name != path.name.lower():
        for beside in list(path.parent.iterdir()):
            (path.parent.parent / beside.name.lower()).write_bytes(beside.read_bytes())
        path = path.parent.parent / path.name.lower()
    try:
        if ".nii" in path.name.lower():
            image: Any = nib.load(path)
            unit = {"meter": 1000.0, "micron": 0.001}.get(image.header.get_xyzt_units()[0], 1.0)
            voxels = image.get_fdata()
            return voxels.reshape(voxels.shape[:3]), np.diag([unit, unit, unit, 1]) @ image.affine
        image = sitk.ReadImage(str(path))
    except Exception:
        return None
    scale = UNITS.get(path.name.split(".")[0].split("-")[-1], 1.0)
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing() * scale
    affine[:3, 3] = np.array(image.GetOrigin()) * scale
    return sitk.GetArrayFromImage(image).transpose(), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


UNITS = {"m": 1000.0, "cm": 10.0, "um": 1e-3}  # ITK does not look at them


# What a folder holds


def series() -> Iterator[Variant]:
    """Other files beside the slices, names, syntaxes, and files that are damaged."""
    report = {
        t: v
        for t, v in slice_tags(0, "1.2.9", t00080060="SR", t00080016="1.2.840.10008.5.1.4.1.1.88.67").items()
        if t < 0x00280000
    }
    others = {
        "report": dicom_bytes(report),
        "report in the series": dicom_bytes(report | {0x0020000E: "1.2.3"}),
        "localizer": dicom_bytes(slice_tags(0, "1.2.8", t00080008="ORIGINAL\\PRIMARY\\LOCALIZER")),
        "localizer, coronal": dicom_bytes(slice_tags(0, "1.2.8", t00200037="1\\0\\0\\0\\0\\-1")),
        "localizer in the series": dicom_bytes(slice_tags(0, t00080008="DERIVED\\SECONDARY\\LOCALIZER")),
        "picture": dicom_bytes(slice_tags(0, "1.2.7", t00200032=None, t00200037=None)),
        "segmentation": dicom_bytes(slice_tags(0, "1.2.6", t00080060="SEG")),
        "dose": dicom_bytes(slice_tags(0, "1.2.5", t00080060="RTDOSE")),
        "text": b"README",
        "zip": b"PK\x03\x04" + bytes(500),
        "empty": b"",
    }
    names = ("OTHER.dcm", "0.dcm", "zz", "notes.txt", "DICOMDIR", "._IM0000.dcm", ".hidden")
    for syntax in (IMPLICIT, EXPLICIT):
        for other, data in others.items():
            for name in names:

                def beside(folder: Path, data: bytes = data, name: str = name, syntax: str = syntax) -> Path:
                    write_slices(folder, syntax=syntax)
                    (folder / name).write_bytes(data)
                    return folder

                yield "what belongs to a series", f"{other} as {name}, {syntax}", beside
    for syntax in (IMPLICIT, EXPLICIT, DEFLATED):
        for preamble in (True, False):
            for rename in ("{}.dcm", "{}.DCM", "{}", "{}.IMA", "1.2.840.{}", "{}.dcm.bak"):

                def named(folder: Path, s: str = syntax, p: bool = preamble, rename: str = rename) -> Path:
                    write_slices(folder, syntax=s, preamble=p or s == DEFLATED)
                    for n, path in enumerate(sorted(folder.iterdir())):
                        path.rename(folder / rename.format(f"IM{7 * n}"))
                    return folder

                yield "what belongs to a series", f"{rename}, {syntax}, preamble {preamble}", named
    for at in range(SHAPE[2]):
        for kept in (0, 50, 131, 140, 300, 500, -1, -100):
            for suffix in (".dcm", ""):

                def cut(folder: Path, at: int = at, kept: int = kept, suffix: str = suffix) -> Path:
                    for path in list(write_slices(folder).iterdir()):
                        path.rename(path.with_suffix(suffix))
                    path = folder / f"IM{at:04d}{suffix}"
                    path.write_bytes(path.read_bytes()[:kept])
                    return folder

                yield "damaged slices", f"slice {at} ends at {kept}, suffix {suffix}", cut
    for trailing in (b"\0", bytes(2), bytes(8), bytes(2000), element(0xFFFCFFFC, bytes(8)), b"\n"):

        def after(folder: Path, trailing: bytes = trailing) -> Path:
            for path in write_slices(folder).iterdir():
                path.write_bytes(path.read_bytes() + trailing)
            return folder

        yield "bytes at the end", repr(trailing[:10]), after


# One attribute after the other


def attributes() -> Iterator[Variant]:
    """Every element left out, empty, written otherwise, of another value: in one slice, half, all."""
    which: dict[str, Callable[[int], bool]] = {
        **{"the first": lambda n: n == 0, "one": lambda n: n == 3, "the last": lambda n: n == SHAPE[2] - 1},
        **{"half": lambda n: n % 2 == 0, "all": lambda _: True},
    }
    directions = [
        "1\\0\\0\\0\\1\\0",
        "0\\1\\0\\1\\0\\0",
        "1\\0\\0\\0\\0\\-1",
        "0\\1\\0\\0\\0\\-1",
        "-1\\0\\0\\0\\1\\0",
    ]
    directions += [
        "0.9998\\0.02\\0\\-0.02\\0.9998\\0",
        "0.99999\\0.0001\\0\\-0.0001\\0.99999\\0",
        "1\\0\\0\\1\\0\\0",
    ]
    directions += ["2\\0\\0\\0\\1\\0", "1\\0\\0\\0\\1", "", "nan\\0\\0\\0\\1\\0"]
    for name, pick in which.items():
        for tag in slice_tags(0):
            for value in (None, ""):
                if tag != 0x7FE00010 and (value is None or isinstance(slice_tags(0)[tag], str)):
                    yield (
                        "an attribute is missing",
                        f"{tag:08x} {value!r} in {name}",
                        _changed(pick, tag, value),
                    )
        for direction in directions:
            yield "direction", f"{direction} in {name}", _changed(pick, 0x00200037, direction)
        for spacing in (
            "0.8\\0.7001",
            "0.8\\0.75",
            "0.7\\0.8",
            "0.8",
            "0\\0",
            "-0.8\\0.7",
            "8E-1\\7E-1",
            "0.8\\0.7\\1",
        ):
            yield "pixel spacing", f"{spacing} in {name}", _changed(pick, 0x00280030, spacing)
        for tag, found in {
            0x00281052: ("0", "-1000", "-1024.5", "-1.024E3", "1e7", "x", "-1024\\0"),
            0x00281053: ("0.5", "2", "1.0", "0", "-1", "1e-9", "1,0"),
        }.items():
            for value in found:
                yield "slope and intercept", f"{tag:08x} {value} in {name}", _changed(pick, tag, value)
        for size in ((0x00280010, 9), (0x00280011, 11), (0x00280010, 0), (0x00280100, 8), (0x00280101, 12)):
            yield "pixel format", f"{size[0]:08x} {size[1]} in {name}", _changed(pick, *size)
        for bits in ((0x00280102, 11), (0x00280103, 1), (0x00280002, 3), (0x00280100, 32), (0x00280100, 1)):
            yield "pixel format", f"{bits[0]:08x} {bits[1]} in {name}", _changed(pick, *bits)
        for uid in ("1.2.44", "1.2.3 ", ""):
            yield "series UID", f"{uid!r} in {name}", _changed(pick, 0x0020000E, uid)
        for modality in ("MR", "ct", "OT"):
            yield "modality", f"{modality} in {name}", _changed(pick, 0x00080060, modality)
    for form in NUMBERS:
        for tag, numbers in {
            0x00200037: (1, 0, 0, 0, 1, 0),
            0x00280030: (0.8, 0.7),
            0x00281052: (-1024,),
        }.items():
            text = "\\".join(form.format(float(number)) for number in numbers)
            for name, pick in which.items():
                yield "numbers written otherwise", f"{text} in {name}", _changed(pick, tag, text)
    for name, height in HEIGHTS.items():

        def placed(folder: Path, height: Callable[[int], float] = height) -> Path:
            return write_slices(folder, lambda n: {"t00200032": f"-20\\-30\\{height(n):.6f}"})

        yield "places", name, placed


HEIGHTS: dict[str, Callable[[int], float]] = {
    **{
        f"{gap} mm apart": (lambda n, gap=gap: gap * n)
        for gap in (0, 1e-5, 0.01, 0.3, 0.625, 5, 10, 60, 1000, -2.5)
    },
    **{f"place {k} twice": (lambda n, k=k: float(min(n, k) if n <= k + 1 else n - 1)) for k in range(5)},
    **{f"a gap after {k}": (lambda n, k=k: float(n + (n > k))) for k in range(5)},
    **{f"jitter of {j}": (lambda n, j=j: n + j * (n % 2)) for j in (1e-6, 1e-3, 0.004, 0.1, 0.4)},
    **{f"{k} phases": (lambda n, k=k: float(n // k)) for k in (2, 3, 6)},
    "phases one after the other": lambda n: float(n % 3),
    "random order": lambda n: float([3, 0, 5, 1, 4, 2][n]),
    "growing": lambda n: float(n**2),
}


def _changed(pick: Callable[[int], bool], tag: int, value: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        folder.mkdir()
        for n in range(SHAPE[2]):
            tags = slice_tags(n)  # pixels as before
            (folder / f"IM{n:04d}.dcm").write_bytes(dicom_bytes(tags | {tag: value} if pick(n) else tags))
        return folder

    return write


# How values are stored


def values() -> Iterator[Variant]:
    """Slopes, intercepts, signs and bits that differ from slice to slice, in every syntax."""
    rescales = [
        ("1", "-1024", 0),
        ("1", "0", 1),
        ("0.5", "-1100", 0),
        ("2", "-2048", 1),
        ("0.25", "-1000.5", 0),
    ]
    for syntax in (IMPLICIT, EXPLICIT, DEFLATED):
        for a in rescales:
            for b in rescales:

                def write(folder: Path, pair: Any = (a, b), syntax: str = syntax) -> Path:
                    def change(n: int) -> dict[str, Any]:
                        slope, intercept, signed = pair[n % 2]
                        return {"t00281053": slope, "t00281052": intercept, "t00280103": signed}

                    return write_slices(folder, change, syntax=syntax)

                yield "values of every slice", f"{a}, {b}, {syntax}", write
    for signed in (0, 1):
        for dtype, bits in (("<u1", 8), ("<u2", 16), ("<u4", 32)):
            for first in (False, True):

                def typed(
                    folder: Path, s: int = signed, d: str = dtype, b: int = bits, f: bool = first
                ) -> Path:
                    def change(n: int) -> dict[str, Any]:
                        if f and n:
                            return {}
                        stored = (np.arange(SHAPE[0] * SHAPE[1]) + n).astype(d)
                        bits = {"t00280100": b, "t00280101": b, "t00280102": b - 1, "t00280103": s}
                        return {**bits, "t7fe00010": stored.tobytes()}

                    return write_slices(folder, change)

                yield "values of every slice", f"{bits} bits, signed {signed}, first alone {first}", typed

    def big(folder: Path) -> Path:
        pixels = lambda n: {"t7fe00010": (hounsfield_of(n) + 1024).astype(">u2").tobytes()}  # noqa: E731
        return write_slices(folder, pixels, syntax=BIG_ENDIAN)

    yield "values of every slice", "big-endian", big


def enhanced() -> Iterator[Variant]:
    """Frames in any order, with a rescale that is shared or their own, in sequences of either length."""
    generator = np.random.default_rng(0)
    orders = [list(range(6)), list(range(6))[::-1], *(generator.permutation(6).tolist() for _ in range(4))]
    rescales: dict[str, Any] = {
        "shared": None,
        "own": lambda n: (1.0, -1024.0 - n),
        "slopes": lambda n: (0.5, -1100.0 - n),
    }
    for order in orders:
        for name, rescale in rescales.items():
            for syntax in (IMPLICIT, EXPLICIT, DEFLATED):
                for undefined in (True, False):

                    def write(
                        folder: Path, o: Any = order, r: Any = rescale, s: str = syntax, u: bool = undefined
                    ) -> Path:
                        folder.mkdir()
                        (folder / "IM1").write_bytes(dicom_bytes(enhanced_tags(o, r), s, undefined=u))
                        return folder

                    yield "enhanced files", f"{order}, {name}, {syntax}, {undefined}", write
    for order in ([0, 1, 2, 2, 4, 5], [0, 0, 0, 0, 0, 0], [0, 1, 2, 4, 5, 6], [0, 1, 0, 1, 0, 1]):

        def broken(folder: Path, o: Any = order) -> Path:
            folder.mkdir()
            (folder / "IM1").write_bytes(dicom_bytes(enhanced_tags(o)))
            return folder

        yield "enhanced files", f"{order}", broken


# Single files


def files() -> Iterator[Variant]:
    """NIfTI, NRRD and MetaImage: units, axes of one voxel, suffixes, lines that libraries do not know."""
    voxels = RIGHT.astype(np.int16)
    for unit, scale in (("mm", 1.0), ("unknown", 1.0), ("meter", 1e-3), ("micron", 1e3)):
        for codes in ((1, 0), (0, 1), (1, 1), (4, 2), (0, 0)):
            for name in ("ct.nii", "ct.nii.gz", "CT.NII.GZ", "ct.Nii"):
                for more in ((), (1,), (1, 1)):

                    def nifti(
                        folder: Path,
                        u: str = unit,
                        s: float = scale,
                        c: Any = codes,
                        n: str = name,
                        m: Any = more,
                    ) -> Path:
                        folder.mkdir()
                        matrix = np.diag([0.7 * s, 0.8 * s, 2.5 * s, 1])
                        matrix[:3, 3] = np.array([20, -30, 40]) * s * (sum(c) > 0)
                        image: Any = nib.Nifti1Image(voxels.reshape(*voxels.shape, *m), matrix)
                        image.set_sform(matrix, c[0])
                        image.set_qform(matrix, c[1])
                        image.header.set_xyzt_units(u)
                        plain = folder / n.lower()
                        nib.save(image, plain)
                        return plain.rename(folder / n)

                    yield "NIfTI: units, axes, suffixes", f"{unit}, {codes}, {name}, {more}", nifti
    lines = {
        **{
            "plain": [],
            "names": ["Segment0_Name:=Läsion 肝", "k:=v: w := x"],
            "long": ["Parameters:=" + "x" * 9000],
        },
        **{"comment": ["# " + "é" * 2000], "many": [f"Segment{n}_Name:=n{n}" for n in range(3000)]},
    }
    for suffix in (".nrrd", ".seg.nrrd", ".NRRD"):
        for encoding in ("raw", "gzip"):
            for what, more_lines in lines.items():
                for unit in ("", "mm", "m", "cm", "um"):
                    for space in ("left-posterior-superior", "RAS", "LPS"):

                        def nrrd(
                            folder: Path,
                            f: str = suffix,
                            e: str = encoding,
                            w: Any = more_lines,
                            u: str = unit,
                            s: str = space,
                        ) -> Path:
                            return _nrrd(folder / f"ct-{u}{f}", e, w, u, s, voxels)

                        yield (
                            "NRRD: units, lines, suffixes",
                            f"{suffix}, {encoding}, {what}, {unit}, {space}",
                            nrrd,
                        )
    for suffix in (".mhd", ".mha", ".MHA"):
        for compressed in (True, False):
            for comment in ("", "Comment = " + "x" * 200 + "\n", "Modality = MET_MOD_CT\nMyKey = 5\n"):

                def meta(folder: Path, f: str = suffix, c: bool = compressed, k: str = comment) -> Path:
                    folder.mkdir()
                    image = sitk.GetImageFromArray(voxels.transpose())
                    image.SetSpacing(SPACING)
                    image.SetOrigin((20, -30, 40))
                    path = folder / f"ct{f.lower()}"
                    sitk.WriteImage(image, str(path), useCompression=c)
                    path.write_bytes(path.read_bytes().replace(b"NDims", k.encode() + b"NDims", 1))
                    return path.rename(folder / f"ct{f}")

                yield "MetaImage: lines, suffixes", f"{suffix}, {compressed}, {comment[:20]}", meta


def _nrrd(path: Path, encoding: str, lines: list[str], unit: str, space: str, voxels: NDArray[Any]) -> Path:
    path.parent.mkdir()
    header = [
        "NRRD0005",
        "type: short",
        "dimension: 3",
        f"space: {space}",
        f"sizes: {' '.join(map(str, SHAPE))}",
    ]
    x, y, z = (step / UNITS.get(unit, 1.0) for step in SPACING)
    origin = ",".join(str(value / UNITS.get(unit, 1.0)) for value in (20, -30, 40))
    header += [f"space directions: ({x},0,0) (0,{y},0) (0,0,{z})", "endian: little", f"encoding: {encoding}"]
    header += [
        f"space origin: ({origin})",
        *([f'space units: "{unit}" "{unit}" "{unit}"'] if unit else []),
        *lines,
    ]
    body = voxels.tobytes(order="F")
    body = gzip.compress(body) if encoding == "gzip" else body
    path.write_bytes("\n".join(header).encode() + b"\n\n" + body)
    return path


# Intensities


def intensities() -> Iterator[tuple[str, torch.Tensor, bool]]:
    """Bodies in air and cut out of it, with noise: in HU, and with what happens to HU."""
    distance = np.linalg.norm(np.indices((40, 36, 30)) - np.array([20, 18, 15])[:, None, None, None], axis=0)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        for tissue in (20.0, 50.0, 80.0):
            body = np.where(distance < 14, tissue, np.where(distance < 16, tissue - 150, -1000.0))
            body = np.where(np.abs(distance - 5) < 0.3, 800.0, body)
            body += rng.normal(0, rng.uniform(3, 40), body.shape)
            padded = np.where(distance > 20, -3024.0, body)
            changes: dict[str, tuple[NDArray[Any], bool]] = {
                **{
                    "as it is": (body, True),
                    "padded": (padded, True),
                    "cut out": (body[10:30, 9:27, 7:22], True),
                },
                **{"air at -1024": (np.maximum(body - 24, -1024), True)},
                **{f"offset {o}": (np.maximum(body + o, -183), False) for o in (1000, 1024, 8192, 32768)},
                **{
                    "twice": (body - 1024, False),
                    "thousandth": (body / 1000, False),
                    "tenfold": (body * 10, False),
                },
                "8 bits": (np.clip((body + 150) / 400, 0, 1) * 255, False),
                "normalised": ((body - body.mean()) / body.std(), False),
                "unsigned": (body + 1100, False),
                "mask": ((distance < 10).astype(float), False),
                "labels": (np.digitize(distance, [5, 10, 15]).astype(float), False),
            }
            for name, (volume, is_hu) in changes.items():
                yield f"{name}, {tissue}", torch.from_numpy(volume.astype(np.float32)), is_hu


if __name__ == "__main__":
    main()
