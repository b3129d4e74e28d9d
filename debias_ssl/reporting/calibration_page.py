"""The page of `debias-ssl evaluate`: predictions before and after temperature scaling."""

import numpy as np

from debias_ssl.labels.matrix.temperature import PERCENTS, SCORES, Rescaled
from debias_ssl.reporting.page import Page, Section, Table, percent
from debias_ssl.reporting.sections.against_truth import reliability_figure


def calibration_page(rescaled: Rescaled, source: str, rows: str) -> Page:
    """Scores and reliability diagrams of predictions, before and after the division by a temperature.

    Args:
        rescaled: the predictions.
        source: the run folder or the file that they are from.
        rows: the rows in words, such as "validation images".
    """
    figures = rescaled.figures
    table = Table(
        title="Figures",
        head=["", *PERCENTS.values(), *SCORES.values()],
        rows=[
            [name, *(percent(each[key]) for key in PERCENTS), *(f"{each[key]:.4f}" for key in SCORES)]
            for name, each in figures.items()
        ],
        caption="ECE uses 15 bins of equal width. Equal mass uses 15 bins with equally many rows. Class-wise is the "
        "mean over classes. NLL is in nats.",
    )
    drawn = []
    for name, judged in rescaled.judged.items():
        correct = judged.correct.long().numpy()
        # As a problem of two classes: the second class means that the prediction is right.
        figure = reliability_figure(judged.confidence.numpy(), np.ones_like(correct), correct, f"Reliability, {name}")
        drawn.append(figure)
    return Page(
        title=f"Calibration of {source}",
        facts=[f"{len(rescaled.rows):,} {rows}", rescaled.said()],
        sections=[Section(title="Before and after", tables=[table], figures=drawn)],
    )
