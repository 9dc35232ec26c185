"""Report pages: one self-contained HTML file of paragraphs, tables, figures and code blocks.

Nothing on a page depends on the network or on the time, so the same contents give the same bytes.
"""

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from tsfm_data.io import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Value = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows under named columns; numbers are aligned to the right.

    Attributes:
        rows: each maps column names to values; a missing or None value is shown as a dash.
        caption: a line below the table.
        strong: indices of the rows in bold.
        digits: significant digits of floating-point numbers.
    """

    rows: Sequence[Mapping[str, Value]]
    caption: str = ""
    strong: Sequence[int] = ()
    digits: int = 3


@dataclass(frozen=True)
class Image:
    """A figure with its alternative text.

    Attributes:
        figure: embedded as SVG.
        alt: what it shows, for readers who cannot see it.
        caption: a line below it.
    """

    figure: "Figure"
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Code:
    """A block of commands or preformatted text."""

    text: str


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: heading; empty for none.
        parts: contents in order; a string is a paragraph.
    """

    title: str
    parts: Sequence[str | Table | Image | Code]


def page(title: str, sections: Sequence[Section], lead: str = "") -> str:
    """The HTML text of a page.

    Args:
        title: heading and title of the page.
        sections: its parts, in order.
        lead: the main result in a sentence or two.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    plain = [{"title": section.title, "parts": [_plain(part) for part in section.parts]} for section in sections]
    return environment.get_template("report.html").render(title=title, lead=lead, sections=plain)


def save_page(html: str, path: str | Path) -> None:
    """Write a page atomically."""
    with atomic_file(path) as file:
        file.write_text(html, encoding="utf-8")


def show_value(value: Value, digits: int = 3) -> str:
    """A value as text for a table: ``digits`` significant digits, no exponent, thousands separated.

    Args:
        value: None is shown as a dash.
        digits: significant digits of a floating-point number; digits before the decimal point are always shown.
    """
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    if not value:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:,.{max(decimals, 0)}f}"


def _plain(part: str | Table | Image | Code) -> dict[str, Any]:
    """The variables of the template for one part."""
    if isinstance(part, str):
        return {"kind": "paragraph", "text": part}
    if isinstance(part, Code):
        return {"kind": "code", "text": part.text}
    if isinstance(part, Image):
        return {"kind": "figure", "image": _svg(part.figure), "alt": part.alt, "caption": part.caption}
    columns = list(dict.fromkeys(name for row in part.rows for name in row))
    numeric = {name: all(not isinstance(row.get(name), str) for row in part.rows) for name in columns}
    body = [
        ([(show_value(row.get(name), part.digits), numeric[name]) for name in columns], index in part.strong)
        for index, row in enumerate(part.rows)
    ]
    head = [(name, numeric[name]) for name in columns]
    return {"kind": "table", "caption": part.caption, "head": head, "body": body}


def _svg(figure: "Figure") -> str:
    """A figure as a base64 SVG image; separate images cannot have clashing identifiers."""
    from tsfm.reports.figures import write_figure  # matplotlib, which a page without figures does not need

    stream = io.BytesIO()
    write_figure(figure, stream, "svg")
    return base64.b64encode(_smaller(stream.getvalue())).decode("ascii")


def _smaller(svg: bytes) -> bytes:
    """An SVG image without spaces between its tags, and with places to a hundredth of a point."""
    tight = re.sub(rb">\s+<", b"><", svg)
    return re.sub(rb' (?:d|x|y)="[^"]*"', lambda found: re.sub(rb"(\.\d\d)\d+", rb"\1", found.group()), tight)
