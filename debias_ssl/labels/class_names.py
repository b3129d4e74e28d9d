"""Names of classes, which differ from each other and are not blank."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.files import read_array
from debias_ssl.system.tables import check_text, read_text

# A line that begins with the number of a class; after a tab there would be its name in prompts.
NUMBERED = re.compile(r"(\d+)( *[,;:] *| +)(\S.*)")
# The first line above such lines.
NAMES_OF_COLUMNS = re.compile(r"(class_?)?(id|index|number|label)\s*[,;]\s*[a-z_ ]+")


def read_class_names(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of classes, and what prompts call them: where nothing else is said, the same.

    Args:
        path: text of one class a line, NAME or NAME<tab>PROMPT NAME, or a JSON list of names, or .npy of text or whole
            numbers, as the `classes_` of scikit-learn. In a text, lines that begin with # are comments, quotes around a
            line are a spreadsheet's, and lines 0,NAME or 0: NAME or 0 NAME are numbered: they are sorted by number,
            which is left out.

    Raises:
        InputError: a name is blank, is no text or there twice, there are none, or numbers leave some out.
    """
    if path.suffix == ".npy":
        return distinct([(name, name) for name in _of_array(path)], str(path))
    text = read_text(path)
    if path.suffix.lower() == ".json":
        try:
            listed = json.loads(text)
        except ValueError as error:
            raise InputError(f"{path} is not JSON: {reason(error)}") from error
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            raise InputError(f"{path} must be a list of class names")
        for name in listed:
            check_text(name, path)
        return distinct([(name, name) for name in listed], str(path))
    lines = {
        number: _unquoted(line.strip(" \r"))
        for number, line in enumerate(text.rstrip().splitlines(), start=1)
        if not line.lstrip().startswith("#")
    }
    for number, line in lines.items():
        check_text(line, path, number)
    lines = _without_numbers(lines, path)
    parts = [line.split("\t", 1) for line in lines.values()]
    pairs = [(part[0].strip(), part[-1].strip()) for part in parts]
    return distinct(pairs, str(path), "line", "lines", [*lines])


def _unquoted(line: str) -> str:
    """What a spreadsheet has put into quotes, as there is a comma in it."""
    inner = line[1:-1]
    is_quoted = len(line) > 1 and line[0] == line[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if is_quoted else line


def _without_numbers(lines: dict[int, str], path: Path) -> dict[int, str]:
    """Lines in the order of the numbers that they begin with, without these; as they are where there are none.

    Raises:
        InputError: the numbers are not 0, 1, 2, ... or 1, 2, 3, ...
    """
    found = {number: NUMBERED.fullmatch(line) for number, line in lines.items()}
    first = next(iter(found), 0)
    if len(found) > 2 and found[first] is None and NAMES_OF_COLUMNS.fullmatch(lines[first].lower()):
        del found[first]
    matches = {number: match for number, match in found.items() if match is not None}
    if not matches or len(matches) < len(found):
        return lines
    order = sorted(matches, key=lambda number: int(matches[number][1]))
    numbers = [int(matches[number][1]) for number in order]
    if numbers not in ([*range(len(order))], [*range(1, len(order) + 1)]):
        if all(matches[number][2].isspace() for number in order):
            return lines  # "2 euro" may be a class
        raise InputError(
            f"{path}: each line begins with a number, and these are not 0 to {len(order) - 1}: write a name a line, in "
            "the order of the columns"
        )
    return {number: _unquoted(matches[number][3].strip()) for number in order}


def _of_array(path: Path) -> list[str]:
    try:
        names = read_array(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read {path}: {reason(error)}; save names by np.save of np.array(names, str)"
        ) from error
    if names.ndim != 1 or names.dtype.kind not in "Uiu":
        raise InputError(f"{path} holds {names.dtype} of shape {names.shape}; names of classes are needed, as text")
    return [str(name) for name in names]


def distinct(
    pairs: Sequence[tuple[str, str]],
    source: str,
    unit: str = "entry",
    units: str = "entries",
    numbers: Sequence[int] | None = None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of classes and their names in prompts, apart.

    Args:
        pairs: name, and name in prompts.
        source: what errors call the list.
        unit: what errors call one of its items.
        units: several of them.
        numbers: of the items; None counts them from 1.

    Raises:
        InputError: a name is blank, there twice or no text, or there are none.
    """
    if not pairs:
        raise InputError(f"{source} has no class names")
    lines_of: dict[str, int] = {}
    for line, (name, prompt) in zip(numbers or range(1, len(pairs) + 1), pairs, strict=True):
        if not name.strip() or not prompt:
            raise InputError(f"{source}, {unit} {line}: the name of a class is blank; remove it or fill it in")
        try:
            (name + prompt).encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{source}, {unit} {line}: {name!r} is not UTF-8 text; save the file as UTF-8") from error
        if name in lines_of:
            raise InputError(f"{source}: {units} {lines_of[name]} and {line} are both {name!r}; names must differ")
        lines_of[name] = line
    names, prompts = zip(*pairs, strict=True)
    return names, prompts
