"""HTML pages: valid, self-contained and safe with any names."""

import base64
import dataclasses
import hashlib
import html.parser
import io
import re

import numpy as np
import PIL.Image
import pytest
from drawn_predictions import draw_predictions

from train_loop.evaluation.comparison import Comparison
from train_loop.evaluation.metrics import METRICS
from train_loop.evaluation.page import (
    comparison_page,
    embedded_chart,
    report_page,
)
from train_loop.evaluation.results import Results

EVIL = '</b><script>alert("1")</script>&amp;\''
VOID = {"meta", "img", "input", "br"}


class Outline(html.parser.HTMLParser):
    """Parses tags, their attributes and the text of a page."""

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture(scope="module")
def results():
    """Returns results with two mistakes in three images and an empty class."""
    predictions = draw_predictions(
        3,
        3,
        skill=-9,
        labels=np.array([0, 0, 1]),
        class_names=[EVIL, f"b{EVIL}", f"c{EVIL}"],
        images=[f"{EVIL}.png", f"2{EVIL}.png", "3.png"],
        load_image=lambda n: None if n == 2 else np.zeros((9, 5, 3), "uint8"),
    )
    predictions.logits[1, 0] = 99
    return Results.of(predictions)


@pytest.fixture(scope="module")
def page(results):
    return report_page(results, {EVIL: EVIL}, {})


@pytest.fixture(scope="module")
def compared(results):
    others = draw_predictions(3, 3, labels=results.predictions.labels)
    other = Results.of(
        dataclasses.replace(results.predictions, logits=others.logits)
    )
    return comparison_page(Comparison.of({EVIL: results, f"{EVIL}2": other}))


def test_names_are_escaped(page, compared):
    outline = Outline(page)
    # The script of the page itself.
    assert outline.count("script") == 1
    assert outline.count("b") == len(METRICS) + 3
    # Two facts, and for each class its name and its most frequent confusion.
    assert outline.text.count(EVIL) > 2 + 3 + 2
    outline.text.index(f"{EVIL} {EVIL} · images 3")
    [image, *_] = (a for tag, a in outline.tags if tag == "img")
    assert {image["alt"], image["title"]} == {f"{EVIL}.png"}
    assert f"2{EVIL}.png: {EVIL} 100%" in {
        attributes.get("title") for _, attributes in outline.tags
    }
    outline = Outline(compared)
    assert outline.count("script") == 1
    assert f"Only {EVIL}2 is correct" in outline.text
    # In the head and in the body.
    assert outline.text.count(f"{EVIL} vs. {EVIL}2") == 2


def test_only_the_script_of_the_page_can_run(page):
    [script] = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest())
    [policy] = [
        attributes["content"]
        for tag, attributes in Outline(page).tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert f"script-src 'sha256-{digest.decode()}'" in policy
    assert "default-src 'none'" in policy


def test_pages_are_self_contained(page, compared):
    for _, attributes in Outline(page).tags + Outline(compared).tags:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "data:").startswith(("data:", "#"))


def test_images_are_square_and_small(page):
    sources = re.findall('src="data:image/jpeg;base64,([^"]*)"', page)
    files = (io.BytesIO(base64.b64decode(source)) for source in sources)
    # In galleries and in the table.
    assert {PIL.Image.open(file).size for file in files} == {
        (144, 144),
        (72, 72),
    }


def test_undefined_metrics_have_empty_sort_values(page):
    cells = [a for tag, a in Outline(page).tags if tag == "td"]
    values = [cell["data-value"] for cell in cells]
    # Name, accuracy and number of examples; the last class has no examples.
    assert values[:3] == [EVIL, "0.5", "2"]
    assert values[-10:-7] == [f"c{EVIL}", "", "0"]


SVG = """<?xml version="1.0"?>
<svg xmlns="http://www.w3.org/2000/svg" width="360pt" height="72pt"
 xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 360 72">
 <metadata>drawn</metadata>
 <defs><path id="m1" style="stroke: #24292f"/></defs>
 <use xlink:href="#m1" clip-path="url(#p1)"/>
 <text>id=#24292f url(#p1)</text>
</svg>"""


def test_charts_are_embedded_in_the_page(results):
    drawing, is_wide = embedded_chart("roc_curves", SVG)
    tags = dict(Outline(drawing).tags)
    assert tags["path"] == {
        "id": "roc_curves-m1",
        "style": "stroke: var(--ink)",
    }
    assert tags["use"]["xlink:href"] == "#roc_curves-m1"
    assert tags["use"]["clip-path"] == "url(#roc_curves-p1)"
    assert "metadata" not in tags
    assert "width" not in tags["svg"]
    # Text is not changed.
    assert "id=#24292f url(#p1)" in drawing
    assert not is_wide
    assert embedded_chart("roc_curves", SVG.replace("360", "720"))[1]
    assert drawing in report_page(results, {}, {"roc_curves": SVG})
