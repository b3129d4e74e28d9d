"""Every setting of a run reaches the place where it acts: short runs of the job, and what they leave behind.

A line of the wiring that is left out or mixed up fails a test here. `scripts/checks/mutate.py` breaks each of them.
"""

import itertools
import json
import math
import shutil
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from jobs import refused, run, same, weights
from safetensors.torch import load_file
from torch import Tensor

import debias_ssl.runs.run as run_module
from debias_ssl import train
from debias_ssl.contract import Batch
from debias_ssl.data.config import DataConfig
from debias_ssl.data.sources.load import load_data
from debias_ssl.distributed.accelerator import make_accelerator
from debias_ssl.methods import Method, Needs, Problem, PseudoLabels, Step, View, Views
from debias_ssl.methods.labeled_loss import CrossEntropy
from debias_ssl.models import build
from debias_ssl.training import journal as journal_module
from debias_ssl.training.config import Config
from debias_ssl.training.journal import CONFUSION_FILE, read_journal
from debias_ssl.training.loop import take_step
from debias_ssl.training.optim import OptimConfig, make_optimizer

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


class Counted(CrossEntropy):
    """A loss of a user's own; it keeps what it is given."""

    given: ClassVar[list[tuple[list[float], float]]] = []

    def forward(self, logits: Tensor, labels: Tensor, progress: float) -> Tensor:
        self.given.append((self.counts.tolist(), progress))
        return super().forward(logits, labels, progress)


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


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """A short run with these flags; the same flags give the same run, which is made once."""
    runs: dict[tuple[str, ...], Run] = {}

    def make(*flags: str) -> Run:
        if flags not in runs:
            runs[flags] = Run(tmp_path_factory.mktemp("runs") / "run")
            with watched(runs[flags]):
                run(runs[flags].out, *TINY, *flags)
        return runs[flags]

    return make


WATCH = ["--method", f"{__name__}.Watcher"]
WATCH_COUNTED = ["--method", f"{__name__}.FirstFive"]


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


# -- the optimizer


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


def test_the_learning_rate_follows_its_schedule(made):
    rates = [record["learning_rate"] for record in made(*RISING, "--optim.lr", "0.1").records()]
    # Progress is 0, .25, .5 and .75: half of the run rises, the rest falls by the cosine.
    assert rates == pytest.approx([0, 0.05, 0.1, 0.05])


def test_weights_move_by_the_learning_rate(made):
    one, half = made(*RISING, "--optim.lr", "0.1"), made(*RISING, "--optim.lr", "0.05")
    still = made(*STILL)
    # The first step of a warm-up has no rate.
    for each in (one, half):
        close(each.trained(1), still.trained(1), relative=0, absolute=1e-20)
    assert norm(one.update(2)) > 1e-2
    close(one.update(2), {key: 2 * value for key, value in half.update(2).items()})


def test_a_step_follows_the_gradient_of_the_sum_of_its_losses(made):
    watch = made(*WATCH, *PLAIN, "--optim.lr", "0.01")
    for step in range(1, STEPS):
        batch, model = watch.batches[step], watch.model(step).train()
        labeled, strong = model(torch.cat([batch.labeled, *batch.strong]))[0].split([8, 16])
        (torch.nn.functional.cross_entropy(labeled, batch.labels) + strong.logsumexp(-1).mean()).backward()
        expected = {key.removeprefix("net."): -0.01 * value.grad for key, value in model.named_parameters()}
        close(watch.update(step + 1), expected)


def test_the_default_schedule_is_fixmatchs(made):
    rates = [record["learning_rate"] for record in made("--optim.lr", "0.2").records()]
    assert rates == pytest.approx([0.2 * math.cos(7 / 16 * math.pi * k / STEPS) for k in range(STEPS)])


def test_a_long_gradient_is_clipped(made):
    free, clipped = made(*PLAIN, "--optim.lr", "0.5"), made(*PLAIN, "--optim.lr", "0.5", "--optim.clip", "0.01")
    for step in range(2, STEPS + 1):
        assert norm(clipped.update(step)) == pytest.approx(0.5 * 0.01, rel=1e-3)
        assert norm(free.update(step)) > 2 * 0.5 * 0.01


def test_a_short_gradient_is_not_clipped(made):
    free, clipped = made(*PLAIN, "--optim.lr", "0.01"), made(*PLAIN, "--optim.lr", "0.01", "--optim.clip", "1e6")
    close(clipped.update(2), free.update(2))


def test_kernels_decay_by_the_weight_decay(made):
    still, free = made(*STILL), made(*PLAIN, "--optim.lr", "0.1")
    decayed = made(*PLAIN, "--optim.lr", "0.1", "--optim.weight_decay", "0.5")
    for key, start in still.trained(1).items():
        expected = -0.1 * 0.5 * start if start.ndim > 1 else torch.zeros_like(start)
        torch.testing.assert_close(decayed.trained(1)[key] - free.trained(1)[key], expected, rtol=1e-3, atol=1e-6)


def test_momentum_adds_a_part_of_the_step_before(made):
    constant = ["--optim.weight_decay", "0", "--optim.schedule", "constant", "--optim.lr", "0.01"]
    still, free = made(*STILL), made(*PLAIN, "--optim.lr", "0.01")
    heavy = made(*constant, "--optim.args.momentum", "0.5", "--optim.args.nesterov", "false")
    first = {key: value - still.trained(1)[key] for key, value in free.trained(1).items()}
    assert same(heavy.trained(1), free.trained(1))
    # From the same weights, so that both have the same gradient.
    close(heavy.update(2), {key: value + 0.5 * first[key] for key, value in free.update(2).items()})


def test_nesterovs_first_step_is_longer(made):
    constant = ["--optim.weight_decay", "0", "--optim.schedule", "constant", "--optim.lr", "0.01"]
    start, free = made(*STILL).trained(1), made(*PLAIN, "--optim.lr", "0.01").trained(1)
    ahead = made(*constant, "--optim.args.momentum", "0.5").trained(1)
    for key, value in start.items():
        torch.testing.assert_close(ahead[key] - value, 1.5 * (free[key] - value), rtol=1e-3, atol=1e-6)


def test_adamw_is_another_optimizer(made):
    out = made("--optim.name", "adamw", "--optim.lr", "0.001").out
    saved = load_file(out / "checkpoints" / f"step_{STEPS:08d}" / "optimizer.safetensors")
    assert {key.rpartition(".")[2] for key in saved} == {"step", "exp_avg", "exp_avg_sq"}


def test_layers_far_from_the_classifier_learn_more_slowly(made):
    net = ["--model.name", "test_resnet", "--steps", "1", *PLAIN]
    still, equal, layered = (
        made(*net, "--optim.lr", lr, *decay).trained(1)
        for lr, decay in (("1e-30", []), ("0.01", []), ("0.01", ["--optim.layer_decay", "0.5"]))
    )
    ratios = {key: ((layered[key] - value).norm() / (equal[key] - value).norm()).item() for key, value in still.items()}
    assert ratios["fc.weight"] == pytest.approx(1, rel=1e-2)
    # The first layer is the farthest.
    assert min(ratios.values()) == pytest.approx(ratios["conv1.0.weight"], rel=1e-2)
    assert math.log2(ratios["conv1.0.weight"]) == pytest.approx(round(math.log2(ratios["conv1.0.weight"])), abs=0.02)
    assert ratios["conv1.0.weight"] < 0.2


# -- the learner


def test_a_method_of_ones_own_is_told_the_progress(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_method.py").write_text(
        "from debias_ssl.methods import FixMatch\n"
        "class Telling(FixMatch):\n"
        "    def forward(self, views):\n"
        "        print('progress', views.progress)\n"
        "        return super().forward(views)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run(tmp_path / "run", *TINY, "--method", "own_method.Telling")
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("progress")]
    assert told == ["progress 0.0", "progress 0.25", "progress 0.5", "progress 0.75"]


def test_a_labeled_loss_of_ones_own_is_given_counts_and_progress(made):
    Counted.given.clear()
    imbalance = ["--data.labels_per_class", "8", "--data.labeled_imbalance", "8"]
    made(*WATCH, *imbalance, "--labeled_loss", f"{__name__}.Counted")
    counts = [8, 6, 5, 4, 3, 2, 2, 1, 1, 1]
    assert Counted.given == [(counts, progress) for progress in (0, 0.25, 0.5, 0.75)]


def test_losses_in_the_journal_are_those_of_the_method(made):
    watch = made(*WATCH)
    for record, views in zip(watch.records(), watch.given, strict=True):
        strong = views.strong.logits.logsumexp(-1).mean().item()
        labeled = torch.nn.functional.cross_entropy(views.labeled.logits, views.labels).item()
        assert record["loss"] == pytest.approx({"labeled": labeled, "strong": strong}, rel=1e-5)
        assert record["mask_rate"] == 1


def test_accuracy_of_pseudo_labels_is_that_of_the_true_classes(made):
    watch = made(*WATCH)
    for record, views, batch in zip(watch.records(), watch.given, watch.batches, strict=True):
        right = (views.weak.logits.argmax(-1) == batch.truth).float().mean().item()
        assert record["pseudo_accuracy"] == pytest.approx(right)


def test_the_logged_marginal_is_the_mean_of_weak_predictions(made):
    watch, marginal = made(*WATCH), torch.full((10,), 0.1)
    for record, views in zip(watch.records(), watch.given, strict=True):
        marginal = 0.99 * marginal + 0.01 * views.weak.logits.softmax(-1).mean(0)
        assert record["marginal"] == pytest.approx(marginal.tolist(), rel=1e-4)


def test_methods_are_told_how_many_images_there_are(made):
    watch = made(*WATCH, "--data.labels_per_class", "8", "--data.labeled_imbalance", "8")
    (problem,) = watch.problems
    assert problem.labeled_counts == (8, 6, 5, 4, 3, 2, 2, 1, 1, 1)
    assert problem.num_unlabeled == len(watch.split()["unlabeled"]) > 1000
    assert (problem.num_classes, problem.num_features) == (10, 64)


def test_a_loss_that_is_not_finite_stops_a_run_whose_weights_are(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(tmp_path / "a", *TINY, "--labeled_loss", f"{__name__}.Unbounded")
    assert exit_.value.code == 1 and "the loss is not finite at step 1" in capsys.readouterr().err


def test_the_trained_model_makes_the_pseudo_labels_with_the_statistics_of_the_batch(made):
    watch = made(*WATCH)
    for step in range(1, STEPS):
        with torch.no_grad():
            expected = watch.model(step).train()(watch.batches[step].weak[0])[0]
        torch.testing.assert_close(watch.given[step].weak.logits, expected)


def test_the_averaged_model_makes_the_pseudo_labels_where_it_is_asked_to(made):
    watch = made(*WATCH, "--target_model", "ema")
    for step in range(1, STEPS):
        with torch.no_grad():
            expected = watch.model(step, "ema")(watch.batches[step].weak[0])[0]
        torch.testing.assert_close(watch.given[step].weak.logits, expected)


def test_no_decay_makes_the_averaged_model_the_trained_one(made):
    each = made("--ema_decay", "0")
    for step in range(1, STEPS + 1):
        assert same(each.trained(step), each.trained(step, "ema"))


def test_weights_are_averaged_with_the_decay(made):
    each = made("--ema_decay", "0.15")
    for step in range(2, STEPS + 1):
        before, now, raw = each.trained(step - 1, "ema"), each.trained(step, "ema"), each.trained(step)
        # The first steps have a shorter average: (1 + k) / (10 + k) from k = 0 on.
        close(now, {key: 0.15 * before[key] + 0.85 * raw[key] for key in now})


def test_a_young_average_forgets_faster(made):
    each = made(*PLAIN, "--optim.lr", "0.1", "--ema_decay", "0.999")
    for step in range(2, STEPS + 1):
        decay = step / (9 + step)
        before, now, raw = each.trained(step - 1, "ema"), each.trained(step, "ema"), each.trained(step)
        close(now, {key: decay * before[key] + (1 - decay) * raw[key] for key in now})


def test_a_joint_pass_shares_the_statistics_of_the_batch(made):
    apart, joint = made(*WATCH, *STILL), made(*WATCH, *STILL, "--joint_pass", "true")
    batch, model = joint.batches[0], joint.model(1)
    assert torch.equal(batch.weak[0], apart.batches[0].weak[0])
    for images, watch in (
        ([batch.labeled, *batch.strong, *batch.weak], joint),
        ([batch.labeled, *batch.strong], apart),
    ):
        with torch.no_grad():
            expected = model.train()(torch.cat(images))[0][: len(batch.labeled)]
        torch.testing.assert_close(watch.given[0].labeled.logits, expected, rtol=1e-4, atol=1e-4)


COUNT = ["--method", "FixMatch", "--method.threshold", "0.2", "--model.norm", "group"]


def test_strong_views_pass_where_they_count(made):
    counted, whole = (made(*COUNT, "--strong_views", setting) for setting in ("counted", "all"))
    shares = [record["strong_share"] for record in counted.records()]
    # Of 16 images, all of whose numbers are sizes.
    assert shares == [record["mask_rate"] for record in counted.records()]
    assert any(0 < share < 1 for share in shares)
    assert [record["strong_share"] for record in whole.records()] == [1.0] * STEPS
    close(counted.trained(STEPS), whole.trained(STEPS))


def test_strong_views_pass_by_default_where_they_count_if_that_changes_nothing(made):
    counted, by_default = made(*COUNT, "--strong_views", "counted"), made(*COUNT)
    assert same(by_default.weights(STEPS), counted.weights(STEPS))
    for norm, joint in (("batch", "false"), ("group", "true")):
        flags = [*COUNT, "--model.norm", norm, "--joint_pass", joint]
        assert [record["strong_share"] for record in made(*flags).records()] == [1.0] * STEPS


def test_batch_norm_has_the_statistics_of_strong_views_that_count_where_that_is_asked_for(made):
    counted = made(*WATCH_COUNTED, *STILL, "--steps", "1", "--strong_views", "counted")
    batch, model = counted.batches[0], counted.model(1)
    with torch.no_grad():
        expected = model.train()(torch.cat([batch.labeled, batch.strong[0][:5]]))[0][: len(batch.labeled)]
    torch.testing.assert_close(counted.given[0].labeled.logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method.base", "SoftMatch"], "SoftMatch gives every pseudo-label a weight above 0: set --strong_views all"),
        (["--method.base", "PseudoLabel"], "PseudoLabel has no strong views: set --strong_views all"),
        (["--joint_pass", "true"], "with joint_pass weak and strong views pass together"),
    ],
    ids=str,
)
def test_counted_strong_views_are_refused_with_the_reason(flags, message, tmp_path, capsys):
    given = [*TINY, *flags, "--strong_views", "counted"]
    said = refused(lambda arguments: run(tmp_path / "run", *arguments), given, capsys)
    assert said.startswith("error: strong_views is counted, but ") and message in said
    run(tmp_path / "run", *TINY, *flags, "--steps", "1")


def test_a_run_of_strong_views_that_count_resumes_exactly(made, tmp_path):
    whole, out = made(*COUNT, "--strong_views", "counted"), tmp_path / "run"
    shutil.copytree(whole.out, out)
    without_end(out, 2)
    run(out, *TINY, *COUNT, "--strong_views", "counted", "--resume")
    assert same(weights(out, STEPS), whole.weights(STEPS))
    assert [r["strong_share"] for r in Run(out).records()] == [r["strong_share"] for r in whole.records()]


def test_each_part_of_a_step_moves_the_statistics_once(made):
    for accumulation in (1, 2):
        found = made("--accumulation", str(accumulation)).statistics(STEPS)
        assert found["num_batches_tracked"] == accumulation * STEPS


def test_momentum_of_batch_norms_is_a_setting(made):
    one, half = (made(*STILL, "--model.batch_norm_momentum", m, "--steps", "1").statistics(1) for m in ("1", "0.5"))
    torch.testing.assert_close(one["running_mean"], 2 * half["running_mean"])
    assert one["running_mean"].abs().max() > 1e-3


def test_group_norm_keeps_no_statistics(made):
    assert not [key for key in made("--model.norm", "group").weights(1) if key.endswith("running_mean")]


def test_bf16_rounds_what_the_network_says(made):
    exact, rounded = made(*WATCH).given[0].labeled.logits, made(*WATCH, "--precision", "bf16").given[0].labeled.logits
    assert torch.equal(rounded, rounded.bfloat16().float()) and not torch.equal(exact, exact.bfloat16().float())


def test_networks_are_compiled_where_that_is_asked_for(made, tmp_path, monkeypatch):
    compiled = []

    def keeping(network: torch.nn.Module) -> torch.nn.Module:
        compiled.append(network)
        return network

    monkeypatch.setattr(torch, "compile", keeping)
    run(tmp_path / "a", *TINY, *PLAIN, "--compile", "true")
    assert len(compiled) == 2
    run(tmp_path / "b", *TINY, *PLAIN)
    assert len(compiled) == 2 and same(weights(tmp_path / "a", STEPS), weights(tmp_path / "b", STEPS))


def test_a_blank_image_is_white(made):
    watch, data = made(*WATCH, *STILL), load_data(DataConfig())
    white = torch.full((1, 1, 8, 8), (255 / 255 - data.mean[0]) / data.std[0])
    with torch.no_grad():
        expected = watch.model(1)(white)[0]
    blank = watch.given[0].blank
    assert blank is not None
    torch.testing.assert_close(blank.logits, expected)


# -- images


@pytest.fixture(scope="module")
def alone(made, tmp_path_factory) -> str:
    """A split of one labeled and one unlabeled image."""
    path = tmp_path_factory.mktemp("split") / "split.json"
    path.write_text(json.dumps(made().split() | {"labeled": [3], "unlabeled": [7], "validation": []}))
    return str(path)


def test_strong_views_are_augmented_strongly(made, alone):
    batch, data = made("--data.split", alone, *STILL).batches[0], load_data(DataConfig())
    # Cutout paints a square of four by four pixels, of which at least a quarter is inside of the image.
    gray = (127 / 255 - data.mean[0]) / data.std[0]
    painted, others = ((views[0] - gray).abs().lt(1e-4).sum((1, 2, 3)) for views in (batch.strong, batch.weak))
    assert painted.min() >= 4 > others.min()


def test_a_step_has_as_many_images_as_asked_for(made):
    watch = made(*WATCH)
    assert {(len(views.labels), len(views.index)) for views in watch.given} == {(8, 16)}
    assert len(made(*WATCH, "--unlabeled_ratio", "3", "--steps", "1").given[0].index) == 24
    # From all unlabeled images.
    assert {int(i) for views in watch.given for i in views.index} <= set(range(len(watch.split()["unlabeled"])))


def test_classes_are_drawn_equally_often_where_that_is_asked_for(made):
    tail = ["--data.labels_per_class", "20", "--data.labeled_imbalance", "20", "--batch_size", "10"]
    plain, balanced = made(*WATCH, *tail), made(*WATCH, *tail, "--class_balanced", "true")
    assert all(sorted(views.labels.tolist()) == [*range(10)] for views in balanced.given)
    assert not all(sorted(views.labels.tolist()) == [*range(10)] for views in plain.given)


def test_probabilities_are_those_of_the_teachers_averaged_model(made):
    teacher = made()
    taught = made("--method", f"{__name__}.Taught", "--teacher", str(teacher.out))
    averaged = build("wrn_10_1", 10, in_chans=1)
    averaged.net.load_state_dict(load_file(teacher.out / "model.safetensors"))
    for views, batch in zip(taught.given, taught.batches, strict=True):
        for given, images in ((views.teacher_probs, batch.weak[0]), (views.labeled_teacher_probs, batch.labeled)):
            with torch.no_grad():
                expected = averaged.eval()(images)[0].softmax(-1)
            torch.testing.assert_close(given, expected)


def test_a_method_that_needs_a_teacher_is_refused_without_one(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(tmp_path / "a", *TINY, "--method", f"{__name__}.Taught")
    assert exit_.value.code == 2 and "set data.probs or teacher" in capsys.readouterr().err


# -- seeds


def test_another_seed_draws_another_split_unless_that_has_a_seed_of_its_own(made):
    one, other = made(*WATCH), made(*WATCH, "--seed", "1")
    assert one.split() != other.split()
    own = [made(*WATCH, "--seed", seed, "--data.split_seed", "5").split() for seed in ("0", "1")]
    assert own[0] == own[1] != one.split()


def test_another_seed_gives_other_initial_weights(made):
    one, other = (made(*STILL, "--seed", seed).trained(1) for seed in ("0", "1"))
    # Of every kernel, the classifier's among them.
    assert all(not torch.equal(one[key], other[key]) for key in one if one[key].ndim > 1)


def test_the_same_seed_gives_the_same_initial_weights(made):
    first = made(*STILL).trained(1)
    torch.manual_seed(7)
    assert same(first, made(*STILL, "--log_every", "2").trained(1))


def test_another_seed_gives_another_order_of_the_same_images(made):
    one, other = (made(*WATCH, "--seed", seed, "--data.split_seed", "5") for seed in ("0", "1"))
    assert [v.index.tolist() for v in one.given] != [v.index.tolist() for v in other.given]
    assert [v.labels.tolist() for v in one.given] != [v.labels.tolist() for v in other.given]


def test_another_seed_augments_the_same_image_differently(made, alone):
    one, other = (made("--data.split", alone, "--seed", seed, *STILL).batches[0] for seed in ("0", "1"))
    assert not torch.equal(one.weak[0], other.weak[0])
    assert not torch.equal(one.strong[0], other.strong[0])
    assert not torch.equal(one.labeled, other.labeled)


def test_what_a_step_draws_depends_on_seed_and_step_alone(made, tmp_path):
    watch = made(*WATCH)
    assert len({value.item() for value in watch.drawn}) == STEPS
    # Not on what steps before have drawn: the watcher draws more each time, and a resumed one begins anew.
    out = tmp_path / "b"
    shutil.copytree(watch.out, out)
    without_end(out, 2)
    resumed = Run(out)
    with watched(resumed):
        run(out, *TINY, *WATCH, "--resume")
    assert resumed.drawn == watch.drawn[2:]
    other = made(*WATCH, "--seed", "1")
    assert not {value.item() for value in watch.drawn} & {value.item() for value in other.drawn}


def test_processes_draw_different_numbers(make_learner, make_batch, monkeypatch):
    def drawn(rank: int) -> float:
        accelerator = make_accelerator("fp32")
        monkeypatch.setattr(type(accelerator), "process_index", rank)
        learner = make_learner(Watcher, blank=(1.0,))
        take_step(0, make_batch(), Config(), accelerator, learner, make_optimizer(learner, OptimConfig()))
        return Watcher.drawn[-1].item()

    Watcher.given.clear()
    first = drawn(0)
    Watcher.given.clear()
    assert drawn(1) != first
    Watcher.given.clear()
    assert drawn(0) == first


@pytest.mark.parametrize("rate", ["drop_rate", "drop_path_rate"])
def test_a_run_that_drops_at_random_resumes_exactly(rate, made, tmp_path):
    net = ["--model.name", "test_resnet"]
    flags = [*net, f"--model.{rate}", "0.5"]
    whole = made(*flags)
    # timm's blocks begin as identities, so that at first it does not matter which are dropped.
    assert whole.records()[-1]["loss"] != made(*net).records()[-1]["loss"]
    out = tmp_path / "b"
    shutil.copytree(whole.out, out)
    without_end(out, 1)
    run(out, *TINY, *flags, "--resume")
    assert same(weights(out, STEPS), whole.weights(STEPS))
    assert [r["loss"] for r in Run(out).records()] == [r["loss"] for r in whole.records()]


def test_a_resumed_run_keeps_the_split_that_it_has(tmp_path):
    flags = [*TINY, "--steps", "2", "--data.split", str(tmp_path / "split.json")]
    run(tmp_path / "a", *TINY, "--steps", "1")
    shutil.copy(tmp_path / "a" / "split.json", tmp_path / "split.json")
    out = run(tmp_path / "b", *flags)
    split = (out / "split.json").read_text()
    without_end(out, 1)
    (tmp_path / "split.json").unlink()
    run(out, *flags, "--resume")
    assert (out / "split.json").read_text() == split


def test_a_resumed_run_goes_on_with_the_scale_of_its_losses(tmp_path, monkeypatch):
    """Losses are scaled for fp16 alone, which needs a GPU; the scaler itself works on every device."""
    make_accelerator = run_module.make_accelerator

    def scaling(*arguments: Any) -> Any:
        accelerator = make_accelerator(*arguments)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)  # pyright: ignore[reportPrivateImportUsage]
        return accelerator

    def state(out: Path, step: int) -> dict[str, Any]:
        return json.loads((out / "checkpoints" / f"step_{step:08d}" / "state.json").read_text())["scaler"]

    monkeypatch.setattr(run_module, "make_accelerator", scaling)
    whole = run(tmp_path / "a", *TINY)
    assert [(state(whole, k)["scale"], state(whole, k)["_growth_tracker"]) for k in (1, 2, 3, 4)] == [
        (1024, 1),
        (2048, 0),
        (2048, 1),
        (4096, 0),
    ]
    shutil.copytree(whole, tmp_path / "b")
    without_end(tmp_path / "b", 3)
    run(tmp_path / "b", *TINY, "--resume")
    assert state(tmp_path / "b", 4) == state(whole, 4)


# -- what is written, and when


def test_each_interval_is_its_own(made):
    flags = ["--steps", "7", "--log_every", "3", "--eval_every", "2", "--checkpoint_every", "5"]
    each = made(*flags)
    # A checkpoint closes an interval of the log, and so does the end.
    assert [record["step"] for record in each.records()] == [3, 5, 6, 7]
    assert [record["step"] for record in each.records("ema")] == [2, 4, 6, 7]
    assert sorted(path.name for path in (each.out / "checkpoints").iterdir()) == ["step_00000005", "step_00000007"]
    assert [sum(record["pseudo_counts"]) for record in each.records()] == [16 * steps for steps in (3, 2, 1, 1)]


def test_so_many_checkpoints_are_kept(made):
    for keep in (1, 3):
        found = sorted(path.name for path in (made("--keep_checkpoints", str(keep)).out / "checkpoints").iterdir())
        assert found == [f"step_{step:08d}" for step in range(STEPS + 1 - keep, STEPS + 1)]


def test_the_median_is_of_so_many_evaluations(made):
    each = made("--eval_every", "1", "--median_of", "2")
    losses = [record["ema"]["nll"] for record in each.records("ema")]
    summary = json.loads((each.out / "summary.json").read_text())
    assert len(set(losses)) == STEPS
    assert summary["ema"]["median"]["nll"] == pytest.approx(statistics.median(losses[-2:]), rel=1e-12)
    assert summary["ema"]["last"]["nll"] == losses[-1] == each.records("ema")[-1]["ema"]["nll"]
    assert summary["raw"]["last"]["nll"] == each.records("ema")[-1]["raw"]["nll"] != losses[-1]


def test_the_best_evaluation_is_the_most_accurate(made):
    each = made("--eval_every", "1", "--optim.lr", "0.1")
    summary = json.loads((each.out / "summary.json").read_text())
    for name in ("ema", "raw"):
        accuracies = [record[name]["accuracy"] for record in each.records("ema")]
        assert summary[name]["best"]["accuracy"] == max(accuracies) > min(accuracies)


def test_the_averaged_model_is_exported(made):
    each = made(*WATCH)
    exported = load_file(each.out / "model.safetensors")
    averaged = {key: exported[key] for key in each.trained(STEPS, "ema")}
    assert same(averaged, each.trained(STEPS, "ema")) and not same(averaged, each.trained(STEPS))


def test_evaluations_take_batches_of_their_size(made):
    test = len(load_data(DataConfig()).test)
    sizes = made(*WATCH, "--eval_batch_size", "100", "--steps", "1").predicted
    of_test = [100] * (test // 100) + [test % 100] * (test % 100 > 0)
    # By the averaged and by the trained model in turns, first the test images and then the 50 for validation; before
    # the first step, a largest batch of each of them is tried.
    # At the end, the model card asks for one prediction whether the method changes the network's.
    assert sizes == [100, 100, 50, 50] + [size for size in [*of_test, 50] for _ in range(2)] + [1]


def test_methods_are_told_how_the_averaged_model_does_on_validation_images(made):
    watch = made(*WATCH, "--eval_every", "2", "--optim.lr", "0.1")
    validations = [record["validation"] for record in watch.records("validation")]
    recalls = [(torch.tensor(each).diagonal() / torch.tensor(each).sum(1)).tolist() for each in watch.judged]
    assert len(recalls) == 2 and recalls == [pytest.approx(each["ema"]["recalls"], abs=1e-5) for each in validations]
    with np.load(watch.out / CONFUSION_FILE) as last:
        assert watch.judged[-1] == last["validation_ema"].tolist() != last["validation_raw"].tolist()
    # And the figures are of the averaged weights of that step.
    data, held_out = load_data(DataConfig()), watch.split()["validation"]
    assert data.train.pixels is not None
    images = (torch.from_numpy(data.train.pixels[held_out]).permute(0, 3, 1, 2) / 255 - data.mean[0]) / data.std[0]
    labels = torch.from_numpy(data.train.labels[held_out])
    for name in ("ema", "raw"):
        with torch.no_grad():
            logits = watch.model(2, name)(images)[0]
        assert validations[0][name]["accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
        loss = torch.nn.functional.cross_entropy(logits, labels).item()
        assert validations[0][name]["nll"] == pytest.approx(loss, rel=1e-4)


def test_the_speed_is_of_labeled_and_unlabeled_images(tmp_path, monkeypatch):
    # A clock that goes on by a second when it is looked at.
    clock = itertools.count()
    monkeypatch.setattr(journal_module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    out = run(tmp_path / "a", *TINY, "--log_every", "2", "--checkpoint_every", "2")
    assert [record["images_per_second"] for record in Run(out).records()] == [2 * (8 + 16)] * 2


def test_trackers_get_the_figures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = run(tmp_path / "a", *TINY, "--log_with", "[tensorboard]")
    (events,) = out.rglob("events.out.tfevents.*")
    logged = EventAccumulator(str(events.parent))
    logged.Reload()
    assert [event.value for event in logged.Scalars("learning_rate")] == pytest.approx(
        [record["learning_rate"] for record in Run(out).records()]
    )
    accuracy = json.loads((out / "summary.json").read_text())["ema"]["last"]["accuracy"]
    assert [event.value for event in logged.Scalars("final_accuracy")] == pytest.approx([accuracy])
    assert [event.value for event in logged.Scalars("ema_accuracy")] == pytest.approx([accuracy])


def test_without_a_tracker_there_are_no_events(made):
    assert not [*made().out.rglob("events.out.*")]


def test_the_folder_of_the_config_repeats_the_run(made, tmp_path):
    each = made(*RISING, "--optim.lr", "0.1")
    train.main(["--config", str(each.out / "config.yaml"), "--out", str(tmp_path / "b")])
    assert same(weights(tmp_path / "b", STEPS), each.weights(STEPS))
