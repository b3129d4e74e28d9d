import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss
from torch import Tensor

from debias_ssl.formulas.calibration import (
    LARGEST_TEMPERATURE,
    brier_score,
    calibration_figures,
    class_wise_calibration_error,
    equal_mass_calibration_error,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability_bins,
)


def ece(confidence: list[float], correct: list[bool], num_bins: int = 15) -> float:
    return expected_calibration_error(torch.tensor(confidence).double(), torch.tensor(correct), num_bins).item()


def test_worked_example():
    # Bin (.5, .75]: mean confidence .65, accuracy .5; bin (.75, 1]: .9 and 1.
    error = ece([0.6, 0.7, 0.9, 0.9], [True, False, True, True], num_bins=4)
    assert error == pytest.approx(0.5 * 0.15 + 0.5 * 0.1)


def test_perfectly_calibrated_predictions_have_no_error():
    assert ece([0.75] * 4 + [0.5] * 2, [True] * 3 + [False, True, False]) == pytest.approx(0)


def test_errors_within_a_bin_cancel_and_over_bins_do_not():
    confidence, correct = [0.3, 0.7], [True, False]
    assert ece(confidence, correct, num_bins=1) == pytest.approx(0)
    assert ece(confidence, correct, num_bins=2) == pytest.approx(0.7)


def test_a_bin_holds_its_upper_edge_and_not_its_lower_one():
    # .5 shares the bin with .3, where the errors cancel to |1 - .8| / 2; in the bin of .6 it would be |1 - 1.1| / 2.
    assert ece([0.5, 0.3], [True, False], num_bins=2) == pytest.approx(0.1)
    assert ece([0.5, 0.6], [True, False], num_bins=2) == pytest.approx((0.5 + 0.6) / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_confidence_of_k_fifteenths_is_in_bin_k_however_it_was_rounded(dtype):
    for k in range(1, 16):
        shares = torch.tensor([k / 15, 1 - k / 15], dtype=dtype)
        # As such, and as a softmax of fp32 logits in either precision.
        for confidence in (shares[:1], shares.float().log().to(dtype).softmax(0)[:1]):
            share, _, _ = reliability_bins(confidence, torch.tensor([True]))
            assert share.nonzero().tolist() == [[k - 1]]
    share, _, _ = reliability_bins(torch.tensor([0.2 + 2e-6], dtype=dtype), torch.tensor([True]))
    assert share.nonzero().tolist() == [[3]]


def test_confidences_of_zero_and_one_are_in_the_outer_bins():
    assert ece([0.0, 1.0], [False, True]) == 0
    assert ece([0.0, 1.0], [True, False]) == 1
    assert ece([1.0, 0.95], [True, False], num_bins=10) == pytest.approx(0.95 / 2)
    assert ece([0.0, 0.05], [True, False], num_bins=10) == pytest.approx(0.95 / 2)


def test_confident_and_always_wrong_is_an_error_of_the_confidence():
    assert ece([0.8] * 10, [False] * 10) == pytest.approx(0.8)


def made(num: int = 4000, num_classes: int = 5, temperature: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits, and labels drawn from softmax(logits / temperature)."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * temperature * torch.randn(num, num_classes, generator=generator, dtype=torch.float64)
    return logits, torch.multinomial((logits / temperature).softmax(1), 1, generator=generator).squeeze(1)


def test_equal_mass_worked():
    # Halves by rank: (.3, .4) with accuracy .5, and (.6, .9) with accuracy 1.
    confidence, correct = torch.tensor([0.9, 0.3, 0.6, 0.4]), torch.tensor([True, False, True, True])
    error = equal_mass_calibration_error(confidence, correct, 2).item()
    assert error == pytest.approx(0.5 * 0.15 + 0.5 * 0.25)


@pytest.mark.parametrize("num_bins", [1, 4, 15])
def test_equal_mass_is_the_mean_over_parts_of_the_sorted_images(num_bins):
    generator = torch.Generator().manual_seed(1)
    confidence = torch.rand(60 * num_bins, generator=generator, dtype=torch.float64)
    correct = torch.rand(60 * num_bins, generator=generator) < confidence
    order = confidence.argsort()
    parts = zip(confidence[order].split(60), correct[order].double().split(60), strict=True)
    expected = sum((c.mean() - right.mean()).abs() for c, right in parts) / num_bins
    torch.testing.assert_close(equal_mass_calibration_error(confidence, correct, num_bins), expected)


def test_the_order_of_ties_does_not_count():
    confidence = torch.tensor([0.5] + [0.9] * 5)
    for correct in itertools.permutations([True, True, True, False, False]):
        error = equal_mass_calibration_error(confidence, torch.tensor([True, *correct]), 3).item()
        # The five share the bin of the middle one, the .5 has one for itself: in the same bin the errors would cancel.
        assert error == pytest.approx((1 * 0.5 + 5 * (0.9 - 0.6)) / 6)


def test_all_images_of_one_confidence_are_one_bin():
    error = equal_mass_calibration_error(torch.full((20,), 0.7), torch.arange(20) < 10)
    assert error.item() == pytest.approx(0.2)


def test_equal_mass_bins_do_not_change_with_the_scale_of_confidence():
    # Equal-width bins would hold all of them together.
    confidence, correct = torch.tensor([0.95, 0.96, 0.98, 0.99]), torch.tensor([False, True, True, True])
    error = equal_mass_calibration_error(confidence, correct, 4).item()
    assert error == pytest.approx((0.95 + 0.04 + 0.02 + 0.01) / 4)
    assert expected_calibration_error(confidence, correct, 4).item() == pytest.approx(0.22)


def test_class_wise_worked():
    # Class 0: bin (0, .5] has .2 and .4, one of them true; bin (.5, 1] has .7, true. Class 1 is the same turned around.
    probs = torch.tensor([[0.2, 0.8], [0.4, 0.6], [0.7, 0.3]])
    error = class_wise_calibration_error(probs, torch.tensor([1, 0, 0]), 2).item()
    of_one = (2 * abs(0.3 - 0.5) + 1 * abs(0.7 - 1)) / 3
    of_other = (1 * abs(0.3 - 0) + 2 * abs(0.7 - 0.5)) / 3
    assert error == pytest.approx((of_one + of_other) / 2)


def test_bins_agree_with_scikit_learn():
    logits, labels = made()
    probs = logits.softmax(1)
    for k in range(5):
        share, mean, accuracy = reliability_bins(probs[:, k], labels == k, 10)
        filled = share > 0
        true, predicted = calibration_curve(labels.numpy() == k, probs[:, k].numpy(), n_bins=10)
        np.testing.assert_allclose(accuracy[filled], true, atol=1e-12)
        np.testing.assert_allclose(mean[filled], predicted, atol=1e-12)


def test_equal_mass_agrees_with_the_quantile_bins_of_scikit_learn():
    logits, labels = made(num=3000)
    confidence, predicted = logits.softmax(1).max(1)
    # Of its 10 bins those between quantiles of the sample hold 300 images each.
    true, mean = calibration_curve((predicted == labels).numpy(), confidence.numpy(), n_bins=10, strategy="quantile")
    error = equal_mass_calibration_error(confidence, predicted == labels, 10).item()
    assert error == pytest.approx(np.abs(true - mean).mean(), abs=1e-6)


def test_scores_agree_with_scikit_learn():
    logits, labels = made(temperature=0.7)
    probs = logits.softmax(1)
    assert negative_log_likelihood(logits, labels).item() == pytest.approx(log_loss(labels, probs), abs=1e-9)
    of_classes = [brier_score_loss(labels == k, probs[:, k]) for k in range(probs.shape[1])]
    assert brier_score(probs, labels).item() == pytest.approx(sum(of_classes), abs=1e-9)


def test_scores_worked():
    probs, labels = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]), torch.tensor([0, 1])
    assert negative_log_likelihood(probs.log(), labels).item() == pytest.approx((math.log(2) + math.log(10)) / 2)
    assert brier_score(probs, labels).item() == pytest.approx((0.375 + (0.01 + 0.81 + 0.64)) / 2)
    assert brier_score(torch.eye(3), torch.arange(3)).item() == 0
    assert brier_score(torch.eye(3), torch.tensor([1, 2, 0])).item() == 2


def test_likelihood_is_finite_where_fp32_probabilities_are_zero():
    assert negative_log_likelihood(torch.tensor([[0.0, 500.0]]), torch.tensor([0])).item() == pytest.approx(500)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0, 2.5, 30.0])
def test_a_known_temperature_is_recovered(temperature):
    logits, labels = made(num=20_000, temperature=temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.03)


@given(st.integers(0, 1000), st.integers(2, 6), st.floats(0.1, 10))
@settings(max_examples=10, deadline=None)
def test_no_other_temperature_has_less_loss(seed, num_classes, temperature):
    logits, labels = made(60, num_classes, temperature, seed)
    best = fit_temperature(logits, labels)
    loss = negative_log_likelihood(logits / best, labels)
    assert loss <= negative_log_likelihood(logits, labels) + 1e-12
    for factor in (0.9, 0.999, 1.001, 1.1):
        assert loss <= negative_log_likelihood(logits / (factor * best), labels) + 1e-12


def test_the_temperature_goes_with_the_scale_and_not_with_a_row_s_offset():
    logits, labels = made(500)
    best = fit_temperature(logits, labels)
    assert fit_temperature(7 * logits, labels) == pytest.approx(7 * best)
    assert fit_temperature(logits + torch.arange(500.0).unsqueeze(1), labels) == pytest.approx(best)
    assert fit_temperature(logits.float(), labels.int()) == pytest.approx(best, rel=1e-5)


def test_temperatures_without_a_minimum_end_at_a_bound():
    logits, _ = made(50)
    assert fit_temperature(logits, logits.argmax(1)) == 1 / LARGEST_TEMPERATURE
    assert fit_temperature(logits, logits.argmin(1)) == LARGEST_TEMPERATURE
    # A single image that is wrong is enough for a minimum.
    labels = logits.argmax(1)
    labels[0] = (labels[0] + 1) % 5
    assert 1 / LARGEST_TEMPERATURE < fit_temperature(logits, labels) < LARGEST_TEMPERATURE


def test_a_temperature_of_no_images_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        fit_temperature(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))


def test_figures_hold_all_measures_and_a_temperature_leaves_accuracy():
    logits, labels = made(300, temperature=3.0)
    figures = calibration_figures(logits, labels)
    confidence, predicted = logits.softmax(1).max(1)
    assert figures == pytest.approx(
        {
            "accuracy": (predicted == labels).double().mean().item(),
            "ece": expected_calibration_error(confidence, predicted == labels).item(),
            "equal_mass_ece": equal_mass_calibration_error(confidence, predicted == labels).item(),
            "class_wise_ece": class_wise_calibration_error(logits.softmax(1), labels).item(),
            "nll": negative_log_likelihood(logits, labels).item(),
            "brier": brier_score(logits.softmax(1), labels).item(),
        }
    )
    scaled = calibration_figures(logits / fit_temperature(logits, labels), labels)
    assert scaled["accuracy"] == figures["accuracy"]
    assert scaled["nll"] < figures["nll"] and scaled["ece"] < figures["ece"]
