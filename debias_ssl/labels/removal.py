"""Which prior is removed from rows of logits, how much of it, and at which temperature."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from debias_ssl.formulas import priors
from debias_ssl.formulas.logits import finite_log, floored_log
from debias_ssl.formulas.priors import Chunks, Solution
from debias_ssl.labels.debiasing import DebiasConfig, Removal, Rows, pass_over
from debias_ssl.labels.tuning import STRENGTHS, ShiftOf, choose, read_tuning, search
from debias_ssl.system.errors import InputError

# Priors that the rows do not say.
GIVEN = ("none", "content_free")


def find_removal(rows: Rows, config: DebiasConfig, *, is_quiet: bool = False) -> Removal:
    """The prior that a setting names, and how much of it is removed at which temperature.

    Args:
        rows: the logits.
        config: what is removed.
        is_quiet: no progress bars.

    Raises:
        InputError: a number is not finite, or the settings need what is not there.
    """
    if config.prior == "content_free" and rows.blank is None:
        raise InputError("the prior content_free needs the logits of a blank image: give them by --blank FILE")
    supported, notes = supported_by(rows, config)
    tuning = None if rows.tuning is None else read_tuning(rows, config, is_quiet)

    def all_rows(temperature: float) -> Chunks:
        return pass_over(rows, temperature, "prior", is_quiet)

    def shift_at(temperature: float) -> ShiftOf:
        assert tuning is not None
        chunks = tuning.divided(temperature) if tuning.sample else all_rows(temperature)
        return _find_shift(chunks, rows, config, temperature, supported, lambda _: None)[1]

    temperature, strength = config.temperature or 1.0, 1.0 if config.strength is None else config.strength
    if tuning is not None and None in (config.temperature, config.strength):
        if rows.target is None and config.temperature is None:
            chosen = search(tuning, shift_at, config.strength)
        else:
            chosen = choose(tuning, shift_at, config.temperature, config.strength)
        temperature, strength = chosen.temperature, chosen.strength
        notes.extend(chosen.notes())
    in_memory = tuning is not None and tuning.is_whole
    chunks = tuning.divided(temperature) if tuning is not None and in_memory else all_rows(temperature)
    prior, shift_of = _find_shift(chunks, rows, config, temperature, supported, notes.append)
    if tuning is not None and config.strength is None and rows.target is not None:
        # With shares to be estimated, each strength would take many passes.
        strength = min(STRENGTHS, key=lambda tau: tuning.loss(temperature, tau, shift_of(tau)))
    if tuning is not None and config.strength is None and strength == STRENGTHS[-1]:
        notes.append(f"tune_on chose strength {strength:g}, the largest that is tried: another prior may fit better")
    return Removal(
        prior=prior,
        shift=shift_of(strength),
        strength=strength,
        temperature=temperature,
        supported=supported,
        notes=(*rows.notes, *notes),
    )


def supported_by(rows: Rows, config: DebiasConfig) -> tuple[float, list[str]]:
    """How much of what is estimated from the rows is made use of, and what is to be said about it.

    All of it where the strength is given: it is obeyed.
    """
    num_rows, num_classes = len(rows.names), len(rows.classes)
    share = priors.supported_share(num_rows, num_classes)
    if share == 1 or (config.prior in GIVEN and rows.target is not None) or config.strength == 0:
        return 1.0, []
    few = f"{num_rows:,} rows are few to estimate {_estimated(config)} of {num_classes:,} classes from"
    if config.strength is not None:
        return 1.0, [f"{few}: labels may be worse than plain ones; without a given strength less is removed"]
    return share, [
        f"{few}: {share:.0%} of what they say is made use of; it is all of it from "
        f"{priors.ENOUGH_ROWS * num_classes:,} rows on, or with a given strength"
    ]


def _estimated(config: DebiasConfig) -> str:
    return "the shares" if config.prior in GIVEN else "the prior"


def _find_shift(
    chunks: Chunks,
    rows: Rows,
    config: DebiasConfig,
    temperature: float,
    supported: float,
    tell: Callable[[str], None],
) -> tuple[Float[Tensor, " C"], ShiftOf]:
    """The prior q, and the shift as a function of the strength tau.

    tau log q where q balances towards the target; else tau (log q - log target), or tau log q - log pi with pi the
    shares of the rows by expectation maximization, given that the classifier's own prior is softmax(tau log q). Of
    few rows, q and pi are raised to the power `supported`.

    Args:
        chunks: f / T.
        rows: what else is known.
        config: names prior and target.
        temperature: T.
        supported: of the logarithm of what is estimated from the rows.
        tell: takes what is to be known about the result.
    """
    num_classes, target = len(rows.classes), rows.target
    uniform = torch.full((num_classes,), 1 / num_classes, dtype=torch.float64)
    # The logarithm of a uniform target is a constant, which softmax does not see.
    log_target = torch.zeros_like(uniform)
    if target is not None and config.target_prior != "uniform":
        log_target = floored_log(target)
    if config.prior in ("fixed_point", "transport"):
        towards = target if target is not None else _shares(chunks, uniform, tell)
        balance = priors.balancing if config.prior == "fixed_point" else priors.transport
        balanced = balance(chunks, towards)
        if not balanced.is_settled:
            tell(_unsettled(f"the prior {config.prior}", balanced, "the labels' shares miss the target by that much"))
        # Its classes are all possible: cut off, a rare one would stay unbalanced. Of the known target all remains.
        log_q = supported * finite_log(balanced.prior) - (1 - supported) * log_target
        return balanced.prior, lambda strength: strength * log_q
    if config.prior == "none":
        q, log_q = uniform, torch.zeros_like(uniform)
    else:
        q = _estimate(chunks, config, rows.blank, temperature)
        log_q = floored_log(q) if config.prior in GIVEN else supported * floored_log(q)

    def shift_of(strength: float) -> Float[Tensor, " C"]:
        if target is None:
            source = (strength * log_q).softmax(-1)
            return strength * log_q - supported * floored_log(_shares(chunks, source, tell))
        return strength * (log_q - log_target)

    return q, shift_of


def _shares(chunks: Chunks, source: Float[Tensor, " C"], tell: Callable[[str], None]) -> Float[Tensor, " C"]:
    found = priors.expectation_maximization(chunks, source)
    if not found.is_settled:
        tell(_unsettled("the shares of the target em", found, "they are still on their way; give the target as a file"))
    return found.prior


def _unsettled(what: str, found: Solution, meaning: str) -> str:
    return f"{what} did not settle: at the end {found.left:.2%} of the mass was in motion; {meaning}"


def _estimate(
    chunks: Chunks, config: DebiasConfig, blank: Float[Tensor, "K C"] | None, temperature: float
) -> Float[Tensor, " C"]:
    match config.prior:
        case "momentum":
            return priors.running_mean(chunks, config.momentum)
        case "confidence":
            return priors.confidence_weighted(chunks)
        case "stationary":
            return priors.stationary(chunks)
        case "centering":
            return priors.centering(chunks)
        case "content_free":
            assert blank is not None
            return priors.content_free(blank / temperature)
        case _:
            return priors.mean_probs(chunks)
