"""Style of figures: sizes, colors, fonts, class names, thumbnails."""

import functools
import math
import unicodedata

import matplotlib
import PIL.Image
import PIL.ImageOps
from matplotlib import font_manager
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

# In inches. On a phone, a point is about a pixel.
FIGURE_WIDTH = 5.0
# Side of an image in a grid in inches, and images per row.
GRID_CELL, GRID_COLUMNS = 1.5, 8

# Colors that a page replaces in dark mode.
INK, FAINT, PAPER = "#24292f", "#d0d7de", "#ffffff"

# The colorblind-safe palette of Okabe and Ito.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MUTED = "#8c959f"

# Starts transparent, to suit any background.
SHADES = LinearSegmentedColormap.from_list(
    "shades", [f"{SERIES[0]}00", f"{SERIES[0]}ff"]
)

# Fonts in order of preference, for each letter. Not every machine has all.
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
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return [family for family in FAMILIES if family in installed]


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
    # Text rather than outlines: a third of the size, searchable, accessible.
    "svg.fonttype": "none",
    # Makes the files reproducible.
    "svg.hashsalt": "train_loop",
    "text.color": INK,
    # A class may be named "$x$".
    "text.parse_math": False,
    "xtick.color": INK,
    "xtick.major.size": 0,
    "ytick.color": INK,
    "ytick.major.size": 0,
}
# For figures other than charts.
FONTS = {"font.family": STYLE["font.family"]}


def new_figure(height, width=FIGURE_WIDTH):
    """Returns a figure; its size is in inches."""
    figure = Figure(figsize=(width, height))
    figure.set_facecolor(PAPER)
    return figure


def save_figure(figure, path):
    """Writes a figure as `path`.png and `path`.svg."""
    figure.savefig(f"{path}.png", dpi=160)
    # The first call has computed the layout.
    figure.set_layout_engine("none")
    figure.savefig(f"{path}.svg", metadata={"Date": None})


@matplotlib.rc_context(FONTS)
def write_image_grid(path, groups):
    """Writes a PNG file of images with their labels, in groups.

    Args:
      path: path of the file.
      groups: {title: (float [n, height, width, 3] in 0..1, n labels)}. Pass
        class names through `class_label`.
    """
    rows = [
        math.ceil(len(labels) / GRID_COLUMNS) for _, labels in groups.values()
    ]
    height = sum(rows) * GRID_CELL * 1.15 + len(rows) * 0.5
    figure = Figure((GRID_COLUMNS * GRID_CELL, height), layout="constrained")
    panels = figure.subfigures(len(rows), 1, height_ratios=rows, squeeze=False)
    for panel, count, (title, (images, labels)) in zip(
        panels[:, 0], rows, groups.items(), strict=True
    ):
        panel.suptitle(title)
        axes = panel.subplots(count, GRID_COLUMNS, squeeze=False).ravel()
        for axis in axes:
            axis.set_axis_off()
        for axis, image, label in zip(axes, images, labels, strict=False):
            axis.imshow(image, interpolation="nearest")
            axis.set_title(label, fontsize=8, parse_math=False)
    figure.savefig(path, dpi=120)


def thumbnail(image, side):
    """Returns the center square of an image as a PIL image.

    Args:
      image: uint8 [height, width, 3].
      side: side of the square in pixels. Smaller images are enlarged.
    """
    return PIL.ImageOps.fit(PIL.Image.fromarray(image), (side, side))


def class_label(class_names, number, width=24):
    """Returns the name of a class in a form that a figure can show.

    Args:
      class_names: names of all classes.
      number: index of the class.
      width: maximum width in letters; East Asian letters count double. Longer
        names lose their middle, because many differ only at the end.

    Returns:
      The name, or "#12" if the installed fonts lack one of its letters.
    """
    name = " ".join(class_names[number].split())
    if not name or not {ord(letter) for letter in name} <= _letters():
        return f"#{number}"
    if _width(name) > width:
        begin = _cut(name, math.ceil((width - 1) / 2))
        end = _cut(name[::-1], (width - 1) // 2)[::-1]
        name = f"{begin}…{end}"
    if any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in name):
        # Keeps the direction of the text beside the name.
        name = f"\u200e{name}\u200e"
    return name


def _width(text):
    return sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def _cut(text, width):
    """Returns the longest beginning of a text that fits."""
    while _width(text) > width:
        text = text[:-1]
    return text


@functools.cache
def _letters():
    """Returns the code points in the installed fonts."""
    fonts = map(font_manager.findfont, _installed())
    return frozenset().union(
        *(font_manager.get_font(font).get_charmap() for font in fonts)
    )
