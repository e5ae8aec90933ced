"""The order in which examples become batches.

Training reads an endless stream of shuffled epochs. What stands at a position
of that stream, and how it is augmented, depends on the seed and the position
alone; a run that resumes at step s starts its stream at position
s * batch_size and needs no other memory of the past.

Nothing of it is converted by AutoGraph, here and wherever `tf.data` calls
Python: see `Trainer`.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from train_loop.data.check import explained
from train_loop.data.decode import check_image
from train_loop.data.transforms import find_partners
from train_loop.errors import UserError

# How many images a sample shows.
SAMPLE_SIZE = 16
# All examples, for one replica.
WHOLE = tf.distribute.InputContext()


class Batching(NamedTuple):
    """How a run makes batches of its training examples.

    `batch_size` counts the examples of one step, over all replicas; all
    randomness derives from `seed`. `repeats` is how often each example stands
    in a row, each time augmented in another way, while an epoch stays as long
    as it is (Hoffer et al., 2019, https://arxiv.org/abs/1901.09335).
    `data_service` is the address of a tf.data service whose workers prepare
    the batches: each example is still read once an epoch, but the order
    depends on which worker is faster. `skipped` are the numbers, from 0, of
    batches that are not trained on again.
    """

    batch_size: int
    seed: int = 0
    repeats: int = 1
    data_service: str | None = None
    skipped: tuple[int, ...] = ()

    def batch_of(self, step):
        """Returns the number of the batch of a step, both from 0."""
        number = step
        for other in sorted(self.skipped):
            number += other <= number
        return number


@tf.autograph.experimental.do_not_convert
def training_batches(split, transforms, batching, step=0, context=WHOLE):
    """Returns an endless dataset of training batches, from `step` on.

    Args:
      split: a `Split`.
      transforms: with `transcode`, `train` and `finish`, see `Transforms`.
      batching: a `Batching`.
      step: number of steps already trained.
      context: a `tf.distribute.InputContext`: what this input pipeline is
        for. Several, one per machine, share every batch: each reads its part
        of it, in the order that one alone would read, so that a run resumes
        with another number of them.

    Returns:
      A dataset of (images [batch_size / all replicas, ...], labels).
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
        # Mixed as a whole: what an image is mixed with does not depend on
        # the number of replicas of a machine.
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
    """Returns a dataset that holds every example of a split exactly once.

    The last batches are padded with examples of weight 0, so that every
    batch is full and every replica has the same number of them.

    Args:
      split: a `Split`.
      transforms: with `transcode` and `evaluate`, see `Transforms`.
      batch_size: examples of one step, over all replicas.
      context: see `training_batches`.

    Returns:
      A dataset of (images [batch_size / all replicas, ...], labels int64,
      weights float32), `num_evaluation_steps` times the number of this
      pipeline's replicas long.
    """
    steps = num_evaluation_steps(split, batch_size, context)
    split = _part(split, context)
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
    filler = tf.data.Dataset.from_tensors(
        tf.nest.map_structure(
            lambda spec: tf.zeros(spec.shape, spec.dtype), examples.element_spec
        )
    ).repeat(steps * batch_size - split.num_examples)
    return (
        examples.concatenate(filler)
        .batch(batch_size // replicas, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
        .with_options(_ordered())
    )


def num_evaluation_steps(split, batch_size, context=WHOLE):
    """Returns how many batches the pipeline with most examples needs."""
    largest = -(-split.num_examples // context.num_input_pipelines)
    return -(-largest // _per_pipeline(batch_size, context))


@tf.autograph.experimental.do_not_convert
def shuffled_examples(split, seed, start, repeats=1, is_read=None):
    """Returns the endless stream of shuffled epochs, from a position on.

    An example that is repeated has several positions.

    Args:
      split: a `Split`.
      seed: int that the order derives from.
      start: position of the first example.
      repeats: how often each example stands in a row.
      is_read: maps positions, int64 [n], to which are read, bool [n]; None for
        all.

    Returns:
      A dataset of what the split's `read` returns, one by one, each with its
      "position".
    """
    count = split.num_examples
    windows = -(-count // split.window)

    def find(number):
        """Returns a window, and the positions in it that are to be read."""
        epoch, begin = number // windows, number % windows * split.window
        size = tf.minimum(count - begin, split.window)
        first = (epoch * count + begin) * repeats
        positions = first + tf.range(size * repeats)
        positions = tf.boolean_mask(positions, positions >= start)
        if is_read is not None:
            positions = tf.boolean_mask(positions, is_read(positions))
        return epoch, begin, size, positions

    def read(epoch, begin, size, positions):
        places = positions // repeats - (epoch * count + begin)
        # What is repeated is read once.
        places, times = tf.unique(places, out_idx=tf.int64)
        examples = split.read(_fold([seed, 0], epoch), begin, size, places)
        return {
            **{name: tf.gather(v, times) for name, v in examples.items()},
            "position": positions,
        }

    epoch, inside = divmod(start // repeats, count)
    first = epoch * windows + inside // split.window
    return (
        tf.data.Dataset.range(first, tf.int64.max)
        .map(find)
        # A window may hold nothing to read.
        .filter(lambda epoch, begin, size, positions: tf.size(positions) > 0)
        .map(read)
        # One window is read while another one is in use.
        .prefetch(1)
        .unbatch()
    )


def training_sample(data, transforms, batching, count=SAMPLE_SIZE):
    """Returns the first images of training.

    Args:
      data: a `Data`.
      transforms: a `Transforms`.
      batching: a `Batching`; its size does not matter.
      count: how many, a multiple of 4; where there are fewer, some come twice.

    Returns:
      (float32 [count, size, size, 3] in 0..1, a list of names of classes).
    """
    # Several batches, because each is mixed in a way of its own.
    batching = batching._replace(batch_size=count // 4, data_service=None)
    batches = training_batches(data.train, transforms, batching).take(4)
    with explained(data.train):
        images, labels = zip(*batches, strict=True)
    return _visible(data, tf.concat(images, 0), tf.concat(labels, 0))


def evaluation_sample(data, transforms, count=SAMPLE_SIZE):
    """Returns the same as `training_sample`, of the evaluation split."""
    batches = evaluation_batches(data.evaluation, transforms, count)
    with explained(data.evaluation):
        images, labels, weights = next(iter(batches))
    return _visible(data, images[weights > 0], labels[weights > 0])


@tf.autograph.experimental.do_not_convert
def readable_files(split, count):
    """Returns the first files of a split that can be decoded.

    Args:
      split: a `Split`.
      count: of how many examples, at most.

    Returns:
      (list of the bytes of files, int64 array of labels).

    Raises:
      UserError: none of them can be.
    """

    def load(example):
        file = split.load(example["image"])
        return file, example["label"], check_image(file)

    examples = split.slice(0, count).stored().map(load).ignore_errors()
    readable = list(examples.as_numpy_iterator())
    if not readable:
        raise UserError(f"none of the first {count} images can be decoded")
    files, labels, _ = zip(*readable, strict=True)
    return list(files), np.array(labels)


def _loaded(examples, split, transforms):
    """Maps what a split's `read` returns to the same with files of images.

    Python functions are in maps of their own, which are sequential under
    TensorFlow's op determinism; what decodes and augments is none of these.
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


def _part(split, context):
    """Returns the examples that an input pipeline reads."""
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
