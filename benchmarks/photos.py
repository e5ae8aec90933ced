"""JPEGs of ImageNet's size, cropped from the photos of scikit-learn."""

import io

import numpy as np
import PIL.Image
from sklearn.datasets import load_sample_images

WIDTH, HEIGHT = 500, 375


def write_classes(folder, images):
    """Writes JPEG files as a data set of two alternating classes."""
    for number, content in enumerate(images):
        path = folder / f"{number % 2}/{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def parts_of_photos(count):
    """Yields different JPEGs of 500 x 375 pixels and about 60 kB each."""
    random = np.random.default_rng(0)
    photos = load_sample_images().images
    for number in range(count):
        photo = PIL.Image.fromarray(photos[number % len(photos)])
        widest = min(photo.width, photo.height * WIDTH // HEIGHT)
        width = random.integers(400, widest, endpoint=True)
        height = width * HEIGHT // WIDTH
        left = random.integers(0, photo.width - width, endpoint=True)
        top = random.integers(0, photo.height - height, endpoint=True)
        box = (left, top, left + width, top + height)
        file = io.BytesIO()
        photo.resize((WIDTH, HEIGHT), box=box).save(file, "jpeg", quality=92)
        yield file.getvalue()
