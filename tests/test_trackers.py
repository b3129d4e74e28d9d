import pytest
import torch

from debias_ssl.distributed.collectives import (
    all_mean_,
    all_sum_,
    gathered,
    mean_of_rows,
    num_processes,
    sum_with_gradient,
)
from debias_ssl.distributed.running import LabelMemory, RunningMean, VoteMemory, Windows, uniform_marginal
from debias_ssl.system.errors import InputError


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


@pytest.mark.parametrize("momentum", [-0.1, 1.5, float("nan")])
def test_a_momentum_that_is_no_mean_is_refused(momentum: float):
    with pytest.raises(InputError, match=r"momentum .* must be in \[0, 1\]"):
        uniform_marginal(4, momentum)


def test_an_update_returns_the_mean_of_its_own_rows():
    tracker = RunningMean(torch.tensor([0.0, 1.0]), momentum=0.5)
    assert tracker.update(torch.tensor([[1.0, 0.0], [0.5, 0.5]])).tolist() == [0.75, 0.25]


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
    assert mean_of_rows(tensor.unsqueeze(1)).tolist() == [1.5]
    assert gathered(tensor.unsqueeze(0)).tolist() == [[1, 2]]


def test_one_process_has_its_own_sum_and_gradient():
    tensor = torch.tensor([1.1, 2.3], requires_grad=True)
    assert sum_with_gradient(tensor).equal(tensor)
    assert torch.autograd.grad(sum_with_gradient(tensor).square().sum(), tensor)[0].tolist() == pytest.approx(
        [2.2, 4.6]
    )


def test_a_memory_holds_the_last_label_of_each_image():
    memory = LabelMemory(6, 3)
    assert memory.counts().tolist() == [0, 0, 0]
    memory.update(torch.tensor([4, 0, 2]), torch.tensor([2, 1, -1]))
    assert memory.value.tolist() == [1, -1, -1, -1, 2, -1]
    memory.update(torch.tensor([0, 4, 5]), torch.tensor([0, -1, 2]))
    assert memory.value.tolist() == [0, -1, -1, -1, 2, 2]
    assert memory.counts().tolist() == [1, 0, 2]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_an_image_that_comes_twice_gets_the_larger_label(order):
    memory = LabelMemory(2, 4)
    memory.update(torch.tensor([1, 1, 1])[order], torch.tensor([0, 3, -1])[order])
    assert memory.value.tolist() == [-1, 3]


def test_a_memory_is_state():
    memory, other = LabelMemory(3, 2), LabelMemory(3, 2)
    memory.update(torch.tensor([1]), torch.tensor([1]))
    other.load_state_dict(memory.state_dict())
    assert other.value.tolist() == [-1, 1, -1]


def test_votes_and_looks_are_counted_for_each_image():
    memory = VoteMemory(3, 2)
    memory.add(torch.tensor([2, 0, 2, 2]), torch.tensor([1, -1, 1, 0]))
    assert memory.votes.tolist() == [[0, 0], [0, 0], [1, 2]] and memory.seen.tolist() == [1, 0, 3]
    memory.forget(torch.tensor(False))
    assert memory.seen.sum() == 4
    memory.forget(torch.tensor(True))
    assert memory.seen.sum() == 0 and memory.votes.sum() == 0


def ends(windows: Windows, num_steps: int, start: int = 0) -> list[int]:
    """Steps before which a window ended."""
    return [k for k in range(start, num_steps) if (ended := windows.ended(k / num_steps)) is not None and ended]


def test_windows_end_at_equal_distances_after_the_first_part_of_a_run():
    # A window ends before the step that is the first of another one; the last one does not end.
    assert ends(Windows(0.5, 0.1), 10) == [6, 7, 8, 9]
    assert ends(Windows(0.0, 0.25), 12) == [3, 6, 9]
    assert ends(Windows(0.2, 0.4), 10) == [6]
    assert ends(Windows(1.0, 0.1), 10) == ends(Windows(0.0, 1.0), 10) == []
    # Shorter than a step.
    assert ends(Windows(0.0, 0.01), 5) == [1, 2, 3, 4]


@pytest.mark.parametrize("start", range(12))
def test_windows_of_a_resumed_run_end_where_they_did(start: int):
    whole, first, other = (Windows(0.1, 0.25) for _ in range(3))
    expected = ends(whole, 12)
    before = [k for k in range(start) if (ended := first.ended(k / 12)) is not None and ended]
    other.load_state_dict(first.state_dict())
    assert before + ends(other, 12, start) == expected == [5, 8, 11]


def test_a_step_within_a_window_asks_nothing_of_the_device():
    windows = Windows(0.0, 0.5)
    assert windows.ended(0.0) is not None
    assert windows.ended(0.25) is None and windows.ended(0.5) is not None and windows.ended(0.75) is None
