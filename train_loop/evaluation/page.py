"""Pages: HTML files that need nothing but themselves."""

import base64
import hashlib
import html
import importlib.resources
import re
import string
import xml.etree.ElementTree as ET
from typing import NamedTuple

import numpy as np

from train_loop.evaluation.charts import CHARTS
from train_loop.evaluation.charts.look import FAINT, INK, PAPER, SERIES
from train_loop.evaluation.thumbnails import data_uri

# Colours of charts -> those of the page, which know of dark screens.
COLORS = {
    INK: "var(--ink)",
    FAINT: "var(--line)",
    PAPER: "var(--paper)",
    SERIES[0]: "var(--accent)",
}

# Pixels; a phone's are small ones.
GALLERY_SIDE, TABLE_SIDE = 144, 72

# Charts that are wider stand alone in their row; none is enlarged to more.
HALF_A_SCREEN, LARGEST = 560, 840

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
ET.register_namespace("", SVG)
ET.register_namespace("xlink", XLINK)


class Column(NamedTuple):
    """A column of a table that sorts: its title, and a cell for each row.

    `cells` are HTML; `values` are what they are sorted by, numbers or text;
    nan comes last.
    """

    title: str
    cells: list
    values: list


def render(title, facts, sections):
    """Returns a page as HTML.

    Args:
      title: of the page.
      facts: {name: value}, to stand below the title.
      sections: of HTML.
    """
    template = importlib.resources.files(__package__) / "page.html"
    page = string.Template(template.read_text(encoding="utf-8"))
    script = (importlib.resources.files(__package__) / "page.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest())
    return page.substitute(
        title=text(title),
        facts=" · ".join(
            f"{text(name)} <b>{text(value)}</b>"
            for name, value in facts.items()
        ),
        sections="\n".join(sections),
        script=script,
        # Nothing else is run, whatever a class is called.
        script_hash=digest.decode(),
    )


def text(value):
    """Returns any value as HTML that shows it; a name may hold anything."""
    # File names may hold bytes that are no text.
    readable = str(value).encode(errors="backslashreplace").decode()
    return html.escape(readable)


def name(class_name):
    """Returns a name that leaves the text beside it where it is."""
    return f"<bdi>{text(class_name)}</bdi>"


def section(title, note, content, kind=""):
    """Returns a section with a title and a line that explains it."""
    return (
        f'<section class="{kind}"><h2>{text(title)}</h2>'
        f"<p>{text(note)}</p>{content}</section>"
    )


def cards(rows, note):
    """Returns large numbers.

    Args:
      rows: of (title, number, what stands below it, meaning).
      note: that explains them.
    """
    return (
        f'<section class="wide"><p>{text(note)}</p><div class="cards">'
        + "".join(
            f'<div title="{text(meaning)}"><span>{text(title)}</span>'
            f"<b>{text(number)}</b><small>{text(below)}</small></div>"
            for title, number, below, meaning in rows
        )
        + "</div></section>"
    )


def chart(chart_name, svg):
    """Returns the section of a row of CHARTS, drawn as SVG."""
    row, root = CHARTS[chart_name], ET.fromstring(svg)
    width = float(root.get("width").removesuffix("pt"))
    _suit_page(root, width, chart_name)
    drawing = ET.tostring(root, encoding="unicode")
    return section(
        row.title,
        row.note,
        f'<div class="chart">{drawing}</div>',
        "wide" if width > HALF_A_SCREEN else "",
    )


def gallery(items, kind=""):
    """Returns pictures with captions.

    Args:
      items: of (picture or None, HTML of the caption, name of the image).
      kind: "small" for pictures that stand close together.
    """
    return (
        f'<div class="gallery {kind}">'
        + "".join(
            f"<figure>{image(picture, alt, GALLERY_SIDE)}"
            f"<figcaption>{caption}</figcaption></figure>"
            for picture, caption, alt in items
        )
        + "</div>"
    )


def image(picture, alt, side=TABLE_SIDE):
    """Returns a picture, or a field of its size where there is none."""
    if picture is None:
        return f'<i class="blank" title="{text(alt)}"></i>'
    return (
        f'<img src="{data_uri(picture, side)}" alt="{text(alt)}" '
        f'title="{text(alt)}" loading="lazy">'
    )


def plain_table(rows):
    """Returns rows of HTML as a table; the first row is the header."""
    header, *body = rows
    lines = [
        f"<tr>{''.join(f'<td>{cell}</td>' for cell in r)}</tr>" for r in body
    ]
    head = "".join(f"<th>{cell}</th>" for cell in header)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def sortable_table(columns, filtered):
    """Returns a table that sorts by its columns, and filters by its text.

    Args:
      columns: `Column`s.
      filtered: what is to be filtered, such as "classes".
    """
    head = "".join(
        f'<th><button type="button">{text(column.title)}</button></th>'
        for column in columns
    )
    rows = zip(
        *(zip(c.cells, c.values, strict=True) for c in columns), strict=True
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td data-value="{text(_sortable(value))}">{cell}</td>'
            for cell, value in row
        )
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="sortable"><input type="search" '
        f'placeholder="Filter {text(filtered)}" '
        f'aria-label="Filter {text(filtered)}"><output></output>'
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></div>"
    )


def _sortable(value):
    """Returns a value that the page's script can compare."""
    if isinstance(value, str):
        return value
    return "" if np.isnan(value) else f"{value:.6g}"


def _suit_page(root, width, prefix):
    """Makes a chart a part of a page.

    It takes the page's colours, shrinks to a phone's width as long as its
    letters can be read, and its ids do not meet those of other charts.
    """
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    del root.attrib["width"], root.attrib["height"]
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                value = f"{prefix}-{value}"
            elif key == f"{{{XLINK}}}href":
                value = re.sub("^#", f"#{prefix}-", value)
            else:
                value = value.replace("url(#", f"url(#{prefix}-")
            for color, variable in COLORS.items():
                value = value.replace(color, variable)
            element.set(key, value)
    root.set("role", "img")
    root.set("aria-label", CHARTS[prefix].title)
    most = max(width, min(1.7 * width, LARGEST))
    root.set(
        "style", f"min-width: {0.85 * width:.0f}px; max-width: {most:.0f}px"
    )
