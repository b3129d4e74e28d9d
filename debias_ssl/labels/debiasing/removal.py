"""Decides which prior is removed from rows of logits, at which strength, and at which temperature."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from debias_ssl.formulas import priors, shares
from debias_ssl.formulas.logits import finite_log, floored_log
from debias_ssl.formulas.presence import Presence, presence
from debias_ssl.formulas.priors import Chunks, Solution
from debias_ssl.formulas.shares import Shares
from debias_ssl.labels.debiasing.config import DebiasConfig
from debias_ssl.labels.debiasing.estimates import BALANCED, GIVEN, balanced, estimated, uniform
from debias_ssl.labels.debiasing.preference import Preference
from debias_ssl.labels.debiasing.reference import DRAWS, drawn_probs
from debias_ssl.labels.debiasing.rows import Removal, Rows, pass_over
from debias_ssl.labels.debiasing.sample import read_sample
from debias_ssl.labels.debiasing.tuning import STRENGTHS, ShiftOf, Tuning, choose, read_tuning, search
from debias_ssl.system.errors import InputError

# Of the bootstrap draws of the rows.
SEED = 2


def find_removal(rows: Rows, config: DebiasConfig, *, is_quiet: bool = False) -> Removal:
    """The prior that a setting names, and how much of it is removed at which temperature.

    Args:
        rows: the logits.
        config: what is removed.
        is_quiet: no progress bars.

    Raises:
        InputError: a number is not finite, or the settings need what is not there.
    """
    if config.estimate == "content_free" and rows.blank is None and rows.reference is None:
        raise InputError("the prior content_free needs the logits of a blank image: pass them with --blank FILE")
    supported, notes = supported_by(rows, config)
    tuning = None if rows.tuning is None else read_tuning(rows, config, is_quiet)
    source = _source_of(rows, tuning, _is_cautious(rows, config), is_quiet)

    def shift_at(temperature: float) -> ShiftOf:
        return _find_shift(source.seen(temperature, in_sample=True), rows, config, supported, lambda _: None).shift_of

    temperature, strength = config.temperature or 1.0, 1.0 if config.strength is None else config.strength
    if tuning is not None and None in (config.temperature, config.strength):
        if rows.target is None and config.temperature is None:
            chosen = search(tuning, shift_at, config.strength)
        else:
            chosen = choose(tuning, shift_at, config.temperature, config.strength)
        temperature, strength = chosen.temperature, chosen.strength
        notes.extend(chosen.notes())
    seen = source.seen(temperature)
    found = _find_shift(seen, rows, config, supported, notes.append)
    if tuning is not None and config.strength is None and rows.target is not None:
        # With shares to be estimated, each strength would take many passes.
        strength = min(STRENGTHS, key=lambda tau: tuning.loss(temperature, tau, found.shift_of(tau)))
    if tuning is not None and config.strength is None and strength == STRENGTHS[-1]:
        notes.append(f"tune_on chose strength {strength:g}, the largest value tried: another prior may fit better")
    shift, sure, preference = found.shift_of(strength), None, found.preference
    if _is_cautious(rows, config):
        sure = presence(seen.sample, shift)
        shift = sure.cautious(shift)
        notes.extend(_caution(sure))
    if preference is not None and rows.reference is not None:
        preference = rows.reference.with_draws(preference)
    return Removal(
        prior=found.prior,
        shift=shift,
        strength=strength,
        temperature=temperature,
        supported=supported,
        shares=_shares_with_intervals(seen, found, strength, preference) if rows.target is None else None,
        presence=sure,
        preference=preference,
        notes=(*rows.notes, *notes),
    )


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """The rows at a temperature: f / T."""

    chunks: Chunks
    sample: Sequence[Float[Tensor, "_ C"]]
    """All rows, or some where they are many, in memory; none where nobody needs them."""
    temperature: float
    num_rows: int


@dataclass(frozen=True, kw_only=True)
class _Source:
    """The rows, of which all or some are in memory."""

    rows: Rows
    sample: Sequence[Float[Tensor, "_ C"]]
    is_whole: bool
    """Whether the rows in memory are all, so that a prior is found on them."""
    is_quiet: bool

    def seen(self, temperature: float, *, in_sample: bool = False) -> _Seen:
        """The rows at a temperature; a prior is found on all of them, or on those in memory."""
        sample = self.sample if temperature == 1 else [logits / temperature for logits in self.sample]
        chunks = sample
        if not sample or not (in_sample or self.is_whole):
            chunks = pass_over(self.rows, temperature, "prior", self.is_quiet)
        return _Seen(chunks=chunks, sample=sample, temperature=temperature, num_rows=len(self.rows.names))


def _source_of(rows: Rows, tuning: Tuning | None, is_cautious: bool, is_quiet: bool) -> _Source:
    if tuning is not None:
        return _Source(rows=rows, sample=tuning.sample, is_whole=tuning.is_whole, is_quiet=is_quiet)
    needed = rows.target is None or is_cautious
    sample = read_sample(rows, "sample", is_quiet) if needed else []
    return _Source(rows=rows, sample=sample, is_whole=sum(map(len, sample)) == len(rows.names), is_quiet=is_quiet)


def _is_cautious(rows: Rows, config: DebiasConfig) -> bool:
    """Whether classes may be absent, of which nobody knows: a given or tuned strength is obeyed."""
    is_free = config.strength is None and rows.tuning is None
    return config.target_prior == "auto" and rows.reference is None and config.estimate not in GIVEN and is_free


def _caution(sure: Presence) -> list[str]:
    """The note for users if less is removed."""
    if sure.removed == 1:
        return []
    num = len(sure.shares)
    return [
        f"the more confident half of the labels is spread over about {sure.spread * num:.1f} of {num:,} classes, "
        f"so some classes may be missing: {sure.removed:.0%} of the class bias is removed. If all classes are "
        "about equally frequent, pass target_prior uniform; if not, pass a reference: other images or "
        "predictions, of all classes"
    ]


def supported_by(rows: Rows, config: DebiasConfig) -> tuple[float, list[str]]:
    """How much of what is estimated from the rows is made use of, and what is to be said about it.

    All of it where the strength is given, as it is obeyed, and of a preference that other rows show.
    """
    num_rows, num_classes = len(rows.names), len(rows.classes)
    share = priors.supported_share(num_rows, num_classes)
    is_known = rows.reference is not None or (config.estimate in GIVEN and rows.target is not None)
    if share == 1 or is_known or config.strength == 0:
        return 1.0, []
    few = f"{num_rows:,} rows are few to estimate {_estimated(config)} of {num_classes:,} classes"
    if config.strength is not None:
        return 1.0, [f"{few}: labels may be worse than plain ones; leave out strength to remove less"]
    return share, [
        f"{few}: {share:.0%} of the estimate is removed; all of it is removed with "
        f"{priors.ENOUGH_ROWS * num_classes:,} rows or more, or with a given strength"
    ]


def _estimated(config: DebiasConfig) -> str:
    return "the shares" if config.estimate in GIVEN else "the prior"


@dataclass(frozen=True, kw_only=True)
class _Found:
    """The prior q, what it is from, and the shift as a function of the strength tau."""

    prior: Float[Tensor, " C"]
    log_own: Float[Tensor, " C"]
    """log q of the classifier itself, whatever the target is."""
    shift_of: ShiftOf
    preference: Preference | None = None


def _find_shift(seen: _Seen, rows: Rows, config: DebiasConfig, supported: float, tell: Callable[[str], None]) -> _Found:
    """The prior q, and the shift as a function of the strength tau.

    tau log q where q balances the rows towards the target; else tau (log q - log target), or tau log q - log pi with pi
    the shares of the rows by expectation maximization, given that the classifier's own prior is softmax(tau log q). Of
    few rows, q and pi are raised to the power `supported`.

    Args:
        seen: f / T.
        rows: what else is known.
        config: names prior and target.
        supported: of the logarithm of what is estimated from the rows.
        tell: takes what is to be known about the result.
    """
    num_classes, target, estimate = len(rows.classes), rows.target, config.estimate
    # The logarithm of a uniform target is a constant, which softmax does not see.
    log_target = torch.zeros(num_classes, dtype=torch.float64)
    if target is not None and config.target_prior not in ("auto", "uniform"):
        log_target = floored_log(target)
    preference = None
    if rows.reference is not None:
        preference = rows.reference.at(estimate, config.momentum, seen.temperature)
        q, log_q = preference.log_prior.softmax(-1), preference.supported * preference.log_prior
        for note in _of_reference(preference):
            tell(note)
    elif estimate in BALANCED:
        towards = target
        if towards is None:
            towards = _target_of(_shares(seen, uniform(num_classes), tell), config, seen.num_rows)
        solution = balanced(seen.chunks, estimate, towards)
        if not solution.is_settled:
            tell(
                _unsettled(
                    f"the prior {estimate}",
                    solution,
                    "the class shares of the labels differ from the target by that much",
                )
            )
        # Its classes are all possible: cut off, a rare one would stay unbalanced. Of the known target all remains.
        log_q = supported * finite_log(solution.prior) - (1 - supported) * log_target
        return _Found(prior=solution.prior, log_own=torch.zeros_like(log_q), shift_of=lambda strength: strength * log_q)
    elif estimate == "none":
        q, log_q = uniform(num_classes), torch.zeros(num_classes, dtype=torch.float64)
    else:
        blank = None if rows.blank is None else rows.blank / seen.temperature
        q = estimated(seen.chunks, estimate, config.momentum, blank)
        log_q = floored_log(q) if estimate in GIVEN else supported * floored_log(q)

    def shift_of(strength: float) -> Float[Tensor, " C"]:
        if target is None:
            pi = _shares(seen, (strength * log_q).softmax(-1), tell)
            return strength * log_q - supported * _target_of(pi, config, seen.num_rows).log()
        return strength * (log_q - log_target)

    return _Found(prior=q, log_own=log_q, shift_of=shift_of, preference=preference)


def _of_reference(preference: Preference) -> list[str]:
    notes = [*preference.notes]
    if preference.supported < 1:
        notes.append(
            f"the reference has {preference.num_rows:,} rows, which are few for {len(preference.classes):,} "
            f"classes: {preference.supported:.0%} of the measured bias is removed"
        )
    return notes


def _target_of(pi: Float[Tensor, " C"], config: DebiasConfig, num_rows: int) -> Float[Tensor, " C"]:
    """What the labels are to follow, of estimated shares."""
    return shares.present(pi) if config.target_prior == "present" else shares.smoothed(pi, num_rows)


def _shares(seen: _Seen, source: Float[Tensor, " C"], tell: Callable[[str], None]) -> Float[Tensor, " C"]:
    found = priors.expectation_maximization(seen.sample, source)
    if not found.is_settled:
        tell(_unsettled("the shares of the classes", found, "they had not converged; pass the target as a file"))
    return found.prior


def _shares_with_intervals(seen: _Seen, found: _Found, strength: float, preference: Preference | None) -> Shares:
    """The shares of the classes among the rows, with intervals by draws of the rows, and of those of the reference."""
    log_source = (strength * found.log_own).log_softmax(-1)
    point = priors.expectation_maximization(seen.sample, log_source.exp()).prior
    probs, narrower = drawn_probs(seen.sample, 1.0, seen.num_rows)
    sources = log_source.expand(DRAWS, -1)
    if preference is not None and len(preference.draws):
        sources = strength * preference.supported * preference.draws
    weights = shares.bootstrap_weights(len(probs), len(sources), SEED)
    draws = shares.share_draws(probs, weights, sources.log_softmax(-1), point)
    low, high = shares.interval(draws, point, narrower)
    # Less than half a row is nothing, and even of a class without any row the share may be this much (Clopper-Pearson).
    low = torch.where(low * seen.num_rows < 0.5, 0.0, low)
    high = high.clamp(min=1 - shares.ENDS[0] ** (1 / seen.num_rows))
    return Shares(share=point.numpy(), low=low.numpy(), high=high.numpy())


def _unsettled(what: str, found: Solution, meaning: str) -> str:
    return f"{what} did not converge: in the last round {found.left:.2%} of the mass moved; {meaning}"
