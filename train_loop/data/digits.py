"""Handwritten digits, bundled with scikit-learn: no files, no network."""

import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from train_loop.data.split import Split, content_hash
from train_loop.data.stored import Stored
from train_loop.data.stores import MemoryStore


def open_digits(data_dir=None, manual_dir=None):
    """Returns scikit-learn's 1,797 handwritten digits, 8 x 8, as PNG files.

    A fifth of each class, drawn once and for all, is the split "test".

    Source: Alpaydin and Kaynak, 1998, UCI machine learning repository.
    """
    del data_dir, manual_dir
    pixels, labels = load_digits(return_X_y=True)
    pixels = np.round(pixels.reshape(-1, 8, 8, 1) * (255 / 16)).astype("uint8")
    encoded = tf.io.encode_png(pixels).numpy()
    store = MemoryStore(
        tf.constant(encoded),
        labels,
        identity=content_hash("digits", labels.tobytes()),
        namer="digit {}".format,
        sizes=np.array([len(image) for image in encoded]),
    )
    train, test = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0
    )
    return Stored(
        class_names=tuple("0123456789"),
        splits={"train": Split(store, train), "test": Split(store, test)},
    )
