# SPDX-License-Identifier: Apache-2.0
"""The page on a bundle: all that was found is on it, nothing that is not its own, and no text is code."""

import csv
import json
import shutil
import struct
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from bundles import AFFINES, TINY_PLAN, ball, write_cases
from monai_unetpp.bundle import run_workflow
from monai_unetpp.files import write_csv
from monai_unetpp.levels import LevelScore, pool_levels, write_levels
from monai_unetpp.planning import Source, command, plan_bundle
from monai_unetpp.report import (
    CasePicture,
    draw_case,
    read_results,
    representative_cases,
    write_report,
)
from monai_unetpp.report.cases import PREDICTION, REFERENCE
from monai_unetpp.report.page import Html, element

pytestmark = pytest.mark.usefixtures("_path_as_before")

NAMES = ["<b>", 'a & "b"']  # classes, whose names are no HTML
VOID = {"meta", "img", "br"}
FOLDS = [f"fold_{n}" for n in range(3)]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A bundle that was planned, and nothing more."""
    root = tmp_path_factory.mktemp("planned")
    labels = {"0": "background", **{str(n): name for n, name in enumerate(NAMES, 1)}}
    cases = (ball(f"{name}{n}", matrix) for name, matrix in AFFINES.items() for n in range(2))
    data = write_cases(root / "data & <i>", cases, labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "speed_of_machine", lambda *_: 3e10)
        plan_bundle(Source(data), root / "kidney", given=TINY_PLAN)
    return root / "kidney"


@pytest.fixture
def bundle(planned, tmp_path):
    """A copy of it, to be filled."""
    return Path(shutil.copytree(planned, tmp_path / "kidney & co"))


def score(level, dice, precision="float32", fold=0, cases=4):
    """A score whose cases and classes all differ; ``dice`` is that of the first class of the first case."""
    by_class = {
        name: tuple(round(dice - 0.1 * n + 0.01 * case + 0.003 * fold, 4) for case in range(cases))
        for n, name in enumerate(NAMES)
    }
    means = {name: sum(values) / cases for name, values in by_class.items()}
    per_case = tuple(np.mean(list(by_class.values()), axis=0).tolist())
    mean = float(np.mean(per_case))
    return LevelScore(
        level,
        *(mean, mean - 0.05, mean - 0.02),
        *(means, means, means),
        per_case,
        parameters=1234 * 10**level,
        multiply_adds=10**level,
        seconds=0.0123 * level / (2 if precision != "float32" else 1),
        peak_mib=3.0 * level,
        precision=precision,
        cases=tuple(f"/data/<x>/case_{fold}_{case}.nii.gz" for case in range(cases)),
        dice_per_case_and_class=by_class,
    )


def add_levels(root, folds=("",), precisions=("float32",)):
    """Write levels as the command does; returns fold -> scores."""
    found = {
        fold: [score(k, d, p, n) for p in precisions for k, d in ((1, 0.6), (2, 0.9))]
        for n, fold in enumerate(folds)
    }
    for fold, scores in found.items():
        write_levels(scores, root / "levels" / fold, 2, 0.01, precision=precisions[-1])
    return found


def add_epochs(root, folds=("",), epochs=6):
    for n, fold in enumerate(folds):
        rows = [
            {
                "epoch": epoch,
                "train_loss": 2 / epoch + n,
                "train_mean_dice": 0.1 * epoch,
                "val_mean_dice": 0.12 * epoch + 0.01 * n if epoch % 2 == 0 else "",
                **{f"val_dice_{name}": 0.1 * epoch if epoch % 2 == 0 else "" for name in NAMES},
            }
            for epoch in range(1, epochs + 1)
        ]
        write_csv(root / "runs" / fold / "epochs.csv", rows)


def add_weights(root, folds=("",)):
    for fold in folds:
        (root / "models" / fold).mkdir(parents=True, exist_ok=True)
        (root / "models" / fold / "model.pt").write_bytes(b"weights")


def picture(dice, case="/data/<x>/worst & best.nii.gz"):
    label = np.zeros((20, 24, 8), np.uint8)
    label[5:12, 6:14, 3], label[8:12, 6:14, 5] = 1, 2
    image = np.random.default_rng(0).random(label.shape)
    return draw_case(case, dice, image, label, np.roll(label, 2, 0), np.diag([1, 1, 3, 1]))


class Page(HTMLParser):
    """What a browser sees: text, addresses, identifiers; every element is closed where it belongs."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.links, self.ids, self.words = [], [], [], [], []
        self.source = Path(path).read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).replace("\u00a0", " ").split())


def check_page(path):
    """What is true of every page; returns it."""
    page = Page(path)
    assert not {*page.tags} & {"script", "iframe", "object", "embed", "link", "base", "form"}
    assert "http" not in page.source
    assert "@import" not in page.source
    images = ("#", "data:image/png;base64,", "data:image/jpeg;base64,")
    assert all(link.startswith(images) for link in page.links)
    assert {link[1:] for link in page.links if link[0] == "#"} <= {*page.ids}
    assert len({*page.ids}) == len(page.ids)
    return page


# What is on the page


@pytest.mark.parametrize("folds", [[""], FOLDS], ids=["one training", "folds"])
def test_classes_scores_and_settings_are_on_the_page(bundle, folds):
    add_epochs(bundle, folds)
    add_weights(bundle, folds)
    levels = add_levels(bundle, folds)
    page = check_page(write_report(bundle, [picture(0.91), picture(0.85), picture(0.4)]))
    text = page.text
    for name in NAMES:
        assert name in text
    for scores in pool_levels([*levels.values()]):
        for value in (scores.dice, scores.iou, scores.surface_dice):
            assert f"{value:.3f}" in text
    results = read_results(bundle)
    for choice in results.plan.choices:
        assert choice.key in text
        assert " ".join(choice.reason.split()) in text
    for name, value in results.fingerprint.table():
        assert " ".join(name.split()) in text
        assert value in text
    for found in ("Best: Dice 0.910", "Median: Dice 0.850", "Worst: Dice 0.400", "worst & best.nii.gz"):
        assert found in text
    assert "Chosen: L2, the shallowest within 0.01 Dice of the best." in text
    assert page.tags.count("img") == 3
    assert page.tags.count("svg") == 3
    assert ("fold 1" in text) == (len(folds) > 1)


@pytest.mark.parametrize("folds", [[""], FOLDS], ids=["over the cases", "over the folds"])
def test_deviation_is_that_of_the_folds_or_else_of_the_cases(bundle, folds):
    levels = add_levels(bundle, folds)
    text = check_page(write_report(bundle)).text
    for name in NAMES:
        for k in (0, 1):
            found = [scores[k] for scores in levels.values()]
            values = (
                [each.dice_per_class[name] for each in found]
                if len(folds) > 1
                else found[0].dice_per_case_and_class[name]
            )
            every = [value for each in found for value in each.dice_per_case_and_class[name]]
            assert f"{np.mean(every):.3f} ± {np.std(values, ddof=1):.3f}" in text
    of = "the means of the folds" if len(folds) > 1 else "the cases"
    assert f"mean over the held-out cases ± standard deviation of {of}." in text


def test_names_from_the_data_are_text_and_no_code(bundle):
    add_epochs(bundle)
    add_levels(bundle)
    page = check_page(write_report(bundle, [CasePicture("<script>alert(1)</script>", 0.5, b"png")]))
    assert "&lt;b&gt;" in page.source
    assert "<b></" not in page.source
    assert "a &amp; &quot;b&quot;" in page.source
    assert "<i>" not in page.source
    assert "data & <i>" in page.text
    assert "monai-unetpp train '" in page.text  # a path with a blank, as one types it
    assert "script" not in page.tags


def test_text_of_an_element_is_escaped_and_elements_are_not():
    assert element("p", "<", element("i", "&"), title='"') == '<p title="&quot;">&lt;<i>&amp;</i></p>'
    assert element("p", Html("<br>")) == "<p><br></p>"


def test_commands_are_those_of_what_was_done(bundle):
    def command_lines():
        return check_page(write_report(bundle)).text.split("Next steps")[-1]

    assert "monai-unetpp train" in command_lines()
    add_weights(bundle, FOLDS)
    (bundle / "splits.json").write_text(json.dumps([{"train": [], "val": []}] * 5))
    assert "--folds 5 --fold 2" in command_lines()
    assert "monai-unetpp levels" in command_lines()
    add_levels(bundle, FOLDS)
    text = command_lines()
    assert "monai-unetpp levels" not in text
    assert "monai-unetpp segment -i SCANS -o MASKS --bundle" in text
    assert all(f"models/{fold}/model.pt" in text for fold in FOLDS)
    assert "--level 2 --precision float32" in text


# Levels and precisions


def test_level_and_precision_may_be_given(bundle):
    add_levels(bundle, precisions=("float32", "bfloat16"))
    assert "It computes in bfloat16." in check_page(write_report(bundle)).text  # as accurate, faster
    text = check_page(write_report(bundle, level=1, precision="float32")).text
    assert "Given: L1" in text
    assert "It computes in float32." in text
    with pytest.raises(ValueError, match=r"among those scored, L1 in float32.*got L7 in float32"):
        write_report(bundle, level=7, precision="float32")


def test_merged_levels_are_means_over_folds(bundle):
    levels = add_levels(bundle, FOLDS, ("float32", "bfloat16"))
    read = read_results(bundle).levels
    assert list(read) == FOLDS
    merged = pool_levels([*read.values()])
    assert [(s.precision, s.level) for s in merged] == [
        (p, k) for p in ("float32", "bfloat16") for k in (1, 2)
    ]
    for n, found in enumerate(merged):
        of_folds = [scores[n] for scores in levels.values()]
        for name in ("dice", "iou", "surface_dice", "seconds"):
            want = np.mean([getattr(each, name) for each in of_folds])
            assert getattr(found, name) == pytest.approx(want, abs=1e-4)
        assert found.cases == tuple(case for each in of_folds for case in each.cases)
        want = [value for each in of_folds for value in each.dice_per_case]
        assert found.dice_per_case == pytest.approx(want, abs=1e-4)
    del read["fold_1"][0]
    assert len(pool_levels([*read.values()])) == 3  # not the level that one fold lacks
    assert pool_levels([]) == []


def test_best_median_and_worst_cases_are_found_over_all_folds(bundle):
    add_levels(bundle, FOLDS)
    found = representative_cases(read_results(bundle), 2)
    every = representative_cases(read_results(bundle), 2, count=4)
    assert len(every) == 12
    assert [each.dice for each in every] == sorted((each.dice for each in every), reverse=True)
    assert [found[0], found[-1]] == [every[0], every[-1]]
    assert found[1] in every[5:7]
    assert Path(found[0].case).name == "case_2_3.nii.gz"
    assert found[0].fold == "fold_2"
    assert representative_cases(read_results(bundle), 1, "float16") == []


# What is missing


def test_page_of_an_empty_folder_says_what_is_missing(tmp_path):
    text = check_page(write_report(tmp_path)).text
    for sentence in (
        "The levels have not been scored yet.",
        "No pictures of held-out cases were drawn.",
        "No epoch has been completed yet.",
        "The data were not measured",
        "The settings have no reasons",
    ):
        assert sentence in text


def test_levels_without_their_cases_are_shown(bundle):
    add_levels(bundle)
    (bundle / "levels" / "levels_cases.csv").unlink()
    text = check_page(write_report(bundle)).text
    assert "Dice by class, mean over the held-out cases." in text
    assert "±" not in text


def test_folds_that_are_not_trained_yet_are_counted(bundle):
    (bundle / "splits.json").write_text(json.dumps([{"train": [], "val": []}] * 5))
    add_epochs(bundle, FOLDS)
    add_levels(bundle, FOLDS[:2])
    text = check_page(write_report(bundle)).text
    assert "by epoch of 3 of 5 folds" in text
    assert "held-out cases of 2 of 5 folds" in text


def test_training_of_one_epoch_without_validation_has_curves(bundle):
    add_epochs(bundle, epochs=1)
    assert check_page(write_report(bundle)).tags.count("svg") == 2


def test_page_goes_where_it_is_told_and_replaces_another(bundle, tmp_path):
    out = tmp_path / "pages" / "a.html"
    for _ in range(2):
        assert write_report(bundle, out=out) == out
    assert not (bundle / "report.html").exists()
    assert [path.name for path in out.parent.iterdir()] == ["a.html"]
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        write_report(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("plan/fingerprint.json", "{"),
        ("plan/fingerprint.json", '{"cases": []}'),
        ("plan/plan.json", '{"pixdim": 3}'),
        ("plan/plan.json", "[1]"),
        ("splits.json", "nothing"),
        ("runs/epochs.csv", "epoch\n1\n"),
        ("runs/epochs.csv", "epoch,train_loss\n1,much\n"),
        ("runs/epochs.csv", "epoch,train_loss\n1\n"),
        ("levels/levels.csv", "level,dice\n1,0.5\n"),
        ("levels/levels_cases.csv", "level,precision,case,class\n"),
        ("models/model.json", "{"),
    ],
)
def test_damaged_file_is_named(bundle, path, text):
    add_epochs(bundle)
    add_levels(bundle)
    add_weights(bundle)
    (bundle / path).write_text(text)
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        write_report(bundle)
    assert not (bundle / "report.html").exists()


# Pictures of cases


def read_png(content):
    """(rows, columns, 3), in [0, 1]."""
    from io import BytesIO

    from matplotlib.image import imread

    return imread(BytesIO(content), format="png")[..., :3]


def has_colour(image, colour):
    want = np.array([int(colour[n : n + 2], 16) for n in (1, 3, 5)]) / 255
    return bool((np.abs(image - want).max(-1) < 0.05).any())


def test_slice_with_the_most_foreground_is_drawn_with_both_outlines():
    label = np.zeros((20, 24, 8), np.uint8)
    label[5:12, 6:14, 3], label[8:12, 6:14, 5] = 1, 2
    image = np.zeros(label.shape)
    image[..., 3] = 1 + np.arange(24)  # no other slice is bright
    made = draw_case("a", 0.5, image, label, np.roll(label, 3, 0), np.diag([1, 1, 3, 1]))
    assert (made.case, made.dice) == ("a", 0.5)
    shown = read_png(made.png_bytes)
    assert has_colour(shown, REFERENCE)
    assert has_colour(shown, PREDICTION)
    assert shown.mean() > 0.2
    found = draw_case("a", 0.0, image, np.zeros_like(label), np.roll(label, 3, 0), np.diag([1, 1, 3, 1]))
    assert not has_colour(read_png(found.png_bytes), REFERENCE)
    assert has_colour(read_png(found.png_bytes), PREDICTION)


def test_picture_of_two_dimensions_and_empty_masks_are_drawn():
    image = np.random.default_rng(0).random((30, 40))
    mask = np.zeros((30, 40), np.uint8)
    assert not has_colour(read_png(draw_case("a", 1, image, mask, mask).png_bytes), REFERENCE)
    mask[10:20, 10:20] = 1
    assert has_colour(read_png(draw_case("a", 1, image, mask, mask).png_bytes), PREDICTION)


def test_arrays_on_other_grids_are_refused():
    with pytest.raises(
        ValueError, match=r"one grid of two or three dimensions, got shapes \(4, 4, 4\), \(4, 4,"
    ):
        draw_case("a", 1, np.zeros((4, 4, 4)), np.zeros((4, 4, 3)), np.zeros((4, 4, 4)))


# In a browser


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: chromium, chromium-browser or google-chrome")
@pytest.mark.parametrize("width", [500, 1200])
def test_browser_draws_the_page(bundle, tmp_path, width):
    add_epochs(bundle, FOLDS)
    add_levels(bundle, FOLDS)
    page = write_report(bundle, [picture(0.91), picture(0.85), picture(0.4)])
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'p'}",
    ]
    shot = tmp_path / "page.png"
    subprocess.run(
        [CHROMIUM, *flags, f"--window-size={width},3000", f"--screenshot={shot}", page.as_uri()],
        check=True,
        capture_output=True,
        timeout=120,
    )
    content = shot.read_bytes()
    assert struct.unpack(">II", content[16:24]) == (width, 3000)
    image = read_png(content)
    assert image.std() > 0.05
    assert has_colour(image, REFERENCE)


# From a data set to the page


@pytest.mark.slow
@pytest.mark.parametrize("folds", [None, 2])
def test_trained_bundle_has_a_page(planned, tmp_path, folds):
    root = Path(shutil.copytree(planned, tmp_path / "kidney"))
    each = [{}] if folds is None else [{"folds": folds, "fold": n} for n in range(folds)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", sys.path[:])
        for settings in each:
            run_workflow("train", root, settings=settings)
            run_workflow("levels", root, settings={**settings, "formats": ["pt"]})
    results = read_results(root)
    assert len(results.epochs) == len(results.levels) == len(results.weights) == len(each)
    assert all([row["epoch"] for row in rows] == [1, 2] for rows in results.epochs.values())
    cases = [case for scores in results.levels.values() for case in scores[0].cases]
    assert len({*cases}) == len(cases)
    assert folds is None or len(cases) == 8
    text = check_page(write_report(root)).text
    assert "The levels have not been scored yet." not in text
    [path, *_] = (root / "levels").rglob("levels_cases.csv")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert {row["class"] for row in rows} == {*NAMES}
