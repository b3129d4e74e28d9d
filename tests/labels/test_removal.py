"""What is removed: as much as the rows support, at a temperature and a strength that fit each other, in few passes."""

from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from debias_ssl.formulas import priors
from debias_ssl.formulas.calibration import expected_calibration_error, fit_temperature, negative_log_likelihood
from debias_ssl.labels.debiasing import tuning
from debias_ssl.labels.debiasing.config import DebiasConfig
from debias_ssl.labels.debiasing.estimates import PriorName
from debias_ssl.labels.debiasing.removal import find_removal
from debias_ssl.labels.debiasing.rows import Removal, Rows
from debias_ssl.labels.tables.truth import RowNumbers

OF_ROWS = [name for name in get_args(PriorName) if name not in ("none", "content_free")]


class Counted:
    """Chunks that know how often they were gone through."""

    def __init__(self, logits: Tensor, size: int = 1000):
        self.chunks, self.passes = logits.split(size), 0

    def __iter__(self) -> Iterator[Tensor]:
        self.passes += 1
        return iter(self.chunks)


def made(num: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Calibrated logits of ten classes, and true classes; then a preference of 0 to 6 is added."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num, 10, generator=generator)
    truth = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
    return logits + torch.linspace(0, 6, 10), truth


def remove(
    logits: Any, num: int, truth: Tensor | None = None, num_tuned: int = 0, target: Any = "uniform", **settings: Any
) -> Removal:
    shares = torch.full((10,), 0.1, dtype=torch.float64) if isinstance(target, str) else target
    labels = None if truth is None or not num_tuned else np.where(np.arange(num) < num_tuned, truth.numpy(), -1)
    rows = Rows(
        chunks=logits if isinstance(logits, Counted) else [logits],
        names=RowNumbers(num),
        classes=tuple("abcdefghij"),
        target=None if target == "em" else shares,
        tuning=labels,
        blank=torch.zeros(1, 10),
    )
    told = target if isinstance(target, str) else "shares.json"
    return find_removal(rows, DebiasConfig(target_prior=told, **settings), is_quiet=True)


def left(logits: Tensor, removal: Removal) -> Tensor:
    return logits.double() / removal.temperature - removal.shift


# A single fit to 100 labels has a standard error of a tenth of the temperature: the mean over some of them is judged.
@pytest.mark.parametrize(
    ("prior", "num_tuned", "num_seeds"),
    [("stationary", 100, 8), ("fixed_point", 100, 8), ("stationary", 300, 4), ("stationary", 1000, 2)],
)
def test_confidences_are_right_after_tuning_on_logits_with_a_preference(prior: str, num_tuned: int, num_seeds: int):
    errors = []
    for seed in range(num_seeds):
        logits, truth = made(10_000, seed)
        removal = remove(logits, 10_000, truth, num_tuned, prior=prior)
        confidence, label = left(logits, removal).softmax(-1)[num_tuned:].max(-1)
        errors.append(expected_calibration_error(confidence, label == truth[num_tuned:]).item())
    assert np.mean(errors) < 0.04


def test_temperature_and_strength_are_those_of_the_smallest_loss_after_the_shift():
    logits, truth = made(2000)
    removal = remove(5 * logits, 2000, truth, 200, prior="centering")

    def loss(temperature: float, strength: float) -> float:
        shift = strength * priors.centering([5 * logits / temperature]).log()
        entropy = negative_log_likelihood(5 * logits[:200].double() / temperature - shift, truth[:200]).item()
        # A Cauchy and a normal density around 1.
        return entropy + (np.log(1 + 4 * np.log(temperature) ** 2) + 2 * (strength - 1) ** 2) / 200

    least = min(loss(t, step / 10) for t in np.geomspace(1, 25, 60) for step in range(21))
    assert loss(removal.temperature, removal.strength) < least + 1e-3
    # No other temperature of the debiased logits would be better.
    assert fit_temperature(left(5 * logits, removal)[:200], truth[:200]) == pytest.approx(1, abs=0.02)


def test_logits_in_another_unit_have_the_temperature_in_that_unit():
    logits, truth = made(2000)
    one, other = (remove(scale * logits, 2000, truth, 300) for scale in (1, 20))
    assert other.temperature / 20 == pytest.approx(one.temperature, rel=0.02)
    assert other.strength == pytest.approx(one.strength, abs=0.11)


@pytest.mark.parametrize(
    ("settings", "in_memory", "most"),
    [
        ({"prior": "stationary"}, True, 1),
        ({"prior": "transport"}, True, 1),
        ({"prior": "stationary", "target": "em"}, True, 1),
        ({"prior": "stationary"}, False, 1 + tuning.MOST_ROUNDS + 1),
        ({"prior": "transport"}, False, 60),
        # One, and those of a single estimate of the shares, not of one for each strength and temperature.
        ({"prior": "content_free", "target": "em"}, False, 101),
    ],
)
def test_tuning_takes_few_passes(settings: dict[str, Any], in_memory: bool, most: int, monkeypatch):
    if not in_memory:
        monkeypatch.setattr(tuning, "SAMPLE_NUMBERS", 5000)
    logits, truth = made(1200)
    chunks = Counted(logits, 500)
    remove(chunks, 1200, truth, 100, **settings)
    assert chunks.passes <= most


def test_a_prior_of_one_pass_is_tuned_on_all_rows_and_others_on_a_sample(monkeypatch):
    logits, truth = made(3000)
    whole = {prior: remove(logits, 3000, truth, 300, prior=prior) for prior in ("stationary", "fixed_point")}
    monkeypatch.setattr(tuning, "SAMPLE_NUMBERS", 20_000)
    part = {prior: remove(logits, 3000, truth, 300, prior=prior) for prior in ("stationary", "fixed_point")}
    assert part["stationary"].temperature == pytest.approx(whole["stationary"].temperature, rel=1e-6)
    assert part["fixed_point"].temperature == pytest.approx(whole["fixed_point"].temperature, rel=0.05)
    # What is removed in the end is the prior of all rows.
    q = priors.balancing([logits / part["fixed_point"].temperature], torch.full((10,), 0.1, dtype=torch.float64)).prior
    torch.testing.assert_close(part["fixed_point"].prior, q, rtol=1e-6, atol=0)


def test_limits_of_the_search_are_told():
    logits, truth = made(500)
    sure = remove(10 * torch.eye(10)[truth], 500, truth, 20)
    assert any("is a guess near 1: the rows of tune_on are all right" in note for note in sure.notes)
    strong = remove(logits, 500, truth, 200, prior="momentum")
    assert strong.strength == 2 and any("strength 2, the largest" in note for note in strong.notes)
    given = remove(logits, 500, truth, 200, temperature=1.0, strength=2.0)
    assert not given.notes


def test_few_rows_stay_near_what_is_expected_and_many_say_all():
    logits, truth = made(4000)
    sure = remove(10 * torch.eye(10)[truth], 4000, truth, 20)
    assert 0.5 < sure.temperature < 2 and sure.strength == pytest.approx(1, abs=0.3)
    # What the rows alone would say is reached as there are more of them.
    away = []
    for number in (20, 200, 4000):
        removal = remove(3 * logits, 4000, truth, number, strength=1.0)
        alone = fit_temperature(left(3 * logits, removal)[:number], truth[:number])
        away.append(abs(np.log(alone)))
    assert away[0] < 0.15 and away[1] < 0.02 and away[2] < 0.001
    assert tuning.surprise(1.0, 1.0) == 0
    assert tuning.surprise(np.e, 1.5) == pytest.approx(np.log(5) + 0.5)


def test_shares_that_did_not_settle_are_told():
    logits, _ = made(500)
    assert any(
        "shares of the classes did not converge" in note
        for note in remove(0.1 * logits, 500, target="em", prior="none").notes
    )
    assert not remove(logits, 500, target="em", prior="content_free", strength=1.0).notes


def test_supported_share_of_worked_examples():
    found = [priors.supported_share(num, 10) for num in (0, 1, 10, 30, 99, 100, 101, 10_000)]
    assert found == pytest.approx([0, 1.2 / 21, 0.4, 0.72, 1.2 * 99 / 119, 1, 1, 1])
    assert found[4] < 1 == found[5] == found[6]


@pytest.mark.parametrize("prior", OF_ROWS)
def test_one_row_keeps_its_label(prior: str):
    for row in made(20)[0]:
        removal = remove(row[None], 1, prior=prior)
        assert left(row, removal).argmax() == row.argmax()
        # A tie of all classes, as without it, is far.
        plain, debiased = (f.softmax(-1).max() for f in (row.double(), left(row, removal)))
        assert debiased > 0.8 * plain
        assert any("1 rows are few to estimate the prior of 10 classes" in note for note in removal.notes)


def test_few_rows_remove_a_part_and_enough_rows_all():
    logits, _ = made(100)
    for num, share in ((30, 0.72), (99, 1.2 * 99 / 119), (100, 1)):
        removal = remove(logits[:num], num)
        torch.testing.assert_close(removal.shift, share * removal.prior.log())
        assert removal.supported == share and len(removal.notes) == (share < 1)
    assert torch.equal(remove(logits, 100).shift, remove(logits, 100, strength=1.0).shift)


def test_a_given_strength_is_obeyed_and_few_rows_are_told_all_the_same():
    logits, _ = made(3)
    removal = remove(logits, 3, strength=1.0)
    torch.testing.assert_close(removal.shift, removal.prior.log())
    assert removal.supported == 1 and "labels may be worse than plain ones" in removal.notes[0]
    assert not remove(logits, 3, strength=0.0).notes


@pytest.mark.parametrize("prior", ["marginal", "fixed_point"])
def test_of_few_rows_a_known_target_stays_whole(prior: str):
    logits, _ = made(10)
    target = torch.arange(1, 11, dtype=torch.float64) / 55
    removal = remove(logits, 10, target=target, prior=prior)
    preference = removal.prior.log() + (target.log() if prior == "fixed_point" else 0)
    torch.testing.assert_close(removal.shift, 0.4 * preference - target.log())


@pytest.mark.parametrize("prior", ["none", "content_free"])
def test_what_the_rows_do_not_say_does_not_depend_on_their_number(prior: str):
    logits, _ = made(3)
    removal = remove(logits, 3, prior=prior)
    assert removal.supported == 1 and not removal.notes
    # Shares that are estimated from them do.
    one = remove(logits[:1], 1, prior=prior, target="em")
    shares = priors.expectation_maximization([logits[:1]], torch.full((10,), 0.1, dtype=torch.float64)).prior
    # But for a constant, which softmax does not see.
    expected = -1.2 / 21 * ((shares + 0.5) / 6).log()
    torch.testing.assert_close(one.shift - one.shift.mean(), expected - expected.mean())
    assert "the shares of 10 classes" in one.notes[0]
