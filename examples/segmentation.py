"""Segmentation of pets: a small U-Net built from our blocks.

The encoder is a ResNet-18 with its feature maps C2 to C5. The decoder doubles
the resolution, concatenates the encoder's map of that size, and refines both
with a `BasicBlock`. Oxford-IIIT Pet has a mask for every image: pet, background
and the border between them.

    python -m examples.segmentation --data_dir=FOLDER --steps=100
"""

import tensorflow as tf
import tensorflow_datasets as tfds
from absl import app, flags

from resnet_layers import VARIANTS, BasicBlock

FLAGS = flags.FLAGS
flags.DEFINE_string("data_dir", None, "Where TFDS keeps prepared data.")
flags.DEFINE_integer("steps", 100, "Optimizer updates.", lower_bound=1)
flags.DEFINE_integer("batch_size", 16, "Images per step.", lower_bound=1)
flags.DEFINE_integer(
    "image_size", 128, "Height and width; a multiple of 32.", lower_bound=32
)

NUM_CLASSES = 3


def unet(num_classes):
    """Returns a model: images -> logits [batch, height, width, classes]."""
    inputs = tf.keras.Input([None, None, 3])
    encoder = VARIANTS["resnet18"](num_classes=None)
    *skips, x = encoder.features(inputs).values()
    for skip in reversed(skips):
        x = tf.keras.layers.UpSampling2D(interpolation="bilinear")(x)
        x = tf.keras.layers.Concatenate()([x, skip])
        x = BasicBlock(filters=skip.shape[-1])(x)
    x = tf.keras.layers.Conv2D(num_classes, 1)(x)
    # C2 has a quarter of the image's height and width.
    outputs = tf.keras.layers.UpSampling2D(4, interpolation="bilinear")(x)
    return tf.keras.Model(inputs, outputs, name="resnet18_unet")


def training_batches(data_dir, image_size, batch_size):
    """Returns an endless dataset of (images, masks), int masks from 0."""

    def prepare(example):
        size = [image_size, image_size]
        image = tf.image.resize(example["image"], size) / 127.5 - 1.0
        mask = tf.image.resize(example["segmentation_mask"], size, "nearest")
        # Labels of masks start at 1; 0, without a class, becomes background.
        mask = tf.where(mask == 0, tf.constant(2, tf.uint8), mask)
        return image, tf.cast(mask[..., 0], tf.int32) - 1

    dataset = tfds.load("oxford_iiit_pet", split="train", data_dir=data_dir)
    return (
        dataset.repeat()
        .shuffle(64)
        .map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(batch_size)
        .prefetch(tf.data.AUTOTUNE)
    )


def main(argv):
    del argv
    model = unet(NUM_CLASSES)
    optimizer = tf.keras.optimizers.Adam(1e-3)
    optimizer.build(model.trainable_variables)
    cross_entropy = tf.keras.losses.SparseCategoricalCrossentropy(
        from_logits=True
    )

    @tf.function
    def train_step(images, masks):
        with tf.GradientTape() as tape:
            loss = cross_entropy(masks, model(images, training=True))
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables))
        return loss

    batches = training_batches(
        FLAGS.data_dir, FLAGS.image_size, FLAGS.batch_size
    )
    for step, (images, masks) in enumerate(batches.take(FLAGS.steps), start=1):
        loss = train_step(images, masks)
        if step % 10 == 0 or step in (1, FLAGS.steps):
            print(f"step {step}/{FLAGS.steps}  loss {float(loss):.4f}")


if __name__ == "__main__":
    app.run(main)
