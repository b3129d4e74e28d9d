"""Reads files of class names: text, JSON, arrays, and ImageNet's list."""

import re
from pathlib import Path
from textwrap import shorten

from debias_ssl.labels.names.class_json import entries_of_json
from debias_ssl.labels.names.class_list import Classes, ClassList, Entry, Prompt, given_classes, listed, with_parents
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.files import read_array
from debias_ssl.system.imports import near_beside
from debias_ssl.system.tables import LABELS, check_text, read_text

# A line that begins with the number of a class. A tab is not allowed after the number, because prompts follow a tab.
NUMBERED = re.compile(r"(\d+)( *[,;:] *| +)(\S.*)")
# A first line that names the columns of such lines.
NAMES_OF_COLUMNS = re.compile(r"(class_?)?(id|index|number|label)\s*[,;]\s*[a-z_ ]+")


def class_list(where: str, setting: str = "--classes") -> ClassList:
    """The classes in a file or, for `imagenet`, open_clip's list.

    Args:
        where: the file, as for `read_class_list`, or `imagenet`.
        setting: the name of the setting in errors.

    Raises:
        InputError: there is no such file, or its format is unknown.
    """
    if where == "imagenet":
        # The list of ImageNet is slow to import.
        from debias_ssl.labels.names.imagenet import imagenet_names, imagenet_prompts

        prompts = tuple((Prompt(text=text),) for text in imagenet_prompts())
        return ClassList(names=imagenet_names(), prompts=prompts, repeats=True)
    if not Path(where).is_file():
        raise InputError(
            f"{setting} is {where!r}: there is no such file{near_beside(Path(where))}; "
            "a file of names, or imagenet, is expected"
        )
    return read_class_list(Path(where))


def negatives_of(where: str | Classes, classes: ClassList) -> ClassList:
    """Names of things that are not classes, from a file or from a program.

    Raises:
        InputError: their format is unknown, or one of them is a class.
    """
    listed = class_list(where, "--negatives") if isinstance(where, str) else given_classes(where)
    prompts = {prompt.text.casefold() for of_class in classes.prompts for prompt in of_class}
    known = prompts | {name.casefold() for name in classes.names}
    wrong = next((each.text for own in listed.prompts for each in own if each.text.casefold() in known), None)
    if wrong is not None:
        raise InputError(
            f"--negatives has {wrong!r}, which is also a class: its rows would never get a label; leave it out"
        )
    return listed


def read_class_list(path: Path) -> ClassList:
    """The classes in a file: text, JSON as in `class_json.entries_of_json`, or .npy as `classes_` of scikit-learn.

    A text has one class in each line: NAME or NAME<tab>PROMPT<tab>PROMPT ... For a hierarchy, NAME < PARENT < ...
    replaces NAME. Lines that begin with # are comments. Quotes around a line, as spreadsheets write them, are removed.
    Lines of the form 0,NAME or 0: NAME or 0 NAME are sorted by their numbers, and the numbers are removed.

    Args:
        path: the file.

    Raises:
        InputError: a name is blank, is not text or appears twice; there are no names; a number is missing; names above
            contradict each other; or the file has another format.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return listed([Entry(number=k, name=name) for k, name in enumerate(_of_array(path), start=1)], str(path))
    text = read_text(path)
    if suffix == ".json":
        return listed(entries_of_json(text, path), str(path))
    if suffix in (".yaml", ".yml"):
        raise InputError(f"{path} is YAML: save the names as text, one per line, or as a JSON list")
    raw = {
        number: line.strip(" \r")
        for number, line in enumerate(text.rstrip().splitlines(), start=1)
        if not line.lstrip().startswith("#")
    }
    for number, line in raw.items():
        check_text(line, path, number)
    lines = _without_numbers({number: _unquoted(line) for number, line in raw.items()}, path)
    entries = []
    for number, line in lines.items():
        _check_line(line, raw[number], path, number)
        name, *prompts = line.split("\t")
        entry = Entry(number=number, name=name.strip(), prompts=[p.strip() for p in prompts if p.strip()])
        entries.append(with_parents(entry, str(path), "line"))
    return listed(entries, str(path), "line", "lines")


def _check_line(line: str, raw: str, path: Path, number: int) -> None:
    """Raises InputError for a line that contains more than a name and its prompts.

    Args:
        line: the line without number and quotes.
        raw: the line as it is in the file.
        path: the file.
        number: the number of the line, from 1.
    """
    name, *prompts = line.split("\t")
    is_table, fix = path.suffix.lower() in (".csv", ".tsv"), "write one name per line, and its prompts after tabs"
    if re.search(r"\s#\s", line):
        wrong, fix = "has a # in it", "write comments on separate lines; write names that contain # in a JSON list"
    elif prompts and not any(map(str.strip, prompts)):
        wrong, fix = "has a blank prompt after the tab", "remove the tab or fill it in"
    elif line.endswith(",") or (is_table and "," in line and '"' not in raw):
        wrong, fix = "has a comma", f"{fix}; put names that contain a comma in quotes"
    elif is_table and number == 1 and name.strip().lower() in (*LABELS, "name", "names"):
        wrong, fix = "seems to name the column", "remove this line, or save the names as .txt if it is a class"
    else:
        return
    raise InputError(f"{path}, line {number}: {shorten(line, 100, placeholder=' ...')!r} {wrong}: {fix}")


def _unquoted(line: str) -> str:
    """The text of a line without the quotes that a spreadsheet adds if it contains a comma."""
    inner = line[1:-1]
    is_quoted = len(line) > 1 and line[0] == line[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if is_quoted else line


def _without_numbers(lines: dict[int, str], path: Path) -> dict[int, str]:
    """Lines sorted by the numbers at their beginning, without the numbers; unchanged if they have no numbers.

    Raises:
        InputError: the numbers are not 0, 1, 2, ... or 1, 2, 3, ..., or some lines have none.
    """
    found = {number: NUMBERED.fullmatch(line) for number, line in lines.items()}
    first = next(iter(found), 0)
    if len(found) > 2 and found[first] is None and NAMES_OF_COLUMNS.fullmatch(lines[first].lower()):
        del found[first]
    matches = {number: match for number, match in found.items() if match is not None}
    if len(matches) < len(found):
        if 2 * sum(not match[2].isspace() for match in matches.values()) > len(found):
            other = next(number for number in found if number not in matches)
            raise InputError(
                f"{path}, line {other}: {shorten(lines[other], 100)!r} does not begin with a number, as most lines do: "
                "write a name a line, in the order of the columns"
            )
        return lines
    if not matches:
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
