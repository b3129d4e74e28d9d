"""Statements of people or tools about images: a label for each image, and its author."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A label that somebody gives to an image."""

    name: str
    """The path of the image as the file has it."""
    label: str
    """The name of a class; empty takes the label away."""
    source: str
    """Who says it."""
    time: str = ""
    """When, as text that can be compared; empty where the file does not say it."""
    where: str = ""
    """The file and its line, for errors."""


@dataclass(frozen=True, kw_only=True)
class Statements:
    """The statements of a file."""

    path: Path
    given: Sequence[Statement]
    kind: str
    """Of the file, in words."""
    are_reviewed: bool
    """Whether somebody looked at each of these images, so that a label that stays as it is was confirmed."""
    notes: tuple[str, ...] = ()
    """Notes for users about how the file was read."""
