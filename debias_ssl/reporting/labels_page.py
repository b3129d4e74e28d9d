"""The page of labels: predictions before and after a class prior is removed."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import scipy
import torch
from jaxtyping import Float, Int
from torch import Tensor

from debias_ssl.formulas.metrics import recall_intervals
from debias_ssl.labels.debiasing.rows import Labeling
from debias_ssl.labels.debiasing.tuning import UNTUNED, is_tuned
from debias_ssl.labels.output.levels import levels_rows
from debias_ssl.labels.output.summary import refined_words, summary_of
from debias_ssl.reporting import figures
from debias_ssl.reporting.figures import NAMED, printable, truncated
from debias_ssl.reporting.page import Figure, Page, Section, Table, between, named, percent
from debias_ssl.reporting.sections.abstention import abstention_section
from debias_ssl.reporting.sections.against_truth import (
    Confusion,
    confusion_counts,
    confusion_figure,
    reliability_figure,
)
from debias_ssl.reporting.sections.class_correlation import nearest_classes_section
from debias_ssl.reporting.sections.examples import Pictures, changed_sheet, wrong_sheet
from debias_ssl.reporting.sections.shares import shares_section

# Rows of the table of the classes whose counts change most.
MOST_CHANGED = 12
TABLE = {"accuracy": "accuracy", "mean_recall": "mean recall", "min_recall": "min recall", "h_mean": "H-mean"}
TABLE |= {"ece": "ECE"}


def labels_page(
    labeling: Labeling,
    *,
    facts: Sequence[str],
    features: Callable[[], Iterable[Float[Tensor, "_ D"]]] | None,
    pictures: Pictures | None,
) -> Page:
    """The effect of removing a class prior; rows that strength and temperature were chosen on are left out.

    Args:
        labeling: the labels of all rows.
        facts: lines below the title.
        features: yields the features of all rows in row order, in chunks; None leaves the similarity of classes out.
        pictures: reads the images of some rows; None leaves the examples out.
    """
    config, kept = labeling.config, np.flatnonzero(labeling.reported)
    setting = (
        f"prior {config.estimate}, strength {labeling.strength:g}, temperature {labeling.temperature:.4g}, "
        f"target {config.target_prior}{refined_words(labeling)}"
    )
    notes = [f"{note[0].upper()}{note[1:]}." for note in labeling.notes]
    if labeling.is_refined:
        notes.append("Debiased labels on this page are also refined by the neighbors of the rows.")
    if len(kept) < len(labeling.reported):
        tuned = len(labeling.reported) - len(kept)
        notes.append(f"All figures leave out {tuned:,} rows, on which strength and temperature may be chosen.")
    sections = []
    if len(kept):
        shown = _only(labeling, kept)
        sections = [headline(shown), counts(shown)]
        if shown.shares is not None:
            sections.insert(1, shares_section(shown.shares, shown.truth, shown.classes))
        if (shown.truth >= 0).any():
            sections.append(against_truth(shown))
        of_shown = None if pictures is None else lambda rows: pictures(kept[rows].tolist())
        sections.append(abstention_section(shown, of_shown))
        if features is not None:
            sections.append(nearest_classes_section(shown, kept, len(labeling.reported), features()))
        if of_shown is not None:
            sections.append(examples(shown, of_shown))
        sections.append(Section(title="All classes", tables=[class_table(shown)]))
    return Page(
        title="Labels before and after debiasing",
        facts=[
            *facts,
            f"{len(labeling.classes):,} classes; {setting}",
            *([] if is_tuned(config) else [f"{UNTUNED[0].upper()}{UNTUNED[1:]}"]),
        ],
        notes=notes,
        sections=[section for section in sections if section.tables or section.figures or section.sheets],
    )


def _only(labeling: Labeling, kept: Int[np.ndarray, " R"]) -> Labeling:
    """The labeling of some rows."""
    if len(kept) == len(labeling.reported):
        return labeling
    arrays = ["plain", "plain_confidence", "label", "confidence", "top2_gap", "truth", "reported"]
    arrays += ["name", "name_confidence"] if labeling.name is not None else []
    arrays += ["score", "plain_score", "abstained"] if labeling.abstained is not None else []
    rows: dict[str, Any] = {name: getattr(labeling, name)[kept] for name in arrays}
    return replace(labeling, names=[labeling.names[i] for i in kept.tolist()], **rows)


def headline(labeling: Labeling) -> Section:
    """The tables of metrics and of predicted counts."""
    summary = summary_of(labeling)
    known = int((labeling.truth >= 0).sum())
    which = {"plain": labeling.plain_confidence, "debiased": labeling.confidence}
    tables = []
    if known:
        rows = [
            [key, *(percent(summary[key][name]) for name in TABLE), between(summary[key]["accuracy_interval"])]
            for key in which
        ]
        caption = f"The true class is known for {known:,} of {summary['num']:,} rows."
        head = ["", *TABLE.values(), "accuracy, 95 % interval"]
        tables.append(Table(title="Against the truth", head=head, rows=rows, caption=caption))
    rows = []
    for key, confidence in which.items():
        number = np.array([*summary["counts"][key].values()])
        ends = (
            f"{percent(number[k] / number.sum())} ({truncated(labeling.classes[k], 24)})"
            for k in (number.argmin(), number.argmax())
        )
        rows.append([key, f"{summary['count_entropy'][key]:.4f}", *ends, percent(confidence.mean(dtype=float))])
    caption = (
        f"Debiasing changes {summary['num_changed']:,} of {summary['num']:,} labels "
        f"({percent(summary['num_changed'] / summary['num'])}). "
        "The entropy of the predicted class shares is 1 if all shares are equal."
    )
    head = ["", "entropy of counts", "smallest class", "largest class", "mean confidence"]
    tables.append(Table(title="What is predicted", head=head, rows=rows, caption=caption))
    if levels := levels_rows(summary):
        head, *rows = levels
        caption = "Level 1 is the top. A class with fewer levels counts as itself on the lower levels."
        tables.append(Table(title="Levels of names", head=head, rows=rows, caption=caption))
    return Section(title="Figures", tables=tables)


def counts(labeling: Labeling) -> Section:
    """Predicted counts before and after, the prior, and the classes between which labels moved."""
    number = [np.bincount(labeling.truth[labeling.truth >= 0], minlength=len(labeling.classes))]
    number += [labeling.counts("plain"), labeling.counts("label")]
    true, before, after = (each / max(1, each.sum()) for each in number)
    drawn = [_shares(before, after, true if true.any() else None, labeling.classes)]
    if labeling.config.estimate != "none":
        drawn.append(_prior(labeling))
    return Section(title="Counts", tables=[flow_table(labeling)], figures=drawn)


def _shares(
    before: Float[np.ndarray, " C"],
    after: Float[np.ndarray, " C"],
    true: Float[np.ndarray, " C"] | None,
    names: Sequence[str],
) -> Figure:
    said = [
        f"{kind} labels are most often {named(share, names, [int(share.argmax())])}, "
        f"least often {named(share, names, [int(share.argmin())])}"
        for kind, share in (("plain", before), ("debiased", after), ("true", true))
        if share is not None
    ]
    kinds = ("line-0", "line-1", "line-2") if len(names) > NAMED else ("bar-0", "outline", "tick-1")
    meanings = ("share of debiased labels", "share of plain labels", "true share")
    goal, what = (
        (true, "the true shares") if true is not None else (np.full(len(names), 1 / len(names)), "equal shares")
    )
    away = [percent(np.abs(share - goal).sum() / 2, 1) for share in (before, after)]
    sorted_ = "Each curve is sorted separately. " if len(names) > NAMED else ""
    return Figure(
        title="Labels of each class",
        svg=figures.class_shares(
            after,
            before,
            true,
            names,
            f"Shares of {len(names)} classes: {'; '.join(said)}.",
            top=1.08 * max(share.max() for share in (before, after, true) if share is not None),
            small=False,
        ),
        legend=[*zip(kinds, meanings, strict=True)][: 2 if true is None else 3],
        caption=f"{sorted_}Distance from {what}: {away[0]} for plain labels, {away[1]} for debiased labels. It is the "
        "share of labels that would have to change.",
    )


def _prior(labeling: Labeling) -> Figure:
    prior, names = labeling.prior, labeling.classes
    order = np.argsort(-prior, kind="stable").tolist()
    half = min(3, len(order) // 2)
    largest, smallest = named(prior, names, order[:half], 2), named(prior, names, order[len(order) - half :], 2)
    level = 1 / len(names)
    return Figure(
        title="The class prior",
        svg=figures.class_shares(
            prior[order],
            None,
            None,
            [names[k] for k in order],
            f"Prior of {len(names)} classes: largest {largest}; smallest {smallest}; uniform {percent(level)}.",
            top=1.08 * max(float(prior.max()), level),
            level=level,
            small=False,
        ),
        legend=[("level", "equal probabilities")],
        caption=f"The class prior of the classifier, by the estimate {labeling.config.estimate}. Debiasing removes it. "
        f"Largest: {largest}. Smallest: {smallest}.",
    )


def flow_table(labeling: Labeling) -> Table:
    """The classes whose counts change most, and the classes that they gain labels from and lose labels to."""
    names = labeling.classes
    flows = confusion_counts(labeling.plain, labeling.label, len(names))
    before, after = flows.sum(1), flows.sum(0)
    np.fill_diagonal(flows, 0)
    known = labeling.truth >= 0
    true = np.bincount(labeling.truth[known], minlength=len(names))
    change = after - before
    order = [int(k) for k in np.argsort(-np.abs(change), kind="stable")[:MOST_CHANGED] if change[k]]

    def most(number: Int[np.ndarray, " C"]) -> tuple[str, str]:
        k = int(number.argmax())
        return f"{number.sum():,}", f"{truncated(names[k], 24)} ({number[k]:,})" if number[k] else "-"

    rows = []
    for k in order:
        cells = [names[k], f"{before[k]:,}", f"{after[k]:,}", *([f"{true[k]:,}"] if known.any() else [])]
        rows.append([*cells, *most(flows[:, k]), *most(flows[k])])
    head = ["class", "plain", "debiased", *(_true_head(known) if known.any() else [])]
    caption = f"The {len(order)} classes whose counts change most." if order else "No count changes."
    return Table(
        title="Where labels went", head=[*head, "gained", "most from", "lost", "most to"], rows=rows, caption=caption
    )


def _true_head(known: np.ndarray) -> list[str]:
    return ["true" if known.all() else f"true, of {known.sum():,}"]


def against_truth(labeling: Labeling) -> Section:
    """Confusion, precision and recall by count, and calibration, where the truth is known."""
    names, truth = labeling.classes, labeling.truth
    which = {"plain": (labeling.plain, labeling.plain_confidence), "debiased": (labeling.label, labeling.confidence)}
    drawn = [
        confusion_figure(confusion_counts(truth, label, len(names)), names, f"Confusion, {kind}", f"{kind} labels")
        for kind, (label, _) in which.items()
    ]
    scores = _scores_by_count(confusion_counts(truth, labeling.plain, len(names)), names)
    drawn += [] if scores is None else [scores]
    drawn += [
        reliability_figure(confidence, label, truth, f"Reliability, {kind}")
        for kind, (label, confidence) in which.items()
    ]
    return Section(title="Against the truth", figures=drawn)


def precisions_and_recalls(
    confusion: Confusion,
) -> tuple[Float[np.ndarray, " C"], Float[np.ndarray, " C"]]:
    """Precision and recall of each class; nan where it is never predicted, or has no rows."""
    right = confusion.diagonal()
    with np.errstate(invalid="ignore"):
        return right / confusion.sum(0), right / confusion.sum(1)


def rank_correlation(x: np.ndarray, y: np.ndarray) -> str:
    """Spearman's rank correlation as text; a dash for fewer than three classes, or where all numbers are the same."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return "-"
    found: Any = scipy.stats.spearmanr(x, y)
    return f"{found.statistic:.2f}"


def _scores_by_count(confusion: Confusion, names: Sequence[str]) -> Figure | None:
    """None where no class that is predicted is true too: there is no dot to draw."""
    precision, recall = precisions_and_recalls(confusion)
    predicted = confusion.sum(0)
    seen = np.flatnonzero((predicted > 0) & (confusion.sum(1) > 0))
    if not len(seen):
        return None
    never = [names[k] for k in np.flatnonzero(predicted == 0).tolist()]
    by_recall, by_precision = (rank_correlation(predicted[seen], each[seen]) for each in (recall, precision))
    words = f"rank correlation with the count: recall {by_recall}, precision {by_precision}"
    hidden = ""
    if never:
        some = ", ".join(printable(name) for name in never[:5]) + (", …" if len(never) > 5 else "")
        hidden = f" {len(never)} never predicted, not drawn: {some}."
    return Figure(
        title="Precision and recall by predicted count, plain",
        svg=figures.class_scatter(
            predicted[seen],
            np.stack([recall[seen], precision[seen]]),
            f"Recall and precision of {len(seen)} classes over their number of plain labels; {words}.",
            x_label="plain labels of the class",
        ),
        legend=[("mark-0", "recall"), ("mark-1", "precision")],
        caption=f"A dot and a square for each class; {words}. A biased classifier has high recall and low precision on "
        f"the classes that it prefers.{hidden}",
    )


def examples(labeling: Labeling, pictures: Pictures) -> Section:
    """Images whose label debiasing changes, and images with confident mistakes."""
    names, classes, truth = labeling.names, labeling.classes, labeling.truth
    what = "rows whose truth is known"
    sheets = [
        changed_sheet(labeling.plain, labeling.label, labeling.confidence, truth, classes, names, pictures),
        wrong_sheet(labeling.label, labeling.confidence, truth, classes, names, pictures, what),
    ]
    text = "Confidence is the probability after debiasing."
    return Section(title="Examples", text=text, sheets=[sheet for sheet in sheets if sheet.pictures])


def class_table(labeling: Labeling) -> Table:
    """The numbers behind the figures of classes."""
    names, known = labeling.classes, labeling.truth >= 0
    before, after = labeling.counts("plain"), labeling.counts("label")
    head = ["class", "prior", "shift", "plain", "debiased"]
    columns: list[list[str]] = [
        [percent(value, 3) for value in labeling.prior],
        [f"{value:.3f}" for value in labeling.shift],
        *([f"{number:,}" for number in each] for each in (before, after)),
    ]
    if known.any():
        confusions = [confusion_counts(labeling.truth, label, len(names)) for label in (labeling.plain, labeling.label)]
        scores = [precisions_and_recalls(confusion) for confusion in confusions]
        head += [*_true_head(known), "recall, plain", "recall, debiased", "precision, plain", "precision, debiased"]
        columns.append([f"{number:,}" for number in confusions[0].sum(1)])
        columns += [[percent(value, 1) for value in score[i]] for i in (1, 0) for score in scores]
        head.insert(head.index("precision, plain"), "95 % interval of it")
        intervals = recall_intervals(torch.from_numpy(confusions[1]))
        columns.insert(len(columns) - 2, [between(interval) for interval in intervals])
    return Table(
        title="Each class in numbers",
        head=head,
        rows=[[name, *cells] for name, *cells in zip(names, *columns, strict=True)],
        caption="The shift is subtracted from the logits of a class.",
        is_closed=True,
    )
