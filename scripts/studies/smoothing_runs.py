"""Code that the scripts about label smoothing (arXiv 1906.02629) share: runs, their predictions, and a page."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from debias_ssl import __version__
from debias_ssl.contract import CPU, Place
from debias_ssl.data.task import Task, make_task
from debias_ssl.reporting.page import Page, Section, Table, render
from debias_ssl.runs.folder import RunFolder
from debias_ssl.runs.run import train
from debias_ssl.runs.trained import TrainedRun, load_trained
from debias_ssl.system.errors import InputError
from debias_ssl.system.files import write_aside
from debias_ssl.training.config import Config
from debias_ssl.training.parser import make_parser, resolve

DIGITS = Path(__file__).parents[2] / "configs" / "digits_smoothing.yaml"


def make_script_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", required=True, help="folder for the page, the table and the runs; runs there are kept")
    parser.add_argument("--config", default=str(DIGITS), help="a run's settings; the scripts share runs of the same")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--steps", type=int, default=None, help="of a run, instead of the config's")
    parser.add_argument("--model", default=None, help="the network, instead of the config's")
    return parser


def trained(parsed: argparse.Namespace, name: str, seed: int, *flags: str) -> Path:
    """The run of that name and seed by the config and flags; one that is there is not run again."""
    out = Path(parsed.out) / "runs" / f"{name}_{seed}"
    others = ["--steps", str(parsed.steps)] if parsed.steps else []
    others += ["--model.name", parsed.model] if parsed.model else []
    parser = make_parser("train", Config)
    arguments = ["--config", parsed.config, "--method", "Supervised", *others, "--seed", str(seed), *flags]
    config, resolved = resolve(parser, parser.read_arguments(arguments))
    train(config, resolved, out, resume=True, quiet=True)
    return out


def smoothed(strength: float) -> list[str]:
    """Flags of a run with label smoothing; strength 0 is without."""
    return ["--labeled_loss", "LabelSmoothing", "--labeled_loss.smoothing", str(strength)]


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A finished run with its images."""

    run: TrainedRun
    task: Task

    @torch.no_grad()
    def says(self, part: str) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N D"], Int[Tensor, " N"]]:
        """Logits, penultimate features and labels of the training (labeled), validation or test images."""
        of_part = {
            "training": self.task.split.labeled,
            "validation": self.task.split.validation,
            "test": torch.arange(len(self.task.data.test)).numpy(),
        }
        index = torch.from_numpy(of_part[part])
        stream = self.run.stream(self.task.readers["test" if part == "test" else "train"], of_part[part], Place())
        said = [self.run.predictor.predict(images) for _, images in stream]
        data = self.task.data.test if part == "test" else self.task.data.train
        logits, features = torch.cat([each[0] for each in said]), torch.cat([each[1].features for each in said])
        return logits, features, torch.from_numpy(data.labels)[index]


def opened(path: Path) -> Opened:
    folder = RunFolder(path)
    run = load_trained(folder, CPU)
    task = make_task(run.data, seed=run.config.seed, place=Place(), split_file=folder.split, progress=False)
    return Opened(run=run, task=task)


def need_validation(run: Opened) -> None:
    if not len(run.task.split.validation):
        raise InputError("the config has no validation images: set data.validation_per_class in it")


def spread(values: Sequence[float], digits: int = 2, scale: float = 1.0) -> str:
    """Mean and standard deviation, as text."""
    found = scale * torch.tensor(values, dtype=torch.float64)
    deviation = found.std().item() if len(found) > 1 else 0.0
    return f"{found.mean().item():.{digits}f} ± {deviation:.{digits}f}"


def text_of(table: Table) -> str:
    """A table for a terminal."""
    rows = [table.head, *table.rows]
    widths = [max(len(row[k]) for row in rows) for k in range(len(table.head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([table.title, *lines, ""])


def publish(out: Path, name: str, title: str, facts: Sequence[str], sections: Sequence[Section]) -> None:
    """Writes the page and its tables as text, and prints these."""
    text = "\n".join(text_of(table) for section in sections for table in section.tables)
    write_aside(out / f"{name}.txt", text)
    write_aside(out / f"{name}.html", render(Page(title=title, facts=facts, sections=sections), __version__))
    print(f"{text}\n{out / name}.html")


def checked(parsed: argparse.Namespace) -> argparse.Namespace:
    if parsed.seeds < 1 or (parsed.steps is not None and parsed.steps < 1):
        raise InputError("--seeds and --steps must be at least 1")
    return parsed
