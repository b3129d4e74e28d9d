"""`debias-ssl train`: a semi-supervised run, from its settings to its folder."""

import json
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from jsonargparse import Namespace
from torch import Tensor, nn

from debias_ssl.checkpoint import load_checkpoint, machine, save_checkpoint
from debias_ssl.config import Config, Parser, make_parser, resolve, switched_method
from debias_ssl.data.keyed import Purpose, derived_seed
from debias_ssl.data.splits import class_counts, raised_classes, save_split
from debias_ssl.data.streams import Batch
from debias_ssl.data.task import Part, make_task
from debias_ssl.data.workers import dead_workers_told
from debias_ssl.errors import InputError, Interrupted, StoppedError, shortened
from debias_ssl.evaluation import evaluate_logits, predict_logits
from debias_ssl.files import write_array, write_aside, writing
from debias_ssl.given import taught
from debias_ssl.journal import Journal, StepStatistics, data_warning, read_journal, warnings_for
from debias_ssl.learner import Learner, white_pixel
from debias_ssl.locking import locked
from debias_ssl.methods.base import Step
from debias_ssl.models import build, check_images
from debias_ssl.optim import make_optimizer, set_learning_rate
from debias_ssl.processes import is_first
from debias_ssl.run_folder import RunFolder
from debias_ssl.run_summary import summarize, summary_table
from debias_ssl.runtime import entry_point, make_accelerator, place_of, reseed
from debias_ssl.schedules import learning_rate_factor
from debias_ssl.signals import StopVote, asked_to_stop

# Steps after which the pseudo-labels of any run are looked at, if it has twice as many.
SETTLED = 200


class Run:
    """Everything that a run consists of, in the order in which it comes into being."""

    def __init__(self, config: Config, folder: RunFolder, resume: bool):
        self.config = config
        self.folder = folder
        self.accelerator = make_accelerator(config.precision, config.log_with, folder.path)
        self.is_main = self.accelerator.is_main_process
        if config.model.norm == "sync" and self.accelerator.device.type != "cuda":
            raise InputError("model.norm sync needs GPUs: take batch or group")
        # The first process of a host decodes the images, the others find them decoded.
        with self.accelerator.local_main_process_first():
            self.task = make_task(
                config.data,
                seed=config.seed,
                place=place_of(self.accelerator),
                split_file=folder.split if resume and folder.split.exists() else None,
                progress=self.accelerator.is_local_main_process,
            )
        if config.accumulation * place_of(self.accelerator).num_processes > config.batch_size:
            raise InputError(f"accumulation is {config.accumulation}, more than each process has labeled images")
        torch.manual_seed(config.seed)
        model = build(num_classes=len(self.task.data.classes), in_chans=self.task.channels, **vars(config.model))
        check_images(config.model.name, model, self.task.readers["train"].shape)
        labeled_loss = config.labeled_loss(self.task.labeled_counts).to(self.accelerator.device)
        method = config.method(replace(self.task.problem(model.num_features), labeled_loss=labeled_loss))
        self.stream = self.task.training_stream(
            method,
            seed=config.seed,
            batch_size=config.batch_size,
            unlabeled_ratio=config.unlabeled_ratio,
            balanced=config.class_balanced,
            given_later=config.given_by is not None,
        )
        if config.given_by is not None:
            self.stream = taught(self.stream, Path(config.given_by), self.task, method)
        self.learner = Learner(
            model.to(memory_format=torch.channels_last),  # pyright: ignore[reportCallIssue]
            method,
            white=white_pixel(self.task.data.mean, self.task.data.std),
            teacher=config.teacher,
            decay=config.ema_decay,
            joint_pass=config.joint_pass,
            accumulation=config.accumulation,
        ).to(self.accelerator.device)
        self.optimizer = make_optimizer(self.learner, config.optim, model.net)
        self.start = 0
        checkpoint = folder.latest_checkpoint() if resume else None
        self.scaler_state: dict[str, Any] = {}
        if checkpoint is not None:
            self._restore(checkpoint)
        if config.compile:
            self.learner.compile_networks()
        if config.log_with:
            self.accelerator.init_trackers("debias_ssl")

    def _restore(self, checkpoint: Path) -> None:
        state = load_checkpoint(checkpoint, self.learner, self.optimizer)
        self.start, self.scaler_state = state["step"], state["scaler"]
        here = machine()
        differing = [f"{key} was {was}, is {here[key]}" for key, was in state["machine"].items() if was != here[key]]
        if differing and self.is_main:
            print(f"note: the last bits may differ from an unbroken run: {'; '.join(differing)}", file=sys.stderr)

    def train(self) -> None:
        """The loop; each step is in sight."""
        config, task, accelerator, learner = self.config, self.task, self.accelerator, self.learner
        trained, optimizer = accelerator.prepare(learner, self.optimizer)
        if accelerator.scaler is not None and self.scaler_state:
            accelerator.scaler.load_state_dict(self.scaler_state)
        trained.train()
        sums = StepStatistics(len(task.data.classes), accelerator.device)
        journal = Journal(self.folder.metrics, start=self.start, steps=config.steps, is_main=self.is_main)
        images = config.batch_size * (1 + config.unlabeled_ratio)
        vote = StopVote()
        # Processes that decode end with their stream, and not by a signal: they ignore those that ask to stop.
        with (
            closing(journal),
            asked_to_stop() as signaled,
            closing(self.stream.batches(self.start, config.steps)) as batches,
        ):
            for step in range(self.start, config.steps):
                asked = time.perf_counter()
                batch = next(batches)
                waited = time.perf_counter() - asked
                result, rate = take_step(step, batch, config, accelerator, trained, optimizer)
                learner.after_step(step)
                sums.add(result, batch.truth)
                journal.step(images, waited)
                done = step + 1
                is_last = done == config.steps
                stop = vote(signaled.number)
                is_checkpoint = done % config.checkpoint_every == 0 or is_last or stop > 0
                if done % config.log_every == 0 or is_checkpoint:
                    self._log(done, sums, journal, rate)
                if done % config.eval_every == 0 and not is_last:
                    self._evaluate(done, journal)
                if is_checkpoint:
                    self._save(done)
                    journal.restart_clock()
                if stop and not is_last:
                    vote.result()
                    accelerator.end_training()
                    name = signal.Signals(stop).name
                    raise Interrupted(f"{name}: stopped after step {done}; --resume goes on from there", stop)
            vote.result()
            self._finish(journal)
            if signaled.number:
                raise Interrupted(
                    f"{signal.Signals(signaled.number).name}: this came during the last step; the run is finished",
                    signaled.number,
                )
        accelerator.end_training()

    def _log(self, step: int, sums: StepStatistics, journal: Journal, rate: float) -> None:
        record = {"step": step, **sums.collect(), "learning_rate": rate, **journal.rates()}
        if record["nonfinite_steps"]:
            raise self._not_finite("the loss", step)
        record["marginal"] = self.learner.marginal.value.tolist()
        journal.write(record)
        self._track({"learning_rate": rate, **record["loss"], "mask_rate": record["mask_rate"]}, step)
        loss, speed = sum(record["loss"].values()), record["images_per_second"]
        journal.show(loss=f"{loss:.3f}", mask=f"{record['mask_rate']:.2f}", **{"images/s": f"{speed:.0f}"})
        # In the beginning no prediction is confident, and workers have not started; that is as it should be.
        if step < min(self.config.steps / 2, max(self.config.steps / 10, SETTLED)):
            return
        if not self.task.readers["train"].is_resident:
            journal.warn(data_warning(record["data_wait"], self.config.data.workers))
        method = self.learner.raw.method
        if method.needs.num_strong or method.needs.weak_gradient:
            journal.warn(warnings_for(record, self.task.data.classes, hasattr(method, "threshold")))

    def _not_finite(self, what: str, step: int) -> StoppedError:
        last = self.folder.latest_checkpoint()
        return StoppedError(
            f"{what} is not finite at step {step}: lower --optim.lr; last good checkpoint: {last or 'none'}"
        )

    def _evaluate(self, step: int, journal: Journal) -> dict[Part, dict[str, Tensor]]:
        """Evaluates both models on every part; returns the logits."""
        predictors = {"ema": self.learner.ema, "raw": self.learner.raw}
        counts = torch.tensor(self.task.labeled_counts)
        logits: dict[Part, dict[str, Tensor]] = {}
        figures: dict[Part, dict[str, Any]] = {}
        for part in self.task.parts:
            stream = self.task.evaluation_stream(part, self.config.eval_batch_size)
            labels = self.task.evaluation_labels(part)
            logits[part] = {
                name: predict_logits(predictor, stream, len(counts)) for name, predictor in predictors.items()
            }
            figures[part] = {name: evaluate_logits(value, labels, counts) for name, value in logits[part].items()}
        others = {part: value for part, value in figures.items() if part != "test"}
        journal.write({"step": step, **figures["test"], **others})
        self._track({f"{name}_accuracy": figures["test"][name]["accuracy"] for name in predictors}, step)
        ema = figures["test"]["ema"]
        journal.say(f"step {step}: accuracy {ema['accuracy']:.2%}, min recall {ema['min_recall']:.2%} (EMA, test)")
        if "validation" in figures:
            self.learner.raw.method.on_evaluation(torch.tensor(figures["validation"]["ema"]["confusion"]))
        journal.restart_clock()
        return logits

    def _track(self, values: dict[str, float], step: int) -> None:
        if self.config.log_with:
            self.accelerator.log(values, step)

    def _save(self, step: int) -> None:
        # A loss may be finite whose gradient is not.
        if not torch.stack([p.isfinite().all() for p in self.learner.raw.parameters()]).all():
            raise self._not_finite("a weight", step)
        if self.is_main:
            scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}
            keep = self.config.keep_checkpoints
            save_checkpoint(self.folder.checkpoints, step, self.learner, self.optimizer, scaler, keep)
        self.accelerator.wait_for_everyone()

    def _finish(self, journal: Journal) -> None:
        logits = self._evaluate(self.config.steps, journal)
        if not self.is_main:
            return
        for part, predictions in logits.items():
            arrays = {name: value.numpy() for name, value in predictions.items()}
            arrays["labels"] = self.task.evaluation_labels(part).numpy()
            for name, array in arrays.items():
                write_array(self.folder.path / "predictions" / f"{part}_{name}.npy", array)
        side, _, channels = self.task.readers["test"].shape
        data = self.task.data
        self.folder.write_model(
            self.learner.ema,
            {
                "name": self.config.model.name,
                "classes": data.classes,
                "labeled_counts": self.task.labeled_counts,
                "num_unlabeled": len(self.task.split.unlabeled),
                # For reports only; all zero where truth is unknown.
                "unlabeled_counts": self.task.unlabeled_counts,
                "transform": {"size": side, "channels": channels, "mean": data.mean, "std": data.std},
            },
        )
        summary = summarize(read_journal(self.folder.metrics), self.config.median_of)
        self.folder.write_json("summary.json", summary)
        self._track({f"final_{name}": value for name, value in summary["ema"]["last"].items()}, self.config.steps)


def take_step(
    step: int, batch: Batch, config: Config, accelerator: Accelerator, trained: nn.Module, optimizer: Any
) -> tuple[Step, float]:
    """Optimizer step number `step`, from 0, of a prepared learner; returns also the learning rate."""
    progress = step / config.steps
    rate = config.optim.lr * learning_rate_factor(progress, config.optim.schedule, config.optim.warmup)
    set_learning_rate(optimizer, rate)
    reseed(derived_seed(config.seed, Purpose.PROCESS, step, accelerator.process_index), accelerator.device)
    result = trained(batch, progress)
    accelerator.backward(torch.stack([*result.losses.values()]).sum())
    if config.optim.clip is not None:
        accelerator.clip_grad_norm_(trained.parameters(), config.optim.clip)
    optimizer.step()
    optimizer.zero_grad()
    return result, rate


def train(
    config: Config,
    resolved: dict[str, Any],
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> None:
    """Trains into a run folder.

    Args:
        config: the settings.
        resolved: the same as plain values, for `config.yaml`.
        out: the run folder.
        resume: go on with the run that is there, if one is.
        overwrite: replace the run that is there.
        quiet: no table at the end.

    Raises:
        InputError: something in the settings, the data or the folder does not fit.
        StoppedError: the loss became non-finite.
    """
    folder = RunFolder(out)
    # One process writes; the others end when it may not.
    with locked(out) if is_first() else nullcontext():
        folder.check(resolved, resume=resume, overwrite=overwrite)
        with writing(out), dead_workers_told():
            _train_into(folder, config, resolved, resume=resume, overwrite=overwrite, quiet=quiet)


def _train_into(
    folder: RunFolder, config: Config, resolved: dict[str, Any], *, resume: bool, overwrite: bool, quiet: bool
) -> None:
    resume = resume and folder.holds_run() and not overwrite
    if resume and folder.is_finished():
        if not quiet:
            print(f"{folder.path} is finished:\n{summary_table(folder.read_summary())}")
        return
    run = Run(config, folder, resume)
    if run.is_main:
        if overwrite:
            folder.clear()
        _begin(run, resolved)
    run.accelerator.wait_for_everyone()
    run.train()
    if run.is_main and not quiet:
        print(f"{summary_table(folder.read_summary())}\n{folder.path}; a page of it: debias-ssl report {folder.path}")


def _begin(run: Run, resolved: dict[str, Any]) -> None:
    """Writes what is known before the first step, and says it."""
    task, folder, config = run.task, run.folder, run.config
    folder.write_config(resolved)
    save_split(folder.split, task.split, task.data.classes, task.fingerprint)
    if task.unreadable:
        folder.write_json("unreadable.json", task.unreadable)
        print(f"note: left out {len(task.unreadable)} files that cannot be read: unreadable.json", file=sys.stderr)
    # What was logged after the checkpoint will be logged again, and so will the last evaluation.
    records = [r for r in read_journal(folder.metrics, run.start) if "loss" in r or r["step"] < config.steps]
    write_aside(folder.metrics, "".join(json.dumps(record) + "\n" for record in records))
    raised = raised_classes(config.data, len(task.data.classes))
    if raised:
        print(
            f"note: {raised} classes at the end of the long tail would get less than one label; each was given one",
            file=sys.stderr,
        )
    without = [name for name, count in zip(task.data.classes, task.labeled_counts, strict=True) if not count]
    if without:
        print(f"note: no labeled image is of {shortened(without)}, which will not be learned", file=sys.stderr)
    tested = class_counts(task.data.test.labels, len(task.data.classes))
    untested = [name for name, count in zip(task.data.classes, tested, strict=True) if not count]
    if untested:
        print(f"note: no test image is of {shortened(untested)}; recalls are of the other classes", file=sys.stderr)
    parameters = sum(p.numel() for p in run.learner.raw.model.parameters())
    place = run.accelerator
    precision = place.mixed_precision.replace("no", "fp32")
    split, test = task.split, len(task.data.test)
    print(
        f"{resolved['method']['class_path']}, {config.model.name} ({parameters:,} parameters), "
        f"{len(task.data.classes)} classes: {len(split.labeled)} labeled, {len(split.unlabeled)} unlabeled, "
        f"{len(split.validation)} validation and {test} test images\n"
        f"{config.batch_size} + {config.batch_size * config.unlabeled_ratio} images a step, "
        f"{place.num_processes} x {place.device.type}, {precision}"
        + (f", resumed at step {run.start}" if run.start else ""),
        file=sys.stderr,
    )


def add_folder_flags(parser: Parser, default: str) -> None:
    parser.add_argument("--out", type=str, default=None, help=f"run folder; null is {default} and the config's name")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, if there is one")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --out")


def train_parsed(parser: Parser, parsed: Namespace, files: Sequence[Path], out: Path) -> None:
    """Trains by a command line, and says what became of the method that files name."""
    config, resolved = resolve(parser, parsed)
    note = switched_method(resolved, files)
    if note and is_first():
        print(f"note: {note}", file=sys.stderr)
    train(config, resolved, out, resume=parsed.resume, overwrite=parsed.overwrite)


@entry_point
def main(arguments: list[str]) -> None:
    if not arguments:
        raise InputError("say what to train: --config FILE, such as configs/digits.yaml (--help lists the settings)")
    parser = make_parser("train", Config)
    add_folder_flags(parser, "runs/")
    parsed = parser.read_arguments(arguments)
    files = [Path(str(file)) for file in parsed.config or []]
    out = Path(parsed.out or f"runs/{files[-1].stem if files else 'train'}")
    if parsed.resume and not files:
        if not RunFolder(out).holds_run():
            raise InputError(f"{str(out)!r} holds no run to go on with: pass --config to begin one")
        parsed = parser.read_arguments(["--config", str(out / "config.yaml"), *arguments])
    train_parsed(parser, parsed, files, out)


if __name__ == "__main__":
    main()
