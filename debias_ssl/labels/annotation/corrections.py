"""Reads corrections of labels: exports of Label Studio and FiftyOne, cleanlab's issues, and any table."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from debias_ssl.data.sources.label_files import is_unknown
from debias_ssl.labels.annotation.fiftyone_folder import SAMPLES, read_samples
from debias_ssl.labels.annotation.image_tree import is_tree, read_tree
from debias_ssl.labels.annotation.label_studio import FIELDS, path_in, read_tasks, source_of
from debias_ssl.labels.annotation.labeled_rows import LabeledRows
from debias_ssl.labels.annotation.statements import Statement, Statements
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.imports import near_beside
from debias_ssl.system.tables import LABELS, PATHS, ROWS, Table, check_text, read_table, read_text

Issues = Literal["relabel", "unlabel"]
ISSUE, GIVEN, PREDICTED = "is_label_issue", "given_label", "predicted_label"
# Usual names of the column that says who gave a label.
PEOPLE = ("annotator", "annotatedby", "completedby", "labeledby", "labeler", "source", "user", "worker")
TIMES = ("updatedat", "createdat", "time", "timestamp", "date")


def read_statements(path: Path, rows: LabeledRows, field: str | None, issues: Issues) -> Statements:
    """The labels in a file of corrections, whichever tool wrote it.

    Args:
        path: an export of Label Studio (JSON, JSON-MIN or CSV), a folder that FiftyOne exported, cleanlab's label
            issues, a folder of images by class that `export-labels` wrote, or a table of path and label.
        rows: the labels to correct.
        field: the name of the choices, the field or the column of the labels; None finds it.
        issues: what to do with a label that cleanlab reports as wrong.

    Raises:
        InputError: the file cannot be read, or has another format.
    """
    if path.is_dir():
        if is_tree(path):
            return Statements(path=path, given=[*read_tree(path)], kind="images in folders", are_reviewed=False)
        if not (path / SAMPLES).is_file():
            raise InputError(
                f"{str(path)!r} has no {SAMPLES}: name a folder that FiftyOne or export-labels --to imagefolder "
                "wrote, or a file"
            )
        return _of_fiftyone(path, field)
    if not path.is_file():
        raise InputError(f"--corrections is {str(path)!r}: there is no such file or folder{near_beside(path)}")
    if path.suffix.lower() == ".json":
        return _of_json(path, field)
    table = read_table(path)
    if ISSUE in table.header:
        said = [*_of_issues(table, rows, issues)]
        return Statements(path=path, given=said, kind="cleanlab's label issues", are_reviewed=True)
    return _of_table(table, rows, field)


def _of_fiftyone(path: Path, field: str | None) -> Statements:
    said = [*read_samples(path, field)]
    return Statements(path=path, given=said, kind="FiftyOne's samples", are_reviewed=False)


def _of_json(path: Path, field: str | None) -> Statements:
    try:
        content: Any = json.loads(read_text(path))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {reason(error)}") from error
    if isinstance(content, dict) and "samples" in content:
        return _of_fiftyone(path, field)
    if not isinstance(content, list):
        raise InputError(f"{path} is neither an export of Label Studio nor FiftyOne's samples.json")
    said = [*read_tasks(content, path, field)]
    return Statements(path=path, given=said, kind="Label Studio's annotations", are_reviewed=True)


def _of_table(table: Table, rows: LabeledRows, field: str | None) -> Statements:
    """A table of path and label. In a table with confidences, made by a model, only changed labels are statements."""
    key, person, time = (table.column(usual) for usual in (PATHS if rows.has_paths else ROWS, PEOPLE, TIMES))
    label = _label_column(table, field)
    if key is None or label is None:
        raise InputError(
            f"{table.path}: the first line must name the columns path and label, or --field the second; it is "
            f"{[*table.header]}"
        )
    is_label_studio = "annotation_id" in table.header
    is_of_model = table.column(("confidence",)) is not None

    def statements() -> Iterator[Statement]:
        for line, cells in table:
            word = cells[label].strip()
            check_text(word, table.path, line)
            if is_unknown(word, rows.classes):
                continue
            who = "" if person is None else cells[person].strip()
            source = who or table.path.name
            yield Statement(
                name=path_in(cells[key]),
                label=word,
                source=source_of({"annotator": who}) if is_label_studio else source,
                time="" if time is None else cells[time].strip(),
                where=f"{table.path}, line {line}",
            )

    kind = "Label Studio's annotations" if is_label_studio else "a table of labels"
    notes = tuple(table.notes(PATHS) if field else table.notes(PATHS, LABELS))
    return Statements(path=table.path, given=[*statements()], kind=kind, are_reviewed=not is_of_model, notes=notes)


def _label_column(table: Table, field: str | None) -> int | None:
    if field is not None:
        return table.header.index(field) if field in table.header else None
    usual = table.column(LABELS)
    return usual if usual is not None else table.column(FIELDS)


def _of_issues(table: Table, rows: LabeledRows, issues: Issues) -> Iterator[Statement]:
    """The rows of cleanlab's table whose label it reports as wrong.

    Rows are found by their paths or, without paths, by their numbers. Labels are names or class numbers, depending on
    `given_label`.
    """
    issue = table.header.index(ISSUE)
    given, predicted = (table.header.index(name) if name in table.header else None for name in (GIVEN, PREDICTED))
    if predicted is None and issues == "relabel":
        raise InputError(f"{table.path} has no column {PREDICTED}: pass --issues unlabel, or save that column too")
    key = table.column(PATHS)
    number = table.column(ROWS)
    cells_of = [(line, cells) for line, cells in table]
    if key is None and len(cells_of) != len(rows):
        raise InputError(
            f"{table.path} has {len(cells_of)} rows without a path, {rows.table} has {len(rows)}: add the column path, "
            'as in issues.insert(0, "path", dataset["path"])'
        )
    numbered = _shows_numbers(cells_of, given, rows.classes)

    def name_of(word: str) -> str:
        k = int(re.sub(r"\.0$", "", word)) if numbered and re.fullmatch(r"\d+(\.0)?", word) else None
        return word if k is None or k >= len(rows.classes) else rows.classes[k]

    for place, (line, cells) in enumerate(cells_of):
        if cells[issue].strip().lower() not in ("true", "1", "1.0"):
            continue
        row = place if number is None or not cells[number].strip().isdecimal() else int(cells[number])
        if key is None and row >= len(rows):
            raise InputError(f"{table.path}, line {line}: there is no row {row}; {rows.table} has {len(rows)}")
        yield Statement(
            name=rows.names[row] if key is None else cells[key],
            label=name_of(cells[predicted].strip()) if predicted is not None and issues == "relabel" else "",
            source="cleanlab",
            where=f"{table.path}, line {line}",
        )


def _shows_numbers(cells_of: list[tuple[int, list[str]]], given: int | None, classes: tuple[str, ...]) -> bool:
    """Whether labels are class numbers: at least one of them is not the name of a class."""
    return given is not None and any(cells[given].strip() not in classes for _, cells in cells_of)
