import numpy as np
import pytest
import torch

from debias_ssl.formulas import votes as votes_module
from debias_ssl.formulas.votes import TIE, ranked, vote, vote_shares


def test_a_vote_is_the_largest_logit_and_its_gap():
    label, gap = vote(torch.tensor([[1.0, 3.0, 2.5], [4.0, 4.0, 0.0]]))
    assert label.tolist() == [1, 0] and gap.tolist() == [0.5, 0.0]


def test_ranks_are_in_0_and_1_and_equal_numbers_share_them():
    assert ranked(np.array([3.0, 1.0, 1.0, 2.0])).tolist() == [3.5 / 4, 1 / 4, 1 / 4, 2.5 / 4]


def test_shares_worked():
    votes = np.array([[0, 1], [0, 2], [2, 2]])
    shares = vote_shares(votes, np.full((3, 2), 0.5), 4)
    np.testing.assert_array_equal(shares, np.array([[2, 0, 1, 0], [0, 1, 2, 0]], dtype=np.float32) / np.float32(3))
    assert vote_shares(votes[:1], np.full((1, 2), 0.5), 4).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]


@pytest.mark.parametrize(
    ("sureness", "winner"),
    [
        # Row 0 of the first voter is the surer by its rank.
        ([[0.7], [0.6]], 2),
        ([[0.6], [0.7]], 1),
        # Equally sure: the earlier class.
        ([[0.5], [0.5]], 1),
    ],
)
def test_a_tie_goes_to_the_surer_then_to_the_earlier_class(sureness, winner):
    (shares,) = vote_shares(np.array([[2], [1]]), np.array(sureness), 3)
    expected = np.array([0, 0.5, 0.5], dtype=np.float32)
    expected[winner] += np.float32(TIE)
    assert shares.tolist() == expected.tolist()


def test_no_sureness_outweighs_a_vote():
    votes, sureness = np.array([[0], [0], [1], [1], [1]]), np.array([[0.99], [0.99], [0.01], [0.01], [0.01]])
    assert vote_shares(votes, sureness, 2).argmax(1).tolist() == [1]


def test_the_order_of_voters_does_not_matter_nor_where_rows_are_cut(monkeypatch):
    random = np.random.default_rng(0)
    votes, sureness = random.integers(0, 3, (4, 200)), random.integers(0, 4, (4, 200)) / 4
    one, other = (vote_shares(votes[order], sureness[order], 3) for order in ([0, 1, 2, 3], [3, 1, 0, 2]))
    assert (one == other).all()
    monkeypatch.setattr(votes_module, "CHUNK_NUMBERS", 21)
    assert (one == vote_shares(votes, sureness, 3)).all()
    # There were ties.
    assert (one % 0.25 > 0).any()
