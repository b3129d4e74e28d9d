"""The section about abstention: the rows without a label, and the risk of the labels at each coverage."""

import numpy as np
from jaxtyping import Bool, Float, Int

from debias_ssl.formulas.selective import area_under_risk, risk_coverage
from debias_ssl.labels.debiasing.rows import Labeling
from debias_ssl.labels.output.abstention_figures import abstention_figures
from debias_ssl.reporting import figures
from debias_ssl.reporting.figures import Series
from debias_ssl.reporting.page import Figure, Picture, Section, Sheet, Table, between, percent, picture
from debias_ssl.reporting.sections.examples import PICTURES, Pictures, short_name

# Points of a curve, and classes in the table of rows without a label.
POINTS, MOST_ABSTAINED = 200, 30


def abstention_section(labeling: Labeling, pictures: Pictures | None) -> Section:
    """The rows with and without a label; empty if rows have no score.

    Args:
        labeling: the rows that are shown.
        pictures: reads the images of some rows; None leaves them out.
    """
    if labeling.abstention is None or labeling.abstained is None or labeling.score is None:
        return Section(title="Without a label")
    text = (
        f"Each row has a score, {labeling.abstention.score}. A higher score means a more certain label. Rows below the "
        "threshold get no label. All other parts of this page show the labels that they would have."
    )
    tables = [labeled_table(labeling)]
    sheets = []
    if labeling.abstained.any():
        tables.append(classes_table(labeling, labeling.abstained))
        sheets = [] if pictures is None else [least_sure_sheet(labeling, labeling.abstained, labeling.score, pictures)]
    known = labeling.truth >= 0
    drawn = risk_figure(labeling) if known.any() else coverage_figure(labeling)
    return Section(title="Without a label", text=text, tables=tables, figures=[drawn], sheets=sheets)


def labeled_table(labeling: Labeling) -> Table:
    """How many rows have a label, and how many of these are right."""
    found = abstention_figures(labeling)
    threshold, num = found["threshold"], found["num_labeled"] + found["num_abstained"]
    cells = {
        "labeled": f"{found['num_labeled']:,} of {num:,}",
        "coverage": percent(found["coverage"]),
        "threshold": "-" if threshold is None else f"{threshold:.4g}",
    }
    if "on_tuned" in found:
        tuned = found["on_tuned"]
        cells["right on rows of tune_on"] = (
            f"{percent(tuned['precision'])} ({between(tuned['interval'])}) of {tuned['num_labeled']:,}"
        )
    if "area_under_risk" in found:
        cells["right where known"] = percent(found.get("accuracy"))
        cells["95 % interval"] = between(found.get("accuracy_interval"))
        cells["of all"] = percent(float((labeling.label == labeling.truth)[labeling.truth >= 0].mean()))
    return Table(title="Rows with a label", head=["score", *cells], rows=[[found["score"], *cells.values()]])


def classes_table(labeling: Labeling, abstained: Bool[np.ndarray, " N"]) -> Table:
    """The classes that rows without a label would have."""
    names, num_classes = labeling.classes, len(labeling.classes)
    every = np.bincount(labeling.label, minlength=num_classes)
    none = np.bincount(labeling.label[abstained], minlength=num_classes)
    known = labeling.truth >= 0
    right = [_right_of_class(labeling, known & which) for which in (~abstained, abstained)] if known.any() else []
    order = [int(k) for k in np.argsort(-none, kind="stable")[:MOST_ABSTAINED] if none[k]]
    rows = [
        [names[k], f"{every[k]:,}", f"{none[k]:,}", percent(none[k] / every[k], 1), *(percent(r[k], 1) for r in right)]
        for k in order
    ]
    head = ["class", "would have it", "no label", "share", *(["right with label", "right without"] if right else [])]
    caption = f"The {len(order)} classes that rows without a label would most often have."
    return Table(title="Classes of rows without a label", head=head, rows=rows, caption=caption)


def _right_of_class(labeling: Labeling, rows: Bool[np.ndarray, " N"]) -> Float[np.ndarray, " C"]:
    """The share of some rows of each class that are right; nan where there are none."""
    label, num_classes = labeling.label[rows], len(labeling.classes)
    right = np.bincount(label, label == labeling.truth[rows], num_classes)
    with np.errstate(invalid="ignore"):
        return right / np.bincount(label, minlength=num_classes)


def risk_figure(labeling: Labeling) -> Figure:
    """The share of wrong labels at each coverage, plain and debiased, and the point that was chosen."""
    known = labeling.truth >= 0
    truth, series, areas = labeling.truth[known], [], []
    for i, (label, score) in enumerate(
        ((labeling.label, labeling.score), (labeling.plain, labeling.plain_score)),
    ):
        assert score is not None
        right = label[known] == truth
        coverage, risk, _ = risk_coverage(score[known], right)
        shown = _points(coverage)
        series.append(Series(x=100 * coverage[shown], y=risk[shown], color=i))
        areas.append(area_under_risk(score[known], right))
    legend = [("line-0", "debiased"), ("line-1", "plain")]
    assert labeling.abstained is not None
    labeled, level = ~labeling.abstained[known], None
    words = f"area {percent(areas[1])} plain, {percent(areas[0])} debiased"
    if labeled.any() and not labeled.all():
        level = float((labeling.label[known] != truth)[labeled].mean())
        place = np.array([100 * labeled.mean()])
        series.append(Series(x=place, y=np.array([level]), color=2, marker=True))
        legend.append(("mark-2", "chosen"))
        words += f"; chosen: {percent(level)} wrong at {percent(labeled.mean())}"
    return Figure(
        title="Risk against coverage",
        svg=figures.lines(
            series,
            f"Share of wrong labels over the share of rows with a label, the most certain first; {words}.",
            x_label="rows with a label, %",
            level=level,
        ),
        legend=legend,
        caption=f"The share of wrong labels if only the most certain rows get one. The truth is known for "
        f"{len(truth):,} rows; {words}. A smaller area is better.",
    )


def coverage_figure(labeling: Labeling) -> Figure:
    """The share of the rows that each threshold leaves a label, where no truth is known."""
    assert labeling.score is not None and labeling.abstention is not None
    score = np.sort(labeling.score)
    coverage = 1 - np.arange(len(score)) / len(score)
    shown = _points(score)
    threshold = labeling.abstention.threshold
    low, middle, high = np.quantile(score, (0.05, 0.5, 0.95))
    series, legend = [Series(x=score[shown], y=coverage[shown])], []
    if threshold is not None and score[0] < threshold <= score[-1]:
        chosen = float((score >= np.float32(threshold)).mean())
        series.append(Series(x=np.array([threshold]), y=np.array([chosen]), color=2, marker=True))
        legend = [("line-0", "rows with a label"), ("mark-2", "chosen")]
    words = f"5 % of the scores are below {low:.3g}, half below {middle:.3g}, 95 % below {high:.3g}"
    return Figure(
        title="Rows with a label at each threshold",
        svg=figures.lines(
            series,
            f"Share of the {len(score):,} rows with a label over the threshold of the score; {words}.",
            x_label=f"threshold of {labeling.abstention.score}",
            whole=False,
        ),
        legend=legend,
        caption=f"{words[0].upper()}{words[1:]}.",
    )


def _points(values: np.ndarray) -> Int[np.ndarray, " P"]:
    """Some places of a curve, both ends among them."""
    return np.unique(np.linspace(0, len(values) - 1, POINTS).round().astype(np.int64))


def least_sure_sheet(
    labeling: Labeling, abstained: Bool[np.ndarray, " N"], score: Float[np.ndarray, " N"], pictures: Pictures
) -> Sheet:
    """The images of the lowest scores."""
    classes, truth = labeling.classes, labeling.truth
    where = np.flatnonzero(abstained)
    shown: list[int] = where[np.argsort(score[where], kind="stable")][:PICTURES].tolist()
    drawn: list[Picture] = []
    for i, image in zip(shown, pictures(shown), strict=True):
        if image is not None:
            would, name = classes[labeling.label[i]], labeling.names[i]
            is_ = f"is {classes[truth[i]]}" if truth[i] >= 0 else "true class unknown"
            alt = f"{name}: no label, would be {would} by a score of {score[i]:.3f}, {is_}"
            drawn.append(picture(image, alt, [f"{would}? {score[i]:.3f}", is_, short_name(name)]))
    caption = f"The {len(drawn)} lowest scores of {len(where):,} rows without a label."
    return Sheet(title="Least certain", pictures=drawn, caption=caption)
