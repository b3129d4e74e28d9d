"""Merges corrections into labels, and records who said what."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from debias_ssl.labels.annotation.labeled_rows import LabeledRows
from debias_ssl.labels.annotation.statements import Statement, Statements
from debias_ssl.labels.tables.row_names import match
from debias_ssl.system.errors import InputError, shortened
from debias_ssl.system.files import writing_parts
from debias_ssl.system.outputs import Outputs

Conflicts = Literal["stop", "last", "majority"]
LABELS, CORRECTIONS, CLASSES = "labels.csv", "corrections.csv", "classes.json"
# In the order in which they are removed.
NAMES = (LABELS, CORRECTIONS, CLASSES)
# The author of labels without one: a model, if there are confidences, else a person.
MODEL, GIVEN = "model", "given"


@dataclass(frozen=True, kw_only=True)
class Merged:
    """Labels after the corrections."""

    rows: LabeledRows
    """The rows before the corrections."""
    classes: tuple[str, ...]
    label: Sequence[str]
    """The names of the classes; empty where unknown."""
    source: Sequence[str]
    """Who said it."""
    corrected: Sequence[int]
    """The rows of which a correction says something, those among them whose label stays too."""
    notes: tuple[str, ...]

    @property
    def changed(self) -> list[int]:
        """The rows with another label."""
        return [row for row in self.corrected if self.label[row] != self.before(row)]

    def before(self, row: int) -> str:
        """The label that a row had."""
        return self.rows.name_of(int(self.rows.label[row]))


def merge(rows: LabeledRows, several: Sequence[Statements], conflicts: Conflicts, new_classes: bool) -> Merged:
    """Merges corrections into labels by the paths of the images.

    Args:
        rows: the labels.
        several: what files say.
        conflicts: what happens where an image has several labels in them: `stop` is an error, `last` takes that of the
            last file, and the latest in it, `majority` the one that most say, and no correction where two are equal.
        new_classes: whether labels may be no classes yet.

    Raises:
        InputError: a file is of other images, a label is no class, or an image has several labels.
    """
    said, notes = _by_row(rows, several)
    label = [rows.name_of(k) for k in rows.label.tolist()]
    unsaid = GIVEN if rows.confidence is None else MODEL
    source = [unsaid] * len(rows) if rows.source is None else [name or unsaid for name in rows.source]
    classes, corrected, undecided = dict.fromkeys(rows.classes), [], 0
    for row in sorted(said):
        decided = _decided(rows.names[row], said[row], conflicts)
        if decided is None:
            undecided += 1
            continue
        if decided.label not in classes and decided.label:
            if not new_classes:
                raise InputError(
                    f"{decided.where}: {decided.label!r} is not a class; the classes are {shortened([*classes])}. "
                    "Correct it, or pass --new_classes to add it as a class"
                )
            classes[decided.label] = None
        label[row], source[row] = decided.label, decided.source
        corrected.append(row)
    if undecided:
        notes.append(f"{undecided} images have no majority among their corrections: their labels stay")
    if added := [name for name in classes if name not in rows.classes]:
        notes.append(f"new classes: {shortened(added)}")
    return Merged(
        rows=rows, classes=tuple(classes), label=label, source=source, corrected=corrected, notes=tuple(notes)
    )


def _by_row(rows: LabeledRows, several: Sequence[Statements]) -> tuple[dict[int, list[Statement]], list[str]]:
    """The statements about each row, in the order of the files and, within each file, of time."""
    by_row: dict[int, list[Statement]] = {}
    notes: list[str] = []
    for statements in several:
        notes += statements.notes
        of_name: dict[str, list[Statement]] = {}
        for statement in sorted(statements.given, key=lambda each: each.time):
            of_name.setdefault(statement.name, []).append(statement)
        if not of_name:
            notes.append(f"{statements.path}: {statements.kind}, none of which is a label")
            continue
        names = [*of_name]
        found = match(names, rows.names)
        if found.doubled is not None:
            first, second = (names[i] for i in found.doubled)
            raise InputError(f"{statements.path}: {first!r} and {second!r} mean the same row of {rows.table}: keep one")
        why = "" if found.unmatched is None else f": {found.unmatched[0]!r}"
        why += f"; {found.cause}" if found.cause else ""
        if not found.num_matched:
            raise InputError(f"{statements.path} names none of the images in {rows.table}{why}")
        if missing := len(names) - found.num_matched:
            notes.append(f"{statements.path}: {missing} of {len(names)} images are not in {rows.table}{why}")
        notes += [f"{statements.path}: {note}" for note in found.notes]
        for row, place in enumerate(found.entry_of.tolist()):
            if place < 0:
                continue
            given = of_name[names[place]]
            if not statements.are_reviewed:
                given = [each for each in given if each.label != rows.name_of(int(rows.label[row]))]
            if given:
                by_row.setdefault(row, []).extend(given)
    return by_row, notes


def _decided(name: str, said: Sequence[Statement], conflicts: Conflicts) -> Statement | None:
    """The statement that decides about an image; None if it is undecided."""
    counts = Counter(each.label for each in said).most_common(2)
    if len(counts) == 1:
        return _joined(said)
    if conflicts == "last":
        return said[-1]
    if conflicts == "majority":
        (label, most), (_, second) = counts
        return None if most == second else _joined([each for each in said if each.label == label])
    one, other = said[0], next(each for each in said if each.label != said[0].label)
    raise InputError(
        f"{name!r} is {one.label!r} by {one.source} ({one.where}) and {other.label!r} by {other.source} "
        f"({other.where}): pass --conflicts last or majority, or correct one"
    )


def _joined(said: Sequence[Statement]) -> Statement:
    """One statement for several that say the same."""
    first = said[0]
    sources = "; ".join(dict.fromkeys(each.source for each in said))
    return Statement(name=first.name, label=first.label, source=sources, where=first.where)


def outputs_in(out: Path) -> Outputs:
    """The files of merged labels in a folder."""
    return Outputs(folder=out, kind="merged labels", names=NAMES)


def write_merged(merged: Merged, out: Path) -> None:
    """Writes labels.csv, corrections.csv and classes.json; what was there goes once the new files are whole."""
    outputs = outputs_in(out)
    contents = {
        CLASSES: json.dumps(merged.classes, ensure_ascii=False) + "\n",
        CORRECTIONS: _csv(_correction_lines(merged)),
        LABELS: _csv(_label_lines(merged)),
    }
    with ExitStack() as opened:
        for name, text in contents.items():
            write = opened.enter_context(writing_parts(out / name))
            write(text.encode("utf-8", "surrogateescape"))
            write.wait()
        outputs.begin_replacing()
        outputs.claim(*NAMES)
    outputs.complete()


def _label_lines(merged: Merged) -> Iterator[Sequence[str]]:
    """All rows; the confidence of a correction is 1, and 0 where it takes the label away."""
    rows, corrected = merged.rows, {*merged.corrected}
    has_plain = rows.plain_label is not None
    header = ["path" if rows.has_paths else "row", "label"]
    header += ["confidence"] if rows.confidence is not None else []
    header += ["plain_label"] if has_plain else []
    header += ["plain_confidence"] if rows.plain_confidence is not None else []
    yield [*header, "source"]
    for row, name in enumerate(rows.names):
        cells = [name, merged.label[row]]
        if rows.confidence is not None:
            own = float(rows.confidence[row])
            cells.append(_number(own if row not in corrected else float(merged.label[row] != "")))
        if rows.plain_label is not None:
            cells.append(rows.name_of(int(rows.plain_label[row])))
        if rows.plain_confidence is not None:
            cells.append(_number(float(rows.plain_confidence[row])))
        yield [*cells, merged.source[row]]


def _correction_lines(merged: Merged) -> Iterator[Sequence[str]]:
    """The rows with a label that a correction gave or confirmed."""
    yield ["path" if merged.rows.has_paths else "row", "label", "before", "source"]
    for row in merged.corrected:
        if merged.label[row]:
            yield [merged.rows.names[row], merged.label[row], merged.before(row), merged.source[row]]


def _number(value: float) -> str:
    return "" if value != value else f"{value:.6f}"


def _csv(lines: Iterator[Sequence[str]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(lines)
    return text.getvalue()


def told(merged: Merged, several: Sequence[Statements]) -> list[str]:
    """The summary of the merge, line by line."""
    changed = {*merged.changed}
    lines = [f"{each.path}: {len(each.given)} of {each.kind}" for each in several]
    for source, number in Counter(merged.source[row] for row in merged.corrected).most_common(10):
        own = sum(merged.source[row] == source for row in changed)
        lines.append(f"{source}: {number} images, {own} of them with a different label")
    moves = Counter((merged.before(row) or "none", merged.label[row] or "none") for row in changed)
    if moves:
        pairs = (f"{before} -> {after} ({number})" for (before, after), number in moves.most_common(10))
        lines.append("changed: " + ", ".join(pairs))
    lines.append(
        f"{len(changed)} of {len(merged.rows)} labels changed, {len(merged.corrected) - len(changed)} confirmed"
    )
    return lines
