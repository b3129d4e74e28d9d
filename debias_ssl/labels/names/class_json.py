"""Classes in JSON: a list of names, names with their prompts, or numbers and names."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from debias_ssl.labels.names.class_list import Entry, with_parents
from debias_ssl.labels.names.imagenet import WNID
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.tables import check_text

Pairs = Sequence[tuple[str, Any]]


def entries_of_json(text: str, path: Path) -> list[Entry]:
    """The classes of a JSON text.

    A list has names as they are, `<` and `#` included. An object has, of each class, its name (or NAME < PARENT < ...)
    and a prompt or a list of them; or it is `{"0": NAME, ...}` or `{NAME: 0, ...}`; or it has such numbers and names
    as its `id2label`, as the config.json of a model of Hugging Face.

    Args:
        text: of the file.
        path: the file, for errors.

    Raises:
        InputError: it is none of these, or numbers leave some out.
    """
    try:
        # An object becomes a tuple, so that repeated names are found, and a list stays a list.
        content = json.loads(text, object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {reason(error)}") from error
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        entries = [Entry(number=k, name=name) for k, name in enumerate(content, start=1)]
    elif isinstance(content, tuple):
        entries = _of_object(content, path)
    else:
        raise _not_understood(path)
    for entry in entries:
        for each in (entry.name, *entry.prompts, *entry.above):
            check_text(each, path)
    return entries


def _of_object(pairs: Pairs, path: Path) -> list[Entry]:
    of_config = next((value for key, value in pairs if key == "id2label" and isinstance(value, tuple)), None)
    if of_config is not None:
        return _numbered(of_config, f"id2label of {path}")
    keys, values = [key for key, _ in pairs], [value for _, value in pairs]
    if all(map(str.isdecimal, keys)) and all(isinstance(value, str) for value in values):
        return _numbered(pairs, str(path))
    if all(type(value) is int for value in values):
        return _numbered([(str(value), key) for key, value in pairs], str(path))
    if not all(_are_prompts(value) for value in values):
        raise _not_understood(path)
    if all(key.isdecimal() and isinstance(value, list) and WNID.fullmatch(value[0]) for key, value in pairs):
        raise InputError(f"{path} is a list of ImageNet's ids and names: pass --classes imagenet, in the same order")
    entries = []
    for number, (name, prompts) in enumerate(pairs, start=1):
        texts = [text.strip() for text in ([prompts] if isinstance(prompts, str) else prompts)]
        if not all(texts):
            raise InputError(f"{path}: a prompt of {name!r} is blank; remove it or fill it in")
        entries.append(with_parents(Entry(number=number, name=name, prompts=texts), str(path), "entry"))
    return entries


def _are_prompts(value: Any) -> bool:
    is_list = isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)
    return is_list or isinstance(value, str)


def _numbered(pairs: Pairs, source: str) -> list[Entry]:
    """Classes by their numbers, which stand as text in any order."""
    if not all(key.isdecimal() and isinstance(name, str) for key, name in pairs):
        raise InputError(f'{source} must be numbers and names, such as {{"0": "cat", "1": "dog"}}')
    named = sorted((int(key), name) for key, name in pairs)
    wrong = next((k for k, (number, _) in enumerate(named) if number != k), None)
    if wrong is not None:
        what = "twice the number" if named[wrong][0] < wrong else "no class with the number"
        raise InputError(
            f"{source} has {what} {min(wrong, named[wrong][0])}: {len(named)} classes need the numbers 0 to "
            f"{len(named) - 1}, in the order of the columns"
        )
    return [Entry(number=k, name=name) for k, name in named]


def _not_understood(path: Path) -> InputError:
    return InputError(
        f'{path} must be a list of class names, or names and prompts as {{"cat": ["cat", "kitten"], "dog": "dog"}}, or '
        'numbers and names as {"0": "cat", "1": "dog"}'
    )
