"""Finds the row that a path in a file means: by its name, by another spelling of it, or in another folder."""

import os.path
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64

from debias_ssl.data.sources.spellings import canonical
from debias_ssl.system.texts import Texts, places_in, texts_of


@dataclass(frozen=True, kw_only=True)
class Matched:
    """The rows that the entries of a file mean."""

    entry_of: Int64[np.ndarray, " N"]
    """The place of the first entry that means a row, which may mean several of one name; -1 where none does."""
    num_matched: int
    """How many entries mean a row."""
    doubled: tuple[int, int] | None = None
    """The places of two entries that mean the same row; None where there are none."""
    notes: tuple[str, ...] = ()
    """How entries were found that are not named like their rows."""
    unmatched: tuple[str, str] | None = None
    """The first entry that means no row, and the first row that none means; None where all of either are matched."""
    cause: str = ""
    """Why there are such entries, as far as it can be seen."""


def match_numbers(entries: Int64[np.ndarray, " E"], num_rows: int) -> Matched:
    """The rows that entries mean by their numbers, all of which there are."""
    entry_of, places = np.full(num_rows, -1), np.arange(len(entries))
    # If several entries match, the first one is written last.
    entry_of[entries[::-1]] = places[::-1]
    return Matched(entry_of=entry_of, num_matched=len(entries), doubled=_first_pair(entry_of[entries], places))


def match(entries: Sequence[str], names: Sequence[str]) -> Matched:
    """Finds rows by their names; where these differ by the same folder in front, it is taken off or put before them.

    Args:
        entries: paths in a file.
        names: of the rows.
    """
    rounds = _Rounds.of(texts_of(entries), texts_of(names))
    rounds.take(rounds.entries, rounds.names, np.arange(len(names)))
    if not len(rounds.left):
        return rounds.matched()
    spelled = texts_of(map(canonical, rounds.names))
    known = texts_of(map(canonical, rounds.entries.part(rounds.left)))
    rounds.take(known, spelled, np.arange(len(names)), "are spelled differently from the rows")
    spelled, known = spelled.part(rounds.open), texts_of(map(canonical, rounds.entries.part(rounds.left)))
    prefix = _common_prefix({*known}, {*spelled})
    if prefix is not None:
        front, is_of_entries = prefix
        if is_of_entries:
            inner, said = (name.removeprefix(front) for name in known), "start with {!r}, but the rows do not"
        else:
            inner, said = (front + name for name in known), "lack {!r}, the start of the rows"
        rounds.take(texts_of(inner), spelled, rounds.open, said.format(front))
    return rounds.matched()


@dataclass(kw_only=True)
class _Rounds:
    """The matches of entries and rows, which grow in each round of the search."""

    entries: Texts
    names: Texts
    entry_of: Int64[np.ndarray, " N"]
    left: Int64[np.ndarray, " _"]
    """Places of the entries that mean no row yet."""
    doubled: tuple[int, int] | None = None
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, entries: Texts, names: Texts) -> "_Rounds":
        return cls(entries=entries, names=names, entry_of=np.full(len(names), -1), left=np.arange(len(entries)))

    @property
    def open(self) -> Int64[np.ndarray, " _"]:
        """Places of the rows that no entry means yet."""
        return np.flatnonzero(self.entry_of < 0)

    def take(self, entries: Texts, names: Texts, rows: Int64[np.ndarray, " _"], words: str = "") -> None:
        """Takes the entries that are left for the rows of the same names; the words are what is said of these."""
        first, found = places_in(entries, entries), places_in(names, entries)
        means = np.zeros(len(entries), dtype=bool)
        means[found[found >= 0]] = True
        means = means[first]
        if not means.any():
            return
        hit = rows[found >= 0]
        places, before = self.left[found[found >= 0]], self.entry_of[hit]
        again = np.flatnonzero(before >= 0)
        self.doubled = self.doubled or _first_pair(self.left[first[means]], self.left[means])
        if len(again):
            self.doubled = self.doubled or (int(before[again[0]]), int(places[again[0]]))
        if words:
            i = int(means.argmax())
            entry, row = self.entries[int(self.left[i])], self.names[int(rows[(found == i).argmax()])]
            self.notes.append(f"{means.sum()} paths {words}: {entry!r} is matched to {row!r}")
        self.entry_of[hit[before < 0]] = places[before < 0]
        self.left = self.left[~means]

    def matched(self) -> Matched:
        unmatched, cause = None, ""
        if len(self.left) and len(self.open):
            unmatched = self.entries[int(self.left[0])], self.names[int(self.open[0])]
            known, rows = self.entries.part(self.left), self.names.part(self.open)
            cause = _cause(texts_of(map(canonical, known)), texts_of(map(canonical, rows)))
        return Matched(
            entry_of=self.entry_of,
            num_matched=len(self.entries) - len(self.left),
            doubled=self.doubled,
            notes=tuple(self.notes),
            unmatched=unmatched,
            cause=cause,
        )


def _first_pair(first: Int64[np.ndarray, " n"], own: Int64[np.ndarray, " n"]) -> tuple[int, int] | None:
    """The first entry before which there is another one that means the same."""
    later = np.flatnonzero(first != own)
    return (int(first[later[0]]), int(own[later[0]])) if len(later) else None


def _common_prefix(entries: Set[str], rows: Set[str]) -> tuple[str, bool] | None:
    """The folder that entries have in front of the names of rows (true), or rows of those of entries (false).

    Only where one such folder, and no other, leaves nothing over on one of the two sides.
    """
    for longer, shorter in ((entries, rows), (rows, entries)):
        counts = Counter(prefix for name in longer for prefix, inner in _splits(name) if inner in shorter)
        most = counts.most_common(2)
        if most and most[0][1] >= min(len(entries), len(rows)) and not (len(most) == 2 and most[1][1] == most[0][1]):
            return most[0][0], longer is entries
    return None


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """Each folder that a path begins with, and the rest."""
    end = name.find("/")
    while end >= 0:
        yield name[: end + 1], name[end + 1 :]
        end = name.find("/", end + 1)


def _cause(known: Texts, rows: Texts) -> str:
    """The likely reason why names on both sides do not match."""
    same: dict[str, Callable[[str], str]] = {
        "names differ in upper and lower case": str.lower,
        "names differ in their suffix": lambda name: os.path.splitext(name)[0],
        "the same files lie in other folders": os.path.basename,
    }
    for said, form in same.items():
        wanted = {form(name) for name in known}
        there = {each for each in map(form, rows) if each in wanted}
        number = sum(form(name) in there for name in known)
        if number:
            return f"{said} ({number} of them)"
    return ""
