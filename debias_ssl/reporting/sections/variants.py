"""Figures that compare variants: curves, shares of pseudo-labels, recalls, confusion matrices and errors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from debias_ssl.reporting import figures
from debias_ssl.reporting.figures import NAMED, NUM_COLORS, Series, printable
from debias_ssl.reporting.page import Figure, Section, named, percent
from debias_ssl.reporting.reading.comparison import Variant
from debias_ssl.reporting.reading.inspection import Inspection
from debias_ssl.reporting.sections.against_truth import confusion_figure
from debias_ssl.reporting.sections.pseudo_labels import (
    moments_of,
    pseudo_confusion,
    pseudo_label_shares,
    strength_text,
)


def keys(variants: Sequence[Variant], kind: str = "line") -> list[tuple[str, str]]:
    """The legend: a color for each variant."""
    return [(f"{kind}-{i}", variant.name) for i, variant in enumerate(variants)]


def _curves(variants: Sequence[Variant], value: Any, *, evaluated: bool) -> list[Series]:
    """A curve for each variant: mean and standard deviation over seeds, at the steps that all seeds have.

    Args:
        variants: the variants.
        value: takes a record of `metrics.jsonl` and gives the number to draw.
        evaluated: whether to read evaluations instead of lines of the log.
    """
    series = []
    for i, variant in enumerate(variants):
        runs = [{r["step"]: value(r) for r in (run.evaluations if evaluated else run.logs)} for run in variant.runs]
        steps = sorted(set.intersection(*(set(run) for run in runs)))
        values = np.array([[np.nan if run[s] is None else run[s] for s in steps] for run in runs], dtype=float)
        several = values.std(0, ddof=1) if len(values) > 1 else None
        x, few = np.array(steps), evaluated and len(steps) < 30
        series.append(Series(x=x, y=values.mean(0), spread=several, color=i, marker=few))
    return series


def learning(variants: Sequence[Variant], where: str = "") -> Section:
    """Curves over training, one for each variant; `where` begins the descriptions."""
    kinds = [
        ("Accuracy on the test images", lambda r: r["ema"]["accuracy"], True, "The averaged model."),
        (
            "Lowest recall of a class",
            lambda r: r["ema"]["min_recall"],
            True,
            "The averaged model on the test images.",
        ),
        ("Share of pseudo-labels that counts", lambda r: r["mask_rate"], False, "The mask rate in training."),
        (
            "Accuracy of pseudo-labels that count",
            lambda r: r["pseudo_accuracy"],
            False,
            "During training, on images with a known true class.",
        ),
        (
            "Distance of the marginal from uniform",
            lambda r: float(np.abs(np.array(r["marginal"]) - 1 / len(r["marginal"])).sum() / 2),
            False,
            "Half the sum of absolute differences: the size of the model's class bias on unlabeled images.",
        ),
    ]
    drawn = []
    for title, value, evaluated, caption in kinds:
        series = _curves(variants, value, evaluated=evaluated)
        if all(np.isnan(line.y).all() for line in series):
            continue
        ends = ", ".join(f"{printable(v.name)} {percent(line.y[-1])}" for v, line in zip(variants, series, strict=True))
        svg = figures.lines(series, f"{where}{title} over steps; at the end {ends}.")
        drawn.append(Figure(title=title, svg=svg, legend=keys(variants), caption=f"{caption} At the end: {ends}."))
    return Section(title="Learning", figures=drawn)


def bias(variants: Sequence[Variant], true: Sequence[int] | None, where: str = "") -> Section:
    """Sorted shares of the classes among the pseudo-labels of each variant, at four moments of training."""
    drawn = []
    num_classes = len(variants[0].runs[0].classes)
    rank = np.arange(1, num_classes + 1)
    truth = None if true is None else np.sort(np.array(true) / sum(true))[::-1]
    moments = [[moments_of(run) for run in variant.runs] for variant in variants]
    number = min(len(logs) for each in moments for logs in each)
    sorted_shares = np.array(
        [
            [np.mean([np.sort(pseudo_label_shares(logs[m])[0])[::-1] for logs in each], 0) for each in moments]
            for m in range(-number, 0)
        ]
    )
    without = sorted_shares.sum((0, 2)) == 0
    sorted_shares[:, without] = np.nan
    # An axis needs some height, even if nothing is drawn.
    top = 1.08 * max(np.nan_to_num(sorted_shares).max(), 0 if truth is None else truth.max()) or 1
    # A separate look, even if the variants use all colors.
    true_look = max(NUM_COLORS - 1, len(variants))
    legend = keys(variants) + ([] if truth is None else [(f"line-{true_look}", "true shares")])
    for shares, m in zip(sorted_shares, range(-number, 0), strict=True):
        step = moments[0][0][m]["step"]
        series = [Series(x=rank, y=row, color=i, marker=num_classes <= NAMED) for i, row in enumerate(shares)]
        if truth is not None:
            series.append(Series(x=rank, y=truth, color=true_look))
        words = "; ".join(
            f"{printable(v.name)} from {percent(row[0], 1)} to {percent(row[-1], 1)}"
            for v, row in zip(variants, shares, strict=True)
            if not np.isnan(row).any()
        )
        svg = figures.lines(
            series,
            f"{where}Sorted shares of pseudo-labels at step {step}: {words}.",
            x_label="class, by rank",
            top=top,
            small=True,
        )
        drawn.append(Figure(title=f"Step {step:,}", svg=svg, caption=words, legend=legend, is_small=True))
    text = (
        "Shares of the classes among the pseudo-labels that count, the most frequent class first, at four moments of "
        "training. A steep line shows class bias. Debiased pseudo-labels are closer to the true shares."
    )
    if without.any():
        names = ", ".join(printable(variant.name) for variant, none in zip(variants, without, strict=True) if none)
        text += f" No pseudo-labels count in {names}."
    return Section(title="The bias", text=text, figures=drawn)


def _mean_recalls(variant: Variant) -> Float[np.ndarray, " C"]:
    of_runs = [[np.nan if r is None else r for r in run.metrics["recalls"]] for run in variant.runs]
    return np.array(of_runs, dtype=float).mean(0)


def recalls(variants: Sequence[Variant], where: str = "") -> Section:
    """The recall of each class, averaged over seeds."""
    names = variants[0].runs[0].classes
    values = np.stack([_mean_recalls(variant) for variant in variants])
    order = [int(k) for k in np.argsort(values[0], kind="stable") if not np.isnan(values[0, k])]
    lowest = [[k for k in np.argsort(row, kind="stable").tolist() if k in order][:2] for row in values]
    words = "; ".join(
        f"{printable(variant.name)} lowest {named(row, names, two)}"
        for variant, row, two in zip(variants, values, lowest, strict=True)
    )
    many = len(order) > NAMED
    svg = figures.class_dots(values[:, order], [names[k] for k in order], f"{where}Recall of each class: {words}.")
    caption = f"On test images, means over seeds, by {'rank' if many else 'the first variant'}: {words}."
    legend = keys(variants, "line" if many else "mark")
    return Section(title="Recall of each class", figures=[Figure(title="", svg=svg, legend=legend, caption=caption)])


def confusions(inspections: Sequence[tuple[str, Inspection]], classes: Sequence[str]) -> Section:
    """The confusion matrices of the pseudo-labels of each variant's first run."""
    drawn = [
        confusion_figure(
            pseudo_confusion(inspection, labels, len(classes)),
            classes,
            f"{name}, {kind}",
            f"{kind} pseudo-labels of {name}",
        )
        for name, inspection in inspections
        for kind, labels in (("plain", inspection.plain), ("debiased", inspection.debiased))
        # A method without a strength trains on plain pseudo-labels only.
        if kind == "plain" or inspection.is_own_strength
    ]
    used = "; ".join(f"{name} by {strength_text(i)}" for name, i in inspections if i.is_own_strength)
    text = (
        f"Each variant's averaged model (first seed) labels {len(inspections[0][1].index):,} unlabeled images, without "
        "augmentation and threshold."
    )
    return Section(
        title="Confusion of pseudo-labels", text=text + (f" Debiased: {used}." if used else ""), figures=drawn
    )


def error_shares(variant: Variant, most: int) -> Float[np.ndarray, " C"]:
    """Share of each class's errors that falls on its `most` most confused classes; nan for classes without errors."""
    wrong = np.sum([np.array(run.metrics["confusion"]) for run in variant.runs], 0).astype(float)
    np.fill_diagonal(wrong, 0)
    total = wrong.sum(1)
    largest = np.sort(wrong, 1)[:, ::-1][:, :most].sum(1)
    return np.divide(largest, total, out=np.full(len(total), np.nan), where=total > 0)


def errors(variants: Sequence[Variant], where: str = "") -> Section:
    """Whether the errors of a class are spread over many classes, or fall on one or two others."""
    names, drawn = variants[0].runs[0].classes, []
    for most, title in ((1, "On the most confused class"), (2, "On the two most confused classes")):
        values = np.stack([error_shares(variant, most) for variant in variants])
        order = [k for k in range(len(names)) if not np.isnan(values[:, k]).all()]
        if not order:
            continue
        means = "; ".join(
            f"{printable(v.name)} {percent(float(np.nanmean(row)), 1)}"
            for v, row in zip(variants, values, strict=True)
            if not np.isnan(row).all()
        )
        svg = figures.class_dots(
            values[:, order], [names[k] for k in order], f"{where}{title}: share of a class's errors, mean {means}."
        )
        legend = keys(variants, "line" if len(order) > NAMED else "mark")
        drawn.append(Figure(title=title, svg=svg, legend=legend, caption=f"Mean over classes with errors: {means}."))
    text = "The share of each class's test errors, summed over seeds, in which one or two other classes are predicted."
    return Section(title="Where errors fall", text=text, figures=drawn)
