"""Metrics compared with scikit-learn, calibration with a count by hand."""

import dataclasses
import warnings

import numpy as np
import pytest
import scipy.special
import sklearn.exceptions
from drawn_predictions import draw_predictions
from sklearn import metrics

from train_loop.evaluation.curves import rank
from train_loop.evaluation.metrics import (
    METRICS,
    compute_metrics,
    count_classes,
    expected_calibration_errors,
    fit_temperature,
    reliability,
    resamples,
    weighted_sums,
)
from train_loop.evaluation.results import Results


def compute(predictions, weights):
    counts = count_classes(predictions, weights)
    return compute_metrics(
        predictions, weights, counts, rank(predictions, weights)
    )


def sklearn_metrics(predictions, weights):
    """Returns the metrics of scikit-learn; `weights` are [images]."""
    labels, predicted = predictions.labels, predictions.predicted
    scores = scipy.special.softmax(predictions.logits.astype(float), axis=1)
    classes = np.arange(predictions.num_classes)
    drawn = np.unique(labels[weights > 0])
    known = {"sample_weight": weights}
    areas = {
        name: np.mean(
            [
                function(labels == number, scores[:, number], **known)
                for number in drawn
            ]
        )
        for name, function in (
            ("mean_average_precision", metrics.average_precision_score),
            ("mean_roc_auc", metrics.roc_auc_score),
        )
    }
    occurring = np.union1d(drawn, predicted[weights > 0])
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", sklearn.exceptions.UndefinedMetricWarning
        )
        # Classes without examples that are predicted.
        warnings.filterwarnings("ignore", "y_pred contains classes")
        return areas | {
            "accuracy": metrics.accuracy_score(labels, predicted, **known),
            "top_5_accuracy": metrics.top_k_accuracy_score(
                labels, scores, k=5, labels=classes, **known
            ),
            "loss": metrics.log_loss(labels, scores, labels=classes, **known),
            "mean_class_accuracy": metrics.recall_score(
                labels, predicted, labels=drawn, average="macro", **known
            ),
            "macro_f1": metrics.f1_score(
                labels, predicted, labels=occurring, average="macro", **known
            ),
            "weighted_f1": metrics.f1_score(
                labels, predicted, average="weighted", **known
            ),
        }


@pytest.fixture(params=[(90, 6), (300, 12), (60, 40)])
def predictions(request):
    """Returns predictions; some of the 40 classes have no example."""
    return draw_predictions(*request.param)


def test_metrics_equal_scikit_learn(predictions):
    ones = np.ones(len(predictions))
    expected = sklearn_metrics(predictions, ones)
    found = compute(predictions, resamples(len(predictions), 1))
    assert set(found) == set(METRICS)
    for name, value in expected.items():
        assert found[name][0] == pytest.approx(value, abs=1e-12), name
    defaults = predictions.labels, predictions.predicted
    assert found["macro_f1"][0] == pytest.approx(
        metrics.f1_score(*defaults, average="macro")
    )


@pytest.mark.slow
def test_metrics_of_every_replicate_equal_scikit_learn(predictions):
    weights = resamples(len(predictions), 5)
    found = compute(predictions, weights)
    for column in range(weights.shape[1]):
        expected = sklearn_metrics(predictions, weights[:, column])
        for name, value in expected.items():
            assert found[name][column] == pytest.approx(value, abs=1e-12), name


def test_equal_scores_share_a_threshold():
    few = draw_predictions(5, 4)
    repeated = np.random.default_rng(1).integers(0, 5, 80)
    predictions = draw_predictions(80, 4)
    predictions.logits[:] = few.logits[repeated]
    weights = resamples(80, 3)
    ranking = rank(predictions, weights)
    scores = scipy.special.softmax(predictions.logits.astype(float), axis=1)
    for column in range(4):
        for number in range(4):
            truth = predictions.labels == number, scores[:, number]
            known = {"sample_weight": weights[:, column]}
            for areas, function in (
                (ranking.average_precisions, metrics.average_precision_score),
                (ranking.roc_aucs, metrics.roc_auc_score),
            ):
                expected = function(*truth, **known)
                assert areas[number, column] == pytest.approx(expected)


def test_curves_equal_scikit_learn():
    predictions = draw_predictions(500, 3)
    ranking = rank(predictions, resamples(500, 1))
    scores = predictions.log_probabilities(slice(0, 1))[0]
    truth = predictions.labels == 0
    precision, recall, _ = metrics.precision_recall_curve(truth, scores)
    # At a recall of 0.5.
    assert ranking.precisions[0, 100] == precision[recall >= 0.5][-1]
    false, true, _ = metrics.roc_curve(truth, scores, drop_intermediate=False)
    # At false-positive rates of 0.1 and 0.5.
    assert ranking.sensitivities[0, 100] == true[false <= 0.1][-1]
    assert ranking.sensitivities[0, 260] == true[false <= 0.5][-1]
    assert ranking.sensitivities[0, 0] == true[false == 0][-1] > 0
    assert ranking.sensitivities[0, -1] == ranking.precisions[0, 0] == 1


def test_classes_without_examples_are_excluded_from_means():
    predictions = draw_predictions(100, 8, skill=4)
    with_more = dataclasses.replace(
        predictions,
        logits=np.pad(predictions.logits, [(0, 0), (0, 2)], constant_values=-9),
        class_names=[*predictions.class_names, "unseen", "unheard"],
    )
    weights = resamples(100, 20)
    one, other = (compute(p, weights) for p in (predictions, with_more))
    for name in set(METRICS) - {"loss", "expected_calibration_error"}:
        # The additional classes change the probabilities slightly.
        np.testing.assert_allclose(one[name], other[name], rtol=1e-3)
    assert np.isnan(rank(with_more, weights).average_precisions[8:]).all()


def test_examples_of_one_class_have_no_roc_curve():
    labels = np.zeros(30, int)
    predictions = draw_predictions(30, 3, labels=labels)
    weights = resamples(30, 4)
    found = compute(predictions, weights)
    assert np.isnan(rank(predictions, weights).sensitivities).all()
    assert np.isnan(found["mean_roc_auc"]).all()
    assert (found["mean_average_precision"] == 1).all()


@pytest.mark.parametrize("count", [255, 256, 70_000])
def test_sums_of_weights_do_not_overflow(count):
    """The weights have the smallest dtype that holds their sum."""
    labels = np.zeros(count, int)
    labels[:3] = 1
    predictions = draw_predictions(count, 2, labels=labels)
    # All other images share one level above it.
    predictions.logits[:3, 1] -= 99
    found = rank(predictions, resamples(count, 1)).roc_aucs[1, 0]
    scores = predictions.log_probabilities(slice(1, 2))[0]
    assert found == pytest.approx(metrics.roc_auc_score(labels, scores))


def test_metrics_are_formatted_with_units():
    assert METRICS["accuracy"].format(0.93456) == "93.46 %"
    assert METRICS["accuracy"].format(0.01, "+") == "+1.00 %"
    assert METRICS["loss"].format(0.93456) == "0.9346"
    assert METRICS["mean_roc_auc"].format(np.nan) == "–"
    assert METRICS["accuracy"].format_interval(0.5, 0.75) == "50.00 to 75.00 %"


@pytest.mark.parametrize("count", [1, 7, 255, 256, 3000])
def test_resamples_draw_as_many_images_as_there_are(count):
    weights = resamples(count, 30)
    assert weights.shape == (count, 31)
    assert (weights[:, 0] == 1).all()
    assert (weights.sum(0) == count).all()
    assert weights.dtype == np.min_scalar_type(count)


def test_resamples_draw_images_uniformly():
    weights = resamples(400, 2000)[:, 1:]
    # Mean and variance of the binomial distribution.
    assert weights.mean(1) == pytest.approx(np.ones(400), abs=0.1)
    assert weights.var() == pytest.approx(1 - 1 / 400, rel=0.02)


def test_two_models_share_the_same_resamples():
    np.testing.assert_array_equal(resamples(50, 9), resamples(50, 9))


def test_weighted_sums_equal_the_matrix_product():
    weights = resamples(40, 150)
    values = np.random.default_rng(0).normal(size=(3, 40))
    np.testing.assert_allclose(
        weighted_sums(values, weights), values @ weights.astype(float)
    )


def error_by_hand(confidences, correct):
    """Equation 3 of Guo et al. (2017)."""
    error = 0
    for m in range(1, 16):
        of_bin = (confidences > (m - 1) / 15) & (confidences <= m / 15)
        if of_bin.any():
            gap = correct[of_bin].mean() - confidences[of_bin].mean()
            error += of_bin.sum() / len(correct) * abs(gap)
    return error


def test_calibration_errors_equal_the_equation():
    predictions = draw_predictions(200, 4)
    weights = resamples(200, 3)
    found = expected_calibration_errors(predictions, weights)
    for column, drawn in enumerate(weights.T):
        images = np.repeat(np.arange(200), drawn)
        assert found[column] == pytest.approx(
            error_by_hand(
                predictions.confidences[images], predictions.correct[images]
            )
        )


def test_bins_include_their_upper_edges():
    predictions = draw_predictions(3, 2, labels=np.zeros(3, int))
    # 0.6 is an edge.
    predictions.__dict__["confidences"] = np.array([0.6, 1.0, 0.6001])
    counts = reliability(predictions).counts
    np.testing.assert_array_equal(np.flatnonzero(counts), [8, 9, 14])


def test_reliability_is_computed_for_each_bin():
    predictions = draw_predictions(500, 3)
    found = reliability(predictions)
    confidences, correct = predictions.confidences, predictions.correct
    chosen = (confidences > 9 / 15) & (confidences <= 10 / 15)
    assert found.counts[9] == chosen.sum()
    assert found.accuracies[9] == pytest.approx(correct[chosen].mean())
    assert found.confidences[9] == pytest.approx(confidences[chosen].mean())
    # The largest of three probabilities is at least 1/3.
    assert found.counts[0] == 0
    assert np.isnan(found.accuracies[0])


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_fitted_temperature_minimizes_the_loss(temperature):
    random = np.random.default_rng(0)
    logits = random.normal(size=(5000, 6)) * 2
    odds = scipy.special.softmax(logits, axis=1)
    labels = (odds.cumsum(1) < random.random((5000, 1))).sum(1)
    scaled = (logits * temperature).astype("float32")
    found = fit_temperature(scaled, labels)
    assert found == pytest.approx(temperature, rel=0.06)

    def loss(temperature):
        return metrics.log_loss(
            labels, scipy.special.softmax(scaled / temperature, 1)
        )

    assert loss(found) < min(loss(found * 1.01), loss(found / 1.01))


def test_temperature_is_limited():
    logits = np.eye(4, dtype="float32")
    assert fit_temperature(logits, np.arange(4)) == 0.01
    assert fit_temperature(logits, np.arange(4)[::-1]) == 100


def test_temperature_improves_calibration():
    logits = draw_predictions(4000, 5).logits * 4
    labels = draw_predictions(4000, 5).labels
    temperature = fit_temperature(logits[:2000], labels[:2000])
    rest = draw_predictions(2000, 5, labels=labels[2000:])
    rest.logits[:] = logits[2000:]
    results = Results.of(rest, temperature)
    before = results.estimates["expected_calibration_error"]
    assert results.calibrated_error < before / 3
    np.testing.assert_array_equal(results.calibrated.top_5, rest.top_5)
