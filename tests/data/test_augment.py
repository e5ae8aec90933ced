"""Augmentations: their distributions against the papers, and Pillow."""

import collections
import functools
import itertools

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps
import pytest
import tensorflow as tf
from seeds import PHOTOS, rectangles, run

from train_loop.data import augment

RNG = np.random.default_rng(0)


@pytest.mark.slow
@pytest.mark.parametrize("name", augment.AUGMENTATIONS)
def test_augmentations_follow_their_seed(name):
    function = augment.AUGMENTATIONS[name]
    image = tf.constant(PHOTOS[1][:48, :40], tf.float32)
    results = run(function, image, num_seeds=6).numpy()
    assert results.shape[1:] == image.shape
    assert results.dtype == np.float32
    assert 0 <= results.min() <= results.max() <= 255
    assert len({result.tobytes() for result in results}) > 1
    # Eager execution, one image at a time, gives the same result as the graph.
    for index, dtype in enumerate((tf.int32, tf.int64)):
        again = function(image, tf.constant([0, index], dtype))
        np.testing.assert_array_equal(again, results[index])
    others = [function(image, [1, index]) for index in range(6)]
    assert (results != others).any()


def test_flip_flips_half_of_the_images():
    image = tf.constant(PHOTOS[0], tf.float32)
    flips = 0
    for result in run(augment.flip, image, num_seeds=200):
        flipped = np.array_equal(result, image[:, ::-1])
        assert flipped or np.array_equal(result, image)
        flips += flipped
    assert 70 < flips < 130


def test_shift_moves_by_up_to_an_eighth():
    image = PHOTOS[0][:16, :16].astype(np.float32)
    padded = np.pad(image, [(2, 2), (2, 2), (0, 0)])
    moves = {
        padded[y : y + 16, x : x + 16].tobytes(): (y, x)
        for y in range(5)
        for x in range(5)
    }
    results = run(augment.shift, tf.constant(image), num_seeds=200)
    assert len({moves[r.tobytes()] for r in results.numpy()}) == 25


@pytest.fixture
def drawn(monkeypatch):
    """Returns a function that records the operations of an augmentation.

    For each seed, it returns a list of (name of operation, magnitude). Fake
    operations write their number and magnitude into the image.
    """
    names = list(augment.PILLOW_OPERATIONS)

    def write(number, image, magnitude):
        count = tf.cast(image[0, 0, 0], tf.int32)
        entry = tf.stack([tf.cast(number, tf.float32), magnitude, 1.0])
        image = tf.tensor_scatter_nd_add(image, [[0, 0, 0]], [1.0])
        return tf.tensor_scatter_nd_update(image, [[1 + count, 0]], [entry])

    for number, name in enumerate(names):
        fake = functools.partial(write, number)
        monkeypatch.setitem(augment.PILLOW_OPERATIONS, name, fake)

    def draw(augmentation, num_seeds, height=20, width=30):
        image = tf.zeros([height, width, 3])
        results = run(augmentation, image, num_seeds=num_seeds).numpy()
        return [
            [(names[int(n)], m) for n, m, is_set in result[1:, 0] if is_set]
            for result in results
        ]

    return draw


def count(draws):
    """Returns {operation: Counter of its magnitudes}, to five digits."""
    counts = collections.defaultdict(collections.Counter)
    for name, magnitude in draws:
        # Adding 0 makes 0 of -0.
        counts[name][float(f"{magnitude:.5g}") + 0.0] += 1
    return counts


def standard_magnitudes(fraction, height, width):
    """Returns {operation: magnitude} of signed and unsigned operations."""
    signed = {
        "shear_x": 0.3 * fraction,
        "shear_y": 0.3 * fraction,
        "translate_x": 150 / 331 * width * fraction,
        "translate_y": 150 / 331 * height * fraction,
        "rotate": 30 * fraction,
        "brightness": 0.9 * fraction,
        "color": 0.9 * fraction,
        "contrast": 0.9 * fraction,
        "sharpness": 0.9 * fraction,
    }
    unsigned = {
        "identity": 0,
        "posterize": 8 - 4 * fraction,
        "solarize": 255 - 255 * fraction,
        "autocontrast": 0,
        "equalize": 0,
    }
    return signed, unsigned


@pytest.mark.slow
@pytest.mark.parametrize("magnitude", [9, 30])
def test_rand_augment_draws_14_operations_at_one_level(drawn, magnitude):
    function = functools.partial(
        augment.rand_augment, num_layers=3, magnitude=magnitude
    )
    draws = drawn(function, 700)
    assert {len(layers) for layers in draws} == {3}
    for layer in range(3):
        counts = count(layers[layer] for layers in draws)
        assert len(counts) == 14
        signed, unsigned = standard_magnitudes(magnitude / 30, 20, 30)
        for name, values in counts.items():
            # 50 of 700 are expected, with a standard deviation of 7.
            assert 22 < values.total() < 78
            if name in unsigned:
                assert list(values) == pytest.approx([unsigned[name]], rel=1e-4)
            else:
                expected = sorted({signed[name], -signed[name]})
                assert sorted(values) == pytest.approx(expected, rel=1e-4)
                assert min(values.values()) > 8
    # The layers are independent.
    same = sum(first[0] == second[0] for first, second, _ in draws)
    assert 22 < same < 78


def test_trivial_augment_draws_31_levels_of_the_wide_space(drawn):
    counts = count(draws[0] for draws in drawn(augment.trivial_augment, 3000))
    assert len(counts) == 14
    wide = {
        **dict.fromkeys(["shear_x", "shear_y"], (0, 0.99)),
        **dict.fromkeys(["translate_x", "translate_y"], (0, 32)),
        **dict.fromkeys(["brightness", "color"], (0, 0.99)),
        **dict.fromkeys(["contrast", "sharpness"], (0, 0.99)),
        "rotate": (0, 135),
        "posterize": (8, 2),
        "solarize": (255, 0),
    }
    levels = collections.Counter()
    for name, values in counts.items():
        # 214 of 3000 are expected, with a standard deviation of 14.
        assert 158 < values.total() < 270
        weakest, strongest = wide.get(name, (0, 0))
        if weakest == strongest:
            assert set(values) == {0}
            continue
        for value, number in values.items():
            distance = abs(value) if weakest == 0 else value
            level = (distance - weakest) / (strongest - weakest) * 30
            assert level == pytest.approx(round(level), abs=1e-3)
            levels[round(level)] += number
        # In so few draws, not every level has both signs, but some have.
        assert (min(values) < 0) == (weakest == 0)
        assert len(values) > 25
    assert sorted(levels) == list(range(31))
    # 76 of 2357 are expected, with a standard deviation of 9.
    assert 40 < min(levels.values()) <= max(levels.values()) < 112


@pytest.mark.slow
def test_auto_augment_draws_the_pairs_of_its_policy(drawn):
    num_draws = 3000
    draws = drawn(augment.auto_augment, num_draws)
    pairs = [tuple(name for name, _, _ in p) for p in augment.IMAGENET_POLICY]
    assert len(pairs) == 25
    seen = collections.Counter()
    for (first, _), (second, _) in draws:
        assert any(
            first in (pair[0], "identity") and second in (pair[1], "identity")
            for pair in pairs
        )
        seen.update(enumerate([first, second]))
    expected = collections.Counter()
    for pair in augment.IMAGENET_POLICY:
        for turn, (name, probability, _) in enumerate(pair):
            expected[turn, name] += num_draws / 25 * probability
            expected[turn, "identity"] += num_draws / 25 * (1 - probability)
    for key in expected:
        tolerance = 4.5 * np.sqrt(expected[key] + 1)
        assert seen[key] == pytest.approx(expected[key], abs=tolerance)


@pytest.mark.slow
def test_auto_augment_has_ten_levels(drawn):
    draws = drawn(augment.auto_augment, 1500)
    counts = count(operation for pair in draws for operation in pair)
    for name, values in counts.items():
        levels = {
            level
            for pair in augment.IMAGENET_POLICY
            for other, probability, level in pair
            if other == name and probability > 0
        }
        expected = set()
        for level in levels:
            signed, unsigned = standard_magnitudes(level / 9, 20, 30)
            if name in signed:
                expected |= {signed[name], -signed[name]}
            else:
                expected.add(unsigned.get(name, 0))
        expected = sorted(expected or {0})
        assert sorted(values) == pytest.approx(expected, rel=1e-4)


def test_auto_augment_policy_has_the_sums_of_the_paper():
    sums = collections.defaultdict(lambda: np.zeros(3))
    for pair in augment.IMAGENET_POLICY:
        for name, probability, level in pair:
            sums[name] += (1, probability, level)
    assert {name: tuple(total.round(1)) for name, total in sums.items()} == {
        "shear_x": (1, 0.6, 5),
        "rotate": (6, 3.6, 45),
        "color": (6, 3.8, 18),
        "contrast": (2, 2.0, 16),
        "sharpness": (1, 0.4, 7),
        "posterize": (5, 2.8, 32),
        "solarize": (7, 3.6, 36),
        "autocontrast": (2, 1.2, 0),
        "equalize": (17, 11.2, 0),
        "invert": (3, 1.8, 0),
    }


def test_auto_augment_policy_equals_torchvision():
    transforms = pytest.importorskip(
        "torchvision.transforms", reason="needs the extra: '.[parity]'"
    )
    theirs = transforms.AutoAugment().policies
    assert [
        [(name.lower(), p, level or 0) for name, p, level in pair]
        for pair in theirs
    ] == [
        [(name.replace("_", ""), p, level) for name, p, level in pair]
        for pair in augment.IMAGENET_POLICY
    ]


@pytest.mark.parametrize(
    ("strength", "low", "high"), [(0.4, -0.4, 0.4), (2.0, -1.0, 2.0)]
)
def test_color_jitter_changes_three_properties_in_random_order(
    drawn, strength, low, high
):
    function = functools.partial(augment.color_jitter, strength=strength)
    draws = drawn(function, 600)
    orders = collections.Counter(
        tuple(name for name, _ in operations) for operations in draws
    )
    names = ["brightness", "color", "contrast"]
    assert set(orders) == set(itertools.permutations(names))
    # 100 of 600 are expected, with a standard deviation of 9.
    assert 63 < min(orders.values()) <= max(orders.values()) < 137
    by_name = np.array([[dict(d)[name] for name in names] for d in draws])
    np.testing.assert_allclose(by_name.min(0), low, atol=0.03 * (high - low))
    np.testing.assert_allclose(by_name.max(0), high, atol=0.03 * (high - low))
    np.testing.assert_allclose(
        by_name.mean(0), (low + high) / 2, atol=0.06 * (high - low)
    )
    correlations = np.corrcoef(by_name.T) - np.eye(3)
    assert np.abs(correlations).max() < 0.2


@pytest.mark.parametrize(
    "name", ["color_jitter", "rand_augment", "trivial_augment", "auto_augment"]
)
def test_operations_get_rounded_pixels(name):
    function = augment.AUGMENTATIONS[name]
    image = PHOTOS[0][:32, :32].astype(np.float32)
    fractions = RNG.uniform(-0.45, 0.45, image.shape).astype(np.float32)
    for index in range(3):
        np.testing.assert_array_equal(
            function(tf.constant(image + fractions), [0, index]),
            function(tf.constant(image), [0, index]),
        )


def erased(height, width, num_seeds, **options):
    """Returns the masks of random erasing, bool [num_seeds, height, width]."""
    image = tf.zeros([height, width, 3])
    function = functools.partial(augment.random_erasing, **options)
    results = run(function, image, num_seeds=num_seeds).numpy()
    covered = results[..., 0] > 0
    mean_color = np.float32([123.675, 116.28, 103.53])
    np.testing.assert_array_equal(results, covered[..., None] * mean_color)
    return covered


def test_random_erasing_covers_a_rectangle_within_its_bounds():
    image_size = (60, 80)
    masks = erased(*image_size, 400, probability=1.0)
    spans = rectangles(masks)
    [(_, heights), (_, widths)] = spans
    # Sides are rounded to integers.
    low, high = -0.5, 0.5
    assert ((heights + high) * (widths + high) > 0.02 * 4800).all()
    assert ((heights + low) * (widths + low) < 0.33 * 4800).all()
    assert ((heights + high) / (widths + low) > 0.3).all()
    assert ((heights + low) / (widths + high) < 3.3).all()
    areas = heights * widths / 4800
    assert areas.min() < 0.03
    assert areas.max() > 0.30
    assert areas.mean() == pytest.approx((0.02 + 0.33) / 2, abs=0.015)
    ratios = heights / widths
    assert ratios.min() < 0.35
    assert ratios.max() > 2.8
    # Tall rectangles do not always fit into a wide image.
    assert np.log(ratios).mean() == pytest.approx(-0.05, abs=0.1)
    for (starts, sizes), image_side in zip(spans, image_size, strict=True):
        assert (sizes < image_side).all()
        assert starts.min() == 0
        assert (starts + sizes).max() == image_side
        positions = starts / (image_side - sizes)
        assert positions.mean() == pytest.approx(0.5, abs=0.06)


def test_random_erasing_changes_a_quarter_of_the_images():
    masks = erased(20, 16, 1000)
    assert masks.any(axis=(1, 2)).mean() == pytest.approx(0.25, abs=0.05)
    assert not erased(40, 30, 20, probability=0.0).any()


def test_random_erasing_skips_images_without_a_fitting_rectangle():
    assert not erased(2, 1000, 50, probability=1.0).any()


# An odd size, noise, few levels, a single level, fewer pixels than levels.
IMAGES = [
    *PHOTOS,
    PHOTOS[0][:63, :63],
    RNG.integers(0, 256, (21, 34, 3), np.uint8),
    RNG.integers(90, 110, (32, 32, 3), np.uint8),
    np.full((8, 9, 3), (0, 77, 255), np.uint8),
    RNG.integers(0, 256, (4, 5, 3), np.uint8),
]


def affine(image, *matrix):
    return image.transform(image.size, PIL.Image.Transform.AFFINE, matrix)


def enhance(kind):
    return lambda image, magnitude: kind(image).enhance(1.0 + magnitude)


PILLOW = {
    "identity": lambda image, _: image,
    "shear_x": lambda image, m: affine(image, 1, m, 0, 0, 1, 0),
    "shear_y": lambda image, m: affine(image, 1, 0, 0, m, 1, 0),
    "translate_x": lambda image, m: affine(image, 1, 0, -int(m), 0, 1, 0),
    "translate_y": lambda image, m: affine(image, 1, 0, 0, 0, 1, -int(m)),
    "rotate": lambda image, m: image.rotate(m),
    "brightness": enhance(PIL.ImageEnhance.Brightness),
    "color": enhance(PIL.ImageEnhance.Color),
    "contrast": enhance(PIL.ImageEnhance.Contrast),
    "sharpness": enhance(PIL.ImageEnhance.Sharpness),
    "posterize": lambda image, m: PIL.ImageOps.posterize(image, int(m)),
    "solarize": PIL.ImageOps.solarize,
    "autocontrast": lambda image, _: PIL.ImageOps.autocontrast(image),
    "equalize": lambda image, _: PIL.ImageOps.equalize(image),
    "invert": lambda image, _: PIL.ImageOps.invert(image),
}
SHEARS = [-0.99, -0.3, -0.2, -0.09, 0.0, 0.03, 0.1, 0.25, 0.5, 0.99]
FACTORS = [-1.0, -0.99, -0.27, 0.0, 0.09, 0.5, 0.9, 3.0]
TRANSLATIONS = [-200.0, -32.0, -3.7, -0.9, 0.0, 0.9, 5.0, 12.3, 64.0]
MAGNITUDES = {
    "shear_x": SHEARS,
    "shear_y": SHEARS,
    "translate_x": TRANSLATIONS,
    "translate_y": TRANSLATIONS,
    "rotate": [-135.0, -90.0, -45.0, -9.0, 0.0, 4.5, 30.0, 90.0, 121.5, 180.0],
    "brightness": FACTORS,
    "color": FACTORS,
    "contrast": FACTORS,
    "sharpness": FACTORS,
    "posterize": [8.0, 7.0, 5.0, 4.0, 2.0, 1.0],
    "solarize": [0.0, 1.0, 84.9, 128.0, 178.5, 255.0, 256.0],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", augment.PILLOW_OPERATIONS)
def test_operation_equals_pillow(name):
    for pixels in IMAGES:
        image = tf.constant(pixels, tf.float32)
        for magnitude in np.float32(MAGNITUDES.get(name, [0.0])):
            result = augment.PILLOW_OPERATIONS[name](image, magnitude).numpy()
            expected = PILLOW[name](
                PIL.Image.fromarray(pixels), float(magnitude)
            )
            expected = np.asarray(expected, np.float32)
            if name == "autocontrast":
                # Pillow multiplies by a rounded quotient. If the exact result
                # is an integer, it can be truncated to one less.
                low, high = pixels.min((0, 1)), pixels.max((0, 1))
                stretched = (pixels - low) * np.int32(255)
                is_integer = stretched % np.maximum(high - low, 1) == 0
                one_less = is_integer & (expected == result - 1)
                assert one_less.mean() < 0.2
                expected[one_less] += 1
            np.testing.assert_array_equal(result, expected, str(magnitude))
