"""Operations as text, their order, and what becomes of an image."""

import inspect
from typing import get_args

import numpy as np
import pytest
import tensorflow as tf
from samples import encoded, smooth_pixels

from resnet_layers import Preprocessing
from train_loop.data import augment, decode, mixing
from train_loop.data.split import Split
from train_loop.data.stores import MemoryStore, RecordStore
from train_loop.data.transforms import (
    KINDS,
    OPERATIONS,
    Operation,
    Transforms,
    Untransformed,
    parse_operations,
    preprocessing_of,
    to_uint8,
)
from train_loop.errors import UserError
from train_loop.values import parameters_of

PREPROCESSING = Preprocessing(None, 16, 0.875, "bilinear")
FILE = encoded(smooth_pixels(), "jpeg", quality=95)


def test_tables_have_no_name_twice():
    assert len(OPERATIONS) == sum(map(len, KINDS.values()))
    assert {*OPERATIONS} == {
        *decode.CROPS,
        *augment.AUGMENTATIONS,
        *mixing.MIXES,
    }


@pytest.mark.parametrize("name", OPERATIONS)
def test_parameters_are_numbers_with_bounds_and_defaults(name):
    signature = inspect.signature(OPERATIONS[name])
    parameters = parameters_of(OPERATIONS[name])
    # They stand at the end, so that text can name them in their order.
    names = [*signature.parameters]
    assert names[len(names) - len(parameters) :] == [*parameters]
    for parameter, hint in parameters.items():
        kind, bounds = get_args(hint)
        default = signature.parameters[parameter].default
        assert isinstance(default, kind)
        bounds.check(parameter, default)


def test_defaults_are_those_of_the_signatures():
    for name, row in OPERATIONS.items():
        operation = Operation.parse(name)
        assert operation.arguments == ()
        assert operation.function.func is row
        assert operation.function.keywords == {}
    assert {
        name: tuple(
            inspect.signature(row).parameters[parameter].default
            for parameter in parameters_of(row)
        )
        for name, row in OPERATIONS.items()
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


def test_numbers_reach_the_parameters_in_their_order():
    function = Operation.parse("random_resized_crop:0.3:0.5:0.9").function
    assert function.keywords == {
        "smallest": 0.3,
        "largest": 0.5,
        "narrowest": 0.9,
    }
    function = Operation.parse("rand_augment:3:4").function
    assert function.keywords == {"num_layers": 3, "magnitude": 4}
    assert all(type(n) is int for n in function.keywords.values())


def test_numbers_change_what_is_done():
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
def test_operations_come_back_from_their_text(text, canonical):
    operation = Operation.parse(text)
    assert str(operation) == canonical
    assert Operation.parse(str(operation)) == operation


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mixpu", "--augment=mixpu is unknown; did you mean mixup?"),
        ("zzz", "It takes: random_resized_crop, flip"),
        ("mixup:", "alpha= is not a number"),
        ("mixup:1:2", "has 2 numbers; it takes mixup:ALPHA (0.2), and"),
        ("flip:1", "has 1 numbers; it takes flip, and"),
        ("rand_augment:2:9:1", "takes rand_augment:NUM_LAYERS:MAGNITUDE"),
        ("rand_augment:2:31", "magnitude=31 is not possible"),
        ("rand_augment:2:31", "a number from 0 to 30"),
        ("rand_augment:0", "num_layers=0 is not possible"),
        ("rand_augment:1.5", "num_layers=1.5 is not a whole number"),
        ("mixup:a", "alpha=a is not a number"),
        ("mixup:nan", "alpha=nan is not possible"),
        ("mixup:inf", "alpha=inf is not possible"),
        ("mixup:-1", "alpha=-1.0 is not possible"),
        ("random_erasing:1.01", "probability=1.01 is not possible"),
        ("random_resized_crop:0", "smallest=0.0 is not possible"),
    ],
)
def test_mistaken_operations_are_one_clear_line(text, expected):
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
def test_orders_that_cannot_be_done_are_one_clear_line(text, second, first):
    with pytest.raises(UserError) as error:
        parse_operations(text)
    [line] = str(error.value).splitlines()
    assert line.startswith(f"--augment={text} cannot be done in this order: ")
    assert f": {second} is a" in line
    assert f"comes behind {first}, which is a" in line


def test_lists_of_operations_are_text_or_sequences():
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


@pytest.mark.slow
@pytest.mark.parametrize("name", [*decode.CROPS, *augment.AUGMENTATIONS])
def test_training_images_follow_their_seed(name):
    transforms = Transforms(PREPROCESSING, parse_operations(name))
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
    assert any(np.any(image != plain) for image in images)
    assert len({image.tobytes() for image in images}) > 1


def test_without_operations_training_sees_what_evaluation_sees():
    transforms = Transforms(PREPROCESSING)
    image = transforms.train(FILE, [1, 2])
    np.testing.assert_array_equal(image, transforms.evaluate(FILE))
    crop = decode.center_crop(FILE, PREPROCESSING)
    np.testing.assert_array_equal(image, np.floor(crop.numpy() + 0.5))


def test_operations_are_done_in_their_order():
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


def test_same_operation_twice_draws_anew():
    transforms = Transforms(PREPROCESSING, parse_operations("flip,flip"))
    plain = transforms.evaluate(FILE).numpy()
    flipped = [
        bool(np.any(transforms.train(FILE, [1, seed]).numpy() != plain))
        for seed in range(20)
    ]
    assert {*flipped} == {True, False}


@pytest.mark.parametrize("name", mixing.MIXES)
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
    share = targets[0, 0].numpy()
    one_hot = np.eye(4)[labels]
    expected = share * one_hot + (1 - share) * np.roll(one_hot, 1, axis=0)
    np.testing.assert_allclose(targets, expected, atol=1e-6)


def test_batches_stay_as_they_are_without_a_mix():
    transforms = Transforms(PREPROCESSING, parse_operations("flip"), 4)
    images, labels = tf.zeros([2, 4, 4, 3], tf.uint8), tf.constant([3, 1])
    finished = transforms.finish(images, labels, [1, 0], [1, 2])
    assert finished == (images, labels)


def test_images_are_rounded_to_the_nearest_whole_numbers():
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


def test_images_of_tfds_stay_as_they_are_stored():
    preprocessing = PREPROCESSING._replace(exif_orientation=True)
    records = RecordStore(["a"], [2], None, 100.0)
    files = MemoryStore(tf.constant([FILE, FILE]), np.arange(2))
    for store, is_turned in ((records, False), (files, True)):
        split = Split.of_all(store)
        found = preprocessing_of(split, preprocessing)
        assert found.exif_orientation == is_turned
