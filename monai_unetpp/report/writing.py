# SPDX-License-Identifier: Apache-2.0
"""The page: one HTML file without scripts and without anything that lies elsewhere."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

from monai_unetpp._version import __version__
from monai_unetpp.extras import require
from monai_unetpp.files import PathLike, atomic_write
from monai_unetpp.levels import LevelScore, pool_levels, select_level, select_precision
from monai_unetpp.levels.report import why_chosen
from monai_unetpp.report.cases import PREDICTION, REFERENCE, CasePicture
from monai_unetpp.report.curves import level_figure, loss_figure, validation_figure
from monai_unetpp.report.page import Html, data_uri, element, join, page
from monai_unetpp.report.results import Results, read_results
from monai_unetpp.report.tables import (
    class_table,
    data_table,
    dice_text,
    epoch_table,
    level_table,
    parameters_text,
    plan_table,
    spread_table,
    time_text,
)
from monai_unetpp.weights import read_record

__all__ = ["write_report"]

logger = logging.getLogger(__name__)

SECTIONS = {
    "levels": "Accuracy and cost of the levels",
    "cases": "Held-out cases",
    "training": "Training",
    "data": "The data",
    "settings": "The settings and their reasons",
    "next": "Next steps",
}


def write_report(
    bundle: PathLike,
    pictures: Sequence[CasePicture] = (),
    level: int | None = None,
    precision: str | None = None,
    tolerance: float = 0.01,
    out: PathLike | None = None,
) -> Path:
    """Write ``report.html``, one page on a bundle: data, choices, training, levels and held-out cases.

    The page consists of one file and has no scripts. A part that is missing, such as the levels of a bundle
    that was only planned, is one sentence.

    Args:
        bundle: Folder of the bundle.
        pictures: Pictures of held-out cases, from :func:`draw_case`.
        level: Chosen level; by default that in the records of the weights, or, where these differ or have
            none, what :func:`~monai_unetpp.select_level` chooses by the means over the folds.
        precision: Chosen precision, by default likewise.
        tolerance: Loss of Dice that was accepted for the level.
        out: Path of the HTML file; by default ``report.html`` in the bundle. An existing one is replaced.

    Returns:
        Path of the HTML file.

    Raises:
        FileNotFoundError: if there is no such folder.
        ModuleNotFoundError: if matplotlib is not installed.
        ValueError: if a file of the bundle is damaged, which the message names, or no level or precision of
            this name was scored.
    """
    require("figures", "matplotlib")
    results = read_results(bundle)
    scores = pool_levels([*results.levels.values()])
    chosen = _chosen(results, scores, level, precision, tolerance) if scores else None
    parts = {
        "levels": _levels(results, scores, chosen, tolerance),
        "cases": _cases(pictures, chosen),
        "training": _training(results),
        "data": _data(results),
        "settings": _settings(results),
        "next": _next(results, chosen),
    }
    sections = [
        element("section", element("h2", SECTIONS[name]), *content, id=name)
        for name, content in parts.items()
    ]
    footer = element("footer", f"Written by monai-unetpp {__version__}.")
    path = Path(out) if out is not None else results.bundle / "report.html"
    text = page(_name(results), _header(results, chosen), *sections, footer)
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")
    logger.info(f"Wrote {path}.")
    return path


def _chosen(
    results: Results,
    scores: Sequence[LevelScore],
    level: int | None,
    precision: str | None,
    tolerance: float,
) -> LevelScore:
    """Return the score of the chosen level and precision."""
    records = [read_record(path) for path in results.weights.values()]
    if level is None:
        recorded = {record.level for record in records if record is not None}
        known = {score.level for score in scores} & recorded
        level = known.pop() if len(recorded) == len(known) == 1 else select_level(scores, tolerance)
    if precision is None:
        names = {record.precision for record in records if record is not None and record.level == level}
        same = {score.precision for score in scores} & names
        precision = same.pop() if len(names) == len(same) == 1 else select_precision(scores, level)
    for score in scores:
        if (score.level, score.precision) == (level, precision):
            return score
    there = ", ".join(f"L{score.level} in {score.precision}" for score in scores)
    raise ValueError(f"level and precision must be among those scored, {there}, got L{level} in {precision}.")


def _name(results: Results) -> str:
    return results.bundle.resolve().name


def _classes(results: Results) -> list[str]:
    if results.fingerprint is not None:
        return results.fingerprint.labels[1:]
    return list(next((s.dice_per_class for scores in results.levels.values() for s in scores), {}))


def _header(results: Results, chosen: LevelScore | None) -> Html:
    """Return title, one sentence, the most important numbers, and links to the sections."""
    classes, fingerprint = _classes(results), results.fingerprint
    data = f", planned for the data set {Path(fingerprint.data).name}" if fingerprint else ""
    what = f"Segmentation of {', '.join(classes)} by UNet++{data}." if classes else "Segmentation by UNet++."
    tiles = []
    if fingerprint is not None:
        held_out = f"{len(chosen.cases)} of them held out" if chosen and chosen.cases else "in the data set"
        sides = f"in {results.folds} folds, each held out once" if results.folds else held_out
        tiles.append((f"{len(fingerprint.cases)} cases", sides))
    if chosen is not None:
        deepest = max((s for s in pool_levels([*results.levels.values()])), key=lambda s: s.level)
        dice = dice_text(results.levels, chosen)
        over = "mean ± sd of the folds" if len(results.levels) > 1 else "mean ± sd of the cases"
        share = f"{chosen.parameters / deepest.parameters:.0%} of those of L{deepest.level}"
        tiles += [
            (dice, f"Dice of held-out cases, {over if '±' in dice else 'mean'}"),
            (f"L{chosen.level} of L{deepest.level}", "the chosen depth of the network"),
            (parameters_text(chosen.parameters), f"parameters, {share}"),
            (time_text(chosen.seconds), f"for one window, in {chosen.precision}"),
        ]
    items = [element("li", element("b", value), element("span", text)) for value, text in tiles]
    links = [element("a", SECTIONS[name], href=f"#{name}") for name in SECTIONS]
    return element(
        "header",
        element("h1", _name(results)),
        element("p", what),
        *([element("ul", *items, class_="tiles")] if items else []),
        element("nav", *(join(link, Html(" ")) for link in links)),
    )


def _levels(
    results: Results, scores: Sequence[LevelScore], chosen: LevelScore | None, tolerance: float
) -> list[Html]:
    if chosen is None:
        return [element("p", "The levels have not been scored yet.")]
    first = [score for score in scores if score.precision == scores[0].precision]
    same = [score for score in scores if score.precision == chosen.precision]
    reason = why_chosen(first, chosen.level, tolerance)
    if len({score.precision for score in scores}) > 1:
        reason += f" It computes in {chosen.precision}."
    count = len(chosen.cases)
    cases = f"{count} held-out case{'s' * (count != 1)}" if count else "the held-out cases"
    folds = _of_folds(results, len(results.levels))
    scored = f"Every level was scored on {cases}{folds}. Costs are of one window."
    return [
        element("p", scored, " ", reason),
        level_table(scores, chosen.level, chosen.precision),
        class_table(results.levels, scores, chosen.level, chosen.precision),
        element(
            "div",
            level_figure(same, chosen.level, chosen.precision, tolerance),
            element("div", *([spread_table(chosen)] if chosen.dice_per_case_and_class else [])),
            class_="row spread",
        ),
    ]


def _of_folds(results: Results, done: int) -> str:
    """Return how many folds a part is of, if there are folds."""
    if results.folds is None:
        return ""
    return f" of {done} folds" if done == results.folds else f" of {done} of {results.folds} folds"


def _cases(pictures: Sequence[CasePicture], chosen: LevelScore | None) -> list[Html]:
    if not pictures:
        return [element("p", "No pictures of held-out cases were drawn.")]
    ranked = sorted(pictures, key=lambda each: -each.dice)
    each, rest = divmod(len(ranked), 3)
    kinds = ["best"] * each + ["median"] * each + ["worst"] * each if not rest else [""] * len(ranked)
    swatches = [
        join(element("span", class_="swatch", style=f"background:{colour}"), text)
        for colour, text in ((REFERENCE, "reference"), (PREDICTION, "prediction"))
    ]
    level = f" at L{chosen.level}" if chosen is not None else ""
    figures = []
    for kind, shown in zip(kinds, ranked, strict=True):
        name = Path(shown.case).name
        title = f"{kind}: Dice {shown.dice:.3f}" if kind else f"Dice {shown.dice:.3f}"
        image = element("img", src=data_uri(shown.png_bytes), alt=f"{name}, {title}")
        caption = element("figcaption", element("b", title[:1].upper() + title[1:]), Html("<br>"), name)
        figures.append(element("figure", image, caption))
    text = f"The slice with the most foreground of each case, scored{level}. "
    text += "Where the outlines agree, that of the prediction covers the other."
    return [
        element("p", text),
        element("p", *swatches, class_="soft"),
        element("div", *figures, class_="row pictures"),
    ]


def _training(results: Results) -> list[Html]:
    if not results.epochs:
        return [element("p", "No epoch has been completed yet.")]
    count = len(results.epochs)
    text = "Loss and mean Dice by epoch"
    if count > 1:
        text += f"{_of_folds(results, count)}, thin lines, and their mean"
    return [
        element("p", f"{text}."),
        element("div", loss_figure(results.epochs), validation_figure(results.epochs), class_="row"),
        epoch_table(results.epochs),
    ]


def _data(results: Results) -> list[Html]:
    fingerprint = results.fingerprint
    if fingerprint is None:
        return [element("p", "The data were not measured: the bundle has no plan/fingerprint.json.")]
    left = [element("li", element("code", path), " ", why) for path, why in fingerprint.problems.items()]
    return [
        data_table(fingerprint),
        *([element("h3", "Left out"), element("ul", *left)] if left else []),
    ]


def _settings(results: Results) -> list[Html]:
    if results.plan is None:
        return [element("p", "The settings have no reasons: the bundle has no plan/plan.json.")]
    return [plan_table(results.plan)]


def _next(results: Results, chosen: LevelScore | None) -> list[Html]:
    """Return the commands to go on with."""
    bundle = shlex.quote(results.bundle.as_posix())
    folds = [f" --folds {results.folds} --fold {fold[5:]}" for fold in results.weights if fold]
    commands: list[tuple[str, str]] = []
    if not results.weights:
        commands.append(("Train the network:", f"monai-unetpp train {bundle}"))
    elif chosen is None:
        score = "\n".join(f"monai-unetpp levels {bundle}{fold}" for fold in folds or [""])
        commands.append(("Score the levels:", score))
    if results.weights:
        command = f"monai-unetpp segment -i SCANS -o MASKS --bundle {bundle}"
        text = "Segment scans, each into a mask on its own grid:"
        if folds:
            files = [shlex.quote(path.as_posix()) for path in results.weights.values()]
            command += " \\\n    --checkpoint " + " \\\n    ".join(files)
            text = "Segment scans, by the mean of the probabilities of all folds:"
        if chosen is not None and folds:
            command += f" \\\n    --level {chosen.level} --precision {chosen.precision}"
        commands.append((text, command))
        score = "\n".join(f"monai-unetpp evaluate {bundle}{fold}" for fold in folds or [""])
        commands.append(("Score the held-out cases, with distances and single lesions:", score))
    return [join(element("p", text), element("pre", command)) for text, command in commands]
