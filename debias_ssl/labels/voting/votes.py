"""Labels by the votes of several classifiers, before and after the class bias of each is removed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from debias_ssl.formulas.calibration import fit_temperature_to
from debias_ssl.formulas.logits import SMALLEST_PROBABILITY
from debias_ssl.formulas.priors import Chunks
from debias_ssl.formulas.votes import ranked, vote, vote_shares
from debias_ssl.labels.debiasing.chunks import rows_of_chunk
from debias_ssl.labels.debiasing.config import DebiasConfig
from debias_ssl.labels.debiasing.removal import find_removal
from debias_ssl.labels.debiasing.rows import Removal, Rows, pass_over
from debias_ssl.labels.debiasing.sample import drawn_rows, read_rows

# Rows that temperatures and label-free figures are computed on.
MOST_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class Votes:
    """The votes of one classifier for all rows."""

    label: Int64[np.ndarray, " N"]
    sureness: Float64[np.ndarray, " N"]
    """Among its own rows, as `ranked` has it."""


@dataclass(frozen=True, kw_only=True)
class Ballot:
    """The votes of a classifier, plain and with its class bias removed."""

    plain: Votes
    debiased: Votes
    removal: Removal


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Shares of votes, counted on access: those of all rows and classes may be larger than memory."""

    votes: Sequence[Votes]
    """Of each classifier."""
    num_classes: int

    def __len__(self) -> int:
        return len(self.votes[0].label)

    def __getitem__(self, rows: slice) -> Float32[np.ndarray, "n C"]:
        label, sureness = (np.stack([getattr(own, name)[rows] for own in self.votes]) for name in ("label", "sureness"))
        return vote_shares(label, sureness, self.num_classes)


@dataclass(frozen=True, kw_only=True)
class ShareLogits:
    """Shares of votes as logits, in chunks: the softmax of these logits gives the shares."""

    shares: Shares

    def __iter__(self) -> Iterator[Float[Tensor, "n C"]]:
        step = rows_of_chunk(self.shares.num_classes)
        for first in range(0, len(self.shares), step):
            yield torch.from_numpy(self.shares[first : first + step]).clamp(min=SMALLEST_PROBABILITY).log()


def votes_of(chunks: Chunks) -> Votes:
    """The classes of the largest logits, and how sure they are."""
    parts = [vote(logits) for logits in chunks]
    label, gap = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    return Votes(label=label, sureness=ranked(gap))


def ballots_of(electors: Sequence[Rows], config: DebiasConfig) -> list[Ballot]:
    """The votes of classifiers, and those without what each of them prefers.

    Where no temperature is given or tuned, that of a classifier is the one at which its probabilities fit the plain
    votes of the others, on some thousand rows. So its own temperature has no part in what is removed either.

    Args:
        electors: the logits of each classifier, of the same rows.
        config: what is removed.

    Raises:
        InputError: a number is not finite, or the settings need what is not there.
    """
    plain = [votes_of(pass_over(rows, 1.0, "votes", False)) for rows in electors]
    sample, ballots = sampled_rows(len(electors[0].names)), []
    for own, rows in enumerate(electors):
        temperature = config.temperature
        if temperature is None and rows.tuning is None:
            (logits,) = read_rows(rows, [sample], "sample", False)
            others = [torch.from_numpy(votes.label[sample]) for k, votes in enumerate(plain) if k != own]
            temperature = fit_temperature_to([(logits, labels) for labels in others])
        removal = find_removal(rows, replace(config, temperature=temperature))
        debiased = votes_of(logits / removal.temperature - removal.shift.to(logits.dtype) for logits in rows.chunks)
        ballots.append(Ballot(plain=plain[own], debiased=debiased, removal=removal))
    return ballots


def sampled_rows(num: int) -> Int64[np.ndarray, " S"]:
    """The rows that temperatures and label-free figures are computed on: all, or some that are drawn."""
    return drawn_rows(num, MOST_ROWS)


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
        Shares(votes=votes, num_classes=num_classes)
        for votes in ([ballot.plain for ballot in ballots], [ballot.debiased for ballot in ballots])
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
