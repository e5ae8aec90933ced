"""Predictions compared with SciPy, confusions with scikit-learn."""

import dataclasses
import tracemalloc
import types

import numpy as np
import pytest
import scipy.special
from drawn_predictions import draw_predictions
from sklearn.metrics import confusion_matrix

from train_loop.evaluation import predictions as module
from train_loop.evaluation.charts import CHARTS
from train_loop.evaluation.predictions import (
    confused_pairs,
    misclassified,
    most_confused_with,
)


@pytest.fixture
def predictions(monkeypatch):
    # The last block is smaller.
    monkeypatch.setattr(module, "IMAGES_AT_ONCE", 64)
    return draw_predictions(150, 9)


def test_probabilities_are_the_softmax_of_the_logits(predictions):
    expected = scipy.special.softmax(predictions.logits.astype(float), axis=1)
    found = np.exp(predictions.log_probabilities(slice(2, 5)))
    np.testing.assert_allclose(found, expected[:, 2:5].T, rtol=1e-12)
    np.testing.assert_allclose(predictions.confidences, expected.max(1))
    at_label = expected[np.arange(150), predictions.labels]
    np.testing.assert_allclose(predictions.losses, -np.log(at_label))


def test_confident_predictions_can_be_ranked():
    confident = draw_predictions(2, 3, labels=np.array([0, 0]))
    confident.logits[:] = [[20, 0, 0], [21, 0, 0]]
    first, second = confident.log_probabilities(slice(0, 1))[0]
    assert first < second
    assert np.float32(np.exp(first)) == np.float32(np.exp(second)) == 1


def test_most_probable_classes_come_first(predictions):
    expected = np.argsort(-predictions.logits, axis=1)[:, :5]
    np.testing.assert_array_equal(predictions.top_5, expected)
    np.testing.assert_array_equal(predictions.predicted, expected[:, 0])


def test_ties_are_in_the_order_of_classes():
    even = draw_predictions(4, 7)
    even.logits[:] = 0
    np.testing.assert_array_equal(even.top_5, [range(5)] * 4)


def test_few_classes_shorten_the_top_5():
    assert draw_predictions(4, 3).top_5.shape == (4, 3)


def test_logarithms_of_probabilities_are_valid_logits(predictions):
    logs = predictions.log_probabilities(slice(None)).T.astype("float32")
    again = dataclasses.replace(predictions, logits=logs)
    np.testing.assert_allclose(again.losses, predictions.losses, atol=1e-6)
    np.testing.assert_array_equal(again.top_5, predictions.top_5)


def test_images_are_optional(predictions):
    assert predictions.load_image(3) is None


def test_mistakes_are_sorted_by_confidence():
    predictions = draw_predictions(100, 5)
    wrong = misclassified(predictions)
    assert set(wrong) == set(np.flatnonzero(~predictions.correct))
    assert (np.diff(predictions.confidences[wrong]) <= 0).all()


def test_confused_pairs_are_sorted_by_number_of_images():
    predictions = draw_predictions(300, 6)
    pairs = confused_pairs(predictions, 4)
    matrix = confusion_matrix(predictions.labels, predictions.predicted)
    off_diagonal = matrix[~np.eye(6, dtype=bool)]
    counts = [len(pair.images) for pair in pairs]
    assert counts == sorted(off_diagonal, reverse=True)[:4]
    for pair in pairs:
        assert (predictions.labels[pair.images] == pair.label).all()
        assert (predictions.predicted[pair.images] == pair.prediction).all()
        assert (np.diff(predictions.confidences[pair.images]) <= 0).all()
        assert pair.fraction == len(pair.images) / matrix[pair.label].sum()


def test_correct_predictions_have_no_confused_pairs():
    assert confused_pairs(draw_predictions(50, 4, skill=99), 3) == []


def test_most_frequent_confusion_is_the_maximum_of_the_row():
    predictions = draw_predictions(60, 9)
    wrong = confusion_matrix(predictions.labels, predictions.predicted)
    np.fill_diagonal(wrong, 0)
    others, images = most_confused_with(predictions)
    np.testing.assert_array_equal(images, wrong.max(1))
    np.testing.assert_array_equal(
        others[images > 0], wrong.argmax(1)[images > 0]
    )


def test_many_classes_need_no_full_matrix():
    """For ImageNet-21k, each would take 3.8 GB."""
    predictions = draw_predictions(20, 21_841)
    assert not predictions.correct.all()
    tracemalloc.start()
    assert confused_pairs(predictions, 8)
    assert most_confused_with(predictions)[1].sum() > 0
    results = types.SimpleNamespace(
        predictions=predictions,
        examples=np.bincount(predictions.labels, minlength=21_841),
    )
    assert CHARTS["confusion_matrix"].draw(results)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
