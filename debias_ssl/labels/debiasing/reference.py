"""A reference: rows in which the classes are about equally frequent, and the class preference measured on them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from debias_ssl.formulas.logits import finite_log
from debias_ssl.formulas.shares import balancing_draws, bootstrap_weights
from debias_ssl.labels.debiasing.estimates import BALANCED, GIVEN, PriorName, balanced, estimated, uniform
from debias_ssl.labels.debiasing.preference import Preference
from debias_ssl.labels.debiasing.rows import Rows
from debias_ssl.labels.debiasing.sample import read_sample
from debias_ssl.system.errors import InputError

# Bootstrap draws, and the largest numbers of rows and of values for them.
DRAWS, DRAWN_ROWS, DRAWN_NUMBERS = 200, 2**14, 2**24
SEED = 1


@dataclass(frozen=True, kw_only=True)
class ReferenceRows:
    """Rows to measure a preference on."""

    classes: tuple[str, ...]
    num_rows: int
    made_with: Mapping[str, str]
    """As in `Preference`."""
    sample: Sequence[Float[Tensor, "_ C"]]
    """Logits of the rows, or of some of them."""

    def at(self, estimate: PriorName, momentum: float, temperature: float) -> Preference:
        """The preference at a temperature, without draws.

        Raises:
            InputError: the estimate is none of rows.
        """
        if estimate in GIVEN:
            raise InputError(
                f"the prior {estimate} is not measured on reference rows: leave out --reference, or --prior"
            )
        chunks, notes = [logits / temperature if temperature != 1 else logits for logits in self.sample], ()
        if estimate in BALANCED:
            solution = balanced(chunks, estimate, uniform(len(self.classes)))
            prior = solution.prior
            if not solution.is_settled:
                notes = (f"the prior {estimate} of the reference did not converge: {solution.left:.2%} are left",)
        else:
            prior = estimated(chunks, estimate, momentum, None)
        return Preference(
            classes=self.classes,
            made_with=self.made_with,
            estimate=estimate,
            temperature=temperature,
            num_rows=self.num_rows,
            log_prior=finite_log(prior.double()).log_softmax(-1),
            draws=torch.empty(0, len(self.classes), dtype=torch.float64),
            notes=notes,
        )

    def with_draws(self, preference: Preference) -> Preference:
        """A preference of these rows with bootstrap draws of them; only `fixed_point` has any."""
        if preference.estimate != "fixed_point":
            return preference
        probs, narrower = drawn_probs(self.sample, preference.temperature, self.num_rows)
        point = preference.log_prior
        draws = balancing_draws(probs, bootstrap_weights(len(probs), DRAWS, SEED), point)
        return replace(preference, draws=(point + narrower * (draws - point)).log_softmax(-1))


def read_reference(rows: Rows, made_with: Mapping[str, str], is_quiet: bool) -> ReferenceRows:
    """Reads the rows of a reference, all or some of them, into memory.

    Raises:
        InputError: a number is not finite.
    """
    sample = read_sample(rows, "reference", is_quiet)
    return ReferenceRows(classes=rows.classes, num_rows=len(rows.names), made_with=made_with, sample=sample)


def drawn_probs(
    sample: Sequence[Float[Tensor, "_ C"]], temperature: float, num_rows: int
) -> tuple[Float[Tensor, "m C"], float]:
    """softmax(f / T) of the m rows that bootstrap draws are of, at most some, and sqrt(m / N) for all N rows."""
    logits = torch.cat([*sample])
    most = min(DRAWN_ROWS, max(1, DRAWN_NUMBERS // logits.shape[1]))
    if len(logits) > most:
        # Evenly over all rows, as neighbors may be alike.
        logits = logits[torch.arange(most) * len(logits) // most]
    return (logits / temperature).softmax(-1), math.sqrt(len(logits) / num_rows)
