"""The page of predictions before and after a temperature."""

from debias_ssl.labels.temperature import PERCENTS, SCORES, Rescaled
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
        caption="ECE is over 15 bins of equal width, equal mass over 15 bins of as many rows; class-wise is the mean "
        "over classes. NLL is in nats.",
    )
    drawn = []
    for name, logits in (("before", rescaled.before), ("after", rescaled.after)):
        confidence, predicted = logits.double().softmax(1).max(1)
        drawn.append(
            reliability_figure(confidence.numpy(), predicted.numpy(), rescaled.labels.numpy(), f"Reliability, {name}")
        )
    return Page(
        title=f"Calibration of {source}",
        facts=[f"{len(rescaled.labels):,} {rows}", rescaled.said()],
        sections=[Section(title="Before and after", tables=[table], figures=drawn)],
    )
