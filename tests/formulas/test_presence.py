"""How much of a preference is removed where classes may be absent: worked examples, and what must not change it."""

import math

import pytest
import torch

from debias_ssl.formulas.presence import Presence, presence

LOG_Q = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()


def of(*counts: int) -> Presence:
    shares = torch.tensor(counts, dtype=torch.float64)
    return Presence(shares=shares / shares.sum(), num=sum(counts))


def test_all_is_removed_where_the_sure_labels_are_of_all_classes():
    sure = of(100, 100, 100, 100)
    assert sure.spread == 1 and sure.removed == 1
    assert torch.equal(sure.cautious(LOG_Q), LOG_Q)


def test_nothing_is_removed_where_they_are_of_half_the_classes():
    sure = of(200, 200, 0, 0)
    assert sure.spread == pytest.approx(0.5 * math.exp(1 / 800)) and sure.removed == 0
    assert not sure.cautious(LOG_Q).any()


def test_a_class_that_is_missing_among_them_is_not_raised():
    sure = of(150, 150, 60, 0)
    entropy = -(2 * 5 / 12 * math.log(5 / 12) + 1 / 6 * math.log(1 / 6)) + 2 / 720
    removed = (math.exp(entropy) / 4 - 0.55) / 0.2
    assert 0.7 < removed < 0.8
    level = (5 * LOG_Q[0] + 5 * LOG_Q[1] + 2 * LOG_Q[2]) / 12
    expected = removed * torch.stack([LOG_Q[0], LOG_Q[1], LOG_Q[2], level])
    torch.testing.assert_close(sure.cautious(LOG_Q), expected)


def test_a_class_of_an_eighth_of_a_fair_share_is_raised_half_the_way():
    sure = of(320, 300, 155, 25)
    level = (sure.shares * LOG_Q).sum()
    expected = sure.removed * (level + 0.5 * (LOG_Q[3] - level))
    torch.testing.assert_close(sure.cautious(LOG_Q)[3], expected)


def test_few_sure_labels_are_not_taken_for_absent_classes():
    # Of 40 labels drawn from 40 classes, 15 classes are missing by chance.
    labels = torch.randint(40, (40,), generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(labels, minlength=40).double() / 40
    naive = torch.exp(-(shares[shares > 0] * shares[shares > 0].log()).sum()).item() / 40
    assert naive < 0.65 and Presence(shares=shares, num=40).spread > 0.8


def test_the_surer_half_is_chosen_by_rank_at_any_temperature():
    # Rows of class 0 are surer, and there are as many of class 1.
    logits = torch.tensor([[5.0, 0.0]] * 3 + [[0.0, 2.0]] * 3)
    shift = torch.zeros(2, dtype=torch.float64)
    for temperature in (0.5, 1, 20):
        found = presence([logits[:2] / temperature, logits[2:] / temperature], shift)
        assert found.num == 3 and found.shares.tolist() == [1, 0]
    # The shift is subtracted first.
    assert presence([logits], torch.tensor([4.5, 0.0])).shares.tolist() == [0, 1]
