"""Batches of examples for training and evaluation.

Training reads an endless stream of shuffled epochs. The example at a position
of the stream, and its augmentation, depend only on the seed and the position.
A run that resumes at step s starts its stream at position s * batch_size and
needs no other state.

AutoGraph is disabled here and wherever `tf.data` calls Python; see `Trainer`.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from train_loop.data.check import explained
from train_loop.data.decode import check_image
from train_loop.data.transforms import find_partners
from train_loop.errors import UserError

# Number of images in a sample.
SAMPLE_SIZE = 16
# One input pipeline with one replica.
WHOLE = tf.distribute.InputContext()


class Batching(NamedTuple):
    """The batching of training examples.

    Attributes:
      batch_size: examples of one step, over all replicas.
      seed: all randomness derives from it.
      repeats: number of consecutive repeats of each example, each with another
        augmentation. The length of an epoch does not change. Source: Hoffer et
        al., 2019, https://arxiv.org/abs/1901.09335.
      data_service: address of a tf.data service that prepares the batches.
        Each example is read once per epoch, but the order depends on the speed
        of the service's workers.
      skipped: numbers, from 0, of batches that training skips.
    """

    batch_size: int
    seed: int = 0
    repeats: int = 1
    data_service: str | None = None
    skipped: tuple[int, ...] = ()

    def batch_of(self, step):
        """Returns the number of the batch of a step, both from 0."""
        number = step
        for skipped in sorted(self.skipped):
            number += skipped <= number
        return number


@tf.autograph.experimental.do_not_convert
def training_batches(split, transforms, batching, step=0, context=WHOLE):
    """Returns an endless dataset of training batches.

    Args:
      split: a `Split`.
      transforms: a `Transforms`.
      batching: a `Batching`.
      step: number of completed steps; the dataset starts with the next one.
      context: a `tf.distribute.InputContext`. Several input pipelines, one per
        machine, read consecutive slices of each batch. A run can therefore
        resume with another number of machines.

    Returns:
      A dataset of (images, labels). Each batch has `batch_size` / replicas
      examples; see `Transforms.finish` for the dtypes.
    """
    if context.num_input_pipelines > 1:
        split = split.seekable()
    size = _per_pipeline(batching.batch_size, context)
    start = batching.batch_of(step) * batching.batch_size

    def is_read(positions):
        batches = positions // batching.batch_size
        skipped = tf.constant(batching.skipped, tf.int64)
        is_skipped = tf.reduce_any(batches[:, tf.newaxis] == skipped, axis=1)
        pipelines = positions % batching.batch_size // size
        return (pipelines == context.input_pipeline_id) & ~is_skipped

    def prepare(example):
        position = example["position"]
        seed = _fold([batching.seed, 1], position)
        image = transforms.train(example["image"], seed)
        return image, example["label"], position

    def finish(images, labels, positions):
        return transforms.finish(
            images,
            labels,
            find_partners(positions, batching.repeats),
            _fold([batching.seed, 2], positions[0]),
        )

    replicas = context.num_replicas_in_sync // context.num_input_pipelines
    examples = shuffled_examples(
        split, batching.seed, start, batching.repeats, is_read
    )
    batches = (
        _loaded(examples, split, transforms)
        .map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
        # Mixed before the split into replicas, so that the partner of an
        # image does not depend on the number of replicas of a machine.
        .batch(size, drop_remainder=True)
        .map(finish, num_parallel_calls=tf.data.AUTOTUNE)
    )
    if replicas > 1:
        batches = batches.rebatch(size // replicas, drop_remainder=True)
    if batching.data_service:
        service = tf.data.experimental.service
        batches = batches.apply(
            service.distribute(
                service.ShardingPolicy.DYNAMIC, batching.data_service
            )
        )
    return batches.prefetch(tf.data.AUTOTUNE).with_options(_ordered())


@tf.autograph.experimental.do_not_convert
def evaluation_batches(split, transforms, batch_size, context=WHOLE):
    """Returns a dataset with each example of a split exactly once.

    The last batches are padded with examples of weight 0. All batches are
    therefore full, and all replicas have the same number of batches.

    Args:
      split: a `Split`.
      transforms: a `Transforms`.
      batch_size: examples of one step, over all replicas.
      context: see `training_batches`.

    Returns:
      A dataset of (images, labels int64, weights float32). Each batch has
      `batch_size` / replicas examples. The dataset has `num_evaluation_steps`
      batches for each replica of this pipeline.
    """
    steps = num_evaluation_steps(split, batch_size, context)
    split = _shard(split, context)
    batch_size = _per_pipeline(batch_size, context)
    replicas = context.num_replicas_in_sync // context.num_input_pipelines
    examples = _loaded(split.stored(), split, transforms).map(
        lambda example: (
            transforms.evaluate(example["image"]),
            example["label"],
            1.0,
        ),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    padding = tf.data.Dataset.from_tensors(
        tf.nest.map_structure(
            lambda spec: tf.zeros(spec.shape, spec.dtype), examples.element_spec
        )
    ).repeat(steps * batch_size - split.num_examples)
    return (
        examples.concatenate(padding)
        .batch(batch_size // replicas, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
        .with_options(_ordered())
    )


def num_evaluation_steps(split, batch_size, context=WHOLE):
    """Returns the number of steps of the pipeline with the most examples."""
    largest = -(-split.num_examples // context.num_input_pipelines)
    return -(-largest // _per_pipeline(batch_size, context))


@tf.autograph.experimental.do_not_convert
def shuffled_examples(split, seed, start, repeats=1, is_read=None):
    """Returns the endless stream of shuffled epochs, from a position on.

    Args:
      split: a `Split`.
      seed: int; the order derives from it.
      start: position of the first example.
      repeats: number of consecutive repeats of each example. Each repeat has
        its own position.
      is_read: maps positions, int64 [n], to whether they are read, bool [n].
        None reads all.

    Returns:
      A dataset of single examples of `Split.read`, each with its "position".
    """
    count = split.num_examples
    windows = -(-count // split.window)

    def find(number):
        """Returns a window and the positions in it to read."""
        epoch, begin = number // windows, number % windows * split.window
        size = tf.minimum(count - begin, split.window)
        first = (epoch * count + begin) * repeats
        positions = first + tf.range(size * repeats)
        positions = tf.boolean_mask(positions, positions >= start)
        if is_read is not None:
            positions = tf.boolean_mask(positions, is_read(positions))
        return epoch, begin, size, positions

    def read(epoch, begin, size, positions):
        offsets = positions // repeats - (epoch * count + begin)
        # Repeats are read once.
        offsets, indices = tf.unique(offsets, out_idx=tf.int64)
        examples = split.read(_fold([seed, 0], epoch), begin, size, offsets)
        return {
            **{name: tf.gather(v, indices) for name, v in examples.items()},
            "position": positions,
        }

    epoch, inside = divmod(start // repeats, count)
    first = epoch * windows + inside // split.window
    return (
        tf.data.Dataset.range(first, tf.int64.max)
        .map(find)
        # A window can be without positions to read.
        .filter(lambda epoch, begin, size, positions: tf.size(positions) > 0)
        .map(read)
        # The next window is read while the current one is in use.
        .prefetch(1)
        .unbatch()
    )


def training_sample(data, transforms, batching, count=SAMPLE_SIZE):
    """Returns the first training images, augmented and mixed.

    Args:
      data: a `Data`.
      transforms: a `Transforms`.
      batching: a `Batching`; its `batch_size` is not used.
      count: number of images, a multiple of 4. If the split has fewer, images
        repeat.

    Returns:
      (images, float32 [count, size, size, 3] from 0 to 1; list of class names).
    """
    # Several batches, because each is mixed differently.
    batching = batching._replace(batch_size=count // 4, data_service=None)
    batches = training_batches(data.train, transforms, batching).take(4)
    with explained(data.train):
        images, labels = zip(*batches, strict=True)
    return _visible(data, tf.concat(images, 0), tf.concat(labels, 0))


def evaluation_sample(data, transforms, count=SAMPLE_SIZE):
    """Returns the first evaluation images; see `training_sample`."""
    batches = evaluation_batches(data.evaluation, transforms, count)
    with explained(data.evaluation):
        images, labels, weights = next(iter(batches))
    return _visible(data, images[weights > 0], labels[weights > 0])


@tf.autograph.experimental.do_not_convert
def readable_files(split, count):
    """Returns the files of a split's first examples that can be decoded.

    Args:
      split: a `Split`.
      count: maximum number of examples to read.

    Returns:
      (list with the bytes of each file, int64 array of labels).

    Raises:
      UserError: none of the examples can be decoded.
    """

    def load(example):
        file = split.load(example["image"])
        return file, example["label"], check_image(file)

    examples = split.slice(0, count).stored().map(load).ignore_errors()
    readable = list(examples.as_numpy_iterator())
    if not readable:
        raise UserError(
            f"--dataset: none of the first {count} images can be decoded. "
            "List broken images with --mode=data."
        )
    files, labels, _ = zip(*readable, strict=True)
    return list(files), np.array(labels)


def _loaded(examples, split, transforms):
    """Replaces the images of `Split.read` by the bytes of their files.

    TensorFlow's op determinism makes a map with a Python function sequential.
    Each Python function therefore has its own map, separate from the maps that
    decode and augment.
    """

    def map_images(examples, function):
        return examples.map(
            lambda example: {**example, "image": function(example["image"])},
            num_parallel_calls=tf.data.AUTOTUNE,
        )

    examples = map_images(examples, split.load)
    if split.needs_pillow:
        examples = map_images(examples, transforms.transcode)
    return examples


def _shard(split, context):
    """Returns the examples of one input pipeline."""
    pipelines = context.num_input_pipelines
    if pipelines > 1:
        split = split.seekable()
    begin, end = (
        split.num_examples * number // pipelines
        for number in (context.input_pipeline_id, context.input_pipeline_id + 1)
    )
    return split.slice(begin, end)


def _per_pipeline(batch_size, context):
    return batch_size // context.num_input_pipelines


def _fold(seed, number):
    return tf.random.experimental.stateless_fold_in(seed, number)


def _ordered():
    options = tf.data.Options()
    options.deterministic = True
    return options


def _visible(data, images, labels):
    images = tf.cast(images, tf.float32) / 255.0
    names = data.class_names
    if labels.dtype.is_integer:
        return images, [names[label] for label in labels]
    return images, [
        "\n".join(
            f"{names[label]} {row[label]:.0%}" for label in np.flatnonzero(row)
        )
        for row in labels.numpy()
    ]
