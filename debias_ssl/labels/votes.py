"""Labels by the votes of several classifiers, before and after the preference of each is removed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from debias_ssl.formulas.logits import SMALLEST_PROBABILITY
from debias_ssl.formulas.votes import ranked, vote, vote_shares
from debias_ssl.labels.config import DebiasConfig
from debias_ssl.labels.debiasing import Removal, Rows, rows_of_chunk
from debias_ssl.labels.removal import find_removal


@dataclass(frozen=True, kw_only=True)
class Ballot:
    """What one classifier votes of all rows."""

    plain: Int64[np.ndarray, " N"]
    plain_sureness: Float64[np.ndarray, " N"]
    """Of softmax(f)."""
    label: Int64[np.ndarray, " N"]
    sureness: Float64[np.ndarray, " N"]
    """Without its preference."""
    removal: Removal


@dataclass(frozen=True, kw_only=True)
class ShareLogits:
    """Shares of votes as logits, in chunks: their softmax are the shares."""

    shares: Float32[np.ndarray, "N C"]

    def __iter__(self) -> Iterator[Float[Tensor, "n C"]]:
        step = rows_of_chunk(self.shares.shape[1])
        for first in range(0, len(self.shares), step):
            yield torch.from_numpy(self.shares[first : first + step]).clamp(min=SMALLEST_PROBABILITY).log()


def ballot_of(rows: Rows, config: DebiasConfig) -> Ballot:
    """The votes of a classifier, and those without what it prefers.

    Args:
        rows: its logits.
        config: what is removed.

    Raises:
        InputError: a number is not finite, or the settings need what is not there.
    """
    removal = find_removal(rows, config)
    columns: list[list[Tensor]] = [[], [], [], []]
    for logits in rows.chunks:
        debiased = logits / removal.temperature - removal.shift.to(logits.dtype)
        for column, part in zip(columns, (*vote(logits), *vote(debiased)), strict=True):
            column.append(part)
    plain, plain_gap, label, gap = (torch.cat(column).numpy() for column in columns)
    return Ballot(plain=plain, plain_sureness=ranked(plain_gap), label=label, sureness=ranked(gap), removal=removal)


def voted(rows: Rows, ballots: Sequence[Ballot], names: Sequence[str], strength: float | None) -> tuple[Rows, Removal]:
    """The rows as their voters have them: logits are those of plain votes, and labels are of the debiased votes.

    Args:
        rows: of any voter; all but its logits is kept.
        ballots: of the voters.
        names: of the voters, for notes.
        strength: that was given.

    Returns:
        The rows, and what was removed from the voters in the mean.
    """
    num_classes = len(rows.classes)
    plain, label = (
        vote_shares(
            np.stack([getattr(ballot, votes) for ballot in ballots]),
            np.stack([getattr(ballot, sureness) for ballot in ballots]),
            num_classes,
        )
        for votes, sureness in (("plain", "plain_sureness"), ("label", "sureness"))
    )
    removals = [ballot.removal for ballot in ballots]
    mean = Removal(
        prior=torch.stack([removal.prior.double() for removal in removals]).mean(0),
        shift=torch.stack([removal.shift.double() for removal in removals]).mean(0),
        strength=float(np.mean([removal.strength for removal in removals])) if strength is None else strength,
        temperature=1.0,
        supported=min(removal.supported for removal in removals),
        notes=_notes(removals, names),
    )
    return replace(rows, chunks=ShareLogits(shares=plain), posterior=label), mean


def _notes(removals: Sequence[Removal], names: Sequence[str]) -> tuple[str, ...]:
    """The notes of all, each once, with the voters that it is of."""
    of: dict[str, list[str]] = {}
    for removal, name in zip(removals, names, strict=True):
        for note in removal.notes:
            of.setdefault(note, []).append(name)
    return tuple(note if len(whose) == len(names) else f"{', '.join(whose)}: {note}" for note, whose in of.items())
