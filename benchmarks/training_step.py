"""Times a training step in two forms against each other.

The two take turns in one process, so that whatever else the machine does
strikes both alike; told is the median of the ratios, with the ends.

    python -m benchmarks.training_step --compare=fused_batch_norm
    python -m benchmarks.training_step --compare=fused_batch_norm \
        --precision=mixed_bfloat16
    python -m benchmarks.training_step --compare=kernel_products
    python -m benchmarks.training_step --compare=frozen_backbone
"""

import contextlib
import operator
import statistics
import time
from unittest import mock

import tensorflow as tf
from absl import app, flags

from resnet_layers import (
    VARIANTS,
    BatchNormalization,
    ResNet,
    kernel_gradients,
)
from train_loop.training.optimizers import MomentumSGD
from train_loop.training.trainer import Trainer

FLAGS = flags.FLAGS

# Name -> (what is done to the faster form, the context that the slower one is
# traced in).
COMPARISONS = {
    "fused_batch_norm": (
        lambda model: None,
        mock.patch.object(BatchNormalization, "runs_fused", return_value=False),
    ),
    "kernel_products": (
        lambda model: None,
        mock.patch.object(
            kernel_gradients, "products_are_faster", return_value=False
        ),
    ),
    "frozen_backbone": (
        lambda model: ResNet.freeze(model, "backbone"),
        contextlib.nullcontext(),
    ),
}

flags.DEFINE_enum(
    "compare",
    "fused_batch_norm",
    list(COMPARISONS),
    "fused_batch_norm: our batch norm against Keras's own; kernel_products: "
    "gradients of kernels as matrix products, where that is faster, against "
    "convolutions alone; frozen_backbone: training the classifier alone "
    "against training everything.",
)
flags.DEFINE_string("model", "resnet50", "A row of VARIANTS.")
flags.DEFINE_string("precision", "float32", "Dtype policy of the model.")
flags.DEFINE_integer("batch_size", 32, "Pictures per step.", lower_bound=1)
flags.DEFINE_integer("image_size", 224, "Height and width.", lower_bound=1)
flags.DEFINE_integer("rounds", 5, "Timed steps of each form.", lower_bound=1)


def main(argv):
    del argv
    prepare, slower = COMPARISONS[FLAGS.compare]
    steps = {"faster": training_step(prepare)}
    with slower:
        steps["slower"] = training_step(lambda model: None)
    seconds = {form: [] for form in steps}
    for turn in range(FLAGS.rounds):
        # Who goes first changes: a step may leave something to the next one.
        for form in sorted(steps, reverse=turn % 2 == 1):
            began = time.perf_counter()
            steps[form]()
            seconds[form].append(time.perf_counter() - began)
    fast, slow = (statistics.median(seconds[form]) for form in steps)
    ratios = sorted(map(operator.truediv, seconds["slower"], seconds["faster"]))
    print(
        f"{FLAGS.compare}, {FLAGS.model}, {FLAGS.precision}: {fast:.2f} s "
        f"against {slow:.2f} s per step of {FLAGS.batch_size}; "
        f"{statistics.median(ratios):.2f} times as fast ({ratios[0]:.2f} to "
        f"{ratios[-1]:.2f})"
    )


def training_step(prepare):
    """Returns a function that takes one training step, traced already."""
    model = VARIANTS[FLAGS.model](dtype=FLAGS.precision)
    shape = (FLAGS.batch_size, FLAGS.image_size, FLAGS.image_size, 3)
    model.build(shape)
    prepare(model)
    trainer = Trainer(model, MomentumSGD(0.01), tf.distribute.get_strategy())
    batch = tf.random.normal(shape), tf.zeros(FLAGS.batch_size, tf.int64)
    iterator = iter(tf.data.Dataset.from_tensors(batch).repeat())

    def step():
        return int(trainer.train(iterator, tf.constant(1))[0])

    step()
    return step


if __name__ == "__main__":
    app.run(main)
