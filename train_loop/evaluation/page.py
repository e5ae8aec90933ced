"""Self-contained HTML pages of reports and comparisons."""

import base64
import hashlib
import io
import re
import xml.etree.ElementTree as ET
from typing import NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup

from train_loop.evaluation.chart_style import (
    FAINT,
    INK,
    PAPER,
    SERIES,
    thumbnail,
)
from train_loop.evaluation.charts import CHARTS
from train_loop.evaluation.comparison import (
    SIGNIFICANT,
    comparison_table,
    verdict,
)
from train_loop.evaluation.metrics import METRICS
from train_loop.evaluation.predictions import (
    confused_pairs,
    misclassified,
    most_confused_with,
)

# Maximum numbers of images in galleries, in the table and in a row of it.
PAGE_PAIRS, PAGE_IMAGES_OF_A_PAIR = 8, 6
PAGE_MISTAKES, PAGE_DISAGREEMENTS = 24, 24
TABLE_MISTAKES, TABLE_MISTAKES_OF_A_CLASS = 1000, 4

# Color of charts -> CSS color of the page, which has a dark mode.
PAGE_COLORS = {
    INK: "var(--ink)",
    FAINT: "var(--line)",
    PAPER: "var(--paper)",
    SERIES[0]: "var(--accent)",
}
# In pixels. A wider chart has a row to itself; no chart is enlarged further.
WIDE_CHART, WIDEST_CHART = 560, 840

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
ET.register_namespace("", SVG)
ET.register_namespace("xlink", XLINK)


def report_page(results, facts, drawings):
    """Returns the page of a report as HTML.

    Args:
      results: `Results`.
      facts: {name: value}, shown below the title.
      drawings: {key of CHARTS: SVG}.
    """
    predictions = results.predictions
    charts = {
        name: embedded_chart(name, svg)
        for name, svg in drawings.items()
        if not CHARTS[name].has_images
    }
    return _render(
        "report.html",
        facts={
            **facts,
            "images": f"{len(predictions):,}",
            "classes": f"{predictions.num_classes:,}",
        },
        results=results,
        predictions=predictions,
        metrics=METRICS,
        chart_table=CHARTS,
        charts=charts,
        pairs=confused_pairs(predictions, PAGE_PAIRS),
        images_of_a_pair=PAGE_IMAGES_OF_A_PAIR,
        mistakes=misclassified(predictions)[:PAGE_MISTAKES],
        without_examples=int((results.examples == 0).sum()),
        classes=_class_rows(results),
    )


def comparison_page(comparison):
    """Returns the page of a `Comparison` as HTML."""
    header, *rows = comparison_table(comparison)
    p_values = comparison.p_values.values()
    bold = [p_value <= SIGNIFICANT for p_value in p_values]
    bold += [False] * (len(rows) - len(bold))
    images = [comparison.only_right(which) for which in (0, 1)]
    return _render(
        "comparison.html",
        facts={"images": f"{len(comparison.results[0].predictions):,}"},
        comparison=comparison,
        verdict=verdict(comparison),
        significant=SIGNIFICANT,
        header=header,
        rows=list(zip(rows, bold, strict=True)),
        images=images,
        most_images=PAGE_DISAGREEMENTS,
        predictions=[each.predictions for each in comparison.results],
    )


def _render(template, **values):
    script, _, _ = TEMPLATES.loader.get_source(TEMPLATES, "page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest())
    return TEMPLATES.get_template(template).render(
        **values,
        script=Markup(script),
        # The browser runs no other script, whatever the name of a class is.
        script_hash=digest.decode(),
    )


class _ClassRow(NamedTuple):
    """A row of the table of classes; `hits` and `mistakes` are image indices.

    `accuracy` and the other `scores` are nan if undefined.
    """

    name: str
    examples: int
    accuracy: float
    scores: list
    confused_with: str
    confused_images: int
    hits: np.ndarray
    mistakes: np.ndarray
    num_mistakes: int


def _class_rows(results):
    predictions, counts = results.predictions, results.counts
    names = predictions.class_names
    scores = np.stack(
        [
            counts.precisions[:, 0],
            counts.f1[:, 0],
            results.ranking.average_precisions[:, 0],
            results.ranking.roc_aucs[:, 0],
        ],
        axis=1,
    )
    hits = np.flatnonzero(predictions.correct)
    hits = hits[np.argsort(-predictions.confidences[hits], kind="stable")]
    most = min(TABLE_MISTAKES // len(names), TABLE_MISTAKES_OF_A_CLASS)
    others, confused = most_confused_with(predictions)
    columns = zip(
        names,
        results.examples,
        counts.accuracies[:, 0],
        scores,
        others,
        confused,
        _by_class(predictions, hits),
        _by_class(predictions, misclassified(predictions)),
        strict=True,
    )
    return [
        _ClassRow(
            *of_class,
            names[other],
            images,
            correct[:1],
            wrong[: max(1, most)],
            len(wrong),
        )
        for *of_class, other, images, correct, wrong in columns
    ]


def _by_class(predictions, images):
    """Returns the indices of images for each class, in the same order."""
    labels = predictions.labels[images]
    images = images[np.argsort(labels, kind="stable")]
    counts = np.bincount(labels, minlength=predictions.num_classes)
    return np.split(images, np.cumsum(counts)[:-1])


def embedded_chart(name, svg):
    """Returns a chart as part of a page, and whether it is wide.

    The chart uses the page's colors and unique ids. It shrinks to the width of
    a phone, as long as its text is legible.
    """
    root = ET.fromstring(svg)
    width = float(root.get("width").removesuffix("pt"))
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    del root.attrib["width"], root.attrib["height"]
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                value = f"{name}-{value}"
            elif key == f"{{{XLINK}}}href":
                value = re.sub("^#", f"#{name}-", value)
            else:
                value = value.replace("url(#", f"url(#{name}-")
            for color, variable in PAGE_COLORS.items():
                value = value.replace(color, variable)
            element.set(key, value)
    root.set("role", "img")
    root.set("aria-label", CHARTS[name].title)
    most = max(width, min(1.7 * width, WIDEST_CHART))
    root.set(
        "style", f"min-width: {0.85 * width:.0f}px; max-width: {most:.0f}px"
    )
    return Markup(ET.tostring(root, encoding="unicode")), width > WIDE_CHART


def _data_uri(image, side):
    """Returns a `thumbnail` as a data URI."""
    file = io.BytesIO()
    thumbnail(image, side).save(file, "jpeg", quality=80)
    encoded = base64.b64encode(file.getvalue()).decode()
    return f"data:image/jpeg;base64,{encoded}"


def _sortable(value):
    """Returns a value as text that the page's script can compare."""
    if isinstance(value, str):
        return value
    return "" if np.isnan(value) else f"{value:.6g}"


TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader(__package__, ""),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {
    "data_uri": _data_uri,
    "sortable": _sortable,
    "thousands": "{:,}".format,
    "percent": "{:.0%}".format,
    "score": lambda score: "–" if np.isnan(score) else f"{100 * score:.1f}",
}
