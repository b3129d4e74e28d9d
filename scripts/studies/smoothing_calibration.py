"""Label smoothing and calibration (arXiv 1906.02629, table 3 and figure 4; and both together).

Expected calibration error and negative log-likelihood of test images, with and without smoothing, with and without a
temperature that was fitted on validation images; and both against the temperature.

    python scripts/studies/smoothing_calibration.py --out runs/smoothing
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from smoothing_runs import checked, make_script_parser, need_validation, opened, publish, smoothed, spread, trained
from torch import Tensor

from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.formulas.calibration import expected_calibration_error, fit_temperature, negative_log_likelihood
from debias_ssl.reporting.figures import Series, lines
from debias_ssl.reporting.page import Figure, Section, Table
from debias_ssl.reporting.sections.against_truth import reliability_figure

TEMPERATURES = np.geomspace(0.25, 4, 33)


def calibration_error(logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> float:
    confidence, predicted = logits.double().softmax(-1).max(-1)
    return expected_calibration_error(confidence, predicted == labels).item()


def likelihood(logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> float:
    return negative_log_likelihood(logits, labels).item()


FIGURES = {"ECE": calibration_error, "NLL": likelihood}


def series(values: Sequence[Sequence[float]], color: int) -> Series:
    """Mean and deviation over seeds against the temperature, on a logarithmic axis."""
    found = np.array(values)
    spread = found.std(0, ddof=1) if len(found) > 1 else None
    return Series(x=np.log2(TEMPERATURES), y=found.mean(0), spread=spread, color=color)


@entry_point
def main(arguments: list[str]) -> None:
    parser = make_script_parser("Calibration with and without label smoothing and temperature scaling.")
    parser.add_argument("--smoothing", type=float, default=0.1, help="strength of label smoothing")
    parsed = checked(parser.parse_args(arguments))
    names = {"without smoothing": 0.0, f"smoothing {parsed.smoothing:g}": parsed.smoothing}
    rows, reliable, curves = [], [], {figure: [] for figure in FIGURES}
    for color, (name, eps) in enumerate(names.items()):
        several = [opened(trained(parsed, f"smoothing_{eps:g}", seed, *smoothed(eps))) for seed in range(parsed.seeds)]
        need_validation(several[0])
        held_out = [(logits, labels) for logits, _, labels in (run.says("validation") for run in several)]
        test = [(logits, labels) for logits, _, labels in (run.says("test") for run in several)]
        fitted = [fit_temperature(*each) for each in held_out]
        accuracy = [(logits.argmax(1) == labels).double().mean().item() for logits, labels in test]
        for title, temperatures in ((name, [1.0] * len(test)), (f"{name}, fitted temperature", fitted)):
            scaled = [(logits / t, labels) for (logits, labels), t in zip(test, temperatures, strict=True)]
            rows.append(
                [
                    title,
                    spread(accuracy, scale=100),
                    spread([calibration_error(*each) for each in scaled], scale=100),
                    spread([likelihood(*each) for each in scaled], 3),
                    spread(temperatures),
                ]
            )
            logits, labels = (torch.cat(each) for each in zip(*scaled, strict=True))
            confidence, predicted = logits.double().softmax(-1).max(-1)
            reliable.append(reliability_figure(confidence.numpy(), predicted.numpy(), labels.numpy(), title))
        for figure, value in FIGURES.items():
            curves[figure].append(
                series([[value(logits / t, labels) for t in TEMPERATURES] for logits, labels in test], color)
            )
    legend = [(f"line-{color}", name) for color, name in enumerate(names)]
    against = [
        Figure(
            title=f"{figure} against the temperature",
            svg=lines(
                both,
                f"{figure} of test images against the temperature with and without label smoothing.",
                x_label="log2 of the temperature",
                percent=figure == "ECE",
                whole=False,
            ),
            legend=legend,
            caption="Bands are the deviation over seeds.",
        )
        for figure, both in curves.items()
    ]
    caption = (
        f"Percent, NLL in nats; mean ± deviation, {parsed.seeds} seeds. Temperatures are fitted on validation images."
    )
    table = Table(title="Calibration", head=["", "accuracy", "ECE", "NLL", "temperature"], rows=rows, caption=caption)
    sections = [
        Section(title="With and without", tables=[table]),
        Section(title="Against the temperature", figures=against),
        Section(title="Reliability, all seeds together", figures=reliable),
    ]
    publish(Path(parsed.out), "calibration", "Label smoothing: calibration", [Path(parsed.config).name], sections)


if __name__ == "__main__":
    main()
