"""Pages that hold together, whatever is written on them."""

import base64
import hashlib
import html.parser
import io
import re

import numpy as np
import PIL.Image
import pytest

from train_loop.evaluation import page

EVIL = '</b><script>alert("1")</script>&amp;\''
VOID = {"meta", "img", "input", "br"}


class Outline(html.parser.HTMLParser):
    """Reads what a browser would: tags, their attributes, and the text."""

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


@pytest.fixture
def whole():
    picture = np.zeros((9, 5, 3), "uint8")
    column = page.Column("name", [page.name(EVIL)], [EVIL])
    numbers = page.Column("n", ["1"], [np.nan])
    return page.render(
        EVIL,
        {EVIL: EVIL},
        [
            page.cards([(EVIL, EVIL, EVIL, EVIL)], EVIL),
            page.section(EVIL, EVIL, page.plain_table([["a"], ["b"]])),
            page.gallery([(picture, page.name(EVIL), EVIL), (None, "", EVIL)]),
            page.sortable_table([column, numbers], EVIL),
        ],
    )


def test_names_are_harmless(whole):
    outline = Outline(whole)
    # The page's own.
    assert outline.count("script") == 1
    assert outline.text.count(EVIL) == 12
    assert outline.count("b") == 2


def test_only_the_pages_own_script_runs(whole):
    [script] = re.findall("<script>(.*?)</script>", whole, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest())
    [policy] = [
        attributes["content"]
        for tag, attributes in Outline(whole).tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert f"script-src 'sha256-{digest.decode()}'" in policy
    assert "default-src 'none'" in policy


def test_pages_need_nothing_but_themselves(whole):
    for _, attributes in Outline(whole).tags:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "data:").startswith(("data:", "#"))


def test_bytes_that_are_no_text_are_shown():
    assert page.text("caf\udce9 <") == "caf\\udce9 &lt;"


def test_pictures_are_square_and_small(whole):
    [source] = re.findall('src="data:image/jpeg;base64,([^"]*)"', whole)
    image = PIL.Image.open(io.BytesIO(base64.b64decode(source)))
    assert image.size == (page.GALLERY_SIDE, page.GALLERY_SIDE)


def test_undefined_numbers_sort_apart(whole):
    cells = [a for tag, a in Outline(whole).tags if tag == "td"]
    assert [cell.get("data-value") for cell in cells] == [None, EVIL, ""]


SVG = """<?xml version="1.0"?>
<svg xmlns="http://www.w3.org/2000/svg" width="360pt" height="72pt"
 xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 360 72">
 <metadata>drawn</metadata>
 <defs><path id="m1" style="stroke: #24292f"/></defs>
 <use xlink:href="#m1" clip-path="url(#p1)"/>
 <text>id=#24292f url(#p1)</text>
</svg>"""


def test_charts_become_part_of_the_page():
    section = page.chart("roc_curves", SVG)
    tags = dict(Outline(section).tags)
    assert tags["path"] == {
        "id": "roc_curves-m1",
        "style": "stroke: var(--ink)",
    }
    assert tags["use"]["xlink:href"] == "#roc_curves-m1"
    assert tags["use"]["clip-path"] == "url(#roc_curves-p1)"
    assert "metadata" not in tags
    assert "width" not in tags["svg"]
    # Text is left as it is.
    assert "id=#24292f url(#p1)" in section
    assert 'class="wide"' not in section
    assert 'class="wide"' in page.chart("roc_curves", SVG.replace("360", "720"))
