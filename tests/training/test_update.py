"""Updates: reduced once, in micro-batches, clipped, scaled, averaged."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from small_trainers import (
    BATCH_SIZE,
    assert_same,
    make_batches,
    make_examples,
    make_model,
    make_model_without_norm,
    make_resnet,
    make_trainer,
    start_again,
    state_of,
)

from train_loop.training.optimizers import OPTIMIZERS, MomentumSGD
from train_loop.training.trainer import Trainer
from train_loop.training.update import (
    AVERAGES,
    INITIAL_SCALE,
    MAX_SCALE,
    Average,
    LossScale,
    Update,
    reduce_and_apply,
    skip_own_reduction,
)

SGD = tf.keras.optimizers.SGD
AdamW = tf.keras.optimizers.AdamW
KERAS = {
    "ours": functools.partial(MomentumSGD, 0.1, l2=0.01),
    "sgd": functools.partial(SGD, 0.1, momentum=0.9),
    "adamw": functools.partial(AdamW, 0.1, weight_decay=0.1),
    "average": functools.partial(SGD, 0.1, use_ema=True, ema_momentum=0.5),
}
CLIPPED = {
    "norm": functools.partial(SGD, 0.1, clipnorm=0.5),
    "global_norm": functools.partial(SGD, 0.1, global_clipnorm=0.5),
    "value": functools.partial(SGD, 0.1, clipvalue=0.5),
}
STEPS = 3


def ours(optimizer, gradients):
    """Updates like the trainer; returns the norm."""
    return reduce_and_apply(optimizer, gradients)


def kerass(optimizer, gradients):
    """Updates like Keras."""
    optimizer.apply(gradients)
    return tf.constant(0.0)


def numbers(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def take_steps(strategy, make, update, scale=1.0):
    """Returns (all variables on all replicas, norms) after some steps.

    The gradients of all replicas together are the same however many there are.
    """
    replicas = strategy.num_replicas_in_sync
    with strategy.scope():
        variables = [
            tf.Variable(numbers(1, (3, 2))),
            tf.Variable(numbers(2, (2,))),
        ]
        optimizer = make()
        optimizer.build(variables)
    if update is ours:
        skip_own_reduction(optimizer)

    @tf.function
    def step(gradients):
        return strategy.run(
            lambda share: update(
                optimizer, [tf.reduce_sum(part, axis=0) for part in share]
            ),
            args=(gradients,),
        )

    norms = []
    for number in range(STEPS):
        # One entry for each half of the batch.
        halves = [
            scale * numbers((number, index), (2, *variable.shape))
            for index, variable in enumerate(variables)
        ]
        gradients = strategy.experimental_distribute_values_from_function(
            lambda context, halves=halves: [
                tf.constant(half)
                if replicas == 1
                else tf.constant(half[context.replica_id_in_sync_group][None])
                for half in halves
            ]
        )
        norms.append(strategy.experimental_local_results(step(gradients)))
    held = [*variables, *(v.value for v in optimizer.variables)]
    values = [
        [value.numpy() for value in strategy.experimental_local_results(v)]
        for v in held
    ]
    return values, np.array(norms)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "replicas"),
    [("ours", 1), ("ours", 2), ("sgd", 2), ("adamw", 2), ("average", 2)],
)
def test_updates_are_bitwise_identical_to_keras(
    one_device, two_replicas, optimizer, replicas
):
    strategy = {1: one_device, 2: two_replicas}[replicas]
    make = KERAS[optimizer]
    values, _ = take_steps(strategy, make, ours)
    expected, _ = take_steps(strategy, make, kerass)
    for value, other in zip(values, expected, strict=True):
        np.testing.assert_array_equal(value, other)


@pytest.mark.parametrize("optimizer", CLIPPED)
def test_clipping_uses_the_summed_gradients(
    one_device, two_replicas, optimizer
):
    make = CLIPPED[optimizer]
    expected, _ = take_steps(one_device, make, ours)
    values, _ = take_steps(two_replicas, make, ours)
    for value, other in zip(values, expected, strict=True):
        for on_replica in value:
            np.testing.assert_allclose(on_replica, other[0], atol=1e-6)


def test_norm_is_of_the_summed_gradients(one_device, two_replicas):
    expected = [
        np.sqrt(
            sum(
                np.square(numbers((step, index), (2, *shape)).sum(0)).sum()
                for index, shape in enumerate([(3, 2), (2,)])
            )
        )
        for step in range(STEPS)
    ]
    for strategy in (one_device, two_replicas):
        _, norms = take_steps(strategy, KERAS["ours"], ours)
        for of_replica in norms.T:
            np.testing.assert_allclose(of_replica, expected, rtol=1e-5)


def test_infinite_gradient_reaches_all_replicas(two_replicas):
    _, norms = take_steps(two_replicas, KERAS["sgd"], ours, np.inf)
    assert not np.isfinite(norms).any()


def test_gradients_are_reduced_once():
    name = "sum_over_replicas"

    def add(values):
        with tf.name_scope(name):
            return tf.add_n(values)

    # Every sum over the replicas calls this.
    strategy = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"],
        cross_device_ops=tf.distribute.ReductionToOneDevice(
            accumulation_fn=add
        ),
    )
    trainer = make_trainer(strategy, make_model_without_norm)
    function = trainer.train.get_concrete_function(
        make_batches(strategy), tf.constant(1)
    )
    graph = function.graph.as_graph_def()
    of_functions = [f.node_def for f in graph.library.function]
    sums = [
        node
        for nodes in [graph.node, *of_functions]
        for node in nodes
        if node.op == "AddN" and name in node.name
    ]
    assert len(sums) == len(trainer.model.trainable_variables)


CLIP_NORM = 0.4


def synchronized_model():
    return make_model(synchronized=True)


def updated(
    strategy,
    make=make_model_without_norm,
    optimizer=MomentumSGD,
    everything=False,
    **options,
):
    """Returns (weights and their averages, results) of some steps.

    Args:
      strategy: a `tf.distribute.Strategy`.
      make: returns the model.
      optimizer: learning rate -> optimizer.
      everything: with averages, clipping and a scaled loss.
      **options: of the `Update`.
    """
    trainer = make_trainer(strategy, make, optimizer)
    model = trainer.model
    if everything:
        with strategy.scope():
            options |= {
                "clip_norm": CLIP_NORM,
                "average": Average(model, AVERAGES["ema"](0.9, 6)),
                "loss_scale": LossScale(growth_steps=2),
            }
    trainer = Trainer(
        model, trainer.optimizer, strategy, update=Update(**options)
    )
    trainer.train(make_batches(strategy), tf.constant(6))
    average = trainer.update.average
    averages = average.by_path.values() if average else []
    values = [*model.trainable_variables, *averages]
    return [np.asarray(v) for v in values], trainer.results("train")


def assert_close(found, expected):
    (values, results), (others, other_results) = found, expected
    for value, other in zip(values, others, strict=True):
        np.testing.assert_allclose(value, other, rtol=0, atol=1e-6)
    assert results == pytest.approx(other_results, rel=1e-5)


@pytest.fixture(scope="module")
def whole(one_device):
    return updated(one_device)


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
def test_micro_batches_give_the_update_of_the_whole_batch(
    whole, one_device, two_replicas, replicas
):
    strategy = {1: one_device, 2: two_replicas}[replicas]
    assert_close(updated(strategy, micro_batches=2), whole)


def test_batch_norm_uses_micro_batches(one_device):
    pieces = make_trainer(one_device, rate=0.0, update=Update(micro_batches=2))
    images, labels = make_examples()
    model = make_trainer(one_device).model
    pieces.train(make_batches(one_device, images, labels), tf.constant(1))
    # A micro-batch has every second example.
    for start in range(2):
        model(images[start:BATCH_SIZE:2], training=True)
    found = pieces.model.layers[1].moving_mean
    expected = model.layers[1].moving_mean
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(np.asarray(found)).max() > 1e-3


@pytest.mark.slow
def test_replicas_agree_with_all_options(one_device, two_replicas):
    def optimizer(rate):
        return OPTIMIZERS["lars"](20.0 * rate, 1e-3)

    found, expected = (
        updated(
            strategy,
            synchronized_model,
            optimizer,
            everything=True,
            micro_batches=2,
        )
        for strategy in (two_replicas, one_device)
    )
    assert_close(found, expected)
    # Some steps were clipped, others not.
    assert expected[1]["gradient_norm"] > CLIP_NORM


def test_clipping_limits_the_global_norm(one_device):
    # A step of plain SGD has the norm of the gradient.
    lengths = []
    for clip_norm in (None, CLIP_NORM):
        trainer = make_trainer(
            one_device,
            make_model_without_norm,
            tf.keras.optimizers.SGD,
            rate=1.0,
            update=Update(clip_norm=clip_norm),
        )
        weights = trainer.model.trainable_variables
        before = [np.asarray(variable) for variable in weights]
        trainer.train(make_batches(one_device), tf.constant(1))
        way = [np.asarray(v) - b for v, b in zip(weights, before, strict=True)]
        lengths.append(np.sqrt(sum(np.square(part).sum() for part in way)))
    assert lengths[0] > CLIP_NORM
    assert lengths[1] == pytest.approx(CLIP_NORM, rel=1e-4)


@pytest.mark.slow
def test_compiled_step_differs_by_rounding_only(one_device):
    assert_close(
        updated(one_device, make_resnet, compiled=True),
        updated(one_device, make_resnet),
    )


def scaling_trainer(strategy, make=make_model, growth_steps=2000):
    """Returns a trainer whose loss is scaled."""
    trainer = make_trainer(strategy, make)
    with strategy.scope():
        update = Update(loss_scale=LossScale(growth_steps))
    return Trainer(trainer.model, trainer.optimizer, strategy, update=update)


@pytest.fixture(scope="module")
def traced(two_replicas):
    # Norms would keep any image's gradients small.
    make = make_model_without_norm
    trainer = scaling_trainer(two_replicas, make, growth_steps=3)
    return trainer, state_of(trainer)


@pytest.fixture
def two(traced):
    """Returns a trainer on two replicas in its initial state."""
    trainer, start = traced
    start_again(trainer, start)
    trainer.update.loss_scale.scale.assign(INITIAL_SCALE)
    trainer.update.loss_scale.good_steps.assign(0)
    return trainer


def exploding(number):
    """Returns examples; the gradients of one, not its loss, are infinite."""
    images, labels = make_examples()
    images[number] *= 1e35
    return images, labels


def scale(trainer):
    return float(trainer.update.loss_scale.scale.numpy())


@pytest.mark.slow
def test_loss_scale_is_exact(two, two_replicas):
    plain = make_trainer(two_replicas, make_model_without_norm)
    plain.train(make_batches(two_replicas), tf.constant(4))
    two.train(make_batches(two_replicas), tf.constant(4))
    assert_same(two, state_of(plain))
    # It doubles after three finite steps.
    assert scale(two) == 2 * INITIAL_SCALE
    results = two.results("train")
    assert results["skipped_steps"] == 0
    assert results["loss_scale"] == 2 * INITIAL_SCALE
    assert results["gradient_norm"] == plain.results("train")["gradient_norm"]


def test_update_is_undone_on_all_replicas(two, two_replicas):
    # The last example of the third batch: the second replica's.
    examples = exploding(3 * BATCH_SIZE - 1)
    batches = make_batches(two_replicas, *examples)
    two.train(batches, tf.constant(2))
    before = state_of(two)
    broken_step, _ = two.train(batches, tf.constant(1))
    # It is counted, and training continues.
    assert int(broken_step) == -1
    assert two.step == 3
    assert two.is_finite()
    after = state_of(two)
    steps = [v is two.optimizer.iterations for v in two.optimizer.variables]
    steps = [False] * len(two.model.variables) + steps
    for is_step, ours, theirs in zip(steps, after, before, strict=True):
        if not is_step:
            np.testing.assert_array_equal(ours, theirs)
    assert scale(two) == INITIAL_SCALE / 2
    results = two.results("train")
    assert results["skipped_steps"] == 1
    assert np.isfinite(results["gradient_norm"])
    # The count of finite steps restarts.
    two.train(batches, tf.constant(2))
    assert scale(two) == INITIAL_SCALE / 2
    two.train(batches, tf.constant(1))
    assert scale(two) == INITIAL_SCALE


@pytest.fixture
def half(traced_half):
    """Returns a trainer in float16 in its initial state."""
    trainer, start = traced_half
    start_again(trainer, start)
    trainer.update.loss_scale.scale.assign(INITIAL_SCALE)
    return trainer


@pytest.fixture(scope="module")
def traced_half(one_device):
    trainer = scaling_trainer(
        one_device, lambda: make_model(dtype="mixed_float16")
    )
    return trainer, state_of(trainer)


def test_statistics_are_restored_too(one_device, half):
    trainer = half
    before = state_of(trainer)[: len(trainer.model.variables)]
    images, labels = make_examples()
    images[0] = np.nan
    batches = make_batches(one_device, images, labels)
    broken_step, _ = trainer.train(batches, tf.constant(1))
    # A smaller scale does not fix a loss that is not finite.
    assert int(broken_step) == 1
    after = state_of(trainer)[: len(before)]
    for ours, theirs in zip(after, before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_smallest_scale_stays(two, two_replicas):
    two.update.loss_scale.scale.assign(1.0)
    batches = make_batches(two_replicas, *exploding(0))
    broken_step, _ = two.train(batches, tf.constant(1))
    assert int(broken_step) == 1


def test_largest_scale_stays(two, two_replicas):
    two.update.loss_scale.scale.assign(MAX_SCALE)
    two.train(make_batches(two_replicas), tf.constant(6))
    assert scale(two) == MAX_SCALE


def test_float16_trains(one_device, half):
    single = make_trainer(one_device)
    half.train(make_batches(one_device), tf.constant(6))
    single.train(make_batches(one_device), tf.constant(6))
    results, expected = half.results("train"), single.results("train")
    assert results["loss"] == pytest.approx(expected["loss"], rel=1e-2)
    assert results["skipped_steps"] == 0


def coefficients(name, decay, steps):
    coefficient = AVERAGES[name](decay, steps)
    return [
        float(coefficient(tf.constant(step))) for step in range(1, steps + 1)
    ]


def test_exponential_average_warms_up():
    found = coefficients("ema", 0.75, 40)
    # As `tf.train.ExponentialMovingAverage(0.75, num_updates)` one step later.
    expected = [1 - min(0.75, (1 + n) / (10 + n)) for n in range(39)]
    assert found[0] == 1.0
    np.testing.assert_allclose(found[1:], expected, rtol=1e-6)


def test_swa_is_the_mean_of_the_last_quarter():
    values = np.random.default_rng(0).normal(size=40)
    mean = 0.0
    for value, coefficient in zip(
        values, coefficients("swa", 0.0, 40), strict=True
    ):
        mean += coefficient * (value - mean)
    np.testing.assert_allclose(mean, values[29:].mean(), rtol=1e-5)


@pytest.fixture(scope="module")
def averaged(two_replicas):
    """Returns a trainer after six steps, and its expected averages."""
    trainer = make_trainer(two_replicas)
    with two_replicas.scope():
        average = Average(trainer.model, AVERAGES["ema"](0.5, 6))
    trainer = Trainer(
        trainer.model,
        trainer.optimizer,
        two_replicas,
        update=Update(average=average),
    )
    # Weights and statistics.
    floats = [variable for variable, _ in average.pairs]
    assert len(floats) == len(trainer.model.variables)
    expected = [np.asarray(variable) for variable in floats]
    batches = make_batches(two_replicas)
    for number in range(6):
        trainer.train(batches, tf.constant(1))
        trainer.average_statistics()
        decay = min(0.5, number / (number + 9))
        expected = [
            decay * mean + (1 - decay) * np.asarray(variable)
            for mean, variable in zip(expected, floats, strict=True)
        ]
    return trainer, expected


@pytest.mark.slow
def test_averages_follow_the_formula(averaged):
    trainer, expected = averaged
    local_results = trainer.strategy.experimental_local_results
    for (variable, mean), value in zip(
        trainer.update.average.pairs, expected, strict=True
    ):
        assert len(local_results(mean)) == 2
        for on_replica in local_results(mean):
            np.testing.assert_allclose(
                on_replica, value, atol=1e-6, err_msg=variable.path
            )


def test_non_finite_average_is_found(averaged):
    trainer, _ = averaged
    assert trainer.is_finite()
    _, mean = trainer.update.average.pairs[0]
    before = mean.numpy()
    mean.assign(before * np.inf)
    assert not trainer.is_finite()
    mean.assign(before)


def test_averages_replace_weights_temporarily(averaged):
    trainer, _ = averaged
    pairs = trainer.update.average.pairs
    before = [(np.asarray(v), m.numpy()) for v, m in pairs]

    def evaluate():
        with trainer.update.average.in_place():
            for (variable, _), (_, mean) in zip(pairs, before, strict=True):
                for value in trainer.strategy.experimental_local_results(
                    variable.value
                ):
                    np.testing.assert_array_equal(value, mean)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate()
    for (variable, mean), (value, other) in zip(pairs, before, strict=True):
        np.testing.assert_array_equal(variable, value)
        np.testing.assert_array_equal(mean, other)
