"""Short runs whose steps a method and a learner keep, for tests of the wiring."""

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from jobs import weights
from torch import Tensor

import debias_ssl.runs.run as run_module
from debias_ssl.contract import Batch
from debias_ssl.methods import Method, Needs, Problem, PseudoLabels, Step, View, Views
from debias_ssl.methods.labeled_loss import CrossEntropy
from debias_ssl.models import build
from debias_ssl.training.journal import read_journal

# Four steps of 8 + 16 images. After each of them the journal has a line and the weights are kept.
STEPS = 4
TINY = ["--batch_size", "8", "--unlabeled_ratio", "2", "--steps", str(STEPS), "--data.validation_per_class", "5"]
TINY += ["--log_every", "1", "--eval_every", "10", "--checkpoint_every", "1", "--keep_checkpoints", "9"]
# The plain rule: the new weights are the old ones minus the rate times the gradient.
PLAIN = ["--optim.args.momentum", "0", "--optim.weight_decay", "0", "--optim.schedule", "constant"]
# So small a rate leaves every weight where it is.
STILL = [*PLAIN, "--optim.lr", "1e-30"]


class Watcher(Method):
    """A method of a user's own; it keeps what it is given."""

    needs = Needs(blank="white")
    given: ClassVar[list[Views]] = []
    drawn: ClassVar[list[Tensor]] = []
    judged: ClassVar[list[Any]] = []
    predicted: ClassVar[list[int]] = []
    problems: ClassVar[list[Problem]] = []

    def __init__(self, problem: Problem):
        super().__init__(problem)
        self.problems.append(problem)

    def forward(self, views: Views) -> Step:
        self.given.append(views)
        # More numbers in one step than in another.
        self.drawn.append(torch.rand(len(self.given))[0])
        losses = {"labeled": self.labeled_loss(views), "strong": views.strong.logits.logsumexp(-1).mean()}
        target = views.weak.logits.argmax(-1)
        return Step(losses=losses, pseudo=PseudoLabels(target=target, weight=torch.ones(len(target))))

    def predict(self, view: View, blank: View | None = None) -> Tensor:
        self.predicted.append(len(view.logits))
        return view.logits

    def on_evaluation(self, confusion: Tensor) -> None:
        self.judged.append(confusion.tolist())


class Taught(Watcher):
    """Asks for class probabilities from outside."""

    needs = Needs(teacher_probs=True, labeled_teacher_probs=True)


class FirstFive(Watcher):
    """The first five images of a step count."""

    needs = Needs(blank="white", all_strong=None)

    def forward(self, views: Views) -> Step:
        views = views.counted((torch.arange(len(views.index)) < 5).float())
        first = View(logits=views.strong.logits[:5], features=views.strong.features[:5])
        return super().forward(replace(views, strong=first))


class Unbounded(CrossEntropy):
    """Infinite, with the gradient of cross-entropy."""

    def forward(self, logits: Tensor, labels: Tensor, progress: float) -> Tensor:
        return super().forward(logits, labels, progress) + math.inf


class Run:
    """A finished run: its folder, and what the learner and a method of a user's own were given in each step."""

    def __init__(self, out: Path):
        self.out = out
        self.batches: list[Batch] = []
        self.given: list[Views] = []
        self.drawn: list[Tensor] = []
        self.judged: list[Any] = []
        self.predicted: list[int] = []
        self.problems: list[Problem] = []

    def weights(self, step: int) -> dict[str, Tensor]:
        return weights(self.out, step)

    def trained(self, step: int, of: str = "raw") -> dict[str, Tensor]:
        """The parameters of the trained or of the averaged model."""
        prefix = f"{of}.model.net."
        buffers = ("running_mean", "running_var", "num_batches_tracked")
        found = self.weights(step).items()
        return {key.removeprefix(prefix): v for key, v in found if key.startswith(prefix) and not key.endswith(buffers)}

    def update(self, step: int) -> dict[str, Tensor]:
        """How far optimizer step number `step`, from 1, moved each parameter."""
        before, after = self.trained(step - 1), self.trained(step)
        return {key: after[key] - before[key] for key in after}

    def statistics(self, step: int) -> dict[str, Tensor]:
        """The running statistics of the first batch norm of the trained model."""
        found = self.weights(step)
        first = next(key for key in found if key.startswith("raw.") and key.endswith("running_mean"))
        ends = ("running_mean", "num_batches_tracked")
        return {end: found[first.replace("running_mean", end)] for end in ends}

    def records(self, kind: str = "loss") -> list[dict[str, Any]]:
        """Lines of the journal: those of steps, or with `ema` those of evaluations."""
        return [record for record in read_journal(self.out / "metrics.jsonl") if kind in record]

    def split(self) -> dict[str, Any]:
        return json.loads((self.out / "split.json").read_text())

    def model(self, step: int, of: str = "raw") -> torch.nn.Module:
        """The trained or the averaged model after a step, in evaluation mode."""
        prefix = f"{of}.model."
        found = self.weights(step).items()
        model = build("wrn_10_1", 10, in_chans=1)
        model.load_state_dict({key.removeprefix(prefix): value for key, value in found if key.startswith(prefix)})
        return model.eval()


@contextmanager
def watched(made: Run) -> Iterator[None]:
    """Writes down what the learner and a Watcher see meanwhile."""
    kept = ("given", "drawn", "judged", "predicted", "problems")
    for name in kept:
        getattr(Watcher, name).clear()
    forward = run_module.Learner.forward

    def seeing(self: Any, batch: Batch, progress: float) -> Step:
        made.batches.append(batch)
        return forward(self, batch, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module.Learner, "forward", seeing)
        yield
    for name in kept:
        setattr(made, name, [*getattr(Watcher, name)])


WATCH = ["--method", f"{__name__}.Watcher"]


def norm(update: dict[str, Tensor]) -> float:
    return math.sqrt(sum(value.double().square().sum().item() for value in update.values()))


def close(ours: dict[str, Tensor], theirs: dict[str, Tensor], relative: float = 1e-3, absolute: float = 1e-6) -> None:
    torch.testing.assert_close(ours, theirs, rtol=relative, atol=absolute)


def without_end(out: Path, step: int) -> None:
    """Makes a finished run one that was stopped after a step."""
    (out / "summary.json").unlink()
    for checkpoint in (out / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step_")) > step:
            shutil.rmtree(checkpoint)


RISING = [
    "--optim.warmup",
    "0.5",
    "--optim.schedule",
    "cosine",
    "--optim.args.momentum",
    "0",
    "--optim.weight_decay",
    "0",
]
