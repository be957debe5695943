# SPDX-License-Identifier: Apache-2.0
"""README, model card and data licence of a packed bundle, with the paths of its layout."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_unetpp.files import PathLike

__all__ = ["find_card", "write_docs"]

CARD = "model_card.md"


def find_card(card: PathLike | None, checkpoint: Path) -> Path | None:
    """Return the path of the model card, if there is one."""
    if card is None:
        beside = checkpoint.parent / "README.md"
        return beside if beside.is_file() else None
    if not Path(card).is_file():
        raise FileNotFoundError(f"card must be a text file, no {card}.")
    return Path(card)


def write_docs(
    source: Path,
    part: Path,
    metadata: Mapping[str, Any],
    card: Path | None,
    overlays: Sequence[str],
    without: Sequence[str] = (),
) -> None:
    """Write README, data licence and model card, with the paths of the packed layout.

    ``overlays`` are merged into its JSONs, and the JSONs of ``without`` are not in it.
    """
    docs = part / "docs"
    docs.mkdir()
    shutil.copy(source / "data_license.txt", docs)
    readme = _relocated((source / "README.md").read_text(encoding="utf-8"), source.name)
    (docs / "README.md").write_text(
        _without_commands(_without_overlays(readme, overlays), without), encoding="utf-8"
    )
    text = (
        _relocated(card.read_text(encoding="utf-8"), source.name) if card else _card_without_scores(metadata)
    )
    (docs / CARD).write_text(text, encoding="utf-8")


def _card_without_scores(metadata: Mapping[str, Any]) -> str:
    said = {key: metadata[key] for key in ("name", "description", "data_source", "intended_use")}
    lines = [f"| {key.replace('_', ' ')} | {value} |" for key, value in said.items()]
    stated = "Data, split and scores of these weights were not stated by whoever packed them."
    return "\n".join(["# Model card", "", "| | |", "| --- | --- |", *lines, "", stated, ""])


def _relocated(text: str, name: str) -> str:
    """Return a text of a flat bundle for a packed one, whose commands run in the bundle's folder."""
    text = text.replace("the root of the repository", "this bundle's folder")
    text = re.sub(rf"bundles/{name}/(\w+\.json)", r"configs/\1", text)
    text = re.sub(rf"bundles/{name}/weights/", "models/", text)
    text = re.sub(rf"bundles/{name}/", "", text)
    text = re.sub(rf"bundles/{name}\b", ".", text)
    text = text.replace("(weights/README.md)", f"({CARD})")

    def link(found: re.Match[str]) -> str:
        kept = found[2].startswith("http") or found[2] in ("data_license.txt", CARD)
        return found[0] if kept else found[1]

    return re.sub(r"\[([^\]]*)\]\(([^)]+)\)", link, text)


def _without_overlays(readme: str, overlays: Sequence[str]) -> str:
    """Return a text whose commands do not name the overlays, which are merged in a packed bundle."""
    if not overlays:
        return readme
    for name in overlays:
        readme = readme.replace(f",'configs/{name}.json'", "").replace(f" --overlay {name}", "")
    readme = re.sub(r"\"\['([^',]+)'\]\"", r"\1", readme)  # a list of one
    title, _, rest = readme.partition("\n")
    names = " and ".join(f"`{name}.json`" for name in overlays)
    return f"{title}\n\n**In this folder {names} is in `train.json` and `inference.json` already.**\n{rest}"


def _without_commands(readme: str, names: Sequence[str]) -> str:
    """Return a text without the blocks of commands that use JSONs which are not there."""
    for name in names:
        inside = rf"(?:(?!^```).)*configs/{name}\.json(?:(?!^```).)*"
        readme, found = re.subn(rf"^```\w*\n{inside}^```\n", "", readme, flags=re.MULTILINE | re.DOTALL)
        if found:
            title, _, rest = readme.partition("\n")
            note = f"**`{name}.json` does not fit the network in this folder, and is not in it.**"
            readme = f"{title}\n\n{note}\n{rest}"
    return readme
