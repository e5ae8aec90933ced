"""This file answers: in which order do examples become batches?

Training reads an endless stream of shuffled epochs. What stands at a position
of that stream, and how it is augmented, depends on the seed and the position
alone; a run that goes on at step s starts its stream at position
s * batch_size and needs no other memory of the past.
"""

from typing import NamedTuple

import tensorflow as tf


class Share(NamedTuple):
    """The part of the pictures and of each batch that an input worker reads.

    Several workers, one per machine, read parts of a split that have nothing
    in common and together are the whole. Each cuts its part of a batch for
    its replicas.
    """

    worker: int = 0
    workers: int = 1
    replicas: int = 1

    def of_split(self, split):
        bounds = [
            split.num_examples * number // self.workers
            for number in (self.worker, self.worker + 1)
        ]
        return split if self.workers == 1 else split.slice(*bounds)


WHOLE = Share()


def training_batches(
    split,
    prepare,
    batch_size,
    seed,
    step,
    mix=None,
    repeats=1,
    data_service=None,
    share=WHOLE,
):
    """Returns an endless dataset of training batches, from `step` on.

    Args:
      split: see `splits.py`.
      prepare: maps (encoded, seed) to an image; seed is an int [2].
      batch_size: examples of one step, over all workers and replicas.
      seed: int that all randomness derives from.
      step: number of steps already trained.
      mix: maps (images, labels, seed) of this worker's part of a batch to
        what is trained on; None to train on it as it is.
      repeats: how often each example stands in a row, each time augmented in
        another way, while an epoch stays as long as it is. Hoffer et al.,
        2019, https://arxiv.org/abs/1901.09335.
      data_service: address of a tf.data service, whose workers then prepare
        the batches. Each example is still read once an epoch, but the order
        depends on which worker is faster.
      share: what this worker reads.

    Returns:
      A dataset of (images [batch_size / all replicas, ...], labels).
    """
    split = share.of_split(split)
    batch_size //= share.workers
    start, skipped = divmod(step * batch_size, repeats)

    def repeat(example):
        copies = tf.data.Dataset.from_tensors(example).repeat(repeats)
        return copies.enumerate(example["position"] * repeats).map(
            lambda position, copy: {**copy, "position": position}
        )

    def prepare_example(example):
        position = example["position"]
        example_seed = _fold([seed, 1], position * share.workers + share.worker)
        image = prepare(split.load(example["image"]), example_seed)
        return image, example["label"], position

    def finish(images, labels, positions):
        if mix is None:
            return images, labels
        number = positions[0] * share.workers + share.worker
        return mix(images, labels, _fold([seed, 2], number))

    examples = shuffled_examples(split, seed, start)
    if repeats > 1:
        examples = examples.flat_map(repeat).skip(skipped)
    batches = (
        examples.map(prepare_example, num_parallel_calls=tf.data.AUTOTUNE)
        # Mixed as a whole: what a picture is mixed with does not depend on
        # the number of replicas.
        .batch(batch_size, drop_remainder=True)
        .map(finish, num_parallel_calls=tf.data.AUTOTUNE)
    )
    if share.replicas > 1:
        batches = batches.rebatch(
            batch_size // share.replicas, drop_remainder=True
        )
    if data_service:
        service = tf.data.experimental.service
        batches = batches.apply(
            service.distribute(service.ShardingPolicy.DYNAMIC, data_service)
        )
    return batches.prefetch(tf.data.AUTOTUNE).with_options(_ordered())


def shuffled_examples(split, seed, start):
    """Returns the endless stream of shuffled epochs, from a position on.

    Args:
      split: see `splits.py`.
      seed: int that the order derives from.
      start: position of the first example.

    Returns:
      A dataset of what the split's `read` returns, one by one, each with its
      "position".
    """
    count = split.num_examples
    windows = -(-count // split.window)

    @tf.autograph.experimental.do_not_convert
    def read_window(number):
        epoch, begin = number // windows, number % windows * split.window
        size = tf.minimum(count - begin, split.window)
        examples = split.read(_fold([seed, 0], epoch), begin, size)
        position = epoch * count + begin + tf.range(size)
        examples["position"] = position
        unread = tf.maximum(start - position[0], 0)
        return {name: value[unread:] for name, value in examples.items()}

    epoch, inside = divmod(start, count)
    first = epoch * windows + inside // split.window
    return (
        tf.data.Dataset.range(first, tf.int64.max)
        .map(read_window)
        # One window is read while another one is in use.
        .prefetch(1)
        .unbatch()
    )


def evaluation_batches(split, prepare, batch_size, share=WHOLE):
    """Returns a dataset that holds every example of a split exactly once.

    The last batches are filled up with examples of weight 0, so that every
    batch is full and every replica has the same number of them.

    Args:
      split: see `splits.py`.
      prepare: maps an encoded picture to an image.
      batch_size: examples of one step, over all workers and replicas.
      share: what this worker reads.

    Returns:
      A dataset of (images [batch_size / all replicas, ...], labels int64,
      weights float32), `num_evaluation_steps` times the number of this
      worker's replicas long.
    """
    steps = num_evaluation_steps(split, batch_size, share.workers)
    split = share.of_split(split)
    batch_size //= share.workers
    examples = split.stored().map(
        lambda example: (
            prepare(split.load(example["image"])),
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
        .batch(batch_size // share.replicas, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
        .with_options(_ordered())
    )


def num_evaluation_steps(split, batch_size, workers=1):
    """Returns how many batches the worker with most examples needs."""
    largest = -(-split.num_examples // workers)
    return -(-largest // (batch_size // workers))


def distribute(strategy, make_batches):
    """Hands each replica of `strategy` its own batches.

    Args:
      strategy: a `tf.distribute.Strategy`.
      make_batches: maps a `Share` to a dataset; consecutive batches of it go
        to consecutive replicas.

    Returns:
      A `tf.distribute.DistributedDataset`.
    """

    def make(context):
        workers = context.num_input_pipelines
        return make_batches(
            Share(
                context.input_pipeline_id,
                workers,
                context.num_replicas_in_sync // workers,
            )
        )

    return strategy.distribute_datasets_from_function(make)


def _fold(seed, number):
    return tf.random.experimental.stateless_fold_in(seed, number)


def _ordered():
    options = tf.data.Options()
    options.deterministic = True
    return options
