"""Votes of made classifiers: temperatures, preferences, and what is known of members without labels."""

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from debias_ssl.labels.debiasing.config import DebiasConfig
from debias_ssl.labels.debiasing.rows import Rows
from debias_ssl.labels.tables.truth import RowNumbers
from debias_ssl.labels.voting.member_figures import CRITERIA, criteria_of, lines_of, members_summary, members_table
from debias_ssl.labels.voting.votes import ballots_of, voted

NUM, NUM_CLASSES = 1200, 4
STANDARD = DebiasConfig()
CLASSES = ("a", "b", "c", "d")


def made(seed: int, noise: float, truth: Tensor, preference: float = 0.0) -> Tensor:
    """Logits of a classifier: the truth, noise, and more of the first class."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.eye(NUM_CLASSES)[truth] + noise * torch.randn(NUM, NUM_CLASSES, generator=generator)
    return logits + preference * torch.tensor([1.0, 0.0, 0.0, 0.0])


@pytest.fixture(scope="module")
def truth() -> Tensor:
    return torch.arange(NUM) % NUM_CLASSES


def rows_of(logits: Tensor) -> Rows:
    target = torch.full((NUM_CLASSES,), 1 / NUM_CLASSES, dtype=torch.float64)
    return Rows(chunks=logits.split(500), names=RowNumbers(len(logits)), classes=CLASSES, target=target)


def labels_of(several: list[Tensor], config: DebiasConfig = STANDARD) -> tuple[np.ndarray, np.ndarray]:
    """Shares of plain and of debiased votes."""
    electors = [rows_of(logits) for logits in several]
    rows, _ = voted(electors[0], ballots_of(electors, config), ["m"] * len(several), config.strength)
    assert rows.posterior is not None
    return torch.cat([*rows.chunks]).softmax(-1).numpy(), rows.posterior[:]


def accuracy(shares: np.ndarray, truth: Tensor) -> float:
    return float((shares.argmax(1) == truth.numpy()).mean())


@pytest.mark.parametrize("factors", [(100.0, 1.0, 1.0), (0.01, 4.0, 0.37), (1 / 64, 1024.0, 3.0)])
def test_temperatures_of_members_have_no_part_in_votes(factors: tuple[float, ...], truth):
    several = [made(seed, 0.5, truth, 0.4) for seed in range(3)]
    scaled = [factor * logits for factor, logits in zip(factors, several, strict=True)]
    (plain, debiased), (plain_scaled, debiased_scaled) = labels_of(several), labels_of(scaled)
    # Bit for bit.
    assert (plain == plain_scaled).all()
    assert (debiased == debiased_scaled).all()
    assert (plain.argmax(1) != debiased.argmax(1)).any()
    # With two members most rows that they do not agree in are ties.
    (plain, debiased), (plain_scaled, debiased_scaled) = labels_of(several[:2]), labels_of(scaled[:2])
    assert (plain == plain_scaled).all() and (debiased == debiased_scaled).all()


def test_an_overconfident_member_spoils_the_mean_of_probabilities_and_not_the_votes(truth):
    several = [made(0, 0.5, truth), made(1, 0.5, truth), 50 * made(2, 1.5, truth)]
    mean = torch.stack([logits.softmax(-1) for logits in several]).mean(0).numpy()
    plain, debiased = labels_of(several)
    alone = [accuracy(logits.numpy(), truth) for logits in several]
    assert alone[2] < 0.6 < min(alone[:2])
    assert accuracy(mean, truth) < 0.62
    assert accuracy(plain, truth) > accuracy(mean, truth) + 0.1
    assert accuracy(debiased, truth) > accuracy(mean, truth) + 0.1


def test_what_all_members_prefer_is_removed_before_they_vote(truth):
    several = [made(seed, 0.5, truth, 0.8) for seed in range(3)]
    plain, debiased = labels_of(several, DebiasConfig(strength=1.0))
    assert accuracy(debiased, truth) > accuracy(plain, truth) + 0.05
    same, none = labels_of(several, DebiasConfig(prior="none"))
    assert (same.argmax(1) == plain.argmax(1)).all() and (none.argmax(1) == plain.argmax(1)).all()
    np.testing.assert_allclose(none, plain, atol=1e-6)


def test_a_tie_goes_to_the_member_that_is_surer_of_this_row_than_of_others(truth):
    one, other = made(0, 0.5, truth), made(1, 0.5, truth)
    plain, _ = labels_of([one, other])
    gaps = [(logits.topk(2).values @ torch.tensor([1.0, -1.0])).argsort().argsort() for logits in (one, other)]
    labels = [logits.argmax(-1) for logits in (one, other)]
    expected = torch.where(gaps[0] >= gaps[1], *labels)
    assert (labels[0] != labels[1]).sum() > 100
    # Where ranks are equal, the earlier class wins.
    differs = (torch.from_numpy(plain.argmax(1)) != expected) & (gaps[0] != gaps[1])
    assert not differs.any()


def test_tuned_rows_set_the_temperature_of_each_member(truth):
    tuning = np.where(np.arange(NUM) < 100, truth.numpy(), -1)
    electors = [replace(rows_of(factor * made(0, 0.5, truth)), tuning=tuning) for factor in (1.0, 10.0)]
    temperatures = [ballot.removal.temperature for ballot in ballots_of(electors, DebiasConfig())]
    assert temperatures[1] > 5 * temperatures[0]
    given = ballots_of(electors, DebiasConfig(temperature=2.0))
    assert [ballot.removal.temperature for ballot in given] == [2.0, 2.0]


# -- what is known of members without labels


def test_predictions_that_are_the_clusters_of_the_features_are_the_best_there_are(truth):
    vectors = torch.eye(NUM_CLASSES)[truth] * 10 + torch.randn(NUM, 4, generator=torch.Generator().manual_seed(0))
    found: dict[str, Any] = criteria_of(5 * torch.eye(NUM_CLASSES)[truth], vectors)
    assert [found[name] for name in ("ami", "ari", "v_measure", "fmi")] == [pytest.approx(1)] * 4
    wrong: dict[str, Any] = criteria_of(
        5 * torch.eye(NUM_CLASSES)[truth.roll(1).where(torch.arange(NUM) % 3 > 0, truth)], vectors
    )
    assert all(wrong[name] < found[name] for name in ("ami", "ari", "v_measure", "fmi", "chi"))
    assert wrong["rank_me"] == found["rank_me"]


def test_a_member_that_says_one_class_alone_has_figures_too(truth):
    vectors = torch.randn(NUM, 3, generator=torch.Generator().manual_seed(0))
    found: dict[str, Any] = criteria_of(torch.tensor([[9.0, 0, 0, 0]]).expand(NUM, -1), vectors)
    assert found["chi"] == found["ami"] == 0 and all(np.isfinite(value) for value in found.values())
    same: dict[str, Any] = criteria_of(made(0, 0.5, truth), torch.ones(NUM, 3))
    assert all(np.isfinite(value) for value in same.values())


def test_ranks_are_over_criteria_that_all_members_have(truth):
    several = [made(0, 0.2, truth), made(1, 1.5, truth)]
    ballots = ballots_of([rows_of(logits) for logits in several], DebiasConfig())
    vectors = torch.eye(NUM_CLASSES)[truth] + 0.1 * torch.randn(NUM, 4, generator=torch.Generator().manual_seed(0))
    labels = truth.numpy()
    criteria = [criteria_of(logits, vectors) for logits in several]
    entries = members_summary(["good", "bad"], ballots, criteria, labels, labels, NUM_CLASSES)
    assert entries[0]["mean_rank"] < entries[1]["mean_rank"]
    assert entries[0]["plain"]["accuracy"] == entries[0]["agreement"] > entries[1]["plain"]["accuracy"]
    table = members_table(entries)
    assert table[0] == ["", "accuracy", "min recall", "agreement", *CRITERIA.values(), "mean rank"]
    assert table[1][-1].endswith("*") and not table[2][-1].endswith("*")
    assert len({len(line) for line in lines_of(table).splitlines()}) == 1
    # Of a matrix there are no features: BNM alone is left to rank by, for both.
    criteria = [criteria_of(several[0], vectors), criteria_of(several[1], None)]
    entries = members_summary(["good", "bad"], ballots, criteria, labels, np.full(NUM, -1), NUM_CLASSES)
    assert {entry["mean_rank"] for entry in entries} == {1.0, 2.0} and "plain" not in entries[0]
    assert members_table(entries)[2][2] == "-"


def test_shares_of_all_rows_and_classes_are_not_in_memory():
    """Votes take some numbers of each row, however many classes there are."""
    number, num_classes = 3000, 100
    logits = [torch.randn(number, num_classes, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    target = torch.full((num_classes,), 1 / num_classes, dtype=torch.float64)
    electors = [
        Rows(
            chunks=each.split(500), names=RowNumbers(number), classes=tuple(map(str, range(num_classes))), target=target
        )
        for each in logits
    ]
    ballots = ballots_of(electors, STANDARD)
    tracemalloc.start()
    rows, _ = voted(electors[0], ballots, ["a", "b"], STANDARD.strength)
    assert rows.posterior is not None and rows.posterior[10:20].shape == (10, num_classes)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < number * num_classes
    whole = np.concatenate([rows.posterior[first : first + 7] for first in range(0, number, 7)])
    assert (whole == rows.posterior[:]).all() and np.allclose(whole.sum(1), 1, atol=1e-6)
