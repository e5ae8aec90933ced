"""How charts look: sizes, colours, type, and names of any kind in them."""

import functools
import math
import unicodedata

from matplotlib import font_manager
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

# Inches. On a phone, a point comes out as about a pixel.
WIDTH = 5.0

# Colours that a page may put others in the place of, for dark screens.
INK, FAINT, PAPER = "#24292f", "#d0d7de", "#ffffff"

# Okabe and Ito's, which the colour-blind can tell apart.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MUTED = "#8c959f"

# From see-through, so that they suit any paper.
SHADES = LinearSegmentedColormap.from_list(
    "shades", [f"{SERIES[0]}00", f"{SERIES[0]}ff"]
)

# The first that has a letter draws it. Which are there depends on the machine.
FAMILIES = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "PingFang SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Malgun Gothic",
    "WenQuanYi Zen Hei",
    "Arial Unicode MS",
)


def _installed():
    there = {font.name for font in font_manager.fontManager.ttflist}
    return [family for family in FAMILIES if family in there]


STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "figure.constrained_layout.use": True,
    "figure.facecolor": PAPER,
    "font.family": _installed(),
    "font.size": 11,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "image.interpolation": "nearest",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    # Letters, not their outlines: a third of the size, to be searched and
    # read aloud.
    "svg.fonttype": "none",
    # The same findings give the same file.
    "svg.hashsalt": "train_loop",
    "text.color": INK,
    # A class may be called "$x$".
    "text.parse_math": False,
    "xtick.color": INK,
    "xtick.major.size": 0,
    "ytick.color": INK,
    "ytick.major.size": 0,
}


def new_figure(height, width=WIDTH):
    """Returns a figure of a size in inches."""
    figure = Figure(figsize=(width, height))
    figure.set_facecolor(PAPER)
    return figure


def save(figure, path):
    """Writes a figure as `path`.png and `path`.svg."""
    figure.savefig(f"{path}.png", dpi=160)
    # It is laid out now.
    figure.set_layout_engine("none")
    figure.savefig(f"{path}.svg", metadata={"Date": None})


def label(class_names, number, width=24):
    """Returns a class's name as a chart can show it.

    Args:
      class_names: of all classes.
      number: of the class.
      width: in letters; those of East Asia count double. Of what is longer,
        the middle is left out: many names differ at their ends.

    Returns:
      The name, or "#12" where no font has its letters.
    """
    name = " ".join(class_names[number].split())
    if not name or not {ord(letter) for letter in name} <= _letters():
        return f"#{number}"
    if _width(name) > width:
        begin = _cut(name, math.ceil((width - 1) / 2))
        end = _cut(name[::-1], (width - 1) // 2)[::-1]
        name = f"{begin}…{end}"
    if any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in name):
        # What stands beside a name shall not turn round with it.
        name = f"\u200e{name}\u200e"
    return name


def _width(text):
    return sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def _cut(text, width):
    """Returns as many of the first letters as have room."""
    while _width(text) > width:
        text = text[:-1]
    return text


@functools.cache
def _letters():
    """Returns the code points that the installed fonts have."""
    fonts = map(font_manager.findfont, _installed())
    return frozenset().union(
        *(font_manager.get_font(font).get_charmap() for font in fonts)
    )
