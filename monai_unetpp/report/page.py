# SPDX-License-Identifier: Apache-2.0
"""Elements of an HTML page, whose text is escaped, and the page around them."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

__all__ = ["Html", "data_uri", "element", "join", "page", "table"]

# colours of print and of light screens, then of dark ones; figures use them as well
STYLE = """
:root { --text: #1d2733; --soft: #5b6875; --paper: #ffffff; --raised: #f5f7f9; --rule: #d9dee4;
  --accent: #c23b50; --calm: #3f77a8; --band: #edf2f7; --mark: #fbeef0;
  --font: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
@media screen and (prefers-color-scheme: dark) { :root { --text: #e4e9ee; --soft: #9aa7b4; --paper: #14191f;
  --raised: #1c232b; --rule: #343e49; --accent: #f07f8f; --calm: #7db1dd; --band: #222c37;
  --mark: #33232a; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; color-scheme: light dark; }
body { margin: 0 auto; padding: 2rem 1.25rem 3rem; max-width: 66rem; font: 1rem/1.55 var(--font);
  color: var(--text); background: var(--paper); overflow-wrap: break-word; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .35rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 2.25rem 0 .6rem; padding-top: .9rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
p { margin: .4rem 0 .8rem; max-width: 44rem; }
a { color: var(--calm); }
nav { margin-top: .8rem; font-size: .9rem; }
nav a { margin-right: 1rem; text-decoration: none; white-space: nowrap; }
.soft, figcaption, .caption, footer { color: var(--soft); font-size: .9rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .75rem;
  margin: 1.4rem 0 0; padding: 0; list-style: none; }
.tiles li { background: var(--raised); border-radius: .5rem; padding: .7rem .9rem; }
.tiles b { display: block; font-size: 1.35rem; line-height: 1.3; font-weight: 600; white-space: nowrap; }
.tiles span { color: var(--soft); font-size: .85rem; line-height: 1.35; display: block; }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: 1.5rem;
  margin: 1rem 0; }
figure { margin: 0; min-width: 0; }
figure svg { display: block; width: 100%; max-width: 30rem; height: auto; overflow: visible; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figure svg text { fill: currentColor; }
figure img { display: block; width: 100%; max-width: 30rem; border-radius: .3rem; background: #000; }
figcaption { margin-top: .45rem; line-height: 1.4; }
figcaption b { color: var(--text); font-weight: 600; }
.swatch { display: inline-block; width: 1.1em; height: .25em; border-radius: .1em; vertical-align: middle;
  margin: 0 .4em 0 .9em; }
.swatch:first-child { margin-left: 0; }
figure.sheet img { max-width: 100%; }
.findings :is(td, th):nth-child(2) { text-align: left; }
.pictures { grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .92rem; line-height: 1.4; font-variant-numeric: tabular-nums; }
.caption { margin: 1.2rem 0 .1rem; }
.caption + .scroll { margin-top: 0; }
th, td { padding: .32rem 1.1rem .32rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--rule); }
thead th { color: var(--soft); font-weight: 500; font-size: .85rem; vertical-align: bottom; }
tbody th { font-weight: 500; }
.numbers :is(td, thead th + th) { text-align: right; padding: .32rem .55rem; white-space: nowrap; }
.numbers tbody th { min-width: 4rem; }
.numbers tr > :first-child { position: sticky; left: 0; padding-left: 0; background: var(--paper); }
.numbers tr > .chosen:first-child { background: var(--mark); }
.chosen { background: var(--mark); }
tbody .chosen { font-weight: 600; }
.wide { width: 100%; }
.wide td, .wide th { overflow-wrap: anywhere; }
.wide tbody th { width: 13rem; }
.settings td code { white-space: normal; }
.settings th code { white-space: nowrap; }
.settings .state { white-space: nowrap; overflow-wrap: normal; }
p code, li code, pre, figcaption { overflow-wrap: anywhere; }
code, pre { font: .88em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { background: var(--raised); border-radius: .5rem; padding: .8rem 1rem; white-space: pre-wrap;
  margin: .3rem 0 1rem; }
footer { margin-top: 3rem; padding-top: .8rem; border-top: 1px solid var(--rule); }
@media (max-width: 36rem) {
  body { padding: 1.25rem 1rem 2rem; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .settings thead { display: none; }
  .settings :is(tr, th, td) { display: block; width: auto; border: 0; padding: 0; }
  .wide tbody th { width: 35%; }
  .settings tr { padding: .5rem 0; border-bottom: 1px solid var(--rule); }
  .settings :is(th, th + td) { display: inline; margin-right: .6rem; }
  .settings .reason { color: var(--soft); }
  .numbers { font-size: .85rem; }
  .numbers :is(td, thead th + th) { padding: .3rem .4rem; white-space: normal; }
}
@media print {
  :root { font-size: 9.5pt; }
  body { max-width: none; padding: 0; }
  nav { display: none; }
  figure, tr, pre, .tiles { break-inside: avoid; }
  h2, h3, .caption { break-after: avoid; }
  .tiles li, pre { border: 1px solid var(--rule); }
  .scroll { overflow: visible; }
  .spread { grid-template-columns: 4fr 5fr; }
  .numbers :is(td, thead th + th) { padding: .25rem .3rem; }
  .tiles { grid-template-columns: repeat(5, 1fr); gap: .4rem; }
  .tiles li { padding: .4rem .5rem; }
  .tiles b { font-size: 1rem; }
  .pictures { grid-template-columns: repeat(3, 1fr); gap: .8rem; }
}
"""

VOID = ("img", "meta")


class Html(str):
    """Text that is HTML already; any other text is escaped when it becomes part of an element."""

    __slots__ = ()


def element(name: str, /, *content: str, **attributes: str) -> Html:
    """Return an element; content that is not :class:`Html`, and the values of attributes, are escaped.

    Args:
        name: Name of the element.
        *content: Text and elements.
        **attributes: Attributes; an underscore at the end of a name, as in ``class_``, is left out.

    Example:
        >>> element("p", "a < b ", element("b", "&"), class_="x")
        '<p class="x">a &lt; b <b>&amp;</b></p>'
    """
    given = "".join(f' {key.rstrip("_")}="{html.escape(value)}"' for key, value in attributes.items())
    if name in VOID:
        return Html(f"<{name}{given}>")
    return Html(f"<{name}{given}>{join(*content)}</{name}>")


def join(*content: str) -> Html:
    """Return text and elements in a row; what is not :class:`Html` is escaped."""
    return Html("".join(each if isinstance(each, Html) else html.escape(each) for each in content))


def table(
    heading: Sequence[str],
    rows: Iterable[Sequence[str]],
    caption: str = "",
    chosen_row: int | None = None,
    chosen_column: int | None = None,
) -> Html:
    """Return a table of numbers, whose first column names its rows.

    Args:
        heading: Names of the columns.
        rows: Cells of each row, the first one its name.
        caption: Text above the table.
        chosen_row: Index of a row to mark.
        chosen_column: Index of a column to mark.
    """

    def mark(row: int | None, column: int) -> dict[str, str]:
        in_row, in_column = row is not None and row == chosen_row, column == chosen_column
        return {"class_": "chosen"} if in_row or in_column else {}

    def cells(n: int, row: Sequence[str]) -> list[Html]:
        names = ["th" if column == 0 else "td" for column in range(len(row))]
        scope = [{"scope": "row"} if column == 0 else {} for column in range(len(row))]
        return [element(names[c], cell, **scope[c], **mark(n, c)) for c, cell in enumerate(row)]

    head = [element("th", cell, scope="col", **mark(None, c)) for c, cell in enumerate(heading)]
    body = [element("tr", *cells(n, row)) for n, row in enumerate(rows)]
    parts = element("thead", element("tr", *head)), element("tbody", *body)
    title = [element("p", caption, class_="caption")] if caption else []
    return join(*title, element("div", element("table", *parts, class_="numbers"), class_="scroll"))


def data_uri(png: bytes) -> str:
    """Return a PNG as the address of an image."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def page(title: str, *content: Html) -> str:
    """Return an HTML document."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        Html(f"<style>{STYLE}</style>"),
    )
    body = element("body", *(join(each, Html("\n")) for each in content))
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"
