"""`Trainer`: the training loop, with its log, evaluations, checkpoints and stops; `take_step`: one step."""

import signal
import sys
import time
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from debias_ssl.contract import Batch, BatchStream, Step
from debias_ssl.data.sampling.keyed import Purpose, derived_seed
from debias_ssl.data.task import Part, Task
from debias_ssl.distributed.device import reseed
from debias_ssl.distributed.signals import Asked, StopVote
from debias_ssl.formulas.schedules import learning_rate_factor
from debias_ssl.system.errors import Interrupted, StoppedError
from debias_ssl.training.checkpoint import base_of, checkpoints, load_checkpoint, machine, save_checkpoint
from debias_ssl.training.config import Config
from debias_ssl.training.evaluation import evaluate_logits, predict_all, try_batch
from debias_ssl.training.journal import Journal, StepStatistics, data_warning, threshold_flag, warnings_for
from debias_ssl.training.learner import Learner, Predictor
from debias_ssl.training.memory import memory_told
from debias_ssl.training.optim import set_learning_rate
from debias_ssl.training.tracking import Tracking

if TYPE_CHECKING:
    import accelerate

# Warnings begin after this number of steps and a tenth of the run, but not later than at its half.
SETTLED = 200


class Trainer:
    """Trains a learner on the batches of a stream; writes a journal and checkpoints.

    Args:
        config: the settings of the run.
        accelerator: the device and the other processes.
        task: the images to evaluate on, and the names of the classes.
        stream: the batches.
        learner: the learner, on the device.
        optimizer: the optimizer of the learner's parameters.
        checkpoints: the folder of checkpoints.
        metrics: the file of the journal.
    """

    def __init__(
        self,
        config: Config,
        *,
        accelerator: "accelerate.Accelerator",
        task: Task,
        stream: BatchStream,
        learner: Learner,
        optimizer: torch.optim.Optimizer,
        checkpoints: Path,
        metrics: Path,
    ):
        self.config = config
        self.accelerator = accelerator
        self.task = task
        self.stream = stream
        self.learner = learner
        self.optimizer = optimizer
        self.checkpoint_folder = checkpoints
        self.metrics = metrics
        data = task.data
        self.tracking = Tracking(accelerator, classes=data.classes, mean=data.mean, std=data.std, metrics=metrics)
        self.start = 0
        self.is_evaluation_due = False
        """Whether the step of the checkpoint was not evaluated yet, so that a resumed run evaluates first."""
        self._scaler_state: dict[str, Any] = {}
        self._base = base_of(learner, is_found_again=config.model.is_loaded)

    def resume(self, checkpoint: Path) -> None:
        """Restores the state of a checkpoint.

        Raises:
            InputError: the checkpoint is damaged or of another model.
        """
        state = load_checkpoint(checkpoint, self.learner, self.optimizer, self._base)
        self.start, self._scaler_state = state["step"], state["scaler"]
        self.is_evaluation_due = state["is_evaluation_due"]
        here = machine()
        differing = [f"{key} was {was}, is {here[key]}" for key, was in state["machine"].items() if was != here[key]]
        if differing and self.accelerator.is_main_process:
            print(f"note: the last bits may differ from an uninterrupted run: {'; '.join(differing)}", file=sys.stderr)

    def train(self, asked: Asked) -> dict[Part, dict[str, Tensor]]:
        """Takes all remaining steps; returns the logits of the last evaluation.

        Args:
            asked: whether a signal has asked this process to stop.

        Raises:
            Interrupted: a signal asked a process to stop; a checkpoint of the last step was saved.
            StoppedError: a loss or a weight is not finite, or there is not enough memory.
        """
        config, accelerator, learner = self.config, self.accelerator, self.learner
        # Without `device_placement`, Accelerate imports torch's distributed tensors to look for them, which takes time.
        trained, optimizer = accelerator.prepare(learner, self.optimizer, device_placement=[True, True])
        if accelerator.scaler is not None and self._scaler_state:
            accelerator.scaler.load_state_dict(self._scaler_state)
        trained.train()
        sums = StepStatistics(len(self.task.data.classes), accelerator.device)
        journal = Journal(self.metrics, start=self.start, steps=config.steps, is_main=self.accelerator.is_main_process)
        images = config.batch_size * (1 + config.unlabeled_ratio)
        vote = StopVote()
        self._try_evaluation()
        with closing(journal), closing(self.stream.batches(self.start, config.steps)) as batches:
            if self.is_evaluation_due:
                self._evaluate(self.start, journal)
            for step in range(self.start, config.steps):
                with memory_told(f"in step {step + 1}", _less_memory(config)):
                    requested = time.perf_counter()
                    batch = next(batches)
                    waited = time.perf_counter() - requested
                    result, rate = take_step(step, batch, config, accelerator, trained, optimizer)
                learner.after_step(step)
                sums.add(result, batch.truth)
                journal.step(images, waited)
                done = step + 1
                is_last = done == config.steps
                stop = vote(asked.number)
                is_checkpoint = done % config.checkpoint_every == 0 or is_last or stop > 0
                if done % config.log_every == 0 or is_checkpoint:
                    self._log(done, sums, journal, rate)
                is_due = done % config.eval_every == 0 and not is_last
                if is_due or is_last:
                    self.tracking.examples(batch, result.pseudo)
                if is_checkpoint:
                    # Before the evaluation, which may run out of memory: the steps so far must not be lost.
                    self._save(done, is_evaluation_due=is_due)
                    journal.restart_clock()
                if is_due and not stop:
                    self._evaluate(done, journal)
                if stop and not is_last:
                    vote.result()
                    accelerator.end_training()
                    name = signal.Signals(stop).name
                    raise Interrupted(f"{name}: stopped after step {done}; --resume goes on from there", stop)
            vote.result()
            return self._evaluate(config.steps, journal)

    def _log(self, step: int, sums: StepStatistics, journal: Journal, rate: float) -> None:
        record = {"step": step, **sums.collect(), "learning_rate": rate, **journal.rates()}
        if record["nonfinite_steps"]:
            raise self._not_finite("the loss", step)
        record["marginal"] = self.learner.marginal.value.tolist()
        journal.write(record)
        self.tracking.marginal(record["marginal"], step)
        logged = ("mask_rate", "pseudo_accuracy", "strong_share", "images_per_second")
        self.tracking.figures(
            {"learning_rate": rate, **record["loss"], **{name: record[name] for name in logged}}, step
        )
        loss, speed = sum(record["loss"].values()), record["images_per_second"]
        journal.show(loss=f"{loss:.3f}", mask=f"{record['mask_rate']:.2f}", **{"images/s": f"{speed:.0f}"})
        # At first no prediction is confident and workers are starting, which is normal.
        if step < min(self.config.steps / 2, max(self.config.steps / 10, SETTLED)):
            return
        if not self.task.readers["train"].is_resident:
            journal.warn(data_warning(record["data_wait"], self.config.data.workers))
        method = self.learner.raw.method
        if method.needs.num_strong or method.needs.weak_gradient:
            journal.warn(warnings_for(record, self.task.data.classes, threshold_flag(method)))

    def _not_finite(self, what: str, step: int) -> StoppedError:
        found = checkpoints(self.checkpoint_folder)
        last = found[-1] if found else "none"
        return StoppedError(f"{what} is not finite at step {step}: lower --optim.lr; last good checkpoint: {last}")

    @property
    def _predictors(self) -> dict[str, Predictor]:
        return {"ema": self.learner.ema, "raw": self.learner.raw}

    def _try_evaluation(self) -> None:
        """Passes a batch of an evaluation through both models, so that an error there stops the run at its start."""
        for part in self.task.parts:
            with self._memory_told("a first batch of"), self.accelerator.autocast():
                try_batch(self._predictors, self.task.evaluation_stream(part, self.config.eval_batch_size))

    def _memory_told(self, what: str) -> AbstractContextManager[None]:
        size = self.config.eval_batch_size
        return memory_told(f"in {what} the evaluation", f"--resume --eval_batch_size {max(1, size // 2)} goes on")

    def _evaluate(self, step: int, journal: Journal) -> dict[Part, dict[str, Tensor]]:
        """Evaluates both models on every part; returns the logits."""
        counts = torch.tensor(self.task.labeled_counts)
        logits: dict[Part, dict[str, Tensor]] = {}
        figures: dict[Part, dict[str, Any]] = {}
        for part in self.task.parts:
            stream = self.task.evaluation_stream(part, self.config.eval_batch_size)
            labels = self.task.evaluation_labels(part)
            with self._memory_told(f"step {step}, in"), self.accelerator.autocast():
                logits[part] = predict_all(self._predictors, stream, len(counts))
            figures[part] = {name: evaluate_logits(value, labels, counts) for name, value in logits[part].items()}
        journal.write_evaluation(step, figures)
        self.tracking.evaluation(figures, step)
        ema = figures["test"]["ema"]
        journal.say(f"step {step}: accuracy {ema['accuracy']:.2%}, min recall {ema['min_recall']:.2%} (EMA, test)")
        if "validation" in figures:
            self.learner.raw.method.on_evaluation(torch.tensor(figures["validation"]["ema"]["confusion"]))
        journal.restart_clock()
        return logits

    def _save(self, step: int, *, is_evaluation_due: bool) -> None:
        # A finite loss can have a gradient that is not finite.
        if not torch.stack([p.isfinite().all() for p in self.learner.raw.parameters()]).all():
            raise self._not_finite("a weight", step)
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}
            keep = self.config.keep_checkpoints
            save_checkpoint(
                self.checkpoint_folder,
                step,
                self.learner,
                self.optimizer,
                scaler,
                keep,
                is_evaluation_due=is_evaluation_due,
                base=self._base,
            )
        self.accelerator.wait_for_everyone()


def _less_memory(config: Config) -> str:
    """Settings with which steps need less memory. They change the training, so they need a new run."""
    parts = min(2 * config.accumulation, config.batch_size)
    return f"a new run with --accumulation {parts}, --precision bf16 or a smaller --batch_size needs less"


def take_step(
    step: int, batch: Batch, config: Config, accelerator: "accelerate.Accelerator", trained: nn.Module, optimizer: Any
) -> tuple[Step, float]:
    """Takes optimizer step `step` (from 0) of a prepared learner; returns its result and the learning rate."""
    progress = step / config.steps
    rate = config.optim.lr * learning_rate_factor(progress, config.optim.schedule, config.optim.warmup)
    # Only scaled losses need Accelerate's optimizer, which searches the disk for a package twice in each step.
    plain = optimizer if accelerator.scaler is not None else getattr(optimizer, "optimizer", optimizer)
    set_learning_rate(plain, rate)
    reseed(derived_seed(config.seed, Purpose.PROCESS, step, accelerator.process_index), accelerator.device)
    result = trained(batch, progress)
    accelerator.backward(torch.stack([*result.losses.values()]).sum())
    if config.optim.clip is not None:
        # The same as `accelerator.clip_grad_norm_`, which would import torch's distributed tensors.
        accelerator.unscale_gradients()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), config.optim.clip)
    plain.step()
    plain.zero_grad()
    return result, rate
