"""The pictures of docs/benchmarks.md, as SVG: nothing but lines, bars and text. Pure: figures in, text out.

They have a background of their own, so that they can be read on light and dark pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

INK: Final = "#24292f"
FAINT: Final = "#8c959f"
OWN: Final = "#00796b"  # limpet
OTHER: Final = "#b0bec5"
BAD: Final = "#c2410c"
LINE: Final = 20  # pixels from one row to the next
MOST: Final = 3.0  # times what it is held to
STYLE: Final = f"text{{font:12px sans-serif;fill:{INK}}}.head{{font-weight:bold}}.faint{{fill:{FAINT}}}"


class Dot(NamedTuple):
    """A figure as a share of what it is held to, with its interval."""

    name: str
    middle: float
    low: float
    high: float


class Bar(NamedTuple):
    """What one system needs."""

    name: str
    value: float
    is_own: bool


def _text(x: float, y: float, text: str, end: bool = False, kind: str = "") -> str:
    anchor = ' text-anchor="end"' if end else ""
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{anchor}{style}>{escape(text)}</text>'


def _svg(width: int, height: int, title: str, drawn: Iterator[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    inside = [
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<rect width="{width}" height="{height}" rx="6" fill="#fff"/>',
    ]
    return "\n".join([head, *inside, *drawn, "</svg>"]) + "\n"


def dots(title: str, rows: Sequence[Dot]) -> str:
    """Return each of *rows* on one scale, on which 1 is what it is held to: left of it, it is reached.

    What is beyond `MOST` is drawn there, with its figure.
    """
    left, width, most = 540, 960, min(MOST, max(1.5, *(each.high for each in rows)))
    bottom = 50 + LINE * len(rows)

    def at(share: float) -> float:
        return left + min(share, most) / most * (width - left - 50)

    def drawn() -> Iterator[str]:
        yield _text(12, 22, title, kind="head")
        for tick in range(int(most * 2) + 1):
            x, strong = at(tick / 2), tick == 2
            colour, wide = (INK, 1.5) if strong else ("#d0d7de", 1)
            yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="34" y2="{bottom}" stroke="{colour}" stroke-width="{wide}"/>'
            yield _text(x - 8, bottom + 15, f"{tick / 2:g}", kind="" if strong else "faint")
        for number, row in enumerate(rows):
            y, colour = 50 + number * LINE, OWN if row.middle <= 1 else BAD
            yield _text(left - 12, y + 4, row.name, end=True)
            ends = f'x1="{at(row.low):.1f}" x2="{at(row.high):.1f}" y1="{y}" y2="{y}"'
            yield f'<line {ends} stroke="{colour}" stroke-width="3"/>'
            yield f'<circle cx="{at(row.middle):.1f}" cy="{y}" r="5" fill="{colour}"/>'
            if row.middle > most:
                yield _text(at(most) + 10, y + 4, f"{row.middle:.1f}")

    return _svg(width, bottom + 24, title, drawn())


def bars(title: str, panels: Sequence[tuple[str, Sequence[Bar]]]) -> str:
    """Return the *panels*, in two columns, each with a scale of its own."""
    width, column, left = 900, 450, 190
    rows = [panels[at : at + 2] for at in range(0, len(panels), 2)]
    heights = [46 + LINE * max(len(shown) for _, shown in row) for row in rows]

    def drawn() -> Iterator[str]:
        yield _text(12, 22, title, kind="head")
        top = 34
        for row, height in zip(rows, heights, strict=True):
            for number, (name, shown) in enumerate(row):
                yield from _panel(column * number, top, column, left, name, shown)
            top += height

    return _svg(width, 34 + sum(heights), title, drawn())


def _panel(x: float, y: float, width: float, left: float, name: str, shown: Sequence[Bar]) -> Iterator[str]:
    most = max(each.value for each in shown)
    yield _text(x + 12, y + 14, name, kind="head")
    for number, each in enumerate(shown):
        top, long = y + 24 + number * LINE, each.value / most * (width - left - 60)
        yield _text(x + left - 8, top + 12, each.name, end=True)
        yield (
            f'<rect x="{x + left:.1f}" y="{top:.1f}" width="{long:.1f}" height="{LINE - 5}" rx="2" '
            f'fill="{OWN if each.is_own else OTHER}"/>'
        )
        yield _text(x + left + long + 5, top + 12, f"{each.value:.0f}" if each.value >= 10 else f"{each.value:.1f}")
