"""How far two classifiers agree."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from debias_ssl.formulas.agreement import class_agreement


def test_it_is_the_f1_score_of_one_by_the_other():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 6, (2, 400))
    one[other == 4] = 3
    found = class_agreement(torch.from_numpy(one), torch.from_numpy(other), 7)
    scores: Any = f1_score
    expected = scores(one, other, labels=range(7), average=None, zero_division=0)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert found[6] == 0


def test_worked_numbers():
    one, other = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 0, 1, 1, 2])
    assert class_agreement(one, other, 3).tolist() == pytest.approx([4 / 5, 2 / 4, 0])
    assert class_agreement(other, one, 3).tolist() == pytest.approx([4 / 5, 2 / 4, 0])


def test_giving_up_a_rare_class_counts_as_much_as_giving_up_a_frequent_one():
    truth = torch.tensor([0] * 98 + [1] * 2)
    assert class_agreement(truth, truth, 2).mean() == 1
    assert class_agreement(torch.zeros(100).long(), torch.zeros(100).long(), 2).mean() == 0.5
