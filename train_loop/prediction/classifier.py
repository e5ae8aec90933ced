"""A classifier: images of any kind in, names of classes out."""

import contextlib
import io
import itertools
import os
from collections.abc import Iterable, Sequence

import numpy as np
import PIL.Image
import tensorflow as tf
from PIL.ExifTags import Base

from resnet_layers import Preprocessing
from train_loop.data.transforms import Transforms
from train_loop.errors import UserError, reason_of

# How much of each color makes gray, as in Pillow (ITU-R 601-2).
LUMA = np.float32([0.299, 0.587, 0.114])
# How many images go through the model at once.
BATCH_SIZE = 32


class Classifier:
    """Maps uint8 images to logits, and images of any kind to class names.

        classifier = load_classifier("runs/pets")
        classifier("cat.jpg")  # -> [[("Bengal", 0.93), ...]]

    Training, evaluation and prediction use the same one, so that none of them
    can preprocess otherwise than the others.

    Args:
      model: maps normalised images to logits; built.
      preprocessing: a `resnet_layers.Preprocessing` without gaps.
      class_names: of all classes, in the order of the logits.
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
        # As a graph. Step by step, TensorFlow hands Pillow a tensor in place
        # of bytes, and lets through whatever Pillow raises.
        transforms = Transforms(preprocessing)
        self._prepare = tf.function(
            lambda encoded: transforms.evaluate(transforms.transcode(encoded)),
            input_signature=[tf.TensorSpec([], tf.string)],
            autograph=False,
        )
        # One for batches of all sizes.
        self._as_graph = tf.function(
            input_signature=[tf.TensorSpec([None, size, size, 3], tf.uint8)],
            autograph=False,
        )
        self._probabilities = self._as_graph(self._softmax)

    def logits(self, images, training=False):
        """Maps images to logits; runs on the devices.

        Args:
          images: uint8 [batch, image_size, image_size, 3], RGB.
          training: see the model's `call`.

        Returns:
          [batch, num_classes].
        """
        return self.model(self.normalize(images), training=training)

    def embed(self, images):
        """Maps the same images to what the model's classifier sees."""
        return self.model.embed(self.normalize(images), training=False)

    def normalize(self, images):
        """Maps RGB images from 0..255 to what the model was trained with."""
        return normalize(images, self.preprocessing.normalization)

    def __call__(self, images, top_k=None):
        """Classifies one image or many.

        Args:
          images: the path of a file, a file object, the bytes of a file, a
            PIL image of any mode, a uint8 array [height, width, 3], or an
            iterable of these, such as a generator.
          top_k: number of classes; None for all.

        Returns:
          A list for each image of (name of the class, probability), the most
          probable one first.

        Raises:
          UserError: an image cannot be read.
        """
        if _is_one_image(images):
            images = [images]
        images, predictions = iter(images), []
        while some := list(itertools.islice(images, BATCH_SIZE)):
            batch = tf.stack([self.read(image) for image in some])
            predictions += self.rank(self.probabilities(batch), top_k)
        return predictions

    def prepare(self, encoded):
        """Maps the bytes of a file to the image that evaluation would see.

        Args:
          encoded: scalar string.

        Returns:
          uint8 [image_size, image_size, 3].
        """
        return self._prepare(encoded)

    def read(self, image):
        """Returns the same image of whatever `__call__` accepts as one.

        Raises:
          UserError: it cannot be read.
        """
        if isinstance(image, str | os.PathLike):
            try:
                return self.prepare(read_file(image))
            except tf.errors.OpError as error:
                raise UserError(
                    f"{os.fspath(image)} cannot be decoded ({reason_of(error)})"
                ) from error
        try:
            return self.prepare(_encoded(image))
        except (tf.errors.OpError, OSError, TypeError, ValueError) as error:
            raise UserError(
                "the image cannot be decoded; must be an image file (a path, "
                "bytes or a binary file object), a PIL image, or a uint8 array "
                "[height, width, 3]"
            ) from error

    def probabilities(self, images):
        """Maps uint8 [batch, image_size, image_size, 3] to probabilities.

        A softmax, whatever loss the model was trained with: an image has one
        class here, and a sigmoid would put the classes in the same order.

        Returns:
          float32 [batch, num_classes].
        """
        return self._probabilities(images)

    def make_weights_constant(self):
        """Makes `probabilities` faster for single images, one after another.

        The weights that the model has now become constants of the graph, which
        TensorFlow casts and orders for the processor once, where it does so for
        every batch otherwise. What is done to the model later makes no
        difference to `probabilities` any more. The first call takes some
        seconds longer, and many times the memory of the weights.
        """
        weights = [(each, each.numpy()) for each in self.model.variables]

        def probabilities(images):
            constants = [(each, tf.constant(value)) for each, value in weights]
            with tf.keras.StatelessScope(state_mapping=constants):
                return self._softmax(images)

        self._probabilities = self._as_graph(probabilities)

    def _softmax(self, images):
        return tf.nn.softmax(self.logits(images))

    def rank(self, probabilities, top_k=None):
        """Maps rows of probabilities to predictions, see `__call__`."""
        probabilities = np.asarray(probabilities)
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
        return [
            [(self.class_names[label], float(row[label])) for label in labels]
            for row, labels in zip(probabilities, order, strict=True)
        ]


def _is_one_image(images):
    """Tells whether something is an image, and not an iterable of images."""
    if isinstance(images, str | bytes | bytearray | os.PathLike):
        return True
    # A file object is an iterable too, of lines.
    if isinstance(images, PIL.Image.Image) or hasattr(images, "read"):
        return True
    return getattr(images, "ndim", None) == 3 or not isinstance(
        images, Iterable
    )


def _encoded(image):
    """Returns the bytes of an image file with the pixels of an image."""
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
    """Returns a PNG file of a PIL image, which is decoded as others are."""
    exif = PIL.Image.Exif()
    # EXIF that cannot be read turns nothing.
    with contextlib.suppress(Exception):
        if image.getexif()[Base.Orientation] in range(1, 9):
            exif[Base.Orientation] = image.getexif()[Base.Orientation]
    if image.mode in ("I", "F"):
        raise ValueError("the values of black and white are unknown")
    if image.mode.startswith("I;16"):
        # Pillow would clip what is above 255.
        grey = np.asarray(image) >> 8
        image = PIL.Image.fromarray(grey.astype("uint8"))
    if image.mode == "La":
        # The only mode that Pillow converts to one other mode alone.
        image = image.convert("LA")
    # Other modes have three channels as well, such as YCbCr.
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    png = io.BytesIO()
    image.save(png, "png", compress_level=0, exif=exif)
    return png.getvalue()


def read_file(path):
    """Returns the bytes of a file, or raises UserError."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UserError(
            f"{os.fspath(path)} cannot be read ({error.strerror})"
        ) from error


def normalize(images, normalization):
    """Maps RGB images from 0..255 to what a model was trained with.

    Args:
      images: [..., height, width, 3], of a known width.
      normalization: a `resnet_layers.Normalization`.

    Returns:
      A float32 tensor of the same shape, but for the channels, of which there
      are as many as the normalization has numbers.
    """
    images = tf.cast(images, tf.float32)
    if len(normalization.mean) == 1:
        grey = tf.reduce_sum(images * LUMA, axis=-1, keepdims=True)
        return (grey - normalization.mean[0]) / normalization.stddev[0]
    if normalization.bgr:
        images = images[..., ::-1]
    # A whole row of pixels at once: over three numbers, TensorFlow takes
    # several times as long on CPUs.
    width = images.shape[-2]
    scale = 1.0 / np.tile(np.float32(normalization.stddev), width)
    offset = np.tile(np.float32(normalization.mean), width) * scale
    shape = tf.shape(images)
    rows = tf.reshape(images, tf.concat([shape[:-2], [3 * width]], axis=0))
    return tf.ensure_shape(
        tf.reshape(rows * scale - offset, shape), images.shape
    )
