"""Drawn images for the notebooks: things in folders, hand signs in HDF5."""

import itertools
import pathlib

import h5py
import numpy as np
from PIL import Image, ImageColor, ImageDraw

# Class -> colors of sky and ground, and the parts of the object: a color and
# corners between 0 and 1.
THINGS = {
    "boat": (
        ("skyblue", "steelblue"),
        [
            ("brown", [(0.1, 0.6), (0.9, 0.6), (0.75, 0.85), (0.25, 0.85)]),
            ("white", [(0.5, 0.1), (0.5, 0.55), (0.8, 0.55)]),
            ("gainsboro", [(0.45, 0.2), (0.45, 0.55), (0.2, 0.55)]),
        ],
    ),
    "fish": (
        ("lightseagreen", "teal"),
        [
            ("orange", [(0.1, 0.5), (0.3, 0.3), (0.7, 0.5), (0.3, 0.7)]),
            ("tomato", [(0.6, 0.5), (0.95, 0.25), (0.95, 0.75)]),
            ("black", [(0.25, 0.42), (0.31, 0.42), (0.31, 0.48), (0.25, 0.48)]),
        ],
    ),
    "house": (
        ("skyblue", "yellowgreen"),
        [
            ("tan", [(0.2, 0.45), (0.8, 0.45), (0.8, 0.9), (0.2, 0.9)]),
            ("firebrick", [(0.1, 0.45), (0.5, 0.1), (0.9, 0.45)]),
            ("sienna", [(0.42, 0.6), (0.58, 0.6), (0.58, 0.9), (0.42, 0.9)]),
        ],
    ),
    "tree": (
        ("lightblue", "olivedrab"),
        [
            ("saddlebrown", [(0.44, 0.7), (0.56, 0.7), (0.56, 1), (0.44, 1)]),
            ("forestgreen", [(0.5, 0.05), (0.25, 0.4), (0.75, 0.4)]),
            ("green", [(0.5, 0.25), (0.15, 0.75), (0.85, 0.75)]),
        ],
    ),
}
TIPS = [(0.17, 0.52), (0.36, 0.15), (0.5, 0.08), (0.64, 0.13), (0.78, 0.25)]
# Raised fingers of the signs for 0 to 5; 0 is the thumb.
SIGNS = [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), (0, 1, 2, 3, 4)]
# All other hands.
GESTURES = [
    fingers
    for count in range(1, 5)
    for fingers in itertools.combinations(range(5), count)
    if fingers not in SIGNS
]


class Artist:
    """Draws things and hands, at random places, in random colors."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)

    def color_near(self, color, spread=25):
        varied = self.random.normal(ImageColor.getrgb(color), spread)
        return tuple(np.uint8(np.clip(varied, 0, 255)).tolist())

    def placing(self, tilt, shift, smallest):
        """Returns a function that moves points to a random place."""
        angle = self.random.uniform(-tilt, tilt)
        scale = self.random.uniform(smallest, 0.95)
        turn = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
        middle = 0.5 + self.random.uniform(-shift, shift, 2)

        def place(points, size):
            moved = (np.array(points) - 0.5) * scale @ turn + middle
            return [tuple(point) for point in moved * size]

        return place

    def draw_thing(self, name, size=384):
        """Returns an image, 128 x 128, of a key of `THINGS`."""
        scenery, parts = THINGS[name]
        image = Image.new("RGB", (1, 2))
        image.putdata([self.color_near(color) for color in scenery])
        image = image.resize([size, size], Image.Resampling.BICUBIC)
        place = self.placing(tilt=0.3, shift=0.1, smallest=0.5)
        for color, corners in parts:
            points = place(corners, size)
            ImageDraw.Draw(image).polygon(points, self.color_near(color))
        return image.resize([128, 128])

    def draw_hand(self, fingers, size=256):
        """Returns uint8 [64, 64, 3]: a hand with some fingers raised."""
        image = Image.new("RGB", (size, size), self.color_near("lightgray", 6))
        place = self.placing(tilt=0.25, shift=0.08, smallest=0.7)
        skin = np.array(self.color_near("peru", 10))
        skin = skin * self.random.uniform(0.7, 1.1)

        def limb(start, end, width, shade=1.0):
            color = tuple(np.uint8(np.clip(skin * shade, 0, 255)).tolist())
            ends, radius = place([start, end], size), width * size / 2
            ImageDraw.Draw(image).line(ends, color, int(2 * radius))
            for end in ends:
                ImageDraw.Draw(image).circle(end, radius, color)

        limb((0.5, 0.7), (0.5, 1.2), 0.26, shade=0.95)
        limb((0.5, 0.62), (0.5, 0.72), 0.36)
        for finger, tip in enumerate(TIPS):
            base = (0.23 + 0.11 * finger, 0.55) if finger else (0.36, 0.7)
            if finger in fingers:
                limb(base, tip, 0.1)
            else:
                limb(base, (base[0], base[1] + 0.08), 0.1, shade=0.85)
        return np.asarray(image.resize([64, 64]))


def write_photos(folder, seed=0, **counts):
    """Writes `SPLIT/CLASS/NUMBER.jpg`, some of each class in each split."""
    artist = Artist(seed)
    for (split, count), name in itertools.product(counts.items(), THINGS):
        path = pathlib.Path(folder, split, name)
        path.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image = artist.draw_thing(name)
            image.save(path / f"{number:03}.jpg", quality=90)


def write_hands(folder, hands, seed=0, **counts):
    """Writes `train_signs.h5` and `test_signs.h5`, as in the course.

    Args:
      folder: path of the folder.
      hands: raised fingers of each class, such as `SIGNS` or `GESTURES`.
      seed: seed of places and colors.
      **counts: number of images in each split.
    """
    artist, folder = Artist(seed), pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in counts.items():
        labels = np.arange(count) % len(hands)
        images = [artist.draw_hand(hands[label]) for label in labels]
        with h5py.File(folder / f"{split}_signs.h5", "w") as file:
            file[f"{split}_set_x"] = np.stack(images)
            file[f"{split}_set_y"] = labels
            file["list_classes"] = np.arange(len(hands))
