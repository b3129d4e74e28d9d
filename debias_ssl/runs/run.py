"""Trains a run: from its settings to its folder."""

import signal
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from debias_ssl.contract import BatchStream
from debias_ssl.data.last_task import LastTask
from debias_ssl.data.reading.workers import dead_workers_told
from debias_ssl.data.sources.images import fingerprint
from debias_ssl.data.splits import check_inputs, class_counts, hash_of_split, raised_classes, save_split
from debias_ssl.data.task import Part, Task, make_task
from debias_ssl.distributed.accelerator import make_accelerator, place_of
from debias_ssl.distributed.agreement import check_agreement
from debias_ssl.distributed.processes import is_first, num_launched
from debias_ssl.distributed.signals import asked_to_stop
from debias_ssl.distributed.start_up import first_of_each_host_first
from debias_ssl.methods.base import Method
from debias_ssl.models import Classifier, batch_norms, build, check_images
from debias_ssl.runs.folder import RunFolder, inputs_of
from debias_ssl.runs.made_by import made_by
from debias_ssl.runs.summary import summarize, summary_table
from debias_ssl.runs.teacher import taught, teacher_hash
from debias_ssl.system.errors import InputError, Interrupted, shortened
from debias_ssl.system.files import ends_told, write_array
from debias_ssl.system.locking import locked
from debias_ssl.system.outputs import check_apart
from debias_ssl.training.config import Config
from debias_ssl.training.journal import CONFUSION_FILE, cut_journal, read_records
from debias_ssl.training.learner import Learner, blank_pixel
from debias_ssl.training.loop import Trainer
from debias_ssl.training.optim import make_optimizer
from debias_ssl.training.renamed import flat
from debias_ssl.training.strong_views import passes_counted

if TYPE_CHECKING:
    import accelerate

# Settings that may differ between the processes of a run: where each host has its files, and how it reads them.
OF_A_HOST = {"data.root", "data.cache", "data.download", "data.workers"}

# The name of the project in trackers, and the folder in which they write.
TRACKED = "debias_ssl"
# Batch norms with this momentum or less need runs of at least AVERAGES / momentum steps.
SLOW_MOMENTUM, AVERAGES = 0.01, 10


def train(
    config: Config,
    resolved: dict[str, Any],
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    last: LastTask | None = None,
) -> None:
    """Trains into a run folder.

    Args:
        config: the settings.
        resolved: the same as plain values, for `config.yaml`.
        out: the run folder.
        resume: continue the run in the folder, if there is one.
        overwrite: replace the run in the folder.
        quiet: no table at the end.
        last: the images of the previous run in this process, which are not loaded again if this run has the same.

    Raises:
        InputError: the settings, the data or the folder are wrong.
        StoppedError: the loss became non-finite.
    """
    folder = RunFolder(out)
    check_apart(out, "--out", inputs_of(resolved))
    # One process writes; the others end if it is not allowed to.
    with locked(out) if is_first() else nullcontext():
        folder.check(resolved, resume=resume, overwrite=overwrite)
        with ends_told(), dead_workers_told():
            _train_into(folder, config, resolved, resume=resume and not overwrite, quiet=quiet, last=last)


def _train_into(
    folder: RunFolder, config: Config, resolved: dict[str, Any], *, resume: bool, quiet: bool, last: LastTask | None
) -> None:
    resume = resume and folder.holds_run()
    is_finished = resume and folder.is_finished()
    needs_others = not is_finished or num_launched() > 1
    accelerator = None
    if needs_others:
        accelerator = make_accelerator(config.precision, config.log_with, folder.path, config.deterministic)
    check_agreement(lambda: {"the run in --out": "finished" if is_finished else "not finished"})
    if accelerator is None or is_finished:
        if is_first() and not quiet:
            print(f"{folder.path} is finished:\n{summary_table(folder.read_summary())}")
        return
    trainer = make_trainer(config, accelerator, folder, resume, last)
    check_agreement(lambda: _facts(trainer, resolved))
    is_main = accelerator.is_main_process
    if is_main:
        if not resume:
            folder.clear()
        _begin(trainer, folder, resolved)
    accelerator.wait_for_everyone()
    if config.log_with:
        trainer.tracking.begin(TRACKED, resolved, run=folder.path.resolve().name, start=trainer.start)
    with asked_to_stop() as asked:
        logits = trainer.train(asked)
        if is_main:
            _finish(trainer, folder, logits)
        if asked.number:
            name = signal.Signals(asked.number).name
            raise Interrupted(f"{name}: this came during the last step; the run is finished", asked.number)
    accelerator.end_training()
    if is_main and not quiet:
        print(f"{summary_table(folder.read_summary())}\n{folder.path}; a page of it: debias-ssl report {folder.path}")


def make_trainer(
    config: Config, accelerator: "accelerate.Accelerator", folder: RunFolder, resume: bool, last: LastTask | None = None
) -> Trainer:
    """Makes everything that a run consists of, in the order in which it depends on each other."""
    if config.model.norm == "sync" and accelerator.device.type != "cuda":
        raise InputError("model.norm sync needs GPUs: set it to batch or group")
    if config.cuda_graphs and (accelerator.device.type != "cuda" or accelerator.num_processes > 1):
        raise InputError("cuda_graphs needs one NVIDIA GPU and one process: leave it out")
    if config.accumulation * accelerator.num_processes > config.batch_size:
        raise InputError(f"accumulation is {config.accumulation}, more than each process has labeled images")
    if config.compile:
        # Set again without a change, so that torch's compiler also uses it.
        torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled(), warn_only=True)
    task = _make_task(config, accelerator, folder.split if resume and folder.split.exists() else None, last)
    if resume:
        check_inputs(folder.split, task.inputs | (teacher_hash(Path(config.teacher)) if config.teacher else {}))
    torch.manual_seed(config.seed)
    model = _make_model(config, task)
    problem = replace(task.problem(model.num_features), class_balanced=config.class_balanced)
    method = config.method(replace(problem, labeled_loss=config.labeled_loss(problem)))
    stream = _make_stream(config, task, method, accelerator)
    shape = task.readers["train"].shape
    may_be_counted = not config.is_joint and not config.cuda_graphs
    is_counted = may_be_counted and passes_counted(config.strong_views, method, model, shape)
    learner = Learner(
        model.to(memory_format=torch.channels_last),  # pyright: ignore[reportCallIssue]
        method,
        blank=blank_pixel(method.needs.blank, task.data.mean, task.data.std),
        target_model=config.target_model,
        decay=config.ema_decay,
        joint_pass=config.joint_pass,
        accumulation=config.accumulation,
        counted=is_counted,
    ).to(accelerator.device)
    trainer = Trainer(
        config,
        accelerator=accelerator,
        task=task,
        stream=stream,
        learner=learner,
        optimizer=make_optimizer(learner, config.optim, model.net, is_scaled=accelerator.scaler is not None),
        checkpoints=folder.checkpoints,
        metrics=folder.metrics,
    )
    checkpoint = folder.latest_checkpoint() if resume else None
    if checkpoint is not None:
        trainer.resume(checkpoint)
    if config.compile:
        learner.compile_networks()
    if config.cuda_graphs:
        learner.record_networks()
    return trainer


def _facts(trainer: Trainer, resolved: dict[str, Any]) -> dict[str, str]:
    """Facts that must be equal in all processes, or they would average gradients of different steps or images."""
    task, config = trainer.task, trainer.config
    facts = {
        "the step to begin with": str(trainer.start),
        "precision": trainer.accelerator.mixed_precision,
        **{f"--{name}": str(value) for name, value in flat(resolved).items() if name not in OF_A_HOST},
        "the hash of the training images": task.fingerprint,
        "the hash of the test images": fingerprint(task.data.test),
        "the hash of the split": hash_of_split(task.split),
    }
    if config.teacher is not None:
        facts["the hash of the teacher"] = RunFolder(Path(config.teacher)).hash_of_model()
    return facts


def _make_task(
    config: Config, accelerator: "accelerate.Accelerator", split_file: Path | None, last: LastTask | None
) -> Task:
    make = make_task if last is None else last.make
    # The first process of a host decodes the images; the others read the decoded ones.
    with first_of_each_host_first(accelerator):
        return make(
            config.data,
            seed=config.seed,
            place=place_of(accelerator),
            split_file=split_file,
            progress=accelerator.is_local_main_process,
        )


def _make_model(config: Config, task: Task) -> Classifier:
    model = build(num_classes=len(task.data.classes), in_chans=task.channels, **vars(config.model))
    check_images(config.model.name, model, task.readers["train"].shape)
    return model


def _make_stream(config: Config, task: Task, method: Method, accelerator: "accelerate.Accelerator") -> BatchStream:
    stream = task.training_stream(
        method,
        seed=config.seed,
        batch_size=config.batch_size,
        unlabeled_ratio=config.unlabeled_ratio,
        balanced=config.class_balanced,
        has_teacher=config.teacher is not None,
    )
    if config.teacher is None:
        return stream
    return taught(stream, Path(config.teacher), task, method, lambda: accelerator.autocast(), compiled=config.compile)


def _begin(trainer: Trainer, folder: RunFolder, resolved: dict[str, Any]) -> None:
    """Writes and prints the facts that are known before the first step."""
    task, config, changed = trainer.task, trainer.config, folder.changed(resolved)
    made_by()  # now, because the checkout may move to another commit during the run
    names = ("split.json", "metrics.jsonl", CONFUSION_FILE, "checkpoints")
    folder.outputs.claim(*names, *([TRACKED] if config.log_with else []))
    inputs = task.inputs | (teacher_hash(Path(config.teacher)) if config.teacher else {})
    save_split(folder.split, task.split, task.data.classes, task.fingerprint, inputs)
    if task.unreadable:
        folder.write_json("unreadable.json", task.unreadable)
    # Steps and evaluations after the checkpoint will be logged again.
    is_due = trainer.is_evaluation_due or trainer.start == config.steps
    cut_journal(folder.metrics, trainer.start, with_evaluation=not is_due)
    # Last, because this file marks the folder as a run.
    folder.write_config(resolved)
    for note in [*changed, *_notes(config, task), *_short_notes(config, trainer.learner.raw.model)]:
        print(f"note: {note}", file=sys.stderr)
    weights = [*trainer.learner.raw.model.parameters()]
    parameters, trained = sum(p.numel() for p in weights), sum(p.numel() for p in weights if p.requires_grad)
    of_them = f", {trained:,} of them trained" if trained < parameters else ""
    place = trainer.accelerator
    precision = place.mixed_precision.replace("no", "fp32")
    split, test = task.split, len(task.data.test)
    print(
        f"{resolved['method']['class_path']}, {config.model.name} ({parameters:,} parameters{of_them}), "
        f"{len(task.data.classes)} classes: {len(split.labeled)} labeled, {len(split.unlabeled)} unlabeled, "
        f"{len(split.validation)} validation and {test} test images\n"
        f"{config.batch_size} + {config.batch_size * config.unlabeled_ratio} images a step, "
        f"{place.num_processes} x {place.device.type}, {precision}"
        + (", of the strong views those that count" if trainer.learner.counted else "")
        + (f", resumed at step {trainer.start}" if trainer.start else ""),
        file=sys.stderr,
    )


def _notes(config: Config, task: Task) -> list[str]:
    """What users should know of their data before the first step."""
    notes, classes = task.notes, task.data.classes
    # A user's network may load its weights itself.
    if (config.model.freeze or config.model.adapter) and not config.model.is_loaded and "." not in config.model.name:
        notes.append("the frozen weights are random: set model.weights or model.pretrained")
    if task.unreadable:
        notes.append(f"left out {len(task.unreadable)} files that cannot be read: unreadable.json")
    views = {kind: len(each) for kind, each in task.readers["train"].views.items()}
    if views:
        notes.append(
            f"data.features holds {' and '.join(f'{number} {kind}' for kind, number in views.items())} views of "
            "each image, and the run trains on them; data.feature_views none trains on plain features"
        )
    raised = raised_classes(config.data, len(classes))
    if raised:
        notes.append(f"{raised} classes at the end of the long tail would get less than one label: each gets one")
    without = [name for name, count in zip(classes, task.labeled_counts, strict=True) if not count]
    if without:
        notes.append(f"no labeled image of {shortened(without)}: these classes will not be learned")
    tested = class_counts(task.data.test.labels, len(classes))
    untested = [name for name, count in zip(classes, tested, strict=True) if not count]
    if untested:
        notes.append(f"no test image of {shortened(untested)}: recalls are those of the other classes")
    return notes


def _short_notes(config: Config, model: nn.Module) -> list[str]:
    """Whether running statistics of batch norms change too slowly for the run, so that evaluations use old ones."""
    moved = [norm.momentum for norm in batch_norms(model) if norm.training and norm.momentum]
    slowest = min(moved, default=1.0)
    if slowest > SLOW_MOMENTUM or config.steps >= AVERAGES / slowest:
        return []
    return [
        f"batch norms average their statistics over about {1 / slowest:,.0f} steps, and the run has {config.steps:,}: "
        "evaluations use statistics of much earlier weights; set --model.batch_norm_momentum 0.1"
    ]


def _finish(trainer: Trainer, folder: RunFolder, logits: dict[Part, dict[str, Tensor]]) -> None:
    """Writes predictions, the model and the summary."""
    task, config = trainer.task, trainer.config
    folder.outputs.claim("predictions")
    for part, predictions in logits.items():
        arrays = {name: value.numpy() for name, value in predictions.items()}
        arrays["labels"] = task.evaluation_labels(part).numpy()
        for name, array in arrays.items():
            write_array(folder.path / "predictions" / f"{part}_{name}.npy", array)
    side, _, channels = task.readers["test"].shape
    folder.write_model(
        trainer.learner.ema,
        {
            "name": config.model.name,
            "classes": task.data.classes,
            "labeled_counts": task.labeled_counts,
            "num_unlabeled": len(task.split.unlabeled),
            # For reports only; all zero where truth is unknown.
            "unlabeled_counts": task.unlabeled_counts,
            "transform": {"size": side, "channels": channels, "mean": task.data.mean, "std": task.data.std},
        },
        config,
    )
    summary = summarize(read_records(folder.metrics), config.median_of)
    folder.write_results(summary | {"made_by": made_by()}, trainer.learner.ema)
    trainer.tracking.figures({f"final_{name}": value for name, value in summary["ema"]["last"].items()}, config.steps)
