# SPDX-License-Identifier: Apache-2.0
"""The picture of cases: in order, and the right way up however a volume is stored."""

import filecmp
import logging
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from bundles import affine
from monai_unetpp.handlers import ContactSheetSaver

RAS = (20, 16, 6)  # right, front, head


def case(folder, name, axcodes="RAS", shift=0):
    """A bright corner at the patient's left, front and head; a prediction ``shift`` voxels off; one-hot."""
    image = np.zeros(RAS, np.int16)
    image[:5, -4:, -2:] = 300
    label, pred = np.zeros(RAS, bool), np.zeros(RAS, bool)
    label[8:12, 6:10, 4] = True
    pred[8 + shift : 12 + shift, 6:10, 4] = shift < 99
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axcodes)
    )
    image, label, pred = (
        nib.orientations.apply_orientation(a.astype(np.int16), turn) for a in (image, label, pred)
    )
    spacing = np.array([1.0, 1.5, 4.0])[
        [("LR", "PA", "IS").index(pair) for c in axcodes for pair in ("LR", "PA", "IS") if c in pair]
    ]
    matrix = affine(axcodes, spacing)
    nib.save(nib.Nifti1Image(image, matrix), folder / f"{name}.nii.gz")
    meta = MetaTensor(torch.zeros(1), affine=torch.eye(4))
    meta.meta["filename_or_obj"] = str(folder / f"{name}.nii.gz")
    one_hot = [torch.tensor(np.stack([1 - a, a])) for a in (label, pred)]
    return {"image": meta, "label": MetaTensor(one_hot[0], affine=torch.tensor(matrix)), "pred": one_hot[1]}


def sheet(folder, *items):
    saver = ContactSheetSaver(str(folder / "new" / "cases.png"), window=(0, 300), count=2)
    saver(SimpleNamespace(state=SimpleNamespace(output=list(items))))
    return saver


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "PSR", "SAL"])
def test_slice_lies_as_radiologists_look_at_it(tmp_path, axcodes):
    (kept,) = sheet(tmp_path, case(tmp_path, "a", axcodes, shift=1)).slices
    assert (
        kept.image.shape == kept.label.shape == (16, 20)
    )  # rows from back to front, across from right to left
    assert (kept.image[-4:, -5:] == 300).all()  # the patient's left is on the right, the front above
    assert kept.image.sum() == 300 * 20
    assert kept.label[6:10, 8:12].all()
    assert kept.pred[6:10, 7:11].all()
    assert kept.dice == pytest.approx(0.75)
    assert kept.aspect == pytest.approx(1.5)


def test_cases_are_drawn_from_the_best_to_the_worst(tmp_path, caplog):
    saver = sheet(tmp_path, *(case(tmp_path, f"c{shift}", shift=shift) for shift in (3, 0, 99, 2, 1)))
    with caplog.at_level(logging.INFO, logger="monai_unetpp"):
        saver.write()
    assert (tmp_path / "new" / "cases.png").read_bytes()[:4] == b"\x89PNG"
    assert "Drew 5 cases" in caplog.text
    assert {kept.name: kept.dice for kept in saver.slices} == pytest.approx(
        {f"c{n}.nii.gz": d for n, d in {3: 0.25, 0: 1, 99: 0, 2: 0.5, 1: 0.75}.items()}
    )


def test_text_keeps_its_size_where_a_style_has_made_text_larger(tmp_path):
    """As seaborn's ``set(font_scale=2.5)`` does, which nnU-Net calls."""
    matplotlib = pytest.importorskip("matplotlib")
    drawn = []
    for name, style in (("a", {}), ("b", {"font.size": 30, "axes.titlesize": 30, "figure.titlesize": 30})):
        (tmp_path / name).mkdir()
        with matplotlib.rc_context(style):
            sheet(tmp_path / name, case(tmp_path, "c")).write()
        drawn.append(tmp_path / name / "new" / "cases.png")
    assert filecmp.cmp(*drawn, shallow=False)


def test_case_without_a_lesion_is_perfect_or_worst(tmp_path):
    clean, false = case(tmp_path, "clean", shift=99), case(tmp_path, "false")
    for item in (clean, false):
        item["label"][:] = 0
    kept = sheet(tmp_path, clean, false).slices
    assert [k.dice for k in kept] == [1, 0]
    assert kept[1].pred.any()


@pytest.mark.parametrize(
    ("cases", "rows"),
    [(1, [[0]]), (5, [[0, 1], [2, 3], [4]]), (6, [[0, 1], [2, 3], [4, 5]]), (9, [[0, 1], [3, 4], [7, 8]])],
)
def test_every_case_is_drawn_once(tmp_path, cases, rows):
    saver = ContactSheetSaver(str(tmp_path / "cases.png"), count=2)
    assert [slices for _, slices in saver._rows(list(range(cases)))] == rows


def case_of_two_classes(folder, name):
    """A case of which class 1 lies on slice 1, found whole, and class 2 on slice 4, missed."""
    item = case(folder, name)
    label, pred = torch.zeros(3, *RAS), torch.zeros(3, *RAS)
    label[1, 2:6, 2:6, 1] = pred[1, 2:6, 2:6, 1] = 1
    label[2, 8:12, 6:10, 4] = 1
    label[0], pred[0] = 1 - label.sum(0), 1 - pred.sum(0)
    return {**item, "label": MetaTensor(label, affine=item["label"].affine), "pred": pred}


def test_every_class_has_a_slice_with_its_own_dice(tmp_path):
    kept = sheet(tmp_path, case_of_two_classes(tmp_path, "a")).slices
    assert [(k.label_class, k.dice, k.mean_dice) for k in kept] == [(1, 1, 0.5), (2, 0, 0.5)]
    assert kept[0].label[2:6, 14:18].all()  # the patient's left is on the right
    assert kept[1].label[6:10, 8:12].all()
    assert [k.label.sum() for k in kept] == [16, 16]
    assert [k.pred.sum() for k in kept] == [16, 0]


def test_cases_of_several_classes_are_drawn_with_their_names(tmp_path, monkeypatch):
    figures = pytest.importorskip("matplotlib.figure")
    titles = []
    monkeypatch.setattr(
        figures.Figure, "savefig", lambda self, _: titles.extend(a.get_title() for a in self.axes)
    )
    saver = ContactSheetSaver(str(tmp_path / "cases.png"), count=2, labels=["background", "liver", "tumour"])
    items = [case_of_two_classes(tmp_path, name) for name in "ab"]
    saver(SimpleNamespace(state=SimpleNamespace(output=items)))
    with pytest.raises(FileNotFoundError):  # nothing was saved
        saver.write()
    lines = [title.split("\n")[:2] for title in titles]
    assert lines == [
        ["best: a.nii.gz", "liver: Dice 1.00"],
        ["b.nii.gz", "liver: Dice 1.00"],
        ["best: a.nii.gz", "tumour: Dice 0.00"],
        ["b.nii.gz", "tumour: Dice 0.00"],
    ]


def test_window_suits_each_case_or_is_the_one_that_was_chosen(tmp_path):
    assert sheet(tmp_path, case(tmp_path, "a")).slices[0].window[:2] == (0, 300)
    saver = ContactSheetSaver(str(tmp_path / "cases.png"))
    saver(SimpleNamespace(state=SimpleNamespace(output=[case(tmp_path, "a")])))
    assert saver.slices[0].window.text.startswith("1st to 99th percentile")
