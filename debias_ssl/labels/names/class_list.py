"""`ClassList`: distinct names of classes, their names in prompts, and the names above them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from textwrap import shorten

from debias_ssl.labels.names.hierarchy import parents_of
from debias_ssl.system.errors import InputError

# Between a name and the one above it; "<5 years" and "a<b" are names.
ABOVE = re.compile(r"(?<=\s)<(?=\s)")

Classes = Sequence[str] | Mapping[str, str | Sequence[str]]
"""Names of classes, or names with those above them (NAME < PARENT) and their prompts."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A text that images are compared with: a name for the templates, or a complete sentence."""

    text: str
    is_sentence: bool = False


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The entry of one class in a list."""

    number: int
    """Of its line or entry, from 1."""
    name: str
    prompts: Sequence[str] = ()
    """Without any, its name is its prompt."""
    above: Sequence[str] = ()
    """The names above it, the nearest first."""


@dataclass(frozen=True, kw_only=True)
class ClassList:
    """Classes with their prompts, and the names above them."""

    names: tuple[str, ...]
    prompts: tuple[tuple[Prompt, ...], ...]
    """Of each class, one at least, all different."""
    parents: Mapping[str, str] = field(default_factory=dict)
    """The name above each name that has one, of classes and of the names above them."""
    repeats: bool = False
    """Whether some classes may have the same prompts: open_clip's names of ImageNet call two pairs of classes alike."""

    @property
    def said(self) -> tuple[str, ...]:
        """What is to be said of how the list was understood, line by line."""
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
    """Classes that a program names: a sequence of names as they are, or names, with those above them, and prompts.

    Raises:
        InputError: a name is blank or there twice, or there are none.
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
    """A class whose name is still NAME < PARENT < ..., with these apart.

    Args:
        entry: the class.
        source: what errors call the list.
        unit: what errors call one of its items.

    Raises:
        InputError: one of them is blank.
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
        source: what errors call the list.
        unit: what errors call one of its items.
        units: several of them.

    Raises:
        InputError: a name is blank, there twice or no text, there are none, or names above contradict each other.
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
    """What ends with a period is a sentence, unless it is the name of the class; what is there twice counts once."""
    texts = dict.fromkeys(entry.prompts or [entry.name])
    return tuple(Prompt(text=text, is_sentence=text.endswith(".") and text != entry.name) for text in texts)
