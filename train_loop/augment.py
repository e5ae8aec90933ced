"""This file answers: how is a training image varied after it was decoded?

Every function takes a float32 [height, width, 3] image and an int [2] seed and
returns an image of the same shape; the same seed gives the same image.
"""

import tensorflow as tf


def flip(image, seed):
    """Mirrors left and right in half of the cases."""
    return tf.image.stateless_random_flip_left_right(image, seed)


def shift(image, seed):
    """Moves the picture by up to an eighth of its side, filling with zeros.

    The pad-and-crop of He et al., 2015, who moved 32 x 32 pictures by 4.
    """
    margin = image.shape[0] // 8
    padded = tf.pad(image, [[margin, margin], [margin, margin], [0, 0]])
    return tf.image.stateless_random_crop(padded, image.shape, seed)


AUGMENTATIONS = {"flip": flip, "shift": shift}
