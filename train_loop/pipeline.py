"""This file answers: in which order do examples become batches?

Training reads an endless stream of shuffled epochs. What stands at a position
of that stream, and how it is augmented, depends on the seed and the position
alone; a run that goes on at step s starts its stream at position
s * batch_size and needs no other memory of the past.
"""

import tensorflow as tf

# Examples are shuffled while they are still encoded: at about 100 kB each,
# this many fit into 1.6 GB.
SHUFFLE_BUFFER = 16384


def training_batches(split, prepare, batch_size, global_batch_size, seed, step):
    """Returns an endless dataset of training batches, from `step` on.

    Args:
      split: has `num_examples` and `read(seed)`, see `datasets.Split`.
      prepare: maps (encoded, seed) to an image; seed is an int [2].
      batch_size: examples in one batch of this dataset.
      global_batch_size: examples in all batches of one step.
      seed: int that all randomness derives from.
      step: number of steps already trained.

    Returns:
      A dataset of (images [batch_size, ...], labels int64 [batch_size]).
    """
    start = step * global_batch_size
    buffer = min(split.num_examples, SHUFFLE_BUFFER)

    @tf.autograph.experimental.do_not_convert
    def read_epoch(epoch):
        # The seed of this function's graph, which `shuffle` mixes with its
        # own: fixed, so that the order does not depend on the process's seed.
        tf.random.set_seed(1)
        epoch_seed = tf.random.stateless_uniform(
            [],
            tf.random.experimental.stateless_fold_in([seed, 0], epoch),
            minval=None,
            maxval=None,
            dtype=tf.int64,
        )
        return split.read(epoch_seed).shuffle(
            buffer, seed=epoch_seed, reshuffle_each_iteration=False
        )

    def prepare_example(position, example):
        example_seed = tf.random.experimental.stateless_fold_in(
            [seed, 1], position
        )
        return prepare(example["image"], example_seed), example["label"]

    first_epoch, skipped = divmod(start, split.num_examples)
    epochs = tf.data.Dataset.range(first_epoch, tf.int64.max)
    return (
        epochs.flat_map(read_epoch)
        .skip(skipped)
        .enumerate(start)
        .map(prepare_example, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(batch_size, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
        .with_options(_ordered())
    )


def evaluation_batches(split, prepare, batch_size, global_batch_size):
    """Returns a dataset that holds every example of a split exactly once.

    The last batches are filled up with examples of weight 0, so that every
    batch is full and every replica has the same number of them.

    Args:
      split: has `num_examples` and `read(seed)`, see `datasets.Split`.
      prepare: maps an encoded picture to an image.
      batch_size: examples in one batch of this dataset.
      global_batch_size: examples in all batches of one step.

    Returns:
      A dataset of (images [batch_size, ...], labels int64 [batch_size],
      weights float32 [batch_size]).
    """
    examples = split.read(None).map(
        lambda example: (prepare(example["image"]), example["label"], 1.0),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    image, label, weight = examples.element_spec
    filler = tf.data.Dataset.from_tensors(
        (
            tf.zeros(image.shape, image.dtype),
            tf.zeros(label.shape, label.dtype),
            tf.zeros(weight.shape, weight.dtype),
        )
    ).repeat(-split.num_examples % global_batch_size)
    return (
        examples.concatenate(filler)
        .batch(batch_size, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
        .with_options(_ordered())
    )


def distribute(strategy, make_batches):
    """Hands each replica of `strategy` its own batches.

    Args:
      strategy: a `tf.distribute.Strategy`.
      make_batches: returns a dataset; consecutive batches of it go to
        consecutive replicas.

    Returns:
      A `tf.distribute.DistributedDataset`.
    """
    return strategy.distribute_datasets_from_function(
        lambda context: make_batches()
    )


def _ordered():
    options = tf.data.Options()
    options.deterministic = True
    return options
