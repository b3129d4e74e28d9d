"""Names of classes, and the sentences that CLIP compares images with."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import open_clip

from debias_ssl.labels.class_names import distinct, read_class_names
from debias_ssl.system.errors import InputError
from debias_ssl.system.tables import check_text, read_text

Templates = Sequence[str] | Sequence[Callable[[str], str]]
OPEN_CLIP_TEMPLATES: dict[str, Templates] = {
    "simple": open_clip.SIMPLE_IMAGENET_TEMPLATES,
    "openai": open_clip.OPENAI_IMAGENET_TEMPLATES,
}


def class_names(where: str | Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of classes, and what prompts call them, from a file or, for `imagenet`, open_clip's list; or given ones.

    Raises:
        InputError: there is no such file, or there are not two names that differ.
    """
    if not isinstance(where, str):
        return _two_at_least(*distinct([(name, name) for name in where], "classes"), "classes")
    if where == "imagenet":
        prompts = tuple(open_clip.IMAGENET_CLASSNAMES)
        num = Counter(prompts)
        # Two names stand for two classes each.
        return tuple(name if num[name] == 1 else f"{name} ({k})" for k, name in enumerate(prompts)), prompts
    if not Path(where).is_file():
        raise InputError(f"--classes is {where!r}: there is no such file; a file of names, or imagenet, is expected")
    return _two_at_least(*read_class_names(Path(where)), where)


def negative_names(where: str | Sequence[str], of_classes: Sequence[str]) -> tuple[str, ...]:
    """What prompts call things that are none of the classes, from a file or as they are.

    Args:
        where: a file of names as `class_names` takes it, or names.
        of_classes: names of the classes, and what prompts call them.

    Raises:
        InputError: there is no such file, or one of them is a class.
    """
    if not isinstance(where, str):
        _, prompts = distinct([(name, name) for name in where], "negatives")
    elif not Path(where).is_file():
        raise InputError(
            f"--negatives is {where!r}: there is no such file; a file of names that are no classes is expected"
        )
    else:
        _, prompts = read_class_names(Path(where))
    known = {name.casefold() for name in of_classes}
    wrong = next((name for name in prompts if name.casefold() in known), None)
    if wrong is not None:
        raise InputError(f"--negatives has {wrong!r}, which is a class: its rows would never be sure; leave it out")
    return prompts


def _two_at_least(
    classes: tuple[str, ...], prompts: tuple[str, ...], source: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if len(classes) < 2:
        raise InputError(f"{source} names one class, {''.join(classes)!r}; at least two are needed to tell apart")
    return classes, prompts


def read_templates(where: str | Sequence[str]) -> Templates:
    """Sentences with {} for the name of a class: open_clip's, or the lines of a file; or given ones.

    Raises:
        InputError: there is no such file, or a sentence has no place for the name.
    """
    if not isinstance(where, str):
        return _checked(where, "templates", "sentence")
    if where in OPEN_CLIP_TEMPLATES:
        return OPEN_CLIP_TEMPLATES[where]
    path = Path(where)
    if not path.is_file():
        names = ", ".join(OPEN_CLIP_TEMPLATES)
        raise InputError(
            f"--templates is {where!r}: neither {names}, nor a file with a sentence like 'a photo of a {{}}.' a line"
        )
    lines = read_text(path).rstrip().splitlines()
    for number, line in enumerate(lines, start=1):
        check_text(line, path, number)
    return _checked(lines, str(path), "line")


def _checked(lines: Sequence[str], source: str, unit: str) -> Sequence[str]:
    for number, line in enumerate(lines, start=1):
        if line.count("{}") != 1 or set("{}") & set(line.replace("{}", "")):
            raise InputError(f"{source}, {unit} {number}: {line!r} must have {{}} once, where the name of a class goes")
    if not lines:
        raise InputError(f"{source} has no templates")
    return lines
