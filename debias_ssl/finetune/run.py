"""Fine-tuning of a trained run: reads its folder, changes its classifier and writes another run folder."""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Float, Int
from torch import Tensor, nn

from debias_ssl.data.config import DataConfig
from debias_ssl.data.splits import class_counts
from debias_ssl.data.task import Part, Task, make_task
from debias_ssl.distributed.accelerator import make_accelerator, place_of
from debias_ssl.finetune.config import FinetuneConfig
from debias_ssl.finetune.stage import Head, Stage
from debias_ssl.formulas.objectives import Goal, coverage, find_objective, shares_of
from debias_ssl.runs.folder import WRITTEN, RunFolder, inputs_of
from debias_ssl.runs.trained import TrainedRun, load_trained
from debias_ssl.system.errors import InputError, shortened
from debias_ssl.system.files import (
    ends_told,
    read_yaml,
    replacing,
    unfinished,
    write_array,
    write_aside,
    writes,
)
from debias_ssl.system.locking import locked
from debias_ssl.system.outputs import check_apart
from debias_ssl.training.evaluation import evaluate_logits, predict_logits
from debias_ssl.training.journal import CONFUSION_FILE, evaluation_record, line_of, read_journal, write_confusions
from debias_ssl.training.saved import completed

# Images of a forward pass.
BATCH_SIZE = 500
# The files that mark a folder as a run, and as a finished run.
LAST = ("model.json", "config.yaml", "summary.json")


class FeatureExtractor(nn.Module):
    """Maps images to the features that the network's linear classifier takes."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Float[Tensor, "N K H W"]) -> Float[Tensor, "N D"]:
        return self.model(images)[1]


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A trained run, and the data that a stage-two method needs from it."""

    run: TrainedRun
    task: Task
    stage: Stage
    test: Float[Tensor, "N D"]
    """Features of the test images."""

    def metrics(self, head: Head) -> dict[Part, dict[str, Any]]:
        """The metrics of a head on each part of the data, as in `metrics.jsonl`, and the coverage of each class."""
        counts = torch.tensor(self.run.labeled_counts)
        metrics: dict[Part, dict[str, Any]] = {}
        for part in self.task.parts:
            found = evaluate_logits(self.logits(head, part), self.task.evaluation_labels(part), counts)
            goal = self.stage.goal
            shares = shares_of(torch.tensor(found["confusion"]), added=1e-6)
            value = goal.objective(shares_of(torch.tensor(found["confusion"]), added=1.0)).item()
            covered = coverage(shares)
            found |= {"objective": value, "min_coverage": covered.min().item(), "coverage": covered.tolist()}
            metrics[part] = found
        return metrics

    def logits(self, head: Head, part: Part) -> Float[Tensor, "N C"]:
        return head(self.test if part == "test" else self.stage.held_out).cpu()


def _linear_classifier(run: TrainedRun) -> nn.Linear:
    """The layer that stage two changes.

    Raises:
        InputError: the classifier is no linear layer with biases, or the method predicts with more than it.
    """
    model: Any = run.predictor.model
    method, classifier = run.predictor.method, model.net.get_classifier()
    if not isinstance(classifier, nn.Linear) or classifier.bias is None:
        raise InputError(f"the classifier of {run.config.model.name} is not a linear layer with biases")
    if not run.predictor.is_plain:
        name = type(method).__name__
        raise InputError(
            f"{name} predicts with more than the network's classifier, but stage two changes only the classifier"
        )
    return classifier


def _held_out_labels(task: Task, folder: RunFolder) -> Int[Tensor, " V"]:
    """The true classes of the validation images, on which the objective is measured.

    Raises:
        InputError: there are no such images, a class has none of them, or their classes are unknown.
    """
    labels = task.evaluation_labels("validation")
    if not len(labels):
        raise InputError(
            f"{str(folder.path)!r} has no held-out images, on which the objective is measured: train with "
            "--data.validation_per_class"
        )
    counts = class_counts(labels.numpy(), len(task.data.classes))
    without = [name for name, count in zip(task.data.classes, counts, strict=True) if not count]
    if without or (labels < 0).any():
        what = f"none of {shortened(without)}" if without else "some of unknown classes"
        raise InputError(
            f"the held-out images of {str(folder.path)!r} are {what}: each class needs at least one, and each "
            "image a label"
        )
    return labels


def prepare(folder: RunFolder, config: FinetuneConfig, data: DataConfig | None = None) -> PreparedRun:
    """Loads a run and computes the features of its images; `data` says where these are, if not where they were.

    Raises:
        InputError: the run has no validation images of a class, or no linear classifier that alone predicts.
    """
    accelerator = make_accelerator("fp32")
    if accelerator.num_processes > 1:
        raise InputError("finetune runs in one process: start it with debias-ssl finetune")
    place = place_of(accelerator)
    run = load_trained(folder, place.device)
    model: Any = run.predictor.model
    classifier = _linear_classifier(run)
    task = make_task(data or run.data, seed=run.config.seed, place=place, split_file=folder.split)
    for note in task.notes:
        print(f"note: {note}", file=sys.stderr)
    truth = _held_out_labels(task, folder)
    objective = find_objective(config.objective, torch.tensor(run.labeled_counts))
    network = FeatureExtractor(model)

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
    return PreparedRun(run=run, task=task, stage=stage, test=features("test", np.arange(len(task.data.test))))


def finetune_run(
    config: FinetuneConfig,
    resolved: dict[str, Any],
    source: Path,
    out: Path,
    overwrite: bool,
    data: DataConfig | None = None,
) -> None:
    """Fine-tunes the run in the folder `source`, and writes the run folder `out`.

    Args:
        config: the settings.
        resolved: the settings as they are saved, with `run`, the folder of the first stage.
        source: the folder of the first stage.
        out: the folder to write.
        overwrite: whether to replace a run in it.
        data: the images of the first stage; None is where they were then.

    Raises:
        InputError: the settings are wrong, or the run or the folder cannot be used.
    """
    saved = completed(read_yaml(source / "config.yaml")) if RunFolder(source).holds_run() else None
    check_apart(out, "--out", {"--run": source, **(inputs_of(saved) if saved else {})})
    with locked(out), ends_told("run the same command again"):
        target = RunFolder(out)
        # Remains of an interrupted job are replaced: the same command goes on.
        replaces = overwrite or target.outputs.is_incomplete()
        if not replaces and target.outputs.held():
            raise InputError(f"{str(out)!r} holds a run: choose another --out, or pass --overwrite to replace it")
        target.check(resolved, resume=False, overwrite=replaces)
        _finetune_into(target, config, resolved, source, data)


def _finetune_into(
    target: RunFolder, config: FinetuneConfig, resolved: dict[str, Any], source: Path, data: DataConfig | None
) -> None:
    prepared = prepare(RunFolder(source), config, data)
    started = time.perf_counter()
    head = config.method(prepared.stage)
    seconds = time.perf_counter() - started
    if not (head.weight.isfinite().all() and head.bias.isfinite().all()):
        raise InputError("the classifier became infinite: lower --method.lr")
    before, after = prepared.metrics(prepared.stage.head), prepared.metrics(head)
    facts = {
        **resolved,
        "seconds": seconds,
        "num_held_out": len(prepared.stage.truth),
        **{part: {"before": _scalars(before[part]), "after": _scalars(after[part])} for part in prepared.task.parts},
    }
    with _written_at_once(target) as aside:
        _write(aside, RunFolder(source), prepared, head, after, facts)
        write_aside(aside.path / "finetune.yaml", yaml.safe_dump(resolved, sort_keys=False))
    print(f"{_summary_table(facts)}\n{target.path}; the same run with another classifier, after {seconds:.1f} s")


def _scalars(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics that are one number, and the coverage of each class."""
    return {name: value for name, value in metrics.items() if isinstance(value, float) or name == "coverage"}


@contextmanager
def _written_at_once(target: RunFolder) -> Iterator[RunFolder]:
    """A temporary folder to write a run to; its files move to the target at the end, or never after an error."""
    aside = RunFolder(unfinished(target.path / "whole"))
    try:
        with writes(aside.path):
            aside.path.mkdir(parents=True)
        yield aside
        written = {path.name: path for path in aside.path.iterdir()}
        # The files that mark a run, and a finished run, move last.
        order = [name for name in reversed([name.split("/")[0] for name in WRITTEN]) if name in written]
        order = [*(name for name in dict.fromkeys(order) if name not in LAST), *LAST]
        target.outputs.begin_replacing()
        target.outputs.claim(*order)
        with writes(target.path):
            for name in order:
                os.replace(written[name], target.path / name)
        target.outputs.complete()
    finally:
        shutil.rmtree(aside.path, ignore_errors=True)


def _write(
    folder: RunFolder,
    source: RunFolder,
    prepared: PreparedRun,
    head: Head,
    metrics: dict[Part, dict[str, Any]],
    facts: dict[str, Any],
) -> None:
    """Writes the files of a run: those of the first stage, the new classifier, and its predictions and metrics."""
    for name in ("config.yaml", "split.json", "unreadable.json"):
        if (source.path / name).exists():
            folder.outputs.claim(name)
            with replacing(folder.path / name) as copy:
                shutil.copyfile(source.path / name, copy)
    if prepared.task.config != prepared.run.data:
        # The new run finds its images where they are now.
        moved = json.loads(json.dumps(asdict(prepared.task.config)))
        folder.write_config({**read_yaml(source.path / "config.yaml"), "data": moved})
    predictor = prepared.run.predictor
    model: Any = predictor.model
    model.net.get_classifier().load_state_dict({"weight": head.weight, "bias": head.bias})
    folder.write_model(predictor, json.loads((source.path / "model.json").read_text()), prepared.run.config)
    for part in prepared.task.parts:
        logits = prepared.logits(head, part).numpy()
        # A run has predictions of the averaged and of the raw model, which are the same here.
        for name, array in (
            ("ema", logits),
            ("raw", logits),
            ("labels", prepared.task.evaluation_labels(part).numpy()),
        ):
            write_array(folder.path / "predictions" / f"{part}_{name}.npy", array)
    summary = source.read_summary()
    record = {part: {"ema": found, "raw": found} for part, found in metrics.items()}
    # The fine-tuned model gets the step after the last one of the first stage.
    records = [*read_journal(source.metrics), evaluation_record(summary["steps"] + 1, record)]
    write_aside(folder.metrics, "".join(line_of(record) for record in records))
    write_confusions(folder.path / CONFUSION_FILE, record)
    final = {name: value for name, value in metrics["test"].items() if isinstance(value, float)}
    same = {moment: final for moment in ("last", "median", "best")}
    folder.write_results({**summary, "ema": same, "raw": same, "finetune": facts}, predictor)


def _summary_table(facts: dict[str, Any]) -> str:
    """The metrics before and after, for a terminal."""
    names = ("objective", "accuracy", "mean_recall", "min_recall", "h_mean", "min_coverage")
    lines = [" " * 22 + "".join(f"{name.replace('_', ' '):>14}" for name in names)]
    for part, title in (("validation", "held-out"), ("test", "test")):
        for moment in ("before", "after"):
            row = "".join(f"{100 * facts[part][moment][name]:>12.2f} %" for name in names)
            lines.append(f"{title + ', ' + moment:<22}{row}")
    return "\n".join(lines)
