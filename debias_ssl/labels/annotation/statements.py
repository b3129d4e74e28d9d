"""Statements of people or tools about images: a label for each image, and its author."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A label that a person or a tool gives to an image."""

    name: str
    """The path of the image as in the file."""
    label: str
    """The name of a class; empty removes the label."""
    source: str
    """The author of the statement."""
    time: str = ""
    """The time as text that can be sorted; empty if unknown."""
    where: str = ""
    """The file and its line, for errors."""


@dataclass(frozen=True, kw_only=True)
class Statements:
    """The statements of a file."""

    path: Path
    given: Sequence[Statement]
    kind: str
    """A description of the file for messages."""
    are_reviewed: bool
    """Whether a person has checked each image: then an unchanged label is a confirmed label."""
    notes: tuple[str, ...] = ()
    """Notes for users about how the file was read."""
