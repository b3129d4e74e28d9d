"""Tables of a comparison for the terminal: differing settings, the results, and the gain from unlabeled images."""

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from debias_ssl.runs.pairing import Block, own_name
from debias_ssl.runs.results import METRICS, PAIRED

MISSING = "-"
NAMES = {"accuracy": "accuracy", "mean_recall": "mean recall", "min_recall": "min recall"}


def differing(differences: Mapping[str, Mapping[str, Any]], variants: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The settings that differ between some variants, from those that differ between all."""
    found = {}
    for field, values in differences.items():
        own = {name: values[name] for name in variants if name in values}
        if own and (len(own) < len(variants) or any(value != next(iter(own.values())) for value in own.values())):
            found[field] = own
    return found


def between_settings(
    differences: Mapping[str, Mapping[str, Any]], settings: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """The differences between settings, by their names; `settings` has one variant of each."""
    found = differing(differences, [*settings])
    return {field: {settings[name]: value for name, value in values.items()} for field, values in found.items()}


def differences_text(differences: Mapping[str, Mapping[str, Any]], blocks: Sequence[Block]) -> str:
    """The settings that differ, as tables for a terminal: between blocks, and inside of each."""
    if not differences:
        return "the variants do not differ in any setting"
    texts = []
    if len(blocks) > 1:
        firsts = {block.first: block.setting for block in blocks}
        texts.append(_settings_text("settings", between_settings(differences, firsts), [*firsts.values()]))
    for title, names, inside in inside_settings(differences, {block.setting: block.variants for block in blocks}):
        texts.append(_settings_text(title[0].lower() + title[1:], inside, names))
    return "\n\n".join(texts)


def inside_settings(
    differences: Mapping[str, Mapping[str, Any]], blocks: Mapping[str, Sequence[str]]
) -> list[tuple[str, list[str], dict[str, dict[str, Any]]]]:
    """The differences between the variants of each setting: a title, their names, and the values of each field.

    For settings after the first one, only differences that are not the same there.
    """
    found = []
    said: dict[str, dict[str, Any]] = {}
    for setting, variants in blocks.items():
        own = {
            field: {own_name(name): value for name, value in values.items()}
            for field, values in differing(differences, variants).items()
        }
        new = {field: values for field, values in own.items() if said.get(field) != values}
        if new:
            title = "What differs" + (f" in {setting}" * (len(blocks) > 1)) + (", beside the above" if said else "")
            found.append((title, [own_name(name) for name in variants], new))
        said |= own
    return found


def _settings_text(title: str, differences: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str:
    lines = [[title, *names]]
    for field, values in differences.items():
        lines.append([field, *(json.dumps(values[name]).strip('"') if name in values else MISSING for name in names)])
    return aligned(lines)


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """The result of `aggregate` as tables for a terminal, in percent: a block for each setting."""
    percents = [*METRICS, "median_accuracy", "best_test_accuracy"]
    titles = ["accuracy", "mean recall", "min recall", "h mean", "ece", "median acc.", "best (test)"]
    choosing = any(line["validation_accuracy"]["mean"] is not None for line in lines)
    if choosing:
        percents, titles = [*percents, "validation_accuracy"], [*titles, "validation acc."]
    cells = [["variant", "seeds", *titles, "seconds", "images/s"]]
    for setting, of_setting in by_setting(lines).items():
        cells += [[f"{setting}:", *[""] * (len(titles) + 3)]] if setting else []
        for line in of_setting:
            rates = [line[name]["mean"] for name in ("seconds", "images_per_second")]
            cells.append(
                [
                    own_name(line["variant"]) + (" *" if line["chosen"] else ""),
                    str(len(line["seeds"])),
                    *(spread_text(line[name]) for name in percents),
                    *(MISSING if rate is None else f"{rate:,.0f}" for rate in rates),
                ]
            )
    text = [
        aligned(cells),
        "percent, mean ± standard deviation over seeds, averaged model; last step unless a column says otherwise",
        '"best (test)" is chosen on the test set, so it is optimistic',
    ]
    if any(line["chosen"] for line in lines):
        text.append("* chosen: highest mean accuracy on the validation images (averaged model, last step)")
    return "\n".join(text + _paired_lines(lines) + _payoff_lines(lines))


def by_setting(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The lines of each setting, in their order."""
    return {setting: [*of_setting] for setting, of_setting in groupby(lines, lambda line: line["setting"])}


def paired_tables(lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[list[str]]]]:
    """Tables for the lines of a setting: differences to the labels-only run, and to the first variant, with titles.

    A row is a variant, the number of pairs, and the difference of each metric with its interval.
    """
    tables = []
    for to in ("floor", "first"):
        compared = [line for line in lines if line[f"difference_to_{to}"] is not None]
        # The first variant may be the labels-only run itself.
        if to == "first":
            compared = [line for line in compared if line["floor"] != line["first"]]
        rows = [
            [
                own_name(line["variant"]),
                str(line[f"difference_to_{to}"]["accuracy"]["num"]),
                *(interval_text(line[f"difference_to_{to}"].get(name)) for name in PAIRED),
            ]
            for line in compared
        ]
        others = {own_name(line[to]) for line in compared}
        if rows:
            tables.append((f"difference to {others.pop() if len(others) == 1 else 'labels only'}", rows))
    return tables


def _paired_lines(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = []
    for setting, of_setting in by_setting(lines).items():
        for title, rows in paired_tables(of_setting):
            where = f"{setting}: " if setting else ""
            cells += [[where + title, "pairs", *(NAMES[name] for name in PAIRED)], *rows]
    if not cells:
        return []
    return ["", aligned(cells), "points, mean over seeds that both finished, [95 % interval of Student's t]"]


def _payoff_lines(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    judged = [line for line in lines if line["floor"] is not None]
    said = [f"{line['setting'] + ', ' if line['setting'] else ''}{payoff_text(line)}" for line in judged]
    return ["", "did the unlabeled images pay?", *said] if said else []


def payoff_text(line: Mapping[str, Any]) -> str:
    """A sentence: whether the unlabeled images paid in this variant, beside the same labels alone."""
    difference, num = line["difference_to_floor"], line["difference_to_floor"]["accuracy"]["num"]
    name = own_name(line["variant"])
    verdict = line["unlabeled_images"]
    if verdict is None:
        return f"{name}: not established, because no seed has finished both with and without unlabeled images"
    seeds = "" if verdict != "not established" else f" with {num} seed{'s' * (num > 1)}"
    accuracy = difference["accuracy"]
    text = f"{name}: {verdict}{seeds}: {100 * accuracy['mean']:+.1f} points of accuracy"
    text += f" (95 % interval {_range(accuracy)})" if num > 1 else " (one seed has no interval)"
    if line["is_uneven"]:
        others = {metric: difference[metric] for metric in PAIRED[1:]}
        told = [f"{NAMES[metric]} {100 * value['mean']:+.1f}" for metric, value in others.items()]
        ranges = [f" ({_range(value)})" if num > 1 else "" for value in others.values()]
        text += "; " + ", ".join(map(str.__add__, told, ranges))
    return text


def verdict_text(line: Mapping[str, Any]) -> str:
    """The verdict for a cell of a table, for accuracy only; just the numbers if nothing is established."""
    if line["unlabeled_images"] is None:
        return MISSING
    accuracy = line["difference_to_floor"]["accuracy"]
    interval = f" [{_range(accuracy)}]" if accuracy["num"] > 1 else ""
    word = "" if line["unlabeled_images"] == "not established" else f"{line['unlabeled_images']}: "
    return f"{word}{100 * accuracy['mean']:+.1f}{interval}"


def payoff_summary(setting: str, lines: Sequence[Mapping[str, Any]]) -> str:
    """A sentence for a setting: in which variants the unlabeled images paid, and in which they did not."""
    verdicts: dict[str, list[str]] = {"paid": [], "cost": [], "not established": []}
    for line in lines:
        verdicts[line["unlabeled_images"] or "not established"].append(own_name(line["variant"]))
    return f"{setting}: " + "; ".join(
        f"{verdict} in {', '.join(names)}" for verdict, names in verdicts.items() if names
    )


def _range(value: Mapping[str, float]) -> str:
    """The interval of a paired difference in points."""
    return f"{100 * value['low']:+.1f} to {100 * value['high']:+.1f}"


def spread_text(value: Mapping[str, float | None]) -> str:
    """Mean and deviation in percent."""
    if value["mean"] is None:
        return MISSING
    return f"{100 * value['mean']:.2f}" + ("" if value["std"] is None else f" ± {100 * value['std']:.2f}")


def interval_text(value: Mapping[str, float | None] | None) -> str:
    """A paired difference and its interval in points."""
    if value is None or value["mean"] is None:
        return MISSING
    if value["low"] is None or value["high"] is None:
        return f"{100 * value['mean']:+.2f}"
    return f"{100 * value['mean']:+.2f} [{100 * value['low']:+.2f}, {100 * value['high']:+.2f}]"


def aligned(cells: Sequence[Sequence[str]]) -> str:
    """Cells as lines of text: the first column is aligned to the left, the others to the right."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in cells
    )
