"""Stage two of a trained run: from its folder to a run folder with another classifier."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Float, Int
from torch import Tensor, nn

from debias_ssl import finetune
from debias_ssl.contract import View
from debias_ssl.data.splits import class_counts
from debias_ssl.data.task import Part, Task, make_task
from debias_ssl.distributed.accelerator import make_accelerator, place_of
from debias_ssl.finetune.selmix import SelMix
from debias_ssl.finetune.stage import Head, Stage, StageTwo
from debias_ssl.formulas.objectives import Goal, coverage, find_objective, shares_of
from debias_ssl.runs.folder import RunFolder
from debias_ssl.runs.trained import TrainedRun, load_trained
from debias_ssl.system.errors import InputError, shortened
from debias_ssl.system.files import write_array, write_aside
from debias_ssl.system.locking import locked
from debias_ssl.training.evaluation import evaluate_logits, predict_logits
from debias_ssl.training.journal import read_journal

METHODS = {name: getattr(finetune, name) for name in finetune.__all__ if name != "StageTwo"}
BATCH_SIZE = 500


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Changes the classifier of a trained run for an objective, measured on its validation images.

    Args:
        method: how; its own settings follow as --method.NAME.
        objective: mean_recall, min_recall, h_mean, g_mean, head_tail_min, f1_macro, or package.module.function: a
            function of the confusion matrix, whose rows sum to 1 / C, that is to become large.
        coverage: share of its fair part 1 / C that every class must be predicted for; null constrains nothing. .95 in
            the paper.
        seed: of what is drawn.
    """

    method: StageTwo = field(default_factory=SelMix)
    objective: str = "mean_recall"
    coverage: float | None = None
    seed: int = 0

    def __post_init__(self):
        if self.coverage is not None and not 0 < self.coverage <= 1:
            raise InputError(f"coverage is {self.coverage}, must be above 0 and at most 1")
        if self.seed < 0:
            raise InputError("seed must be at least 0")


class Penultimate(nn.Module):
    """Images to the features that a network's classifier is a linear function of."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Float[Tensor, "N K H W"]) -> Float[Tensor, "N D"]:
        return self.model(images)[1]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A trained run with the features of its images."""

    run: TrainedRun
    task: Task
    stage: Stage
    test: Float[Tensor, "N D"]

    def figures(self, head: Head) -> dict[Part, dict[str, Any]]:
        """On each part, as `metrics.jsonl` has them, with the coverage of each class."""
        counts = torch.tensor(self.run.labeled_counts)
        figures: dict[Part, dict[str, Any]] = {}
        for part in self.task.parts:
            found = evaluate_logits(self.logits(head, part), self.task.evaluation_labels(part), counts)
            goal = self.stage.goal
            shares = shares_of(torch.tensor(found["confusion"]), added=1e-6)
            value = goal.objective(shares_of(torch.tensor(found["confusion"]), added=1.0)).item()
            of_classes = coverage(shares)
            found |= {"objective": value, "min_coverage": of_classes.min().item(), "coverage": of_classes.tolist()}
            figures[part] = found
        return figures

    def logits(self, head: Head, part: Part) -> Float[Tensor, "N C"]:
        return head(self.test if part == "test" else self.stage.held_out).cpu()


def _linear_classifier(run: TrainedRun) -> nn.Linear:
    """What stage two changes; InputError where a run has nothing like it, or predicts with more."""
    model: Any = run.predictor.model
    method, classifier = run.predictor.method, model.net.get_classifier()
    if not isinstance(classifier, nn.Linear) or classifier.bias is None:
        raise InputError(f"the classifier of {run.config.model.name} is not a linear layer with biases")
    logits = classifier.weight.new_zeros(1, len(run.classes))
    view = View(logits=logits, features=logits.new_zeros(1, model.num_features))
    if method.predict(view, view) is not logits:
        name = type(method).__name__
        raise InputError(f"{name} predicts with more than the network's classifier, which is what stage two changes")
    return classifier


def _held_out_labels(task: Task, folder: RunFolder) -> Int[Tensor, " V"]:
    """What the objective is measured by; InputError where a class has none."""
    labels = task.evaluation_labels("validation")
    if not len(labels):
        raise InputError(
            f"{str(folder.path)!r} has no held-out images to measure the objective on: "
            "train with --data.validation_per_class"
        )
    counts = class_counts(labels.numpy(), len(task.data.classes))
    without = [name for name, count in zip(task.data.classes, counts, strict=True) if not count]
    if without or (labels < 0).any():
        what = f"none of {shortened(without)}" if without else "some of unknown classes"
        raise InputError(
            f"the held-out images of {str(folder.path)!r} are {what}: each class needs one, and each a label"
        )
    return labels


def prepare(folder: RunFolder, config: FinetuneConfig) -> Prepared:
    """Loads a run, and makes the features of its images once.

    Raises:
        InputError: the run has no validation images of a class, or no linear classifier of its own to change.
    """
    accelerator = make_accelerator("fp32")
    if accelerator.num_processes > 1:
        raise InputError("finetune runs in one process: start it with debias-ssl finetune")
    place = place_of(accelerator)
    run = load_trained(folder, place.device)
    model: Any = run.predictor.model
    classifier = _linear_classifier(run)
    task = make_task(run.data, seed=run.config.seed, place=place, split_file=folder.split)
    truth = _held_out_labels(task, folder)
    objective = find_objective(config.objective, torch.tensor(run.labeled_counts))
    network = Penultimate(model)

    def features(reader: str, index: np.ndarray) -> Float[Tensor, "N D"]:
        stream = run.stream(task.readers[reader], index, place, batch_size=BATCH_SIZE)
        return predict_logits(network, stream, model.num_features).to(place.device)

    split = task.split
    stage = Stage(
        head=Head(weight=classifier.weight.detach().clone(), bias=classifier.bias.detach().clone()),
        labeled=features("train", split.labeled),
        labels=torch.from_numpy(task.training_labels[split.labeled]).to(place.device),
        unlabeled=features("train", split.unlabeled),
        held_out=features("train", split.validation),
        truth=truth.to(place.device),
        goal=Goal(objective=objective, coverage=config.coverage),
        seed=config.seed,
    )
    return Prepared(run=run, task=task, stage=stage, test=features("test", np.arange(len(task.data.test))))


def finetune_run(config: FinetuneConfig, resolved: dict[str, Any], source: Path, out: Path, overwrite: bool) -> None:
    """Stage two of the run in `source`, into the run folder `out`.

    Raises:
        InputError: something in the settings, the run or the folder does not fit.
    """
    if out.resolve() == source.resolve():
        raise InputError("--out must be another folder than --run")
    with locked(out):
        target = RunFolder(out)
        target.check(resolved, resume=False, overwrite=overwrite)
        _finetune_into(target, config, resolved, source)


def _finetune_into(target: RunFolder, config: FinetuneConfig, resolved: dict[str, Any], source: Path) -> None:
    prepared = prepare(RunFolder(source), config)
    started = time.perf_counter()
    head = config.method(prepared.stage)
    seconds = time.perf_counter() - started
    if not (head.weight.isfinite().all() and head.bias.isfinite().all()):
        raise InputError("the classifier became infinite: lower --method.lr")
    before, after = prepared.figures(prepared.stage.head), prepared.figures(head)
    facts = {
        **resolved,
        "seconds": seconds,
        "num_held_out": len(prepared.stage.truth),
        **{part: {"before": _numbers(before[part]), "after": _numbers(after[part])} for part in prepared.task.parts},
    }
    with _whole_folder(target) as aside:
        _write(aside, RunFolder(source), prepared, head, after, facts)
        write_aside(aside.path / "finetune.yaml", yaml.safe_dump(resolved, sort_keys=False))
    print(f"{_table(facts)}\n{target.path}; the same run with another classifier, after {seconds:.1f} s")


def _numbers(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if isinstance(value, float) or name == "coverage"}


@contextmanager
def _whole_folder(target: RunFolder) -> Iterator[RunFolder]:
    """A folder to write a run to, whose files go to the target when all of them are there."""
    aside = RunFolder(target.path / f".whole.{os.getpid()}.tmp")
    try:
        aside.path.mkdir(parents=True)
        yield aside
        target.clear()
        target.path.mkdir(exist_ok=True)
        # The summary, which says that a run is finished, comes last.
        for path in sorted(aside.path.iterdir(), key=lambda path: path.name == "summary.json"):
            os.replace(path, target.path / path.name)
    except OSError as error:
        raise InputError(f"cannot write {str(target.path)!r}: {error.strerror}") from error
    finally:
        shutil.rmtree(aside.path, ignore_errors=True)


def _write(
    folder: RunFolder,
    source: RunFolder,
    prepared: Prepared,
    head: Head,
    figures: dict[Part, dict[str, Any]],
    facts: dict[str, Any],
) -> None:
    """The files of a run: those of the first stage, the new classifier, and what it does."""
    for name in ("config.yaml", "split.json", "unreadable.json"):
        if (source.path / name).exists():
            shutil.copyfile(source.path / name, folder.path / name)
    predictor = prepared.run.predictor
    model: Any = predictor.model
    model.net.get_classifier().load_state_dict({"weight": head.weight, "bias": head.bias})
    folder.write_model(predictor, json.loads((source.path / "model.json").read_text()))
    for part in prepared.task.parts:
        logits = prepared.logits(head, part).numpy()
        # A run has predictions of averaged and of last weights; here they are the same.
        for name, array in (
            ("ema", logits),
            ("raw", logits),
            ("labels", prepared.task.evaluation_labels(part).numpy()),
        ):
            write_array(folder.path / "predictions" / f"{part}_{name}.npy", array)
    summary = source.read_summary()
    record = {part: {"ema": found, "raw": found} for part, found in figures.items()}
    others = {part: value for part, value in record.items() if part != "test"}
    # The journal goes on one step after the first stage.
    line = {"step": summary["steps"] + 1, **record["test"], **others}
    records = [*read_journal(source.metrics), line]
    write_aside(folder.metrics, "".join(json.dumps(record) + "\n" for record in records))
    final = {name: value for name, value in figures["test"].items() if isinstance(value, float)}
    same = {moment: final for moment in ("last", "median", "best")}
    folder.write_json("summary.json", {**summary, "ema": same, "raw": same, "finetune": facts})


def _table(facts: dict[str, Any]) -> str:
    """Before and after, for a terminal."""
    names = ("objective", "accuracy", "mean_recall", "min_recall", "h_mean", "min_coverage")
    lines = [" " * 22 + "".join(f"{name.replace('_', ' '):>14}" for name in names)]
    for part, title in (("validation", "held-out"), ("test", "test")):
        for moment in ("before", "after"):
            row = "".join(f"{100 * facts[part][moment][name]:>12.2f} %" for name in names)
            lines.append(f"{title + ', ' + moment:<22}{row}")
    return "\n".join(lines)
