import math

import pytest
import torch
from torch import Tensor

from debias_ssl.data.sampling.keyed import Purpose, beta, derived_seed, permutation, philox, uniform, uniform_ahead

# From the known answers that come with Random123, the authors' library.
ZERO = ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8))
ONES = ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD))
PI = (
    (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
    (0xA4093822, 0x299F31D0),
    (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
)


def counters(*counts: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    c0, c1, c2, c3 = torch.tensor(counts).unbind(1)
    return c0, c1, c2, c3


@pytest.mark.parametrize(("counter", "key", "expected"), [ZERO, ONES, PI])
def test_philox_gives_the_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]):
    assert tuple(int(word) for word in philox(counters(counter), key)) == expected


def test_counters_do_not_touch_each_other():
    result = torch.stack(philox(counters(ZERO[0], ONES[0]), (0, 0)), 1)
    assert tuple(result[0].tolist()) == ZERO[2]


def test_uniform_numbers_are_the_recorded_ones():
    # Written down once: a change of the stream would change every split and every run that is resumed.
    numbers = uniform(7, Purpose.WEAK_VIEW, 3, torch.tensor([0, 5]), 5) * 2**24
    assert numbers.tolist() == [
        [16185457, 9916804, 5081616, 10129405, 14532175],
        [3026667, 8874050, 5370563, 2973811, 14885793],
    ]


def test_permutation_and_derived_seed_are_the_recorded_ones():
    assert permutation(7, Purpose.UNLABELED_ORDER, 2, 10).tolist() == [4, 0, 8, 1, 5, 7, 6, 2, 9, 3]
    assert derived_seed(7, Purpose.PROCESS, 3, 1) == 7286097048257664520


def test_uniform_numbers_fill_the_interval_evenly():
    numbers = uniform(0, Purpose.SPLIT, 0, torch.arange(20_000), 5)
    assert 0 <= numbers.min() < 1e-4 and 1 - 1e-4 < numbers.max() < 1
    # Over 100,000 numbers, the mean has a standard deviation of .0009, the variance of .0002, a tenth of .001.
    assert numbers.mean().item() == pytest.approx(1 / 2, abs=0.004)
    assert numbers.var().item() == pytest.approx(1 / 12, abs=0.001)
    tenths = numbers.flatten().histc(10, 0.0, 1.0) / numbers.numel()
    torch.testing.assert_close(tenths, torch.full((10,), 0.1), atol=0.004, rtol=0)


def test_columns_and_neighbors_are_uncorrelated():
    numbers = uniform(0, Purpose.SPLIT, 0, torch.arange(20_000), 6)
    columns = torch.cat([numbers[:-1], numbers[1:]], 1)
    off_diagonal = torch.corrcoef(columns.T) - torch.eye(12)
    # The standard deviation is .007, and the largest of 66 is expected at .018.
    assert off_diagonal.abs().max() < 0.03


def test_numbers_of_some_positions_are_those_rows_of_all():
    everything = uniform(3, Purpose.STRONG_VIEW, 11, torch.arange(20), 9)
    for positions in (torch.arange(5, 12), torch.tensor([19, 0, 7])):
        assert torch.equal(uniform(3, Purpose.STRONG_VIEW, 11, positions, 9), everything[positions])


@pytest.mark.parametrize(("length", "num"), [(1, 3), (8, 13), (5, 2000), (5, 20_000)])
def test_numbers_made_ahead_are_those_of_each_step(length: int, num: int):
    for step in (0, 1, 15, 16, 40, 2**20 + 3, 1):
        positions = torch.arange(7, 7 + length)
        expected = uniform(3, Purpose.STRONG_VIEW, step, positions, num)
        assert torch.equal(uniform_ahead(3, Purpose.STRONG_VIEW, step, 7, 7 + length, num), expected)


def test_fewer_numbers_are_the_first_of_more():
    positions = torch.arange(6)
    assert torch.equal(uniform(3, 0, 0, positions, 3), uniform(3, 0, 0, positions, 14)[:, :3])


def test_seed_purpose_step_and_position_each_give_other_numbers():
    keys = [
        *[(seed, Purpose.WEAK_VIEW, 0) for seed in (0, 1, 2**32, 2**40 + 1)],
        *[(0, purpose, 0) for purpose in Purpose if purpose is not Purpose.WEAK_VIEW],
        *[(0, Purpose.WEAK_VIEW + i, 0) for i in (1, 2)],
        *[(0, Purpose.WEAK_VIEW, step) for step in (1, 2, 2**20)],
    ]
    numbers = torch.cat([uniform(seed, purpose, step, torch.arange(8), 8).flatten() for seed, purpose, step in keys])
    # Were all independent, equal ones would still be expected .03 times among this many numbers of 24 bits.
    assert len(numbers.unique()) >= len(numbers) - 1


@pytest.mark.parametrize("length", [0, 1, 2, 1000])
def test_permutation_holds_every_number_once(length: int):
    assert permutation(5, Purpose.LABELED_ORDER, 0, length).sort().values.tolist() == list(range(length))


def test_permutations_differ_by_seed_purpose_and_number():
    keys = [(0, Purpose.LABELED_ORDER, 0), (1, Purpose.LABELED_ORDER, 0), (0, Purpose.UNLABELED_ORDER, 0)]
    orders = {tuple(permutation(*key, 50).tolist()) for key in [*keys, (0, Purpose.LABELED_ORDER, 1)]}
    assert len(orders) == 4


def test_every_place_of_a_permutation_is_equally_likely():
    counts = torch.zeros(5, 5)
    for number in range(600):
        counts[torch.arange(5), permutation(0, Purpose.SPLIT, number, 5)] += 1
    # 120 are expected, with a standard deviation of 10.
    assert counts.min() > 75 and counts.max() < 165


def test_derived_seeds_fit_torch_and_differ_by_step_and_process():
    seeds = {derived_seed(0, Purpose.PROCESS, step, rank) for step in range(20) for rank in range(8)}
    assert len(seeds) == 160
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_beta_numbers_are_quantiles_of_their_distribution():
    for step in range(5):
        u = uniform(7, Purpose.MIXUP_LAMBDA, step, torch.tensor([0]), 1).item()
        # Beta(1, 1) is uniform, and Beta(1/2, 1/2) the arcsine distribution.
        assert beta(7, Purpose.MIXUP_LAMBDA, step, 1.0) == pytest.approx(u)
        assert beta(7, Purpose.MIXUP_LAMBDA, step, 0.5) == pytest.approx(math.sin(math.pi * u / 2) ** 2)


@pytest.mark.parametrize("alpha", [1e-3, 0.2, 8.0, 1e6])
def test_beta_numbers_are_in_range_whatever_alpha(alpha: float):
    drawn = torch.tensor([beta(0, Purpose.MIXUP_LAMBDA, step, alpha) for step in range(400)])
    assert ((drawn >= 0) & (drawn <= 1)).all()
    # The variance is 1 / (8 alpha + 4).
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.08)
    assert drawn.var().item() == pytest.approx(1 / (8 * alpha + 4), rel=0.25)
