"""The words for ImageNet's classes, which its files call by WordNet ids."""

import functools

import tensorflow_datasets as tfds


def class_names():
    """Returns the names of all classes, in their order: goldfish (n01443537).

    The id stays with the word: there are two cranes, and two maillots.
    """
    return [f"{word} ({synset})" for synset, word in _words().items()]


def in_words(names):
    """Returns names of classes, and of those that are WordNet ids the words."""
    words = dict(zip(_words(), class_names(), strict=True))
    return [words.get(name, name) for name in names]


@functools.cache
def _words():
    """Returns {WordNet id: first of its words}."""
    # Of a data set of TFDS that takes its classes from ImageNet.
    from tensorflow_datasets.datasets.siscore import labels

    path = tfds.core.tfds_path("datasets/imagenet2012/labels.txt")
    synsets = path.read_text().split()
    words = [words.split(",")[0] for words in labels.IMAGENET_LABELS_LIST]
    return dict(zip(synsets, words, strict=True))
