import pytest
import torch

from debias_ssl.trackers import RunningMean, all_mean_, all_sum_, num_processes, uniform_marginal


def test_running_mean_worked():
    tracker = RunningMean(torch.tensor([0.8, 0.2]), momentum=0.5)
    tracker.update(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    assert tracker.value.tolist() == pytest.approx([0.775, 0.225])
    tracker.update(torch.tensor([[0.0, 1.0]]))
    assert tracker.value.tolist() == pytest.approx([0.3875, 0.6125])


def test_momentum_zero_keeps_the_last_mean_only():
    tracker = RunningMean(torch.tensor([0.1, 0.9]), momentum=0.0)
    tracker.update(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    assert tracker.value.tolist() == [0.75, 0.25]


def test_long_momentum_moves_by_a_thousandth():
    tracker = uniform_marginal(4, momentum=0.999)
    for _ in range(100):
        tracker.update(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    kept = 0.999**100
    assert tracker.value.tolist() == pytest.approx([kept / 4 + 1 - kept] + [kept / 4] * 3)


def test_uniform_marginal_starts_uniform():
    assert uniform_marginal(5, momentum=0.9).value.tolist() == pytest.approx([0.2] * 5)


def test_rows_of_half_precision_are_summed_in_fp32():
    rows = torch.full((3000, 2), 0.1, dtype=torch.bfloat16)  # whose sum is between two bf16 numbers
    tracker = RunningMean(torch.zeros(2), momentum=0.0)
    tracker.update(rows)
    assert tracker.value.dtype == torch.float32
    assert tracker.value.tolist() == pytest.approx(rows[0].tolist())


def test_an_update_leaves_no_gradient():
    rows = torch.ones(3, 2, requires_grad=True)
    tracker = RunningMean(torch.zeros(2), momentum=0.5)
    tracker.update(rows * 2)
    assert not tracker.value.requires_grad


def test_the_value_is_state():
    tracker, other = uniform_marginal(3, momentum=0.5), uniform_marginal(3, momentum=0.5)
    tracker.update(torch.tensor([[0.7, 0.2, 0.1]]))
    other.load_state_dict(tracker.state_dict())
    assert other.value.equal(tracker.value)
    assert not other.value.equal(uniform_marginal(3, momentum=0.5).value)


def test_one_process_is_its_own_sum_and_mean():
    tensor = torch.tensor([1.0, 2.0])
    assert num_processes() == 1
    all_mean_([tensor])
    assert all_sum_(tensor).tolist() == [1, 2]
