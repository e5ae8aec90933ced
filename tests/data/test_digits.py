"""Handwritten digits: scikit-learn's, the same fifth of them held out."""

import numpy as np
import tensorflow as tf
from samples import read_all
from sklearn.datasets import load_digits

from train_loop.data.digits import open_digits
from train_loop.data.sources import open_stored
from train_loop.data.stored import choose_splits


def test_digits_are_scikit_learns():
    stored = open_stored("digits")
    assert stored.class_names == tuple("0123456789")
    examples = [e for split in stored.splits.values() for e in read_all(split)]
    pixels = np.array(
        [tf.io.decode_png(image).numpy().ravel() for image, _ in examples]
    )
    images, labels = load_digits(return_X_y=True)
    ours = {
        (row.tobytes(), label)
        for row, (_, label) in zip(
            np.round(pixels / 255.0 * 16).astype("uint8"),
            examples,
            strict=True,
        )
    }
    theirs = {
        (image.tobytes(), int(label))
        for image, label in zip(images.astype("uint8"), labels, strict=True)
    }
    assert ours == theirs
    assert len(examples) == 1797


def test_digits_hold_out_a_fifth_of_every_class():
    data = choose_splits(open_digits())
    train = np.bincount([label for _, label in read_all(data.train)])
    held_out = np.bincount([label for _, label in read_all(data.evaluation)])
    assert sum(held_out) == 360
    np.testing.assert_allclose(held_out / (train + held_out), 0.2, atol=0.01)
    again = choose_splits(open_digits())
    assert read_all(again.evaluation) == read_all(data.evaluation)
