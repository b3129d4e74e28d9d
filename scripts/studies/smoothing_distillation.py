"""Label smoothing and distillation (arXiv 1906.02629, figure 5): a better teacher may be a worse one.

Four curves show the test accuracy for each strength of smoothing:

- a teacher;
- the student's network without a teacher;
- students of the teacher without smoothing, at several temperatures; each is drawn at the strength of smoothing that
  corresponds to its targets;
- students of the smoothed teacher.

Students are trained by soft targets only. The teacher is better than the student: it has more labels and a larger
network.

    python scripts/studies/smoothing_distillation.py --out runs/smoothing
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from smoothing_runs import checked, make_script_parser, opened, publish, smoothed, spread, trained
from torch import Tensor

from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.formulas.logits import tempered
from debias_ssl.reporting.figures import Series, lines
from debias_ssl.reporting.page import Figure, Section, Table
from debias_ssl.runs.folder import RunFolder
from debias_ssl.system.errors import InputError


def equivalent_smoothing(probs: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> float:
    """The strength of label smoothing whose targets give the label as much as these do: mean (1 - p_y) C / (C - 1)."""
    wrong = 1 - probs.gather(1, labels[:, None]).squeeze(1)
    return (wrong.mean() * probs.shape[1] / (probs.shape[1] - 1)).item()


def accuracy(run: Path) -> float:
    return RunFolder(run).read_summary()["ema"]["last"]["accuracy"]


def numbers(text: str, flag: str) -> list[float]:
    try:
        return [float(value) for value in text.split(",")]
    except ValueError as error:
        raise InputError(f"{flag} {text!r} are not numbers with commas between") from error


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Teachers and students by the script's flags; a run that is there is not run again."""

    parsed: argparse.Namespace

    def teacher(self, smoothing: float, seed: int) -> Path:
        name = f"teacher_{self.parsed.teacher_labels}_{smoothing:g}"
        flags = ["--model.name", self.parsed.teacher_model, "--data.labels_per_class", str(self.parsed.teacher_labels)]
        return trained(self.parsed, name, seed, *smoothed(smoothing), *flags)

    def alone(self, smoothing: float, seed: int) -> Path:
        """The student's network on labels."""
        return trained(self.parsed, f"smoothing_{smoothing:g}", seed, *smoothed(smoothing))

    def student(self, smoothing: float, seed: int, temperature: float = 1.0) -> Path:
        taught = self.teacher(smoothing, seed)
        flags = ["--method", "Distillation", "--method.soft_weight", "1", "--method.temperature", str(temperature)]
        flags += ["--method.unlabeled", str(self.parsed.unlabeled).lower(), "--teacher", str(taught)]
        kind = "all" if self.parsed.unlabeled else "labeled"
        return trained(self.parsed, f"student_of_{taught.name}_{kind}_{temperature:g}", seed, *flags)

    def amounts_to(self, seed: int, temperature: float) -> float:
        """What smoothing the targets of the teacher without it amount to, on its labeled images."""
        logits, _, labels = opened(self.teacher(0.0, seed)).says("training")
        return equivalent_smoothing(tempered(logits.softmax(-1), temperature), labels)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Accuracies (point, seed) against the strength of smoothing."""

    name: str
    strengths: Sequence[float]
    values: Sequence[Sequence[float]]


def figure_of(curves: Sequence[Curve]) -> Figure:
    series = [
        Series(
            x=np.array(curve.strengths),
            y=np.mean(curve.values, 1),
            spread=np.std(curve.values, 1, ddof=1) if len(curve.values[0]) > 1 else None,
            color=color,
            marker=True,
        )
        for color, curve in enumerate(curves)
    ]
    return Figure(
        title="Test accuracy against the strength of smoothing",
        svg=lines(
            series,
            "Accuracy of teachers and students against label smoothing.",
            x_label="label smoothing, or what the targets amount to",
            whole=False,
        ),
        legend=[(f"line-{color}", curve.name) for color, curve in enumerate(curves)],
        caption="Students have soft targets only. Bands are the deviation over seeds.",
    )


def tables_of(curves: Sequence[Curve], of_temperatures: Curve, temperatures: Sequence[float]) -> list[Table]:
    """Curves that share their strengths in one table, and the one against the temperature."""
    caption = f"Test accuracy in percent, mean ± deviation over {len(of_temperatures.values[0])} seeds."
    return [
        Table(
            title="Against the strength of smoothing",
            head=["", *(f"{strength:g}" for strength in curves[0].strengths)],
            rows=[[curve.name, *(spread(each, scale=100) for each in curve.values)] for curve in curves],
            caption=caption,
        ),
        Table(
            title=f"{of_temperatures.name}, against the temperature",
            head=["", *(f"T = {temperature:g}" for temperature in temperatures)],
            rows=[
                ["accuracy", *(spread(each, scale=100) for each in of_temperatures.values)],
                ["amounts to smoothing", *(f"{strength:.3f}" for strength in of_temperatures.strengths)],
            ],
            caption=caption,
        ),
    ]


@entry_point
def main(arguments: list[str]) -> None:
    parser = make_script_parser("Students of teachers trained with and without label smoothing.")
    parser.add_argument("--smoothing", default="0,0.1,0.3", help="strengths; 0 is always added")
    parser.add_argument("--temperatures", default="1,2,4", help="of students of the teacher without smoothing")
    parser.add_argument(
        "--teacher_model", default="wrn_16_2", help="the teacher's network; the student's is the config's"
    )
    parser.add_argument("--teacher_labels", type=int, default=80, help="labels a class; the student's are the config's")
    parser.add_argument("--unlabeled", action="store_true", help="teach on unlabeled images too, unlike the paper")
    parsed = checked(parser.parse_args(arguments))
    strengths = sorted({0.0, *numbers(parsed.smoothing, "--smoothing")})
    temperatures = numbers(parsed.temperatures, "--temperatures")
    runs, seeds = Runs(parsed=parsed), range(parsed.seeds)

    def against_smoothing(name: str, run: Callable[[float, int], Path]) -> Curve:
        values = [[accuracy(run(strength, seed)) for seed in seeds] for strength in strengths]
        return Curve(name=name, strengths=strengths, values=values)

    curves = [
        against_smoothing("teacher", runs.teacher),
        against_smoothing("student without a teacher", runs.alone),
        against_smoothing("student of the smoothed teacher", runs.student),
    ]
    of_temperatures = Curve(
        name="student of the teacher without smoothing",
        strengths=[float(np.mean([runs.amounts_to(seed, each) for seed in seeds])) for each in temperatures],
        values=[[accuracy(runs.student(0.0, seed, each)) for seed in seeds] for each in temperatures],
    )
    section = Section(
        title="Teachers and students",
        figures=[figure_of([*curves, of_temperatures])],
        tables=tables_of(curves, of_temperatures, temperatures),
    )
    taught = "unlabeled and labeled images" if parsed.unlabeled else "labeled images"
    teacher = f"teacher {parsed.teacher_model}, {parsed.teacher_labels} labels a class"
    facts = [f"{Path(parsed.config).name}; {teacher}; students taught on {taught}"]
    publish(Path(parsed.out), "distillation", "Label smoothing: distillation", facts, [section])


if __name__ == "__main__":
    main()
