# SPDX-License-Identifier: Apache-2.0
"""Sheets of a scan: every class is on them, text can be read, and the window suits the scan."""

import importlib.util
import json
import runpy
from itertools import combinations
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bundles import AFFINES, affine
from monai_unetpp.pictures import class_colour, display_window, draw_volume, volume_figure
from monai_unetpp.pictures.view import View, choose_slices
from monai_unetpp.readers import volume_loader
from monai_unetpp.segment.pipeline import _class_names

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("matplotlib"), reason='pip install "monai-unetpp[figures]"'
)
REAL = Path(__file__).parents[2] / "shared/data/totalsegmentator_ct"
SIZE = (24, 20, 16)
NAMES = ["background", "liver", "spleen", "kidney_right"]


def body(inside=60.0):
    """CT of a cylinder of tissue in air, with noise; HU."""
    x, y = np.mgrid[:24, :20]
    tissue = ((x - 11.5) ** 2 + (y - 9.5) ** 2 < 81)[..., None] & np.ones(SIZE, bool)
    noise = np.random.default_rng(0).normal(0, 5, SIZE)
    return np.where(tissue, inside, -1000.0) + noise


def boxes(number):
    """A label map of boxes; of class c, slice c has the most."""
    labels = np.zeros(SIZE, np.uint8)
    for c in range(1, number + 1):
        labels[2 * c : 2 * c + 2, 8:12, c] = c
        labels[2 * c, 9, c + 1] = c
    return labels


def save(folder, image, matrix=None, name="ct.nii.gz"):
    nib.save(nib.Nifti1Image(image.astype(np.float32), affine() if matrix is None else matrix), folder / name)
    return folder / name


def is_text(artist):
    return type(artist).__name__ == "Text"


def texts(figure):
    """What is written on a figure."""
    return [text.get_text() for text in figure.findobj(is_text)]


def written(folder, labels, image=None, **arguments):
    return texts(volume_figure(save(folder, body() if image is None else image), labels, **arguments))


# The legend


@pytest.mark.parametrize("name", AFFINES)
def test_legend_has_name_and_volume_of_each_class(tmp_path, name):
    labels = np.zeros(SIZE, np.uint8)
    labels[5:9, 5:11, 3:8], labels[12:20, 5:11, 3:8] = 1, 3
    matrix = AFFINES[name] @ np.diag([0.25, 0.5, 1, 1])  # 1 x 2 x 4 mm
    found = texts(volume_figure(save(tmp_path, body(), matrix), labels, names=NAMES))
    assert "liver: 0.96 ml" in found  # 120 voxels of 8 mm^3
    assert "kidney_right: 1.9 ml" in found  # 240
    assert "spleen: not found" in found


def test_classes_without_names_are_numbered(tmp_path):
    assert {"class 1: 0.58 ml", "class 2: 0.58 ml"} <= {*written(tmp_path, boxes(2))}  # 9 voxels of 64 mm^3


@pytest.mark.parametrize(
    ("names", "text"), [((), "nothing found"), (NAMES[:3], "nothing found (liver, spleen)")]
)
def test_empty_mask_says_that_nothing_was_found(tmp_path, names, text):
    found = written(tmp_path, np.zeros(SIZE, np.uint8), names=names)
    assert text in found
    assert not any(line.endswith(" ml") for line in found)


def test_sheet_names_scan_note_plane_spacing_and_window(tmp_path):
    middle = np.where(boxes(5) == 5, 1, 0)
    found = written(tmp_path, middle, note="bundle liver, slices, L3")
    assert {
        *("ct.nii.gz", "bundle liver, slices, L3", "axial, voxels of 4 x 4 x 4 mm"),
        *("window: soft tissue, W 400 L 40 HU", "A", "P", "R", "L"),
    } <= {*found}
    assert "20 mm" in found  # the bar


# Slices


def drawn(figure):
    """The sheet as it is seen, (rows, columns, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


@pytest.mark.parametrize("number", [3, 9])
def test_every_class_is_outlined_in_its_colour(tmp_path, number):
    sheet = drawn(volume_figure(save(tmp_path, body()), boxes(number), count=2))
    sheet = sheet[: -sheet.shape[0] // 6]  # without the legend
    for c in range(1, number + 1):
        colour = np.array([int(class_colour(c)[n : n + 2], 16) for n in (1, 3, 5)])
        assert (np.abs(sheet - colour).sum(-1) < 12).sum() > 10, c


def test_colours_of_many_classes_differ():
    assert len({class_colour(c) for c in range(1, 120)}) == 119


@pytest.mark.parametrize("count", [1, 4, 6, 12])
def test_largest_slice_of_each_class_is_drawn(count):
    areas = np.random.default_rng(count).integers(0, 50, (30, 5))
    areas[:4] = areas[26:] = 0
    chosen = choose_slices(areas, count)
    assert {int(areas[:, c].argmax()) for c in range(1, 5)} <= {*chosen}
    assert len(chosen) == max(count, 4)
    assert min(chosen) >= 4
    assert max(chosen) < 26


def test_slices_lie_evenly_through_all_if_nothing_is_labelled():
    assert choose_slices(np.zeros((11, 1), int), 3) == [0, 5, 10]
    assert choose_slices(np.zeros((2, 1), int), 12) == [0, 1]


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "PSR", "SAL"])
@pytest.mark.parametrize(("thick", "edges"), [("LR", "PAIS"), ("PA", "RLIS"), ("IS", "RLPA")])
def test_letters_name_the_edges_of_a_slice(axcodes, thick, edges):
    spacing = [5.0 if letter in thick else 1.0 for letter in axcodes]
    view = View(affine(axcodes, spacing), spacing)
    assert view.edges == edges
    assert view.plane_name == {"PAIS": "sagittal", "RLIS": "coronal", "RLPA": "axial"}[edges]


# The window


def pairs(image, labels):
    return [(image[:, :, n], labels[:, :, n]) for n in range(image.shape[2])]


def window(image, labels, **arguments):
    volume = torch.as_tensor(image.astype(np.float32))
    return display_window(volume, pairs(image, labels), (4.0, 4.0), **arguments)


@pytest.mark.parametrize(
    ("organ", "around", "text", "ends"),
    [
        (110, 0, "soft tissue, W 400 L 40 HU", (-160, 240)),
        (30, -850, "lung, W 1500 L -600 HU", (-1350, 150)),  # a nodule
        (-850, 0, "lung, W 1500 L -600 HU", (-1350, 150)),
        (700, 0, "bone, W 1800 L 400 HU", (-500, 1300)),
        (110, -1000, "soft tissue, W 400 L 40 HU", (-160, 240)),  # air is not counted
    ],
    ids=["liver", "nodule", "lungs", "bone", "in-air"],
)
def test_window_of_ct_suits_what_is_outlined(organ, around, text, ends):
    image, labels = body(), np.zeros(SIZE, np.uint8)
    image[5:19, 4:16] = around + np.random.default_rng(0).normal(0, 5, (14, 12, 16))
    image[9:14, 8:12, 4:9], labels[9:14, 8:12, 4:9] = organ, 1
    found = window(image, labels)
    assert (found.text, found[:2]) == (text, ends)


@pytest.mark.parametrize(("lungs", "text"), [(0, "soft tissue"), (-850, "lung")])
def test_window_without_a_class_shows_the_lungs_of_a_chest(lungs, text):
    image = body()
    image[6:18, 4:16] = lungs
    assert window(image, np.zeros(SIZE, np.uint8)).text.startswith(text)


def test_window_of_other_modalities_lies_between_percentiles_of_the_foreground():
    image = np.random.default_rng(0).normal(300, 40, SIZE)
    image[:12] = 0  # background, which does not count
    found = window(image, np.zeros(SIZE, np.uint8))
    assert found[:2] == pytest.approx(np.percentile(image[12:], (1, 99)), abs=3)
    assert found.text == f"1st to 99th percentile, {found.low:.0f} to {found.high:.0f}"


def test_window_of_a_constant_volume_is_one_wide():
    assert window(np.full(SIZE, 7.0), np.zeros(SIZE, np.uint8))[:2] == (7, 8)


def test_window_can_be_chosen(tmp_path):
    assert window(body(), boxes(1), window=[-160, 240]).text == "-160 to 240 HU"
    assert "window: 0 to 255 HU" in written(tmp_path, boxes(1), window=(0, 255))


# The page


def check_texts(figure):
    """No text leaves the page, and none overlaps another one."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    found = [t for t in figure.findobj(is_text) if t.get_text()]
    extents = [text.get_window_extent(renderer) for text in found]
    for text, extent in zip(found, extents, strict=True):
        assert figure.bbox.padded(1).containsx(extent.x0), text
        assert figure.bbox.padded(1).containsx(extent.x1), text
        assert figure.bbox.padded(1).containsy(extent.y0), text
        assert figure.bbox.padded(1).containsy(extent.y1), text
    for (a, first), (b, second) in combinations(zip(found, extents, strict=True), 2):
        assert not first.overlaps(second), (a.get_text(), b.get_text())


@pytest.mark.parametrize("slices", [1, 2, 16])
@pytest.mark.parametrize("names", [NAMES, ["background", *("a very long name of an organ " * 6,) * 9]])
def test_text_fits_and_does_not_overlap(tmp_path, slices, names):
    path = save(tmp_path, body()[:, :, :slices], name=f"{'1.2.840.' * 24}$a_1$.nii.gz")
    figure = volume_figure(path, boxes(9)[:, :, :slices], names=names, note="overlay, " * 90)
    check_texts(figure)
    title = texts(figure)
    assert any(text.startswith("1.2.840.") and "…" in text and text.endswith("$.nii.gz") for text in title)


@pytest.mark.parametrize(
    "size", [(24, 20, 3), (3, 40, 3), (1, 20, 16), (24, 1, 1), (2, 2, 2)], ids=lambda size: f"{size}"
)
def test_odd_sizes_are_drawn(tmp_path, size):
    labels = np.zeros(size, np.uint8)
    labels[..., -1] = 2
    check_texts(volume_figure(save(tmp_path, np.ones(size), affine("RAS", (1, 1, 9))), labels))


def test_name_that_the_font_lacks_is_drawn(tmp_path):
    path = save(tmp_path, body(), name="肝\t臓.nii.gz")
    draw_volume(tmp_path / "sheet.png", path, boxes(1), names=["background", "肝"])
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    found = texts(volume_figure(path, boxes(1), names=["background", "肝"]))
    assert "???.nii.gz" in found
    assert "?: 0.58 ml" in found


def test_labels_on_another_grid_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"labels must be on the grid of .*ct.nii.gz, \(24, 20, 16\), got"):
        volume_figure(save(tmp_path, body()), boxes(1)[:-1])


# Names of the classes


def test_names_of_a_bundle_come_from_its_metadata(tmp_path):
    channels = {"0": "background", "1": "liver", "2": "tumour"}
    for number, names in ((3, ["background", "liver", "tumour"]), (2, ["background", "liver"]), (4, [])):
        metadata = {"network_data_format": {"outputs": {"pred": {"channel_def": channels}}}}
        (tmp_path / "metadata.json").write_text(json.dumps(metadata))
        assert _class_names(tmp_path, number) == names


@pytest.mark.parametrize("text", [None, "{", "{}", "[]", '{"network_data_format": 3}'])
def test_bundle_without_names_has_none(tmp_path, text):
    if text is not None:
        (tmp_path / "metadata.json").write_text(text)
    assert _class_names(tmp_path, 2) == []


# The picture of the documentation


def test_figure_of_the_documentation_has_both_outlines_and_the_dice(tmp_path):
    script = runpy.run_path(str(Path(__file__).parents[1] / "docs/figures/liver_ct.py"))
    label = torch.zeros(SIZE)
    label[6:14, 6:14, 3:12] = 1
    ct = volume_loader()(save(tmp_path, body()))[0]
    figure = script["draw"](ct, torch.roll(label, 1, 0), label, 0.875)
    assert len(figure.axes) == 3
    assert any("Dice 0.875" in text for text in texts(figure))
    sheet = drawn(figure)
    assert (np.abs(sheet - (255, 82, 82)).sum(-1) < 12).sum() > 10
    check_texts(figure)


# Real CT


@pytest.mark.skipif(not REAL.is_dir(), reason="TotalSegmentator's test CT is not here")
def test_organs_of_a_real_scan_are_all_shown_in_the_soft_tissue_window():
    organs = nib.load(REAL / "organs.nii.gz")
    labels = np.asarray(organs.dataobj).astype(np.uint8)
    names = ["background", *json.loads((REAL / "organs.json").read_text()).values()]
    figure = volume_figure(REAL / "ct.nii.gz", labels, names=names)
    check_texts(figure)
    assert "window: soft tissue, W 400 L 40 HU" in texts(figure)
    assert f"liver: {(labels == 1).sum() * 27 / 1000:.0f} ml" in texts(figure)
