"""Names of classes, which differ from each other and are not blank."""

import json
from collections.abc import Sequence
from pathlib import Path

from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.files import read_array
from debias_ssl.system.tables import read_text


def read_class_names(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of classes, and what prompts call them: where nothing else is said, the same.

    Args:
        path: text of one class a line, NAME or NAME<tab>PROMPT NAME, or a JSON list of names, or .npy of text or
            whole numbers, as the `classes_` of scikit-learn.

    Raises:
        InputError: a name is blank or there twice, or there are none.
    """
    if path.suffix == ".npy":
        return distinct([(name, name) for name in _of_array(path)], str(path))
    text = read_text(path)
    if path.suffix == ".json":
        try:
            lines = json.loads(text)
        except ValueError as error:
            raise InputError(f"{path} is not JSON: {reason(error)}") from error
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise InputError(f"{path} must be a list of class names")
        pairs, (unit, units) = [(line, line) for line in lines], ("entry", "entries")
    else:
        parts = [line.split("\t", 1) for line in text.rstrip().splitlines()]
        pairs, (unit, units) = [(part[0].strip(), part[-1].strip()) for part in parts], ("line", "lines")
    return distinct(pairs, str(path), unit, units)


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
    pairs: Sequence[tuple[str, str]], source: str, unit: str = "entry", units: str = "entries"
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of classes and their names in prompts, apart.

    Args:
        pairs: name, and name in prompts.
        source: what errors call the list.
        unit: what errors call one of its items.
        units: several of them.

    Raises:
        InputError: a name is blank, there twice or no text, or there are none.
    """
    if not pairs:
        raise InputError(f"{source} has no class names")
    lines_of: dict[str, int] = {}
    for line, (name, prompt) in enumerate(pairs, start=1):
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
