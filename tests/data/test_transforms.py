"""Operations as text, their order, and transforms of images and batches."""

import collections
import functools
import inspect
import itertools
from typing import get_args

import numpy as np
import pytest
import tensorflow as tf
from samples import encoded, smooth_pixels
from seeds import rectangles, run

from resnet_layers import Preprocessing
from train_loop.data import augment, decode, transforms
from train_loop.data.split import MemoryStore, Split
from train_loop.data.tfds import RecordStore
from train_loop.data.transforms import (
    MIXES,
    OPERATION_KINDS,
    OPERATIONS,
    Operation,
    Transforms,
    Untransformed,
    cutmix,
    find_partners,
    mix_one_of,
    mixup,
    parse_operations,
    preprocessing_of,
    to_uint8,
)
from train_loop.errors import UserError
from train_loop.values import parameters_of

PREPROCESSING = Preprocessing(None, 16, 0.875, "bilinear")
FILE = encoded(smooth_pixels(), "jpeg", quality=95)


def test_names_of_operations_are_unique():
    assert len(OPERATIONS) == sum(map(len, OPERATION_KINDS.values()))
    assert {*OPERATIONS} == {
        *decode.CROPS,
        *augment.AUGMENTATIONS,
        *transforms.MIXES,
    }


@pytest.mark.parametrize("name", OPERATIONS)
def test_parameters_are_numbers_with_bounds_and_defaults(name):
    signature = inspect.signature(OPERATIONS[name])
    parameters = parameters_of(OPERATIONS[name])
    # They are the last ones, so that text can list them in order.
    names = [*signature.parameters]
    assert names[len(names) - len(parameters) :] == [*parameters]
    for parameter, hint in parameters.items():
        kind, bounds = get_args(hint)
        default = signature.parameters[parameter].default
        assert isinstance(default, kind)
        bounds.check(parameter, default)


def test_defaults_are_those_of_the_signatures():
    for name, function in OPERATIONS.items():
        operation = Operation.parse(name)
        assert operation.arguments == ()
        assert operation.function.func is function
        assert operation.function.keywords == {}
    assert {
        name: tuple(
            inspect.signature(function).parameters[parameter].default
            for parameter in parameters_of(function)
        )
        for name, function in OPERATIONS.items()
    } == {
        "random_resized_crop": (0.08, 1.0, 3 / 4, 4 / 3),
        "flip": (),
        "shift": (),
        "color_jitter": (0.4,),
        "rand_augment": (2, 9),
        "trivial_augment": (),
        "auto_augment": (),
        "random_erasing": (0.25,),
        "mixup": (0.2,),
        "cutmix": (1.0,),
    }


def test_numbers_are_assigned_to_parameters_in_order():
    function = Operation.parse("random_resized_crop:0.3:0.5:0.9").function
    assert function.keywords == {
        "smallest": 0.3,
        "largest": 0.5,
        "narrowest": 0.9,
    }
    function = Operation.parse("rand_augment:3:4").function
    assert function.keywords == {"num_layers": 3, "magnitude": 4}
    assert all(type(n) is int for n in function.keywords.values())


def test_parameters_change_the_result():
    image = tf.constant(smooth_pixels(32, 32), tf.float32)
    for texts in (
        ("color_jitter", "color_jitter:0.4", "color_jitter:1"),
        ("rand_augment:2", "rand_augment:2:9", "rand_augment:2:30"),
        ("random_erasing:1", "random_erasing:1.0", "random_erasing:0"),
    ):
        results = [
            Operation.parse(text).function(image, [3, 5]).numpy()
            for text in texts
        ]
        np.testing.assert_array_equal(results[0], results[1])
        assert np.any(results[0] != results[2])


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("flip", "flip"),
        (" mixup ", "mixup"),
        ("mixup:1", "mixup:1.0"),
        ("mixup:0.20", "mixup:0.2"),
        ("rand_augment:2", "rand_augment:2"),
        ("rand_augment:02:9", "rand_augment:2:9"),
        ("random_resized_crop:0.08:1.0:0.75:1.3333333333333333",) * 2,
        ("cutmix:0.30000000000000004", "cutmix:0.30000000000000004"),
        ("random_erasing:1e-9", "random_erasing:1e-09"),
    ],
)
def test_operations_round_trip_through_text(text, canonical):
    operation = Operation.parse(text)
    assert str(operation) == canonical
    assert Operation.parse(str(operation)) == operation


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mixpu", "--augment=mixpu: unknown. Did you mean mixup?"),
        ("zzz", "Use one of: random_resized_crop, flip"),
        ("mixup:", "alpha= must be a number"),
        ("mixup:1:2", "too many numbers (2). Use mixup:ALPHA (0.2);"),
        ("flip:1", "too many numbers (1). Use flip;"),
        ("rand_augment:2:9:1", "Use rand_augment:NUM_LAYERS:MAGNITUDE"),
        ("rand_augment:2:31", "magnitude=31: must be"),
        ("rand_augment:2:31", "must be between 0 and 30"),
        ("rand_augment:0", "num_layers=0: must be"),
        ("rand_augment:1.5", "num_layers=1.5 must be an integer"),
        ("mixup:a", "alpha=a must be a number"),
        ("mixup:nan", "alpha=nan: must be"),
        ("mixup:inf", "alpha=inf: must be"),
        ("mixup:-1", "alpha=-1.0: must be"),
        ("random_erasing:1.01", "probability=1.01: must be"),
        ("random_resized_crop:0", "smallest=0.0: must be"),
    ],
)
def test_invalid_operations_are_an_error(text, expected):
    with pytest.raises(UserError) as error:
        parse_operations(f"flip,{text}")
    [line] = str(error.value).splitlines()
    assert expected in line
    assert line.startswith(f"--augment={text}")


@pytest.mark.parametrize(
    ("text", "second", "first"),
    [
        ("mixup,random_resized_crop", "random_resized_crop", "mixup"),
        ("flip,random_resized_crop:0.5", "random_resized_crop", "flip"),
        ("random_resized_crop,cutmix,flip", "flip", "cutmix"),
        (
            "random_resized_crop,random_resized_crop:0.5",
            "random_resized_crop",
            "random_resized_crop",
        ),
    ],
)
def test_invalid_orders_of_operations_are_an_error(text, second, first):
    with pytest.raises(UserError) as error:
        parse_operations(text)
    [line] = str(error.value).splitlines()
    assert line.startswith(f"--augment={text}: {second} (a")
    assert f") cannot follow {first} (a" in line


def test_operations_are_parsed_from_text_and_sequences():
    parsed = parse_operations("random_resized_crop, flip,flip,mixup:1,cutmix")
    assert [operation.name for operation in parsed] == [
        "random_resized_crop",
        "flip",
        "flip",
        "mixup",
        "cutmix",
    ]
    assert parse_operations(["random_resized_crop", *parsed[1:]]) == parsed
    assert parse_operations(",".join(map(str, parsed))) == parsed
    assert parse_operations("") == parse_operations(()) == ()


def test_training_images_follow_their_seed():
    operations = parse_operations("random_resized_crop,flip,random_erasing:0.5")
    transforms = Transforms(PREPROCESSING, operations)
    train = tf.function(
        transforms.train,
        input_signature=[
            tf.TensorSpec([], tf.string),
            tf.TensorSpec([2], tf.int64),
        ],
    )
    plain = transforms.evaluate(FILE).numpy()
    images = [train(FILE, [1, seed]).numpy() for seed in (*range(12), 0)]
    assert {image.shape for image in images} == {(16, 16, 3)}
    assert {image.dtype for image in images} == {np.dtype("uint8")}
    np.testing.assert_array_equal(images[0], images[-1])
    assert all(np.any(image != plain) for image in images)
    assert len({image.tobytes() for image in images}) == 12


def test_training_without_operations_equals_evaluation():
    transforms = Transforms(PREPROCESSING)
    image = transforms.train(FILE, [1, 2])
    np.testing.assert_array_equal(image, transforms.evaluate(FILE))
    crop = decode.center_crop(FILE, PREPROCESSING)
    np.testing.assert_array_equal(image, np.floor(crop.numpy() + 0.5))


def test_operations_are_applied_in_order():
    seeds = [
        tf.random.experimental.stateless_fold_in([1, 2], number)
        for number in range(3)
    ]
    for texts in (["shift", "random_erasing:1"], ["random_erasing:1", "shift"]):
        operations = parse_operations(["random_resized_crop", *texts])
        transforms = Transforms(PREPROCESSING, operations)
        expected = decode.random_resized_crop(FILE, seeds[0], PREPROCESSING)
        for operation, seed in zip(operations[1:], seeds[1:], strict=True):
            expected = operation.function(expected, seed)
        np.testing.assert_array_equal(
            transforms.train(FILE, [1, 2]), to_uint8(expected)
        )


def test_repeated_operation_draws_independently():
    transforms = Transforms(PREPROCESSING, parse_operations("flip,flip"))
    plain = transforms.evaluate(FILE).numpy()
    flipped = [
        bool(np.any(transforms.train(FILE, [1, seed]).numpy() != plain))
        for seed in range(20)
    ]
    assert {*flipped} == {True, False}


@pytest.mark.parametrize("name", transforms.MIXES)
def test_mixed_batches_have_probabilities_for_labels(name):
    operations = parse_operations(f"flip,{name}")
    transforms = Transforms(PREPROCESSING, operations, num_classes=4)
    images = np.random.default_rng(0).integers(0, 255, (6, 16, 16, 3), "uint8")
    labels = np.arange(6) % 4
    before = np.roll(np.arange(6), 1)
    mixed, targets = transforms.finish(images, labels, before, [1, 2])
    assert mixed.dtype == tf.uint8
    assert mixed.shape == images.shape
    assert np.any(mixed != images)
    assert targets.dtype == tf.float32
    np.testing.assert_allclose(targets.numpy().sum(1), 1, atol=1e-6)
    weight = targets[0, 0].numpy()
    one_hot = np.eye(4)[labels]
    expected = weight * one_hot + (1 - weight) * np.roll(one_hot, 1, axis=0)
    np.testing.assert_allclose(targets, expected, atol=1e-6)


def test_batches_without_a_mix_are_unchanged():
    transforms = Transforms(PREPROCESSING, parse_operations("flip"), 4)
    images, labels = tf.zeros([2, 4, 4, 3], tf.uint8), tf.constant([3, 1])
    finished = transforms.finish(images, labels, [1, 0], [1, 2])
    assert finished == (images, labels)


def test_images_are_rounded_to_uint8():
    image = tf.constant([0.0, 0.49, 0.51, 7.49, 7.51, 254.6, 255.0])
    rounded = to_uint8(image)
    assert rounded.dtype == tf.uint8
    assert rounded.numpy().tolist() == [0, 0, 1, 7, 8, 255, 255]


def test_embeddings_are_not_transformed():
    transforms = Untransformed()
    vector, labels = tf.constant([1.5]), tf.constant([2])
    assert transforms.train(vector, [1, 2]) is vector
    assert transforms.evaluate(vector) is vector
    finished = transforms.finish(vector, labels, [0], [1, 2])
    assert finished == (vector, labels)


def test_images_of_tfds_are_decoded_as_stored():
    preprocessing = PREPROCESSING._replace(exif_orientation=True)
    records = RecordStore(["a"], [2], None, 100.0)
    files = MemoryStore(tf.constant([FILE, FILE]), np.arange(2))
    for store, is_turned in ((records, False), (files, True)):
        split = Split.of_all(store)
        found = preprocessing_of(split, preprocessing)
        assert found.exif_orientation == is_turned


RNG = np.random.default_rng(0)


def batch(size=6, height=12, width=16):
    """Returns random images, with a different class for each example."""
    images = RNG.normal(size=(size, height, width, 3)).astype(np.float32)
    return images, np.eye(size, dtype=np.float32)


def before(size):
    """Returns the partners of a batch without repeats."""
    return np.roll(np.arange(size), 1)


def weights_of(targets):
    """Returns the weight of each batch; fails if it is not one number."""
    size = targets.shape[-1]
    weight = targets[..., 0, 0]
    np.testing.assert_allclose(targets.sum(axis=-1), 1.0, atol=1e-6)
    expected = np.eye(size) * weight[..., None, None]
    expected += np.roll(np.eye(size), 1, axis=0) * (1 - weight[..., None, None])
    np.testing.assert_allclose(targets, expected, atol=1e-6)
    return weight


def run_batches(function, num_seeds, *arguments, **sizes):
    images, targets = batch(**sizes)
    order = before(len(images))
    mixed = run(
        lambda seed: function(images, targets, order, seed, *arguments),
        num_seeds=num_seeds,
    )
    return images, mixed[0].numpy(), weights_of(mixed[1].numpy())


def is_mixup(images, mixed, weight):
    expected = weight * images + (1 - weight) * np.roll(images, 1, axis=0)
    return np.allclose(mixed, expected, atol=1e-5)


def is_cutmix(images, mixed, weight):
    partners = np.roll(images, 1, axis=0)
    masks = (mixed != images).any(axis=-1)
    expected = np.where(masks[..., None], partners, images)
    same_everywhere = (masks == masks[0]).all()
    kept = 1 - masks[0].mean()
    return (
        same_everywhere
        and np.array_equal(mixed, expected)
        and np.isclose(kept, weight, atol=1e-6)
    )


@pytest.mark.parametrize("repeats", range(1, 6))
def test_partners_are_other_images_if_possible(repeats):
    for start, size in itertools.product(range(repeats), range(1, 18)):
        positions = start + np.arange(size)
        partners = find_partners(positions, repeats).numpy()
        images = positions // repeats
        if len({*images}) > 1:
            assert (images[partners] != images).all()
        if size >= 2 * repeats:
            assert sorted(partners) == [*range(size)]
        if repeats == 1:
            np.testing.assert_array_equal(partners, before(size))


@pytest.mark.parametrize("name", MIXES)
def test_mixes_use_the_partner(name):
    images, targets = batch(size=4)
    _, mixed = MIXES[name](images, targets, [2, 3, 1, 1], [0, 5])
    weight = float(mixed[0, 0])
    expected = weight * targets + (1 - weight) * targets[[2, 3, 1, 1]]
    assert 0 < weight < 1
    np.testing.assert_allclose(mixed, expected, atol=1e-6)


def test_mixup_interpolates_with_the_previous_example():
    images, results, weights = run_batches(mixup, 50, 1.0)
    for mixed, weight in zip(results, weights, strict=True):
        assert is_mixup(images, mixed, weight)


def test_cutmix_pastes_a_rectangle_of_the_previous_example():
    images, results, weights = run_batches(cutmix, 150, 1.0)
    for mixed, weight in zip(results, weights, strict=True):
        assert is_cutmix(images, mixed, weight)
    masks = (results[:, 0] != images[0]).any(axis=-1)
    rectangles(masks)
    # Each pixel is covered in some image.
    assert masks.any(axis=0).all()


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_weight_of_mixup_has_a_beta_distribution(alpha):
    _, _, weights = run_batches(mixup, 2000, alpha, size=2, height=1)
    assert weights.mean() == pytest.approx(0.5, abs=0.04)
    variance = 1 / (4 * (2 * alpha + 1))
    assert weights.var() == pytest.approx(variance, rel=0.1)


def test_rectangle_of_cutmix_has_the_distribution_of_the_paper():
    image_size = (50, 70)
    images = np.zeros([2, *image_size, 1], np.float32)
    images[1] = 1.0
    targets = np.eye(2, dtype=np.float32)
    mixed, _ = run(
        lambda seed: cutmix(images, targets, before(2), seed, alpha=1.0),
        num_seeds=1500,
    )
    masks = mixed[:, 0, :, :, 0].numpy() > 0
    spans = rectangles(masks)

    cut = RNG.uniform(size=20000)
    for (_, sizes), image_side in zip(spans, image_size, strict=True):
        center = RNG.integers(0, image_side, 20000)
        half = np.int64(np.sqrt(cut) * image_side / 2)
        low = np.maximum(center - half, 0)
        expected = np.minimum(center + half, image_side) - low
        quantiles = np.linspace(0.05, 0.95, 10)
        np.testing.assert_allclose(
            np.quantile(sizes, quantiles),
            np.quantile(expected, quantiles),
            atol=0.06 * image_side,
        )
    # An unclipped rectangle has the aspect ratio of the image.
    is_unclipped = np.ones(len(masks), bool)
    for (starts, sizes), image_side in zip(spans, image_size, strict=True):
        is_unclipped &= (starts > 0) & (starts + sizes < image_side)
    [(_, heights), (_, widths)] = spans
    difference = heights / 50 - widths / 70
    assert np.abs(difference[is_unclipped]).max() < 2 / 50
    assert is_unclipped.sum() > 100


@pytest.mark.parametrize("name", MIXES)
def test_mixes_follow_their_seed(name):
    function = MIXES[name]
    images, targets = batch()
    mixed, new_targets = run(
        lambda seed: function(images, targets, before(6), seed, 1.0),
        num_seeds=6,
    )
    for index in range(6):
        again, targets_again = function(
            images, targets, before(6), [0, index], 1.0
        )
        np.testing.assert_array_equal(mixed[index], again)
        np.testing.assert_array_equal(new_targets[index], targets_again)
    weights = weights_of(new_targets.numpy())
    assert len({float(weight) for weight in weights}) == 6


def test_small_alpha_selects_one_of_the_examples():
    images, results, weights = run_batches(mixup, 200, 0.01)
    assert np.isfinite(results).all()
    assert ((weights < 0.01) | (weights > 0.99)).mean() > 0.85
    assert weights.mean() == pytest.approx(0.5, abs=0.15)


def run_mix_one_of(num_seeds, *mixes):
    return run_batches(
        lambda *arguments: mix_one_of(mixes, *arguments), num_seeds
    )


def test_each_batch_uses_one_random_mix():
    images, results, weights = run_mix_one_of(
        200, cutmix, functools.partial(mixup, alpha=0.2)
    )
    drawn = collections.Counter()
    weights_of_mixup = []
    for mixed, weight in zip(results, weights, strict=True):
        is_mixed = is_mixup(images, mixed, weight)
        # With a weight of 0 or 1, both mixes give the same result.
        assert is_mixed or is_cutmix(images, mixed, weight)
        drawn[is_mixed] += 1
        weights_of_mixup += [weight] * is_mixed
    # 100 of 200 are expected, with a standard deviation of 7.
    assert 70 < drawn[True] < 130
    # The alpha of MixUp is not used for CutMix.
    assert np.var(weights_of_mixup) > 0.13


def test_single_mix_is_always_used():
    images, results, weights = run_mix_one_of(20, cutmix)
    for mixed, weight in zip(results, weights, strict=True):
        assert is_cutmix(images, mixed, weight)
