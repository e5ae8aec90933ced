"""Times a training step on the fused and on Keras's own batch norm.

The two take turns in one process, so that whatever else the machine does
strikes both alike; the medians are compared.

    python -m benchmarks.batch_norm
"""

import statistics
import time
from unittest import mock

import tensorflow as tf
from absl import app, flags

from resnet_layers import VARIANTS, BatchNormalization
from train_loop.optimizers import MomentumSGD
from train_loop.trainer import Trainer

FLAGS = flags.FLAGS
flags.DEFINE_string("model", "resnet50", "A row of VARIANTS.")
flags.DEFINE_integer("batch_size", 32, "Pictures per step.", lower_bound=1)
flags.DEFINE_integer("image_size", 224, "Height and width.", lower_bound=1)
flags.DEFINE_integer("rounds", 5, "Timed steps of each kind.", lower_bound=1)
flags.DEFINE_list(
    "precisions", ["float32", "mixed_bfloat16"], "Dtype policies to time."
)


def main(argv):
    del argv
    for precision in FLAGS.precisions:
        fused = training_step(precision)
        with mock.patch.object(
            BatchNormalization, "runs_fused", return_value=False
        ):
            unfused = training_step(precision)
        seconds = {fused: [], unfused: []}
        for _ in range(FLAGS.rounds):
            for step, measured in seconds.items():
                began = time.perf_counter()
                step()
                measured.append(time.perf_counter() - began)
        fused_seconds, unfused_seconds = map(
            statistics.median, seconds.values()
        )
        print(
            f"{FLAGS.model} {precision}: fused {fused_seconds:.2f} s, Keras's "
            f"own {unfused_seconds:.2f} s per step of {FLAGS.batch_size}; "
            f"{unfused_seconds / fused_seconds:.2f} times as fast",
            flush=True,
        )


def training_step(precision):
    """Returns a function that takes one training step, traced already."""
    strategy = tf.distribute.get_strategy()
    model = VARIANTS[FLAGS.model](dtype=precision)
    shape = (FLAGS.batch_size, FLAGS.image_size, FLAGS.image_size, 3)
    model.build(shape)
    trainer = Trainer(model, MomentumSGD(0.01), strategy)
    batch = tf.random.normal(shape), tf.zeros(FLAGS.batch_size, tf.int64)
    iterator = iter(tf.data.Dataset.from_tensors(batch).repeat())

    def step():
        return int(trainer.train(iterator, tf.constant(1)))

    step()
    return step


if __name__ == "__main__":
    app.run(main)
