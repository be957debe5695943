# SPDX-License-Identifier: Apache-2.0
"""Writing a planned bundle: its JSONs, what it takes from the template, the reasons as its README."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_unetpp.bundle import find_bundle
from monai_unetpp.files import atomic_directory
from monai_unetpp.planning.choices import FAMILY, Plan
from monai_unetpp.planning.configs import TEMPLATE, planned_configs
from monai_unetpp.planning.fingerprint import Fingerprint

__all__ = ["OVERLAYS", "write_bundle"]

OVERLAYS = (  # taken as they are
    *("evaluate", "levels", "early_exit", "findings", "multi_gpu_train", "multi_gpu_evaluate"),
)
PARSED = re.compile(r"[$@%]|.*#")  # what MONAI's parser reads: signs at the beginning, and # anywhere


def write_bundle(
    plan: Plan, fingerprint: Fingerprint, out: Path, extra: Mapping[str, Any] | None = None
) -> None:
    """Write a bundle atomically.

    Args:
        plan: Settings of the bundle.
        fingerprint: Fingerprint of the data set.
        out: Folder to make; its name is the bundle's.
        extra: Contents of further JSON files, by name.

    Raises:
        FileExistsError: if ``out`` exists.
        ValueError: if a path has a sign that MONAI's parser would read as code.
    """
    texts = [str(out), fingerprint.data, *fingerprint.labels, *fingerprint.modality, *fingerprint.problems]
    for text in [*texts, *(place for place in fingerprint.places.values() if isinstance(place, str))]:
        if PARSED.match(text):
            raise ValueError(
                f"{text} must have no # and no $, @ or % at its beginning, which MONAI reads as code."
            )
    source = find_bundle(TEMPLATE)
    with atomic_directory(out) as part:
        for name, config in planned_configs(plan, fingerprint, out).items():
            _write(part / f"{name}.json", config)
        for name, content in (extra or {}).items():
            _write(part / name, content)
        for name in (*(f"{name}.json" for name in OVERLAYS), "logging.conf", "LICENSE"):
            shutil.copyfile(source / name, part / name)
        data = Path(fingerprint.data).name
        (part / "data_license.txt").write_text(
            f"The licence of the data set {data} is not stated here.\n", encoding="utf-8"
        )
        (part / "README.md").write_text(_readme(fingerprint, plan, out), encoding="utf-8")
        (part / "plan").mkdir()
        _write(part / "plan" / "fingerprint.json", fingerprint.to_json(), None)
        _write(
            part / "plan" / "plan.json", {c.key: {"value": c.value, "reason": c.reason} for c in plan.choices}
        )


def _write(path: Path, content: Mapping[str, Any] | Sequence[Any], indent: int | None = 4) -> None:
    path.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")


def _readme(fingerprint: Fingerprint, plan: Plan, out: Path) -> str:
    """Return the text of the bundle's README: the data, the choices with their reasons, the next commands."""
    root, kind = shlex.quote(out.as_posix()), FAMILY[plan["skips"]]
    rows = [f"| {name} | {value} |" for name, value in fingerprint.table()]
    choices = [f"| `{c.key}` | {c.value} | {c.reason} |" for c in plan.choices]
    left = [f"- `{path}` {why}" for path, why in fingerprint.problems.items()]
    lines = [
        f"# {out.name}",
        "",
        f"{kind} for {', '.join(fingerprint.labels[1:])}, planned by `monai-unetpp plan` for the",
        f"data set `{Path(fingerprint.data).name}`. All of it is in `train.json` and `inference.json`.",
        "",
        "```bash",
        f"python -m monai.bundle run --config_file {shlex.quote(f'{out.as_posix()}/train.json')}",
        f"monai-unetpp evaluate {root}",
        f"monai-unetpp levels {root}",
        f"monai-unetpp segment -i SCANS -o MASKS --bundle {root}",
        "```",
        "",
        "## The data",
        "",
        "| | |",
        "| --- | --- |",
        *rows,
        "",
        "## The choices",
        "",
        "| setting | value | reason |",
        "| --- | --- | --- |",
        *choices,
        "",
    ]
    if left:
        lines += ["## Left out", "", *left, ""]
    return "\n".join(lines)
