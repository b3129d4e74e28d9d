"""The page of several runs: whether unlabeled images helped, and the variants side by side, each with its seeds."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from debias_ssl.reporting.page import Figure, Page, Section, Table
from debias_ssl.reporting.reading.comparison import ComparedRuns, Variant
from debias_ssl.reporting.reading.inspection import ImagesGoneError, Inspection, inspect, true_counts
from debias_ssl.reporting.sections.gains import gains_figure, read_gains
from debias_ssl.reporting.sections.variants import bias, confusions, errors, learning, recalls
from debias_ssl.runs.pairing import own_name
from debias_ssl.runs.results import PAIRED
from debias_ssl.runs.tables import (
    NAMES,
    between_settings,
    by_setting,
    inside_settings,
    paired_tables,
    payoff_summary,
    payoff_text,
    spread_text,
    verdict_text,
)

# Columns of the first table: a metric, and its title.
TABLE = {"accuracy": "accuracy", "mean_recall": "mean recall", "min_recall": "min recall", "h_mean": "H-mean"}
TABLE |= {"ece": "ECE", "median_accuracy": "median acc.", "best_test_accuracy": "best on test"}
PAYOFF = "Did the unlabeled images pay?"


def comparison_page(compared: ComparedRuns, name: str) -> Page:
    """The page of several runs.

    Args:
        compared: the runs, by variant.
        name: the folder or the number of runs, for the head of the page.
    """
    variants, blocks = compared.variants, compared.blocks
    first = variants[0].runs[0]
    notes = [*compared.notes]
    sections = [*payoffs(compared), figures_of(compared)]
    if len(blocks) == 1:
        sections += _drawn(variants, notes)
    else:
        for setting, of_setting in blocks.items():
            sections += [
                Section(title=f"{each.title}: {setting}", text=each.text, figures=each.figures)
                for each in _drawn(of_setting, notes, f"{setting}: ")
            ]
    seeds = max(len(variant.runs) for variant in variants)
    methods = dict.fromkeys(own_name(variant.name) for variant in variants)
    facts = [
        f"{len(methods)} variants{f' in {len(blocks)} settings' * (len(blocks) > 1)}, "
        f"{seeds} seed{'s' * (seeds > 1)} each"
        + ("; lines are means over seeds, bands one standard deviation" if seeds > 1 else "")
    ]
    if len(blocks) == 1:
        images = (
            f"{first.config.model.name}, {len(first.classes)} classes, {sum(first.labeled_counts):,} labeled and "
            f"{first.num_unlabeled:,} unlabeled images, {len(first.labels):,} test images"
        )
        facts = [images, *facts]
    return Page(
        title=f"{', '.join(methods)} on {first.config.data.name}",
        facts=[name, *facts],
        notes=notes,
        sections=sections,
        texts=[(f"All settings: {variant.runs[0].path}/config.yaml", variant.runs[0].text) for variant in variants],
    )


def payoffs(compared: ComparedRuns) -> list[Section]:
    """Whether the unlabeled images helped: a sentence for each variant that uses them, against the labels alone."""
    judged = [line for line in compared.lines if line["floor"] is not None]
    if not judged:
        return []
    text = (
        "The accuracy of each variant minus that of a run on the same labels alone. Runs are paired by seed, and "
        "have the same network, split and steps. Unlabeled images paid if the 95 % interval is above 0, and cost "
        "accuracy if it is below 0. Each interval is for one variant: of twenty variants without any effect, one "
        "is expected to seem to pay or to cost."
    )
    by_block, values = by_setting(judged), read_gains(judged)
    drawn = [Figure(title="", svg=gains_figure(values))] if values else []
    if len(by_block) == 1:
        return [Section(title=PAYOFF, text=text, points=[payoff_text(line) for line in judged], figures=drawn)]
    names = [*dict.fromkeys(own_name(line["variant"]) for line in judged)]
    verdicts = {(line["setting"], own_name(line["variant"])): line for line in judged}
    rows = [
        [name, *(verdict_text(verdicts[key]) if (key := (setting, name)) in verdicts else "-" for setting in by_block)]
        for name in names
    ]
    points = [payoff_summary(setting, lines) for setting, lines in by_block.items()]
    caption = (
        "Points of accuracy: the mean over seeds, with Student's 95 % interval for several seeds. In a cell without a "
        "verdict, the sign of the difference is not established."
    )
    table = Table(title="", head=["variant", *by_block], rows=rows, caption=caption)
    return [Section(title=PAYOFF, text=text, points=points, tables=[table], figures=drawn)]


def _drawn(variants: Sequence[Variant], notes: list[str], where: str = "") -> list[Section]:
    """The figures of variants on the same images; what is left out is added to the notes.

    Args:
        variants: the variants.
        notes: the notes of the page.
        where: the setting, if there are several. Each variant's labels of the unlabeled images are then left out,
            because they need a pass over the images.
    """
    variants = [Variant(name=own_name(variant.name), runs=variant.runs) for variant in variants]
    first = variants[0].runs[0]
    inspections: list[tuple[str, Inspection]] = []
    for variant in [] if where else variants:
        try:
            inspections.append((variant.name, inspect(variant.runs[0])))
        except ImagesGoneError as error:
            notes.append(f"Left out, because the images are missing: the confusion of pseudo-labels ({error}).")
            break
    true = true_counts(first, inspections[0][1] if inspections else None)
    sections = [learning(variants, where), bias(variants, true, where), recalls(variants, where)]
    if inspections and (inspections[0][1].truth >= 0).any():
        sections.append(confusions(inspections, first.classes))
    return [*sections, errors(variants, where)]


def figures_of(compared: ComparedRuns) -> Section:
    """Means and standard deviations, paired differences, and the settings in which the variants differ."""
    caption = (
        "Percent: mean ± standard deviation over seeds, of the averaged model at the last step unless a "
        "column says otherwise. The best evaluation is chosen on the test images, so it is optimistic."
    )
    tables = []
    for setting, lines in by_setting(compared.lines).items():
        head = ["variant", "seeds", *TABLE.values(), "seconds", "images/s"]
        tables.append(Table(title=setting, head=head, rows=[_row(line) for line in lines], caption=caption))
        caption = ""
    caption = "Percentage points: mean over the seeds that both have, with Student's 95 % interval for several seeds."
    for setting, lines in by_setting(compared.lines).items():
        for number, (title, rows) in enumerate(paired_tables(lines)):
            head = ["paired difference", "seeds", *(NAMES[name] for name in PAIRED)]
            where = f"{setting}: {title}" if setting else f"{title[0].upper()}{title[1:]}"
            tables.append(Table(title=where, head=head, rows=rows, caption=caption, is_closed=bool(setting and number)))
            caption = ""
    return Section(title="Figures", tables=[*tables, *_what_differs(compared)])


def _row(line: Mapping[str, Any]) -> list[str]:
    chosen = " (chosen on validation images)" if line.get("chosen") else ""
    rates = [line[name]["mean"] for name in ("seconds", "images_per_second")]
    return [
        own_name(line["variant"]) + chosen,
        str(len(line["seeds"])),
        *(spread_text(line[name]) for name in TABLE),
        *("-" if rate is None else f"{rate:,.0f}" for rate in rates),
    ]


def _what_differs(compared: ComparedRuns) -> list[Table]:
    """The settings in which blocks differ, and the settings in which the variants of a block differ."""
    by_block = by_setting(compared.lines)
    tables = []
    if len(by_block) > 1:
        firsts = {lines[0]["first"]: setting for setting, lines in by_block.items()}
        tables.append(_settings_table("Settings", between_settings(compared.differences, firsts), [*firsts.values()]))
    caption = "All other settings are equal in all variants. A dash: the method has no such setting."
    blocks = {setting: [line["variant"] for line in lines] for setting, lines in by_block.items()}
    for title, names, inside in inside_settings(compared.differences, blocks):
        tables.append(_settings_table(title, inside, names, caption))
        caption = ""
    return tables


def _settings_table(
    title: str, differences: Mapping[str, Mapping[str, Any]], names: Sequence[str], caption: str = ""
) -> Table:
    rows = [
        [_field(field), *(_setting(values[name]) if name in values else "-" for name in names)]
        for field, values in differences.items()
    ]
    return Table(title=title, head=["setting", *names], rows=rows, caption=caption)


def _field(name: str) -> str:
    """A setting in the form of a command line."""
    return name.replace(".init_args", "").replace(".class_path", "")


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
