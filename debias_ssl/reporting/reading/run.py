"""Reads a finished run from its folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from debias_ssl.data.splits import PARTS
from debias_ssl.runs.folder import TRIAL, RunFolder
from debias_ssl.runs.trained import load_config
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.files import read_array, read_yaml
from debias_ssl.training.config import Config
from debias_ssl.training.evaluation import evaluate_logits
from debias_ssl.training.journal import read_journal

METRICS = ("accuracy", "mean_recall", "min_recall", "h_mean", "g_mean", "ece")


@dataclass(frozen=True, kw_only=True)
class Finetuned:
    """The method of `debias-ssl finetune` that a run went through, and its effect."""

    description: str
    metrics: dict[tuple[str, str], dict[str, float]]
    """The objective and `METRICS`, by part of the images and `before` or `after`."""


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """The content of a run folder."""

    path: Path
    config: Config
    text: str
    """config.yaml as text."""
    resolved: dict[str, Any]
    classes: tuple[str, ...]
    labeled_counts: tuple[int, ...]
    unlabeled_counts: tuple[int, ...] | None
    """Unlabeled images of each true class; None where the classes are unknown."""
    num_unlabeled: int
    summary: dict[str, Any]
    logs: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    logits: Float[np.ndarray, "N C"]
    """The averaged model's, of the test images."""
    labels: Int[np.ndarray, " N"]
    metrics: dict[str, Any]
    """Of these logits."""
    finetuned: Finetuned | None
    """None for a run of `train`. For another one, the log and the evaluations are those of the run before it."""
    trial: str | None = None
    """Why a trial chose the run's method, in words; None where there was no trial."""

    @property
    def method(self) -> str:
        return str(self.resolved["method"]["class_path"])

    @property
    def marginal(self) -> Float[np.ndarray, "T C"]:
        """The marginal at each line of the log."""
        return np.array([log["marginal"] for log in self.logs], dtype=np.float64)


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
            metrics=evaluate_logits(
                torch.from_numpy(logits), torch.from_numpy(labels), torch.tensor(model["labeled_counts"])
            ),
            finetuned=finetuned,
            trial=str(json.loads((path / TRIAL).read_text())["why"]) if (path / TRIAL).exists() else None,
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
    """Reads the section that `finetune` adds to `summary.json`."""
    names = ("objective", *METRICS)
    parts = [part for part in ("validation", "test") if part in facts]
    return Finetuned(
        description=(
            f"fine-tuned by {facts['method']['class_path']} for {facts['objective']} on {int(facts['num_held_out']):,} "
            f"held-out images in {float(facts['seconds']):.1f} s, from {facts['run']}"
        ),
        metrics={
            (part, moment): {name: float(facts[part][moment][name]) for name in names}
            for part in parts
            for moment in ("before", "after")
        },
    )


def _misfit(run: FinishedRun, evaluations: list[dict[str, Any]], split: dict[str, Any]) -> str | None:
    """The first contradiction between the files of a run; None if they agree."""
    num = len(run.classes)
    if not run.logs or not run.evaluations:
        return "metrics.jsonl lacks the log or the evaluations"
    last = run.summary["ema"]["last"]
    for name in METRICS:
        if abs(last[name] - evaluations[-1]["ema"][name]) > 1e-6:
            return f"{name} differs between summary.json and metrics.jsonl"
        if abs(last[name] - run.metrics[name]) > 1e-6:
            return f"{name} differs between summary.json and predictions/"
    for which in ("ema", "raw"):
        for moment in ("last", "median", "best"):
            [float(run.summary[which][moment][name]) for name in METRICS]
    sizes = {len(log[key]) for log in run.logs for key in ("marginal", "pseudo_counts", "pseudo_weights")}
    if sizes | {len(run.labeled_counts), run.logits.shape[1], len(run.unlabeled_counts or run.classes)} != {num}:
        return f"its files disagree about the number of classes, which is {num} in model.json"
    if tuple(split["classes"]) != run.classes or any(part not in split for part in PARTS):
        return "split.json is of other classes or has no indices"
    for log in run.logs:
        losses = [float(loss) for loss in log["loss"].values() if loss is not None]
        shares = np.array([log["pseudo_counts"], log["pseudo_weights"], log["marginal"]], dtype=float)
        if not np.isfinite([*losses, log["step"], log["mask_rate"], log["pseudo_accuracy"] or 0, *shares.flat]).all():
            return f"step {log['step']} of metrics.jsonl has a number that is not finite"
    float(run.summary["steps"] + run.summary["seconds"] + run.summary["images_per_second"])
    return None
