import math

import pytest
import torch

from debias_ssl.methods import UDA, FixMatch
from debias_ssl.system.errors import InputError

# Probabilities (.9, .1), whose square is (81, 1) / 82, and (.75, .25).
WEAK = torch.tensor([[math.log(9), 0.0], [math.log(3), 0.0]])


def test_targets_are_sharpened_and_count_by_their_plain_confidence(make_problem, make_views):
    strong = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    views = make_views(torch.zeros(1, 2), torch.tensor([0]), WEAK, strong)
    step = UDA(make_problem(2), temperature=0.5, unlabeled_weight=2.0)(views)
    assert step.pseudo.target[0].tolist() == pytest.approx([81 / 82, 1 / 82])
    assert step.pseudo.weight.tolist() == [1, 0]
    expected = -(81 * math.log(0.25) + math.log(0.75)) / 82
    assert step.losses["unlabeled"].item() == pytest.approx(expected)


def test_a_small_temperature_is_fixmatch(make_problem, random_views):
    views = random_views(4)
    soft, hard = (
        method(views) for method in (UDA(make_problem(4), temperature=1e-4), FixMatch(make_problem(4), threshold=0.8))
    )
    torch.testing.assert_close(soft.losses["unlabeled"], hard.losses["unlabeled"])
    assert soft.pseudo.target.argmax(-1).equal(hard.pseudo.target)
    assert soft.pseudo.weight.equal(hard.pseudo.weight)


def test_a_temperature_of_zero_is_refused(make_problem):
    with pytest.raises(InputError, match=r"method\.temperature is 0"):
        UDA(make_problem(3), temperature=0.0)
