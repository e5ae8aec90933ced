"""Images as a model expects them: `Preprocessing`, and its layer."""

import math
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from resnet_layers.arguments import one_of

# Weights of RGB in grayscale, as in Pillow (ITU-R 601-2).
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
INTERPOLATIONS = ("bilinear", "bicubic")


class Normalization(NamedTuple):
    """Normalization of pixels: `(pixel - mean) / stddev`.

    For a model of color images, `mean` and `stddev` have three values; for a
    model of grayscale images, one.

    Attributes:
      mean: tuple of floats, for pixels from 0 to 255, in the channel order of
        the model.
      stddev: tuple of positive floats, in the same units and order.
      bgr: whether the channel order of the model is blue, green, red.

    Example:
      ```python
      mean, stddev, bgr = NORMALIZATIONS["imagenet"]
      inputs = (images - mean) / stddev
      ```
    """

    mean: tuple
    stddev: tuple
    bgr: bool = False

    @classmethod
    def of_text(cls, text):
        """Parses the name of a normalization, or its values.

        Args:
          text: a name in `NORMALIZATIONS`; "M:M:M:S:S:S", three means and
            three standard deviations, with ":bgr" after them for that channel
            order; or "M:S" for grayscale images.

        Returns:
          A `Normalization`.

        Raises:
          ValueError: `text` is neither a name nor valid values.

        Example:
          ```python
          Normalization.of_text("imagenet")
          Normalization.of_text("127.5:127.5:127.5:127.5:127.5:127.5")
          ```
        """
        if text in NORMALIZATIONS:
            return NORMALIZATIONS[text]
        parts = text.split(":")
        bgr = parts[-1] == "bgr"
        numbers = [float(number) for number in parts[: -1 if bgr else None]]
        if (
            len(numbers) not in (2, 6)
            or not all(map(math.isfinite, numbers))
            or min(numbers[len(numbers) // 2 :]) <= 0
            or (bgr and len(numbers) == 2)
        ):
            raise ValueError(
                f"{text}: unknown normalization. Use one of "
                f"{', '.join(NORMALIZATIONS)}, or M:M:M:S:S:S or M:S."
            )
        channels = len(numbers) // 2
        return cls(tuple(numbers[:channels]), tuple(numbers[channels:]), bgr)

    def for_channels(self, channels):
        """Converts the normalization to another number of channels.

        Args:
          channels: 1, for the means of the three values; or 3, for three times
            the single value.

        Returns:
          A `Normalization`.
        """
        if len(self.mean) == channels:
            return self
        if channels == 1:
            mean, stddev = (sum(n) / 3 for n in (self.mean, self.stddev))
            return Normalization((mean,), (stddev,))
        return Normalization(self.mean * 3, self.stddev * 3)


# "caffe" and "symmetric" are those of the ResNets of keras.applications, V1 and
# V2.
NORMALIZATIONS = {
    "imagenet": Normalization(
        (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    ),
    "caffe": Normalization(
        (103.939, 116.779, 123.68), (1.0, 1.0, 1.0), bgr=True
    ),
    "symmetric": Normalization((127.5,) * 3, (127.5,) * 3),
}


"""Named normalizations: {name: `Normalization`}.

"imagenet" is that of torchvision and timm. "caffe" (BGR, mean only) and
"symmetric" (-1 to 1) are those of keras.applications for ResNet V1 and V2.
"""


class Preprocessing(NamedTuple):
    """Preprocessing that images need before a model with given weights.

    A field is None if it is unknown.

    Attributes:
      normalization: `Normalization` of the pixels.
      image_size: height and width of the model's input, in pixels.
      crop_fraction: side of the center crop in evaluation, as a fraction of
        the image's shorter side, above 0 and at most 1.
      interpolation: name of the resizing method in evaluation, for example
        "bicubic".
      exif_orientation: whether image files are decoded as viewers show them:
        rotated and mirrored by their EXIF orientation, with transparent pixels
        blended with white.
    """

    normalization: Normalization | None = None
    image_size: int | None = None
    crop_fraction: float | None = None
    interpolation: str | None = None
    exif_orientation: bool | None = None

    def over(self, other: "Preprocessing") -> "Preprocessing":
        """Fills unknown fields with those of another `Preprocessing`."""
        known = {n: v for n, v in self._asdict().items() if v is not None}
        return other._replace(**known)

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields as a dict that JSON can store."""
        fields = self._asdict()
        if self.normalization is not None:
            fields["normalization"] = self.normalization._asdict()
        return fields

    @classmethod
    def of_dict(cls, fields: dict[str, Any]) -> "Preprocessing":
        """Returns the `Preprocessing` of such a dict."""
        normalization = fields.get("normalization")
        if normalization is not None:
            mean, stddev = (
                tuple(normalization[name]) for name in ("mean", "stddev")
            )
            normalization = Normalization(mean, stddev, normalization["bgr"])
        return cls(**{**fields, "normalization": normalization})


DEFAULT_PREPROCESSING = Preprocessing(
    NORMALIZATIONS["imagenet"], 224, 0.875, "bilinear"
)


def normalize(images: tf.Tensor, normalization: Normalization) -> tf.Tensor:
    """Normalizes RGB images.

    Args:
      images: uint8 or float [..., height, width, 3], from 0 to 255, with a
        static width.
      normalization: a `Normalization`.

    Returns:
      A tensor, float32 [..., height, width, channels], with as many channels as
      the normalization has means.
    """
    images = tf.cast(images, tf.float32)
    if len(normalization.mean) == 1:
        gray = tf.reduce_sum(images * LUMA, axis=-1, keepdims=True)
        return (gray - normalization.mean[0]) / normalization.stddev[0]
    if normalization.bgr:
        images = images[..., ::-1]
    # A whole row of pixels at once: broadcasting over three channels takes
    # several times as long on CPUs.
    width = images.shape[-2]
    scale = 1.0 / np.tile(np.array(normalization.stddev, np.float32), width)
    offset = np.tile(np.array(normalization.mean, np.float32), width) * scale
    shape = tf.shape(images)
    rows = tf.reshape(images, tf.concat([shape[:-2], [3 * width]], axis=0))
    return tf.ensure_shape(
        tf.reshape(rows * scale - offset, shape), images.shape
    )


@tf.keras.utils.register_keras_serializable(package="resnet_layers")
class ImagePreprocessing(tf.keras.layers.Layer):
    """Prepares images for a model: center crop, resizing, normalization.

    It does what `train_loop` does in evaluation, for images that are decoded
    already: the crop is a square, and resizing is antialiased, as in Pillow.
    Use it in front of a model, to save and export both as one:

    ```python
    inputs = tf.keras.Input([None, None, 3], dtype="uint8")
    outputs = model(ImagePreprocessing(model.preprocessing)(inputs))
    served = tf.keras.Model(inputs, outputs)
    ```

    Args:
      preprocessing: `Preprocessing`, or a dict of its fields. The default of
        unknown fields is ImageNet's normalization, 224 pixels, a crop fraction
        of 0.875, and bilinear interpolation.
      **kwargs: arguments of `keras.layers.Layer`, such as `name`.

    Raises:
      ValueError: the interpolation is neither bilinear nor bicubic.

    Input shape: [batch, height, width, 3], RGB from 0 to 255, of any integer or
    float dtype.

    Output shape: [batch, image_size, image_size, channels], float32, with as
    many channels as the normalization has means.
    """

    def __init__(
        self, preprocessing: Preprocessing | dict[str, Any], **kwargs: Any
    ) -> None:
        super().__init__(**{"dtype": "float32", "trainable": False, **kwargs})
        if isinstance(preprocessing, dict):
            preprocessing = Preprocessing.of_dict(preprocessing)
        self.preprocessing = preprocessing.over(DEFAULT_PREPROCESSING)
        one_of(
            "interpolation", self.preprocessing.interpolation, INTERPOLATIONS
        )

    def build(self, input_shape):
        if len(input_shape) != 4 or input_shape[-1] != 3:
            raise ValueError(
                f"{self.name}: input shape {tuple(input_shape)} is "
                "unsupported. Pass RGB images [batch, height, width, 3]."
            )

    def call(self, images):
        size = self.preprocessing.image_size
        height, width = tf.unstack(tf.shape(images)[1:3])
        shorter = tf.cast(tf.minimum(height, width), tf.float32)
        side = tf.round(self.preprocessing.crop_fraction * shorter)
        side = tf.maximum(tf.cast(side, tf.int32), 1)
        top, left = (height - side) // 2, (width - side) // 2
        images = tf.image.resize(
            images[:, top : top + side, left : left + side],
            [size, size],
            self.preprocessing.interpolation,
            antialias=True,
        )
        # To whole numbers, as images in memory and in files.
        images = tf.floor(tf.clip_by_value(images, 0.0, 255.0) + 0.5)
        return normalize(images, self.preprocessing.normalization)

    def compute_output_shape(self, input_shape):
        size = self.preprocessing.image_size
        channels = len(self.preprocessing.normalization.mean)
        return input_shape[0], size, size, channels

    def get_config(self):
        return {
            **super().get_config(),
            "preprocessing": self.preprocessing.as_dict(),
        }
