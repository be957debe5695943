# SPDX-License-Identifier: Apache-2.0
"""Draw pruning.svg: the triangle of a network of depth 4, and what is left of it at L2.

python docs/figures/pruning.py writes it beside this file. Every colour is readable on white and on dark
pages, so the background stays that of the page.
"""

from pathlib import Path

DEPTH, LEVEL = 4, 2
WIDTH, HEIGHT = 860, 640
RADIUS, HEAD = 31, 19
KEPT, DROPPED, OUTPUT = "#2f75e0", "#858d97", "#d0690c"
PLACES = [(i, k - i) for k in range(DEPTH + 1) for i in range(k, -1, -1)]


def x(j: float) -> float:
    """Across, of column ``j``."""
    return 110 + 152 * j


def y(i: float) -> float:
    """Down, of row ``i``."""
    return 155 + 112 * i


def kept(i: int, j: int) -> bool:
    """Whether L2 has node (i, j)."""
    return i + j <= LEVEL


def shape(colour: str, keep: bool) -> str:
    """Fill what stays; of the rest draw the outline."""
    hollow = f'fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="5 5"'
    return f'fill="{colour}"' if keep else hollow


def line(path: str, keep: bool) -> str:
    """Draw an edge: what L2 reads solid, the rest faint and dashed."""
    style = f'stroke="{KEPT}" stroke-width="2.5"' if keep else f'stroke="{DROPPED}" stroke-dasharray="5 5"'
    return f'<path d="{path}" {style} marker-end="url(#{"kept" if keep else "dropped"})"/>'


def edges() -> list[str]:
    """Pooling, upsampling and dense skips, each from rim to rim."""
    lines = []
    for i, j in PLACES:
        keep = kept(i, j)
        if j == 0:
            if i:
                lines.append(line(f"M{x(0)} {y(i - 1) + RADIUS}V{y(i) - RADIUS - 7}", keep))
            continue
        lines.append(line(f"M{x(j - 1) + 25} {y(i + 1) - 19}L{x(j) - 31} {y(i) + 23}", keep))
        lines.append(line(f"M{x(j - 1) + RADIUS} {y(i)}H{x(j) - RADIUS - 7}", keep))
        for n in range(j - 1):  # the longer skips pass over the nodes between
            start, end, top = x(n) + 18, x(j) - 22, y(i) - 42 - 13 * (j - n)
            lines.append(
                line(f"M{start} {y(i) - 25}C{start + 40} {top} {end - 40} {top} {end} {y(i) - 27}", keep)
            )
    return lines


def nodes() -> list[str]:
    """Nodes X^{i,j}, with heads on those of row 0."""
    marks = []
    for i, j in PLACES:
        keep = kept(i, j)
        colour = KEPT if keep else DROPPED
        marks.append(f'<circle cx="{x(j)}" cy="{y(i)}" r="{RADIUS}" {shape(colour, keep)}/>')
        marks.append(
            f'<text x="{x(j)}" y="{y(i) + 8}" fill="{"#ffffff" if keep else colour}">'
            f'X<tspan dy="-8" font-size="15">{i},{j}</tspan></text>'
        )
        if i == 0 and j > 0:
            marks += head(j)
    return marks


def head(k: int) -> list[str]:
    """The 1x1 convolution that ends level ``k``."""
    colour, keep = (OUTPUT, True) if k == LEVEL else (DROPPED, False)
    top, stem = y(0) - 125, "" if keep else ' stroke-dasharray="5 5"'
    return [
        f'<path d="M{x(k)} {y(0) - RADIUS}V{top + 2 * HEAD}" stroke="{colour}" stroke-width="2.5"{stem}/>',
        f'<rect x="{x(k) - HEAD - 6}" y="{top}" width="{2 * HEAD + 12}" height="{2 * HEAD}" rx="6" '
        f"{shape(colour, keep)}/>",
        f'<text x="{x(k)}" y="{top + HEAD + 7}" fill="{"#ffffff" if keep else colour}">'
        f'L<tspan dy="-7" font-size="15">{k}</tspan></text>',
    ]


def draw() -> str:
    """Return the figure as SVG."""
    stay = sum(kept(i, j) for i, j in PLACES)
    cut = LEVEL + 0.5
    words = [
        (KEPT, f"stays: {stay} nodes, the head of L{LEVEL}"),
        (DROPPED, f"goes: {len(PLACES) - stay} nodes, {DEPTH - 1} heads"),
        (DROPPED, f"no arrow leads from these back to L{LEVEL}"),
    ]
    legend = [
        f'<text x="{x(1.95)}" y="{y(3.2) + 32 * n}" fill="{colour}" text-anchor="start" font-size="19">'
        f"{text}</text>"
        for n, (colour, text) in enumerate(words)
    ]
    arrows = [
        f'<marker id="{name}" viewBox="0 0 8 8" refX="1" refY="4" markerWidth="8" markerHeight="8" '
        f'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L8 4L0 8z" fill="{colour}"/></marker>'
        for name, colour in (("kept", KEPT), ("dropped", DROPPED))
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
            f"<title>UNet++ of depth {DEPTH}, pruned to L{LEVEL}</title>",
            f"<desc>Nodes with i + j up to {LEVEL} and the head of L{LEVEL} stay; all others go.</desc>",
            "<defs>",
            *arrows,
            "</defs>",
            '<g fill="none">',
            *edges(),
            f'<path d="M{x(cut + 0.62)} {y(-0.62)}L{x(-0.55)} {y(cut + 0.55)}" stroke="{OUTPUT}" '
            'stroke-width="2.5" stroke-dasharray="14 7"/>',
            "</g>",
            '<g font-family="Helvetica, Arial, sans-serif" font-size="22" font-weight="bold" '
            'text-anchor="middle">',
            *nodes(),
            *legend,
            "</g>",
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    Path(__file__).with_name("pruning.svg").write_text(draw(), encoding="utf-8")
