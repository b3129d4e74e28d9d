"""Labels of rows of logits, before and after a class prior is removed. Nothing here reads or writes a file.

`Rows` are logits and what is known about them. A `Removal` is what is subtracted from them. `label_rows` returns their
labels, chunk by chunk.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import repeat
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor
from tqdm import tqdm

from debias_ssl.data.sources.images import UNKNOWN
from debias_ssl.formulas.logits import largest
from debias_ssl.formulas.presence import Presence
from debias_ssl.formulas.priors import Chunks
from debias_ssl.formulas.selective import ScoreName, score_of
from debias_ssl.formulas.shares import Shares
from debias_ssl.labels.debiasing.abstention import DEFAULT_SCORE, Abstention, abstain
from debias_ssl.labels.debiasing.chunks import check_finite
from debias_ssl.labels.debiasing.config import DebiasConfig
from debias_ssl.labels.debiasing.preference import Preference, Reference
from debias_ssl.labels.debiasing.several import SeveralLabels, several_labels
from debias_ssl.labels.names.hierarchy import Hierarchy, hierarchy_of
from debias_ssl.system.ahead import ahead


@runtime_checkable
class Posterior(Protocol):
    """Probabilities of rows; they may be computed on access."""

    def __getitem__(self, rows: slice, /) -> Float32[np.ndarray, "n C"]: ...


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Logits, and what is known about their rows."""

    chunks: Chunks
    """The logits in row order, which can be gone through again and again."""
    names: Sequence[str]
    """Paths, or `RowNumbers`."""
    classes: tuple[str, ...]
    target: Float[Tensor, " C"] | None
    """Shares that the classes are taken to have among the rows; None where they are to be estimated."""
    truth: Int64[np.ndarray, " N"] | None = None
    """Class numbers, negative where unknown, for figures alone."""
    tuning: Int64[np.ndarray, " N"] | None = None
    """Class numbers of the rows of `tune_on`, negative elsewhere."""
    blank: Float[Tensor, "K C"] | None = None
    """Logits of images that show nothing."""
    reference: Reference | None = None
    """The rows that the prior is measured on, if not these rows."""
    logit_bias: float | None = None
    """Of a model of sigmoids (SigLIP): sigmoid(logit + bias) is how sure it is of a class by itself. A softmax of the
    logits does not see it, so that it is not in them."""
    multi_label: float | None = None
    """The sigmoid from which a class is one of several labels of a row, where these are asked for."""
    negatives: Iterable[Float[Tensor, "_ M"]] | None = None
    """Logits of names that are none of the classes, in the same chunks."""
    said: tuple[str, ...] = ()
    """Lines to print about the files that this is known from."""
    notes: tuple[str, ...] = ()
    """Notes for users about the logits."""
    hierarchy: Hierarchy | None = None
    """The names above the classes; None where there are none."""
    features: Callable[[], Iterable[Float[Tensor, "_ D"]]] | None = None
    """Gives vectors of the rows, in row order, in chunks."""
    anchors: Float[Tensor, "C D"] | None = None
    """The anchor vector of each class."""
    posterior: Float32[np.ndarray, "N C"] | Posterior | None = None
    """Probabilities that labels are of, refined ones or shares of votes; None where they are of the debiased ones."""


@dataclass(frozen=True, kw_only=True)
class Removal:
    """The numbers that are subtracted from logits."""

    prior: Float[Tensor, " C"]
    """The class prior of the classifier."""
    shift: Float[Tensor, " C"]
    """The numbers that are subtracted from f / T."""
    strength: float
    temperature: float
    supported: float = 1.0
    """Share of what the rows say that is made use of: below 1 where they are few."""
    shares: Shares | None = None
    """Of the classes among the rows, where they are estimated."""
    presence: Presence | None = None
    """The surer labels, where these say how much is removed."""
    preference: Preference | None = None
    """The preference that was measured on other rows."""
    notes: tuple[str, ...] = ()
    """Notes for users about it."""


@dataclass(frozen=True, kw_only=True)
class RowLabels:
    """The labels of a chunk of rows."""

    plain: Int64[np.ndarray, " N"]
    plain_confidence: Float32[np.ndarray, " N"]
    """Of softmax(f / T)."""
    label: Int64[np.ndarray, " N"]
    confidence: Float32[np.ndarray, " N"]
    top2_gap: Float32[np.ndarray, " N"]
    """Of softmax(f / T - shift), or of what that was refined to."""
    name: Int64[np.ndarray, " N"] | None = None
    """Of the deepest name of the hierarchy that reaches the floor, -1 where none does; None without a floor."""
    name_confidence: Float32[np.ndarray, " N"] | None = None
    """Its probability, nan where there is none."""
    plain_score: Float32[np.ndarray, " N"] | None = None
    score: Float32[np.ndarray, " N"] | None = None
    """How sure it is that a row is of its class; None where rows have no score."""


@dataclass(frozen=True, kw_only=True)
class Labeling(RowLabels):
    """The labels of all rows: arrays of length N, for a matrix of any size."""

    classes: tuple[str, ...]
    names: Sequence[str]
    """Paths, or row numbers as text."""
    truth: Int64[np.ndarray, " N"]
    """Negative where unknown."""
    reported: Bool[np.ndarray, " N"]
    """False for rows of `tune_on`."""
    prior: Float[np.ndarray, " C"]
    shift: Float[np.ndarray, " C"]
    """The numbers that are subtracted from the logits."""
    config: DebiasConfig
    strength: float
    temperature: float
    supported: float = 1.0
    shares: Shares | None = None
    presence: Presence | None = None
    notes: tuple[str, ...] = ()
    """As in `Removal`, and those of `Abstention`."""
    abstained: Bool[np.ndarray, " N"] | None = None
    """Rows that get no label; `label` is what it would be. None where rows have no score."""
    abstention: Abstention | None = None
    hierarchy: Hierarchy | None = None
    """As in `Rows`."""
    several: SeveralLabels | None = None
    """Where several labels of a row are asked for."""
    is_refined: bool = False
    """Whether labels are of a posterior that debiased probabilities were refined to."""

    def counts(self, which: Literal["plain", "label"]) -> Int64[np.ndarray, " C"]:
        """Predictions of each class, of the reported rows."""
        return np.bincount(getattr(self, which)[self.reported], minlength=len(self.classes))


@dataclass(frozen=True, kw_only=True)
class Pass:
    """f / T of all rows, checked, with a progress bar in each pass."""

    chunks: Chunks
    temperature: float
    num_rows: int
    classes: tuple[str, ...]
    title: str
    is_quiet: bool

    def __iter__(self) -> Iterator[Float[Tensor, "n C"]]:
        first = 0
        with tqdm(
            total=self.num_rows, desc=self.title, unit="rows", unit_scale=True, disable=self.is_quiet, leave=False
        ) as bar:
            for logits in self.chunks:
                check_finite(logits, first, self.classes)
                yield logits if self.temperature == 1 else logits / self.temperature
                first += len(logits)
                bar.update(len(logits))


def pass_over(rows: Rows, temperature: float, title: str, is_quiet: bool) -> Pass:
    """f / T of all rows; the title is that of the progress bar."""
    return Pass(
        chunks=rows.chunks,
        temperature=temperature,
        num_rows=len(rows.names),
        classes=rows.classes,
        title=title,
        is_quiet=is_quiet,
    )


def score_name(rows: Rows, config: DebiasConfig) -> ScoreName | None:
    """The score that rows have; None where nothing asks for one."""
    return config.score or (None if rows.negatives is None else DEFAULT_SCORE)


def label_rows(
    rows: Rows,
    removal: Removal,
    score: ScoreName | None = None,
    *,
    floor: float | None = None,
    is_quiet: bool = False,
) -> Iterator[tuple[RowLabels, Float[Tensor, "n C"]]]:
    """The labels of each chunk of rows, and the debiased (or refined) probabilities that they are of, in one pass.

    Args:
        rows: the logits.
        removal: what is subtracted from them.
        score: what rows are to have beside a label.
        floor: rows get the deepest name whose probability is at least this; None gives none.
        is_quiet: no progress bar.

    Raises:
        InputError: a number is not finite.
    """
    hierarchy = rows.hierarchy or hierarchy_of(rows.classes, {})

    def labeled(chunk: _Chunk) -> tuple[RowLabels, Float[Tensor, "n C"]]:
        logits, probs = chunk.logits, chunk.posterior
        plain_probs = logits.softmax(-1)
        plain_confidence, plain = largest(plain_probs)
        if probs is None:
            probs = (logits - removal.shift.to(logits.dtype)).softmax(-1)
        confidence, label = largest(probs)
        # The largest is taken out for a moment, as a copy of a chunk would take time.
        second = probs.scatter_(-1, label[:, None], -1).amax(-1)
        probs.scatter_(-1, label[:, None], confidence[:, None])
        name, sure = (None, None) if floor is None else hierarchy.deepest(probs, floor)
        labels = RowLabels(
            plain=plain.numpy(),
            plain_confidence=plain_confidence.float().numpy(),
            label=label.numpy(),
            confidence=confidence.float().numpy(),
            top2_gap=(confidence - second).float().numpy(),
            name=name,
            name_confidence=sure,
        )
        if score is not None:
            scaled = None if chunk.negatives is None else chunk.negatives / removal.temperature
            plain_score, own = (score_of(score, logits, each, scaled) for each in (plain_probs, probs))
            labels = replace(labels, plain_score=plain_score.float().numpy(), score=own.float().numpy())
        return labels, probs

    return ahead(labeled, _chunks(rows, removal, is_quiet))


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """Rows to label: f / T, and what else there is of them."""

    logits: Float[Tensor, "n C"]
    negatives: Float[Tensor, "n M"] | None
    posterior: Float[Tensor, "n C"] | None


def _chunks(rows: Rows, removal: Removal, is_quiet: bool) -> Iterator[_Chunk]:
    all_negatives = repeat(None) if rows.negatives is None else rows.negatives
    first = 0
    for logits, negatives in zip(pass_over(rows, removal.temperature, "labels", is_quiet), all_negatives, strict=False):
        own = None if rows.posterior is None else torch.from_numpy(rows.posterior[first : first + len(logits)])
        yield _Chunk(logits=logits, negatives=negatives, posterior=own)
        first += len(logits)


def labeling_of(rows: Rows, config: DebiasConfig, removal: Removal, parts: Iterable[RowLabels]) -> Labeling:
    """The labels of all chunks together, with what was removed from them, and the rows that get none.

    Raises:
        InputError: the precision that is asked for is not reached.
    """
    whole: dict[str, Any] = {}
    first = 0
    for part in parts:
        # Into arrays of all rows: small ones that stay would keep the memory of each chunk from the next.
        for field in fields(RowLabels):
            values = getattr(part, field.name)
            if values is None:
                continue
            if not first:
                whole[field.name] = np.empty((len(rows.names), *values.shape[1:]), values.dtype)
            whole[field.name][first : first + len(values)] = values
        first += len(part.label)
    abstention, score = None, score_name(rows, config)
    if score is not None:
        whole["abstained"], abstention = abstain(config, score, whole["score"], whole["label"], rows.tuning)
    return Labeling(
        **whole,
        classes=rows.classes,
        names=rows.names,
        truth=np.full(len(rows.names), UNKNOWN) if rows.truth is None else rows.truth,
        reported=np.ones(len(rows.names), dtype=bool) if rows.tuning is None else rows.tuning < 0,
        prior=removal.prior.numpy(),
        shift=removal.shift.numpy(),
        config=config,
        strength=removal.strength,
        temperature=removal.temperature,
        supported=removal.supported,
        shares=removal.shares,
        presence=removal.presence,
        notes=removal.notes + (() if abstention is None else abstention.notes),
        abstention=abstention,
        hierarchy=rows.hierarchy,
        several=several_labels(rows.chunks, rows.logit_bias, rows.multi_label),
        is_refined=config.refine != "none" and rows.posterior is not None,
    )
