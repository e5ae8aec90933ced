"""Figures: images for people to look at."""

import math

import matplotlib
from matplotlib.figure import Figure

from train_loop.evaluation.charts.look import STYLE

COLUMNS = 8
INCHES = 1.5


# Fonts with letters of many kinds, as charts have them.
FONTS = {"font.family": STYLE["font.family"]}


@matplotlib.rc_context(FONTS)
def write_images(path, groups):
    """Draws images with their labels, and writes a PNG file.

    Args:
      path: of the file.
      groups: {title: (float [n, height, width, 3] in 0..1, n labels)}. See
        `charts.look.label` for names of any kind.
    """
    rows = [math.ceil(len(labels) / COLUMNS) for _, labels in groups.values()]
    figure = Figure(
        figsize=(COLUMNS * INCHES, sum(rows) * INCHES * 1.15 + len(rows) * 0.5),
        layout="constrained",
    )
    parts = figure.subfigures(len(rows), 1, height_ratios=rows, squeeze=False)
    for part, count, (title, (images, labels)) in zip(
        parts[:, 0], rows, groups.items(), strict=True
    ):
        part.suptitle(title)
        axes = part.subplots(count, COLUMNS, squeeze=False).ravel()
        for axis in axes:
            axis.set_axis_off()
        for axis, image, label in zip(axes, images, labels, strict=False):
            axis.imshow(image, interpolation="nearest")
            axis.set_title(label, fontsize=8, parse_math=False)
    figure.savefig(path, dpi=120)
