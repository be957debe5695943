# SPDX-License-Identifier: Apache-2.0
"""One HTML page on the scans of a folder: what failed, what was found, a sheet of each."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_unetpp.files import PathLike, atomic_write
from monai_unetpp.report.page import Html, data_uri, element, join, page, table
from monai_unetpp.report.tables import time_text

__all__ = ["write_run_page"]

SECTIONS = {
    "attention": "Not segmented",
    "ranking": "Where to look first",
    "scans": "All scans",
    "each": "Scan by scan",
    "settings": "Versions and settings",
}
STATES = {  # of a scan -> for people, and for a number of them; the first ones are listed first
    "failed": ("failed", "failed"),
    "missing": ("missing", "not reached by any process"),
    "locked": ("locked", "locked by another process"),
    "done": ("segmented", "segmented"),
    "skipped": ("done before", "done before"),
}
UNFINISHED = ("failed", "missing", "locked")
COLUMNS = {  # of a finding -> heading, digits; first what they are in the order of
    "confidence": ("confidence", 3),  # if it was calibrated
    "mean_probability": ("mean p", 3),
    "peak_probability": ("peak p", 3),
    "volume_ml": ("volume, ml", 3),
    "long_axis_mm": ("long axis, mm", 1),
    "short_axis_mm": ("short axis, mm", 1),
    "slice": ("slice", 0),
    "mean_intensity": ("intensity", 0),
    "sd_intensity": ("± sd", 0),
}
CENTRE = ("centre_x_mm", "centre_y_mm", "centre_z_mm")
MAX_SHEETS = 200  # that are embedded, about 0.2 MB each
MAX_FINDINGS = 50  # of a scan that are listed
SHEET_WIDTH, JPEG_QUALITY = 1400, 85  # pixels
NOTHING = "-"
SPACE = "\u00a0"

Entry = Mapping[str, Any]


def write_run_page(document: Mapping[str, Any], folder: PathLike, out: PathLike) -> None:
    """Write the page on a run, one file without scripts, atomically.

    Args:
        document: What ``report.json`` holds.
        folder: Folder of the results, in which sheets lie.
        out: Path of the HTML file.
    """
    entries = sorted(document["scans"].values(), key=_order)
    numbers = {entry["scan"]: n for n, entry in enumerate(entries)}
    finished = [entry for entry in entries if entry["state"] not in UNFINISHED]
    parts = {
        "attention": _attention([entry for entry in entries if entry["state"] in UNFINISHED]),
        "ranking": _ranking(finished, numbers),
        "scans": _scans(entries, numbers) if entries else [],
        "each": _each(finished, numbers, Path(folder)),
        "settings": _settings(document["run"]),
    }
    shown = {name: content for name, content in parts.items() if content}
    sections = [
        element("section", element("h2", SECTIONS[name]), *content, id=name)
        for name, content in shown.items()
    ]
    title = f"{document['run']['bundle']}: {_count(len(entries), 'scan')}"
    footer = element("footer", f"Written by monai-unetpp {document['run']['monai_unetpp']}.")
    text = page(title, _header(document, entries, list(shown)), *sections, footer)
    with atomic_write(out) as part:
        part.write_text(text, encoding="utf-8")


def _order(entry: Entry) -> tuple[int, float, str]:
    """Return what scans are put in order by: those not segmented first, then the most uncertain."""
    rank = UNFINISHED.index(entry["state"]) if entry["state"] in UNFINISHED else len(UNFINISHED)
    return rank, -(entry["expected_error"] or 0.0), entry["scan"]


def _header(document: Mapping[str, Any], entries: Sequence[Entry], shown: Sequence[str]) -> Html:
    run, counts = document["run"], document["counts"]
    states = ", ".join(f"{counts[key]} {words}" for key, (_, words) in STATES.items() if counts.get(key))
    tiles = [(_count(len(entries), "scan"), states)]
    measured = [entry["findings"] for entry in entries if entry["findings"] is not None]
    if measured:
        some = sum(bool(each) for each in measured)
        tiles.append((_count(sum(map(len, measured)), "finding"), f"in {some} of {len(measured)} scans"))
    seconds = sorted(entry["seconds"] for entry in entries if entry["seconds"] is not None)
    if seconds:
        middle = seconds[len(seconds) // 2]
        tiles.append((_duration(middle), "to segment a scan, the median"))
    tiles.append((run["level"], f"in {run['precision']}, on {run['device']}"))
    items = [element("li", element("b", value), element("span", text)) for value, text in tiles]
    links = [element("a", SECTIONS[name], href=f"#{name}") for name in shown]
    written = document["written"].replace("T", " ").removesuffix("+00:00")
    return element(
        "header",
        element("h1", f"Segmentation by {run['bundle']}"),
        element("p", "Scans of ", element("code", run["input"]), f", as of {written} UTC."),
        element("ul", *items, class_="tiles"),
        element("nav", *(join(link, Html(" ")) for link in links)),
    )


def _attention(entries: Sequence[Entry]) -> list[Html]:
    if not entries:
        return []
    reasons = {
        "missing": "No process has reached it: start the same command again.",
        "locked": "Another process was segmenting it: its report follows when that process ends.",
    }
    rows = [
        (Path(entry["scan"]).name, STATES[entry["state"]][0], entry["reason"] or reasons[entry["state"]])
        for entry in entries
    ]
    head = element("tr", *(element("th", name, scope="col") for name in ("scan", "state", "reason")))
    body = [
        element(
            "tr",
            element("th", name, scope="row"),
            element("td", state, class_="state"),
            element("td", reason, class_="reason"),
        )
        for name, state, reason in rows
    ]
    parts = element("thead", head), element("tbody", *body)
    return [element("div", element("table", *parts, class_="wide settings"), class_="scroll")]


def _ranking(entries: Sequence[Entry], numbers: Mapping[str, int]) -> list[Html]:
    ranked = [entry for entry in entries if entry["expected_error"] is not None]
    if not ranked:
        return []
    rows = [[_link(entry, numbers), f"{entry['expected_error']:.3f}"] for entry in ranked]
    text = "The scans by the error that the network itself expects, greatest first. It ranks scans; it does "
    text += "not predict how large the error is."
    return [element("p", text), table(["scan", "expected error"], rows)]


def _scans(entries: Sequence[Entry], numbers: Mapping[str, int]) -> list[Html]:
    """Return one row per scan: state, time, number of findings, volumes."""
    classes = list(dict.fromkeys(name for entry in entries for name in entry["volumes_ml"] or {}))
    exits = list(dict.fromkeys(level for entry in entries for level in entry["windows_by_level"] or {}))
    measured = any(entry["findings"] is not None for entry in entries)
    heading = ["scan", "state", "time", *(["findings"] if measured else [])]
    heading += [f"{name}, ml" for name in classes] + [f"windows at {level}" for level in exits]
    rows = []
    for entry in entries:
        volumes, windows = entry["volumes_ml"], entry["windows_by_level"]
        seconds, found = entry["seconds"], entry["findings"]
        row = [
            _link(entry, numbers) if entry["state"] not in UNFINISHED else Path(entry["scan"]).name,
            STATES[entry["state"]][0],
            NOTHING if seconds is None else _duration(seconds),
            *([NOTHING if found is None else str(len(found))] if measured else []),
            *(NOTHING if volumes is None else f"{volumes.get(name, 0):#.4g}" for name in classes),
            *(NOTHING if windows is None else f"{windows.get(level, 0):,}" for level in exits),
        ]
        rows.append(row)
    return [table(heading, rows)]


def _each(entries: Sequence[Entry], numbers: Mapping[str, int], folder: Path) -> list[Html]:
    """Return sheet and findings of each scan of which there is one of them."""
    parts: list[Html] = []
    sheets = 0
    for entry in entries:
        content: list[Html] = [_line(entry)]
        sheet = entry["files"].get("sheet")
        if sheet is not None and sheets < MAX_SHEETS and (folder / sheet).is_file():
            sheets += 1
            name = Path(entry["scan"]).name
            picture = element("img", src=_picture(folder / sheet), alt=f"Slices of {name}", loading="lazy")
            content.append(element("figure", picture, class_="sheet"))
        elif sheet is not None:
            content.append(element("p", "Its sheet is not on this page: ", element("code", sheet), "."))
        content += _findings(entry)
        title = element("h3", Path(entry["scan"]).name)
        parts.append(element("article", title, *content, id=f"scan-{numbers[entry['scan']]}"))
    return parts


def _line(entry: Entry) -> Html:
    """Return what there is to say of a scan beside pictures and numbers."""
    kinds = ("seg", "dicom-seg", "dicom-rtstruct")
    masks = [element("code", entry["files"][kind]) for kind in kinds if kind in entry["files"]]
    places = [part for mask in masks for part in (", ", mask)][1:]
    line = element("p", element("code", entry["scan"]), " → ", *places, class_="soft")
    return join(line, *(element("p", element("b", "Warning: "), text) for text in entry["warnings"]))


def _findings(entry: Entry) -> list[Html]:
    found = entry["findings"]
    if found is None:
        return []
    if not found:
        return [element("p", "Nothing was found.")]
    instances = any(each["instance_uid"] for each in found)
    columns = {key: of for key, of in COLUMNS.items() if any(each.get(key) is not None for each in found)}
    heading = ["", "class", *(title for title, _ in columns.values()), "centre (LPS), mm", ""]
    rows = [
        [
            str(each["finding"]),
            each["class"],
            *(_number(each.get(key), digits) for key, (_, digits) in columns.items()),
            ", ".join(f"{each[key]:.0f}" for key in CENTRE),
            f"at the border{SPACE}of the scan" if each["touches_border"] else "",
        ]
        for each in found[:MAX_FINDINGS]
    ]
    more = len(found) - MAX_FINDINGS
    files = entry["files"].get("findings_csv", "")
    notes = []
    if more > 0:
        notes.append(element("p", f"{more} more are in ", element("code", files), ".", class_="soft"))
    elif instances:
        text = "The UIDs of the images are in "
        notes.append(element("p", text, element("code", files), ".", class_="soft"))
    return [element("div", table(heading, rows), class_="findings"), *notes]


def _settings(run: Mapping[str, Any]) -> list[Html]:
    rows = [
        element(
            "tr",
            element("th", element("code", key), scope="row"),
            element("td", element("code", value if isinstance(value, str) else json.dumps(value))),
        )
        for key, value in run.items()
    ]
    return [element("div", element("table", element("tbody", *rows), class_="wide"), class_="scroll")]


def _picture(path: Path) -> str:
    """Return a sheet as the address of an image, as JPEG of a fifth of the size where that can be made."""
    try:
        from PIL import Image
    except ImportError:
        return data_uri(path.read_bytes())
    with Image.open(path) as sheet:
        drawn = sheet.convert("RGB")
        drawn.thumbnail((SHEET_WIDTH, 8 * SHEET_WIDTH))
        buffer = io.BytesIO()
        drawn.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _link(entry: Entry, numbers: Mapping[str, int]) -> Html:
    return element("a", Path(entry["scan"]).name, href=f"#scan-{numbers[entry['scan']]}")


def _duration(seconds: float) -> str:
    """Return seconds as one reads them, also where they are minutes."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}{SPACE}min{SPACE}{rest}{SPACE}s" if minutes else time_text(seconds)


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
