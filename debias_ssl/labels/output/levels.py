"""Counts the rows that are named on each level of a hierarchy, and the correct ones among them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from debias_ssl.labels.debiasing.rows import Labeling
from debias_ssl.labels.names.hierarchy import hierarchy_of


def levels_of(labeling: Labeling) -> dict[str, Any]:
    """The figures of levels, of the reported rows, as entries of summary.json; none without names above and floor.

    Of each level, its number from 1 (what has nothing above it) and how many names it has. Where the truth is known,
    `accuracy` is the share of labels that are right on that level, `plain` and `debiased`: label and truth are the
    same class or below the same name of it. A class that is less deep stands for itself. With a floor, `named` is the
    number of rows whose name is of that level, and `name_accuracy` the share of those with known truth whose name is
    the true class or above it.
    """
    if labeling.name is None and (labeling.hierarchy is None or labeling.hierarchy.num_levels == 1):
        return {}
    hierarchy = labeling.hierarchy or hierarchy_of(labeling.classes, {})
    known = labeling.reported & (labeling.truth >= 0)
    levels: list[dict[str, Any]] = []
    for level in range(1, hierarchy.num_levels + 1):
        entry: dict[str, Any] = {"level": level, "num_names": int((hierarchy.levels == level).sum())}
        if known.any():
            of_class = hierarchy.at_level(level)
            truth = of_class[labeling.truth[known]]
            both = {"plain": labeling.plain, "debiased": labeling.label}
            entry["accuracy"] = {key: float((of_class[each[known]] == truth).mean()) for key, each in both.items()}
        if labeling.name is not None:
            # The number -1 is that of the last one.
            named = labeling.reported & (np.append(hierarchy.levels, 0)[labeling.name] == level)
            entry["named"] = int(named.sum())
            judged = named & known
            if judged.any():
                right = hierarchy.is_of(labeling.name[judged], labeling.truth[judged])
                entry |= {"name_accuracy": float(right.mean()), "named_known": int(judged.sum())}
        levels.append(entry)
    found: dict[str, Any] = {"levels": levels}
    if labeling.name is not None:
        unnamed = int((labeling.reported & (labeling.name < 0)).sum())
        found = {"floor": labeling.config.floor, **found, "num_unnamed": unnamed}
    return found


def levels_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """The result of `levels_of` as a table whose first row names the columns; empty if there is none."""
    levels = summary.get("levels", [])
    has_floor = "floor" in summary
    is_known = any("accuracy" in level for level in levels)
    if not has_floor and not is_known:
        return []
    head = ["level", "names", *(["rows named", "of them right"] if has_floor else [])]
    rows = [[*head, *(["plain right", "debiased right"] if is_known else [])]]
    for level in levels:
        cells = [str(level["level"]), f"{level['num_names']:,}"]
        if has_floor:
            right = _percent(level["name_accuracy"]) if "name_accuracy" in level else "-"
            cells += [f"{level['named']:,}", right]
        if is_known:
            cells += [_percent(level["accuracy"][key]) for key in ("plain", "debiased")]
        rows.append(cells)
    if has_floor:
        rows.append(["none", "", f"{summary['num_unnamed']:,}", *[""] * (len(rows[0]) - 3)])
    return rows


def levels_table(summary: Mapping[str, Any]) -> str:
    """The same for a terminal; empty where there is nothing to say."""
    return "\n".join(
        (f"{first:<10}" + "".join(f"{cell:>15}" for cell in cells)).rstrip() for first, *cells in levels_rows(summary)
    )


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"
