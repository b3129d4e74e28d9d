"""Hierarchies: the probability of a name above classes is the sum over its classes. Nothing here touches a file."""

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

    Level 1 is what has nothing above it. A name has one level more than the name above it.
    """

    names: tuple[str, ...]
    """The classes in their order, then the names above them."""
    num_classes: int
    parents: Int64[np.ndarray, " M"]
    """Numbers of the names above the names; negative where there is none."""
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
        """The deepest name of each row whose probability is at least the floor, but for rounding, and that probability.

        It is looked for from above: of the names below the last one, the most probable one is next, as long as it
        reaches the floor; of equal ones the first. With a floor above 0.5 there is no other way. Where no name of
        level 1 reaches it, the number is -1 and the probability nan.
        """
        sums = self.sums(probs).clamp_(max=1).numpy()
        rows, number, confidence = np.arange(len(sums)), np.full(len(sums), -1), np.full(len(sums), np.nan)
        for level in range(1, self.num_levels + 1):
            names = np.flatnonzero(self.levels == level)
            # Above names of level 1 is -1, as for rows that have no name yet.
            among = np.where(self.parents[names] == number[:, None], sums[:, names], -1)
            best = among.argmax(1)
            reached = among[rows, best] >= floor - ROUNDING
            number = np.where(reached, names[best], number)
            confidence = np.where(reached, among[rows, best], confidence)
        return number, confidence.astype(np.float32)

    def at_level(self, level: int) -> Int64[np.ndarray, " C"]:
        """The name of each class on a level: itself where it is less deep."""
        number = np.arange(self.num_classes)
        for _ in range(self.num_levels - level):
            number = np.where(self.levels[number] > level, self.parents[number], number)
        return number

    def is_of(self, names: Int64[np.ndarray, " n"], classes: Int64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Whether names are those of classes, or of what is above them."""
        number, found = classes.copy(), names == classes
        for _ in range(self.num_levels - 1):
            number = np.where(number >= 0, self.parents[number], -1)
            found |= (names == number) & (number >= 0)
        return found


def hierarchy_of(classes: tuple[str, ...], parents: Mapping[str, str]) -> Hierarchy:
    """Classes and the names above them.

    Args:
        classes: in the order of the columns.
        parents: the name above each name that has one, without cycles, and no class above another name.
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

    What one chain says of a name holds in all: after `maine coon < cat < animal`, `tabby < cat` is below animal too.

    Args:
        chains: a class and the names above it, the nearest first, by the number of the line that says it.
        source: what errors call the list.
        unit: what errors call one of its items.
        units: several of them.

    Raises:
        InputError: a name is below two others, below itself, or a class and above another one.
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
