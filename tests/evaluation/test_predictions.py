"""What is read off logits, against SciPy."""

import dataclasses

import numpy as np
import pytest
import scipy.special
from drawn_predictions import draw_predictions

from train_loop.evaluation import predictions as module


@pytest.fixture
def predictions(monkeypatch):
    # The last block is a small one.
    monkeypatch.setattr(module, "IMAGES_AT_ONCE", 64)
    return draw_predictions(150, 9)


def test_probabilities_are_those_of_a_softmax(predictions):
    expected = scipy.special.softmax(predictions.logits.astype(float), axis=1)
    found = np.exp(predictions.log_probabilities(slice(2, 5)))
    np.testing.assert_allclose(found, expected[:, 2:5].T, rtol=1e-12)
    np.testing.assert_allclose(predictions.confidences, expected.max(1))
    at_label = expected[np.arange(150), predictions.labels]
    np.testing.assert_allclose(predictions.losses, -np.log(at_label))


def test_sure_predictions_can_still_be_ranked():
    sure = draw_predictions(2, 3, labels=np.array([0, 0]))
    sure.logits[:] = [[20, 0, 0], [21, 0, 0]]
    first, second = sure.log_probabilities(slice(0, 1))[0]
    assert first < second
    assert np.float32(np.exp(first)) == np.float32(np.exp(second)) == 1


def test_likeliest_classes_come_first(predictions):
    expected = np.argsort(-predictions.logits, axis=1)[:, :5]
    np.testing.assert_array_equal(predictions.top_5, expected)
    np.testing.assert_array_equal(predictions.predicted, expected[:, 0])


def test_first_of_equally_likely_classes_comes_first():
    even = draw_predictions(4, 7)
    even.logits[:] = 0
    np.testing.assert_array_equal(even.top_5, [range(5)] * 4)


def test_few_classes_have_few_likeliest():
    assert draw_predictions(4, 3).top_5.shape == (4, 3)


def test_logarithms_of_probabilities_are_logits(predictions):
    logs = predictions.log_probabilities(slice(None)).T.astype("float32")
    again = dataclasses.replace(predictions, logits=logs)
    np.testing.assert_allclose(again.losses, predictions.losses, atol=1e-6)
    np.testing.assert_array_equal(again.top_5, predictions.top_5)


def test_there_need_be_no_pictures(predictions):
    assert predictions.picture(3) is None
