"""What happens on the devices: steps of training and of evaluation."""

import contextlib
import copy
import math
import time

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.config import is_op_determinism_enabled

from train_loop.training.losses import cross_entropy, is_correct
from train_loop.training.update import (
    Update,
    accumulate,
    is_float,
    reduce_and_apply,
    skip_own_reduction,
)
from train_loop.training.workers import Workers

# Larger weights have diverged, even if they are finite.
LARGEST_WEIGHT = 1e9


class Trainer:
    """Trains and evaluates a classifier on the replicas of a strategy.

    Keras 3 gets some of this wrong under `tf.distribute`; here it is explicit.
    The loss is divided by the global batch size, and gradients are summed over
    the replicas once. Norms and checks are of the sum, so that the result does
    not depend on the number of replicas.

    Loops of the graph are explicit as well. AutoGraph would convert Python's
    loops, and reads source files at every trace, so that an edit during a run
    would change the run.

    Args:
      model: a built model from images to logits.
      optimizer: a Keras optimizer, created in the strategy's scope. It is
        built here, unless it is built already for more variables than are
        trainable at first. Its `iterations` counts the steps.
      strategy: a `tf.distribute.Strategy`.
      training_loss: the loss to minimize, a function like `cross_entropy`.
      evaluation_loss: the loss that evaluation reports, such a function too.
      forward: maps (a batch, training=...) to logits, instead of the model:
        with preprocessing, or a part of the model.
      update: an `Update`; by default without any option.
    """

    def __init__(
        self,
        model,
        optimizer,
        strategy,
        training_loss=cross_entropy,
        evaluation_loss=cross_entropy,
        forward=None,
        update=None,
    ):
        self.model = model
        self.forward = forward or model
        self.optimizer = optimizer
        self.strategy = strategy
        self.workers = Workers(strategy)
        self.update = update or Update()
        self.training_loss = training_loss
        self.evaluation_loss = evaluation_loss
        with strategy.scope():
            optimizer.build(model.trainable_variables)
            skip_own_reduction(optimizer)
            self.loss = tf.keras.metrics.Mean(name="loss")
            self.accuracy = tf.keras.metrics.Mean(name="accuracy")
            self.gradient_norm = tf.keras.metrics.Mean(name="gradient_norm")
            self.skipped_steps = tf.keras.metrics.Sum(name="skipped_steps")

    def retraced(self, forward=None):
        """Returns a trainer with the same state, whose functions trace again.

        For a model whose frozen layers have changed.

        Args:
          forward: see the class; by default unchanged.
        """
        # Functions of TensorFlow are traced for each object.
        trainer = copy.copy(self)
        trainer.forward = forward or self.forward
        return trainer

    @property
    def step(self):
        """Number of optimizer updates so far."""
        return int(self.optimizer.iterations.numpy())

    @property
    def num_traces(self):
        """How often TensorFlow has traced the training step; once is enough."""
        return self.train.experimental_get_tracing_count()

    @tf.function(autograph=False)
    def train(self, iterator, num_steps):
        """Takes several training steps.

        Nothing here reads a number from a device or branches on one, so that
        the host can queue a step before the previous one is computed.

        Args:
          iterator: iterator of a distributed dataset of (images, labels); see
            `cross_entropy` for labels.
          num_steps: scalar int tensor (a Python number would retrace).

        Returns:
          int64 scalar: the first step whose loss or gradients were not finite,
          or -1; and float64 scalar: the seconds spent waiting for batches.
        """

        def take_step(taken, broken_step, waited):
            began = _seconds()
            with tf.control_dependencies([began]):
                batch = next(iterator)
            arrived = self._tensors(batch)
            with tf.control_dependencies(arrived):
                waited += _seconds() - began
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
            return taken + 1, broken_step, waited

        _, broken_step, waited = tf.while_loop(
            lambda taken, *_: taken < num_steps,
            take_step,
            [0, tf.constant(-1, tf.int64), tf.constant(0.0, tf.float64)],
            # The next batch is requested only after this step: if it is broken,
            # the error must not interrupt the step.
            parallel_iterations=1,
        )
        return broken_step, waited

    def _train_step(self, batch, arrived):
        """Takes a step on one replica, once all replicas have their batches."""
        images, labels = batch
        update, changed = self.update, self._changed_by_step()
        # No part of a step may run before all replicas have their batches. A
        # replica does not inherit the control dependencies of its caller.
        with tf.control_dependencies(arrived):
            before = [tf.identity(variable) for variable in changed]
            gradients, losses, correct = self._gradients(images, labels)
            norm = reduce_and_apply(
                self.optimizer,
                gradients,
                # Without frozen ones.
                self.model.trainable_variables,
                update.clip_norm,
                update.loss_scale,
            )
            if update.loss_scale is not None:
                skipped, norm = update.loss_scale.update(norm, changed, before)
                replicas = self.strategy.num_replicas_in_sync
                self.skipped_steps.update_state(
                    tf.cast(skipped, tf.float32) / replicas
                )
            if update.average is not None:
                update.average.update(self.optimizer.iterations.value)
            self.loss.update_state(losses)
            self.accuracy.update_state(correct)
            self.gradient_norm.update_state(norm)
        return tf.reduce_mean(losses), norm

    def _gradients(self, images, labels):
        """Returns gradients, losses and correctness of a replica's examples.

        The gradients are of its share of the loss, times the loss scale.
        """
        gradients_of = self._forward_and_backward
        if self.update.compiled:
            gradients_of = tf.function(
                gradients_of, autograph=False, jit_compile=True
            )
        if self.update.micro_batches == 1:
            return gradients_of(images, labels)
        # Synchronized batch norm communicates with the other replicas, which is
        # not possible inside a loop of the graph.
        unrolled = self.strategy.num_replicas_in_sync > 1 and any(
            getattr(layer, "synchronized", False)
            for layer in self.model._flatten_layers()
        )
        return accumulate(
            gradients_of,
            images,
            labels,
            self.model.trainable_variables,
            self.update.micro_batches,
            unrolled,
        )

    def _forward_and_backward(self, images, labels):
        replicas = self.strategy.num_replicas_in_sync
        with tf.GradientTape() as tape:
            logits = self.forward(images, training=True)
            losses = self.training_loss(labels, logits)
            # The sum of these shares over all micro-batches and replicas is
            # the mean over the global batch.
            loss = tf.reduce_mean(losses) / replicas / self.update.micro_batches
            if self.update.loss_scale is not None:
                loss = self.update.loss_scale.multiply(loss)
        gradients = tape.gradient(loss, self.model.trainable_variables)
        return gradients, losses, is_correct(labels, logits)

    def _changed_by_step(self):
        """Returns the variables to restore if an update is undone.

        Without the number of steps: the images of that step have been read.
        """
        if self.update.loss_scale is None:
            return []
        variables = [*self.model.variables, *self.optimizer.variables]
        return [v.value for v in variables if is_float(v)]

    @tf.function(autograph=False)
    def evaluate(self, iterator, num_steps):
        """Takes several evaluation steps.

        Args:
          iterator: iterator of a distributed dataset of (images, labels,
            weights).
          num_steps: scalar int tensor.
        """

        def take_step(taken):
            self.strategy.run(self._evaluation_step, args=(next(iterator),))
            return [taken + 1]

        tf.while_loop(lambda taken: taken < num_steps, take_step, [0])

    def _evaluation_step(self, batch):
        images, labels, weights = batch
        logits = self.forward(images, training=False)
        losses = self.evaluation_loss(labels, logits)
        self.loss.update_state(losses, sample_weight=weights)
        self.accuracy.update_state(
            is_correct(labels, logits), sample_weight=weights
        )

    def results(self, split):
        """Returns {metric: number} since the last call."""
        scale = self.update.loss_scale
        metrics = [self.loss, self.accuracy]
        if split == "train":
            metrics.append(self.gradient_norm)
            if scale is not None:
                metrics.append(self.skipped_steps)
        results = {metric.name: float(metric.result()) for metric in metrics}
        for metric in metrics:
            metric.reset_state()
        if split == "train":
            results["learning_rate"] = float(
                tf.convert_to_tensor(self.optimizer.learning_rate)
            )
            if scale is not None:
                results["loss_scale"] = float(scale.scale.numpy())
        return results

    def is_finite(self):
        """Tells whether all variables of a checkpoint are finite.

        Those of the model must not exceed `LARGEST_WEIGHT` either.
        """
        average = self.update.average
        parts = [
            (self.model.variables, LARGEST_WEIGHT),
            (self.optimizer.variables, math.inf),
            ([mean for _, mean in average.pairs] if average else [], math.inf),
        ]
        return all(
            bool(tf.reduce_all(tf.math.is_finite(variable)))
            and float(tf.reduce_max(tf.abs(variable))) <= largest
            for variables, largest in parts
            for variable in variables
            if is_float(variable)
        )

    def average_statistics(self):
        """Sets batch-norm statistics to their mean over the replicas.

        Averages of statistics too. Each replica updates its own; reading and
        saving use those of the first replica. Call this before every evaluation
        and every save.
        """
        if self.strategy.num_replicas_in_sync > 1:
            self._average_statistics()

    @tf.function(autograph=False)
    def _average_statistics(self):
        def average():
            context = tf.distribute.get_replica_context()
            count = context.num_replicas_in_sync
            variables = [*self._statistics().values()]
            # The mean of equal (such as frozen) values must be that value. In
            # float32 this holds for 2, 4, 8 replicas; a TPU has no float64.
            dtype = tf.float64 if count & (count - 1) else tf.float32
            sums = context.all_reduce(
                "SUM",
                # Copies are on the device of the replica.
                [tf.identity(tf.cast(v, dtype)) for v in variables],
            )
            for variable, total in zip(variables, sums, strict=True):
                variable.assign(tf.cast(total / count, variable.dtype))

        self.strategy.run(average)

    def replica_state(self):
        """Returns {name: array [replicas, ...]} of variables per replica.

        These are batch-norm statistics, and the metrics since the last report.
        A run that stops between two reports needs them to resume bitwise
        identically.
        """
        return {
            name: np.stack([value.numpy() for value in self._local(variable)])
            for name, variable in self._local_variables().items()
        }

    def restore_replica_state(self, state):
        """Restores the state of each replica, unless their number has changed.

        Args:
          state: result of `replica_state`.
        """
        variables = self._local_variables()
        for name, values in state.items():
            places = self._local(variables[name])
            if len(places) == len(values):
                for place, value in zip(places, values, strict=True):
                    place.assign(value)

    @contextlib.contextmanager
    def preserving_state(self):
        """Averages statistics for an evaluation, and restores them afterwards.

        Between two reports, metrics hold a part of the next report, and
        replicas have different statistics.
        """
        state = self.replica_state()
        self.average_statistics()
        self.results("train")
        try:
            yield
        finally:
            self.restore_replica_state(state)

    def _local_variables(self):
        metrics = [self.loss, self.accuracy, self.gradient_norm]
        return self._statistics() | {
            f"metrics/{metric.name}/{variable.name}": variable.value
            for metric in [*metrics, self.skipped_steps]
            for variable in metric.variables
        }

    def _statistics(self):
        """Returns {name: variable} of statistics, and of their averages."""
        statistics = {
            variable.path: variable.value
            for variable in self.model.non_trainable_variables
            if is_float(variable)
        }
        if self.update.average is None:
            return statistics
        return statistics | {
            f"average/{variable.path}": mean
            for variable, mean in self.update.average.pairs
            if variable.path in statistics
        }

    def _local(self, variable):
        return self.strategy.experimental_local_results(variable)

    def _tensors(self, values):
        return [
            tensor
            for part in tf.nest.flatten(values)
            for tensor in self._local(part)
        ]


def _seconds():
    """Returns the time, when the graph comes to it."""
    if is_op_determinism_enabled():
        # TensorFlow rejects its own clock then.
        now = tf.numpy_function(time.time, [], tf.float64)
        return tf.ensure_shape(now, [])
    return tf.timestamp()
