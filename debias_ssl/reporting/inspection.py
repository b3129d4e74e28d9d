"""A finished run as its folder holds it, and what its model says of the images that its config names."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from debias_ssl.contract import Place
from debias_ssl.data.reading.decode import center_crop, decode
from debias_ssl.data.splits import PARTS
from debias_ssl.data.task import Task, make_task
from debias_ssl.formulas.logits import debias
from debias_ssl.runs.folder import RunFolder
from debias_ssl.runs.trained import TrainedRun, load_config, load_trained
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.files import read_array, read_yaml
from debias_ssl.training.config import Config
from debias_ssl.training.evaluation import evaluate_logits
from debias_ssl.training.journal import read_journal

# Unlabeled images that are looked at, taken evenly.
MOST_IMAGES = 5000
FIGURES = ("accuracy", "mean_recall", "min_recall", "h_mean", "g_mean", "ece")


class ImagesGoneError(InputError):
    """The images that a run's config names are not there any more, or are others."""


@dataclass(frozen=True, kw_only=True)
class Finetuned:
    """What `debias-ssl finetune` did to a run."""

    said: str
    figures: dict[tuple[str, str], dict[str, float]]
    """Of the objective and of `FIGURES`, by part of the images and `before` or `after`."""


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """What a run folder holds."""

    path: Path
    config: Config
    text: str
    """Of config.yaml."""
    resolved: dict[str, Any]
    classes: tuple[str, ...]
    labeled_counts: tuple[int, ...]
    unlabeled_counts: tuple[int, ...] | None
    """True classes of the unlabeled images; None where unknown."""
    num_unlabeled: int
    summary: dict[str, Any]
    logs: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    logits: Float[np.ndarray, "N C"]
    """Of the averaged model on the test images."""
    labels: Int[np.ndarray, " N"]
    figures: dict[str, Any]
    """Of these logits."""
    finetuned: Finetuned | None
    """If it was; the log and the evaluations are then those of the run before."""

    @property
    def method(self) -> str:
        return str(self.resolved["method"]["class_path"])

    @property
    def marginal(self) -> Float[np.ndarray, "T C"]:
        """Over the lines of the log."""
        return np.array([log["marginal"] for log in self.logs], dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a run's model says of its unlabeled images, or of an even part of them."""

    task: Task
    index: Int[np.ndarray, " U"]
    """Positions among the training images."""
    truth: Int[np.ndarray, " U"]
    """True classes, negative where unknown."""
    features: Float[Tensor, "U D"]
    confidence: Float[np.ndarray, " U"]
    """Of the plain pseudo-labels."""
    plain: Int[np.ndarray, " U"]
    debiased: Int[np.ndarray, " U"]
    strength: float
    is_own_strength: bool
    """Whether the method has this strength itself."""

    @property
    def changed(self) -> Bool[np.ndarray, " U"]:
        return self.plain != self.debiased


def read_run(path: Path) -> FinishedRun:
    """Reads a run folder, and checks that its files fit together.

    Raises:
        InputError: the folder holds no finished run, or its files do not fit together.
    """
    folder = RunFolder(path)
    config = load_config(folder)
    if not folder.is_finished():
        raise InputError(f"{str(path)!r} is not a finished run: go on with debias-ssl train --out {path} --resume")
    try:
        summary, model = folder.read_summary(), json.loads((path / "model.json").read_text())
        records = read_journal(folder.metrics)
        split = json.loads(folder.split.read_text())
        logits, labels = (read_array(path / "predictions" / f"test_{name}.npy") for name in ("ema", "labels"))
        counts = model.get("unlabeled_counts")
        evaluations = [record for record in records if "ema" in record]
        finetuned = _finetuned(summary["finetune"]) if "finetune" in summary else None
        run = FinishedRun(
            path=path,
            config=config,
            text=(path / "config.yaml").read_text(),
            resolved=read_yaml(path / "config.yaml"),
            classes=tuple(model["classes"]),
            labeled_counts=tuple(model["labeled_counts"]),
            unlabeled_counts=tuple(counts) if counts and sum(counts) else None,
            num_unlabeled=model["num_unlabeled"],
            summary=summary,
            logs=[record for record in records if "loss" in record],
            evaluations=evaluations[:-1] if finetuned else evaluations,
            logits=logits,
            labels=labels,
            figures=evaluate_logits(
                torch.from_numpy(logits), torch.from_numpy(labels), torch.tensor(model["labeled_counts"])
            ),
            finetuned=finetuned,
        )
        wrong = _misfit(run, evaluations, split)
    except FileNotFoundError as error:
        raise InputError(f"{str(path)!r} is not a finished run: it has no {Path(error.filename).name}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise InputError(f"{str(path)!r} was changed after its run, or damaged: {_described(error)}") from error
    if wrong:
        raise InputError(f"{str(path)!r} was changed after its run, or damaged: {wrong}")
    return run


def _described(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else reason(error)


def _finetuned(facts: dict[str, Any]) -> Finetuned:
    """From the section of `summary.json`."""
    names = ("objective", *FIGURES)
    parts = [part for part in ("validation", "test") if part in facts]
    return Finetuned(
        said=(
            f"fine-tuned by {facts['method']['class_path']} for {facts['objective']} on {int(facts['num_held_out']):,} "
            f"held-out images in {float(facts['seconds']):.1f} s, from {facts['run']}"
        ),
        figures={
            (part, moment): {name: float(facts[part][moment][name]) for name in names}
            for part in parts
            for moment in ("before", "after")
        },
    )


def _misfit(run: FinishedRun, evaluations: list[dict[str, Any]], split: dict[str, Any]) -> str | None:
    """What in the files of a run does not fit together."""
    num = len(run.classes)
    if not run.logs or not run.evaluations:
        return "metrics.jsonl lacks the log or the evaluations"
    last = run.summary["ema"]["last"]
    for name in FIGURES:
        if abs(last[name] - evaluations[-1]["ema"][name]) > 1e-6:
            return f"{name} differs between summary.json and metrics.jsonl"
        if abs(last[name] - run.figures[name]) > 1e-6:
            return f"{name} differs between summary.json and predictions/"
    for which in ("ema", "raw"):
        for moment in ("last", "median", "best"):
            [float(run.summary[which][moment][name]) for name in FIGURES]
    sizes = {len(log[key]) for log in run.logs for key in ("marginal", "pseudo_counts", "pseudo_weights")}
    if sizes | {len(run.labeled_counts), run.logits.shape[1], len(run.unlabeled_counts or run.classes)} != {num}:
        return f"its files disagree about the number of classes, which is {num} in model.json"
    if tuple(split["classes"]) != run.classes or any(part not in split for part in PARTS):
        return "split.json is of other classes or has no indices"
    for log in run.logs:
        losses = [float(loss) for loss in log["loss"].values() if loss is not None]
        shares = np.array([log["pseudo_counts"], log["pseudo_weights"], log["marginal"]], dtype=float)
        if not np.isfinite([*losses, log["step"], log["mask_rate"], log["pseudo_accuracy"] or 0, *shares.flat]).all():
            return f"step {log['step']} of metrics.jsonl has a number that is none"
    float(run.summary["steps"] + run.summary["seconds"] + run.summary["images_per_second"])
    return None


def inspect(run: FinishedRun) -> Inspection:
    """Labels the unlabeled images with the run's model, plainly and debiased by the last marginal.

    Raises:
        ImagesGoneError: the images are not there any more, or are others.
        InputError: the model cannot be loaded.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained = load_trained(RunFolder(run.path), device)
    # A part of the images is looked at once: nothing is downloaded, and files are not decoded into a cache.
    config = replace(run.config.data, download=False)
    if config.name == "folder":
        config = replace(config, input="streaming", workers=0 if len(run.labels) < MOST_IMAGES else config.workers)
    place = Place(device=device)
    try:
        split_file = run.path / "split.json"
        task = make_task(config, seed=run.config.seed, place=place, split_file=split_file, progress=False)
        chosen, logits, features = _outputs(trained, task)
    except (OSError, InputError) as error:
        raise ImagesGoneError(reason(error)) from error
    own = getattr(trained.predictor.method, "strength", None)
    strength = float(own) if isinstance(own, int | float) else 1.0
    marginal = torch.tensor(run.logs[-1]["marginal"], dtype=torch.float32)
    confidence, plain = logits.softmax(-1).max(-1)
    return Inspection(
        task=task,
        index=task.split.unlabeled[chosen],
        truth=task.unlabeled_truth[chosen],
        features=features,
        confidence=confidence.numpy(),
        plain=plain.numpy(),
        debiased=debias(logits, marginal, strength).argmax(-1).numpy(),
        strength=strength,
        is_own_strength=isinstance(own, int | float),
    )


@torch.inference_mode()
def _outputs(
    trained: TrainedRun, task: Task
) -> tuple[Int[np.ndarray, " U"], Float[Tensor, "U C"], Float[Tensor, "U D"]]:
    """Places of an even part of the unlabeled images, their logits as at test time, and their features."""
    unlabeled = task.split.unlabeled
    chosen = np.unique(np.linspace(0, len(unlabeled) - 1, MOST_IMAGES).round().astype(int))
    stream = trained.stream(task.readers["train"], unlabeled[chosen], task.place)
    logits, features = [], []
    for _, images in stream:
        predicted, view = trained.predictor.predict(images)
        logits.append(predicted.cpu())
        features.append(view.features.cpu())
    return chosen, torch.cat(logits), torch.cat(features)


def true_counts(run: FinishedRun, inspection: Inspection | None) -> tuple[int, ...] | None:
    """True classes of the unlabeled images, from the folder or from the data."""
    if run.unlabeled_counts is not None or inspection is None:
        return run.unlabeled_counts
    counts = inspection.task.unlabeled_counts
    return counts if sum(counts) else None


def pixels(task: Task, part: str, index: Int[np.ndarray, " N"]) -> UInt8[np.ndarray, "N H W K"]:
    """Images of a part as they were read, or the files of those whose features were read."""
    reader = task.readers[part]
    if reader.config.features:
        images = [decode(reader.files[int(i)]) for i in index]
        side = min(min(image.size) for image in images)
        return np.stack([center_crop(image, side) for image in images])
    return reader.center(torch.from_numpy(index)).cpu().numpy()
