"""What happens on the devices: steps of training and of evaluation."""

import tensorflow as tf

from train_loop.training import gradients
from train_loop.training.losses import cross_entropy, is_correct


class Trainer:
    """Trains and evaluates a classifier on the replicas of a strategy.

    Keras 3 leaves some of this to luck under `tf.distribute`; here it is
    spelled out. The loss is divided by the global batch size, gradients are
    summed over the replicas once, and whatever looks at them (norms, checks)
    looks at the sum, so that the result does not depend on the number of
    replicas.

    Args:
      model: maps images to logits; built.
      optimizer: a Keras optimizer, created in the strategy's scope; it is
        built here. Its `iterations` counts the steps.
      strategy: a `tf.distribute.Strategy`.
      label_smoothing: probability that training labels hand out evenly to all
        classes. Evaluation uses the labels as they are.
      forward: maps (a batch, training=...) to logits, in place of the model:
        with what goes before it, or a part of it.
    """

    def __init__(
        self, model, optimizer, strategy, label_smoothing=0.0, forward=None
    ):
        self.model = model
        self.forward = forward or model
        self.optimizer = optimizer
        self.strategy = strategy
        self.label_smoothing = label_smoothing
        with strategy.scope():
            optimizer.build(model.trainable_variables)
            gradients.sum_once(optimizer)
            self.loss = tf.keras.metrics.Mean(name="loss")
            self.accuracy = tf.keras.metrics.Mean(name="accuracy")
            self.gradient_norm = tf.keras.metrics.Mean(name="gradient_norm")

    @property
    def step(self):
        """Number of optimizer updates so far."""
        return int(self.optimizer.iterations.numpy())

    @tf.function
    def train(self, iterator, num_steps):
        """Takes several training steps.

        Nothing here branches on a number of a device or reads one, so that
        the host can hand over a step before the one before it is computed.

        Args:
          iterator: over a distributed dataset of (images, labels); see
            `cross_entropy` for labels.
          num_steps: scalar int tensor (a Python number would retrace).

        Returns:
          int64 scalar: the first step whose loss or gradients were not finite,
          or -1; and float64 scalar: the seconds spent waiting for batches.
        """
        broken_step = tf.constant(-1, tf.int64)
        waited = tf.constant(0.0, tf.float64)
        for _ in tf.range(num_steps):
            # The next batch is asked for only after this step: it may be
            # broken, and the error would end the step half done.
            tf.autograph.experimental.set_loop_options(parallel_iterations=1)
            began = tf.timestamp()
            with tf.control_dependencies([began]):
                batch = next(iterator)
            arrived = self._tensors(batch)
            with tf.control_dependencies(arrived):
                waited += tf.timestamp() - began
            losses, gradient_norms = self.strategy.run(
                self._train_step, args=(batch, arrived)
            )
            # Not by `strategy.reduce`, which brings them to the host.
            numbers = self._tensors([losses, gradient_norms])
            finite = tf.reduce_all(tf.math.is_finite(tf.stack(numbers)))
            broken_step = tf.where(
                (broken_step < 0) & ~finite,
                tf.cast(self.optimizer.iterations, tf.int64),
                broken_step,
            )
        return broken_step, waited

    @tf.function
    def evaluate(self, iterator, num_steps):
        """Takes several evaluation steps.

        Args:
          iterator: over a distributed dataset of (images, labels, weights).
          num_steps: scalar int tensor.
        """
        for _ in tf.range(num_steps):
            self.strategy.run(self._evaluation_step, args=(next(iterator),))

    def results(self, split):
        """Returns {name: number} of what was measured since the last call."""
        metrics = [self.loss, self.accuracy]
        if split == "train":
            metrics.append(self.gradient_norm)
        results = {metric.name: float(metric.result()) for metric in metrics}
        for metric in metrics:
            metric.reset_state()
        if split == "train":
            results["learning_rate"] = float(
                tf.convert_to_tensor(self.optimizer.learning_rate)
            )
        return results

    def is_finite(self):
        """Tells whether all numbers that a checkpoint would hold are finite."""
        variables = [*self.model.variables, *self.optimizer.variables]
        return all(
            bool(tf.reduce_all(tf.math.is_finite(variable.value)))
            for variable in variables
            if is_float(variable)
        )

    def average_statistics(self):
        """Gives all replicas the mean of their batch-norm statistics.

        Each replica moves its own; reading or saving takes the first one's.
        Call this before every evaluation and every save.
        """
        if self.strategy.num_replicas_in_sync == 1:
            return
        for variable in self.model.non_trainable_variables:
            if not is_float(variable):
                continue
            values = self.strategy.experimental_local_results(variable.value)
            # In this form equal values, frozen ones say, stay what they are.
            first, *others = values
            differences = tf.add_n([other - first for other in others])
            variable.assign(first + differences / len(values))

    def _tensors(self, values):
        return [
            tensor
            for part in tf.nest.flatten(values)
            for tensor in self.strategy.experimental_local_results(part)
        ]

    def _train_step(self, batch, arrived):
        images, labels = batch
        # No part of a step may happen before the batches of all replicas are
        # there. A replica does not see the control dependencies of its caller.
        with tf.control_dependencies(arrived):
            with tf.GradientTape() as tape:
                logits = self.forward(images, training=True)
                losses = cross_entropy(labels, logits, self.label_smoothing)
                # This replica's share: the sum over the replicas is the mean
                # over the global batch.
                replicas = self.strategy.num_replicas_in_sync
                loss = tf.reduce_mean(losses) / replicas
            gradient_norm = gradients.reduce_and_apply(
                self.optimizer,
                tape.gradient(loss, self.model.trainable_variables),
            )
            self.loss.update_state(losses)
            self.accuracy.update_state(is_correct(labels, logits))
            self.gradient_norm.update_state(gradient_norm)
        return loss, gradient_norm

    def _evaluation_step(self, batch):
        images, labels, weights = batch
        logits = self.forward(images, training=False)
        losses = cross_entropy(labels, logits)
        self.loss.update_state(losses, sample_weight=weights)
        self.accuracy.update_state(
            is_correct(labels, logits), sample_weight=weights
        )


def is_float(variable):
    """Tells a Keras variable of real numbers from a counter."""
    return tf.as_dtype(variable.dtype).is_floating
