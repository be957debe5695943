# SPDX-License-Identifier: Apache-2.0
"""Findings of a label map, held against shapes whose measures are known and against other libraries."""

import csv
import json
import math
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  its own documentation's name
from scipy.spatial.distance import pdist, squareform
from skimage.measure import find_contours, label, regionprops

from bundles import affine
from monai_unetpp.files import atomic_write
from monai_unetpp.findings import (
    AxialSlices,
    Confidence,
    Limits,
    axial_diameters,
    find,
    gather,
    parse_limits,
    read_findings,
    totals,
    write_findings,
)
from monai_unetpp.findings.measuring import LPS_OF_RAS

SPACING = (0.7, 0.9, 1.6)
GRIDS = {
    **{codes: affine(codes, SPACING) for codes in ("RAS", "LPS", "PSR", "SAL")},
    "oblique": affine("LPS", SPACING, turn=24),
    "oblique, coronal": affine("LIA", SPACING, turn=24),
}
EVERY_GRID = pytest.mark.parametrize("grid", GRIDS)
ONE = {"nodule": (1,)}


def world(matrix, size):
    return nib.affines.apply_affine(matrix, np.moveaxis(np.indices(size), 0, -1))


def measured(labels, matrix=None, classes=ONE, limits=None, image=None, probability=None):
    matrix = np.eye(4) if matrix is None else matrix
    image = np.zeros(labels.shape, np.float32) if image is None else image
    probability = np.full((1, *labels.shape), 0.9, np.float16) if probability is None else probability
    return find(labels, matrix, classes, image, probability, limits)


def blobs(seed, size=(26, 24, 20), share=0.35):
    """Random components of all shapes."""
    rng = np.random.default_rng(seed)
    smooth = rng.normal(size=size)
    for axis in range(3):
        smooth = sum(np.roll(smooth, n, axis) for n in (-1, 0, 1))
    return (smooth > np.quantile(smooth, 1 - share)).astype(np.uint8)


# Diameters


@EVERY_GRID
def test_ellipsoid_has_its_volume_centre_and_axes_in_every_grid(grid):
    matrix, size, radii = GRIDS[grid], (62, 56, 42), np.array([7.0, 10.0, 14.0])
    centre = nib.affines.apply_affine(matrix, (np.array(size) - 1) / 2 + 0.3)
    inside = (((world(matrix, size) - centre) / radii) ** 2).sum(-1) < 1
    [found] = measured(inside.astype(np.uint8), matrix)
    assert found.volume_ml == pytest.approx(4 / 3 * math.pi * radii.prod() / 1000, rel=0.01)
    assert found.equivalent_diameter_mm == pytest.approx(2 * radii.prod() ** (1 / 3), rel=0.005)
    apart = np.sqrt((radii**2).mean()) / radii.prod() ** (1 / 3)  # of a ball 1
    assert found.elongation == pytest.approx(apart, rel=0.005)
    lps = (found.centre_x_mm, found.centre_y_mm, found.centre_z_mm)
    np.testing.assert_allclose(lps, centre * [-1, -1, 1], atol=0.05)
    # the longest ellipse that a plane of voxels cuts out; axial, it is that of the two radii
    slices = AxialSlices(matrix)
    rows = np.linalg.inv(matrix[:3, :3])[slices.axis]
    steps = np.linalg.svd(rows[None])[2][1:]  # two directions within the planes
    across = np.sort(2 / np.sqrt(np.linalg.eigvalsh(steps @ np.diag(1 / radii**2) @ steps.T)))
    step = max(np.linalg.norm(np.delete(matrix[:3, :3], slices.axis, axis=1), axis=0))
    assert found.long_axis_mm == pytest.approx(across[1], abs=step)
    assert found.short_axis_mm == pytest.approx(across[0], abs=step)
    if not grid.startswith("oblique"):
        np.testing.assert_allclose(across, [14, 20])
        assert slices.tilt == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("grid", ["RAS", "SAL", "oblique, coronal"])
def test_diameters_are_those_of_every_pair_of_points_on_the_outline(grid):
    matrix, slices = GRIDS[grid], AxialSlices(GRIDS[grid])
    others = [axis for axis in range(3) if axis != slices.axis]
    numbered = label(blobs(4, (22, 20, 18), 0.2), connectivity=3)
    for region in regionprops(numbered):
        mask = region.image
        got = axial_diameters(mask, slices)
        longest = []
        for n in range(mask.shape[slices.axis]):
            plane = np.pad(np.take(mask, n, axis=slices.axis), 1).astype(float)
            outline = np.concatenate([np.zeros((0, 2)), *find_contours(plane, 0.5)])
            points = outline @ matrix[:3, others].T  # in the patient, mm
            longest.append(pdist(points).max() if len(points) else 0)
            if n == got.slice:
                assert got.short_mm == pytest.approx(chord_across(points, got.long_mm), abs=2e-3)
        assert got.long_mm == pytest.approx(max(longest), abs=1e-6)
        assert longest[got.slice] == pytest.approx(max(longest), abs=1e-6)


def chord_across(points, long):
    """The longest chord of the hull of points, perpendicular to a longest line between two of them."""
    apart = squareform(pdist(points))
    chords = []
    for a, b in np.argwhere(np.triu(apart) > long - 1e-6):
        along = (points[b] - points[a]) / apart[a, b]
        offset = points - points[a]
        places = offset @ along
        normal = np.linalg.svd(offset)[2][2] if len(points) > 2 else None
        heights = offset @ np.cross(normal, along)
        low, high = np.minimum.outer(places, places), np.maximum.outer(places, places)
        step = np.where(high - low > 1e-9, high - low, 1)
        first = np.where(places[:, None] <= places, heights[:, None], heights)
        last = np.where(places[:, None] <= places, heights, heights[:, None])
        best = 0.0
        for s in np.unique(places.round(6)):  # every line between two points is met at every place
            met = (low <= s + 1e-6) & (s - 1e-6 <= high)
            at = (first + (last - first) * (s - low) / step)[met]
            best = max(best, at.max() - at.min())
        chords.append(best)
    return max(chords)


def test_slice_is_that_of_the_longest_diameter_counted_from_one_in_the_file():
    for codes, axis in (("RAS", 2), ("PSR", 1), ("SAL", 0)):
        mask = np.zeros((12, 12, 12), np.uint8)
        thick = [slice(4, 6)] * 3  # the largest area, and not the longest line
        thick[axis] = 3
        line = [5] * 3
        line[axis], line[(axis + 1) % 3] = 4, slice(1, 11)
        mask[tuple(thick)], mask[tuple(line)] = 1, 1
        [found] = measured(mask, affine(codes, (1, 1, 1)))
        assert found.slice == 5
        assert found.long_axis_mm == 10.0


def test_single_voxel_has_the_size_of_a_voxel():
    mask = np.zeros((5, 5, 5), np.uint8)
    mask[2, 2, 2] = 1
    [found] = measured(mask, np.diag([0.5, 0.8, 3, 1]))
    assert (found.long_axis_mm, found.short_axis_mm) == (0.8, 0.5)
    assert found.volume_ml == pytest.approx(0.0012)
    assert not found.touches_border


# Components


@pytest.mark.parametrize("grid", ["RAS", "PSR", "oblique"])
@pytest.mark.parametrize("seed", range(3))
def test_components_are_those_of_simpleitk(grid, seed):
    """Number, volume, centre in LPS and ball of equal volume, by ITK on the same grid."""
    labels, matrix = blobs(seed, share=0.12), GRIDS[grid]
    image = sitk.GetImageFromArray(labels.T.astype(np.uint8))
    lps = LPS_OF_RAS @ matrix
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.Execute(sitk.ConnectedComponent(image, True))
    wanted = sorted(
        [shapes.GetPhysicalSize(n) / 1000, 2 * shapes.GetEquivalentSphericalRadius(n), *shapes.GetCentroid(n)]
        for n in shapes.GetLabels()
    )
    found = measured(labels.copy(), matrix)
    assert len(found) > 5
    got = sorted(
        [f.volume_ml, f.equivalent_diameter_mm, f.centre_x_mm, f.centre_y_mm, f.centre_z_mm] for f in found
    )
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


def test_intensities_and_probabilities_are_those_of_regionprops():
    labels, rng = blobs(1), np.random.default_rng(1)
    image = rng.normal(40, 100, labels.shape).astype(np.float32)
    p = rng.uniform(0.5, 1, (1, *labels.shape)).astype(np.float16)
    found = measured(labels, image=image, probability=p)
    numbered = label(labels, connectivity=3)
    wanted = sorted(
        (
            *(r.image_intensity[r.image].mean(), r.image_intensity[r.image].std()),
            *(p[0][r.slice][r.image].astype(float).mean(), p[0][r.slice][r.image].max()),
            any(a == 0 or b == size for a, b, size in zip(r.bbox[:3], r.bbox[3:], labels.shape, strict=True)),
        )
        for r in regionprops(numbered, image)
    )
    got = sorted(
        (f.mean_intensity, f.sd_intensity, f.mean_probability, f.peak_probability, f.touches_border)
        for f in found
    )
    np.testing.assert_allclose(np.array(got, float), np.array(wanted, float), rtol=1e-4)
    means = [f.mean_probability for f in found]
    assert means == sorted(means, reverse=True)
    assert [f.finding for f in found] == [*range(1, len(found) + 1)]


def test_classes_are_apart_and_their_totals_are_sums():
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[1:3, 1:3, 1:3], labels[3:5, 1:3, 1:3], labels[6, 6, 6] = 1, 2, 2
    classes = {"liver": (1,), "tumour": (2,), "cyst": (3,)}
    found = measured(labels, np.diag([2, 2, 2, 1]), classes)
    assert sorted((f.label, round(f.volume_ml, 9)) for f in found) == [
        ("liver", 0.064),
        ("tumour", 0.008),
        ("tumour", 0.064),
    ]
    assert totals(found, classes) == [
        {"class": "liver", "findings": 1, "volume_ml": 0.064},
        {"class": "tumour", "findings": 2, "volume_ml": 0.072},
        {"class": "cyst", "findings": 0, "volume_ml": 0},
    ]


def test_thousands_of_components_take_no_more_memory_than_one():
    labels = np.zeros((120, 100, 90), np.uint8)
    labels[::10, ::10, ::10] = 1
    args = (np.zeros(labels.shape, np.float32), np.full((1, *labels.shape), 0.9, np.float16))
    tracemalloc.start()
    try:
        found = find(labels, np.eye(4), ONE, *args)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found) == 12 * 10 * 9
    assert peak < 9 * labels.size  # their numbers, 4 bytes, and masks; a copy for each would be thousands


def test_shapes_that_differ_are_an_error():
    labels = np.zeros((4, 4, 4), np.uint8)
    with pytest.raises(ValueError, match=r"must have the shape of labels, \(4, 4, 4\), got \(4, 4, 5\)"):
        measured(labels, image=np.zeros((4, 4, 5)))


# Limits


def test_what_is_below_a_limit_is_dropped_from_mask_and_table():
    labels = np.zeros((20, 12, 6), np.uint8)
    labels[1:4, 1:4, 1:4], labels[6:16, 1, 1], labels[1, 8, 2], labels[8:12, 6:10, 2:5] = 1, 1, 1, 1
    p = np.full((1, *labels.shape), 0.9, np.float16)
    p[0, 8:12, 6:10] = 0.6
    kept = {
        "all": (Limits(), [27, 10, 1, 48]),
        "volume": (parse_limits(min_volume="10mm3"), [27, 10, 48]),
        "diameter": (parse_limits(min_diameter="1.0 cm"), [10]),
        "confidence": (parse_limits(min_confidence="0.7"), [27, 10, 1]),
        "two": (parse_limits("0.02ml", "4mm"), [48]),
    }
    for limits, wanted in kept.values():
        mask = labels.copy()
        found = measured(mask, limits=limits, probability=p)
        assert sorted(round(f.volume_ml * 1000) for f in found) == sorted(wanted)
        assert mask.sum() == sum(wanted)
        assert ((mask == labels) | (mask == 0)).all()


def two_shapes():
    """A bar, of a higher probability, and a cube, class 1; a voxel of class 2."""
    labels, p = np.zeros((20, 12, 6), np.uint8), np.full((1, 20, 12, 6), 0.8, np.float16)
    labels[1:17, 1:3, 1:3], labels[8:12, 6:10, 1:5], labels[1, 10, 5] = 1, 1, 2
    p[0, :, :4] = 0.9
    return labels, p


def test_findings_are_ranked_by_confidence_where_there_is_one():
    labels, p = two_shapes()
    classes = {"nodule": (1,), "lymph node": (2,)}
    model = {"nodule": Confidence(-1.0, {"mean_probability": 1.0, "elongation": -4.0}, 0.3)}
    args = (labels.copy(), np.eye(4), classes, np.zeros(labels.shape), p)
    assert [round(f.mean_probability, 1) for f in find(*args)] == [0.9, 0.8, 0.8]
    found = find(*args, confidence=model)
    assert [round(1000 * f.volume_ml) for f in found] == [1, 64, 64]
    node, cube, bar = found
    assert node.confidence is None
    assert node.row()["confidence"] is None
    for each in (cube, bar):
        assert each.confidence == each.rank == model["nodule"](vars(each))
    assert bar.mean_probability > cube.mean_probability
    assert bar.elongation > 1.5 > 1.1 > cube.elongation
    assert all(labels[each.voxel] == each.values[0] for each in found)


def test_limit_of_a_confidence_holds_for_its_class():
    labels, p = two_shapes()
    classes = {"nodule": (1,), "lymph node": (2,)}
    model = {"nodule": Confidence(-1.0, {"elongation": -4.0}, 0.2)}  # 0.26 of a cube, less of a bar
    limits = Limits(min_confidence={"nodule": 0.2})
    assert limits.given() == {"min_confidence": {"nodule": 0.2}}
    found = find(labels, np.eye(4), classes, np.zeros(labels.shape), p, limits, model)
    assert [f.label for f in found] == ["lymph node", "nodule"]
    assert np.count_nonzero(labels) == 65


@pytest.mark.parametrize(
    ("text", "mm3"),
    [("30mm3", 30), ("0.03 ml", 30), ("0.03mL", 30), ("30 mm³", 30), (".03cc", 30), ("1.5cm^3", 1500)],
)
def test_volumes_have_units(text, mm3):
    assert parse_limits(min_volume=text).given() == {"min_volume_mm3": mm3}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"min_volume": "30"},
            r"min_volume \(--min-volume\) must be a volume with its unit, such as 30mm3 or",
        ),
        ({"min_volume": "30mm"}, "must be a volume with its unit, .* got '30mm'"),
        ({"min_volume": "-3ml"}, "must be a volume"),
        (
            {"min_diameter": "4"},
            r"min_diameter \(--min-diameter\) must be a length with its unit, such as 4mm",
        ),
        ({"min_diameter": "4mm3"}, "must be a length"),
        ({"min_diameter": "mm"}, "must be a length"),
        ({"min_confidence": "50%"}, r"min_confidence \(--min-confidence\) must be a probability, 0 to 1"),
        ({"min_confidence": 50}, "must be a probability, 0 to 1, such as 0.5, got 50"),
        ({"min_confidence": "nan"}, "must be a probability"),
    ],
)
def test_limit_without_its_unit_is_an_error(given, message):
    with pytest.raises(ValueError, match=message):
        parse_limits(**given)


# Regions


BRATS = {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}


def nested():
    labels = np.zeros((24, 12, 12), np.uint8)
    labels[1:11, 1:11, 1:11], labels[3:8, 3:8, 3:8], labels[4:6, 4:6, 4:6] = 1, 2, 3
    labels[14:18, 2:6, 2:6], labels[15, 3, 3] = 1, 3
    return labels


def test_regions_that_overlap_are_components_of_their_own():
    p = np.stack([np.full(nested().shape, value, np.float16) for value in (0.9, 0.8, 0.7)])
    found = measured(nested(), classes=BRATS, probability=p)
    sizes = {name: sorted(round(1000 * f.volume_ml) for f in found if f.label == name) for name in BRATS}
    assert sizes == {"whole": [64, 1000], "core": [1, 125], "enhancing": [1, 8]}
    assert {(f.label, round(f.mean_probability, 2)) for f in found} == {
        ("whole", 0.9),
        ("core", 0.8),
        ("enhancing", 0.7),
    }


def test_region_that_is_dropped_leaves_the_regions_around_it_and_takes_those_inside():
    labels, p = nested(), np.ones((3, *nested().shape), np.float16)
    found = measured(labels, classes=BRATS, probability=p, limits=Limits(min_volume_mm3=50))
    assert sorted((f.label, round(1000 * f.volume_ml)) for f in found) == [
        *(("core", 125), ("whole", 64), ("whole", 1000)),
    ]
    wanted = nested()
    wanted[wanted == 3] = 2  # too small a region, in the core
    wanted[15, 3, 3] = 1  # no core of 50 mm3, and so nothing that enhances in it
    np.testing.assert_array_equal(labels, wanted)
    again = measured(labels.copy(), classes=BRATS, probability=p)
    assert [f.row() for f in again] == [f.row() for f in found]


# Tables


def write(folder, name, labels, **more):
    classes = more.get("classes", ONE)
    found = measured(labels.copy(), **more)
    slices = AxialSlices(np.eye(4))
    paths = (folder / f"{name}_findings.csv", folder / f"{name}_findings.json")
    write_findings(*paths, f"scans/{name}.nii.gz", found, classes, slices, labels.shape, Limits(3.0))
    return found


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_table_of_all_scans_is_that_of_their_files(tmp_path, caplog):
    first = write(tmp_path, "a", blobs(1))
    second = write(tmp_path / "ward", "b", blobs(2))
    write(tmp_path, "none", np.zeros((4, 4, 4), np.uint8))
    table = gather(tmp_path)
    assert rows(table) == rows(tmp_path / "a_findings.csv") + rows(tmp_path / "ward/b_findings.csv")
    assert len(rows(table)) == len(first) + len(second)
    assert rows(tmp_path / "none_findings.csv") == []
    assert table.read_text().startswith("scan,finding,class,confidence,mean_probability,")
    (tmp_path / "ward" / "b_findings.json").unlink()
    (tmp_path / "none_findings.json").write_text("{")
    with atomic_write(tmp_path / "c_findings.json") as part:
        part.write_text("half of it")
        assert rows(gather(tmp_path)) == rows(tmp_path / "a_findings.csv")
    assert "none_findings.json is damaged" in caplog.text
    with pytest.raises(ValueError, match=r"none_findings.json is damaged.*: restore it, or delete it"):
        read_findings(tmp_path / "none_findings.json")


def test_json_of_a_scan_has_the_totals_the_limits_and_the_axis_of_slices(tmp_path):
    found = write(tmp_path, "a", blobs(1))
    document = json.loads((tmp_path / "a_findings.json").read_text())
    assert document["classes"][0]["findings"] == len(found)
    assert document["classes"][0]["volume_ml"] == pytest.approx(blobs(1).sum() / 1000)
    assert document["limits"] == {"min_volume_mm3": 3.0}
    assert (document["slice_axis"], document["slices"], document["tilt_degrees"]) == (2, 20, 0)
    assert document["findings"] == [each.row() for each in found]
    [row, *_] = rows(tmp_path / "a_findings.csv")
    assert float(row["class_volume_ml"]) == document["classes"][0]["volume_ml"]
