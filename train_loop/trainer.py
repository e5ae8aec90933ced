"""This file answers: what happens on the devices?"""

import tensorflow as tf


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
            # Only when the step before is done, not merely handed to a GPU.
            with tf.control_dependencies([broken_step]):
                began = tf.timestamp()
            with tf.control_dependencies([began]):
                batch = next(iterator)
            # Nothing of a step may happen before its batch is there: it may
            # be broken, and what was learned before is saved then.
            with tf.control_dependencies(self._tensors(batch)):
                waited += tf.timestamp() - began
                losses, gradient_norms = self.strategy.run(
                    self._train_step, args=(batch,)
                )
            loss = self.strategy.reduce("SUM", losses, axis=None)
            gradient_norm = self.strategy.reduce(
                "MEAN", gradient_norms, axis=None
            )
            finite = tf.math.is_finite(loss) & tf.math.is_finite(gradient_norm)
            if broken_step < 0 and not finite:
                broken_step = tf.cast(self.optimizer.iterations, tf.int64)
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

    def _tensors(self, batch):
        return [
            tensor
            for part in tf.nest.flatten(batch)
            for tensor in self.strategy.experimental_local_results(part)
        ]

    def _train_step(self, batch):
        images, labels = batch
        replicas = self.strategy.num_replicas_in_sync
        with tf.GradientTape() as tape:
            logits = self.forward(images, training=True)
            losses = cross_entropy(labels, logits, self.label_smoothing)
            # This replica's share: the sum over the replicas is the mean over
            # the global batch.
            loss = tf.reduce_mean(losses) / replicas
        variables = self.model.trainable_variables
        gradients = tape.gradient(loss, variables)

        context = tf.distribute.get_replica_context()
        gradients = context.all_reduce("SUM", gradients)
        # Keras's optimizers sum over the replicas once more.
        self.optimizer.apply([gradient / replicas for gradient in gradients])

        gradient_norm = tf.linalg.global_norm(gradients)
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


def cross_entropy(labels, logits, label_smoothing=0.0):
    """Returns the cross entropy of every example, in nats.

    Args:
      labels: int [batch], or probabilities, float [batch, num_classes].
      logits: float [batch, num_classes].
      label_smoothing: probability handed out evenly to all classes; Szegedy et
        al., 2015, https://arxiv.org/abs/1512.00567.

    Returns:
      A tensor [batch] of the dtype of `logits`.
    """
    num_classes = logits.shape[-1]
    targets = labels
    if labels.dtype.is_integer:
        targets = tf.one_hot(labels, num_classes)
    targets = tf.cast(targets, logits.dtype)
    targets = targets * (1.0 - label_smoothing) + label_smoothing / num_classes
    return tf.nn.softmax_cross_entropy_with_logits(targets, logits)


def is_correct(labels, logits):
    """Returns float32 [batch]: 1 where the largest logit is the label's.

    Of labels that are probabilities, the most probable one counts.
    """
    if labels.dtype.is_floating:
        labels = tf.argmax(labels, axis=-1)
    predictions = tf.argmax(logits, axis=-1, output_type=labels.dtype)
    return tf.cast(tf.equal(predictions, labels), tf.float32)
