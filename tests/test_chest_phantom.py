# SPDX-License-Identifier: Apache-2.0
"""Synthetic chests: nodules as hard to find as a drawing can make them, and where nodules are."""

import filecmp

import numpy as np
import pytest
from scipy import ndimage

from monai_unetpp.data import read_dataset
from monai_unetpp.data.phantoms import chest_phantom, write_phantoms
from monai_unetpp.data.phantoms.parts import Part

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def phantoms():
    return [chest_phantom(np.random.default_rng([0, k])) for k in range(6)]


def nodules(phantom):
    """Mask and spacing of each nodule."""
    spacing = np.abs(phantom.affine[:3, :3]).max(0)
    found, count = ndimage.label(phantom.label)
    return [(found == n, spacing) for n in range(1, count + 1) if (found == n).sum() > 3]


def surroundings(mask, phantom, distance):
    """The parts within ``distance`` voxels of a nodule, and outside it."""
    shell = ndimage.binary_dilation(mask, iterations=distance) & ~(phantom.label > 0)
    return phantom.parts[shell]


def test_every_case_has_lung_and_nodules(phantoms):
    for phantom in phantoms:
        assert phantom.image.dtype == np.int16
        assert set(np.unique(phantom.label)) == {0, 1}
        assert (phantom.parts == Part.LUNG).mean() > 0.15
        assert 1 <= len(nodules(phantom)) <= 7
    assert len({len(nodules(phantom)) for phantom in phantoms}) > 1


def test_nodules_are_4_to_30_mm(phantoms):
    sizes = [
        2 * (3 * mask.sum() * spacing.prod() / (4 * np.pi)) ** (1 / 3)
        for phantom in phantoms
        for mask, spacing in nodules(phantom)
    ]
    assert 2.5 < min(sizes) < 8  # one cut off by the field of view or the wall is smaller
    assert 12 < max(sizes) < 32


def test_nodules_are_alone_at_the_wall_and_at_vessels(phantoms):
    kinds = set()
    for phantom in phantoms:
        for mask, _ in nodules(phantom):
            around = surroundings(mask, phantom, 2)
            wall = np.isin(around, [Part.MUSCLE, Part.BONE, Part.FAT]).mean()
            vessel = (around == Part.VESSEL).mean()
            kinds.add("wall" if wall > 0.1 else "vessel" if vessel > 0.05 else "alone")
            assert (around == Part.LUNG).mean() > 0.1
    assert kinds == {"alone", "wall", "vessel"}


def test_no_window_of_densities_finds_the_nodules(phantoms):
    """Vessels and the wall are as dense as nodules: even the best window, in the lung's own hull, fails."""
    smooth = [ndimage.uniform_filter(phantom.image.astype(np.float32), 3) for phantom in phantoms]
    lungs = [ndimage.binary_closing(phantom.parts == Part.LUNG, iterations=4) for phantom in phantoms]
    best = 0.0
    for low in range(-700, 100, 100):
        for high in range(low + 100, 500, 100):
            scores = []
            for phantom, image, lung in zip(phantoms, smooth, lungs, strict=True):
                found = (image > low) & (image < high) & lung
                scores.append(2 * (found & (phantom.label > 0)).sum() / (found.sum() + phantom.label.sum()))
            best = max(best, np.mean(scores))
    assert best < 0.7


def test_vessels_are_as_dense_as_solid_nodules(phantoms):
    vessel = np.concatenate([p.image[p.parts == Part.VESSEL] for p in phantoms])
    nodule = np.concatenate([p.image[p.parts == Part.NODULE] for p in phantoms])
    assert np.percentile(vessel, 25) < np.percentile(nodule, 75)
    assert np.percentile(nodule, 25) < np.percentile(vessel, 75)


def test_air_is_air_and_the_wall_is_not(phantoms):
    for phantom in phantoms:
        assert -920 < np.median(phantom.image[phantom.parts == Part.LUNG]) < -740
        assert np.median(phantom.image[phantom.parts == Part.MUSCLE]) > -80


def test_data_set_of_chests_is_read_back_and_equal_for_an_equal_seed(tmp_path):
    for name in "ab":
        write_phantoms(tmp_path / name, "chest", cases=1, seed=3)
    dataset = read_dataset(tmp_path / "a", out_channels=2)
    assert dataset.labels == ["background", "nodule"]
    for folder in ("imagesTr", "labelsTr"):
        a, b = (tmp_path / name / folder / "chest_000.nii.gz" for name in "ab")
        assert filecmp.cmp(a, b, shallow=False)


def test_phantom_of_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="kind must be one of liver, chest, got 'head'"):
        write_phantoms(tmp_path, "head")
