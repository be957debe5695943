# SPDX-License-Identifier: Apache-2.0
"""What became of the scans of a folder: ``report.json``, and the same as a page, ``report.html``.

Each process adds its scans to those of the others, under a lock; scans that were done before keep what was
said of them. Where a process has not come to its end, its scans are listed as missing.
"""

from __future__ import annotations

import json
import logging
import platform
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock

from monai_unetpp.files import atomic_write
from monai_unetpp.findings import read_findings
from monai_unetpp.report.run import write_run_page
from monai_unetpp.segment.outcome import Outcome
from monai_unetpp.segment.provenance import describe
from monai_unetpp.segment.results import RANKING, Results, read_ranking

__all__ = ["JSON", "PAGE", "write_run_report"]

JSON, PAGE = "report.json", "report.html"
MISSING = "missing"  # state of a scan that no process has reached
PACKAGES = ("torch", "monai", "numpy")
KEYS = (  # of the entry of a scan
    *("scan", "state", "reason", "seconds", "windows_by_level", "warnings", "volumes_ml"),
    *("findings", "expected_error", "made_by", "files"),
)

logger = logging.getLogger(__name__)

Entry = dict[str, Any]


def write_run_report(results: Results, images: Sequence[str], outcomes: Sequence[Outcome]) -> None:
    """Write the two files, atomically, from this run and from what earlier ones wrote there.

    Args:
        results: Results of the run.
        images: All scans of the run, also those of other processes.
        outcomes: What became of those of this process.
    """
    folder = results.output_dir
    with FileLock(results.locks / f"{JSON}.lock"):
        for name in (JSON, PAGE):
            results.clear(folder / name)
        entries = _earlier(folder / JSON)
        for image in images:
            entries.setdefault(_key(results, image), _entry(results, Outcome(image, MISSING)))
        for outcome in outcomes:
            key = _key(results, outcome.image)
            entries[key] = _merged(entries[key], _entry(results, outcome))
        ranking = read_ranking(folder / RANKING)
        for entry in entries.values():
            entry["expected_error"] = ranking.get(entry["scan"], entry["expected_error"])
        document = {
            "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "run": _run(results),
            "counts": dict(Counter(entry["state"] for entry in entries.values())),
            "scans": entries,
        }
        with atomic_write(folder / JSON) as part:
            part.write_text(json.dumps(document, indent=4) + "\n", encoding="utf-8")
        write_run_page(document, folder, folder / PAGE)


def _run(results: Results) -> dict[str, Any]:
    """Return versions, device, and what makes the masks."""
    pipeline = results.pipeline
    return {
        "bundle": pipeline.bundle,
        "input": str(results.input_dir),
        "output": str(results.output_dir),
        "results": list(results.kinds),
        "device": str(pipeline.device),
        "machine": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        **pipeline.made_by,
    }


def _key(results: Results, image: str) -> str:
    return results.paths(image)["seg"].relative_to(results.output_dir).as_posix()


def _entry(results: Results, outcome: Outcome) -> Entry:
    """Return what a run knows of a scan, as plain JSON."""
    paths, there = results.paths(outcome.image), outcome.state in ("done", "skipped")
    files = {kind: paths[kind].relative_to(results.output_dir).as_posix() for kind in results.kinds if there}
    volumes: dict[str, float] = dict(outcome.volumes)
    findings = None if outcome.findings is None else [each.row() for each in outcome.findings]
    if outcome.state == "skipped" and "findings_json" in files:
        document = read_findings(paths["findings_json"])
        findings = document["findings"]
        volumes = {each["class"]: each["volume_ml"] for each in document["classes"] if each["findings"]}
    return {
        "scan": outcome.image,
        "state": outcome.state,
        "reason": outcome.reason,
        "seconds": round(outcome.seconds, 2) if outcome.state == "done" else None,
        "windows_by_level": {f"L{k}": n for k, n in enumerate(outcome.exits, 1)} or None,
        "warnings": list(outcome.warnings),
        "volumes_ml": {name: round(ml, 5) for name, ml in volumes.items()} if there else None,
        "findings": findings,
        "expected_error": outcome.uncertainty,
        "made_by": describe(results.pipeline.made_by) if there else None,
        "files": files,
    }


def _merged(before: Entry, now: Entry) -> Entry:
    """Return what is known of a scan after this run; of a scan that it did not segment, more before."""
    if now["state"] == "skipped" and before["state"] in ("done", "skipped"):
        kept = {**before, "state": "skipped", "files": before["files"] | now["files"]}
        return {**kept, "findings": kept["findings"] if kept["findings"] is not None else now["findings"]}
    return before if now["state"] == "locked" and before["state"] != MISSING else now


def _earlier(path: Path) -> dict[str, Entry]:
    """Return what earlier runs wrote, nothing if it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        entries: dict[str, Entry] = {key: dict(entry) for key, entry in found["scans"].items()}
        if any({*entry} != {*KEYS} for entry in entries.values()):
            raise ValueError("its scans have other keys")
    except FileNotFoundError:
        return {}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        logger.warning(f"{path} is damaged, what it said of earlier runs is lost: {error!r}")
        return {}
    return entries
