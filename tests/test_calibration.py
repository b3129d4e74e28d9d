import pytest
import torch

from debias_ssl.calibration import expected_calibration_error


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


def test_confidences_of_zero_and_one_are_in_the_outer_bins():
    assert ece([0.0, 1.0], [False, True]) == 0
    assert ece([0.0, 1.0], [True, False]) == 1
    assert ece([1.0, 0.95], [True, False], num_bins=10) == pytest.approx(0.95 / 2)
    assert ece([0.0, 0.05], [True, False], num_bins=10) == pytest.approx(0.95 / 2)


def test_confident_and_always_wrong_is_an_error_of_the_confidence():
    assert ece([0.8] * 10, [False] * 10) == pytest.approx(0.8)
