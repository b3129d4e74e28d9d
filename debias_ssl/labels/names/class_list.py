"""`ClassList`: distinct names of classes, their prompts, and the names above them in a hierarchy."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from textwrap import shorten

from debias_ssl.labels.names.hierarchy import parents_of
from debias_ssl.system.errors import InputError

# The < between a name and the one above it needs spaces: "<5 years" and "a<b" are names.
ABOVE = re.compile(r"(?<=\s)<(?=\s)")

Classes = Sequence[str] | Mapping[str, str | Sequence[str]]
"""Names of classes; or a mapping from names, also as NAME < PARENT < ..., to prompts."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A text to compare images with: a name to insert into templates, or a complete sentence."""

    text: str
    is_sentence: bool = False


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The entry of one class in a list."""

    number: int
    """The number of its line or entry, from 1."""
    name: str
    prompts: Sequence[str] = ()
    """If empty, the name is the prompt."""
    above: Sequence[str] = ()
    """The names above the class, the nearest first."""


@dataclass(frozen=True, kw_only=True)
class ClassList:
    """Classes with their prompts, and the names above them."""

    names: tuple[str, ...]
    prompts: tuple[tuple[Prompt, ...], ...]
    """The different prompts of each class, at least one."""
    parents: Mapping[str, str] = field(default_factory=dict)
    """The name above a class or above another name, for each that has one."""
    repeats: bool = False
    """Whether classes may have the same prompts: two pairs of classes have one name in open_clip's list of ImageNet."""

    @property
    def said(self) -> tuple[str, ...]:
        """How the list was understood, as lines for a terminal."""
        lines = []
        if self.parents:
            chain = [next(name for name in self.names if name in self.parents)]
            while chain[-1] in self.parents:
                chain.append(self.parents[chain[-1]])
            lines.append(
                f"{sum(name in self.parents for name in self.names)} of {len(self.names)} classes have names above "
                f"them, such as {shorten(' < '.join(chain), 100, placeholder=' ...')}"
            )
        prompts = [prompt for of_class in self.prompts for prompt in of_class]
        sentences = [prompt.text for prompt in prompts if prompt.is_sentence]
        if sentences:
            lines.append(
                f"note: {len(sentences)} of {len(prompts)} prompts end with a period: they are used as sentences, "
                f"without templates; the first one is {shorten(repr(sentences[0]), 100, placeholder=' ...')}"
            )
        return tuple(lines)


def given_classes(classes: Classes) -> ClassList:
    """Classes that a program passes: a sequence of names, or a mapping from names (NAME < PARENT ...) to prompts.

    Raises:
        InputError: a name is blank or appears twice, or there are no names.
    """
    if not isinstance(classes, Mapping):
        return listed([Entry(number=k, name=name) for k, name in enumerate(classes, start=1)], "classes")
    entries = []
    for number, (name, prompts) in enumerate(classes.items(), start=1):
        entry = Entry(number=number, name=name, prompts=[prompts] if isinstance(prompts, str) else [*prompts])
        if not all(map(str.strip, entry.prompts)) or not entry.prompts:
            raise InputError(f"classes: a prompt of {name!r} is blank; remove it or fill it in")
        entries.append(with_parents(entry, "classes", "entry"))
    return listed(entries, "classes")


def with_parents(entry: Entry, source: str, unit: str) -> Entry:
    """Splits a name of the form NAME < PARENT < ... into the name of the class and the names above it.

    Args:
        entry: the class.
        source: the name of the list in errors.
        unit: the word for one of its items in errors.

    Raises:
        InputError: one of the names is blank.
    """
    name, *above = (part.strip() for part in ABOVE.split(entry.name))
    if above and not all([name, *above]):
        raise InputError(
            f"{source}, {unit} {entry.number}: {entry.name!r} has no name on one side of a <; write names that "
            "contain < in a JSON list"
        )
    return replace(entry, name=name, above=above)


def listed(entries: Sequence[Entry], source: str, unit: str = "entry", units: str = "entries") -> ClassList:
    """Entries as classes, checked.

    Args:
        entries: one for each class.
        source: the name of the list in errors.
        unit: the word for one of its items in errors.
        units: the word for several items in errors.

    Raises:
        InputError: a name is blank, appears twice or is not text; there are no names; or names above contradict each
            other.
    """
    if not entries:
        raise InputError(f"{source} has no class names")
    line_of: dict[str, int] = {}
    for entry in entries:
        name, line = entry.name, entry.number
        if not name.strip():
            raise InputError(f"{source}, {unit} {line}: the class name is blank; remove it or fill it in")
        try:
            "".join((name, *entry.prompts, *entry.above)).encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{source}, {unit} {line}: {name!r} is not UTF-8 text; save the file as UTF-8") from error
        if name in line_of:
            raise InputError(f"{source}: {units} {line_of[name]} and {line} are both {name!r}; names must differ")
        line_of[name] = line
    chains = {entry.number: (entry.name, *entry.above) for entry in entries}
    return ClassList(
        names=tuple(line_of),
        prompts=tuple(map(_prompts, entries)),
        parents=parents_of(chains, source, unit, units),
    )


def _prompts(entry: Entry) -> tuple[Prompt, ...]:
    """The different prompts of a class. A prompt that ends with a period is a sentence, unless it is the class name."""
    texts = dict.fromkeys(entry.prompts or [entry.name])
    return tuple(Prompt(text=text, is_sentence=text.endswith(".") and text != entry.name) for text in texts)
