"""The page of one run: a summary in words, metrics, training curves, and the pseudo-labels of its model."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from debias_ssl.formulas.metrics import accuracy_interval, recall_intervals
from debias_ssl.reporting import figures
from debias_ssl.reporting.figures import NAMED, Series, printable
from debias_ssl.reporting.page import Figure, Page, Section, Sheet, Table, between, named, percent
from debias_ssl.reporting.reading.inspection import ImagesGoneError, Inspection, inspect, pixels, true_counts
from debias_ssl.reporting.reading.run import METRICS, Finetuned, FinishedRun
from debias_ssl.reporting.sections.against_truth import confusion_figure, reliability_figure
from debias_ssl.reporting.sections.class_correlation import correlation_figure
from debias_ssl.reporting.sections.examples import changed_sheet, wrong_sheet
from debias_ssl.reporting.sections.in_words import summary_in_words
from debias_ssl.reporting.sections.pseudo_labels import (
    moments_of,
    pseudo_confusion,
    pseudo_label_shares,
    strength_text,
)

TITLES = [name.replace("_", " ").replace("h mean", "H-mean").replace("g mean", "G-mean") for name in METRICS[:-1]]
TITLES.append("ECE")
LEFT_OUT = "the confusion of pseudo-labels, the class correlation and the example images"


def run_page(run: FinishedRun) -> Page:
    """The page of a run; if its images were removed, a note replaces the parts that need them."""
    notes, inspection = [], None
    try:
        inspection = inspect(run)
    except ImagesGoneError as error:
        notes.append(f"Left out, because the images of the run are missing: {LEFT_OUT} ({error}).")
    words = summary_in_words(run, true_counts(run, inspection))
    sections = [words, headline(run), learning(run), bias(run, inspection), predictions(run)]
    if inspection is not None:
        sections += [pseudo_labels(run, inspection), examples(run, inspection)]
    sections.append(Section(title="All classes", tables=[class_table(run, true_counts(run, inspection))]))
    config = run.config
    return Page(
        title=f"{run.method} on {config.data.name}{', fine-tuned' if run.finetuned else ''}",
        facts=[
            str(run.path),
            *([f"{run.finetuned.description}; the first stage:"] if run.finetuned else []),
            f"{config.model.name}, {len(run.classes)} classes, {sum(run.labeled_counts):,} labeled and "
            f"{run.num_unlabeled:,} unlabeled images, {len(run.labels):,} test images",
            f"{run.summary['steps']:,} steps in {run.summary['seconds']:,.0f} s, "
            f"{run.summary['images_per_second']:,.0f} images/s; seed {config.seed}",
            *([f"Chosen by a trial: {run.trial}."] if run.trial else []),
        ],
        notes=notes,
        sections=sections,
        texts=[("All settings: config.yaml", run.text)],
    )


def headline(run: FinishedRun) -> Section:
    """The table of test metrics."""
    if run.finetuned:
        return before_and_after(run.finetuned)
    last_few = min(run.config.median_of, len(run.evaluations))
    moments = {
        "last": "last step",
        "median": f"median of last {last_few}",
        "best": "best, chosen on test",
    }
    rows = [
        [f"{title}, {moment}", *(percent(run.summary[which][key][name]) for name in METRICS)]
        for key, moment in moments.items()
        for which, title in (("ema", "EMA"), ("raw", "raw"))
    ]
    confusion = torch.tensor(run.metrics["confusion"])
    caption = (
        f"Metrics on the {int(confusion.sum()):,} test images. EMA is the averaged model, which is exported. Its "
        f"accuracy at the last step has the 95 % interval {between(accuracy_interval(confusion))}. Raw is the model "
        "without averaging. Judge by the last step, or by the median. The best evaluation is chosen on the test "
        "images, so it is optimistic."
    )
    return Section(title="Figures", tables=[Table(title="", head=["", *TITLES], rows=rows, caption=caption)])


def before_and_after(finetuned: Finetuned) -> Section:
    """The table of metrics before and after fine-tuning."""
    names = {"validation": "held-out", "test": "test"}
    rows = [
        [f"{names[part]}, {moment}", *(percent(value) for value in figures.values())]
        for (part, moment), figures in finetuned.metrics.items()
    ]
    caption = (
        "Before: the averaged model of the first run. After: the same network with the new classifier, which is "
        "exported. The classifier was chosen on the held-out images, so judge by the test images. Losses, curves, "
        "pseudo-labels and the marginal below are from the training of the first run."
    )
    table = Table(title="", head=["", "objective", *TITLES], rows=rows, caption=caption)
    return Section(title="Figures", tables=[table])


def learning(run: FinishedRun) -> Section:
    """Curves of losses, accuracy and pseudo-labels over training."""
    steps = np.array([log["step"] for log in run.logs])
    names = list(dict.fromkeys(name for log in run.logs for name in log["loss"]))
    losses = [
        Series(x=steps, y=np.array([log["loss"].get(name, np.nan) for log in run.logs], dtype=float), color=i)
        for i, name in enumerate(names)
    ]
    ends = ", ".join(
        f"{name} from {line.y[0]:.3g} to {line.y[-1]:.3g}" for name, line in zip(names, losses, strict=True)
    )
    at = np.array([e["step"] for e in run.evaluations])
    accuracy = {which: np.array([e[which]["accuracy"] for e in run.evaluations]) for which in ("ema", "raw")}
    right = np.array([np.nan if log["pseudo_accuracy"] is None else log["pseudo_accuracy"] for log in run.logs])
    mask = np.array([log["mask_rate"] for log in run.logs])
    known = right[~np.isnan(right)]
    said = f"{percent(known[-1], 1)} of these are right at the end" if len(known) else "their accuracy is unknown"
    drawn = [
        Figure(
            title="Losses",
            svg=figures.lines(losses, f"Loss terms over {steps[-1]} steps: {ends}.", percent=False),
            legend=[(f"line-{i}", name) for i, name in enumerate(names)],
            caption="Training minimizes the sum of these terms. A point is a mean over the steps since the last point.",
        ),
        Figure(
            title="Accuracy on the test images",
            svg=figures.lines(
                [Series(x=at, y=accuracy[w], color=i, marker=len(at) < 30) for i, w in enumerate(("ema", "raw"))],
                f"Test accuracy over steps: averaged model {percent(accuracy['ema'][0])} at step {at[0]}, "
                f"{percent(accuracy['ema'][-1])} at step {at[-1]}; raw model then {percent(accuracy['raw'][-1])}.",
            ),
            legend=[("line-0", "averaged model (EMA)"), ("line-1", "raw model")],
            caption="The exported model is the averaged one.",
        ),
        Figure(
            title="Pseudo-labels in training",
            svg=figures.lines(
                [Series(x=steps, y=mask), Series(x=steps, y=right, color=1)][: 2 if len(known) else 1],
                f"Share of pseudo-labels that count: {percent(mask[0], 1)} at step {steps[0]}, "
                f"{percent(mask[-1], 1)} at step {steps[-1]}; {said}.",
                top=1.02 if len(known) else None,
            ),
            legend=[("line-0", "share that counts (mask rate)"), ("line-1", "accuracy of these")][
                : 2 if len(known) else 1
            ],
            caption="A pseudo-label counts if its confidence is high enough. Accuracy needs known true classes.",
        ),
    ]
    return Section(title="Learning", figures=drawn)


def _marginals(run: FinishedRun) -> Figure:
    steps, marginal, names = np.array([log["step"] for log in run.logs]), run.marginal, run.classes
    order = np.argsort(-marginal[-1], kind="stable").tolist()
    half = min(3, len(order) // 2)
    largest, smallest = order[:half], order[len(order) - half :]
    spread = marginal.max(1) - marginal.min(1)
    worst = int(spread.argmax())
    alt = (
        f"Mean predicted probability of each class. At step {steps[-1]} the largest are "
        f"{named(marginal[-1], names, largest)}; the smallest {named(marginal[-1], names, smallest)}. "
        f"The classes were farthest apart at step {steps[worst]}, by {percent(spread[worst], 1)}."
    )
    return Figure(
        title="The marginal over time",
        svg=figures.marginals(steps, marginal, names, largest + smallest, alt),
        wide_svg=figures.marginals(steps, marginal, names, largest + smallest, alt, is_wide=True),
        legend=[("level", "equal probabilities"), ("band", "from the smallest to the largest class")],
        caption="The marginal is the running mean of the predictions on unlabeled images, before debiasing. It shows "
        "the model's average class bias. On balanced data, an unbiased model stays at the dotted line. The classes "
        "with the largest and smallest values are named.",
    )


def bias(run: FinishedRun, inspection: Inspection | None) -> Section:
    """The marginal over time, and the pseudo-labels of each class at four moments of training."""
    names, counts, logs = run.classes, true_counts(run, inspection), moments_of(run)
    true = None if counts is None else np.array(counts) / sum(counts)
    pairs = [pseudo_label_shares(log) for log in logs]
    # An axis needs some height, even if nothing is drawn.
    top = 1.08 * max(share.max() for pair in pairs for share in (*pair, pair[0] if true is None else true)) or 1
    kinds = ("line-0", "line-1", "line-2") if len(names) > NAMED else ("bar-0", "outline", "tick-1")
    meanings = [
        "share among pseudo-labels that count",
        "share among all pseudo-labels",
        "true share of unlabeled images",
    ]
    legend = [*zip(kinds, meanings, strict=True)][: 2 if true is None else 3]
    moments = [
        Figure(
            title=f"Step {log['step']:,}",
            svg=figures.class_shares(counted, every, true, names, _moment_alt(log, counted, true, names), top=top),
            caption=f"{log['mask_rate'] * sum(log['pseudo_counts']):,.0f} count; {_distance(counted, true)}",
            legend=legend,
            is_small=True,
        )
        for log, (counted, every) in zip(logs, pairs, strict=True)
    ]
    text = "The average class bias during training, and the class shares of the pseudo-labels at some steps."
    text += "" if true is None else " A bar above the true share shows bias toward its class."
    return Section(title="The bias", text=text, figures=[_marginals(run), *moments])


def _moment_alt(
    log: dict[str, Any], counted: Float[np.ndarray, " C"], true: Float[np.ndarray, " C"] | None, names: Sequence[str]
) -> str:
    number = sum(log["pseudo_counts"])
    if not counted.any():
        return f"Step {log['step']}: none of {number:,} pseudo-labels counts."
    most, least = int(counted.argmax()), int(counted.argmin())
    truth = "" if true is None else f" (true shares {percent(true[most], 1)} and {percent(true[least], 1)})"
    return (
        f"Step {log['step']}: {number:,} pseudo-labels, {percent(log['mask_rate'], 1)} of them count; of these most "
        f"are {printable(names[most])}, {percent(counted[most], 1)}, fewest {printable(names[least])}, "
        f"{percent(counted[least], 1)}{truth}."
    )


def _distance(counted: Float[np.ndarray, " C"], true: Float[np.ndarray, " C"] | None) -> str:
    """The distance of the pseudo-labels from the truth, for a caption."""
    if not counted.any():
        return "no shares yet"
    if true is None:
        return f"the largest class has {percent(counted.max(), 1)}"
    return f"{percent(np.abs(counted - true).sum() / 2, 1)} away from the true shares"


def predictions(run: FinishedRun) -> Section:
    """Confusion, recalls and reliability on the test images."""
    names, confusion = run.classes, np.array(run.metrics["confusion"])
    recalls = np.array([np.nan if recall is None else recall for recall in run.metrics["recalls"]], dtype=float)
    order = [int(k) for k in np.argsort(recalls, kind="stable") if not np.isnan(recalls[k])]
    confidence, predicted = torch.from_numpy(run.logits).double().softmax(-1).max(-1)
    lowest, highest = named(recalls, names, order[:3]), named(recalls, names, order[-3:])
    drawn = [
        confusion_figure(confusion, names, "Confusion of predictions", "predictions on test images"),
        Figure(
            title="Recall of each class, sorted",
            svg=figures.recall_bars(
                recalls[order],
                [names[k] for k in order],
                f"Recall of {len(order)} classes: lowest {lowest}; highest {highest}.",
            ),
            caption=f"Recall is the share of a class's test images that are right. Lowest: {lowest}. "
            f"Mean over classes: {percent(run.summary['ema']['last']['mean_recall'])}.",
        ),
        reliability_figure(confidence.numpy(), predicted.numpy(), run.labels, "Reliability"),
    ]
    text = "Predictions of the averaged model at the last step."
    return Section(title="Predictions on test images", text=text, figures=drawn)


def pseudo_labels(run: FinishedRun, inspection: Inspection) -> Section:
    """The exported model's labels of the unlabeled images, plain and debiased."""
    num, names = len(inspection.index), run.classes
    drawn = []
    if (inspection.truth >= 0).any():
        for kind, labels in (("plain", inspection.plain), ("debiased", inspection.debiased)):
            confusion = pseudo_confusion(inspection, labels, len(names))
            drawn.append(
                confusion_figure(
                    confusion, names, f"Confusion of pseudo-labels, {kind}", f"{kind} pseudo-labels of unlabeled images"
                )
            )
    correlation = correlation_figure(inspection, names)
    text = (
        f"The averaged model labels {num:,} of {run.num_unlabeled:,} unlabeled images, without augmentation and "
        f"threshold. Debiasing with {strength_text(inspection)} changes {inspection.changed.sum():,} of these labels."
    )
    if not drawn:
        text += " Their true classes are unknown, so there are no confusion matrices."
    return Section(title="Pseudo-labels", text=text, figures=drawn + ([correlation] if correlation else []))


def examples(run: FinishedRun, inspection: Inspection) -> Section:
    """Images with confident mistakes, and images whose pseudo-label debiasing changes."""
    sheets = [_wrong(run, inspection), _changed(run, inspection)]
    return Section(title="Examples", sheets=[sheet for sheet in sheets if sheet.pictures])


def _wrong(run: FinishedRun, inspection: Inspection) -> Sheet:
    confidence, predicted = torch.from_numpy(run.logits).double().softmax(-1).max(-1)
    names, task = inspection.task.data.test.names, inspection.task
    there = len(names) == len(run.labels)
    return wrong_sheet(
        predicted.numpy(),
        confidence.numpy(),
        run.labels,
        run.classes,
        names if there else [""] * len(run.labels),
        lambda rows: list(pixels(task, "test", np.array(rows))) if there else [None] * len(rows),
        "test images",
    )


def _changed(run: FinishedRun, inspection: Inspection) -> Sheet:
    task, index = inspection.task, inspection.index
    return changed_sheet(
        inspection.plain,
        inspection.debiased,
        inspection.confidence,
        inspection.truth,
        run.classes,
        [task.data.train.names[int(i)] for i in index],
        lambda rows: list(pixels(task, "train", index[rows])),
    )


def class_table(run: FinishedRun, counts: Sequence[int] | None) -> Table:
    """The numbers behind the figures of classes."""
    counted, every = pseudo_label_shares(run.logs[-1])
    confusion = torch.tensor(run.metrics["confusion"])
    tested, intervals = confusion.sum(1).tolist(), recall_intervals(confusion)
    rows = []
    for k, name in enumerate(run.classes):
        true = "-" if counts is None else f"{counts[k]:,}"
        shares = (percent(float(share[k])) for share in (counted, every, run.marginal[-1]))
        recall = [percent(run.metrics["recalls"][k]), between(intervals[k])]
        rows.append([name, f"{run.labeled_counts[k]:,}", true, *shares, f"{tested[k]:,}", *recall])
    head = [
        "class",
        "labeled",
        "unlabeled",
        "counting pseudo-labels",
        "all pseudo-labels",
        "marginal",
        "test",
        "recall",
        "95 % interval",
    ]
    caption = "All shares are from the last step."
    return Table(title="Each class in numbers", head=head, rows=rows, caption=caption, is_closed=True)
