"""Draws the pictures of the documentation, from images that it draws itself.

    python -m docs.make_images [NAME ...]

Names are the keys of `PICTURES`; without any, all are made, in a few minutes
on two cores. The script runs the program as a user does, in a temporary
folder, and takes screenshots with Chromium.
"""

import contextlib
import html
import io
import json
import math
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from PIL import Image, ImageColor, ImageDraw, ImageFilter

from resnet_layers import Preprocessing
from train_loop.data.transforms import (
    OPERATIONS,
    Transforms,
    find_partners,
    parse_operations,
)

mpl.use("agg")

DOCS = pathlib.Path(__file__).parent
ROOT = pathlib.Path(__file__).parents[1]
IMAGES = DOCS / "images"
PROGRAM = (sys.executable, "-m", "train_loop.main")
BLUE, ORANGE, GREEN, GRAY = "#3949ab", "#d9730d", "#2e8b57", "#8a8f98"

# Class -> its parts: a color, and corners between 0 and 1.
SHAPES = {
    "boat": [
        ("brown", [(0.1, 0.6), (0.9, 0.6), (0.75, 0.85), (0.25, 0.85)]),
        ("white", [(0.5, 0.1), (0.5, 0.55), (0.8, 0.55)]),
        ("gainsboro", [(0.45, 0.2), (0.45, 0.55), (0.2, 0.55)]),
    ],
    "fish": [
        ("orange", [(0.1, 0.5), (0.3, 0.3), (0.7, 0.5), (0.3, 0.7)]),
        ("tomato", [(0.6, 0.5), (0.95, 0.25), (0.95, 0.75)]),
        ("black", [(0.25, 0.42), (0.31, 0.42), (0.31, 0.48), (0.25, 0.48)]),
    ],
    "house": [
        ("tan", [(0.2, 0.45), (0.8, 0.45), (0.8, 0.9), (0.2, 0.9)]),
        ("firebrick", [(0.1, 0.45), (0.5, 0.1), (0.9, 0.45)]),
        ("sienna", [(0.42, 0.6), (0.58, 0.6), (0.58, 0.9), (0.42, 0.9)]),
    ],
    "tree": [
        ("saddlebrown", [(0.44, 0.7), (0.56, 0.7), (0.56, 1), (0.44, 1)]),
        ("forestgreen", [(0.5, 0.05), (0.25, 0.4), (0.75, 0.4)]),
        ("green", [(0.5, 0.25), (0.15, 0.75), (0.85, 0.75)]),
    ],
}
BACKGROUNDS = (
    ("skyblue", "steelblue"),
    ("wheat", "tan"),
    ("lightgray", "slategray"),
    ("palegreen", "olivedrab"),
    ("plum", "mediumpurple"),
)


def draw_image(name, random, size, scales=(0.35, 0.75), blur=0.0):
    """Returns an image of a class, at a random place on a random background.

    Args:
      name: a key of `SHAPES`.
      random: a NumPy generator.
      size: height and width.
      scales: smallest and largest size of the shape, as a fraction.
      blur: largest radius of a Gaussian blur, in pixels.
    """
    full = 3 * size

    def near(color, spread=25):
        color = random.normal(ImageColor.getrgb(color), spread)
        return tuple(np.uint8(np.clip(color, 0, 255)).tolist())

    image = Image.new("RGB", (1, 2))
    image.putdata([near(c) for c in BACKGROUNDS[random.integers(5)]])
    image = image.resize([full, full], Image.Resampling.BICUBIC)
    angle, scale = random.uniform(-0.3, 0.3), random.uniform(*scales)
    turn = [[math.cos(angle), math.sin(angle)]]
    turn += [[-math.sin(angle), math.cos(angle)]]
    center = random.uniform(scale / 2, 1 - scale / 2, 2)
    for color, corners in SHAPES[name]:
        points = ((np.array(corners) - 0.5) * scale @ turn + center) * full
        ImageDraw.Draw(image).polygon([*map(tuple, points)], near(color))
    radius = random.uniform(0, blur)
    image = image.resize([size, size], Image.Resampling.LANCZOS)
    return image.filter(ImageFilter.GaussianBlur(radius))


def write_data_set(folder, counts):
    """Draws images: {split: number of images of each class}."""
    random = np.random.default_rng(3)
    for split, count in counts.items():
        for name in SHAPES:
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                image = draw_image(name, random, 64, (0.3, 0.9), blur=3)
                image.save(folder / split / name / f"{number:03}.png")


def run_program(*arguments, folder):
    """Runs the program in a folder, and returns what it prints."""
    print(*PROGRAM[1:], *arguments, flush=True)
    return subprocess.run(
        [*PROGRAM, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def screenshot(address, path, width, height):
    """Writes a screenshot of a page as PNG."""
    subprocess.run(
        [
            *("chromium", "--headless", "--no-sandbox", "--hide-scrollbars"),
            # Without WebGL, TensorBoard draws its curves as SVG.
            *("--disable-gpu", "--disable-3d-apis"),
            "--virtual-time-budget=90000",
            *(f"--screenshot={path}", f"--window-size={width},{height}"),
            address,
        ],
        check=True,
        stderr=subprocess.DEVNULL,
    )


def save_png(image, name, colors=None):
    """Writes an image, in few colors where these are enough."""
    if colors:
        image = image.convert("RGB").quantize(colors)
    image.save(IMAGES / name, optimize=True)


def draw_augmentations():
    """Draws an image, and beside it five draws of each augmentation."""
    size, gap, count = 112, 6, 6
    random = np.random.default_rng(11)
    names = ["boat", "fish", "house", "tree", "boat", "fish"]
    drawn = [draw_image(n, random, size, (0.6, 0.75)) for n in names]

    def encoded(image):
        file = io.BytesIO()
        image.save(file, "png")
        return tf.constant(file.getvalue())

    for name in OPERATIONS:
        transforms = Transforms(
            Preprocessing(
                image_size=size,
                crop_fraction=1.0,
                interpolation="bilinear",
                exif_orientation=False,
            ),
            parse_operations(STRONGER.get(name, name)),
            len(SHAPES),
        )
        files = [encoded(drawn[0])] * (count - 1)
        if transforms.mixes:
            files = [*map(encoded, drawn)]
        images = tf.stack(
            [
                transforms.train(file, tf.constant([5, number]))
                for number, file in enumerate(files)
            ]
        )
        partners = find_partners(tf.range(len(files), dtype=tf.int64), 1)
        labels = tf.range(len(files), dtype=tf.int64) % len(SHAPES)
        images, _ = transforms.finish(
            images, labels, partners, tf.constant([5, 7])
        )
        tiles = [*map(Image.fromarray, images.numpy())][: count - 1]
        strip = Image.new("RGBA", (count * (size + gap) - gap + 10, size))
        for place, tile in enumerate([drawn[0], *tiles]):
            # A little further from the original.
            strip.paste(tile, (place * (size + gap) + 10 * (place > 0), 0))
        save_png(strip, f"augmentation-{name}.png")


# Its default changes little that can be seen on so few colors.
STRONGER = {"mixup": "mixup:1"}


@contextlib.contextmanager
def shapes_run():
    """Yields a folder with `shapes/` and a run on them, evaluated."""
    # Its path is in the report.
    folder = pathlib.Path(tempfile.gettempdir(), "documentation")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        write_data_set(folder / "shapes", {"train": 160, "test": 50})
        settings = (
            *("--dataset=shapes", "--model=resnet_tiny", "--image_size=48"),
            *("--crop_fraction=1", "--augment=random_resized_crop:0.6:1,flip"),
            *("--epochs=16", "--warmup_epochs=1", "--learning_rate=0.1"),
            *("--report_every=20", "--workdir=runs/shapes"),
        )
        print(run_program(*settings, folder=folder))
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def draw_run():
    """Draws what shows a run: its report, Grad-CAM, TensorBoard."""
    with shapes_run() as folder:
        run = "--workdir=runs/shapes"
        print(run_program("--mode=evaluate", run, folder=folder))
        images = ",".join(
            f"shapes/test/{name}/{number:03}.png"
            for name, number in EXPLAINED.items()
        )
        predict = ("--mode=predict", "--explain", f"--images={images}")
        print(run_program(*predict, run, folder=folder))
        draw_report(folder / "runs/shapes")
        draw_tensorboard(folder / "runs")


# Class -> the test image whose explanation is shown.
EXPLAINED = {"boat": 1, "fish": 2, "house": 3, "tree": 4}


def draw_report(run):
    """Draws the report page, alone and beside Grad-CAM."""
    page = run / "page.png"
    address = (run / "report/report.html").as_uri()
    screenshot(address, page, 1100, 1280)
    shot = Image.open(page).convert("RGB")
    save_png(shot, "report-page.png", 256)
    explained = sorted((run / "explanations").glob("*.png"))
    maps = [Image.open(path).convert("RGB") for path in explained]
    for image in maps:
        image.thumbnail((560, 560), Image.Resampling.LANCZOS)
    height = maps[0].height
    grid = Image.new("RGB", (2 * maps[0].width, 2 * height), "white")
    for place, image in enumerate(maps):
        grid.paste(image, (place % 2 * image.width, place // 2 * height))
    save_png(grid, "grad-cam.png", 256)
    column = Image.new("RGB", (maps[0].width, 4 * height), "white")
    for place, image in enumerate(maps):
        column.paste(image, (0, place * height))
    shot = shot.crop((0, 0, 1100, round(1100 * 4 * height / 1100)))
    both = Image.new(
        "RGB", (shot.width + column.width + 30, column.height), "white"
    )
    both.paste(shot, (0, 0))
    both.paste(column, (shot.width + 30, 0))
    both.thumbnail((1400, 1400), Image.Resampling.LANCZOS)
    save_png(both, "report-gradcam.png", 256)


def save_figure(figure, name):
    file = io.BytesIO()
    figure.savefig(file, dpi=110)
    save_png(Image.open(file), name, 64)


def draw_tensorboard(runs):
    """Draws a screenshot of TensorBoard's page of scalars."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = (sys.executable, "-m", "tensorboard.main", f"--logdir={runs}")
    server = subprocess.Popen(
        [*command, f"--port={port}", "--host=127.0.0.1"],
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(120):
            with contextlib.suppress(OSError):
                tags = f"{address}data/plugin/scalars/tags"
                if b"accuracy" in urllib.request.urlopen(tags).read():
                    break
            time.sleep(0.5)
        path = runs / "tensorboard.png"
        query = "?tagFilter=quality&smoothing=0#timeseries"
        for _ in range(5):
            screenshot(f"{address}{query}", path, 1500, 640)
            # Without the column of settings.
            shot = Image.open(path).crop((0, 0, 1246, 600)).convert("RGB")
            # On a busy machine, the cards may be empty.
            if len(shot.crop((320, 170, 1228, 480)).getcolors(2**20)) > 60:
                break
        save_png(shot, "tensorboard.png", 64)
    finally:
        server.terminate()
        server.wait()


TERMINAL_COLUMNS = 112


def draw_terminal():
    """Draws a terminal with what training on the digits prints."""
    with tempfile.TemporaryDirectory() as folder:
        text = run_program(folder=folder)
    lines = ["$ python -m train_loop.main", *text.rstrip().splitlines()]
    evaluations = [i for i, line in enumerate(lines) if "  eval  " in line]
    begin, end = evaluations[0] + 1, evaluations[-1]
    # Up to the table of results.
    lines = [*lines[:begin], "...", *lines[end : end + 4]]
    write_terminal(lines, "terminal.svg")


def write_terminal(lines, name):
    """Writes lines as an SVG file that looks like a terminal."""
    width, height, left, top = 7.6, 19, 18, 52
    rows = []
    for number, line in enumerate(lines):
        if len(line) > TERMINAL_COLUMNS:
            line = f"{line[: TERMINAL_COLUMNS - 1]}…"
        if not line.strip():
            continue
        indent = len(line) - len(line.lstrip())
        kind = "p" if line[0] == "$" else "e" if "  eval  " in line else "t"
        text = line.strip()
        # As wide in every font, and with its blanks.
        rows.append(
            f'<text class="{kind}" x="{left + indent * width:.1f}" '
            f'y="{top + number * height}" xml:space="preserve" '
            f'textLength="{len(text) * width:.1f}">{html.escape(text)}</text>'
        )
    box = (
        round(2 * left + TERMINAL_COLUMNS * width),
        top + len(lines) * height,
    )
    dots = "".join(
        f'<circle cx="{22 + 18 * i}" cy="18" r="5.5" fill="{color}"/>'
        for i, color in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    )
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {box[0]} '
        f'{box[1]}" role="img" aria-label="Output of a training run">\n'
        "<style>text{font:12.6px ui-monospace,SFMono-Regular,Menlo,Consolas,"
        "'DejaVu Sans Mono',monospace;fill:#d6deeb}.p{fill:#7fdbca}"
        ".e{fill:#ffd479}</style>\n"
        f'<rect width="{box[0]}" height="{box[1]}" rx="9" fill="#1b2230"/>\n'
        f"{dots}\n" + "\n".join(rows) + "\n</svg>\n"
    )
    (IMAGES / name).write_text(svg, encoding="utf-8")


def draw_speed():
    """Draws the table of the page on benchmarks: ratios with their ranges."""
    rows = speed_table((DOCS / "design/benchmarks.md").read_text("utf-8"))
    peers = {"Keras": BLUE, "torch + timm": ORANGE, "torch.compile": GREEN}
    figure, axis = plt.subplots(figsize=(8.6, 6.2), layout="constrained")
    axis.axvline(1, color="#9aa0aa", linewidth=1)
    for number, (_, ratios) in enumerate(rows):
        for place, (peer, ratio) in enumerate(zip(peers, ratios, strict=True)):
            if ratio is None:
                continue
            median, low, high = ratio
            y = number + (place - 1) * 0.24
            axis.plot([low, high], [y, y], color=peers[peer], linewidth=2)
            axis.plot(median, y, "o", color=peers[peer], markersize=5.5)
    axis.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=9)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xscale("log")
    ticks = [0.8, 1, 1.25, 1.5, 2, 3, 4, 5]
    axis.set_xticks(ticks, [f"{tick:g}x" for tick in ticks], fontsize=9)
    axis.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    axis.set_xlabel("times as fast as ... (median, smallest to largest)")
    axis.grid(axis="x", color="#e5e7eb")
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    handles = [
        mpl.lines.Line2D([], [], color=color, marker="o", label=peer)
        for peer, color in peers.items()
    ]
    axis.legend(handles=handles, loc="upper right", frameon=False)
    save_figure(figure, "speed.png")


def draw_fine_tuning():
    """Draws what `benchmarks.fine_tuning` has measured."""
    results = json.loads((ROOT / "benchmarks/fine_tuning.json").read_text())
    sizes = sorted({each["images"] for each in results})
    colors = {"weights": "#3949ab", "random": "#d97706"}
    figure = mpl.figure.Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots(1, len(sizes), sharey=True)
    for axis, size in zip(axes, sizes, strict=True):
        for each in results:
            if each["images"] == size:
                steps, values = zip(*each["curve"], strict=True)
                color = colors[each["start"]]
                axis.plot(steps, np.multiply(values, 100), color=color, lw=1.5)
        axis.set_title(f"{size:,} training images", fontsize=10)
        axis.set_xlabel("step")
        axis.grid(color="#e5e7eb")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("accuracy, %")
    handles = [
        mpl.lines.Line2D([], [], color=color, label=f"{start} weights")
        for start, color in (("CIFAR-10", "#3949ab"), ("random", "#d97706"))
    ]
    axes[0].legend(handles=handles, frameon=False, fontsize=9)
    save_figure(figure, "fine-tuning.png")


def speed_table(page):
    """Returns the rows of the tables of speeds on a page.

    Returns:
      [(what, [(median, smallest, largest) or None, ...]), ...]; three ratios.
    """
    rows, task = [], ""
    for line in page.splitlines():
        if line in ("Training:", "Prediction:"):
            task = {"T": "train", "P": "predict"}[line[0]]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 5 or not re.match(r"[\d.]+ \(", cells[1]):
            continue
        ratios = [
            tuple(map(float, re.findall(r"[\d.]+", cell))) or None
            for cell in cells[2:]
        ]
        rows.append((f"{task} {cells[0].replace('`', '')}", ratios))
    return rows


# File -> what is on the two halves of a badge.
BADGES = {
    "badge-python.svg": ("Python", "3.10 to 3.13"),
    "badge-tensorflow.svg": ("TensorFlow", "2.18 to 2.21"),
    "badge-keras.svg": ("Keras", "3.10 to 3.15"),
    "badge-license.svg": ("license", "Apache 2.0"),
}


def draw_badges():
    """Draws the badges of README, which need no server."""
    for name, texts in BADGES.items():
        first, second = (round(6.6 * len(text)) + 14 for text in texts)
        labels = "".join(
            f'<text x="{x}" y="14">{text}</text>'
            for x, text in zip(
                (first / 2, first + second / 2), texts, strict=True
            )
        )
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{first + second}" '
            f'height="20" role="img" aria-label="{": ".join(texts)}">\n'
            f'<clipPath id="r"><rect width="{first + second}" height="20" '
            'rx="3"/></clipPath>\n<g clip-path="url(#r)">'
            f'<rect width="{first}" height="20" fill="#4b5563"/>'
            f'<rect x="{first}" width="{second}" height="20" fill="{BLUE}"/>'
            '</g>\n<g fill="#fff" text-anchor="middle" font-size="11" '
            'font-family="Verdana,DejaVu Sans,sans-serif">'
            f"{labels}</g>\n</svg>\n"
        )
        (IMAGES / name).write_text(svg, encoding="utf-8")


PICTURES = {
    "badges": draw_badges,
    "fine_tuning": draw_fine_tuning,
    "augmentations": draw_augmentations,
    "run": draw_run,
    "speed": draw_speed,
    "terminal": draw_terminal,
}


def main(names):
    IMAGES.mkdir(exist_ok=True)
    if shutil.which("chromium") is None and "run" in (names or PICTURES):
        sys.exit("error: chromium: not found. Install it for screenshots.")
    for name in names or PICTURES:
        PICTURES[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
