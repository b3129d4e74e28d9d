"""Which row a file means by a path: rows are found by name, by another spelling of it, or below another folder."""

import os.path
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from debias_ssl.data.sources.spellings import canonical


@dataclass(frozen=True, kw_only=True)
class Matched:
    """The rows that the entries of a file mean."""

    rows: dict[int, list[int]]
    """Of the entries that mean some; a row that is there twice is meant twice."""
    notes: tuple[str, ...]
    """How entries were found that are not named like their rows."""
    unmatched: tuple[str, str] | None
    """The first entry that means no row, and the first row that none means; None where all of either are matched."""
    cause: str
    """Why there are such entries, as far as it can be seen."""


def match(entries: Sequence[str], names: Sequence[str]) -> Matched:
    """Finds rows by their names; where these differ by the same folder in front, it is taken off or put before them.

    Args:
        entries: paths in a file.
        names: of the rows.
    """
    places = _places(names)
    rows = {i: places[entry] for i, entry in enumerate(entries) if entry in places}
    if len(rows) == len(entries):
        return Matched(rows=rows, notes=(), unmatched=None, cause="")
    notes, left = [], [i for i in range(len(entries)) if i not in rows]
    taken = {row for each in rows.values() for row in each}
    spelled = _places(canonical(name) for name in names)
    known = {i: canonical(entries[i]) for i in left}
    found = {i: spelled[name] for i, name in known.items() if name in spelled}
    if found:
        notes.append(_told(len(found), "are spelled otherwise than the rows", entries, found, names))
    rows |= found
    taken |= {row for each in found.values() for row in each}
    open_rows = {name: each for name, each in spelled.items() if not taken.issuperset(each)}
    known = {i: name for i, name in known.items() if i not in found}
    prefix = _common_prefix(known, open_rows)
    if prefix is not None:
        found, said = prefix
        rows |= found
        notes.append(_told(len(found), said, entries, found, names))
        taken |= {row for each in found.values() for row in each}
        open_rows = {name: each for name, each in open_rows.items() if not taken.issuperset(each)}
        known = {i: name for i, name in known.items() if i not in found}
    if not known or not open_rows:
        return Matched(rows=rows, notes=tuple(notes), unmatched=None, cause="")
    first = min(min(each) for each in open_rows.values())
    return Matched(
        rows=rows,
        notes=tuple(notes),
        unmatched=(entries[min(known)], names[first]),
        cause=_cause([*known.values()], open_rows),
    )


def _places(names: Iterable[str]) -> dict[str, list[int]]:
    """Where each name is among all."""
    places: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        places.setdefault(name, []).append(i)
    return places


def _common_prefix(known: dict[int, str], rows: dict[str, list[int]]) -> tuple[dict[int, list[int]], str] | None:
    """Rows by entries without a folder that these have in front, or with one that the rows have; and what is said.

    Only where one such folder, and no other, leaves nothing over on one of the two sides.
    """
    names = {*known.values()}
    for longer, shorter, words in (
        (names, rows, "begin with {!r}, which the rows do not"),
        (rows, names, "lack {!r}, with which the rows begin"),
    ):
        counts = Counter(prefix for name in longer for prefix, inner in _splits(name) if inner in shorter)
        most = counts.most_common(2)
        if not most or most[0][1] < min(len(names), len(rows)) or (len(most) == 2 and most[1][1] == most[0][1]):
            continue
        prefix = most[0][0]
        inner = {i: name.removeprefix(prefix) if longer is names else prefix + name for i, name in known.items()}
        return {i: rows[name] for i, name in inner.items() if name in rows}, words.format(prefix)
    return None


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """Each folder that a path begins with, and the rest."""
    end = name.find("/")
    while end >= 0:
        yield name[: end + 1], name[end + 1 :]
        end = name.find("/", end + 1)


def _told(number: int, what: str, entries: Sequence[str], found: dict[int, list[int]], names: Sequence[str]) -> str:
    i = min(found)
    return f"{number} paths {what}: {entries[i]!r} is taken for {names[found[i][0]]!r}"


def _cause(known: Sequence[str], rows: dict[str, list[int]]) -> str:
    """What the names that are left over on both sides have in common."""
    same: dict[str, Callable[[str], str]] = {
        "names differ by upper and lower case": str.lower,
        "names differ by what comes after the last dot": lambda name: os.path.splitext(name)[0],
        "the same files lie in other folders": os.path.basename,
    }
    for said, form in same.items():
        others = {form(name) for name in rows}
        number = sum(form(name) in others for name in known)
        if number:
            return f"{said} ({number} of them)"
    return ""
