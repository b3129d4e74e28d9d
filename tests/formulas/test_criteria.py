import math

import numpy as np
import pytest
import torch

from debias_ssl.formulas.criteria import mean_ranks, nuclear_norm, rank_me

QUARTERS = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))


def test_rank_me_is_the_exponential_of_the_entropy_of_singular_values():
    # Singular values 3 and 1, in any rotation of rows and columns.
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0))).Q
    features = rotation[:, :2] @ torch.diag(torch.tensor([3.0, 1.0])) @ torch.linalg.qr(torch.eye(2).flip(0)).Q
    assert rank_me(features) == pytest.approx(QUARTERS, abs=1e-5)
    assert rank_me(5 * features) == pytest.approx(QUARTERS, abs=1e-5)


def test_rank_me_of_one_direction_is_1_and_of_all_alike_their_number():
    assert rank_me(torch.ones(10, 4)) == pytest.approx(1, abs=1e-4)
    assert rank_me(torch.eye(4).repeat(3, 1)) == pytest.approx(4, abs=1e-4)
    assert rank_me(torch.zeros(5, 3)) == pytest.approx(1, abs=1e-4)


def test_nuclear_norm_is_1_where_rows_are_sure_and_classes_equal():
    assert nuclear_norm(torch.eye(3).repeat(4, 1)) == pytest.approx(1)
    # The only singular value is that of the uniform matrix, sqrt(12) / 3, of at most sqrt(12 * 3).
    assert nuclear_norm(torch.full((12, 3), 1 / 3)) == pytest.approx(math.sqrt(12 / 3) / 6)
    # Sure of one class alone: sqrt(12) of 6.
    assert nuclear_norm(torch.eye(3)[[0] * 12]) == pytest.approx(math.sqrt(12) / 6)
    assert nuclear_norm(torch.eye(5)[:2]) == pytest.approx(1)


def test_mean_ranks_worked():
    criteria = [np.array([0.1, 0.9, 0.5]), np.array([7.0, 7.0, 1.0])]
    assert mean_ranks(criteria).tolist() == [(3 + 1.5) / 2, (1 + 1.5) / 2, (2 + 3) / 2]
