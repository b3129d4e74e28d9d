"""Ranges of numeric settings: declared in the type of a setting, checked wherever settings are made."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_type_hints

from debias_ssl.system.errors import InputError


@dataclass(frozen=True)
class Range:
    """The allowed range of a numeric setting, or of each number in a setting of several."""

    smallest: float
    largest: float = math.inf
    above: bool = False
    """Whether `smallest` itself is not allowed."""
    below: bool = True
    """Whether `largest` itself is not allowed. By default, infinity is not."""

    def __contains__(self, number: float) -> bool:
        is_large = number > self.smallest if self.above else number >= self.smallest
        return is_large and (number < self.largest if self.below else number <= self.largest)

    def __str__(self) -> str:
        if math.isinf(self.smallest):
            return "a finite number"
        if math.isinf(self.largest):
            return f"above {self.smallest}" if self.above else f"at least {self.smallest}"
        return f"in {'(' if self.above else '['}{self.smallest}, {self.largest}{')' if self.below else ']'}"

    __repr__ = __str__


Fraction = Annotated[float, Range(0, 1, below=False)]
"""A probability, or a part of a whole."""
Share = Annotated[float, Range(0, 1, above=True, below=False)]
"""A part of a whole, above 0."""
BelowOne = Annotated[float, Range(0, 1)]
"""A number from 0 on and below 1, such as a momentum or a dropout rate."""
Positive = Annotated[float, Range(0, above=True)]
"""A number above 0, such as a divisor."""
NotNegative = Annotated[float, Range(0)]
Finite = Annotated[float, Range(-math.inf, above=True)]
AtLeastOne = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Ratio = Annotated[float, Range(1)]
"""The ratio of a larger number to a smaller one."""


def ranges_of(hint: Any) -> Iterator[Range]:
    """The ranges in a type."""
    yield from (each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Range))
    for inner in get_args(hint):
        yield from ranges_of(inner)


def declared(kind: type | Callable) -> dict[str, Range]:
    """The ranges of a class's settings: of the fields of a dataclass, else of the arguments of its constructor."""
    source = kind if hasattr(kind, "__dataclass_fields__") else getattr(kind, "__init__", kind)
    hints = get_type_hints(source, include_extras=True)
    return {name: found for name, hint in hints.items() for found in ranges_of(hint)}


def check_values(kind: type | Callable, values: Mapping[str, Any], prefix: str) -> None:
    """Checks that values are in the ranges that a class declares.

    Raises:
        InputError: a value is not right, as in "optim.lr is -1, must be above 0".
    """
    for name, allowed in declared(kind).items():
        value = values.get(name)
        several = value if isinstance(value, list | tuple) else [value]
        if not all(each in allowed for each in several if isinstance(each, int | float)):
            raise InputError(f"{prefix}{name} is {value}, must be {allowed}")


def check_ranges(settings: Any, prefix: str, kind: type | None = None) -> None:
    """Checks that the attributes of an object are in the ranges that its class, or the given base class, declares.

    Raises:
        InputError: a value is not right.
    """
    check_values(kind or type(settings), vars(settings), prefix)
