"""Hierarchies of class names: the probability of a name above classes is the sum over its classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from debias_ssl.system.errors import InputError

# The largest rounding error of sums of probabilities in fp32.
ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True)
class Hierarchy:
    """Classes, and the names above them.

    Names with no name above them have level 1. The level of any other name is one more than that of the name above it.
    """

    names: tuple[str, ...]
    """The classes in their order, then the names above them."""
    num_classes: int
    parents: Int64[np.ndarray, " M"]
    """The number of the name above each name; negative on level 1."""
    levels: Int64[np.ndarray, " M"]

    @property
    def num_levels(self) -> int:
        return int(self.levels.max())

    def sums(self, probs: Float[Tensor, "n C"]) -> Float[Tensor, "n M"]:
        """Probabilities of all names, in fp64."""
        sums = torch.zeros(len(probs), len(self.names), dtype=torch.float64)
        sums[:, : self.num_classes] = probs
        for level in range(self.num_levels, 1, -1):
            below = torch.from_numpy(np.flatnonzero(self.levels == level))
            sums.index_add_(1, torch.from_numpy(self.parents)[below], sums[:, below])
        return sums

    def deepest(
        self, probs: Float[Tensor, "n C"], floor: float
    ) -> tuple[Int64[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
        """The deepest name of each row with a probability of at least the floor (up to rounding), and that probability.

        The search starts at level 1. It continues with the most probable name below the current one (the first of equal
        ones), as long as it reaches the floor. With a floor above 0.5 only one name of a level can reach it. If no name
        of level 1 reaches the floor, the number is -1 and the probability nan.
        """
        sums = self.sums(probs).clamp_(max=1).numpy()
        rows, number, confidence = np.arange(len(sums)), np.full(len(sums), -1), np.full(len(sums), np.nan)
        for level in range(1, self.num_levels + 1):
            names = np.flatnonzero(self.levels == level)
            # The parent of names of level 1 is -1, which is also the number of rows that have no name yet.
            among = np.where(self.parents[names] == number[:, None], sums[:, names], -1)
            best = among.argmax(1)
            reached = among[rows, best] >= floor - ROUNDING
            number = np.where(reached, names[best], number)
            confidence = np.where(reached, among[rows, best], confidence)
        return number, confidence.astype(np.float32)

    def at_level(self, level: int) -> Int64[np.ndarray, " C"]:
        """The name of each class on a level; the class itself if it is less deep."""
        number = np.arange(self.num_classes)
        for _ in range(self.num_levels - level):
            number = np.where(self.levels[number] > level, self.parents[number], number)
        return number

    def is_of(self, names: Int64[np.ndarray, " n"], classes: Int64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Whether each name is that of the class, or a name above the class."""
        number, found = classes.copy(), names == classes
        for _ in range(self.num_levels - 1):
            number = np.where(number >= 0, self.parents[number], -1)
            found |= (names == number) & (number >= 0)
        return found


def hierarchy_of(classes: tuple[str, ...], parents: Mapping[str, str]) -> Hierarchy:
    """Classes and the names above them.

    Args:
        classes: the classes in the order of the columns.
        parents: the name above each name that has one. It has no cycles, and no class is above another name.
    """
    names = [*classes, *dict.fromkeys(parent for parent in parents.values())]
    number = {name: k for k, name in enumerate(names)}
    above = [number[parents[name]] if name in parents else -1 for name in names]
    levels = []
    for k in range(len(names)):
        level = 1
        while above[k] >= 0:
            k, level = above[k], level + 1
        levels.append(level)
    return Hierarchy(
        names=tuple(names), num_classes=len(classes), parents=np.array(above), levels=np.array(levels, dtype=np.int64)
    )


def parents_of(
    chains: Mapping[int, Sequence[str]], source: str, unit: str = "entry", units: str = "entries"
) -> dict[str, str]:
    """The name above each name that has one.

    A chain applies to all others: after `maine coon < cat < animal`, `tabby < cat` is below animal too.

    Args:
        chains: for each line number, a class and the names above it, the nearest first.
        source: the name of the list in errors.
        unit: the word for one of its items in errors.
        units: the word for several items in errors.

    Raises:
        InputError: a name is directly below two others, is below itself, or is a class above another name.
    """
    parents: dict[str, str] = {}
    line_of: dict[str, int] = {}
    leaf_lines = {chain[0]: line for line, chain in chains.items()}
    for line, chain in chains.items():
        for name, parent in pairwise(chain):
            if parent in leaf_lines:
                raise InputError(
                    f"{source}: {parent!r} is a class in {unit} {leaf_lines[parent]} and stands above {name!r} in "
                    f"{unit} {line}; a name above others stands for their sum: rename the class"
                )
            if parents.setdefault(name, parent) != parent:
                raise InputError(
                    f"{source}: {name!r} is below {parents[name]!r} in {unit} {line_of[name]} and below {parent!r} in "
                    f"{unit} {line}; each name has only one name above it: change one of them"
                )
            line_of.setdefault(name, line)
    for start in parents:
        name, seen = start, [start]
        while (name := parents.get(name, "")) and name not in seen:
            seen.append(name)
        if name == start:
            lines = sorted({line_of[each] for each in seen})
            where = f"{unit} {lines[0]}" if len(lines) == 1 else f"{units} {' and '.join(map(str, lines))}"
            raise InputError(
                f"{source}: {start!r} is above itself in a circle, {' < '.join([*seen, start])}, by {where}: "
                "remove one of the <"
            )
    return parents
