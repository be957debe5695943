# SPDX-License-Identifier: Apache-2.0
"""Files of the repository that lie outside docs/, brought into the site: one text, no copies.

Pages name them as they lie in the repository, ``../../bundles/liver/README.md`` from ``docs/how-to``, so that
a link works where the repository is read as well as in the site. What is named is added, and what that names.
"""

from __future__ import annotations

import os
import re
import runpy
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")  # the file that [text](file#heading) names
SOURCES: dict[str, Path] = {}  # of the pages that were added, by their place in the site


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List every tutorial in the navigation, below the page on all of them."""
    (listed,) = (entry["Tutorials"] for entry in config.nav or [] if "Tutorials" in entry)
    listed += [site_uri(path) for path in sorted((ROOT / "tutorials").glob("[0-9]*.py"))]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what pages name outside docs/: Markdown and tutorials as pages, anything else as it is."""
    waiting = [DOCS / file.src_uri for file in files.documentation_pages()]
    known = {*waiting}
    while waiting:
        source = waiting.pop()
        for path in targets(source) - known:
            known.add(path)
            if is_page(path):
                waiting.append(path)
            if not path.is_relative_to(DOCS):
                SOURCES[site_uri(path)] = path
                given = {"content": as_markdown(path)} if is_page(path) else {"abs_src_path": str(path)}
                files.append(File.generated(config, site_uri(path), **given))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    source = SOURCES.get(page.file.src_uri, DOCS / page.file.src_uri)

    def link(match: re.Match[str]) -> str:
        path = resolve(source, match[1])
        return os.path.relpath(site_uri(path), Path(site_uri(source)).parent) if path.exists() else match[1]

    return LINK.sub(link, markdown)


def targets(page: Path) -> set[Path]:
    """Files that a page names, of those that exist."""
    return {path for link in LINK.findall(as_markdown(page)) if (path := resolve(page, link)).is_file()}


def resolve(page: Path, link: str) -> Path:
    """The file that a link of a page names: of a folder its README."""
    path = (page.parent / link).resolve()
    return path / "README.md" if path.is_dir() else path


def site_uri(path: Path) -> str:
    """Where a file of the repository lies in the site."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    if path == ROOT / "README.md":  # the site has an index of its own
        return "overview.md"
    return (path.with_suffix(".md") if is_page(path) else path).relative_to(ROOT).as_posix()


def is_page(path: Path) -> bool:
    """Whether a file is read as a page."""
    return path.suffix == ".md" or (path.parent == ROOT / "tutorials" and path.name[0].isdigit())


def as_markdown(path: Path) -> str:
    """The text of a page; of a tutorial, Python in percent format, its cells."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    cells = runpy.run_path(str(ROOT / "tutorials/make_notebooks.py"))["cells"](text)
    return "\n\n".join(body if kind == "markdown" else f"```python\n{body}\n```" for kind, body in cells)
