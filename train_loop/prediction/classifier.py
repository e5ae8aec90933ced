"""A classifier: maps images in many forms to class names."""

import contextlib
import io
import itertools
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import PIL.Image
import tensorflow as tf
from PIL.ExifTags import Base

from resnet_layers import Preprocessing
from resnet_layers.images import normalize
from train_loop.data.transforms import Transforms
from train_loop.errors import UserError, reason_of

# (class name, probability) in descending order of probability.
Prediction = list[tuple[str, float]]
# Number of images in a forward pass.
BATCH_SIZE = 32
FILE_ADVICE = "Pass a readable image file."


class Classifier:
    """A model with its preprocessing and class names.

    `classifier(images, top_k=None)` predicts the classes of images. `images` is
    a path, a binary file object, the bytes of an image file, a PIL image, a
    uint8 array [height, width, 3] in RGB, or an iterable of these. The result
    has a list of (class name, probability) for each image, in descending order
    of probability. It raises `UserError` if an image cannot be decoded.

    Training, evaluation and prediction all use a `Classifier`, so that they
    preprocess images in the same way.

    Args:
      model: a built Keras model that maps normalized images to logits.
      preprocessing: a complete `resnet_layers.Preprocessing`.
      class_names: names of all classes, in the order of the logits.

    Attributes:
      model: the Keras model.
      preprocessing: the `resnet_layers.Preprocessing`.
      class_names: a tuple of names.

    Example:
      ```python
      from train_loop import load_classifier

      classifier = load_classifier("runs/pets")
      classifier.predict_one("cat.jpg")  # [("Bengal", 0.93), ...]
      classifier(["cat.jpg", "dog.jpg"], top_k=1)  # A list for each image.
      ```
    """

    def __init__(
        self,
        model: tf.keras.Model,
        preprocessing: Preprocessing,
        class_names: Sequence[str],
    ):
        self.model = model
        self.preprocessing = preprocessing
        self.class_names = tuple(class_names)
        size = preprocessing.image_size
        # As a graph: eager TensorFlow passes Pillow a tensor instead of bytes,
        # and does not convert the exceptions of Pillow.
        transforms = Transforms(preprocessing)
        self._prepare = tf.function(
            lambda encoded: transforms.evaluate(transforms.transcode(encoded)),
            input_signature=[tf.TensorSpec([], tf.string)],
            autograph=False,
        )
        # One graph for all batch sizes.
        self._as_graph = tf.function(
            input_signature=[tf.TensorSpec([None, size, size, 3], tf.uint8)],
            autograph=False,
        )
        self._probabilities = self._as_graph(self._softmax)

    def logits(self, images, training=False):
        """Normalizes images and returns the logits of the model.

        Args:
          images: uint8 [batch, image_size, image_size, 3], RGB.
          training: whether to call the model in training mode.

        Returns:
          A float tensor [batch, num_classes].
        """
        return self.model(self.normalize(images), training=training)

    def embed(self, images):
        """Returns the pooled features before the classification head.

        Args:
          images: uint8 [batch, image_size, image_size, 3], RGB.

        Returns:
          A float tensor [batch, channels].
        """
        return self.model.embed(self.normalize(images), training=False)

    def normalize(self, images):
        """Normalizes images for the model.

        Args:
          images: uint8 or float [..., image_size, image_size, 3], RGB from 0 to
            255.

        Returns:
          float32 [..., image_size, image_size, 3], or 1 channel if the model
          has grayscale inputs.
        """
        return normalize(images, self.preprocessing.normalization)

    def __call__(
        self, images: Any, top_k: int | None = None
    ) -> list[Prediction]:
        """Predicts the classes of one image or many.

        Args:
          images: a path, a binary file object, the bytes of an image file, a
            PIL image of any mode, a uint8 array [height, width, 3] in RGB, or
            an iterable of these, such as a list or a generator.
          top_k: number of classes to return for each image; None for all.

        Returns:
          A list with one prediction for each image: a list of (class name,
          probability) in descending order of probability.

        Raises:
          UserError: an image cannot be read or decoded.
        """
        if _is_one_image(images):
            images = [images]
        images, predictions = iter(images), []
        while chunk := list(itertools.islice(images, BATCH_SIZE)):
            batch = tf.stack([self.read(image) for image in chunk])
            predictions += self.rank(self.probabilities(batch), top_k)
        return predictions

    def predict_one(self, image: Any, top_k: int | None = None) -> Prediction:
        """Predicts the classes of one image.

        Args:
          image: one image in a form that `__call__` accepts.
          top_k: number of classes to return; None for all.

        Returns:
          A list of (class name, probability) in descending order of
          probability.

        Raises:
          UserError: the image cannot be read or decoded.

        Example:
          ```python
          classifier.predict_one("cat.jpg", top_k=1)  # [("cat", 0.93)]
          ```
        """
        [prediction] = self([image], top_k)
        return prediction

    def prepare(self, encoded):
        """Decodes, crops and resizes an image file, as in evaluation.

        Args:
          encoded: the bytes of an image file, or a scalar string tensor.

        Returns:
          A tensor, uint8 [image_size, image_size, 3], RGB.

        Raises:
          tf.errors.OpError: the image cannot be decoded.
        """
        return self._prepare(encoded)

    def read(self, image):
        """Reads one image in any form, as in evaluation.

        Args:
          image: one image in a form that `__call__` accepts.

        Returns:
          A tensor, uint8 [image_size, image_size, 3], RGB.

        Raises:
          UserError: the image cannot be read or decoded.
        """
        if isinstance(image, str | os.PathLike):
            try:
                return self.prepare(read_file(image))
            except tf.errors.OpError as error:
                raise _file_error(
                    image, f"cannot be decoded ({reason_of(error)})"
                ) from error
        try:
            return self.prepare(_encoded(image))
        except (tf.errors.OpError, OSError, TypeError, ValueError) as error:
            raise UserError(
                "images: cannot be decoded. Pass image files (paths, bytes or "
                "binary file objects), PIL images, or uint8 arrays [height, "
                "width, 3]."
            ) from error

    def probabilities(self, images):
        """Returns the softmax of the logits.

        Models trained with a sigmoid loss use a softmax too: an image has one
        class, and the order of the classes is the same.

        Args:
          images: uint8 [batch, image_size, image_size, 3], RGB.

        Returns:
          A tensor, float32 [batch, num_classes].
        """
        return self._probabilities(images)

    def make_weights_constant(self):
        """Makes `probabilities` faster for a stream of single images.

        The current weights become constants of the graph. TensorFlow casts and
        reorders constants once, but variables in every batch. Later changes of
        the model have no effect on `probabilities`. The first call takes some
        seconds longer and many times the memory of the weights.
        """
        weights = [(v, v.numpy()) for v in self.model.variables]

        def probabilities(images):
            constants = [(v, tf.constant(value)) for v, value in weights]
            with tf.keras.StatelessScope(state_mapping=constants):
                return self._softmax(images)

        self._probabilities = self._as_graph(probabilities)

    def rank(self, probabilities, top_k=None):
        """Sorts classes by probability.

        Args:
          probabilities: float [batch, num_classes].
          top_k: number of classes to return for each image; None for all.

        Returns:
          A list with one prediction for each image; see `__call__`.
        """
        probabilities = np.asarray(probabilities)
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
        return [
            [(self.class_names[label], float(row[label])) for label in labels]
            for row, labels in zip(probabilities, order, strict=True)
        ]

    def _softmax(self, images):
        return tf.nn.softmax(self.logits(images))


def read_file(path):
    """Returns the bytes of a file; raises UserError if it is not readable."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise _file_error(path, f"cannot be read ({error.strerror})") from error


def _is_one_image(images):
    """Returns whether `images` is a single image, not an iterable."""
    if isinstance(images, str | bytes | bytearray | os.PathLike):
        return True
    # A file object is also an iterable, of lines.
    if isinstance(images, PIL.Image.Image) or hasattr(images, "read"):
        return True
    return getattr(images, "ndim", None) == 3 or not isinstance(
        images, Iterable
    )


def _encoded(image):
    """Returns the bytes of an image file for an image that is not a path."""
    if isinstance(image, PIL.Image.Image):
        return _encoded_pillow(image)
    if hasattr(image, "read"):
        image = image.read()
    if isinstance(image, bytes | bytearray):
        return bytes(image)
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        raise TypeError(f"{pixels.dtype} is not uint8")
    return tf.io.encode_png(pixels, compression=0)


def _encoded_pillow(image):
    """Returns a PNG file of a PIL image."""
    exif = PIL.Image.Exif()
    # Damaged EXIF data are ignored.
    with contextlib.suppress(Exception):
        if image.getexif()[Base.Orientation] in range(1, 9):
            exif[Base.Orientation] = image.getexif()[Base.Orientation]
    if 0 in image.size:
        raise ValueError("no pixels")
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels with an unknown value range")
    if image.mode.startswith("I;16"):
        # Pillow would clip values above 255.
        gray = np.asarray(image) >> 8
        image = PIL.Image.fromarray(gray.astype("uint8"))
    if image.mode == "La":
        # Pillow converts this mode to LA only.
        image = image.convert("LA")
    # Always, because other modes such as YCbCr have three channels too.
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    png = io.BytesIO()
    image.save(png, "png", compress_level=0, exif=exif)
    return png.getvalue()


def _file_error(path, problem):
    """Returns a UserError about an image file."""
    return UserError(f"{os.fspath(path)}: {problem}. {FILE_ADVICE}")
